"""A finished run for elsewhere: what is written opens there, computes the same, and the card's own lines do what they say."""

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from torch import Tensor, nn

from snows.__main__ import _parser
from snows.cli.flags import command, config_of
from snows.config import NM, RunConfig
from snows.events import RunStarted, SiteFinished, SiteStarted
from snows.export.coreml import save_coreml
from snows.export.files import ArtifactError, load_weights
from snows.method.sparsity import from_matrix, keep_mask, to_matrix
from snows.packed import read_packed
from snows.plans import exports
from snows.plans.exports import ExportError, export, public, push
from snows.runs import runner
from snows.runs.store import Run, RunStore
from snows.sources import checkpoints, models

RECORDED = RunStore(Path(__file__).parents[3] / "assets" / "runs")
QUARTER = NM(n=1, m=4)
CLIENT = huggingface_hub.HfApi


def finished(store: RunStore, module: nn.Module, **settings: Any) -> Run:
    """A run that has ended with `module`, whose matrices keep 1:4 where that fits."""
    config = {"data": "/home/somebody/photographs", "num_evaluation": 40, "prune": {"pattern": "1:4"}} | settings
    run = store.create(RunConfig.model_validate(config))
    pruned = [
        name
        for name, weight in module.named_parameters()
        if weight.ndim in (2, 4) and weight.shape[1] % 4 == 0 and "pos_embed" not in name
    ]
    run.append(RunStarted(device="cpu", sites=pruned, skipped={}))
    with torch.no_grad():
        for index, name in enumerate(pruned):
            weight = module.get_parameter(name)
            weight.mul_(from_matrix(keep_mask(to_matrix(weight).abs(), QUARTER), weight.shape))
            run.append(
                SiteStarted(site=name, index=index, operations=[], shape=list(weight.shape)),
                SiteFinished(
                    site=name, index=index, losses={"final": 0.1}, by_k={}, scale=[1.0], density=0.25, status="converged",
                    message="", seconds=1.0, num_products=1,
                ),
            )  # fmt: skip
    run.save_weights(module.state_dict())
    run.save_metrics({"agreement": 0.875, "density": 0.25, "num_evaluation": 40})
    return run


@pytest.mark.parametrize("pattern", ["1:4", "width 50%"])
def test_onnx_is_smaller_where_whole_units_were_cut_away(pattern: str, store: RunStore, tmp_path: Path) -> None:
    """From a real run, whose folder holds the network at its full size."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    asked = {"pattern": pattern, "update": "none"}
    run = store.create(RunConfig.model_validate({"num_calibration": 16, "num_evaluation": 20, "prune": asked}))
    with run.queue() as hold:
        hold.work(runner.execute)
    assert run.state() == "finished"
    export(run, "onnx", path := tmp_path / "network.onnx")
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = models.load("resnet20-fashion", run.weights_path).module.eval()(images)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
    whole = run.weights_path.stat().st_size
    assert (path.stat().st_size < 0.6 * whole) == (pattern != "1:4")


def blocks(folder: Path) -> list[str]:
    """The card's programs, in order."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def answers(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return module.eval()(torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, nn.Module]:
    """A run of a small network of timm's with seven classes, its folder for the hub, and the network."""
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=7)
    root = tmp_path_factory.mktemp("exports")
    run = finished(RunStore(root / "runs"), module, model="timm:test_vit")
    export(run, "hub", root / "folder", "bfloat16", command(public(run.config())))
    return run, root / "folder", module


# --- a folder for the hub ---


def test_timm_and_this_app_open_the_folder_and_compute_the_same(tiny: tuple[Run, Path, nn.Module]) -> None:
    _, folder, module = tiny
    expected = answers(module, (3, 160, 160))
    assert expected.shape == (3, 7)
    assert torch.equal(answers(timm.create_model(f"local-dir:{folder}", pretrained=True), (3, 160, 160)), expected)
    here = models.load("timm:test_vit", folder)
    assert torch.equal(answers(here.module, here.input_size), expected)
    assert models.outline("timm:test_vit", folder).class_names == here.class_names
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "packed.safetensors",
    ]
    assert list(folder.parent.glob(".*")) == []


def test_the_cards_own_lines_open_the_network(tiny: tuple[Run, Path, nn.Module]) -> None:
    _, folder, module = tiny
    names: dict[str, Any] = {}
    exec(blocks(folder)[0].replace("FOLDER", str(folder)), names)
    assert torch.equal(answers(names["model"], (3, 160, 160)), answers(module, (3, 160, 160)))


def test_the_cards_own_loader_reads_the_packed_file_and_needs_torch_and_safetensors_alone(
    tiny: tuple[Run, Path, nn.Module],
) -> None:
    _, folder, module = tiny
    loader = blocks(folder)[1]
    assert len(loader.strip().splitlines()) <= 20
    assert set(re.findall(r"^(?:import|from) (\S+)", loader, re.MULTILINE)) == {"json,", "safetensors"}
    assert "import json, torch\n" in loader
    names: dict[str, Any] = {}
    exec(loader, names)
    read = names["load_packed"](folder / "packed.safetensors")
    for name, tensor in module.state_dict().items():
        assert torch.equal(read[name].float(), tensor.bfloat16().float() if tensor.ndim >= 2 else tensor), name
    other = timm.create_model("test_vit", num_classes=7)
    other.load_state_dict(read)


def test_the_cards_own_three_lines_keep_zeros_while_a_network_is_trained(tiny: tuple[Run, Path, nn.Module]) -> None:
    _, folder, _ = tiny
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).train()
    lines = blocks(folder)[2]
    assert len(lines.strip().splitlines()) == 3
    exec(lines, {"model": model})
    zeros = {name: (module.weight == 0).clone() for name, module in model.named_modules() if hasattr(module, "weight_mask")}
    assert sum(int(zero.sum()) for zero in zeros.values()) > 100_000
    # What brings zeros back to life: momentum, decay, and a step that is not small.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in zeros}
    for seed in range(3):
        images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
        optimizer.step()
    model(images)
    for name, zero in zeros.items():
        weight = model.get_submodule(name).weight
        assert not bool(weight[zero].any()), name
        assert not torch.equal(weight, before[name]), name
    # What is saved while the masks are on can be pruned again here.
    torch.save(model.state_dict(), folder.parent / "tuned.pt")
    tuned = models.load("timm:test_vit", folder.parent / "tuned.pt").module
    assert torch.equal(answers(tuned, (3, 160, 160)), answers(model, (3, 160, 160)))


def test_the_card_says_what_the_run_knows_and_no_folder_of_this_machine(tiny: tuple[Run, Path, nn.Module]) -> None:
    run, folder, _ = tiny
    card = (folder / "README.md").read_text()
    assert card.startswith('---\npipeline_tag: "image-classification"\n')
    assert 'library_name: "timm"\nlicense: "apache-2.0"\n---' in card
    assert "# timm:test\\_vit, pruned to 1:4" in card
    assert "| Agreement | 87.50 % |" in card
    assert "Accuracy" not in card
    assert "calibration images of photographs, seed 0; there were no labels." in card
    assert "have no fingerprint here" in card  # there is no such folder
    assert "| blocks.0.attn.qkv.weight | 192x64 | 25.00 % |" in card
    for path in folder.iterdir():
        assert b"somebody" not in path.read_bytes(), path.name
        assert str(folder.parent).encode() not in path.read_bytes(), path.name
    _, metadata = load_weights(folder / "packed.safetensors")
    assert (metadata["run"], metadata["pattern"]) == (run.id, "1:4")
    assert RunConfig.model_validate_json(metadata["config"]) == public(run.config())


def test_a_card_has_the_images_fingerprint_and_the_command_that_makes_the_run(tmp_path: Path) -> None:
    (run,) = (run for run in RECORDED.list() if run.config().model == "resnet20-fashion")
    cards = []
    for name in ("first", "second"):
        export(run, "hub", tmp_path / name, repeat=command(public(run.config())))
        cards.append((tmp_path / name / "README.md").read_text())
    assert cards[0] == cards[1]
    assert re.search(r"SHA-256 of the 512 calibration images, prepared and in order: `[0-9a-f]{64}`", cards[0])
    (typed,) = re.findall(r"```sh\n(.*?)\n```", cards[0])
    made = config_of(_parser().parse_args(shlex.split(typed)[3:]))
    assert made.prune.pattern == run.config().prune.pattern
    assert (made.model, made.data) == ("resnet20-fashion", "fashion-mnist")
    # timm has no such network, so the card names what does.
    assert "library_name" not in cards[0]
    names: dict[str, Any] = {}
    exec(blocks(tmp_path / "first")[0].replace("FOLDER", str(tmp_path / "first")), names)
    expected = models.load("resnet20-fashion", run.weights_path)
    assert torch.equal(answers(names["model"], expected.input_size), answers(expected.module, expected.input_size))
    assert json.loads((tmp_path / "first" / "config.json").read_text())["architecture"] == "resnet20-fashion"
    assert torch.equal(read_packed(tmp_path / "first" / "packed.safetensors")["fc.weight"], expected.module.fc.weight)


def test_the_bundled_transformer_is_one_that_timm_opens(tmp_path: Path) -> None:
    (run,) = (run for run in RECORDED.list() if run.config().model == "vit-fashion")
    export(run, "hub", tmp_path / "folder")
    there = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    here = models.load("vit-fashion", run.weights_path)
    assert torch.equal(answers(there, here.input_size), answers(here.module, here.input_size))
    assert there.pretrained_cfg["mean"] == [0.286]
    assert there.pretrained_cfg["label_names"][0] == "T-shirt/top"


@pytest.mark.slow
def test_a_network_of_torchvisions_opens_by_the_cards_lines(store: RunStore, tmp_path: Path) -> None:
    import torchvision

    module = torchvision.models.mobilenet_v3_small(num_classes=1000)
    run = finished(store, module, model="torchvision:mobilenet_v3_small")
    export(run, "hub", tmp_path / "folder")
    names: dict[str, Any] = {}
    exec(blocks(tmp_path / "folder")[0].replace("FOLDER", str(tmp_path / "folder")), names)
    assert torch.equal(answers(names["model"], (3, 64, 64)), answers(module, (3, 64, 64)))
    assert "nothing here says which that is" in (tmp_path / "folder" / "README.md").read_text()


def test_what_timm_would_build_otherwise_is_not_called_timms(tmp_path: Path) -> None:
    model = models.load("timm:test_vit", pretrained=False)
    checkpointed = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    from safetensors.torch import save_file

    save_file(checkpointed, tmp_path / checkpoints.EXPORTED)
    assert exports._write_config(model, tmp_path)
    model.module.norm = nn.Identity()  # changed after timm had built it
    assert not exports._write_config(dataclasses.replace(model), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "timm:test_vit"


# --- refusals ---


def test_a_run_without_a_result_is_refused(store: RunStore, tmp_path: Path) -> None:
    run = store.create(RunConfig())
    for form in exports.FORMS:
        with pytest.raises(ExportError, match=r"has no pruned network yet\. Wait until it has finished, or resume it."):
            export(run, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tiny: tuple[Run, Path, nn.Module], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not an empty folder"):
        export(tiny[0], "hub", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_fails_leaves_nothing(
    tiny: tuple[Run, Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_write_config", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(tiny[0], "hub", tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network_are_refused(store: RunStore, tmp_path: Path) -> None:
    run = finished(store, nn.Linear(8, 4), model="resnet20-fashion")
    with pytest.raises(checkpoints.CheckpointError, match="does not fit this network"):
        export(run, "hub", tmp_path / "folder")


@pytest.mark.parametrize("dtype", exports.DTYPES)
def test_files_are_written_over(tiny: tuple[Run, Path, nn.Module], dtype: str, tmp_path: Path) -> None:
    run, _, module = tiny
    for form in ("safetensors", "packed", "safetensors"):
        export(run, form, tmp_path / "file", dtype)
    assert torch.equal(load_weights(tmp_path / "file")[0]["head.weight"], module.head.weight)


# --- Core ML ---


def test_core_ml_without_its_package_gives_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "coremltools", None)
    with pytest.raises(ArtifactError, match=r"needs the package coremltools, which is not installed. Run: pip install"):
        save_coreml(tmp_path / "x.mlpackage", nn.Linear(2, 2), torch.zeros(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.BUNDLED))
def test_core_ml_stores_the_weights_that_the_network_has(name: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    (run,) = (run for run in RECORDED.list() if run.config().model == name)
    model = models.load(name, run.weights_path)
    stored = save_coreml(tmp_path / "x.mlpackage", model.module, torch.zeros(2, *model.input_size))
    mine = {tensor.numpy().tobytes() for tensor in model.module.state_dict().values()}
    sparse = [t for t in model.module.state_dict().values() if t.ndim >= 2 and float((t == 0).float().mean()) >= 0.5]
    assert len(stored) == len(sparse) > 10
    # Batch norms are folded into the convolutions, by a factor a channel: the zeros are the same.
    zeros = {(tensor == 0).numpy().tobytes() for tensor in model.module.state_dict().values()}
    assert all((tensor == 0).numpy().tobytes() in zeros for tensor in stored.values())
    assert name != "vit-fashion" or all(tensor.numpy().tobytes() in mine for tensor in stored.values())
    size = sum(path.stat().st_size for path in (tmp_path / "x.mlpackage").rglob("*") if path.is_file())
    assert size < 0.5 * run.weights_path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["x.mlpackage"]


# --- to the hub ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The hub's client, which only notes what it is asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repository: str, **settings: Any) -> Any:
            asked.append((repository, settings))
            return SimpleNamespace(repo_id=repository, __str__=lambda self: "x")

        def upload_folder(self, **settings: Any) -> None:
            asked.append(("upload", settings))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


def test_a_folder_is_pushed_by_the_hubs_own_client_to_a_private_repository(hub: list[Any], tmp_path: Path) -> None:
    push(tmp_path, "somebody/pruned")
    (repository, made), (_, sent) = hub
    assert (repository, made) == ("somebody/pruned", {"private": True, "exist_ok": True})  # and no token of ours
    assert (sent["repo_id"], sent["folder_path"]) == ("somebody/pruned", tmp_path)
    assert "token" not in sent


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The address of a hub that answers everything with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def at(address: str, token: str | bool) -> Callable[[], Any]:
    return lambda: CLIENT(endpoint=address, token=token)


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_refuses_is_named(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(status) as address:
        monkeypatch.setattr(huggingface_hub, "HfApi", at(address, "hf_wrong"))
        with pytest.raises(ExportError, match=r"The hub refused somebody/pruned .*hf auth login"):
            push(tmp_path, "somebody/pruned")


def test_a_name_a_token_and_a_connection_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", at("http://127.0.0.1:9", "hf_some"))
    with pytest.raises(ExportError, match="The hub could not be reached"):
        push(tmp_path, "somebody/pruned")
    with pytest.raises(ExportError, match=r"is no name of a repository .*Write OWNER/NAME"):
        push(tmp_path, "a/b/c")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "HfApi", at("http://127.0.0.1:9", True))
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(ExportError, match="wants a token and there is none here"):
        push(tmp_path, "somebody/pruned")
