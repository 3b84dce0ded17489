"""The same run has the same name on every page, in the shell and in the report; and no name acts."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app import report, words
from app.parts import panels
from snows.__main__ import main
from snows.config import RunConfig
from snows.plans.words import name_of
from snows.runs.store import Labels, RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage

CALLED = "Best *so* far ![x](http://evil.example/x.png)"
CONFIG = RunConfig.model_validate({"checkpoint": "/somewhere/own.pt", "prune": {"mask": "random", "sweeps": 2}})
NAME = f"{CALLED} · resnet20-fashion from own.pt · 2:4 · SNOWS, random mask, refined, K = 3, 2 sweeps"


def read_as_markdown(app: AppTest) -> list[str]:
    """All texts of the page in which Markdown is obeyed."""
    assert not app.exception, app.exception
    elements = [*app.title, *app.header, *app.subheader, *app.markdown, *app.caption, *app.error, *app.warning, *app.info]
    links = [link.proto.label for link in app.get("page_link")]
    return [str(element.value) for element in elements] + [button.label for button in app.button] + links


def read_as_it_is(app: AppTest) -> list[str]:
    cells = [str(cell) for table in app.dataframe for cell in table.value.to_numpy().ravel()]
    return [str(option) for box in (*app.selectbox, *app.multiselect) for option in box.options] + cells


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "where"),
    [
        ("overview", "recent runs"),
        ("prune", "heading and picker"),
        ("layers", "picker"),
        ("convergence", "picker"),
        ("attention", "picker"),
        ("runs", "what is ticked"),
        ("compare", "picker"),
    ],
)
def test_a_run_is_called_the_same_on_every_page(page: str, where: str, open_page: OpenPage, store: RunStore) -> None:
    run = helpers.write_run(store, "finished", config=CONFIG)
    run.save_labels(Labels(name=CALLED, compare=True))
    assert name_of(run) == NAME
    app = open_page(page, run=run.id)
    obeyed, shown = read_as_markdown(app), read_as_it_is(app)
    assert [text for text in obeyed if words.plain(NAME) in text] or [text for text in shown if NAME in text], where
    assert [text for text in obeyed if re.search(r"(?<!\\)\[x\]\(", text)] == []  # an image, which the browser would fetch


@pytest.mark.slow
@pytest.mark.parametrize("page", ["prune", "layers", "convergence", "attention"])
def test_runs_of_one_name_and_one_minute_stay_apart(
    page: str, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.parts.panels.when", lambda run: "24 Nov, 14:05")
    runs = [helpers.write_run(store, "finished") for _ in range(3)]
    for run in runs:
        run.save_site(0, torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))  # there is something to look into
    for run in runs:
        app = open_page(page, run=run.id).run()  # the browser gives back what it was shown
        assert run.id in app.query_params["run"]
    for run in runs:
        picker = next(box for box in app.selectbox if box.label == "Run")
        label = panels.run_labels({run.id: run for run in reversed(runs)})[run.id]
        app = picker.select_index(picker.options.index(label)).run()
        assert run.id in app.query_params["run"]


@given(st.lists(st.sampled_from(["a", "a (2)", "a (2) (2)", "b", ""]), max_size=8), st.text(max_size=3))
def test_labels_are_apart_and_stay_what_they_were(labels: list[str], later: str) -> None:
    numbered = dict(enumerate(labels))
    apart = words.distinct(numbered)
    assert list(apart) == list(numbered)
    assert len(set(apart.values())) == len(labels)
    assert all(apart[i].startswith(label) for i, label in numbered.items())
    more = words.distinct(numbered | {"later": later})
    assert more == apart | {"later": more["later"]}
    assert words.distinct(dict(enumerate(sorted(set(labels))))) == dict(enumerate(sorted(set(labels))))


def test_and_in_the_shell_and_the_report(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run = helpers.write_run(store, "finished", config=CONFIG)
    run.save_labels(Labels(name=CALLED))
    for command in (["list"], ["show", run.id]):
        assert main(command) == 0
        assert NAME in capsys.readouterr().out
    assert report.report(run).count(NAME) == 2
