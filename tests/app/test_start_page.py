"""The first screen's play, without a browser, over the recorded networks."""

import base64
import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.testing.v1 import AppTest

from app.parts import pictures, play
from snows.plans.levels import Levels
from snows.sources import models
from tests.app.conftest import ROOT, OpenPage, figures
from tests.app.test_pages import button, labelled, text_of

pytestmark = pytest.mark.slow

RESNET = "resnet20-fashion"


@pytest.fixture
def start(open_page: OpenPage) -> AppTest:
    models.every_name()  # what the page waits for before the networks answer
    return open_page("overview")


def strip(app: AppTest) -> list[dict[str, Any]]:
    return next(json.loads(e.proto.json) for e in app.get("bidi_component") if '"pictures"' in e.proto.json)["pictures"]


def curve(app: AppTest) -> dict:
    return next(figure for alt, figure in figures(app).items() if alt.startswith("Accuracy against weights kept"))


def test_it_begins_with_the_whole_network_and_its_answers(start: AppTest) -> None:
    shown = strip(start)
    assert len(shown) == 8
    assert {picture["answer"] for picture in shown} >= {"Ankle boot", "Trouser"}
    assert {picture["was"] for picture in shown} == {""}
    assert "The whole network is right on 94 of 100" in text_of(start)
    links = [link.proto.label for link in start.get("page_link")]
    assert [f"**{card}**" for card in ("See inside", "Compare methods", "Bring your own network")] == links[:3]


def test_a_link_moves_the_slider_though_the_first_run_never_reached_the_browser(start: AppTest) -> None:
    start.query_params["kept"], start.query_params["values"] = "1:8", "refitted"
    start.run()
    assert labelled(start.select_slider, "Weights kept").proto.set_value
    start._run(WidgetStates())  # what a browser sends that has drawn no widget yet
    for kind, label, value in (
        (start.select_slider, "Weights kept", "1:8"),
        (start.get("button_group"), "The weights that stay", "refitted"),
    ):
        assert labelled(kind, label).value == value
        assert labelled(kind, label).proto.set_value
    start.run()
    assert not labelled(start.select_slider, "Weights kept").proto.set_value


def test_slider_and_switch_change_answers_sentence_and_dot(start: AppTest) -> None:
    levels = Levels.read(RESNET)
    labelled(start.select_slider, "Weights kept").set_value("1:8").run()
    # Nothing is sent back that the browser said itself: it would undo what was pressed while the script ran.
    assert not labelled(start.select_slider, "Weights kept").proto.set_value
    cut = levels.at("1:8")
    assert sum(picture["was"] != "" for picture in strip(start)) >= 5
    assert f"right on {100 * cut.cut:.0f} of 100" in text_of(start)
    assert curve(start)["data"][-1]["y"] == [pytest.approx(100 * cut.cut)]
    assert start.query_params["kept"] == "1:8"
    labelled(start.get("button_group"), "The weights that stay").set_value("refitted").run()
    assert sum(picture["was"] != "" for picture in strip(start)) <= 2
    assert f"refitted, it is right on {100 * cut.refitted:.0f} of 100" in text_of(start)
    assert curve(start)["data"][-1]["y"] == [pytest.approx(100 * cut.refitted)]
    assert (start.query_params["kept"], start.query_params["values"]) == ("1:8", "refitted")
    # What is in the address outlives a look at another page.
    start.switch_page("../pages/runs.py").run()
    start.switch_page("../pages/overview.py").run()
    assert labelled(start.select_slider, "Weights kept").value == "1:8"


def test_an_address_that_knows_no_such_state_shows_the_first(open_page: OpenPage) -> None:
    models.every_name()
    app = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60)
    app.query_params["kept"], app.query_params["pictures"], app.query_params["network"] = "7:8", "-3", "lenet"
    app.run()
    assert not app.exception
    assert labelled(app.select_slider, "Weights kept").value == "dense"
    assert len(strip(app)) == 8


def test_other_pictures_and_back_in_the_address(start: AppTest) -> None:
    before = [picture["words"] for picture in strip(start)]
    button(start, "Eight others").click().run()
    assert {picture["words"] for picture in strip(start)}.isdisjoint(before)
    assert start.query_params["pictures"] == "1"


def drawing() -> bytes:
    picture = np.zeros((224, 224), np.uint8)
    picture[60:200, 80:150] = 230
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def test_a_drawing_takes_the_first_pictures_place_until_it_is_put_away(start: AppTest) -> None:
    first, *others = strip(start)
    start.session_state[play._OWN] = play.OwnPicture(np.full((28, 28), 200, np.uint8), "Your drawing")
    start.run()
    own, *rest = strip(start)
    assert own["words"] == "Your drawing"
    assert own["address"] != first["address"]
    assert own["answer"]
    assert rest == others
    button(start, "Put it away").click().run()
    assert strip(start)[0] == first


def test_what_is_drawn_or_brought_is_made_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {}
    monkeypatch.setattr(st, "session_state", state)
    play._drawn(drawing())
    assert state[play._OWN].pixels.shape == (28, 28)
    assert state[play._OWN].pixels.max() > 200
    assert state[play._PROBLEM] == ""
    play._drawn(None)
    assert play._OWN not in state
    state["bring-0"] = SimpleNamespace(name="words.txt", size=5, getvalue=lambda: b"hello")
    play._brought("bring-0")
    assert "words.txt" in state[play._PROBLEM]
    assert play._OWN not in state
    state["bring-1"] = SimpleNamespace(name="coat.png", size=5, getvalue=drawing)
    play._brought("bring-1")
    assert state[play._OWN].words == "Your picture"
    assert state[play._PROBLEM] == ""


def test_only_a_drawing_is_taken_from_the_pad() -> None:
    address = "data:image/png;base64," + base64.b64encode(drawing()).decode()
    assert pictures.decoded(address) == drawing()
    for other in ("", "data:text/html;base64,PGI+", "data:image/png;base64,!!!", address + "A" * 500_000):
        assert pictures.decoded(other) is None
