"""Which ones stay? A puzzle: keep 2 of every 4 weights of a real neuron, and beat magnitude, then the exchanges."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import streamlit as st
import torch
from torch import Tensor

from app import state
from app.charts import lessons as charts
from app.lessons import lesson, making_up, networks
from app.parts import live
from app.texts import Later, choices, text
from snows.config import NM
from snows.method.refinement import refine
from snows.method.rows import input_gram
from snows.method.saliency import SCORERS
from snows.method.sparsity import keep_mask, to_matrix

PATTERN, GROUPS = NM(n=2, m=4), 3
WIDTH = GROUPS * PATTERN.m
MODULE, IMAGES, ROWS = "layer2.1.conv1", 64, 32
CENTER = 4  # the kernel's middle, whose inputs no border cuts off
PAIRS = tuple(combinations(range(PATTERN.m), PATTERN.n))


@dataclass(frozen=True, eq=False)
class Puzzle:
    """The weights (R, 12) of every neuron in three groups, and the Gram matrix (12, 12) of their inputs, float64.

    Everything else of a neuron stays as it is: an error is that of these twelve alone.
    """

    weights: Tensor
    gram: Tensor

    @classmethod
    def of(cls, network: networks.Opened) -> "Puzzle":
        site = network.site(MODULE)
        _, values = network.graph.run(network.images.calibration[:IMAGES], capture=[site.input])
        first = CENTER * site.shape[1]
        here = slice(first, first + WIDTH)
        gram = input_gram(site, [values[site.input]], torch.device("cpu"))
        return cls(to_matrix(network.graph.parameters[site.name])[:, here].double(), gram[here, here].double())

    def errors(self, row: int, masks: Tensor) -> Tensor:
        """The error of a row after least squares on each of `masks` (N, 12), True = kept: (N,), relative to its mean square."""
        weights = self.weights[row].expand(len(masks), -1)
        return making_up.refit(weights, masks, self.gram).refitted

    def refitted(self, row: int, mask: Tensor) -> Tensor:
        """The row's weights (12,) refitted on `mask` (12,)."""
        return making_up.refit(self.weights[row : row + 1], mask[None], self.gram).after[0]

    def magnitude(self, row: int) -> Tensor:
        """(12,), True = kept: the two largest of every four."""
        return keep_mask(SCORERS["magnitude"].function(self.weights[row : row + 1]), PATTERN)[0]

    def exchanged(self, row: int) -> Tensor:
        """(12,): the mask after `refinement`'s exchanges, begun at magnitude's."""
        weights, mask = self.weights[row : row + 1], self.magnitude(row)[None]
        start = making_up.refit(weights, mask, self.gram).after
        return refine(mask, start, self.gram, weights @ self.gram, PATTERN)[0][0]

    def likeness(self) -> Tensor:
        """The correlations of the inputs (12, 12), about zero as a neuron sees them."""
        size = self.gram.diagonal().clamp(min=1e-30).sqrt()
        return self.gram / size / size[:, None]


def every_mask() -> Tensor:
    """(216, 12), True = kept: all ways to keep two of four in three groups."""
    masks = torch.zeros(len(PAIRS) ** GROUPS, WIDTH, dtype=torch.bool)
    for place, pairs in enumerate(product(PAIRS, repeat=GROUPS)):
        for group, pair in enumerate(pairs):
            masks[place, [group * PATTERN.m + i for i in pair]] = True
    return masks


@dataclass(frozen=True)
class Contest:
    """The errors of magnitude's choice, after the exchanges, and of the best of all choices, with that choice (12,)."""

    magnitude: float
    exchanged: float
    best: float
    best_mask: Tensor


def contest(puzzle: Puzzle, row: int) -> Contest:
    """What is to be beaten in a row, and the best that can be done."""
    masks = every_mask()
    errors = puzzle.errors(row, masks)
    chosen = puzzle.errors(row, torch.stack([puzzle.magnitude(row), puzzle.exchanged(row)])).tolist()
    best = int(errors.argmin())
    return Contest(chosen[0], chosen[1], float(errors[best]), masks[best])


def is_best(error: float, best: float) -> bool:
    return error <= best * (1 + 1e-9) + 1e-15


def times_best(contests: Sequence[Contest]) -> tuple[int, int]:
    """In how many rows magnitude's choice is the best there is, and in how many that after the exchanges is."""
    return sum(is_best(c.magnitude, c.best) for c in contests), sum(is_best(c.exchanged, c.best) for c in contests)


def truth(best: int, rows: int) -> str:
    return "mostly" if best > 0.6 * rows else "half" if best > 0.3 * rows else "seldom"


# --- what is drawn ---


@st.cache_resource(show_spinner=Later("lessons.reading"))
def _puzzle() -> Puzzle:
    return Puzzle.of(networks.opened("resnet20-fashion"))


@st.cache_resource(show_spinner=Later("which.waiting"))
def _contests() -> list[Contest]:
    return [contest(_puzzle(), row) for row in range(ROWS)]


def _draw(guess: str) -> None:
    puzzle, contests = _puzzle(), _contests()
    by_size, by_exchange = times_best(contests)
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(by_size, ROWS),
        text("which.outcome", rows=ROWS, best=by_size),
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        row = int(lesson.draw_number(text("which.neuron"), "neuron", range(1, ROWS + 1), 1)) - 1
        kept = _draw_picks(puzzle, row)
    complete = all(int(group.sum()) == PATTERN.n for group in kept.split(PATTERN.m))
    names = [f"{'ABC'[i // PATTERN.m]}{i % PATTERN.m + 1}" for i in range(WIDTH)]
    after = puzzle.refitted(row, kept) if complete else puzzle.weights[row] * kept
    with right:
        figure = charts.values_chart(puzzle.weights[row].tolist(), after.tolist(), names, PATTERN.m)
        live.chart(figure, key="puzzle", alt=text("which.chart"))
    with left:
        if complete:
            _draw_result(float(puzzle.errors(row, kept[None])), contests[row])
        else:
            st.info(text("which.incomplete"), icon=":material/info:")
    with right:
        st.markdown(text("which.alike"), help=text("which.alike_help"))
        live.chart(
            charts.likeness_chart(puzzle.likeness().numpy(), names, PATTERN.m),
            key="alike",
            alt=text("which.alike_chart"),
        )
        st.caption(text("which.note", module=MODULE, images=IMAGES, best=by_exchange, rows=ROWS))


def _draw_picks(puzzle: Puzzle, row: int) -> Tensor:
    """The weights kept (12,), from a row of buttons a group; they begin at magnitude's choice."""
    kept = torch.zeros(WIDTH, dtype=torch.bool)
    largest = puzzle.magnitude(row)
    for group in range(GROUPS):
        letter, first = "ABC"[group], group * PATTERN.m
        names = [f"{letter}{i + 1}" for i in range(PATTERN.m)]
        default = [names[i] for i in range(PATTERN.m) if largest[first + i]]
        name = f"keep{row + 1}{letter.lower()}"
        title = text("which.keep", group=letter)
        picked = st.pills(title, names, selection_mode="multi", **state.addressed(name, names, default))
        for i, label in enumerate(names):
            kept[first + i] = label in picked
    return kept


def _draw_result(error: float, found: Contest) -> None:
    methods = {"magnitude": "none", "exchanges": "snows", "you": "least-squares"}
    names = choices("which.bars", methods).values()
    errors = dict(zip(names, (100 * found.magnitude, 100 * found.exchanged, 100 * error), strict=True))
    live.chart(
        charts.bars_chart(errors, text("which.bars_axis"), dict(zip(names, methods.values(), strict=True))),
        key="contest",
        alt="; ".join(f"{name}: {value:.3g} %" for name, value in errors.items()),
    )
    if is_best(error, found.best):
        st.markdown(f":material/trophy: {text('which.is_best')}")
    elif error < found.exchanged * (1 - 1e-9):
        st.markdown(f":material/check_circle: {text('which.beats_exchanges')}")
    elif error < found.magnitude * (1 - 1e-9):
        st.markdown(f":material/check_circle: {text('which.beats_magnitude')}")
    else:
        st.markdown(text("which.beats_none"))
    with st.expander(text("which.give_up")):
        best = [f"{'ABC'[i // PATTERN.m]}{i % PATTERN.m + 1}" for i in range(WIDTH) if found.best_mask[i]]
        st.markdown(text("which.solution", names=", ".join(best), error=f"{100 * found.best:.3g}"))


LESSON = lesson.Lesson(name="which", guesses=("mostly", "half", "seldom"), draw=_draw, page="layers")
