"""Weights and data sets from servers of the same form as the real ones, into caches of their own, by the libraries' code."""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from safetensors.torch import save

from snows.sources import data, downloads, models, named_sets
from snows.sources.downloads import DownloadError
from snows.sources.models import LoadedModel
from tests.snows.loopback import serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


class Said(list):
    """Collects what a download reports."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        self.append((what, done, total))


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(named_sets, "ROOT", tmp_path / "data")


# --- weights ---


def test_a_hub_is_asked_once_and_reports(tmp_path: Path) -> None:
    """In a process of its own, since the hub's client reads its address when it is imported."""
    weights = save({n: t + 0.5 for n, t in models.load("timm:test_resnet", pretrained=False).module.state_dict().items()})
    path = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    code = (
        "from snows.sources import models; said = []\n"
        "def weights(): return models.published_weights('timm:test_resnet', 1)\n"
        "assert not weights().here\n"
        "first = models.load('timm:test_resnet', report=lambda *a: said.append(a))\n"
        "assert weights().here\n"
        "again = models.load('timm:test_resnet', report=lambda *a: said.append(a))\n"
        "name, value = next(iter(first.module.named_parameters()))\n"
        "random = models.load('timm:test_resnet', pretrained=False).module.get_parameter(name)\n"
        "assert (value - random - 0.5).abs().max() < 1e-6\n"
        "print(said[0][0], said[-1][1], said[-1][2])"
    )
    with serving({path: weights}) as (address, asked):
        home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=home, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["the", "weights", "of", "timm:test_resnet", str(len(weights)), str(len(weights))]
    assert [request for request in asked if path in request] == [f"HEAD {path}", f"GET {path}"]


def _cifar_weights(monkeypatch: pytest.MonkeyPatch, address: str, content: bytes) -> None:
    spec = models.CIFAR["resnet20-cifar10"]
    sha256 = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setitem(models.CIFAR, "resnet20-cifar10", replace(spec, address=f"{address}/r20.pt", sha256=sha256))


@pytest.fixture
def cifar_file() -> bytes:
    file = io.BytesIO()
    torch.save({n: t + 1 for n, t in models.CIFAR["resnet20-cifar10"].build().state_dict().items()}, file)
    return file.getvalue()


def test_torch_hub_reports_and_leaves_its_own_bar(cifar_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    before, said = torch.hub.tqdm, Said()
    with serving({"/r20.pt": cifar_file}) as (address, asked):
        _cifar_weights(monkeypatch, address, cifar_file)
        loaded = models.load("resnet20-cifar10", report=said)
        models.load("resnet20-cifar10", report=said)
    assert asked == ["GET /r20.pt"]
    assert said[-1] == ("the weights of resnet20-cifar10", len(cifar_file), len(cifar_file))
    assert torch.hub.tqdm is before
    assert loaded.module.bn1.weight.min() == 2
    assert loaded.class_names[0] == "airplane"


def test_a_download_can_be_stopped_and_leaves_nothing(cifar_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with serving({"/r20.pt": cifar_file}) as (address, _):
        _cifar_weights(monkeypatch, address, cifar_file)
        with pytest.raises(KeyboardInterrupt):
            models.load("resnet20-cifar10", report=stop)
    assert list(Path(torch.hub.get_dir(), "checkpoints").iterdir()) == []


def test_weights_that_arrive_damaged(cifar_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"/r20.pt": cifar_file[:-1]}) as (address, _):
        _cifar_weights(monkeypatch, address, cifar_file)
        with pytest.raises(DownloadError, match=r"arrived damaged from .*r20.pt. Try again"):
            models.load("resnet20-cifar10", report=Said())


def test_a_file_that_is_gone(cifar_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}) as (address, _):
        _cifar_weights(monkeypatch, address, cifar_file)
        with pytest.raises(DownloadError, match=r"r20.pt: HTTP Error 404.* as your own weights"):
            models.load("resnet20-cifar10")


def test_published_weights_are_read_as_untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), file)
    with serving({"/r20.pt": file.getvalue()}) as (address, _):
        _cifar_weights(monkeypatch, address, file.getvalue())
        with pytest.raises(models.checkpoints.CheckpointError, match="does not fit this network"):
            models.load("resnet20-cifar10")


# --- data sets, in the form their owners publish them ---


def _tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _jpeg(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 32), (level, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def _cifar(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    def batch(count: int) -> bytes:
        pixels = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 3072, axis=1)
        return pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(count)]})

    files = {"data_batch_1": batch(30), "test_batch": batch(20)}
    files["batches.meta"] = pickle.dumps({"label_names": list(models.CIFAR10_CLASSES)})
    archive = _tar({f"cifar-10-batches-py/{name}": content for name, content in files.items()})
    cls = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cls, "url", f"{address}/cifar-10-python.tar.gz")
    monkeypatch.setattr(cls, "tgz_md5", _md5(archive))
    monkeypatch.setattr(cls, "train_list", [["data_batch_1", _md5(files["data_batch_1"])]])
    monkeypatch.setattr(cls, "test_list", [["test_batch", _md5(files["test_batch"])]])
    monkeypatch.setattr(cls, "meta", {"filename": "batches.meta", "key": "label_names", "md5": _md5(files["batches.meta"])})
    return {"/cifar-10-python.tar.gz": archive}


def _cifar100(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    def batch(count: int) -> bytes:
        return pickle.dumps({"data": np.zeros((count, 3072), np.uint8), "fine_labels": [i % 100 for i in range(count)]})

    files = {"train": batch(30), "test": batch(20), "meta": pickle.dumps({"fine_label_names": list(models.CIFAR100_CLASSES)})}
    archive = _tar({f"cifar-100-python/{name}": content for name, content in files.items()})
    cls = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cls, "url", f"{address}/cifar-100-python.tar.gz")
    monkeypatch.setattr(cls, "tgz_md5", _md5(archive))
    monkeypatch.setattr(cls, "train_list", [["train", _md5(files["train"])]])
    monkeypatch.setattr(cls, "test_list", [["test", _md5(files["test"])]])
    monkeypatch.setattr(cls, "meta", {"filename": "meta", "key": "fine_label_names", "md5": _md5(files["meta"])})
    return {"/cifar-100-python.tar.gz": archive}


def _imagenette(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    wnids = list(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    files = {
        f"imagenette2-320/{split}/{wnid}/{i}.JPEG": _jpeg(i)
        for split, count in (("train", 3), ("val", 2))
        for wnid in wnids
        for i in range(count)
    }
    # torchvision looks for .jpeg in any case of letters
    archive = _tar(files)
    spec = {"320px": (f"{address}/imagenette2-320.tgz", _md5(archive))}
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", spec)
    return {"/imagenette2-320.tgz": archive}


def _pets(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    names = {f"{breed}_{i}": index for index, breed in enumerate(("Abyssinian", "beagle"), start=1) for i in range(15)}
    lists = {
        f"annotations/{split}.txt": "".join(f"{n} {k} 1 1\n" for n, k in names.items()).encode()
        for split in ("trainval", "test")
    }
    images = _tar({f"images/{name}.jpg": _jpeg(5) for name in names})
    annotations = _tar(lists | {"annotations/trimaps/x.png": b""})
    resources = ((f"{address}/images.tar.gz", _md5(images)), (f"{address}/annotations.tar.gz", _md5(annotations)))
    monkeypatch.setattr(torchvision.datasets.OxfordIIITPet, "_RESOURCES", resources)
    return {"/images.tar.gz": images, "/annotations.tar.gz": annotations}


def _flowers(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    def mat(**values: list[int]) -> bytes:
        file = io.BytesIO()
        scipy.io.savemat(file, values)
        return file.getvalue()

    numbers = list(range(1, 51))
    files = {
        "102flowers.tgz": _tar({f"jpg/image_{i:05d}.jpg": _jpeg(i) for i in numbers}),
        "imagelabels.mat": mat(labels=[1 + i % 102 for i in numbers]),
        "setid.mat": mat(trnid=numbers[:25], valid=[26], tstid=numbers[26:]),
    }
    cls = torchvision.datasets.Flowers102
    kinds = zip(("image", "label", "setid"), files.items(), strict=True)
    monkeypatch.setattr(cls, "_download_url_prefix", f"{address}/")
    monkeypatch.setattr(cls, "_file_dict", {kind: (name, _md5(content)) for kind, (name, content) in kinds})
    return {f"/{name}": content for name, content in files.items()}


MAKERS = {
    "cifar-10": _cifar,
    "cifar-100": _cifar100,
    "imagenette": _imagenette,
    "oxford-pets": _pets,
    "flowers-102": _flowers,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, bytes], str, list[str]]]:
    """A server whose files a test may add to, its address, and what it was asked for."""
    files: dict[str, bytes] = {}
    with serving(files) as (address, asked):
        for name, spec in named_sets.SETS.items():
            monkeypatch.setitem(named_sets.SETS, name, replace(spec, addresses=(f"{address}/{name}",), num_bytes=1000))
        yield files, address, asked


@pytest.fixture(scope="module")
def colour() -> LoadedModel:
    return models.outline("timm:test_vit")


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_set_comes_by_name_once_with_progress(
    name: str, server: tuple[dict[str, bytes], str, list[str]], colour: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, address, asked = server
    files |= MAKERS[name](address, monkeypatch)
    assert not named_sets.is_here(name)
    with pytest.raises(data.DataError, match="not on this machine yet") as refused:
        data.preview(name, colour, 4, 8, 0, count=2)
    assert refused.value.in_shell == f"python -m snows fetch {name}"
    said = Said()
    loaded = data.load(name, colour, 6, 8, seed=0, report=said)
    assert loaded.calibration.shape == (6, 3, 160, 160)
    assert loaded.evaluation.shape == (8, 3, 160, 160)
    assert {done for _, done, total in said if done == total} == {len(content) for content in files.values()}
    before = len(asked)
    again = data.load(name, colour, 6, 8, seed=0, report=said)
    assert len(asked) == before
    assert torch.equal(again.calibration, loaded.calibration)
    shown = data.preview(name, colour, 6, 8, 0, count=2)
    assert torch.equal(shown.images, loaded.calibration[:2])
    assert [path.name for path in named_sets.ROOT.iterdir()] == [named_sets.SETS[name].folder]  # and nothing else


def test_labels_are_the_networks_classes(
    server: tuple[dict[str, bytes], str, list[str]], colour: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, address, _ = server
    files |= _imagenette(address, monkeypatch) | _cifar(address, monkeypatch)
    imagenette = data.load("imagenette", colour, 4, 20, 0)
    assert imagenette.labels is not None
    ids = {colour.class_ids[label] for label in imagenette.labels.tolist()}
    assert ids == set(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    foreign = data.load("cifar-10", colour, 4, 20, 0)
    assert foreign.labels is None
    assert "not named like the classes of timm:test_vit" in foreign.notes[0]
    own = data.load("cifar-10", models.outline("resnet20-cifar10"), 4, 20, 0)
    level = ((own.evaluation[:, 0, 5, 5] * 0.2023 + 0.4914) * 255).round().int()
    assert own.labels is not None
    assert own.labels.tolist() == [int(i) % 10 for i in level]


def test_a_stopped_download_is_not_taken_for_the_set(
    server: tuple[dict[str, bytes], str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, address, _ = server
    files |= _pets(address, monkeypatch)

    def stop(what: str, done: int, total: int | None) -> None:
        if total == len(files["/annotations.tar.gz"]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        named_sets.fetch("oxford-pets", stop)
    assert not named_sets.is_here("oxford-pets")
    assert list(named_sets.ROOT.iterdir()) == []
    named_sets.fetch("oxford-pets")
    assert named_sets.is_here("oxford-pets")


def test_a_set_that_arrives_damaged_or_not_at_all(
    server: tuple[dict[str, bytes], str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, address, _ = server
    (path, content), *_ = _cifar(address, monkeypatch).items()
    with pytest.raises(DownloadError, match=r"CIFAR-10 could not be fetched .*404.* bring the pictures in it as an archive"):
        named_sets.fetch("cifar-10")
    files[path] = content[:-5]
    with pytest.raises(DownloadError, match="CIFAR-10 arrived damaged"):
        named_sets.fetch("cifar-10")
    assert list(named_sets.ROOT.iterdir()) == []


def test_a_set_that_is_not_whole_says_what_to_do(server: object, colour: LoadedModel) -> None:
    (named_sets.ROOT / "flowers-102").mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"is not whole .* Have its folder .* deleted, and it will be downloaded again"):
        data.load("flowers-102", colour, 1, 1, 0)


def test_no_room_and_no_network_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads.socket, "create_connection", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(
        DownloadError, match=r"could not be fetched from www.robots.ox.ac.uk: no route. Download https.* and https"
    ):
        named_sets.fetch("oxford-pets")
    monkeypatch.undo()
    monkeypatch.setattr(named_sets, "no_route", lambda address: None)
    monkeypatch.setitem(named_sets.SETS, "cifar-10", replace(named_sets.SETS["cifar-10"], num_bytes=10**18))
    with pytest.raises(DownloadError, match=r"are free there\. Make room"):
        named_sets.fetch("cifar-10")
