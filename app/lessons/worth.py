"""What is a weight worth? Remove weights from one layer by size, by chance or by hand, and count what still comes out right."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st
import torch
from torch import Tensor

from app import state
from app.charts import attention as attention_charts
from app.charts import lessons as charts
from app.lessons import lesson, networks
from app.lessons.networks import Opened
from app.parts import live
from app.texts import Later, choices, text
from snows.measures import metrics
from snows.method.graph import Window
from snows.method.operations import Values
from snows.method.saliency import SCORERS
from snows.method.sparsity import from_matrix, keep_highest, to_matrix

_CHUNK = 125  # images whose values all wait at once
# Of an early layer more of the network remains to be run, so fewer pictures are answered within a second.
LAYERS = {
    "conv1": ("first", 100),
    "layer2.0.conv1": ("early", 250),
    "layer3.0.conv1": ("middle", 500),
    "layer3.2.conv1": ("late", 500),
    "fc": ("last", 500),
}
DEFAULT_LAYER = "layer3.0.conv1"
RULES = ("size", "chance", "largest", "hand")
SHARES = (0, 10, 25, 50, 60, 70, 75, 80, 90, 95, 100)  # %


@dataclass(frozen=True, eq=False)
class Rest:
    """The network from one layer on; what the layers before it say of the images is computed already."""

    window: Window
    inputs: list[Values]
    weight: Tensor
    labels: Tensor

    @classmethod
    def of(cls, network: Opened, module: str, count: int) -> "Rest":
        """For the layer `module` and the first `count` evaluation images."""
        graph, site = network.graph, network.site(module)
        window = graph.window(site, graph.num_operations)
        parameters, inputs = graph.bind({}), []
        for batch in network.images.evaluation[:count].split(_CHUNK):
            values = {graph.input: graph.laid_out(batch)}
            values |= graph.run(batch, capture=[n for n in window.outside if n is not graph.input])[1]
            inputs.append(window.inputs(values, parameters))
        return cls(window, inputs, graph.parameters[site.name], network.labels[:count])

    @torch.no_grad()
    def logits(self, mask: Tensor) -> Tensor:
        """The answers (N, classes) with only the weights of `mask` (R, P), True = kept."""
        weight = self.weight * from_matrix(mask, self.weight.shape)
        return torch.cat([self.window.outputs(weight, inputs)[-1] for inputs in self.inputs])


def keep(weight: Tensor, rule: str, removed: float, rows: Sequence[int] = (), seed: int = 0) -> Tensor:
    """The mask (R, P), True = kept, that a rule leaves of a layer's weight.

    `removed`: the share to remove, 0 … 1. `rule`: `size` removes the smallest first, `largest` the largest first, `chance` any,
    `hand` the rows `rows` whole, whatever the share.
    """
    matrix = to_matrix(weight)
    if rule == "hand":
        mask = torch.ones_like(matrix, dtype=torch.bool)
        mask[list(rows)] = False
        return mask
    if rule == "chance":
        scores = SCORERS["random"].function(matrix, generator=torch.Generator().manual_seed(seed))
    else:
        scores = SCORERS["magnitude"].function(matrix) * (1 if rule == "size" else -1)
    return keep_highest(scores.flatten(), round((1 - removed) * scores.numel())).view(scores.shape)


def truth(right: int, right_before: int) -> str:
    """Which guess was right, when `right` pictures are left of the `right_before` of the whole network."""
    share = right / right_before
    return "all" if share > 0.95 else "half" if share > 0.35 else "few"


# --- what is drawn ---


@st.cache_resource(max_entries=len(LAYERS), show_spinner=Later("worth.waiting"))
def _rest(module: str) -> Rest:
    return Rest.of(networks.opened("resnet20-fashion"), module, LAYERS[module][1])


@st.cache_resource(max_entries=256, show_spinner=False)
def _logits(module: str, rule: str, percent: float, rows: tuple[int, ...]) -> Tensor:
    rest = _rest(module)
    return rest.logits(keep(rest.weight, rule, percent / 100, rows))


def _right(logits: Tensor, module: str) -> int:
    return int(metrics.right(logits, _rest(module).labels).sum())


def _draw(guess: str) -> None:
    dense, half = (_right(_logits(DEFAULT_LAYER, "size", share, ()), DEFAULT_LAYER) for share in (0, 50))
    total = LAYERS[DEFAULT_LAYER][1]
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(half, dense),
        text("worth.outcome", total=total, before=dense, after=half),
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        layers = {module: text(f"worth.layers.{place}") for module, (place, _) in LAYERS.items()}
        module = lesson.draw_choice(text("worth.layer"), "layer", layers, DEFAULT_LAYER)
        rules = choices("worth.rules", RULES)
        rule = lesson.draw_choice(text("worth.rule"), "rule", rules, "size")
        names, rest = networks.opened("resnet20-fashion").model.class_names, _rest(module)
        percent, rows = 0.0, tuple[int, ...]()
        if rule == "hand":
            count = rest.weight.shape[0]
            outputs = names if module == "fc" else [text("worth.filter", number=i + 1) for i in range(count)]
            labels = dict(zip(map(str, range(count)), outputs, strict=True))
            rows = tuple(
                int(row)
                for row in st.multiselect(
                    text("worth.silence"),
                    list(labels),
                    format_func=labels.__getitem__,
                    **state.addressed("rows", list(labels), list[str]()),
                    help=text("worth.silence_help"),
                )
            )
        else:
            percent = lesson.draw_number(text("worth.share"), "removed", SHARES, 50, lambda share: f"{share:g} %")
        pictures = {
            names[int(rest.labels[i])]: i for i in networks.opened("resnet20-fashion").one_of_each() if i < len(rest.labels)
        }
        picture = st.selectbox(
            text("worth.picture"), list(pictures), **state.addressed("picture", pictures, next(iter(pictures)))
        )
    mask = keep(rest.weight, rule, percent / 100, rows)
    removed = 100 * float((~mask).float().mean())
    logits = _logits(module, rule, percent, rows)
    before, right_now = _right(_logits(module, "size", 0, ()), module), _right(logits, module)
    with left:
        _draw_answer(logits[pictures[picture]], pictures[picture], int(rest.labels[pictures[picture]]))
    with right:
        tiles = st.columns(2)
        tiles[0].metric(
            text("worth.right"),
            text("worth.of", count=right_now, total=len(rest.labels)),
            f"{right_now - before:+d}",
            delta_color="off",
            border=True,
            height="stretch",
        )
        cut = text("worth.of", count=f"{int((~mask).sum()):,}", total=f"{mask.numel():,}")
        tiles[1].metric(text("worth.removed"), cut, border=True, height="stretch")
        tried: dict[tuple[str, str], list[tuple[float, int]]] = st.session_state.setdefault("lesson-worth-tried", {})
        tried.setdefault((module, rule), [(0.0, before)]).append((removed, right_now))
        rows_tried = [(rules[by], *place) for (of, by), places in tried.items() if of == module for place in places]
        figure = charts.removal_chart(
            pd.DataFrame(rows_tried, columns=["rule", "removed", "right"]), len(rest.labels), (removed, right_now)
        )
        live.chart(figure, key="worth", alt=text("worth.chart"))
        st.caption(
            text(
                "worth.note" if len(rest.labels) == networks.EVALUATION else "worth.note_fewer",
                module=module,
                weights=f"{mask.numel():,}",
                pictures=len(rest.labels),
            )
        )


def _draw_answer(logits: Tensor, index: int, label: int) -> None:
    from snows.sources.data import as_pixels

    network = networks.opened("resnet20-fashion")
    probabilities = logits.softmax(0)
    top = probabilities.topk(3)
    frame = pd.DataFrame(
        {
            "index": top.indices.tolist(),
            "class": [network.model.class_names[i] for i in top.indices.tolist()],
            "probability": top.values.tolist(),
        }
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        name = network.model.class_names[label]
        st.image(as_pixels(network.images.evaluation[index]), width=96, caption=name, alt=text("worth.test_picture", name=name))
        with st.container():
            live.chart(
                attention_charts.top_chart(frame, "none", label),
                key="worth-answer",
                alt=text("worth.answers"),
            )


LESSON = lesson.Lesson(name="worth", guesses=("all", "half", "few"), draw=_draw, page="layers")
