"""The report: what it holds in every state of a run, that it needs nothing else, and that no text of a run can act in it."""

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import ValidationError

from app import report, state
from snows.config import RunConfig
from snows.events import NewtonStep, Note, RunStarted
from snows.runs.store import Labels, Run, RunStore
from tests.app import helpers

ROOT = Path(__file__).parents[2]


class _Reader(HTMLParser):
    """Collects what can be read, what is loaded from elsewhere, and the tags that are left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.elsewhere: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elsewhere += [value or "" for name, value in attributes if name in ("src", "href", "action", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(run: Run) -> tuple[str, list[dict], _Reader]:
    """A report's readable text, its figures, and its structure."""
    page = report.report(run)
    reader = _Reader(page)
    assert reader.open == []
    figures = [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    return "\n".join(reader.text), figures, reader


def test_a_finished_run(store: RunStore) -> None:
    run = helpers.write_run(store, "finished", config=RunConfig.model_validate({"prune": {"pattern": "1:4"}}))
    run.save_labels(Labels(name="Best so far", tags=("talk",)))
    text, figures, reader = read(run)
    for words in (
        "Best so far",
        "resnet20-fashion · 1:4 · SNOWS, refined mask, K = 3",
        run.id,
        "finished",
        "talk",
        "93.31 %",
        "11.24 %",
        "93.95 %",
        "97.02 %",
        "Keep 1 of 4 weights (1:4), in 21 layers",
        "layer3.2.conv2",
        "its 1 input channel cannot be divided into groups of 4",
        "Nothing went wrong",
        "Every Newton step (42)",
        '"pattern"',
        "Waiting for the device",
    ):
        assert words in text, words
    assert len(figures) == 1  # its windows hold one operation, so there is nothing to see along them
    assert reader.elsewhere == []
    losses = figures[0]["data"]
    assert [trace["name"] for trace in losses[1:]] == ["Mask only", "Least squares", "SNOWS"]
    assert losses[3]["x"][0] == pytest.approx(0.02 / 8)


def test_numbers_stand_beside_the_figure(store: RunStore) -> None:
    text, _, _ = read(helpers.write_run(store, "finished"))
    row = text[text.index("layer1.0.conv1\n") :].split("\n")[:8]
    assert row == ["layer1.0.conv1", "25.00 %", "0.02", "0.004", "0.0025", "1.3 s", "40", "no further decrease"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("queued", "The run is queued"),
        ("running", "The run is running: what follows is how far it has come."),
        ("failed", "Layer layer2.0.conv1 was given a NaN"),
        ("cancelled", "The run is cancelled"),
        ("interrupted", "The run is interrupted"),
    ],
)
def test_every_other_state(store: RunStore, hold: ExitStack, state: str, words: str) -> None:
    text, figures, _ = read(helpers.write_run(store, state, hold))
    assert words in text
    assert len(figures) == (state != "queued")
    assert ("7 layers finished" in text) == (state != "queued")


def test_a_run_that_never_began(store: RunStore) -> None:
    text, figures, _ = read(store.create(RunConfig()))
    assert "0 layers finished" in text
    assert figures == []


def test_failures_of_the_solver_come_first(store: RunStore) -> None:
    run = helpers.write_run(store, "cancelled")
    step = next(e for e in helpers.site_events(7) if isinstance(e, NewtonStep))
    run.append(type(step)(**{**step.__dict__, "cg_status": "MAX_ITERS", "step": 1}))
    text, _, _ = read(run)
    assert "Conjugate gradient stopped at its limit of 50 iterations in 1 Newton step of 1 layer" in text
    assert text.index("stopped at its limit") < text.index("Every Newton step")
    assert "Nothing went wrong" not in text


def test_the_runs_that_come_with_the_app() -> None:
    for run in state.RECORDED.list():
        text, figures, reader = read(run)
        assert "Recorded example" in text
        assert len(figures) == 2
        assert reader.elsewhere == []


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
# What the template itself would read, and what ends a script or an attribute in other ways.
OTHERS = [
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "]]>\u2028\u2029",
    '" autofocus onfocus="alert(1)',
    "javascript:alert(1)",
    "&lt;b&gt;",
]


def test_no_text_of_a_run_can_act(store: RunStore) -> None:
    run = store.create(RunConfig(model=EVIL, name=EVIL))
    sites = [EVIL, "fc.weight"]
    run.append(RunStarted(device=EVIL, sites=sites, skipped={EVIL: EVIL}), Note(message=EVIL))
    for index, site in enumerate(sites):
        for event in helpers.site_events(0):
            changes = {"site": site, "status": EVIL, "message": EVIL, "operations": [EVIL], "cg_status": EVIL}
            fields = event.__dict__ | {k: v for k, v in changes.items() if k in event.__dict__}
            run.append(type(event)(**fields | ({"index": index} if "index" in event.__dict__ else {})))
    run.save_labels(Labels(name=EVIL[:80], tags=(EVIL[:40],)))
    plain = helpers.write_run(store, "finished")
    page, reader = report.report(run), read(run)[2]
    assert "img" not in reader.tags
    assert page.count("<script") == report.report(plain).count("<script")
    assert EVIL in "".join(reader.text)  # it is there to be read


@pytest.mark.parametrize("text", OTHERS)
def test_any_text_is_read_as_it_is(store: RunStore, text: str) -> None:
    plain = read(helpers.write_run(store, "finished"))[2]
    run = helpers.write_run(store, "finished", config=RunConfig(model=text, name=text))
    run.save_labels(Labels(name=text, tags=(text,)))
    page, _, reader = read(run)
    assert page.count(f"{text} · 2:4 · SNOWS") == 2  # its title and its heading
    assert reader.tags == plain.tags


def test_a_run_of_another_version(store: RunStore) -> None:
    run = store.create(RunConfig())
    (run.path / "config.json").write_text('{"unheard_of": 1}')
    with pytest.raises(ValidationError):
        report.report(run)


class TestShell:
    """`python -m app.report`."""

    def test_writes_one_file_by_id_and_by_folder(
        self, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = helpers.write_run(store, "finished", config=RunConfig(name="The <best> one"))
        monkeypatch.chdir(tmp_path)
        assert report.main([run.id]) == 0
        assert capsys.readouterr() == (f"{run.id}.html\n", "")
        page = (tmp_path / f"{run.id}.html").read_text()
        assert page == report.report(run)
        assert "The &lt;best&gt; one" in page
        assert report.main([str(run.path), "--output", "other.html"]) == 0
        assert (tmp_path / "other.html").read_text() == page

    def test_says_what_is_wrong(self, store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = store.create(RunConfig())
        for line, code, sentence in (
            (["nope"], 2, "There is no run 'nope'"),
            ([run.id, "--output", str(tmp_path / "absent" / "r.html")], 1, "r.html cannot be used"),
        ):
            assert report.main(line) == code
            assert sentence in capsys.readouterr().err
        (run.path / "config.json").write_text('{"unheard_of": 1}')
        assert report.main([run.id, "--output", str(tmp_path / "r.html")]) == 2
        assert "unheard_of is not a setting" in capsys.readouterr().err
        assert not (tmp_path / "r.html").exists()
        damaged = helpers.write_run(store, "finished")
        (damaged.path / "metrics.json").write_text('{"accuracy": 0.')
        assert report.main([damaged.id]) == 2
        said = capsys.readouterr().err
        assert f"Run {damaged.id} cannot be read: a file in its folder was written by another version, or is damaged" in said
        assert "It is not JSON: EOF while parsing" in said
        newer = helpers.write_run(store, "finished")
        (newer.path / "config.json").write_text('{"format": 99}')
        assert report.main([newer.id]) == 2
        said = capsys.readouterr().err
        assert f"Run {newer.id} cannot be read. It was written by a newer version" in said
        assert "damaged" not in said

    @pytest.mark.slow
    def test_the_readmes_command_works(self, store: RunStore, tmp_path: Path) -> None:
        run = helpers.write_run(store, "finished")
        (line,) = re.findall(r"^ {4}python -m (app\.report .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
        words = line.replace("RUN", str(run.path)).replace("report.html", str(tmp_path / "report.html")).split()
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'report.html'}\n", "")
        assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
