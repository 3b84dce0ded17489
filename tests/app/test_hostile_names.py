"""Names that people type, bring as a file or send in a link do nothing: whatever page shows them, they are plain text."""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import words
from app.charts import attention as attention_charts
from app.charts import compare as compare_charts
from app.charts import palette
from app.charts.attention import picture_address
from app.charts.told import Told
from app.parts.own_pictures import OwnPicture
from app.work import views
from snows.config import RunConfig
from snows.runs.store import Labels, Run, RunStore
from tests.app import helpers
from tests.app.conftest import ROOT, OpenPage, figures

HOSTILE = "![x](http://127.0.0.1:1/x.png) <b>b</b> $x$ :red[y]"
FILE = HOSTILE.replace("/", "")
CONFIG = RunConfig.model_validate(
    {"checkpoint": f"/somewhere/{FILE}.pt", "data": f"/somewhere/{FILE}", "prune": {"mask": f"/somewhere/{FILE}.safetensors"}}
)
# What Streamlit shows as it is, or does not show, by the kind of element.
AS_IT_IS = {
    "selectbox": {"options", "raw_value", "placeholder"},
    "multiselect": {"options", "raw_values", "placeholder"},
    "text_input": {"default", "value", "placeholder"},
    "text_area": {"default", "value", "placeholder"},
    "dataframe": {"columns", "alt", "placeholder"},
    "code": {"code_text"},
    "download_button": {"url"},
    "page_link": {"query_string"},
    "bidi_component": {"json", "html_content", "css_content", "js_content"},
    "component_instance": set(),
}
NOWHERE = {"id", "form_id", "key", "url", "page_script_hash", "element_hash", "user_key"}
# Markdown's images and links, its mathematics, HTML, and Streamlit's colors, none of them escaped.
ACTS = re.compile(r"(?<!\\)\[x\\?\]\(|(?<!\\)<b>b|(?<!\\)\$x|:red\\?\[y")


def texts(message: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """All texts of a protocol message, with the fields that lead there."""
    for field, value in message.ListFields():
        within = (*path, field.name)
        for part in value if field.is_repeated else [value]:
            if isinstance(part, str):
                yield within, part
            elif hasattr(part, "ListFields"):
                yield from texts(part, within)


def elements(block: Any) -> Iterator[Any]:
    for child in block.children.values():
        if hasattr(child, "children"):
            yield child
            yield from elements(child)
        else:
            yield child


def acting(app: AppTest) -> list[tuple[str, str]]:
    """The texts of a page that would do something, with the element they stand in."""
    assert not app.exception, app.exception
    found = []
    for element in elements(app._tree):
        kind = element.type
        for path, text in texts(element.proto) if element.proto is not None else ():
            if path[-1] not in NOWHERE | AS_IT_IS.get(kind, set()) and ACTS.search(text):
                found.append((f"{kind}: {'.'.join(path)}", text))
    for alt, figure in figures(app).items():
        for text in drawn(figure):
            if re.search(r"<b>b</b>", text):
                found.append((f"figure {alt}", text))
    return found


def drawn(part: Any) -> Iterator[str]:
    """All texts of a figure."""
    if isinstance(part, str):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from drawn(inner)


def shown(app: AppTest) -> str:
    return "\n".join(text for element in elements(app._tree) for _, text in (texts(element.proto) if element.proto else ()))


@pytest.fixture
def named(store: RunStore) -> list[Run]:
    """Runs that are called so, with tags; a saved view that is; one that failed with it in its message."""
    runs = [helpers.write_run(store, "finished", config=CONFIG) for _ in range(2)]
    for run in runs:
        run.save_site(0, torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    shutil.copytree(ROOT / "assets/runs/recorded-1-vit-fashion", store.root / "whole")  # one that can be looked into
    runs.append(store.get("whole"))
    for run in runs:
        run.save_labels(Labels(name=HOSTILE, tags=[HOSTILE[:34]], compare=True))
    views.save(store.root, HOSTILE, {"find": [HOSTILE]})
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["overview", "prune", "layers", "convergence", "attention", "compare", "study", "lessons", "runs"]
)
def test_no_page_obeys_a_name(page: str, open_page: OpenPage, named: list[Run]) -> None:
    assert acting(open_page(page)) == []
    for run in (named[0], named[2]):
        app = open_page(page, run=run.id)
        assert acting(app) == []
        assert page in ("lessons", "study") or "x.png" in shown(app)  # it is there, as it was typed


@pytest.mark.slow
def test_runs_in_groups_side_by_side_and_deleted(open_page: OpenPage, named: list[Run]) -> None:
    for by in ("network", "method"):
        app = open_page("runs")
        app.query_params.update({"group": by, "find": HOSTILE, "run": [run.id for run in named]})
        assert acting(app.run()) == []
    app = open_page("runs", run=named[0].id)
    app.selectbox(f"change-{named[0].id}").set_value("prune.mask")
    assert acting(app.run()) == []
    app = open_page("compare")
    for view in ("depth", "answers", "layers", "attention", "speed"):
        app.query_params.update({"runs": ",".join(run.id for run in named), "view": view})
        assert acting(app.run()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["prune", "layers", "convergence", "attention", "compare", "study", "lessons", "runs", "overview"]
)
def test_a_link_makes_no_page_act(page: str, open_page: OpenPage, named: list[Run]) -> None:
    plain_run = named[2].id
    for says in (
        {"run": HOSTILE},
        {"batch": HOSTILE},
        {"runs": f"{HOSTILE},{HOSTILE}"},
        {"run": plain_run, "layer": HOSTILE, "with": HOSTILE, "image": HOSTILE, "view": HOSTILE},
        {"lesson": HOSTILE, "guess": HOSTILE, "class": HOSTILE, "kept": HOSTILE, "find": HOSTILE, "tag": HOSTILE},
    ):
        app = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60)
        app.run()
        if page != "overview":
            app.switch_page(f"../pages/{page}.py")
        for name, value in says.items():
            app.query_params[name] = value
        assert acting(app.run()) == [], says


@pytest.mark.parametrize("state", ["queued", "running", "failed", "cancelled", "interrupted"])
def test_a_run_in_any_state(state: str, open_page: OpenPage, store: RunStore, hold: Any) -> None:
    run = helpers.write_run(store, state, hold, config=CONFIG)
    run.save_labels(Labels(name=HOSTILE))
    for page in ("overview", "prune", "runs"):
        assert acting(open_page(page, run=run.id)) == []


def test_a_failure_that_quotes_a_name(open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from snows.events import RunFailed

    monkeypatch.setitem(helpers.TERMINAL, "failed", RunFailed(message=f"There is no file {HOSTILE}.", detail=HOSTILE))
    runs = [helpers.write_run(store, "failed") for _ in range(2)]
    for page in ("prune", "runs"):
        assert acting(open_page(page, run=runs[0].id)) == []
    app = open_page("compare")
    app.query_params["runs"] = ",".join(run.id for run in runs)
    assert acting(app.run()) == []


def test_what_is_typed_into_the_form(open_page: OpenPage) -> None:
    for key in ("form.model", "form.data", "form.pattern", "form.checkpoint", "form.mask"):
        app = open_page("overview")
        app.session_state[key] = HOSTILE
        app.switch_page("../pages/prune.py").run()
        assert acting(app) == [], key
        assert "red" in shown(app), key


def test_figures_show_names_as_they_are() -> None:
    points = pd.DataFrame(
        [(HOSTILE, "#000000", "circle", 0.5, 0.5, 0.0, 0.0, True)],
        columns=["label", "color", "symbol", "x", "y", "x_deviation", "y_deviation", "best"],
    )
    losses = pd.DataFrame([(HOSTILE, 0, 0.5)], columns=["label", "index", "value"])
    top = pd.DataFrame([(0, HOSTILE, 0.5)], columns=["index", "class", "probability"])
    preserved = pd.DataFrame([(HOSTILE, 0, 0.5)], columns=["network", "image", "preserved"])
    marks = {HOSTILE: palette.Mark.of("snows", 0)}
    made = [
        compare_charts.tradeoff_chart(points, "density", "accuracy"),
        compare_charts.side_by_side_chart(losses, [HOSTILE], marks, "title"),
        compare_charts.sizes_chart(pd.DataFrame([(HOSTILE, "Packed", 10)], columns=["label", "form", "bytes"])),
        compare_charts.times_chart(pd.DataFrame([(HOSTILE, 1.0)], columns=["label", "milliseconds"]), marks),
        attention_charts.top_chart(top, "snows", 0),
        attention_charts.preservation_chart(preserved, {HOSTILE: "snows"}, {HOSTILE: (0.5, 0.4, 0.6)}),
    ]
    for figure in made:
        said = list(drawn(json.loads(figure.to_json())))
        assert [text for text in said if re.search(r"<b>b</b>|%\{x\.png", text)] == []
        assert any("&lt;b&gt;b" in text for text in said)
        # And in the table it is what was typed.
        assert any(HOSTILE[:20] in cell for row in Told.of(figure).rows for cell in row)


@given(st.text())
def test_plain_text_loses_nothing(text: str) -> None:
    unescaped = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", words.plain(text).replace("\N{WORD JOINER}", ""))
    assert unescaped == re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text.replace("\N{WORD JOINER}", "")) or "\\" in text


@pytest.mark.slow
def test_own_pictures(open_page: OpenPage, named: list[Run]) -> None:
    picture = Image.new("L", (28, 28))
    app = open_page("attention")
    app.session_state["own pictures"] = {HOSTILE: OwnPicture(picture, "mark", picture_address(np.asarray(picture)))}
    app.session_state["upload problems"] = [f"{HOSTILE} is no picture."]
    app.query_params.update({"run": "whole", "image": f"own:{HOSTILE}"})
    assert acting(app.run()) == []
    assert f"Your own image, {words.plain(HOSTILE)}" in shown(app)


@pytest.mark.parametrize("path", [*(ROOT / "app").rglob("*.py"), *(ROOT / "pages").glob("*.py")], ids=lambda path: path.name)
def test_what_went_wrong_is_shown_as_plain_text(path: Path) -> None:
    """What an error says may quote what somebody typed."""
    source = path.read_text()
    assert "unsafe_allow_html" not in source
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("error", "warning", "info", "caption", "markdown"):
            quotes = [
                n.id for arg in call.args for n in ast.walk(arg) if isinstance(n, ast.Name) and n.id in ("error", "problem")
            ]
            assert not quotes or "plain(" in ast.unparse(call), f"{path.name}, line {call.lineno}"
