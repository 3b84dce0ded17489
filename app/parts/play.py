"""The first screen's play: eight pictures, how many weights stay, just cut or refitted; and everything follows.

The address says `network`, `kept` (the pattern), `values` (`cut`, `refitted`) and `pictures` (which eight). A picture of one's
own is the session's. Networks come from `snows.plans.levels`; they run on what is shown.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from app import state, words
from app.charts import attention as attention_charts
from app.charts import play as play_charts
from app.parts import live, pictures
from app.tables import play as play_tables
from app.texts import choices, text
from app.work import engine
from snows.config import InputError
from snows.measures.names import size
from snows.plans import levels
from snows.plans.levels import DENSE, Levels

if TYPE_CHECKING:
    from snows.sources.models import LoadedModel

NETWORKS = ("resnet20-fashion", "vit-fashion")
VALUES = ("cut", "refitted")
CLASSES = 10
LARGEST_UPLOAD = 20  # MB
_OWN = "own picture to play with"
_PROBLEM = "problem with it"


@dataclass(frozen=True)
class OwnPicture:
    """28x28 uint8, light on black; `words` say where it is from."""

    pixels: np.ndarray
    words: str


@st.cache_data(max_entries=4, show_spinner=False)
def _levels(model: str) -> Levels:
    return Levels.read(model)


def _recorded() -> list[str]:
    return [model for model in NETWORKS if levels.is_recorded(model)]


@st.cache_data(max_entries=64, show_spinner=False)
def _pictures(turn: int) -> tuple[np.ndarray, list[int]]:
    return levels.pictures(turn)


@st.cache_resource(max_entries=24, show_spinner=False)
def _network(model: str, pattern: str, refitted: bool) -> "LoadedModel":
    return levels.network(model, pattern, refitted=refitted)


@st.cache_data(max_entries=512, show_spinner=False)
def _probabilities(model: str, pattern: str, refitted: bool, images: np.ndarray) -> np.ndarray:
    return levels.probabilities(_network(model, pattern, refitted), images)


def play() -> None:
    """Pictures, slider, switch, curve and sentence."""
    ready = engine.ready()
    st.fragment(run_every=None if ready else 1)(_play)(ready)


def _play(was_ready: bool) -> None:
    if engine.ready() and not was_ready:
        st.rerun()  # once: now the networks can answer
    strip, curve = st.columns([5, 4], gap="large")
    with strip:
        place = st.container()
        model, pattern, refitted = _controls()
        sentence = st.empty()
        _own_pictures()
    found = _levels(model)
    level = found.at(pattern)
    with place:
        shown = _strip(model, pattern, refitted)
    sentence.markdown(f"**{play_tables.sentence(level, refitted, shown, CLASSES)}**")
    with curve:
        figure = play_charts.accuracy_curve(play_tables.accuracies(found), pattern, refitted, 1 / CLASSES)
        live.chart(figure, key="accuracy curve", alt=_alt(found))
        st.caption(
            text(
                "play.recorded",
                date=found.about["date"],
                calibration=found.about["num_calibration"],
                evaluation=f"{found.about['num_evaluation']:,}",
            )
        )


def _controls() -> tuple[str, str, bool]:
    """The network, the pattern, and whether it is refitted."""
    networks, values = choices("play.networks", _recorded()), choices("play.values", VALUES)
    patterns = {level.pattern: play_tables.share(level.density) for level in _levels(next(iter(networks))).levels}
    pattern = st.select_slider(
        text("play.kept"), list(patterns), format_func=patterns.__getitem__, **state.addressed("kept", patterns, DENSE)
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        value = st.segmented_control(
            text("play.value"),
            list(values),
            required=True,
            format_func=values.__getitem__,
            help=text("play.value_help"),
            **state.addressed("values", values, "cut"),
        )
        model = st.segmented_control(
            text("play.network"),
            list(networks),
            required=True,
            format_func=networks.__getitem__,
            **state.addressed("network", networks, next(iter(networks))),
        )
    return model, pattern, value == "refitted"


def _turn() -> int:
    asked = state.asked("pictures") or ""
    return int(asked) if asked.isdecimal() and len(asked) < 6 else 0


def _strip(model: str, pattern: str, refitted: bool) -> list[play_tables.Answer]:
    """Draw the pictures and the answers, and give the answers; none while the engine is not there."""
    images, numbers = _pictures(_turn())
    words = [text("play.picture", number=number) for number in numbers]
    own: OwnPicture | None = st.session_state.get(_OWN)
    if own is not None:
        images, words = np.concatenate([own.pixels[None], images[1:]]), [own.words, *words[1:]]
    answers: list[play_tables.Answer] = []
    if engine.ready():
        names = _network(model, DENSE, False).class_names
        dense = _probabilities(model, DENSE, False, images)
        answers = play_tables.answers(_probabilities(model, pattern, refitted and pattern != DENSE, images), dense, names)
    below: list[play_tables.Answer | None] = [*answers] or [None] * len(images)
    shown = [
        pictures.Shown(
            attention_charts.picture_address(image),
            said,
            answer.name if answer else "…",
            text("play.sure", percent=f"{100 * answer.probability:.0f}") if answer else "",
            text("play.was", name=answer.was) if answer and answer.was else "",
        )
        for image, said, answer in zip(images, words, below, strict=True)
    ]
    pictures.strip(shown, key="pictures strip")
    return answers


def _own_pictures() -> None:
    """A picture of one's own in place of the first, and other pictures."""
    with st.container(horizontal=True, gap="small"):
        with st.popover(text("play.draw"), icon=":material/draw:"):
            pictures.pad(key="pad", on_draw=_drawn)
            st.caption(text("play.draw_about"))
        with st.popover(text("play.bring"), icon=":material/photo_camera:", help=text("play.bring_help")):
            turn = st.session_state.get("brought", 0)
            st.file_uploader(
                text("play.upload"),
                max_upload_size=LARGEST_UPLOAD,
                key=f"bring-{turn}",
                on_change=partial(_brought, f"bring-{turn}"),
            )
            st.camera_input(text("play.take"), key=f"take-{turn}", on_change=partial(_brought, f"take-{turn}"))
        if st.session_state.get(_OWN) is not None:
            st.button(text("play.put_away"), icon=":material/close:", on_click=_put_away)
        st.button(text("play.others"), icon=":material/refresh:", on_click=_others)
    if problem := st.session_state.get(_PROBLEM):
        st.error(words.plain(problem), icon=":material/error:")


def _drawn(content: bytes | None) -> None:
    if content is None:
        _put_away()
    else:
        _take(content, text("play.drawing_file"), text("play.drawing"))


def _brought(key: str) -> None:
    file = st.session_state[key]
    if file is None:
        return
    st.session_state["brought"] = st.session_state.get("brought", 0) + 1  # the next uploader is empty
    if file.size > LARGEST_UPLOAD * 1_000_000:
        st.session_state[_PROBLEM] = text("play.too_large", size=size(file.size), most=LARGEST_UPLOAD)
        return
    _take(file.getvalue(), file.name.replace("\n", " "), text("play.brought"))


def _take(content: bytes, name: str, words: str) -> None:
    from snows.sources.data import like_fashion_mnist, read_picture

    try:
        st.session_state[_OWN] = OwnPicture(np.asarray(like_fashion_mnist(read_picture(content, name))), words)
        st.session_state[_PROBLEM] = ""
    except InputError as error:
        st.session_state[_PROBLEM] = str(error)


def _put_away() -> None:
    st.session_state.pop(_OWN, None)


def _others() -> None:
    _put_away()
    state.say("pictures", str(_turn() + 1), "0")


def _alt(found: Levels) -> str:
    points = "; ".join(
        text(
            "play.curve_point",
            kept=play_tables.share(level.density),
            cut=f"{100 * level.cut:.1f}",
            refitted=f"{100 * level.refitted:.1f}",
        )
        for level in found.levels
    )
    return text("play.curve", points=points)
