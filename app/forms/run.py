"""The form of a run's settings, what they come to, and Start.

One widget a setting, its key the setting's path in the config, so that form and config cannot drift apart; the solver's part is
drawn from the config's own fields and their descriptions.
"""

from typing import Any, get_args

import streamlit as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app import state, words
from app.charts import layers as layer_charts
from app.forms import sources
from app.tables import run as run_tables
from snows.config import (
    MASKS,
    REFINEMENTS,
    TARGETS,
    UPDATES,
    InputError,
    PruneConfig,
    RunConfig,
    SolverConfig,
    explain,
    parse_pattern,
)
from snows.measures.names import duration, size
from snows.runs.store import ACTIVE, StoreError

PATTERNS = ("2:4", "1:4", "4:8", "1:8", "1:16", "50%", "70%", "90%", "70% global", "90% global")
MASK_WORDS = {
    "magnitude": "Magnitude: drop the smallest weights",
    "wanda": "Wanda: drop the smallest of weight times input",
    "sparsegpt": "SparseGPT: drop what the others best make up for",
    "random": "Random: drop any (a control)",
}
REFINE_WORDS = {
    "none": "No: the mask stays as the scores chose it",
    "layer": "By the layer's own output",
    "window": "By the layer's own output, then by the K operations after it",
}
UPDATE_WORDS = {
    "none": "None: leave their values alone",
    "least-squares": "Least squares: match this layer's own output",
    "sparsegpt": "SparseGPT: one sweep over the columns",
    "snows": "SNOWS: match this layer and the next K operations",
}
TARGET_WORDS = {
    "dense": "The dense network, so earlier losses are repaired too",
    "propagated": "The dense layer, on the pruned network's input",
}


def _flatten(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flatten(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat


def _form_values(config: RunConfig) -> dict[str, Any]:
    content = config.model_dump(exclude={"name": True, "prune": {"pattern", "overrides"}})
    content["class_names"] = "\n".join(config.class_names)
    content["prune"]["pattern"] = str(config.prune.pattern)
    content["prune"]["overrides"] = "\n".join(f"{site} = {pattern}" for site, pattern in config.prune.overrides.items())
    return _flatten(content, "form")


def fill(config: RunConfig) -> None:
    """Put a run's settings into the form. Call it before the form is drawn: in a callback."""
    st.session_state.update(_form_values(config))


def _form_config() -> RunConfig:
    nested: dict[str, Any] = {}
    for key in _form_values(RunConfig()):
        *parents, name = key.split(".")[1:]
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        value = st.session_state[key]
        inner[name] = None if value == "" else value
    if nested["prune"]["update"] != "snows":
        nested["prune"]["sweeps"] = 1  # the field is out of use, as K is
    nested["prune"]["overrides"] = (nested["prune"]["overrides"] or "").splitlines()
    return RunConfig.model_validate(nested)


def prepare(default: RunConfig) -> None:
    """Fill a form that this session has not touched yet."""
    for key, value in _form_values(default).items():
        st.session_state.setdefault(key, value)


def current() -> RunConfig:
    """What the form holds, on whatever page it was filled; see `prepare`. Raises `ValidationError`."""
    return _form_config()


def draw(default: RunConfig) -> None:
    """Every setting of a run, what they come to, and Start. `default` fills a form that this session has not touched yet."""
    prepare(default)
    ready = sources.engine_ready()
    st.fragment(run_every=None if ready else 1)(_form)(ready)


def _form(was_ready: bool) -> None:
    if sources.engine_ready() and not was_ready:
        st.rerun()  # once: now all networks can be offered, and looked up
    settings, outcome = st.columns([5, 4], gap="large")
    with settings:
        config, problem = _settings()
    with outcome:
        if config is None:
            st.error(problem, icon=":material/error:")
        else:
            _outcome(config)


def _kept(path: str) -> dict[str, Any]:
    # What was typed outlives a change of page.
    return {"key": f"form.{path}", "persist_state": "session"}


def _choice(label: str, path: str, options: tuple[str, ...], words: dict[str, str], **more: Any) -> str:
    value = st.session_state[f"form.{path}"]
    options = options if value in options else (*options, value)
    return st.selectbox(label, options, format_func=lambda name: words.get(name, name), **_kept(path), **more)


def _pattern_words(text: str) -> str:
    try:
        return words.pattern_words(parse_pattern(text))
    except ValueError:
        return text


def _settings() -> tuple[RunConfig | None, str]:
    """Draw the settings. Returns what they come to, or why they come to nothing."""
    st.subheader("Network and images", anchor=False)
    sources.presets(fill)
    _choice(
        "Network",
        "model",
        sources.model_names(),
        sources.MODELS,
        accept_new_options=True,
        help="Type a part of a name to search all of timm's and torchvision's networks: `resnet50`, `vit base 224`.",
    )
    network = st.container()
    sources.own_weights()
    data = st.session_state["form.data"]
    _choice(
        "Images",
        "data",
        tuple(sources.DATA),
        {name: sources.data_words(name) for name in (*sources.DATA, data)},
        accept_new_options=True,
        help="The bundled images, a data set to download, or the path of a folder with images of your own.",
    )
    sources.own_images()
    images = st.container()
    left, right = st.columns(2)
    left.number_input(
        "Calibration images",
        step=64,
        **_kept("num_calibration"),
        help="The kept weights are fitted on these. More is steadier and slower.",
    )
    right.number_input(
        "Evaluation images",
        step=1000,
        **_kept("num_evaluation"),
        help="The network is measured on these before and after. None of them is fitted on.",
    )

    st.subheader("Which weights stay", anchor=False)
    patterns = {text: _pattern_words(text) for text in (*PATTERNS, st.session_state["form.prune.pattern"])}
    _choice(
        "Pattern",
        "prune.pattern",
        PATTERNS,
        patterns,
        accept_new_options=True,
        help="N:M keeps N of every M neighboring weights, which some hardware runs faster. A percentage removes that share, "
        "wherever it lies. Type any other: `3:8`, `85%`, `85% global`.",
    )
    _choice(
        "Mask",
        "prune.mask",
        MASKS,
        MASK_WORDS,
        accept_new_options=True,
        help="The rule that picks the weights to keep. Or type the path of a `.safetensors` file: its zeros are the mask.",
    )
    st.checkbox(
        "Prune the classifier too",
        **_kept("prune.prune_classifier"),
        help=PruneConfig.model_fields["prune_classifier"].description,
    )

    with st.expander("Layers with a pattern of their own", icon=":material/layers:"):
        st.text_area(
            "One layer a line",
            placeholder="layer1.0.conv1 = dense\nlayer3.2.conv2 = 1:8",
            **_kept("prune.overrides"),
            help="A layer's name as in the table of layers, then its pattern, or `dense` to leave it as it is.",
        )

    st.subheader("What the kept weights become", anchor=False)
    update = _choice(
        "Update",
        "prune.update",
        UPDATES,
        UPDATE_WORDS,
        help="How the kept weights make up for the removed ones. No labels, no training.",
    )
    refined = update in ("least-squares", "snows") and st.session_state["form.prune.mask"] in MASKS
    _choice(
        "Mask refinement",
        "prune.refine",
        REFINEMENTS,
        REFINE_WORDS,
        disabled=not refined,
        help=PruneConfig.model_fields["refine"].description,
    )
    left, middle, right = st.columns([1, 1, 2])
    middle.number_input(
        "Sweeps",
        step=1,
        disabled=update != "snows",
        **_kept("prune.sweeps"),
        help=PruneConfig.model_fields["sweeps"].description,
    )
    left.number_input(
        "K",
        step=1,
        disabled=update != "snows",
        **_kept("prune.k_steps"),
        help="How many operations after this layer should still compute what they did. 0: this layer alone.",
    )
    with right:
        _choice("Target", "prune.targets", TARGETS, TARGET_WORDS, help="What the layer's output is fitted to.")

    left, _ = st.columns(2)
    left.number_input(
        "Ridge",
        step=1.0,
        format="%g",
        disabled=update == "none",
        **_kept("prune.ridge"),
        help=PruneConfig.model_fields["ridge"].description,
    )
    with st.expander("Solver settings", icon=":material/tune:"):
        for name, setting in SolverConfig.model_fields.items():
            _solver_setting(name, setting)
    with st.expander("Device, precision, seed, images held back", icon=":material/memory:"):
        left, right = st.columns(2)
        left.text_input(
            "Device", help="`auto` takes CUDA where there is one. Or `cpu`, `cuda`, `cuda:1`.", **_kept("prune.device")
        )
        with right:
            _choice("Precision", "prune.precision", ("float32", "float64"), {}, help="`float64` is slower, for checking.")
        left.number_input("Batch size", step=32, help="Images a forward pass, at the most.", **_kept("prune.batch_size"))
        left.number_input(
            "Memory for a layer, GB", step=0.5, help=PruneConfig.model_fields["memory"].description, **_kept("prune.memory")
        )
        right.number_input("Seed", step=1, help="The same seed gives the same result.", **_kept("prune.seed"))
        left.number_input(
            "Images held back",
            step=16,
            **_kept("num_held_back"),
            help=RunConfig.model_fields["num_held_back"].description,
        )
        st.checkbox(
            "Re-estimate batch-norm statistics at the end",
            **_kept("prune.batch_norm_reestimate"),
            help="Helps a mask without an update; after dense targets it lowered accuracy in our trials.",
        )
    # Last, when all is set that bears on it; shown above, where it belongs.
    try:
        config = _form_config()
    except ValidationError as error:
        return None, explain(error)
    with network:
        sources.network(config)
    with images:
        sources.downloads(config)
        sources.images(config)
    return config, ""


def _solver_setting(name: str, setting: FieldInfo) -> None:
    path, label = f"prune.solver.{name}", words.words(name).capitalize()
    if options := get_args(setting.annotation):
        _choice(label, path, options, {option: words.words(option).capitalize() for option in options})
    elif setting.annotation is int:
        st.number_input(label, step=1, **_kept(path))
    else:
        st.number_input(label, step=setting.default / 2, format="%.3g", **_kept(path))
    st.caption(setting.description or "")


@st.cache_data(max_entries=32, show_spinner="Reading the network…")
def _plan(config_json: str) -> Any:
    return state.planner().plan(RunConfig.model_validate_json(config_json))


def _outcome(config: RunConfig) -> None:
    with st.container(border=True):
        st.markdown(f"**{words.pattern_words(config.prune.pattern)}**")
        picture = layer_charts.pattern_picture(run_tables.pattern_grid(config.prune.pattern))
        st.plotly_chart(picture, key="pattern", config={"staticPlot": True}, alt="A small grid of kept and pruned weights")
        st.caption(
            "A made-up corner of a layer: a row is an output, a square a weight. Filled squares stay, faint ones become zero."
        )
    try:
        plan = _plan(config.model_dump_json())
    except (InputError, RuntimeError) as error:
        st.error(str(error), icon=":material/error:")
        return
    names = [words.layer(site.name) for site in plan.sites]
    with st.container(border=True):
        layers, weights = words.counted(len(names), "layer"), words.counted(len(plan.skipped), "weight")
        st.markdown(f"**{layers} will be pruned**, {weights} kept dense")
        with st.expander("Which, and why not the others"):
            st.dataframe(
                run_tables.coverage(plan), hide_index=True, height=280, alt="Each weight: pruned, or why it stays dense"
            )
        if config.prune.update == "snows" and names:
            chosen = st.selectbox(
                "The window of",
                names,
                key="form.window",
                persist_state="session",
                help="The layer, and the K operations after it whose values are kept as they were.",
            )
            site = plan.sites[names.index(chosen) if chosen in names else 0]
            st.markdown(words.operations(site.operations))
    if plan.warning:
        st.warning(words.plain(plan.warning), icon=":material/image_search:")
    with st.container(border=True):
        time_needed, memory = st.columns(2)
        time_needed.metric("Time, about", duration(plan.seconds))
        memory.metric("Memory, about", size(plan.bytes))
        start_button("Start", config, width="stretch", disabled=not names)
        active = sum(run.state() in ACTIVE for run in state.store().list()[:50])
        if active:
            st.caption(f"{active} in work or waiting; this run would wait its turn.")


def start_button(label: str, config: RunConfig, **more: Any) -> None:
    """A button that queues a run and goes to watch it."""
    if st.button(label, type="primary", icon=":material/play_arrow:", **more):
        try:
            run_id = state.jobs().submit(config)
        except StoreError as error:
            st.error(str(error), icon=":material/error:")
        else:
            state.open_run(run_id)
