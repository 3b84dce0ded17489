"""The form of a run's settings: three cards, and a bar that says what they come to and starts it.

One widget a setting, its key the setting's path in the config (`app.forms.settings`); the solver's part is drawn from the
config's own fields and their descriptions. What differs from the form as it was opened stands in the page's address.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import streamlit as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app import state, visitor, words
from app.charts import layers as layer_charts
from app.forms import budget, settings, sources
from app.forms.settings import LABELS
from app.parts import live, speed
from app.tables import run as run_tables
from app.work import engine, public
from snows.config import (
    JOINTS,
    MASKS,
    MASKS_OF_UNITS,
    REFINEMENTS,
    TARGETS,
    UPDATES,
    InputError,
    PruneConfig,
    RunConfig,
    SolverConfig,
    Structured,
    explain,
    parse_network_pattern,
    parse_pattern,
)
from snows.measures.names import duration_range, size
from snows.method import cards

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from snows.runs.estimate import Plan

PATTERNS = ("2:4", "1:4", "4:8", "1:8", "1:16", "50%", "70%", "90%", "70% global", "90% global", "width 50%")
BUDGET = "budget 6.25%"
_MASK_CARDS = cards.MASKS | cards.UNIT_MASKS
MASK_WORDS = {name: f"{card.name}: {card.short}" for name, card in _MASK_CARDS.items()}
REFINE_WORDS = {
    "none": "No: the mask stays as the scores chose it",
    "layer": "By the layer's own output",
    "window": "By the layer's own output, then by the K operations after it",
}
JOINT_WORDS = {
    "none": "No: each layer is fitted on its own",
    "network": "Yes: after that, the whole network's weights move together",
    "answers": "Yes, and toward the dense network's answers alone",
}
UPDATE_WORDS = {name: f"{'None' if name == 'none' else card.name}: {card.short}" for name, card in cards.UPDATES.items()}
TARGET_WORDS = {
    "dense": "The dense network, so earlier losses are repaired too",
    "propagated": "The dense layer, on the pruned network's input",
}


_SAID = "form said"
# Streamlit leaves room there for a chat; a phone's window has none to give away.
_BAR_STYLE = """<style>
[data-testid="stBottomBlockContainer"] { padding-top: 0.5rem; padding-bottom: 0.75rem; }
@media (max-width: 640px) { .st-key-bar p { font-size: 0.85rem; line-height: 1.4; } }
</style>"""
_PLANS, _MOST_PLANS = "plans", 8
_MOST_OPERATIONS = 8  # of a window that a card shows


def fill(config: RunConfig) -> None:
    """Put a run's settings into the form. Call it before the form is drawn: in a callback."""
    st.session_state.update(settings.values(config))


def prepare(default: RunConfig) -> None:
    """Fill a form that this session has not touched yet."""
    for key, value in settings.values(default).items():
        st.session_state.setdefault(key, value)


def current() -> RunConfig:
    """What the form holds, on whatever page it was filled; see `prepare`. Raises `ValidationError`, and `InputError` for what a
    visitor may not run, before anything that it names is opened."""
    config = settings.config(_fields())
    if public.is_public():
        public.check(config, visitor.home())
    return config


def _fields() -> dict[str, Any]:
    return {key: st.session_state[key] for key in settings.DEFAULTS}


def draw(default: RunConfig, *, pinned: bool) -> None:
    """Every setting of a run, what they come to, and Start. `default` fills a form that this session has not touched yet.
    `pinned`: whether the bar stays at the bottom of the window, or ends the form."""
    _recall(default)
    prepare(default)
    ready = engine.ready()
    visitor.limits()
    place = st.container()
    bar = (st.bottom if pinned else st).container(border=True, key="bar")
    with place:
        st.fragment(run_every=None if ready else 1)(_form)(ready, default, bar)


def _recall(default: RunConfig) -> None:
    """Take over what the address says, unless it is what the form wrote there."""
    said = {name: text for name in settings.NAMES if (text := state.asked(name)) is not None}
    if said != st.session_state.get(_SAID, {}):
        st.session_state.update(settings.from_address(said, settings.values(default), visitor.home()))
        st.session_state[_SAID] = said


def _remember(default: RunConfig) -> None:
    """Say in the address what is not as it was when the form was opened."""
    st.session_state[_SAID] = said = settings.to_address(_fields(), settings.values(default))
    state.say_all(said, settings.NAMES)


@dataclass(frozen=True)
class _Places:
    """Where in the cards is shown what is known only when all of them are filled in."""

    network: Any
    images: Any
    layers: Any
    coverage: Any
    window: Any
    window_choice: Any


def _form(was_ready: bool, default: RunConfig, bar: Any) -> None:
    if engine.ready() and not was_ready:
        st.rerun()  # once: now all networks can be offered, and looked up
    first, second, third = st.columns(3, gap="medium")
    with first.container(border=True, height="stretch"):
        network, images, prepared = _network_and_images()
    with second.container(border=True, height="stretch"):
        layers, coverage = _what_stays()
    with third.container(border=True, height="stretch"):
        window, window_choice = _how_refitted()
    _remember(default)
    # Last, when all is set that bears on it; shown above, where it belongs.
    places = _Places(network, images, layers, coverage, window, window_choice)
    with bar:
        st.html(_BAR_STYLE)  # before what it holds is worked out, so that the wait is seen where the answer will be
        try:
            config = current()
        except ValueError as error:
            problem = explain(error, LABELS) if isinstance(error, ValidationError) else str(error)
            with places.network:
                st.error(words.plain(problem), icon=":material/error:")
            _bar(None, None, problem)
            return
        with prepared:
            sources.preparation(config)
        plan, problem = _looked_at(config, places)
        _bar(config, plan, problem)


def _looked_at(config: RunConfig, places: _Places) -> tuple["Plan | None", str]:
    """What the run would do, shown in the cards; or why it cannot work."""
    with places.network:
        problem = sources.network(config)
    with places.images:
        sources.downloads(config)
        problem = problem or sources.images(config)
    if problem:
        return None, problem
    try:
        plan = state.plan(config)
        st.session_state[_PLANS] = dict(
            [*st.session_state.get(_PLANS, {}).items(), (config.model_dump_json(), plan)][-_MOST_PLANS:]
        )
    except (InputError, RuntimeError) as error:
        with places.layers if config.prune.mask_from_file else places.network:
            return None, sources.refused(str(error), config)
    with places.layers:
        layers, weights = words.counted(len(plan.sites), "layer"), words.counted(len(plan.skipped), "weight")
        st.markdown(f"**{layers} will be pruned**, {weights} kept dense")
        if plan.sites:
            speed.expected(config)
    with places.coverage:
        st.dataframe(run_tables.coverage(plan), hide_index=True, height=240, alt="Each weight: pruned, or why it stays dense")
    if plan.warning:
        with places.images:
            st.warning(words.plain(plan.warning), icon=":material/image_search:")
    if config.prune.update == "snows" and plan.sites:
        with places.window:
            _window(plan, places.window_choice)
    if not plan.sites:
        return (
            plan,
            "No layer of this network can be pruned so. The list of layers, under “More”, says why; try another pattern.",
        )
    if not engine.ready():
        return plan, "The engine is being loaded. That takes a few seconds."
    return plan, ""


def _kept(path: str) -> dict[str, Any]:
    # What was typed outlives a change of page.
    return {"key": f"form.{path}", "persist_state": "session"}


def _choice(path: str, options: tuple[str, ...], words: Callable[[str], str], **more: Any) -> str:
    value = st.session_state[f"form.{path}"]
    options = options if value in options else (*options, value)
    return st.selectbox(LABELS[path], options, format_func=words, **_kept(path), **more)


def _number(path: str, step: float, **more: Any) -> None:
    st.number_input(LABELS[path], step=step, **_kept(path), **more)


def pattern_words(text: str) -> str:
    """A pattern in plain words; what is none as it was typed."""
    try:
        return words.pattern_words(parse_network_pattern(text))
    except ValueError:
        return text


def _named(names: dict[str, str]) -> Callable[[str], str]:
    return lambda name: names.get(name, name)


def _heading(number: int, title: str) -> None:
    st.header(f"{number}\N{EN SPACE}{title}", anchor=False)


def _network_and_images() -> tuple[Any, Any, Any]:
    _heading(1, "Network and images")
    sources.network_choice()
    network = st.container(gap="small")
    _choice(
        "data",
        sources.data_names(),
        sources.data_words,
        help="The images that come with the app, or a data set to download. Pictures of your own are brought under “More”.",
    )
    images = st.container(gap="small")
    with st.expander("More: how many, your own" + ("" if public.is_public() else ", presets")):
        left, right = st.columns(2)
        with left:
            _number("num_calibration", 64, help="The kept weights are fitted on these. More is steadier and slower.")
        with right:
            _number(
                "num_evaluation", 1000, help="The network is measured on these before and after. None of them is fitted on."
            )
        if not public.is_public():  # most of them would have to be downloaded
            sources.presets(fill)
        sources.own_weights()
        sources.own_images()
        prepared = st.container()
    return network, images, prepared


def _what_stays() -> tuple[Any, Any]:
    _heading(2, "What stays")
    _choice(
        "prune.pattern",
        (*PATTERNS, BUDGET),
        pattern_words,
        accept_new_options=True,
        help="N:M keeps N of every M neighboring weights, which some hardware runs faster. A percentage removes that share, "
        "wherever it lies. A width cuts whole units and attention heads away, so that the network is smaller and faster "
        "everywhere. A budget gives each layer a pattern of its own. Type any other: `3:8`, `85%`, `85% global`, `heads 30%`, "
        "`budget 10%`.",
    )
    rules = MASKS_OF_UNITS if _of_units(st.session_state["form.prune.pattern"]) else MASKS
    mask = _choice("prune.mask", rules, _mask_words, help=_mask_help(st.session_state["form.prune.mask"]))
    if mask in _MASK_CARDS:
        st.caption(words.plain(_MASK_CARDS[mask].idea))
    if not budget.draw(st.session_state["form.prune.pattern"], current):
        _sketch(st.session_state["form.prune.pattern"])
    layers = st.container(gap="small")
    with st.expander("More: single layers, a mask of your own"):
        st.checkbox(
            LABELS["prune.prune_classifier"],
            **_kept("prune.prune_classifier"),
            help=PruneConfig.model_fields["prune_classifier"].description,
        )
        st.text_area(
            LABELS["prune.overrides"],
            placeholder="layer1.0.conv1 = dense\nlayer3.2.conv2 = 1:8",
            **_kept("prune.overrides"),
            help="One a line: a layer's name as in the list below, then its pattern, or `dense` to leave it as it is.",
        )
        sources.mask_file()
        st.markdown("**Which layers, and why not the others**")
        coverage = st.container()
    return layers, coverage


def _of_units(text: str) -> bool:
    with suppress(ValueError):
        return isinstance(parse_pattern(text), Structured)
    return False


def _mask_words(name: str) -> str:
    return MASK_WORDS.get(name, f"Of the file {name.rpartition('/')[2]}")


def _mask_help(mask: str) -> str:
    rule = "The rule that picks the weights to keep. Or bring a mask, under “More”."
    if mask not in _MASK_CARDS:
        return rule
    card = _MASK_CARDS[mask]
    return "\n\n".join([rule, words.plain(f"{card.name}, from {card.reference}."), words.plain(f"It costs: {card.cost}")])


def _sketch(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except ValueError:
        return  # the bar says it
    picture = layer_charts.pattern_picture(run_tables.pattern_grid(pattern))
    live.chart(picture, key="pattern", alt=f"A made-up corner of a layer. {pattern_words(text)}")
    gone = "faint ones are cut away" if isinstance(pattern, Structured) else "faint ones become zero"
    st.caption(f"A made-up corner of a layer: a row is an output, a square a weight. Filled squares stay, {gone}.")


def _how_refitted() -> tuple[Any, Any]:
    _heading(3, "How it is refitted")
    update = _choice(
        "prune.update",
        UPDATES,
        _named(UPDATE_WORDS),
        help="How the kept weights make up for the removed ones. No labels, no training.",
    )
    _number(
        "prune.k_steps",
        1,
        disabled=update != "snows",
        help="How many operations after this layer should still compute what they did. 0: this layer alone. Only SNOWS looks "
        "ahead.",
    )
    window = st.container(gap="small")
    with st.expander("More: mask refinement, joint fit, target, solver"):
        of_units = _of_units(st.session_state["form.prune.pattern"])
        refined = update in ("least-squares", "snows") and st.session_state["form.prune.mask"] in MASKS and not of_units
        _choice(
            "prune.refine",
            REFINEMENTS,
            _named(REFINE_WORDS),
            disabled=not refined,
            help=PruneConfig.model_fields["refine"].description,
        )
        _choice("prune.targets", TARGETS, _named(TARGET_WORDS), help="What the layer's output is fitted to.")
        together = _choice("prune.joint", JOINTS, _named(JOINT_WORDS), help=PruneConfig.model_fields["joint"].description)
        help_words = PruneConfig.model_fields["joint_epochs"].description
        _number("prune.joint_epochs", 5, disabled=together == "none", help=help_words)
        left, right = st.columns(2)
        with left:
            _number("prune.sweeps", 1, disabled=update != "snows", help=PruneConfig.model_fields["sweeps"].description)
        with right:
            help_words = PruneConfig.model_fields["ridge"].description
            _number("prune.ridge", 1.0, format="%g", disabled=update == "none", help=help_words)
        with st.popover("Solver", icon=":material/tune:", width="stretch"):
            for name, setting in SolverConfig.model_fields.items():
                _solver_setting(name, setting)
        with st.popover("Device, precision, seed", icon=":material/memory:", width="stretch"):
            _machine()
        choice = st.container()
    return window, choice


def _machine() -> None:
    if not public.is_public():
        st.text_input(
            LABELS["prune.device"],
            help="`auto` takes CUDA where there is one. Or `cpu`, `cuda`, `cuda:1`.",
            **_kept("prune.device"),
        )
    _choice("prune.precision", ("float32", "float64"), str, help="`float64` is slower, for checking.")
    _number("prune.batch_size", 32, help="Images a forward pass, at the most.")
    _number("prune.memory", 0.5, help=PruneConfig.model_fields["memory"].description)
    _number("prune.seed", 1, help="The same seed gives the same result.")
    _number("num_held_back", 16, help=RunConfig.model_fields["num_held_back"].description)
    st.checkbox(
        LABELS["prune.repair"],
        **_kept("prune.repair"),
        help=f"{PruneConfig.model_fields['repair'].description} Helps a mask without an update, and little after one.",
    )
    st.checkbox(
        LABELS["prune.batch_norm_reestimate"],
        **_kept("prune.batch_norm_reestimate"),
        help="Helps a mask without an update; after dense targets it lowered accuracy in our trials.",
    )


def _solver_setting(name: str, setting: FieldInfo) -> None:
    path = f"prune.solver.{name}"
    if options := get_args(setting.annotation):
        _choice(path, options, lambda option: words.words(option).capitalize())
    elif setting.annotation is int:
        _number(path, 1)
    else:
        _number(path, setting.default / 2, format="%.3g")
    st.caption(setting.description or "")


def planned(config: RunConfig) -> "Plan | None":
    """What was worked out for a run of this config, if this session has seen its form."""
    return st.session_state.get(_PLANS, {}).get(config.model_dump_json())


def _window(plan: "Plan", choice: Any) -> None:
    names = [words.layer(site.name) for site in plan.sites]
    if st.session_state.get("form.window") not in names:
        st.session_state["form.window"] = names[0]
    chosen = choice.selectbox(
        "The layer shown above",
        names,
        key="form.window",
        persist_state="session",
        help="Which layer's window the card shows: the layer, and the K operations after it.",
    )
    operations = plan.sites[names.index(chosen)].operations
    st.caption(f"`{chosen}`, for one, is fitted so that these still compute what they did:")
    st.markdown(words.operations(operations[:_MOST_OPERATIONS]))
    if (rest := len(operations) - _MOST_OPERATIONS) > 0:
        st.caption(f"and {words.counted(rest, 'operation')} after them")


def _bar(config: RunConfig | None, plan: "Plan | None", problem: str) -> None:
    """What will be done, what it takes, and Start; or why it cannot start."""
    told, button = st.columns([5, 1], vertical_alignment="center", gap="medium")
    refused = st.container()  # a sentence has no room below the button
    with button:
        # Fields stand before it in the order of the keyboard, and what a run showed; one need not pass them.
        disabled = bool(problem) or config is None
        start_button("Start", config, refused, width="stretch", disabled=disabled, key="start", shortcut="Ctrl+Enter")
    with told:
        if problem:
            # The remedy stands in the card that it is about.
            reason = re.split(r"(?<=[.!?])\s+(?=[A-Z])", problem, maxsplit=1)[0]
            st.markdown(f":material/block: **It cannot start.** {words.plain(reason)}")
        elif config is not None and plan is not None:
            _told(config, plan)


def _told(config: RunConfig, plan: "Plan") -> None:
    update = UPDATE_WORDS[config.prune.update].partition(":")[0]
    parts = [
        f"**{words.plain(sources.model_words(config.model))}**",
        pattern_words(str(config.prune.pattern)).replace("Keep", "keep", 1),
        words.counted(len(plan.sites), "layer"),
        f"{update}, K = {config.prune.k_steps}" if config.prune.update == "snows" else update.lower(),
        f"about **{duration_range(*plan.range)}**",
        f"**{size(plan.bytes)}** of memory",
    ]
    st.markdown(" · ".join(parts))
    notes = []
    if plan.busy:
        notes.append("This machine is busy with other work, so it may well take longer.")
    if active := len(state.store().active()):
        notes.append(f"{active} in work or waiting; this run would wait its turn.")
    if notes:
        st.caption(" ".join(notes))


def start_button(label: str, config: RunConfig | None, refused: "DeltaGenerator | None" = None, **more: Any) -> None:
    """A button that queues a run and goes to watch it. `refused`: where it is said why not; else below the button."""
    if st.button(label, type="primary", icon=":material/play_arrow:", **more) and config is not None:
        try:
            run_id = state.jobs().submit(config)
        except (InputError, RuntimeError) as error:
            (refused or st).error(words.plain(str(error)), icon=":material/error:")
        else:
            state.open_run(run_id)
