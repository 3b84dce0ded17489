"""Folders as earlier versions left them, which the history of `assets/` has kept, and one of a version that is yet to come."""

import io
import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from snows.__main__ import main
from snows.config import InputError, PruneConfig, RunConfig
from snows.events import Queued, RunFailed, RunFinished
from snows.runs import formats
from snows.runs.archive import ArchiveError, import_run, pack
from snows.runs.log import Log
from snows.runs.store import Run, RunStore

FOLDERS = sorted((Path(__file__).parent / "formats").iterdir())
# What each run was really made with, as the code of its day had it, and what it measured.
MADE = {
    "1-20261124-resnet20-fashion": (
        RunConfig(
            name="Recorded example", num_held_back=0, prune=PruneConfig(pattern="1:4", k_steps=3, refine="none", ridge=0)
        ),
        0.9324,
        226,
    ),
    "1-20261127-resnet20-fashion": (
        RunConfig(
            name="Recorded example", num_held_back=0, prune=PruneConfig(pattern="1:4", k_steps=3, refine="window", ridge=0)
        ),
        0.9331,
        219,
    ),
    "1-20261129-vit-fashion": (
        RunConfig(
            name="Recorded example",
            model="vit-fashion",
            num_held_back=32,
            prune=PruneConfig(pattern="1:8", k_steps=3, refine="window", ridge=4.0),
        ),
        0.8888,
        238,
    ),
    "2-20261129-resnet20-fashion": (
        RunConfig(
            num_calibration=8,
            num_held_back=0,
            num_evaluation=64,
            prune=PruneConfig(pattern="1:4", update="least-squares", k_steps=1, seed=3, device="cpu"),
        ),
        0.84375,
        0,
    ),
}


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def old(request: pytest.FixtureRequest, store: RunStore) -> Run:
    return Run(shutil.copytree(request.param, store.root / request.param.name))


def newer(run: Run) -> Run:
    """What a version that is yet to come may have made of a run."""
    path = run.path / "config.json"
    record = json.loads(path.read_text()) | {"format": formats.CURRENT + 1, "unheard_of": [1]}
    path.write_text(json.dumps(record))
    return run


def test_every_form_there_was_is_kept_here() -> None:
    assert {int(folder.name.partition("-")[0]) for folder in FOLDERS} == set(range(1, formats.CURRENT + 1))
    assert set(formats._FROM) == set(range(1, formats.CURRENT))
    for folder in FOLDERS:
        assert json.loads((folder / "config.json").read_text()).get("format", 1) == int(folder.name.partition("-")[0])


def test_it_is_read_with_the_settings_it_was_made_with(old: Run) -> None:
    config, accuracy, products = MADE[old.id]
    before = (old.path / "config.json").read_bytes()
    assert old.config() == config
    assert old.unreadable() == ""
    assert old.state() == "finished"
    metrics, log = old.metrics(), old.log()
    assert metrics is not None
    assert (metrics["accuracy"], metrics["num_products"]) == (accuracy, products)
    assert len(log.layers()) == len(log.sites) == (24 if config.model == "vit-fashion" else 20)
    assert isinstance(log.last, RunFinished)
    assert (log.layers()[0].exchanged > 0) == (config.prune.refinement != "none")
    assert (old.path / "config.json").read_bytes() == before  # read anew each time, and left as it is


def test_it_leaves_as_an_archive_and_comes_back(old: Run, tmp_path: Path) -> None:
    file = io.BytesIO()
    pack(old, file)
    for source in (file, old.path):
        back = import_run(RunStore(tmp_path / str(type(source))), source)
        assert back.config() == MADE[old.id][0]
        assert back.metrics() == old.metrics()
        assert (back.path / "events.jsonl").read_bytes() == (old.path / "events.jsonl").read_bytes()


def test_it_is_listed_and_shown(old: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config, accuracy, _ = MADE[old.id]
    assert main(["list"]) == 0
    assert f"{100 * accuracy:.2f} %" in capsys.readouterr().out
    assert main(["show", old.id]) == 0
    assert f"{config.num_calibration:,} calibration images of fashion-mnist" in capsys.readouterr().out


def test_what_comes_with_the_app_is_of_a_form_that_is_read() -> None:
    folders = [path.parent for path in (Path(formats.__file__).parents[2] / "assets").glob("*/*/config.json")]
    assert len(folders) >= 12
    assert [folder for folder in folders if Run(folder).unreadable()] == []


@pytest.mark.parametrize(("setting", "then"), [("refine", "none"), ("ridge", 0)])
def test_a_setting_that_was_not_there_yet_did_nothing(setting: str, then: object) -> None:
    record = RunConfig(model="vit-fashion").model_dump(mode="json")
    del record["prune"][setting]
    config = formats.read(json.dumps(record))
    assert config == RunConfig(model="vit-fashion", prune=PruneConfig(**{setting: then}))
    # Now that it has a form, what is not there is at its default.
    assert formats.read(json.dumps(record | {"format": 2})) == RunConfig(model="vit-fashion")


def test_no_image_was_held_back_before_there_were_such_images() -> None:
    assert formats.read("{}").num_held_back == 0
    assert formats.read('{"num_held_back": 5}').num_held_back == 5


def test_what_is_written_is_of_the_current_form_and_comes_back() -> None:
    config = RunConfig(name="Käse ❄", num_held_back=7, prune=PruneConfig(pattern="70%", overrides={"a": "dense"}))
    record = json.loads(formats.written(config))
    assert next(iter(record.items())) == ("format", formats.CURRENT)
    assert "Käse ❄" in formats.written(config).decode()
    assert formats.read(formats.written(config)) == config


@pytest.mark.parametrize("form", ["2", 0, -1, 1.0, True, None, [2]])
def test_a_form_that_is_no_number_is_no_setting(form: object) -> None:
    with pytest.raises(ValidationError, match="format"):
        formats.read(json.dumps({"format": form}))


@pytest.mark.parametrize(
    "content", ["", "[]", "1", "{}}", '{"prune": 1}', '{"prune": null}', "[" * 100_000, '{"format": 2, "x": 1}']
)
def test_what_is_no_config_is_refused_as_ever(content: str) -> None:
    with pytest.raises(ValidationError):
        formats.read(content)


# --- of a version that is yet to come ---

SENTENCE = "newer version of this program: its folder has form 3, and this one reads forms up to 2. Update this one"


def test_a_newer_run_is_a_sentence(old: Run) -> None:
    with pytest.raises(InputError, match=SENTENCE) as refusal:
        newer(old).config()
    assert "pip install -U snows-explorer" in str(refusal.value)
    assert old.unreadable() == f"Run {old.id} cannot be shown. {refusal.value}"


def test_a_newer_run_beside_others_is_listed_and_shown_as_one(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    fine, strange = store.create(RunConfig()), newer(store.create(RunConfig()))
    assert main(["list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "resnet20-fashion" in rows[fine.id]
    assert "unreadable" in rows[strange.id]
    assert SENTENCE in rows[strange.id]
    assert main(["show", strange.id]) == 2
    assert SENTENCE in capsys.readouterr().err


def test_a_newer_run_is_not_called_damaged_when_it_is_imported(store: RunStore, tmp_path: Path) -> None:
    run = newer(RunStore(tmp_path / "elsewhere").create(RunConfig()))
    run.append(Queued())
    file = io.BytesIO()
    pack(run, file)
    for source in (file, run.path):
        with pytest.raises(ArchiveError, match=SENTENCE) as refusal:
            import_run(store, source)
        assert "damaged" not in str(refusal.value)
    assert store.list() == []


def test_a_worker_that_meets_a_newer_run_says_so_and_goes_on(store: RunStore) -> None:
    run = store.create(RunConfig())
    store.enqueue([run])
    newer(run)
    assert run.claim() is None
    ending = Log().add(*run.events()[0]).last
    assert isinstance(ending, RunFailed)
    assert SENTENCE in ending.message
