"""The others make up for it: what least squares does when some weights of a neuron must be zero."""

from collections.abc import Collection
from dataclasses import dataclass

import streamlit as st
import torch
from torch import Tensor

from app import state
from app.charts import lessons as charts
from app.lessons import lesson, networks
from app.parts import live
from app.texts import Later, choices, text
from snows.method.rows import KeptWeights, RowBlocks, input_gram
from snows.method.saliency import SCORERS
from snows.method.sparsity import keep_highest, to_matrix

INPUTS = 8
WEIGHTS = (0.9, -0.7, 0.5, 0.8, -0.3, 0.6, -0.4, 0.2)
LIKENESS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
CUT = ("2", "5", "7", "8")
MODULE, IMAGES = "layer2.1.conv1", 64
SHARES = (90, 75, 50, 37.5, 25, 12.5)  # % kept


@dataclass(frozen=True)
class Refit:
    """Rows of weights before (R, P), refitted on the mask (R, P), and each row's error, just cut and refitted: (R,), relative
    to the mean square of what the row should give."""

    before: Tensor
    after: Tensor
    cut: Tensor
    refitted: Tensor


def refit(weights: Tensor, mask: Tensor, gram: Tensor) -> Refit:
    """Least squares on the mask for rows `weights` (R, P) whose inputs have the Gram matrix `gram` (P, P).

    The error of values v is (w - v) G (w - v)ᵀ over w G wᵀ.
    """
    kept = KeptWeights(mask, weights.shape)
    solution = RowBlocks(gram, kept).least_squares(weights @ gram, kept.restrict(weights))
    after = to_matrix(kept.expand(solution))
    return Refit(weights, after, relative_error(weights, weights * mask, gram), relative_error(weights, after, gram))


def relative_error(weights: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """(R,), float64: the mean squared change of each row's output, relative to its mean square."""
    wrong, whole, gram = (weights - values).double(), weights.double(), gram.double()
    return ((wrong @ gram) * wrong).sum(1) / ((whole @ gram) * whole).sum(1)


def alike(likeness: float) -> Tensor:
    """The Gram matrix (8, 8), float64, of inputs of size one that each resemble each other by the correlation `likeness`."""
    return torch.full((INPUTS, INPUTS), likeness, dtype=torch.float64).fill_diagonal_(1.0)


def neuron(cut: Collection[int], likeness: float) -> Refit:
    """The neuron of eight inputs without the inputs `cut` (0 … 7)."""
    weights = torch.tensor([WEIGHTS], dtype=torch.float64)
    mask = torch.tensor([[i not in cut for i in range(INPUTS)]])
    return refit(weights, mask, alike(likeness))


def truth() -> str:
    """Which guess is right, by the half of the inputs that the lesson begins with."""
    cut = [int(name) - 1 for name in CUT]
    apart, close = (float(neuron(cut, likeness).refitted) for likeness in (0, 0.9))
    return "alike" if close < 0.8 * apart else "apart" if close > 1.25 * apart else "same"


def layer(weight: Tensor, gram: Tensor, density: float) -> Refit:
    """Every row of a real layer with its largest weights, the share `density` of each row, kept."""
    scores = SCORERS["magnitude"].function(weight)
    return refit(weight, keep_highest(scores, max(1, round(density * weight.shape[1]))), gram)


# --- what is drawn ---


@st.cache_resource(show_spinner=Later("lessons.reading"))
def _real() -> tuple[Tensor, Tensor]:
    network = networks.opened("resnet20-fashion")
    site = network.site(MODULE)
    _, values = network.graph.run(network.images.calibration[:IMAGES], capture=[site.input])
    return to_matrix(network.graph.parameters[site.name]), input_gram(site, [values[site.input]], torch.device("cpu"))


@st.cache_resource(max_entries=2 * len(SHARES), show_spinner=False)
def _real_refit(percent: float, as_if_unlike: bool) -> Refit:
    weight, gram = _real()
    return layer(weight, torch.diag(gram.diagonal()) if as_if_unlike else gram, percent / 100)


def _draw(guess: str) -> None:
    cut = [int(name) - 1 for name in CUT]
    apart, close = (float(neuron(cut, likeness).refitted) for likeness in (0, 0.9))
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(),
        text("others.outcome", apart=f"{100 * apart:.3g}", close=f"{100 * close:.2g}"),
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        likeness = lesson.draw_number(text("others.alike"), "alike", LIKENESS, 0.5, help=text("others.alike_help"))
        names = [str(i + 1) for i in range(INPUTS)]
        picked = st.pills(text("others.cut"), names, selection_mode="multi", **state.addressed("cut", names, list(CUT)))
    cut = [int(name) - 1 for name in picked]
    if len(cut) == INPUTS:
        st.info(text("others.all_cut"), icon=":material/info:")
        return
    found = neuron(cut, likeness)
    with right:
        live.chart(
            charts.values_chart(found.before[0].tolist(), found.after[0].tolist(), names),
            key="neuron",
            alt=text("others.chart"),
        )
    with left:
        tiles = st.columns(2)
        tiles[0].metric(text("others.error_cut"), f"{100 * float(found.cut):.3g} %", border=True)
        tiles[1].metric(text("others.error_refitted"), f"{100 * float(found.refitted):.3g} %", border=True)
    st.header(text("lessons.real"), anchor=False)
    _draw_real()


def _draw_real() -> None:
    left, right = st.columns([2, 3], gap="large")
    with left:
        percent = lesson.draw_number(text("others.kept"), "kept", SHARES, 25, lambda share: f"{share:g} %")
    real, unlike = _real_refit(percent, False), _real_refit(percent, True)
    errors = {
        "cut": 100 * float(real.cut.mean()),
        "refitted": 100 * float(real.refitted.mean()),
        "unlike": 100 * float(unlike.refitted.mean()),
    }
    with left:
        st.caption(text("others.note", module=MODULE, neurons=real.before.shape[0], inputs=real.before.shape[1], images=IMAGES))
    with right:
        labels = choices("others.bars", errors)
        methods = dict(zip(labels.values(), ("none", "least-squares", "dense"), strict=True))
        live.chart(
            charts.bars_chart({labels[name]: error for name, error in errors.items()}, text("others.bars_axis"), methods),
            key="real-refit",
            alt=text("others.bars_said", **{name: f"{error:.3g}" for name, error in errors.items()}),
        )
        st.caption(text("others.note_unlike"))


LESSON = lesson.Lesson(name="others", guesses=("alike", "apart", "same"), draw=_draw, page="layers")
