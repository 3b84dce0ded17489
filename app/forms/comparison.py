"""The form of a comparison: which methods, patterns, K and seeds to try on one network, what that comes to, and Start."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd
import streamlit as st
from pydantic import ValidationError
from streamlit.delta_generator import DeltaGenerator

from app import state, visitor, words
from app.forms import run as form
from app.forms import sources
from app.forms.settings import LABELS
from snows.config import MASKS, REFINEMENTS, TARGETS, UPDATES, InputError, RunConfig, explain
from snows.measures.names import duration
from snows.plans.comparisons import METHODS, USUAL, Method, MethodCard, combinations, describe, expand
from snows.plans.words import labels

T = TypeVar("T")
_KEPT: dict[str, Any] = {"persist_state": "session"}
# What is checked here may be a part of a config, whose fields have no path.
_LABELS = LABELS | {path.rpartition(".")[2]: label for path, label in LABELS.items()}


def draw(on_start: Callable[[str], None]) -> None:
    """The form of a comparison, what it comes to, and Start, which calls `on_start` with the comparison's id."""
    frame(
        "One click queues a run for every combination, on the same network and images. They wait their turn, in this order, "
        "and can be cancelled together or one by one; what is finished stays.",
        _inputs,
        lambda wanted: expand(form.current(), *wanted),
        on_start,
    )


def frame(
    sentence: str, inputs: Callable[[], T], configs: Callable[[T], list[RunConfig]], on_start: Callable[[str], None]
) -> None:
    """Any form of a comparison. `inputs` draws the fields and returns what they hold, `configs` makes the runs of that; what it
    raises is shown."""
    form.prepare(RunConfig())
    visitor.limits()

    def drawn() -> None:
        st.markdown(sentence)
        settings, outcome = st.columns([5, 4], gap="large")
        with settings:
            wanted = inputs()
        with outcome:
            try:
                runs = configs(wanted)
            except ValidationError as error:
                st.error(words.plain(explain(error, _LABELS)), icon=":material/error:")
            except ValueError as error:
                st.error(words.plain(str(error)), icon=":material/error:")
            else:
                _sum_up(runs, on_start)

    st.fragment(drawn)()


def _inputs() -> tuple[list[Method], list[str], list[int], list[int], list[int]]:
    """What `expand` is to combine. The network and the images are those of the Prune page's form, and are set in both."""
    model = st.session_state["form.model"]
    left, right = st.columns(2)
    left.selectbox(
        "Network",
        list(dict.fromkeys((*sources.model_names(), model))),
        format_func=lambda name: sources.MODELS.get(name, name),
        accept_new_options=True,
        key="form.model",
        help="Type a part of a name to search all of timm's and torchvision's networks.",
        **_KEPT,
    )
    images(right)
    num_evaluation(left)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Your own weights or images, the solver and the device: all as they are set on", width="content")
        st.page_link(state.page("prune"), label="Prune", icon=state.PAGES["prune"][1], width="content")
    known = choices(
        "Methods",
        "batch.methods",
        tuple(METHODS),
        list(USUAL),
        {},
        "A mask (which weights stay) with an update (what those become). “As published” fits to the dense layer's output on "
        "the pruned network's input, “dense targets” to the untouched network; a “refined mask” is chosen anew while it is "
        "fitted. What each of the chosen ones does stands below.",
    )
    methods = [METHODS[name] for name in known]
    with st.expander("What each of these does, and where it is from", icon=":material/info:"):
        for name in known:
            _card(name, describe(METHODS[name]))
    with st.expander("Other combinations of mask and update", icon=":material/tune:"):
        masks = choices("Masks", "batch.masks", MASKS, [], form.MASK_WORDS, "How the weights to keep are chosen.")
        updates = choices("Updates", "batch.updates", UPDATES, [], form.UPDATE_WORDS, "What values they take.")
        targets = choices("Targets", "batch.targets", TARGETS, ["dense"], form.TARGET_WORDS, "What they are fitted to.")
        refine = choices("Mask refinement", "batch.refine", REFINEMENTS, ["none"], form.REFINE_WORDS, "For what is fitted.")
        methods += combinations(masks, updates, targets, refine)
    patterns = choices(
        "Patterns",
        "batch.patterns",
        form.PATTERNS,
        ["1:4"],
        {},
        "N:M keeps N of every M neighboring weights; a percentage removes that share. Type any other: `3:8`, `85%`.",
        more=True,
    )
    left, middle, right = st.columns(3)
    with left:
        steps = choices(
            "K",
            "batch.k",
            ("1", "3", "5", "10"),
            ["3"],
            {},
            "How many operations ahead SNOWS looks. Only it has a K.",
            more=True,
        )
    with middle:
        sizes = choices(
            "Calibration images",
            "batch.images",
            ("32", "64", "128", "256", "512", "1024"),
            [str(st.session_state["form.num_calibration"])],
            {},
            "The kept weights are fitted on these. Several numbers show how many are enough, and which method needs fewer.",
            more=True,
        )
    with right:
        seeds = choices(
            "Seeds",
            "batch.seeds",
            ("0", "1", "2"),
            ["0"],
            {},
            "A seed chooses the calibration images. Several show how much of a difference is luck.",
            more=True,
        )
    return methods, patterns, whole(steps), whole(seeds), whole(sizes)


def _card(name: str, card: MethodCard) -> None:
    st.markdown(f"**{words.plain(name)}**. {words.plain(card.idea)}")
    st.caption(words.plain(f"Touches {card.touches}. Cost: {card.cost} From: {'; '.join(card.references)}."))


def images(place: DeltaGenerator) -> None:
    """The Prune form's images, chosen here."""
    place.selectbox(
        "Images",
        list(dict.fromkeys((*sources.data_names(), st.session_state["form.data"]))),
        format_func=sources.data_words,
        accept_new_options=True,
        key="form.data",
        help="The bundled images, a data set to download, or the path of a folder with images of your own.",
        **_KEPT,
    )


def num_evaluation(place: DeltaGenerator) -> None:
    place.number_input(
        "Evaluation images",
        step=1000,
        key="form.num_evaluation",
        help="Every network is measured on the same ones. The more, the smaller the differences that can be told from chance.",
        **_KEPT,
    )


def choices(
    label: str,
    key: str,
    known: Sequence[str],
    default: list[str],
    words: Mapping[str, str],
    meaning: str,
    *,
    more: bool = False,
) -> list[str]:
    """Several of a list, or, with `more`, anything that is typed."""
    chosen = st.session_state.setdefault(key, default)
    options = list(dict.fromkeys((*known, *chosen)))
    return st.multiselect(
        label,
        options,
        key=key,
        format_func=lambda v: words.get(v, v),
        accept_new_options=more,
        help=meaning,
        wrap=True,
        **_KEPT,
    )


def whole(texts: list[str]) -> list[int]:
    # What is no number goes on as it is: the config's own check says what is wrong with it.
    return [int(text) if text.strip().lstrip("-").isdecimal() else text for text in texts]  # type: ignore[misc]


def _sum_up(configs: list[RunConfig], on_start: Callable[[str], None]) -> None:
    """What the runs come to, and Start, which calls `on_start` with the comparison's id."""
    cost = sorted(
        configs, key=lambda c: (c.prune.update == "snows", c.prune.k_steps * c.num_calibration, c.prune.update == "sparsegpt")
    )
    # One by one removals take the time that layers' widths decide, whatever else is dear.
    dearest = {(config.model, config.prune.mask == "obc"): config for config in cost}
    with st.container(border=True):
        st.markdown(f"**{words.counted(len(configs), 'run')}**, in this order")
        names = labels(configs)
        st.dataframe(
            pd.DataFrame({"Run": names, "Pattern": [str(config.prune.pattern) for config in configs]}),
            hide_index=True,
            height=min(36 * len(configs) + 38, 280),
            alt="The runs that would be made",
        )
        try:
            planned = {kind: state.plan(config) for kind, config in dearest.items()}
        except (InputError, RuntimeError) as error:
            st.error(words.plain(str(error)), icon=":material/error:")
            return
        left, right = st.columns(2)
        left.metric(
            "Time, at most about",
            duration(sum(planned[config.model, config.prune.mask == "obc"].seconds for config in configs)),
            help=f"As if each took as long as the dearest, {duration(max(p.seconds for p in planned.values()))}.",
        )
        right.metric(
            "Layers to prune",
            " + ".join(str(len(p.sites)) for p in {model: p for (model, _), p in planned.items()}.values()),
            help="Of the others the Prune page names the reason.",
        )
        for warning in dict.fromkeys(plan.warning for plan in planned.values() if plan.warning):
            st.warning(words.plain(warning), icon=":material/image_search:")
        if st.button(
            f"Start {words.counted(len(configs), 'run')}",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=not all(p.sites for p in planned.values()),
        ):
            try:
                comparison = state.jobs().submit_comparison(configs)
            except (InputError, RuntimeError) as error:
                st.error(words.plain(str(error)), icon=":material/error:")
            else:
                on_start(comparison)
