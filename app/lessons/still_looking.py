"""Does it still look at the same places? Attention of a picture: dense, just cut, refitted; and what a score says of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st
from torch import Tensor

from app import state
from app.charts import attention as attention_charts
from app.charts import lessons as charts
from app.lessons import lesson, networks
from app.parts import live
from app.tables.play import share
from snows.measures.attention import attention_maps, compare_maps, even_maps, map_tokens
from snows.plans import levels
from snows.sources.data import as_pixels

MODEL = "vit-fashion"
EVEN, SAME = "Even: everywhere alike", "One map for all pictures"
VALUES = {"Refitted": True, "Just cut": False}
METHODS = {"Refitted": "snows", "Just cut": "none", SAME: "dense", EVEN: "dense"}
SCORES = {"plain": "From 0 to 1", "rescaled": "From even to dense"}


@dataclass(frozen=True, eq=False)
class Looks:
    """Where the vision transformer looks on ten pictures, one of each class: maps (10, H, T, T) by block."""

    network: networks.Opened
    pictures: Tensor
    dense: dict[str, Tensor]

    @classmethod
    def of(cls, network: networks.Opened) -> "Looks":
        pictures = network.images.evaluation[network.one_of_each()]
        return cls(network, pictures, attention_maps(network.graph, pictures))

    def pruned(self, pattern: str, refitted: bool) -> dict[str, Tensor]:
        """The maps of a recorded level."""
        module = levels.network(MODEL, pattern, refitted=refitted).module
        return attention_maps(self.network.graph, self.pictures, dict(module.named_parameters()))

    def even(self) -> dict[str, Tensor]:
        """Maps that know nothing: every place is looked at as much as every other."""
        return {block: even_maps(maps) for block, maps in self.dense.items()}

    def same(self) -> dict[str, Tensor]:
        """The dense network's mean over the pictures: maps that do not depend on the picture."""
        return {block: maps.mean(0, keepdim=True).expand_as(maps) for block, maps in self.dense.items()}

    def preserved(self, maps: Mapping[str, Tensor]) -> float:
        """The overlap with the dense maps, mean over pictures: 1 = the dense maps."""
        return float(compare_maps(self.dense, maps).overlap.mean())

    def on_picture(self, maps: Mapping[str, Tensor], block: str, picture: int) -> Tensor:
        """Where the token that the answer is read from looks, mean over heads: (rows, columns)."""
        grid = map_tokens(self.network.graph)[block].keys
        assert grid is not None  # it sees whole pictures
        return grid.on_patches(maps[block][picture].mean(0)[grid.others[0]])


def rescaled(score: float, floor: float) -> float:
    """0 for what scores as `floor` does, 1 for the dense maps."""
    return (score - floor) / (1 - floor)


def truth(even: float) -> str:
    """Which guess was right of the score that even maps get."""
    return "low" if even < 0.3 else "half" if even < 0.7 else "high"


# --- what is drawn ---


@st.cache_resource(show_spinner="Looking where the network looks, once …")
def _looks() -> Looks:
    return Looks.of(networks.opened(MODEL))


@st.cache_resource(max_entries=2 * len(levels.PATTERNS), show_spinner=False)
def _pruned(pattern: str, refitted: bool) -> dict[str, Tensor]:
    return _looks().pruned(pattern, refitted)


@st.cache_data(show_spinner=False)
def _floors() -> dict[str, float]:
    looks = _looks()
    return {SAME: looks.preserved(looks.same()), EVEN: looks.preserved(looks.even())}


@st.cache_data(max_entries=2 * len(levels.PATTERNS), show_spinner=False)
def _preserved(pattern: str, refitted: bool) -> float:
    return _looks().preserved(_pruned(pattern, refitted))


def _draw(guess: str) -> None:
    looks, floors = _looks(), _floors()
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(floors[EVEN]),
        f"Even maps score {floors[EVEN]:.3f}. Dense maps are spread over many places, too, so the two have much in common.",
    )
    names, blocks = looks.network.model.class_names, list(looks.dense)
    found = levels.Levels.read(MODEL)
    left, right = st.columns([2, 3], gap="large")
    with left:
        shares = {pattern: share(found.at(pattern).density) for pattern in levels.PATTERNS}
        pattern = st.select_slider(
            "Weights kept", list(shares), format_func=shares.__getitem__, **state.addressed("kept", shares, "1:8")
        )
        picture = st.selectbox("Picture", list(names), **state.addressed("picture", names, names[0]))
        numbered = {str(i + 1): f"Block {i + 1}" for i in range(len(blocks))}
        block = st.selectbox(
            "Block of the network",
            list(numbered),
            format_func=numbered.__getitem__,
            help="The network looks once in each of its blocks. Shown is the mean over the block's heads.",
            **state.addressed("block", numbered, str(len(blocks))),
        )
    which, place = list(names).index(picture), blocks[int(block) - 1]
    shown = {"Dense": looks.dense} | {title: _pruned(pattern, VALUES[title]) for title in ("Just cut", "Refitted")}
    maps = {title: looks.on_picture(maps, place, which).numpy() for title, maps in shown.items()}
    limits = (0.0, float(max(m.max() for m in maps.values())))
    with right:
        for column, (title, attended) in zip(st.columns(len(maps)), maps.items(), strict=True):
            column.markdown(f"**{title}**")
            with column:
                live.chart(
                    attention_charts.attention_picture(as_pixels(looks.pictures[which]), attended, limits, 0.6, height=180),
                    key=f"looks-{title}",
                    alt=f"{title}: where the network looks on the {picture}",
                )
        level = found.at(pattern)
        st.caption(
            "Bright: much looked at, by what the answer is read from. Right answers: "
            f"{100 * found.at(levels.DENSE).cut:.1f} % dense, {100 * level.cut:.1f} % just cut, {100 * level.refitted:.1f} "
            "% refitted."
        )
    st.header("One number for it", anchor=False)
    left, right = st.columns([2, 3], gap="large")
    with left:
        scale = lesson.draw_choice("Scale", "scale", SCORES, "plain")
        st.caption(
            "The score is one less the Jensen-Shannon divergence between where the dense network and another look: 1 "
            "where both look at the same places, 0 where at no place in common. Mean over ten pictures, all heads and "
            "blocks."
        )
    scores = {title: _preserved(pattern, again) for title, again in VALUES.items()} | floors
    if scale == "rescaled":
        scores = {title: rescaled(score, floors[EVEN]) for title, score in scores.items()}
    with right:
        live.chart(
            charts.bars_chart(scores, "Attention preserved", METHODS),
            key="preserved",
            alt="; ".join(f"{title}: {score:.3g}" for title, score in scores.items()),
        )


LESSON = lesson.Lesson(
    title="Does it still look at the same places?",
    idea="A vision transformer looks at some places of a picture more than at others. After cutting it may answer wrongly "
    "because it looks elsewhere, and refitting may bring its looks back. How much is left is often said as one number.",
    prediction="The score is 1 where a network looks just where the dense one does, and 0 where it looks at no place in "
    "common. What does *looking everywhere alike* get, which knows nothing of the picture?",
    guesses={"low": "Less than 0.3", "half": "About a half", "high": "More than 0.7"},
    draw=_draw,
    question="At 12.5 % of the weights, just cut, the score sounds like success. Which two bars say that it is none?",
    answer="The even map scores nearly as much, and one map for all pictures scores more, though neither has looked at "
    "the picture. A score means something beside what nothing would score. Put the scale from even to dense: now the cut "
    "network is near 0 and the refitted one near 1.",
    formula=r"""Maps $p$ and $q$ (each row sums to one) with their midpoint $m = (p+q)/2$:

$$\mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}(p\,\|\,m) + \tfrac12 \mathrm{KL}(q\,\|\,m),$$

in bits between 0 and 1 (Lin, 1991). The score is $s = 1 - \mathrm{JS}$. From even to dense it is $(s - s_0)/(1 - s_0)$ with
$s_0$ the score of even maps.""",
    link=("attention", "every head's map, and how much of it is preserved"),
    teacher="""**Ten minutes.** Show the three pictures from 50 % to 6.25 %. Then hide them, show the plain score alone, and
ask which network is broken. Then the other two bars.

**What goes wrong.** “0.90 is nearly all.” It is, of what there was to lose only a little: even maps lose no more than a
little either. The same holds for accuracy: of ten classes, guessing gets 10 %.

**Ask.** Look at block 1: why is it hardly changed at all? (It looks nearly evenly in the dense network, too.) Can a network
look at the right places and answer wrongly?""",
)
