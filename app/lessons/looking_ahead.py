"""Looking ahead: one layer fitted so that the next K operations are right too, and whose error is smaller where."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st
from torch import Tensor

from app import words
from app.charts import lessons as charts
from app.lessons import lesson, networks
from app.parts import live
from app.texts import Later, choices, text
from snows.config import NM, PruneConfig
from snows.method.objective import mean_squares
from snows.method.problem import SiteProblem
from snows.method.updates import UPDATES

MODULE, PATTERN = "layer3.1.conv1", NM(n=1, m=8)
DEPTH = 5  # so many operations ahead errors are looked at
AHEAD = (0, 1, 2, 3, 5)
SHOWN = (0, 1, 3)
IMAGES, UNSEEN = 32, 50


@dataclass(frozen=True, eq=False)
class Ahead:
    """One layer's problems on the same images and the same mask, by K, and the widest on images that no fit has seen."""

    problems: dict[int, SiteProblem]
    unseen: SiteProblem

    @classmethod
    def of(cls, network: networks.Opened) -> "Ahead":
        """Every other layer is dense, the mask is magnitude's."""
        site = network.site(MODULE)
        config = PruneConfig(pattern=PATTERN, refine="none", batch_size=IMAGES, k_steps=DEPTH)
        images = network.images
        found = networks.problems(network, site, config, AHEAD, images.calibration[:IMAGES])
        unseen = networks.problem(network, site, config, images.evaluation[:UNSEEN])
        return cls(dict(zip(AHEAD, found, strict=True)), unseen)

    def fit(self, k_steps: int) -> Tensor:
        """The kept weights (n,) fitted to the layer's own output and the `k_steps` operations after it."""
        update = "least-squares" if k_steps == 0 else "snows"
        return UPDATES[update](self.problems[k_steps]).kept

    def errors(self, kept: Tensor, seen: bool) -> list[float]:
        """The mean squared error at the layer and at each of five operations after it, relative to what should be there."""
        problem = self.problems[DEPTH] if seen else self.unseen
        return [error / size for error, size in zip(problem.objective.losses(kept), mean_squares(problem.batches), strict=True)]


def truth(own: Sequence[float], ahead: Sequence[float]) -> str:
    """Which guess was right of errors with K = 0, `own`, and K = 3, `ahead`, by place."""
    closer_here, closer_later = own[0] <= ahead[0], ahead[3] < own[3]
    return "later" if closer_here and closer_later else "both" if closer_later else "own"


# --- what is drawn ---


@st.cache_resource(show_spinner=Later("ahead.waiting"))
def _ahead() -> Ahead:
    return Ahead.of(networks.opened("resnet20-fashion"))


@st.cache_data(max_entries=2 * len(AHEAD), show_spinner=False)
def _errors(k_steps: int, seen: bool) -> list[float]:
    return _ahead().errors(_fit(k_steps), seen)


@st.cache_resource(max_entries=len(AHEAD), show_spinner=Later("ahead.fitting"))
def _fit(k_steps: int) -> Tensor:
    return _ahead().fit(k_steps)


def _draw(guess: str) -> None:
    own, three = _errors(0, True), _errors(3, True)
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(own, three),
        text(
            "ahead.outcome",
            own_here=f"{100 * own[0]:.3g}",
            own_later=f"{100 * own[3]:.2g}",
            ahead_here=f"{100 * three[0]:.3g}",
            ahead_later=f"{100 * three[3]:.2g}",
        ),
    )
    k_steps = int(lesson.draw_number(text("ahead.k"), "k", AHEAD, 3))
    network = networks.opened("resnet20-fashion")
    graph = network.graph
    operations = [node for node in graph.nodes if graph.kind(node) is not None]
    window = graph.window(network.site(MODULE), k_steps)
    places = [operations.index(node) for node in window.captured]
    others = [place for place in range(places[0], places[-1]) if place not in places]
    strip = charts.window_chart([graph.describe(node) for node in operations], places[0], places[-1], others)
    live.chart(
        strip,
        key="strip",
        alt=text("ahead.strip", count=len(operations), k=k_steps),
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.markdown(text("ahead.changes"))
        st.markdown(words.operations(window.operations))
        images = choices("ahead.images", ("seen", "unseen"))
        seen = lesson.draw_choice(text("ahead.image"), "on", images, "seen") == "seen"
    fits = [f"K = {k}" for k in sorted({*SHOWN, k_steps})]
    rows = [(fit, place, error) for fit in fits for place, error in enumerate(_errors(int(fit.removeprefix("K = ")), seen))]
    with right:
        names = [text("ahead.here"), *(f"+{k}" for k in range(1, DEPTH + 1))]
        errors = pd.DataFrame(rows, columns=["fit", "place", "error"])
        live.chart(
            charts.ahead_chart(errors, names, f"K = {k_steps}"),
            key="ahead",
            alt=text("ahead.chart"),
        )
        st.caption(text("ahead.note", module=MODULE, images=IMAGES, unseen=UNSEEN))


LESSON = lesson.Lesson(name="ahead", guesses=("own", "both", "later"), draw=_draw, page="study")
