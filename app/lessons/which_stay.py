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


@st.cache_resource(show_spinner="Reading the inputs of a real layer, once …")
def _puzzle() -> Puzzle:
    return Puzzle.of(networks.opened("resnet20-fashion"))


@st.cache_resource(show_spinner="Trying all 216 choices of every neuron, once …")
def _contests() -> list[Contest]:
    return [contest(_puzzle(), row) for row in range(ROWS)]


def _draw(guess: str) -> None:
    puzzle, contests = _puzzle(), _contests()
    by_size, by_exchange = times_best(contests)
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(by_size, ROWS),
        f"Of {ROWS} neurons with 216 choices each, the two largest of every four are the best choice in {by_size}.",
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        row = int(lesson.draw_number("Neuron", "neuron", range(1, ROWS + 1), 1)) - 1
        kept = _draw_picks(puzzle, row)
    complete = all(int(group.sum()) == PATTERN.n for group in kept.split(PATTERN.m))
    names = [f"{'ABC'[i // PATTERN.m]}{i % PATTERN.m + 1}" for i in range(WIDTH)]
    after = puzzle.refitted(row, kept) if complete else puzzle.weights[row] * kept
    with right:
        figure = charts.values_chart(puzzle.weights[row].tolist(), after.tolist(), names, PATTERN.m)
        live.chart(figure, key="puzzle", alt="The neuron's twelve weights before, and refitted on your choice")
    with left:
        if complete:
            _draw_result(float(puzzle.errors(row, kept[None])), contests[row])
        else:
            st.info("Keep two in every group of four.", icon=":material/info:")
    with right:
        st.markdown(
            "**How alike the inputs are**", help="Two inputs that are alike can speak for each other: one of them is enough."
        )
        live.chart(
            charts.likeness_chart(puzzle.likeness().numpy(), names, PATTERN.m),
            key="alike",
            alt="Correlation of every two inputs",
        )
        st.caption(
            f"Twelve weights of `{MODULE}` at the middle of the kernel, on {IMAGES} pictures; the rest of the neuron "
            f"stays. The exchanges end at the best choice in {by_exchange} of {ROWS} neurons."
        )


def _draw_picks(puzzle: Puzzle, row: int) -> Tensor:
    """The weights kept (12,), from a row of buttons a group; they begin at magnitude's choice."""
    kept = torch.zeros(WIDTH, dtype=torch.bool)
    largest = puzzle.magnitude(row)
    for group in range(GROUPS):
        letter, first = "ABC"[group], group * PATTERN.m
        names = [f"{letter}{i + 1}" for i in range(PATTERN.m)]
        default = [names[i] for i in range(PATTERN.m) if largest[first + i]]
        name = f"keep{row + 1}{letter.lower()}"
        picked = st.pills(f"Keep two of group {letter}", names, selection_mode="multi", **state.addressed(name, names, default))
        for i, label in enumerate(names):
            kept[first + i] = label in picked
    return kept


def _draw_result(error: float, found: Contest) -> None:
    errors = {
        "Magnitude": 100 * found.magnitude,
        "Exchanges": 100 * found.exchanged,
        "You": 100 * error,
    }
    methods = {"Magnitude": "none", "Exchanges": "snows", "You": "least-squares"}
    live.chart(
        charts.bars_chart(errors, "Error after refitting, %", methods),
        key="contest",
        alt="; ".join(f"{name}: {value:.3g} %" for name, value in errors.items()),
    )
    if is_best(error, found.best):
        st.markdown(":material/trophy: **The best of all 216.** Nobody can do better. Try another neuron.")
    elif error < found.exchanged * (1 - 1e-9):
        st.markdown(
            ":material/check_circle: **You beat the exchanges.** They look at one swap at a time. There is a better one still."
        )
    elif error < found.magnitude * (1 - 1e-9):
        st.markdown(":material/check_circle: **You beat magnitude.** Now beat the exchanges.")
    else:
        st.markdown("Beat magnitude first: look for two kept inputs that are alike, and let one of them go.")
    with st.expander("Give up: the best choice"):
        names = [f"{'ABC'[i // PATTERN.m]}{i % PATTERN.m + 1}" for i in range(WIDTH) if found.best_mask[i]]
        st.markdown(f"{', '.join(names)}: an error of {100 * found.best:.3g} %.")


LESSON = lesson.Lesson(
    title="Which ones stay?",
    idea="Keep two of every four weights, and refit them. Which two serve best depends on what the others can make up "
    "for, so the largest are a good start and seldom the end.",
    prediction="Keep the two largest of every four weights. In how many neurons is that the best choice of all?",
    guesses={"mostly": "In most of them", "half": "In about half of them", "seldom": "Seldom"},
    draw=_draw,
    question="Why can exchanging one weight for another, as long as that helps, end at a choice that is not the best?",
    answer="It looks at one swap at a time, and stops where none helps. Two swaps together may help although each alone "
    "hurts: that is a valley between two hills. Trying everything finds the best, and takes six to the power of the "
    "number of groups: 216 here, more than there are atoms for a whole row of 288 weights.",
    formula=r"""A choice $Z$ costs what is left after refitting on it,

$$E(Z) = \min_{v \text{ on } Z} (w-v)\,G\,(w-v)^\top .$$

Taking out weight $i$ and putting $j$ in at its best value changes it by $-\dfrac{s_j^2}{G_{jj}} + w_i\,(w_i G_{ii} + 2 s_i)$,
where $s$ is the slope without it; `snows.method.refinement` makes the exchange that gains most, group after group, until none
gains.""",
    link=("layers", "the mask of a layer, and how many weights the exchanges moved"),
    teacher="""**Ten minutes.** One neuron together: read the picture of likeness, find two kept inputs that are alike, swap
one out. Then each group of pupils takes a neuron of its own; who finds the best of 216?

**What goes wrong.** People swap the smallest weight first. The error after *refitting* counts, not the weight's size.

**Ask.** When would magnitude always be right? (When the inputs have nothing in common and equal size: lesson 2 at likeness
0.)""",
)
