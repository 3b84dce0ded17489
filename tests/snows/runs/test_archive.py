"""Runs that leave and come back, and what must not come in: paths that lead outside, links, bombs, damaged files."""

import io
import os
import shutil
import stat
import struct
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snows.config import PruneConfig, RunConfig
from snows.events import CGIteration, Event, NewtonStep, Queued, RunFinished, RunStarted, SiteFinished, SiteStarted
from snows.export.files import save_weights
from snows.runs import archive
from snows.runs.archive import ArchiveError, import_run, pack
from snows.runs.store import Labels, Run, RunStore
from tests.snows.helpers import zipped

SITES = ["a.weight", "b.weight"]
STARTED = RunStarted(device="cpu", sites=SITES, skipped={"c.weight": "too small"})
BEGUN = [SiteStarted(site=site, index=i, operations=["a (linear)"], shape=[4, 4]) for i, site in enumerate(SITES)]
STEP = NewtonStep(
    site="a.weight",
    step=0,
    loss=0.5,
    gradient_norm=float("nan"),
    cg_status="CONVERGED",
    cg_iterations=1,
    step_size=1.0,
    tried=[1.0],
    predicted=0.1,
    actual=0.1,
    damping=1e-4,
    status="accepted",
)
ENDED = SiteFinished(
    site="a.weight",
    index=0,
    losses={"final": 0.5},
    by_k={"final": [0.5]},
    scale=[1.0],
    density=0.5,
    status="converged",
    message="Done.",
    seconds=1.0,
    num_products=3,
)
METRICS = {"accuracy": 0.9, "accuracy_dense": None}


def write_run(store: RunStore) -> Run:
    """A finished run with every file that a run has, and those that its worker leaves."""
    run = store.create(RunConfig(model="vit-fashion", prune=PruneConfig(pattern="1:8"), name="mine"))
    run.append(Queued(), STARTED)
    for index, begun in enumerate(BEGUN):
        run.append(begun, CGIteration(site=begun.site, step=0, iteration=1, residual=0.1, curvature=float("inf")))
        run.append(replace(STEP, site=begun.site), replace(ENDED, site=begun.site, index=index))
        run.save_site(index, torch.randn(4, 4), torch.eye(4, dtype=torch.bool))
    run.save_weights({site: torch.eye(4) for site in SITES})
    run.save_metrics(METRICS)
    run.append(RunFinished(metrics=METRICS))
    run.save_labels(Labels(name="best", tags=("talk",), compare=True))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(RunStore(tmp_path / "elsewhere"))


def packed(run: Run) -> io.BytesIO:
    file = io.BytesIO()
    pack(run, file)
    return file


def files_of(run: Run) -> dict[str, bytes]:
    return {f"{run.id}/{p.relative_to(run.path)}": p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(store: RunStore, source: Path | io.BytesIO, match: str) -> None:
    """Importing `source` raises a sentence, and leaves neither a run nor a scratch file behind."""
    before = contents(store.root)
    with pytest.raises(ArchiveError, match=match) as refusal:
        import_run(store, source)
    assert contents(store.root) == before
    assert not list(store.root.glob(".import/*"))
    assert str(refusal.value).endswith((".", "!"))


# --- there and back ---


@pytest.mark.parametrize("way", ["file", "path", "folder", "flat"])
def test_a_run_comes_back_whole(store: RunStore, run: Run, tmp_path: Path, way: str) -> None:
    (tmp_path / "run.zip").write_bytes(packed(run).getvalue())
    source = {
        "file": packed(run),
        "path": tmp_path / "run.zip",
        "folder": run.path,
        "flat": zipped({p.name: p.read_bytes() for p in run.path.glob("*.json*")}),
    }[way]
    back = import_run(store, source)
    assert store.list() == [back]
    assert (back.id == run.id) == (way != "flat")  # a zip without a folder has no id to keep
    kept = (".json", ".jsonl") if way == "flat" else ""
    assert contents(back.path) == {name: content for name, content in contents(run.path).items() if name.endswith(kept)}
    assert back.state() == "finished"
    assert back.created() == run.created()


def test_what_belongs_to_the_worker_or_the_file_manager_stays_away(store: RunStore, run: Run) -> None:
    for name in ("cancel", "reserve", "lock", "worker.json", ".DS_Store", "Thumbs.db", ".weights.safetensors.1.2"):
        (run.path / name).write_text("{}")
    assert not {"cancel", "lock", "worker.json", ".DS_Store"} & {Path(n).name for n in zipfile.ZipFile(packed(run)).namelist()}
    mac = zipped(files_of(run) | {f"__MACOSX/{run.id}/._config.json": b"x"})
    back = import_run(store, mac)
    assert {p.name for p in back.path.iterdir()} == {
        "config.json",
        "events.jsonl",
        "label.json",
        "metrics.json",
        "sites",
        "weights.safetensors",
    }


def test_a_run_in_work_can_be_packed_and_shows_as_interrupted(store: RunStore, run: Run) -> None:
    (run.path / "events.jsonl").write_bytes((run.path / "events.jsonl").read_bytes().rpartition(b'{"kind":"RunFinished"')[0])
    with run.queue():
        with (run.path / "events.jsonl").open("ab") as file:
            file.write(b'{"kind": "Pha')
        source = packed(run)
        refused(store, run.path, "is queued. Import it when it has ended")
    back = import_run(store, source)
    assert back.state() == "interrupted"
    assert isinstance(back.events()[0][-1], Queued)


def test_events_of_a_newer_version_may_come(store: RunStore, run: Run) -> None:
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"kind": "AddedLater", "time": 1.0}\n')
    assert import_run(store, run.path).state() == "finished"


def test_an_id_that_is_there_is_kept_apart(store: RunStore, run: Run) -> None:
    first = import_run(store, run.path)
    refused(store, packed(run), f"There is a run {run.id} already")
    copy = import_run(store, run.path, as_copy=True)
    assert copy.id != run.id
    assert contents(copy.path) == contents(first.path)
    with pytest.raises(ArchiveError, match="There is a run recorded-1 already"):
        import_run(store, shutil.copytree(run.path, run.path.parent / "recorded-1"), taken={"recorded-1"})


@pytest.mark.parametrize("name", ["my best run (1)", ".hidden", "a" * 200, "ключ"])
def test_a_folder_name_that_cannot_be_an_id_gives_way_to_a_new_one(store: RunStore, run: Run, name: str) -> None:
    back = import_run(store, shutil.copytree(run.path, run.path.parent / name))
    assert back.id != name
    assert store.get(back.id).state() == "finished"


def test_two_imports_at_once_make_one_run(store: RunStore, run: Run) -> None:
    outcomes = []

    def take() -> None:
        try:
            outcomes.append(import_run(store, run.path).id)
        except ArchiveError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(run.id) == 1
    assert sum("already" in outcome for outcome in outcomes) == 3
    assert contents(store.get(run.id).path) == contents(run.path)
    assert not list(store.root.glob(".import/*"))


# --- names, links, sizes ---


@pytest.mark.parametrize("name", ["../evil", "RUN/../../evil", "RUN/sites/../../../evil", "RUN\\..\\..\\evil", "C:\\..\\evil"])
def test_a_path_that_leads_outside(store: RunStore, run: Run, tmp_path: Path, name: str) -> None:
    refused(store, zipped(files_of(run) | {name.replace("RUN", run.id): b"evil"}), "outside the run's folder")
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("name", ["/etc/evil", "RUN\\..\\evil", "C:/evil", "RUN//evil", "./RUN/evil"])
def test_a_path_that_only_looks_so(store: RunStore, run: Run, tmp_path: Path, name: str) -> None:
    refused(store, zipped(files_of(run) | {name.replace("RUN", run.id): b"evil"}), "is no part of a run")
    assert not list(tmp_path.rglob("evil*"))


def test_a_link_in_an_archive(store: RunStore, run: Run) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        if info.filename.endswith("metrics.json"):
            info.external_attr = (stat.S_IFLNK | 0o777) << 16

    refused(store, zipped(files_of(run), link), "metrics.json is a link")


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_a_link_or_device_in_a_folder(store: RunStore, run: Run, tmp_path: Path, kind: str) -> None:
    shutil.rmtree(run.path / "sites")
    (tmp_path / "secret").write_text("{}")
    match kind:
        case "file":
            (run.path / "metrics.json").unlink()
            (run.path / "metrics.json").symlink_to(tmp_path / "secret")
        case "folder":
            (run.path / "sites").symlink_to(tmp_path)
        case "pipe":
            os.mkfifo(run.path / "sites")
    refused(store, run.path, "is a link or a device")


def test_a_folder_that_is_no_run_is_not_walked(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "walk", lambda _: pytest.fail("the whole disk would be read"))
    refused(store, Path("/"), r"/ is no run: it has no config\.json")


@pytest.mark.slow
def test_a_small_archive_that_grows_to_fill_the_disk(store: RunStore, run: Run) -> None:
    bomb = zipped(files_of(run) | {f"{run.id}/sites/0001.safetensors": bytes(300 * 1000**2)})
    assert len(bomb.getvalue()) < 1000**2
    refused(store, bomb, "made to fill the disk")


def test_sizes_are_limited_by_file_in_all_and_by_the_disk(store: RunStore, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_JSON_BYTES", 100)
    refused(store, run.path, r"config\.json has \d+ bytes; a run's may have 100")
    monkeypatch.undo()
    monkeypatch.setattr(archive, "MAX_BYTES", 700)
    refused(store, run.path, "a run may have 700")
    monkeypatch.undo()
    free = shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    refused(store, run.path, "1 are free in")


def test_a_size_that_lies_is_found_out(store: RunStore, run: Run) -> None:
    whole = bytearray(zipped(files_of(run)).getvalue())
    directory = whole.index(b"PK\x01\x02")
    struct.pack_into("<I", whole, directory + 24, 10)  # the first file's unpacked size
    refused(store, io.BytesIO(whole), "is not a whole zip archive")


@pytest.mark.slow
@pytest.mark.parametrize("count", [archive.MAX_ENTRIES + 1, 60_000])  # the second does not get as far as to be listed
def test_too_many_entries(store: RunStore, count: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for number in range(count):
            target.writestr(zipfile.ZipInfo(f"RUN/sites/{number:06d}.safetensors"), b"")
    refused(store, file, "more than 20,000 files")


def test_too_many_files_in_a_folder(store: RunStore, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 5)
    refused(store, run.path, "more than 5 files")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice(store: RunStore, run: Run) -> None:
    file = zipped(files_of(run))
    with zipfile.ZipFile(file, "a") as target:
        target.writestr(f"{run.id}/metrics.json", "{}")
    refused(store, file, r"holds metrics\.json twice")


def test_encrypted_or_rarely_packed_files(store: RunStore, run: Run) -> None:
    whole = bytearray(zipped(files_of(run)).getvalue())
    directory = whole.index(b"PK\x01\x02")
    encrypted, rare = whole.copy(), whole.copy()
    struct.pack_into("<H", encrypted, directory + 8, 1)
    struct.pack_into("<H", rare, directory + 10, 14)  # LZMA
    refused(store, io.BytesIO(encrypted), "is encrypted")
    refused(store, io.BytesIO(rare), "rare method")


# --- not a run ---


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "This is no run: it has no config.json"),
        ({"notes.txt": b"hello"}, "This is no run"),
        ({"a/b/config.json": b"{}"}, "This is no run"),
        ({"a/config.json": b"{}", "b/config.json": b"{}"}, "This holds 2 runs"),
        ({"a/config.json": b"{}", "a/setup.py": b"evil"}, "'a/setup.py' is no part of a run"),
        ({"a/config.json": b"{}", "b.json": b"{}"}, "'b.json' is no part of a run"),
        ({"a/config.json": b"{}", "a/sites/x.pt": b"pickle"}, "no part of a run"),
        ({"a/config.json": b"{}"}, "no events.jsonl"),
    ],
)
def test_archives_of_something_else(store: RunStore, files: dict[str, bytes], sentence: str) -> None:
    refused(store, zipped(files), sentence)


def test_what_is_no_archive(store: RunStore, tmp_path: Path) -> None:
    refused(store, io.BytesIO(b"not a zip"), "The file is not a whole zip archive")
    refused(store, tmp_path / "absent", r"There is no file or folder .*absent")
    (tmp_path / "text.zip").write_text("hello")
    refused(store, tmp_path / "text.zip", r"text\.zip is not a whole zip archive")


def test_an_archive_cut_short_anywhere(store: RunStore, run: Run) -> None:
    whole = packed(run).getvalue()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        refused(store, io.BytesIO(whole[:length]), "is not a whole zip archive")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", b"{", r"config\.json does not fit this version"),
        ("config.json", b'{"prune": {"pattern": {"kind": "nm", "n": 9, "m": 4}}}', "N smaller than M"),
        ("config.json", b'{"unheard_of": 1}', "unheard_of is not a setting"),
        ("config.json", b"\xff\xfe", r"config\.json cannot be read"),
        ("label.json", b'{"name": 3}', r"label\.json does not fit"),
        ("label.json", b'{"tags": ["' + b"x" * 50 + b'"]}', "longer than 40"),
        ("metrics.json", b'{"accuracy": "high"}', r"metrics\.json does not fit"),
        ("metrics.json", b"[1]", r"metrics\.json does not fit"),
        ("metrics.json", b"no", r"metrics\.json does not fit"),
        ("weights.safetensors", b"PK", r"weights\.safetensors is not a safetensors file"),
        ("weights.safetensors", b"\x80\x04pickle", "is not a safetensors file"),
        ("sites/0000.safetensors", bytes(64), r"0000\.safetensors is not a safetensors file"),
    ],
)
def test_damaged_and_foreign_files(store: RunStore, run: Run, name: str, content: bytes, sentence: str) -> None:
    (run.path / name).write_bytes(content)
    refused(store, run.path, sentence)
    refused(store, packed(run), sentence)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 3, does not fit this version"),
        ("[]", "line 3, does not fit this version"),
        ("\x00", "line 3, does not fit this version"),
        ("[" * 100_000, "line 3, does not fit this version"),
        ('{"kind": "Phase", "time": 1.0}', "line 3, does not fit this version"),
        ('{"kind": "Phase", "time": "late", "name": "load"}', "line 3, does not fit this version"),
        (STEP, "a layer that has not begun: 'a.weight'"),
        (ENDED, "a layer that has not begun"),
        (replace(BEGUN[0], site="x"), "a layer that is not the run's: 'x'"),
        (replace(BEGUN[0], index=7), "a layer that is not the run's"),
        ([BEGUN[0], replace(ENDED, losses={})], "leaves out losses"),
        ([BEGUN[0], replace(ENDED, by_k={"final": [0.1, 0.2]})], "leaves out losses"),
    ],
)
def test_a_log_that_readers_would_stumble_over(
    store: RunStore, run: Run, line: str | Event | list[Event], sentence: str
) -> None:
    (run.path / "events.jsonl").unlink()
    run.append(Queued(), STARTED)
    if isinstance(line, str):
        with (run.path / "events.jsonl").open("a") as file:
            file.write(line + "\n")
    else:
        run.append(*(line if isinstance(line, list) else [line]))
    refused(store, packed(run), sentence)
    refused(store, run.path, r"\.$")


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"weight": torch.ones(4, 4)}, "does not hold one weight and its mask"),
        ({"weight": torch.ones(4, 4), "mask": torch.ones(4, 4)}, "does not hold one weight and its mask"),
        ({"weight": torch.ones(4, 4), "mask": torch.ones(4, dtype=torch.bool)}, "does not hold one weight and its mask"),
    ],
)
def test_a_layer_without_its_mask(store: RunStore, run: Run, tensors: dict[str, torch.Tensor], sentence: str) -> None:
    save_weights(run.path / "sites" / "0001.safetensors", tensors)
    refused(store, run.path, sentence)


def test_tensors_of_another_run(store: RunStore, run: Run) -> None:
    run.save_site(2, torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool))
    refused(store, run.path, r"0002\.safetensors belongs to no layer of the run, which has 2")
    (run.path / "sites" / "0002.safetensors").unlink()
    run.save_weights({"a.weight": torch.ones(4, 4)})
    refused(store, run.path, r"lacks the pruned layer b\.weight")


def test_a_disk_that_fills_up_leaves_nothing(store: RunStore, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: io.BufferedWriter, size: int) -> None:
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    refused(store, run.path, "No space left on device")


@pytest.mark.slow
@given(
    name=st.sampled_from(["config.json", "events.jsonl", "metrics.json", "label.json", "weights.safetensors"]),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
)
@settings(max_examples=60)
def test_any_byte_changed_is_a_run_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    run = write_run(RunStore(folder / "elsewhere"))
    content = bytearray((run.path / name).read_bytes())
    content[int(place * len(content))] = byte
    (run.path / name).write_bytes(content)
    store = RunStore(folder / "here")
    try:
        back = import_run(store, run.path)
    except ArchiveError:
        assert store.list() == []
    else:  # then every reader can read it
        back.config(), back.labels(), back.metrics(), back.state(), back.created(), back.events(), back.masks()
    shutil.rmtree(folder)
