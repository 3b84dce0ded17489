"""Closer looks at runs side by side: layer by layer, answer by answer, in depth, at attention, at size and speed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from app import state, visitor, words
from app.charts import attention as attention_charts
from app.charts import compare as compare_charts
from app.charts import palette
from app.parts import live
from app.tables import compare, layers
from app.tables.compare import Entry
from app.work import answers
from snows.measures.names import MEASURES
from snows.runs.store import Run

if TYPE_CHECKING:
    from torch import Tensor

    from snows.measures.attention import Similarity
    from snows.measures.comparison import Likeness
    from snows.runs.inspection import Inspection

# Evaluation images in the closer looks, and images a batch that is timed, and how often; fewer where the network is slow.
ANSWERED, REPRESENTED, ATTENDED, TIMED, ROUNDS = 1_000, 64, 64, 32, 11
MOST_FLIPS = 60


def marks(entries: list[Entry]) -> dict[str, palette.Mark]:
    return {entry.label: entry.mark for entry in entries}


def layer_view(entries: list[Entry]) -> None:
    st.markdown("**How wrong each layer's own output is**, at the end, relative to what it was fitted to")
    losses, names = compare.layer_losses(entries, state.log)
    figure = compare_charts.side_by_side_chart(
        losses, names, marks(entries), MEASURES["relative_loss"].axis, log=True, blocks=[layers.block(name) for name in names]
    )
    live.chart(figure, key="compare-layers", alt="Each run's error at every layer, overlaid")
    if len({entry.config.prune.targets for entry in entries}) > 1:
        st.caption(
            "The target is not the same for all: “as published” fits the dense layer's output on the pruned network's input, "
            "and never sees what earlier layers lost. “Representations” measures all against the dense network."
        )
    else:
        st.caption(
            "Read at the layer itself, where runs with another K look at the same values. SNOWS may give way here, to be right "
            "further on: this says how well each fitted, not which network is better. “Representations” measures all against "
            "the dense network."
        )


# What needs the networks opens them once for all runs, since they are of one network.


@st.cache_resource(max_entries=24, show_spinner=False)
def _beside(path: Path, created: float, first: Path, _first: "Inspection") -> "Inspection":
    return _first.beside(Run(path))


def opened(entries: list[Entry]) -> dict[str, "Inspection"]:
    first = state.inspection(entries[0].run)
    return {
        entry.label: _beside(entry.run.path, entry.run.created(), entries[0].run.path, first) if place else first
        for place, entry in enumerate(entries)
    }


@st.cache_data(max_entries=256, show_spinner="Counting multiply-adds …")
def _work(path: Path, created: float, _inspection: "Inspection") -> tuple[int, int]:
    with visitor.turn():
        return _inspection.multiply_adds()


def with_work(entries: list[Entry]) -> list[Entry]:
    """The same runs with the multiply-adds of their masks, for one image, among their measures. Raises `InputError` where a
    run's network cannot be opened."""
    counted = []
    for label, inspection in opened(entries).items():
        entry = next(entry for entry in entries if entry.label == label)
        dense, pruned = _work(entry.run.path, entry.run.created(), inspection)
        metrics = {**entry.metrics, "dense_multiply_adds": dense, "multiply_adds": pruned}
        counted.append(replace(entry, metrics=metrics))
    return counted


def first_of(networks: Mapping[str, "Inspection"]) -> "Inspection":
    return next(iter(networks.values()))


@st.cache_data(max_entries=24, show_spinner=False)
def _seconds_an_image(path: Path, created: float, _inspection: "Inspection") -> float:
    with visitor.turn():
        return answers.seconds_an_image(_inspection)


def affordable(first: "Inspection", passes: int, most: int, least: int = answers.LEAST_IMAGES) -> "Tensor":
    """At most `most` evaluation images, as many as one may wait for, see `answers.affordable`."""
    each = _seconds_an_image(first.run.path, first.run.created(), first)
    return first.images.evaluation[: answers.affordable(each, passes, most, least)]


@st.cache_data(max_entries=48, show_spinner="Asking the networks …")
def _logits(
    path: Path, created: float, stage: str, images_of: Path, count: int, _inspection: "Inspection", _images: "Tensor"
) -> Any:
    with visitor.turn():
        return answers.logits(_inspection, stage, _images)


def answer_view(entries: list[Entry]) -> None:
    from snows.measures import comparison, metrics
    from snows.sources.data import as_pixels

    networks = opened(entries)
    first = first_of(networks)
    images = affordable(first, 1 + len(entries), ANSWERED)
    labels = None if first.images.labels is None else first.images.labels[: len(images)]
    of = first.run.path
    logits = {
        entry.label: _logits(entry.run.path, entry.run.created(), "pruned", of, len(images), networks[entry.label], images)
        for entry in entries
    }
    dense = _logits(of, first.run.created(), "dense", of, len(images), first, images)
    flips = {label: comparison.flips(dense, outputs, labels) for label, outputs in logits.items()}
    count = words.counted(len(images), "evaluation image")

    left, right = st.columns([1, 1], gap="large")
    with left:
        st.markdown(f"**How many answers changed**, of the first {count}")
        st.dataframe(
            compare.flip_counts(flips, len(images)),
            hide_index=True,
            alt="Changed answers of each run",
            column_config={
                "network": st.column_config.TextColumn("Run", width="medium"),
                "changed": st.column_config.NumberColumn("Changed", format="percent"),
                "lost": st.column_config.NumberColumn("Lost", help="The dense network was right, the pruned one is not."),
                "won": st.column_config.NumberColumn("Won", help="Only the pruned network is right."),
                "other": st.column_config.NumberColumn("Other", help="Both are wrong, or there is no label to tell."),
            },
        )
        if labels is not None and len(entries) > 1:
            right_by = {label: metrics.right(outputs, labels) for label, outputs in logits.items()}
            best = max(right_by, key=lambda label: int(right_by[label].sum()))
            st.markdown(f"**Is {words.plain(best)} really better?** Image by image")
            tests = {o: comparison.sign_test(right_by[best], correct) for o, correct in right_by.items() if o != best}
            st.dataframe(
                compare.sign_tests(tests),
                hide_index=True,
                alt=f"Sign test of {best} against each other run",
                column_config={
                    "against": st.column_config.TextColumn("Against", width="medium"),
                    "best_only": st.column_config.NumberColumn(
                        "Only it is right", help=f"Images that only {best} labels rightly."
                    ),
                    "other_only": st.column_config.NumberColumn(
                        "Only the other", help="Images that only the other labels rightly."
                    ),
                    "chance": st.column_config.NumberColumn(
                        "Chance",
                        format="percent",
                        help="How often two equally good networks would part as unevenly (exact sign test, McNemar).",
                    ),
                    "verdict": st.column_config.TextColumn("Difference", help="Real: a chance below 5 %."),
                },
            )
    with right:
        if labels is None:
            st.caption("These images carry no labels, so there is no accuracy by class; agreement stands in for it.")
        else:
            st.markdown("**Accuracy by class**")
            classes = first.model.class_names or tuple(map(str, range(dense.shape[1])))
            by_class = {
                label: (MEASURES["accuracy"].scale * comparison.class_accuracy(outputs, labels)).tolist()
                for label, outputs in {compare.DENSE: dense, **logits}.items()
            }
            accuracies = compare.class_accuracies(by_class, classes)
            names = accuracies.drop_duplicates("index")["class"].tolist()
            figure = compare_charts.side_by_side_chart(
                accuracies, names, {compare.DENSE: DENSE_MARK, **marks(entries)}, MEASURES["accuracy"].axis
            )
            live.chart(figure, key="compare-classes", alt="Accuracy of each run by class")

    st.markdown("**The images whose answer changed**, those that most runs change first")
    kinds = st.pills(
        "Show",
        list(compare.KINDS),
        selection_mode="multi",
        default=["lost"] if labels is not None else None,
        format_func=compare.KINDS.__getitem__,
        key="compare-kinds",
        persist_state="session",
        disabled=labels is None,
    )
    changed = compare.flipped(flips, kinds)
    if changed.empty:
        st.caption("None.")
        return
    if len(changed) > MOST_FLIPS:
        st.caption(f"The first {MOST_FLIPS} of {len(changed)}.")
    changed = changed.head(MOST_FLIPS)
    classes = first.model.class_names

    def named(answer: int | None) -> str:
        if answer == metrics.NO_ANSWER:
            return "no answer (not a number)"
        return "" if answer is None or pd.isna(answer) else classes[int(answer)] if classes else f"output {int(answer)}"

    said = changed.drop(columns="image").map(named)
    said.insert(
        0, "picture", [attention_charts.picture_address(as_pixels(images[i]), longest_edge=112) for i in changed["image"]]
    )
    said.insert(1, "image", changed["image"].astype(int))
    st.dataframe(
        said.drop(columns="label") if labels is None else said,
        hide_index=True,
        row_height=56,
        height=430,
        alt="Images whose answer changed, with the dense network's answer and each run's",
        column_config={
            "picture": st.column_config.ImageColumn("", width=70),
            "image": st.column_config.NumberColumn("Image", width=70),
            "label": st.column_config.TextColumn("Label"),
            "dense": st.column_config.TextColumn("Dense network says"),
        },
    )
    st.caption("An empty cell: that run gives the dense network's answer.")


DENSE_MARK = palette.Mark.of("dense", 0)


@st.cache_data(max_entries=8, show_spinner="Comparing the networks layer by layer …")
def _by_depth(
    versions: tuple[tuple[str, Path, float], ...], count: int, _networks: "dict[str, Inspection]"
) -> "list[Likeness]":
    from snows.measures import comparison

    first = first_of(_networks)
    images = first.images.evaluation[:count]
    sites = {site.name: site for inspection in _networks.values() for site in inspection.sites}
    tensors = {label: inspection.parameters("pruned") for label, inspection in _networks.items()}
    with visitor.turn():
        return comparison.by_depth(first.graph, images, list(sites.values()), tensors)


def versions(entries: list[Entry]) -> tuple[tuple[str, Path, float], ...]:
    return tuple((entry.label, entry.run.path, entry.run.created()) for entry in entries)


LIKENESS = ("cka", "cosine", "error")


def depth_view(entries: list[Entry]) -> None:
    measure = st.segmented_control(
        "How alike a layer's output is to the dense network's",
        LIKENESS,
        format_func=lambda name: MEASURES[name].title,
        required=True,
        **state.addressed("likeness", LIKENESS, "cka"),
        help="\n".join(f"- **{MEASURES[name].title}**: {MEASURES[name].meaning}" for name in LIKENESS),
    )
    st.markdown("**How near each network stays to the dense one**, from its first layers to its output")
    networks = opened(entries)
    count = len(affordable(first_of(networks), 1 + len(entries), REPRESENTED))
    values, names = compare.likenesses(_by_depth(versions(entries), count, networks), measure)
    figure = compare_charts.side_by_side_chart(
        values,
        names,
        marks(entries),
        MEASURES[measure].axis,
        log=MEASURES[measure].log,
        blocks=[layers.block(name) for name in names],
    )
    live.chart(figure, key=f"compare-{measure}", alt=f"{MEASURES[measure].title} of each run with the dense network, by layer")
    st.caption(
        f"On {count} evaluation images, from the first pruned layer down to the network's output. Where a line turns "
        "back towards the dense network, later layers have made up for earlier ones."
    )


@st.cache_data(max_entries=24, show_spinner="Comparing where the networks look …")
def _similarity(
    path: Path, created: float, images_of: Path, count: int, _inspection: "Inspection", _images: "Tensor"
) -> "Similarity":
    from snows.measures.attention import similarity

    with visitor.turn():
        return similarity(_inspection.graph, _images, _inspection.parameters("pruned"))


def attention_view(entries: list[Entry]) -> None:
    from app.tables import attention as attention_tables

    networks = opened(entries)
    first = first_of(networks)
    images = affordable(first, 2 * len(entries), ATTENDED)
    try:
        similarities = {
            e.label: _similarity(e.run.path, e.run.created(), first.run.path, len(images), networks[e.label], images)
            for e in entries
        }
    except ValueError as error:
        st.info(words.plain(str(error)), icon=":material/info:")
        return
    preserved = attention_tables.preservation(similarities)
    spreads = {
        label: attention_tables.spread(preserved.loc[preserved["network"] == label, "preserved"]) for label in similarities
    }
    st.markdown("**How much of where it looked each network kept**")
    methods = {entry.label: entry.config.prune.update for entry in entries}
    live.chart(
        attention_charts.preservation_chart(preserved, methods, spreads),
        key="compare-attention",
        alt="Attention preservation of each run",
    )
    st.caption(
        f"{MEASURES['preserved'].meaning} A point an image, of {len(images)}; the diamond is the mean, the bar the middle "
        "80 %. Of a convolutional network it is where each stage's channels are active."
    )
    with st.container(horizontal=True, gap="medium"):
        for entry in entries[:4]:
            st.page_link(
                state.page("attention"),
                label=f"See the maps of {words.plain(entry.label)}",
                icon=":material/visibility:",
                query_params={"run": entry.run.id},
            )


@st.cache_data(max_entries=8, show_spinner="Timing the networks, in turns …")
def _latencies(
    versions: tuple[tuple[str, Path, float], ...], count: int, measured: int, _networks: "dict[str, Inspection]"
) -> tuple[dict[str, list[float]], str]:
    import torch

    from snows.measures import comparison
    from snows.method.coverage import channels_last_if_faster, resolve_device

    device = resolve_device("auto")
    first = first_of(_networks)
    images = first.images.evaluation[:count]
    layout = channels_last_if_faster(first.model.module, images)
    modules = {compare.DENSE: comparison.with_weights(first.model.module, first.model.module.state_dict())}
    for label, inspection in _networks.items():
        if inspection.final is not None:
            modules[label] = inspection.network()
    placed = {label: module.to(device=device, memory_format=layout) for label, module in modules.items()}  # type: ignore[call-overload]
    with visitor.turn():
        seconds = comparison.latencies(placed, images.to(device).contiguous(memory_format=layout), ROUNDS)
    return seconds, torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def speed_view(entries: list[Entry]) -> None:
    from snows.measures import metrics
    from snows.measures.runtimes import two_of_four_obstacle

    networks = opened(entries)
    measured = st.session_state.setdefault("compare-measured", 0)
    count = len(affordable(first_of(networks), (1 + len(entries)) * (1 + ROUNDS), TIMED, least=1))
    seconds, device = _latencies(versions(entries), count, measured, networks)
    sizes, obstacles = {}, {}
    for label, inspection in networks.items():
        sizes[label] = inspection.size()
        obstacles[label] = {
            s.name: two_of_four_obstacle(s.shape, inspection.covered.patterns[s.name]) for s in inspection.sites
        }

    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Size on disk**")
        live.chart(
            compare_charts.sizes_chart(compare.sizes(sizes)), key="compare-sizes", alt="Size of each run's weights by form"
        )
    with right:
        st.markdown(f"**Time for a batch of {count}** on this machine")
        figure = compare_charts.times_chart(compare.times(seconds), marks(entries))
        live.chart(figure, key="compare-times", alt="Time of each network for a batch")
        if st.button("Measure again", icon=":material/refresh:"):
            st.session_state["compare-measured"] = measured + 1
            st.rerun()
        if state.store().active():
            st.caption(
                ":material/info: A run is at work, which slows all of these down alike. Measure again when it has ended."
            )

    st.markdown("**Why it is, or is not, smaller and faster here**")
    label = entries[0].label
    if len(entries) > 1:
        label = st.selectbox("Of", list(networks), key="compare-why", persist_state="session", width=400)
    chosen = next(entry for entry in entries if entry.label == label)
    inspection = networks[label]
    file = chosen.run.weights_path.stat().st_size
    density = chosen.metrics.get("density") or metrics.density(inspection.masks)
    st.markdown(compare.why_smaller(*sizes[label], file, str(chosen.config.prune.pattern), density, is_cut=inspection.is_cut))
    dense, pruned = _work(chosen.run.path, chosen.run.created(), inspection)
    eligible = sum(reason is None for reason in obstacles[label].values())
    if label in seconds:
        st.markdown(
            compare.why_faster(
                *(seconds[compare.DENSE], seconds[label], pruned / dense, eligible, len(inspection.sites), device),
                is_cut=inspection.is_cut,
            )
        )
    with st.expander("Which layers suit 2:4 kernels", icon=":material/memory:"):
        st.dataframe(
            compare.kernels(obstacles[label], {site.name: site.shape for site in inspection.sites}),
            hide_index=True,
            height=280,
            alt="Each pruned layer: eligible for 2:4 kernels, or why not",
            column_config={
                "layer": st.column_config.TextColumn("Layer"),
                "shape": st.column_config.TextColumn("Shape"),
                "eligible": st.column_config.CheckboxColumn(
                    "Eligible", help="By pattern and shape, on a GPU, in half precision."
                ),
                "reason": st.column_config.TextColumn("Why not", width="large"),
            },
        )
