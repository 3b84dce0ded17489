"""The form of a study: which K, or how many images, to try on which networks, what that comes to, and Start."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from app import state
from app.forms import comparison as comparison_form
from app.forms import run as form
from app.forms import sources
from snows.config import TARGETS, RunConfig
from snows.plans.study import expand

_KEPT: dict[str, Any] = {"persist_state": "session"}
SWEPT = {"k": "K", "images": "The number of images"}
# What each is usually swept over, and what the other one is meanwhile.
_USUAL = {
    "k": {"study.k": ["0", "1", "3", "5", "10"], "study.images": ["512"]},
    "images": {"study.k": ["3"], "study.images": ["32", "64", "128", "256", "512"]},
}


def draw(on_start: Callable[[str], None]) -> None:
    """The form of a study, what it comes to, and Start, which calls `on_start` with the comparison's id."""
    comparison_form.frame(
        "One click queues a run for every K, number of images and network, all else equal. They wait their turn, small K "
        "first, and can be cancelled together or one by one; what is finished stays.",
        _inputs,
        lambda wanted: expand([_of(form.current(), model) for model in wanted[0]], *wanted[1:]),
        on_start,
    )


def _of(config: RunConfig, model: str) -> RunConfig:
    """The form's settings for another network, to which its checkpoint and class names do not belong."""
    own = {} if model == config.model else {"model": model, "checkpoint": None, "class_names": ()}
    return RunConfig.model_validate(config.model_dump() | own)


def _inputs() -> tuple[list[str], list[int], list[int]]:
    """Networks, K, and numbers of calibration images. All else is as in the Prune page's form, and set in both."""
    models = comparison_form.choices(
        "Networks",
        "study.models",
        sources.model_names(),
        [st.session_state["form.model"]],
        sources.MODELS,
        "One curve each. Type a part of a name to search all of timm's and torchvision's networks.",
        more=True,
    )
    st.segmented_control(
        "What is swept",
        list(SWEPT),
        default="k",
        format_func=SWEPT.__getitem__,
        required=True,
        key="study.swept",
        on_change=_fill_usual,
        help="How far ahead a layer looks, or how many images it is fitted on. It fills the two fields below.",
        **_KEPT,
    )
    left, right = st.columns(2)
    with left:
        steps = comparison_form.choices(
            "K",
            "study.k",
            ("0", "1", "2", "3", "5", "10", "20", "30"),
            _USUAL["k"]["study.k"],
            {},
            "How many operations after a layer its weights must also reproduce. 0: that layer alone. Type any other.",
            more=True,
        )
    with right:
        images = comparison_form.choices(
            "Calibration images",
            "study.images",
            ("32", "64", "128", "256", "512", "1024"),
            _USUAL["k"]["study.images"],
            {},
            "The kept weights are fitted on these. With several K, several numbers give a curve each: does looking ahead need "
            "more images?",
            more=True,
        )
    pattern = st.session_state["form.prune.pattern"]
    comparison_form.images(left)
    comparison_form.num_evaluation(right)
    left.selectbox(
        "Pattern",
        list(dict.fromkeys((*form.PATTERNS, pattern))),
        format_func=form.pattern_words,
        accept_new_options=True,
        key="form.prune.pattern",
        help="Which weights stay. Where few do, looking ahead matters more.",
        **_KEPT,
    )
    right.selectbox(
        "Target",
        TARGETS,
        format_func=lambda name: form.TARGET_WORDS.get(name, name),
        key="form.prune.targets",
        help="What each layer and the K operations after it are fitted to.",
        **_KEPT,
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Mask, seed, solver, device, your own weights: all as they are set on", width="content")
        st.page_link(state.page("prune"), label="Prune", icon=state.PAGES["prune"][1], width="content")
    return models, comparison_form.whole(steps), comparison_form.whole(images)


def _fill_usual() -> None:
    st.session_state.update(_USUAL[st.session_state["study.swept"]])
