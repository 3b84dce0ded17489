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
from app.texts import Later, choices, text
from snows.measures.attention import attention_maps, compare_maps, even_maps, map_tokens
from snows.plans import levels
from snows.sources.data import as_pixels

MODEL = "vit-fashion"
METHODS = {"refitted": "snows", "cut": "none", "same": "dense", "even": "dense"}
SCALES = ("plain", "rescaled")


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


@st.cache_resource(show_spinner=Later("looks.waiting"))
def _looks() -> Looks:
    return Looks.of(networks.opened(MODEL))


@st.cache_resource(max_entries=2 * len(levels.PATTERNS), show_spinner=False)
def _pruned(pattern: str, refitted: bool) -> dict[str, Tensor]:
    return _looks().pruned(pattern, refitted)


@st.cache_data(show_spinner=False)
def _floors() -> dict[str, float]:
    looks = _looks()
    return {"same": looks.preserved(looks.same()), "even": looks.preserved(looks.even())}


@st.cache_data(max_entries=2 * len(levels.PATTERNS), show_spinner=False)
def _preserved(pattern: str, refitted: bool) -> float:
    return _looks().preserved(_pruned(pattern, refitted))


def _draw(guess: str) -> None:
    looks, floors = _looks(), _floors()
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(floors["even"]),
        text("looks.outcome", even=f"{floors['even']:.3f}"),
    )
    names, blocks = looks.network.model.class_names, list(looks.dense)
    found = levels.Levels.read(MODEL)
    left, right = st.columns([2, 3], gap="large")
    with left:
        shares = {pattern: share(found.at(pattern).density) for pattern in levels.PATTERNS}
        pattern = st.select_slider(
            text("looks.kept"), list(shares), format_func=shares.__getitem__, **state.addressed("kept", shares, "1:8")
        )
        picture = st.selectbox(text("looks.picture"), list(names), **state.addressed("picture", names, names[0]))
        numbered = {str(i + 1): text("looks.block_number", number=i + 1) for i in range(len(blocks))}
        block = st.selectbox(
            text("looks.block"),
            list(numbered),
            format_func=numbered.__getitem__,
            help=text("looks.block_help"),
            **state.addressed("block", numbered, str(len(blocks))),
        )
    which, place = list(names).index(picture), blocks[int(block) - 1]
    shown = {"dense": looks.dense, "cut": _pruned(pattern, False), "refitted": _pruned(pattern, True)}
    maps = {name: looks.on_picture(maps, place, which).numpy() for name, maps in shown.items()}
    titles = choices("looks.maps", ("dense", *METHODS))
    limits = (0.0, float(max(m.max() for m in maps.values())))
    with right:
        for column, (name, attended) in zip(st.columns(len(maps)), maps.items(), strict=True):
            column.markdown(f"**{titles[name]}**")
            with column:
                live.chart(
                    attention_charts.attention_picture(as_pixels(looks.pictures[which]), attended, limits, 0.6, height=180),
                    key=f"looks-{name}",
                    alt=text("looks.map", map=titles[name], picture=picture),
                )
        level = found.at(pattern)
        st.caption(
            text(
                "looks.note",
                dense=f"{100 * found.at(levels.DENSE).cut:.1f}",
                cut=f"{100 * level.cut:.1f}",
                refitted=f"{100 * level.refitted:.1f}",
            )
        )
    st.header(text("looks.number"), anchor=False)
    left, right = st.columns([2, 3], gap="large")
    with left:
        scale = lesson.draw_choice(text("looks.scale"), "scale", choices("looks.scales", SCALES), "plain")
        st.caption(text("looks.scale_note"))
    scores = {"refitted": _preserved(pattern, True), "cut": _preserved(pattern, False), **floors}
    if scale == "rescaled":
        scores = {name: rescaled(score, floors["even"]) for name, score in scores.items()}
    bars = {titles[name]: score for name, score in scores.items()}
    with right:
        live.chart(
            charts.bars_chart(bars, text("looks.bars_axis"), {titles[name]: method for name, method in METHODS.items()}),
            key="preserved",
            alt="; ".join(f"{title}: {score:.3g}" for title, score in bars.items()),
        )


LESSON = lesson.Lesson(name="looks", guesses=("low", "half", "high"), draw=_draw, page="attention")
