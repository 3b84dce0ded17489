"""Does the network still look at the same places?

The address names the run `?run=ID`, a second one `with=ID`, each image `image=NUMBER`, `block`, `head`, `query`, the row
and the column of a `patch`, and the `measure` of similarity.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import state, visitor, words
from app.charts import attention as attention_charts
from app.parts import gallery, live, panels
from app.parts.own_pictures import (
    LARGEST_UPLOAD,
    MOST_IMAGES,
    OWN,
    chosen_images,
    keep_picture,
    own_pictures,
    pick_image,
    upload_pictures,
)
from snows.config import InputError
from snows.measures.names import MEASURES, duration
from snows.plans.words import as_called, labels
from snows.runs.store import Run

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from app.tables.attention import Look, Questions
    from snows.measures.attention import Similarity, TokenGrid
    from snows.runs.inspection import Inspection


OFFERED = 48  # evaluation images in the strip
ANSWERED = 512  # evaluation images among which those with a changed answer are looked for
COUNTS, USUAL_COUNT = (32, 128, 512), 128  # evaluation images to compare the networks on
CHUNK = 8  # images between two signs of progress
MEAN = "Mean"
EVERY, CHANGED = "The first ones", "Answer changed"
SIMILARITIES = {"Cosine": "cosine", "Jensen-Shannon": "overlap"}  # to a column of `attention_view.by_head`


@dataclass(frozen=True)
class Column:
    """One of the networks side by side."""

    name: str
    method: str  # whose color and label it bears
    stage: str
    inspection: "Inspection"

    @property
    def network(self) -> tuple[Path, object, str]:
        """What tells this network from all others, and from itself when more of its layers were dense."""
        run, opened = self.inspection.run, self.inspection
        done = None if self.stage == "dense" else (len(opened.masks), opened.final is not None)
        return run.path, (run.created(), done), self.stage

    @property
    def images(self) -> tuple[Path, float]:
        """What tells this run's images from those of others."""
        return self.inspection.run.path, self.inspection.run.created()


# --- what takes time ---


@st.cache_resource(max_entries=24, show_spinner=False)
def _look(path: Path, version: object, stage: str, content: bytes, _inspection: "Inspection", _image: "Tensor") -> "Look":
    from app.tables import attention as attention_tables

    return attention_tables.look(_inspection, _image, stage)


@st.cache_resource(max_entries=8, show_spinner=False)
def _questions(path: Path, created: float, _inspection: "Inspection") -> "Questions":
    import torch

    from app.tables import attention as attention_tables

    blank = attention_tables.look(_inspection, torch.zeros(_inspection.model.input_size), "dense")
    return attention_tables.questions(_inspection, blank)


@st.cache_resource(max_entries=256, show_spinner=False)
def _similar(
    path: Path, version: object, stage: str, images: object, _inspection: "Inspection", _images: "Tensor"
) -> "Similarity":
    from snows.measures.attention import similarity

    with visitor.turn():
        return similarity(_inspection.graph, _images, _inspection.parameters(stage))


@st.cache_data(max_entries=24, show_spinner="Asking the networks about more images …")
def _answers(
    path: Path, version: object, stage: str, images: object, _inspection: "Inspection", _images: "Tensor"
) -> list[int]:
    from app.tables import attention as attention_tables

    with visitor.turn():
        return attention_tables.answers(_inspection, _images, stage)


@st.cache_data(max_entries=16, show_spinner=False)
def _thumbnails(path: Path, created: float, numbers: list[int], _inspection: "Inspection") -> list[gallery.Thumbnail]:
    from snows.sources.data import as_pixels

    images, names = _inspection.images, _inspection.model.class_names
    words = [f"Image {i}" + (f": {names[int(images.labels[i])]}" if images.labels is not None else "") for i in numbers]
    addresses = [attention_charts.picture_address(as_pixels(images.evaluation[i]), longest_edge=112) for i in numbers]
    return [gallery.Thumbnail(str(i), *picture) for i, *picture in zip(numbers, addresses, words, strict=True)]


@st.cache_resource(max_entries=16, show_spinner=False)
def _own_prepared(path: Path, created: float, mark: str, _inspection: "Inspection", _picture: "Image") -> "Tensor":
    return _inspection.model.preprocess([_picture])[0]


def _offered(columns: list[Column]) -> list[int]:
    """The numbers of the evaluation images in the strip."""
    inspection = columns[0].inspection
    evaluation, labels, names = inspection.images.evaluation, inspection.images.labels, inspection.model.class_names
    options = [EVERY, CHANGED, *(labels.unique().tolist() if labels is not None else ())]
    if st.session_state.get("show") not in options:
        st.session_state.pop("show", None)
    show = st.selectbox(
        "Images to choose from",
        options,
        key="show",
        persist_state="session",
        width=220,
        format_func=words.distinct(
            {option: option if isinstance(option, str) else names[option] for option in options}
        ).__getitem__,
        help=f"“{CHANGED}”: those of the first {ANSWERED} evaluation images to which a run gives another answer than the dense "
        "network. Or the images of one class.",
    )
    if show == CHANGED:
        before, *after = (
            _answers(*column.network, columns[0].images, column.inspection, evaluation[:ANSWERED])
            for column in (columns[0], *columns[2:])
        )
        numbers = [i for i, answer in enumerate(before) if any(other[i] != answer for other in after)]
    elif show == EVERY:
        numbers = list(range(min(len(evaluation), OFFERED)))
    else:
        numbers = (labels == show).nonzero()[:, 0].tolist()
    return numbers[:OFFERED]


def _image_controls() -> None:
    """Where images come from. Draws into the row that the choice of the second run has begun."""
    with st.popover("Your own image", icon=":material/upload:", help="It is kept in memory for this session, and in no file."):
        st.file_uploader(
            "Pictures: PNG, JPEG, WebP, …",
            accept_multiple_files=True,
            max_upload_size=LARGEST_UPLOAD,
            key=f"upload-{st.session_state.get('uploads', 0)}",
            on_change=upload_pictures,
            help="Each goes through the network's own preparation: its resize, crop and normalization.",
        )
    st.toggle(
        "Several at once",
        key="several",
        persist_state="session",
        help=f"A click adds an image or takes it away again; at most {MOST_IMAGES}. Off, a click shows one image alone.",
    )


def _strip(columns: list[Column], offered: list[int] | None) -> None:
    """The images to choose from, one's own first."""
    for problem in st.session_state.get("upload problems", ()):
        st.error(words.plain(problem), icon=":material/error:")
    pictures = [gallery.Thumbnail(OWN + name, own.address, f"Your own: {name}") for name, own in own_pictures().items()]
    if offered:
        inspection = columns[0].inspection
        pictures += _thumbnails(inspection.run.path, inspection.run.created(), offered, inspection)
    if pictures:
        gallery.gallery(pictures, chosen_images(), key="gallery", on_pick=pick_image)
    elif offered is not None:
        st.caption(f"None of the first {ANSWERED} evaluation images has another answer than before.")


def _prepared(image: str, inspection: "Inspection") -> "tuple[Tensor, str, int | None]":
    """A chosen image as the network takes it, its caption and its label. Raises `InputError`."""
    if image.startswith(OWN):
        name = image.removeprefix(OWN)
        if (own := own_pictures().get(name)) is None:
            raise InputError(
                f"The address names an image of somebody's own, {name}, which is not in this session. Bring it with “Your own "
                "image”, or choose another."
            )
        pixels = _own_prepared(inspection.run.path, inspection.run.created(), own.mark, inspection, own.picture)
        return pixels, f"Your own image, {name}", None
    images = inspection.images
    if not image.isdecimal() or int(image) >= len(images.evaluation):
        raise InputError(
            f"There is no image {image} among this run's {len(images.evaluation):,} evaluation images, which count from 0. "
            "Choose one above."
        )
    label = int(images.labels[int(image)]) if images.labels is not None else None
    words = f", labeled {inspection.model.class_names[label]}" if label is not None else ""
    return images.evaluation[int(image)], f"Evaluation image {image}{words}", label


# --- the page ---


def _second_run(run: Run) -> Run | None:
    """Choose another run of the same network."""
    config = run.config()
    others = {
        other.id: other
        for other in (*state.store().list(50), *state.recorded_runs().list())
        if other.id != run.id
        and (other_config := state.config_of(other)) is not None
        and (other_config.model, other_config.checkpoint) == (config.model, config.checkpoint)
        and (other.weights_path.exists() or next(other.finished_sites(), None) is not None)
    }
    wanted = state.asked("with")
    if wanted is not None and wanted not in others and state.is_recalled("with"):
        state.say("with", "")  # it was beside another run
        wanted = None
    picked = st.selectbox(
        "Second run",
        options := ["", *others],
        width=300,
        format_func=({"": "None" if others else "None yet"} | panels.run_labels(others)).__getitem__,
        help="Another run of the same network, beside this one."
        + ("" if others else " There is none yet: prune this network once more, with other settings."),
        **state.addressed("with", options, ""),
    )
    if wanted is not None and wanted not in others:
        problem = f"There is no run {wanted!r} of {config.model} to compare with. Choose another."
        st.error(words.plain(problem), icon=":material/error:", width=400)
    return others[picked] if picked else None


def _columns(run: Run, second: Run | None, is_live: bool) -> list[Column]:
    compared = [run] if second is None else [run, second]
    configs = [as_called(run) for run in compared]
    first, *others = (
        Column(label, config.prune.update, "pruned", state.inspection(of))
        for of, config, label in zip(compared, configs, labels(configs), strict=True)
    )
    return [
        Column("Dense network", "dense", "dense", first.inspection),
        Column("Mask only", "none", "mask_only", first.inspection),
        replace(first, name=f"{first.name}, so far") if is_live else first,
        *others,
    ]


def _controls(questions: "Questions") -> tuple[str, int | None, str | None, tuple[int, int], float]:
    """Block, head (None: their mean), query, patch (from 1), and the map's opacity."""
    from app.tables.attention import ONE_PATCH, ROLLOUT, holding

    query, head = None, None
    if questions.queries:
        query = st.segmented_control(
            "Seen from",
            questions.queries,
            required=True,
            help="Attention is a question that one token puts to all others. The class token gathers what the answer is read "
            "from. One patch: click any in the pictures. Rollout multiplies the attention of all blocks, the path an image "
            "takes to the answer (Abnar & Zuidema, 2020).",
            **state.addressed("query", questions.queries, questions.queries[0]),
        )
    through_all = query == ROLLOUT
    blocks = questions.blocks_with(query)
    about_block = (
        "A convolutional network works in stages, each at a coarser resolution."
        if questions.stages
        else "A transformer looks at the image once a block, the first one first. Rollout goes through all of them."
    )
    # Once: from the layer that was looked into on another page to its block.
    layer = state.shared("layer")
    if layer is not None and layer != st.session_state.get("attention-layer"):
        if (of_layer := holding(blocks, layer)) is not None and not through_all:
            state.choose("block", of_layer, blocks[-1])
        st.session_state["attention-layer"] = layer
    shared: dict[str, Any] = {"width": 220, "help": about_block, **state.addressed("block", blocks, blocks[-1])}
    name = "Stage" if questions.stages else "Block"
    if len(blocks) > 1:
        block = st.select_slider(name, blocks, disabled=through_all, **shared)
    else:  # a slider has two ends
        block = st.selectbox(name, blocks, disabled=True, **shared)
    if questions.heads:
        heads = [MEAN, *map(str, range(1, questions.heads[block] + 1))]
        picked = st.segmented_control(
            "Head",
            heads,
            required=True,
            disabled=through_all,
            help="Each block looks in several ways at once: its heads. Their mean, or one of them.",
            **state.addressed("head", heads, MEAN),
        )
        head = None if picked == MEAN else int(picked)
    patch = (1, 1)
    grid = questions.grid(block)
    if grid is not None and query == ONE_PATCH:
        patch = _patch(grid)
        for label, place, most in (("Row", 0, grid.rows), ("Column", 1, grid.columns)):

            def move(to: int, place: int = place) -> None:
                moved = [*_patch(grid)]
                moved[place] = to
                state.say("patch", list(map(str, moved)), list(map(str, _middle(grid))))

            st.number_input(label, 1, most, width=110, **state.linked("patch", patch[place], move, part=f"-{label.lower()}"))
    opacity = st.slider("Map over image", 0, 100, 60, 5, format="%d %%", key="opacity", width=160, persist_state="session")
    return block, head, query, patch, opacity / 100


def _cell(place: float, most: int) -> int:
    """The cell, from 1, at a place on an axis. A click on the outer edge lies in the cell beside it."""
    return min(max(round(place), 1), most)


def _middle(grid: "TokenGrid") -> tuple[int, int]:
    return (grid.rows + 1) // 2, (grid.columns + 1) // 2


def _patch(grid: "TokenGrid") -> tuple[int, int]:
    """Row and column, from 1, of the patch that the address names, or the one in the middle."""
    match state.asked_all("patch"):
        case [row, column] if row.isdecimal() and column.isdecimal():
            if 1 <= int(row) <= grid.rows and 1 <= int(column) <= grid.columns:
                return int(row), int(column)
    return _middle(grid)


def _patch_asker(grid: "TokenGrid", questions: "Questions") -> Callable[[float, float], None]:
    """Looks from the patch that was clicked."""
    from app.tables.attention import ONE_PATCH

    def ask_patch(column: float, row: float) -> None:
        state.choose("query", ONE_PATCH, questions.queries[0])
        patch = _cell(row, grid.rows), _cell(column, grid.columns)
        state.choose("patch", list(map(str, patch)), list(map(str, _middle(grid))))

    return ask_patch


@dataclass(frozen=True)
class Seen:
    """A chosen image, and what each network makes of it. `maps`: (rows, columns) each; empty where none can be laid over it."""

    image: str
    pixels: "np.ndarray"
    caption: str
    label: int | None
    looks: "list[Look]"
    maps: "list[np.ndarray]"


def _maps(columns: list[Column], questions: "Questions", chosen: list[str]) -> tuple[str, int | None] | None:
    """The chosen images, as each network sees them. Returns the block and head (from 1; None: their mean) shown, if any are."""
    from app.tables import attention as attention_tables

    block, head, query, patch, opacity = questions.blocks[0] if questions.blocks else "", None, None, (1, 1), 0.0
    if questions.mapped:
        with st.container(horizontal=True, vertical_alignment="top", gap="medium"):
            block, head, query, patch, opacity = _controls(questions)
    from snows.sources.data import as_pixels

    seen_images = []
    for image in chosen:
        try:
            pixels, caption, label = _prepared(image, columns[0].inspection)
        except InputError as error:
            _refused(image, error, columns[0].inspection)
            continue
        content = hashlib.sha256(pixels.numpy().tobytes()).digest()
        looks = [_look(*column.network, content, column.inspection, pixels) for column in columns]
        maps = (
            [attention_tables.attended(look.maps, questions, block, head, query or "", patch) for look in looks]
            if questions.mapped
            else []
        )
        seen_images.append(Seen(image, as_pixels(pixels), caption, label, looks, maps))
    limits = attention_tables.limits([values for seen in seen_images for values in seen.maps])
    marked = patch if query == attention_tables.ONE_PATCH else None
    height = 300 if len(seen_images) == 1 else 210
    for seen in seen_images:
        st.caption(words.plain(seen.caption))
        places = st.columns(len(columns))
        drawn: list[np.ndarray | None] = [*seen.maps] or [None] * len(columns)
        for place, column, look, values in zip(places, columns, seen.looks, drawn, strict=True):
            key, names = f"{seen.image}-{column.name}", column.inspection.model.class_names
            with place:
                st.markdown(f"**{words.plain(column.name)}**")
                live.chart(
                    attention_charts.attention_picture(seen.pixels, values, limits, opacity, marked, height),
                    key=f"{key}-map",
                    alt=f"{seen.caption}: where this network looks: {column.name}",
                    on_click=_patch_asker(grid, questions) if (grid := questions.grid(block)) is not None else None,
                )
                top = attention_tables.top(look.probabilities, names)
                if top.empty:
                    st.caption("No answer: the network's outputs are not numbers (NaN).")
                    continue
                live.chart(
                    attention_charts.top_chart(top, column.method, seen.label),
                    key=f"{key}-top",
                    alt=f"{seen.caption}: the five likeliest classes: {column.name}",
                )
    if seen_images:
        known = any(seen.label is not None for seen in seen_images)
        refined = columns[0].inspection.run.config().prune.refinement != "none"
        st.caption(
            "Under each picture the network's five likeliest classes"
            + (", the right one bold. " if known else ". ")
            + "Mask only: the dense network's values under the mask that the run ended with"
            + (", which was refined for other values than these." if refined else ".")
        )
    if seen_images and questions.mapped:
        with st.container(width=440):
            title = "Activity, in all pictures" if questions.stages else "Share of the attention, in all pictures"
            live.chart(attention_charts.map_scale(limits, title), key="scale", alt=f"Color scale: {title}")
    return (block, head) if questions.mapped else None


def _refused(image: str, error: InputError, inspection: "Inspection") -> None:
    """Why an image cannot be shown, and what can be done."""
    from snows.sources.data import like_fashion_mnist
    from snows.sources.models import BUNDLED

    name = image.removeprefix(OWN)
    if name not in own_pictures():
        st.error(words.plain(str(error)), icon=":material/error:")
        return
    st.error(words.plain(f"{name} does not suit the network: {error}."), icon=":material/error:")
    if inspection.model.name in BUNDLED:

        def convert() -> None:
            keep_picture(name, like_fashion_mnist(own_pictures()[name].picture))

        st.button(
            "Make it like Fashion-MNIST",
            icon=":material/auto_fix_high:",
            on_click=convert,
            key=f"convert-{name}",
            help="By the steps that made the data set: trim it, shrink it to 28x28 pixels, grey, light on black.",
        )


def _alike(columns: list[Column], questions: "Questions", block_and_head: tuple[str, int | None] | None, is_live: bool) -> None:
    """Dense against each pruned network, over many images. `block_and_head`: the block and head whose maps are on the page."""
    from app.tables import attention as attention_tables

    st.header("Over many images, how alike do they look?", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        measure = st.segmented_control(
            "Similarity",
            list(SIMILARITIES),
            required=True,
            help="Cosine: the angle between two maps; 1 = the same direction. Jensen-Shannon: 1 minus the divergence, in bits, "
            "of two maps as distributions; 1 = equal, 0 = nothing in common. Both are means over images and queries.",
            **state.addressed("measure", SIMILARITIES, "Cosine"),
        )
        available = len(columns[0].inspection.images.evaluation)
        counts = [count for count in COUNTS if count < available] or [available]
        if st.session_state.get("over") not in counts:
            st.session_state.pop("over", None)
        count = st.segmented_control(
            "Evaluation images",
            counts,
            default=min(counts, key=lambda count: abs(count - USUAL_COUNT)),
            required=True,
            key="over",
            persist_state="session",
        )
        if is_live and not st.toggle("Measure now", key="measure now", help="It takes computing time away from the run."):
            st.caption("Measured when the run has ended.")
            return
    similarities = _measured(columns, count)
    preserved = attention_tables.preservation(similarities)
    spreads = {name: attention_tables.spread(rows["preserved"]) for name, rows in preserved.groupby("network")}
    tables = {
        name: attention_tables.by_head(values).rename(columns={SIMILARITIES[measure]: "value"})
        for name, values in similarities.items()
    }
    limits = (min(0.99, *(float(table["value"].min()) for table in tables.values())), 1.0)
    score = MEASURES["preserved"]
    overview, *places = st.columns(len(columns))
    with overview:
        st.markdown(
            "**Each image's score**",
            help=f"{score.title}: {score.meaning} A point an image; the diamond is their mean, the bar holds the middle 80 % "
            "of them.",
        )
        live.chart(
            attention_charts.preservation_chart(preserved, {column.name: column.method for column in columns[1:]}, spreads),
            key="preserved",
            alt="Preserved attention of each image, by network",
        )
    for place, column in zip(places, columns[1:], strict=True):
        mean, low, high = spreads[column.name]
        with place:
            st.markdown(f"**{words.plain(column.name)}**")
            st.metric(
                score.title,
                score.say(mean),
                f"{score.say(low)} to {score.say(high)} on 8 of 10 images",
                delta_color="off",
                delta_arrow="off",
                help="The mean over images of each one's score. Below it the scores between which the middle 80 % of them lie.",
            )
            st.caption(attention_tables.overlap_said(preserved[preserved["network"] == column.name]))
            live.chart(
                attention_charts.similarity_map(tables[column.name], limits, block_and_head),
                key=f"alike-{column.name}",
                alt=f"Similarity to the dense network, by block and head: {column.name}",
                on_click=_opener(questions) if block_and_head is not None else None,
            )
    parts = "stage" if questions.stages else "block and head"
    click = f" Click one to open that {'stage' if questions.stages else 'head'} above." if block_and_head is not None else ""
    st.caption(f"{measure} similarity to the dense network by {parts}, 1 = alike.{click}")
    with st.container(width=440):
        title = f"{measure} similarity"
        live.chart(
            attention_charts.map_scale(limits, title, of_similarity=True), key="alike-scale", alt=f"Color scale: {title}"
        )


def _opener(questions: "Questions") -> Callable[[float, float], None]:
    """Opens the head, or the stage, whose cell was clicked."""
    from app.tables.attention import ROLLOUT

    def open_head(head: float, row: float) -> None:
        block = questions.blocks[_cell(row, len(questions.blocks)) - 1]
        queries = [query for query in questions.queries if query != ROLLOUT and block in questions.blocks_with(query)]
        if not questions.stages and not queries:
            return  # its maps cannot be laid over the image
        query = state.chosen("query", questions.queries, questions.queries[0]) if queries else None
        if queries and query not in queries:
            state.choose("query", query := queries[0], questions.queries[0])
        state.choose("block", block, questions.blocks_with(query)[-1])
        if questions.heads:
            state.choose("head", str(_cell(head, questions.heads[block])), MEAN)

    return open_head


def _measured(columns: list[Column], count: int) -> "dict[str, Similarity]":
    """Each pruned network's similarity to the dense one over the first `count` evaluation images, with progress if it takes
    long."""
    from snows.measures.attention import Similarity

    similarities: dict[object, Similarity] = st.session_state.setdefault("similarities", {})
    dense, *pruned = columns
    keys = {column.name: (column.network, dense.images, count) for column in pruned}
    missing = [column for column in pruned if keys[column.name] not in similarities]
    place, begun, done, total = st.empty(), time.monotonic(), 0, len(missing) * count
    for column in missing:
        parts = []
        for start in range(0, count, CHUNK):
            images = dense.inspection.images.evaluation[start : min(start + CHUNK, count)]
            parts.append(_similar(*column.network, (dense.images, start, len(images)), column.inspection, images))
            done += len(images)
            if (taken := time.monotonic() - begun) > 0.3:
                left = duration(taken / done * (total - done))
                place.progress(done / total, f"Comparing the maps of {count} images · about {left} left")
        similarities[keys[column.name]] = Similarity.join(parts)
    place.empty()
    return {name: similarities[key] for name, key in keys.items()}


def _page(run: Run, is_live: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        second = _second_run(run)
        try:
            columns = _columns(run, second, is_live)
        except InputError as error:
            st.info(words.plain(str(error)), icon=":material/info:", width=500)
            return
        try:
            offered = _offered(columns)
        except InputError as error:  # the networks are here, the run's images are not
            offered = None
            st.warning(
                f"{words.plain(str(error))} Images of your own can be looked at meanwhile.",
                icon=":material/warning:",
                width=500,
            )
        _image_controls()
    inspection = columns[0].inspection
    if is_live:
        done = f"{len(inspection.masks)} of {words.counted(len(inspection.sites), 'layer')} pruned"
        st.caption(f":material/play_arrow: So far {done}; the others are still dense.")
    _strip(columns, offered)
    questions = _questions(run.path, run.created(), inspection)
    if questions.note:
        st.caption(f":material/info: {words.plain(questions.note)}")
    chosen = [image for image in chosen_images() if offered is not None or image.startswith(OWN)]
    block_and_head = _maps(columns, questions, chosen)
    if questions.blocks and offered is not None:
        try:
            _alike(columns, questions, block_and_head, is_live)
        except InputError as error:
            st.error(words.plain(str(error)), icon=":material/error:")


run = panels.inspected_run(
    "attention",
    "Does the network still look at the same places?",
    "Where the dense and the pruned network look in an image, and how alike the two are.",
    first="recorded-1-vit-fashion",  # heads and queries are what this page is about, and only a transformer has them
)
if run is not None:
    panels.follow(run, partial(_page, run))
