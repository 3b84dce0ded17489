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


@st.cache_resource(show_spinner="Reading the inputs of a real layer, once …")
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
        f"With four of eight inputs cut, refitting leaves {100 * apart:.3g} % of the output wrong where the inputs have "
        f"nothing to do with each other, and {100 * close:.2g} % where they are alike by 0.9.",
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        likeness = lesson.draw_number(
            "How alike the inputs are", "alike", LIKENESS, 0.5, help="Their correlation: 0 means nothing in common, 1 the same."
        )
        names = [str(i + 1) for i in range(INPUTS)]
        picked = st.pills("Inputs to cut", names, selection_mode="multi", **state.addressed("cut", names, list(CUT)))
    cut = [int(name) - 1 for name in picked]
    if len(cut) == INPUTS:
        st.info("All inputs are cut, so nothing is left to make up for them. Keep one.", icon=":material/info:")
        return
    found = neuron(cut, likeness)
    with right:
        live.chart(
            charts.values_chart(found.before[0].tolist(), found.after[0].tolist(), names),
            key="neuron",
            alt="The neuron's eight weights before, and refitted; those that are cut are open",
        )
    with left:
        tiles = st.columns(2)
        tiles[0].metric("Error, just cut", f"{100 * float(found.cut):.3g} %", border=True)
        tiles[1].metric("Refitted", f"{100 * float(found.refitted):.3g} %", border=True)
    st.header("The same on a real layer", anchor=False)
    _draw_real()


def _draw_real() -> None:
    left, right = st.columns([2, 3], gap="large")
    with left:
        percent = lesson.draw_number("Weights kept of each row", "kept", SHARES, 25, lambda share: f"{share:g} %")
    real, unlike = _real_refit(percent, False), _real_refit(percent, True)
    errors = {
        "Just cut": 100 * float(real.cut.mean()),
        "Refitted": 100 * float(real.refitted.mean()),
        "Refitted, had its inputs nothing in common": 100 * float(unlike.refitted.mean()),
    }
    with left:
        st.caption(
            f"`{MODULE}` of the small ResNet: {real.before.shape[0]} neurons of {real.before.shape[1]} inputs each, which "
            f"{IMAGES} pictures of clothing bring. The largest weights of each neuron stay."
        )
    with right:
        methods = dict(zip(errors, ("none", "least-squares", "dense"), strict=True))
        labels = {"Refitted, had its inputs nothing in common": "… inputs unlike"}
        live.chart(
            charts.bars_chart(
                {labels.get(n, n): e for n, e in errors.items()},
                "Mean error of a neuron's output, %",
                {labels.get(n, n): m for n, m in methods.items()},
            ),
            key="real-refit",
            alt="; ".join(f"{name}: {error:.3g} %" for name, error in errors.items()),
        )
        st.caption(
            "The last bar: the same weights over inputs that have nothing in common. There each weight already is the "
            "best there is, so refitting does nothing."
        )


LESSON = lesson.Lesson(
    title="The others make up for it",
    idea="A neuron adds up its inputs, each times a weight. When some weights must be zero, the others can take new "
    "values that give nearly the same sum.",
    prediction="Four of eight inputs are cut, and the other four are refitted. When does that work best?",
    guesses={
        "alike": "When the inputs are alike",
        "apart": "When the inputs have nothing in common",
        "same": "It makes no difference",
    },
    draw=_draw,
    question="Put the likeness to 0 and cut what you like. No kept weight moves at all. Why?",
    answer="Only an input that says something about a lost one can speak for it. Inputs with nothing in common cannot: "
    "each weight is already the best it can be, with or without the others. In a real network inputs are alike "
    "(neighbouring pixels, features of the same picture), and that is why weights can be removed from it at all.",
    formula=r"""With inputs $x$ and their Gram matrix $G = \overline{x x^\top}$, kept weights $v$ (zero where the mask is)
minimize

$$\overline{(w\cdot x - v\cdot x)^2} = (w-v)\,G\,(w-v)^\top.$$

On the kept places $S$ this is a small system, $G_{SS}\,v_S = (w\,G)_S$, solved exactly by a Cholesky factorization
(`snows.method.rows.RowBlocks`). Where $G$ is diagonal, $v_S = w_S$.""",
    link=("layers", "how far each layer is from its target, just cut and refitted"),
    teacher="""**Ten minutes.** Start at likeness 0.5 and cut one input after the other; watch who moves. Then the slider from
0 to 0.99 with four cut. Then the real layer.

**What goes wrong.** “The neighbours take over.” There are no neighbours: it is whoever resembles the lost input, and with
equal likeness all do a little. Some think the new weights must be larger; with negative weights among them they need not be.

**Ask.** Cut inputs 1 and 2, whose weights have opposite signs, at likeness 0.9. Why is the error so small even before
refitting?""",
)
