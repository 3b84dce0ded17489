"""The second card's budget: a slider, how it is spread, and a bar a layer that can be edited.

The pattern's field holds all of it as text (`budget 6.25%, owl`); what is set here is written there, and what is edited in the
table becomes a line of the layers with a pattern of their own.
"""

import hashlib
from typing import Any

import streamlit as st

from app import words
from app.charts import budget as charts
from app.parts import live
from app.tables import budget as tables
from app.work import engine
from snows.config import ALLOCATORS, COUNTS, Budget, Dense, InputError, RunConfig, parse_network_pattern
from snows.plans import budgets

_PATTERN, _OVERRIDES = "form.prune.pattern", "form.prune.overrides"
SHARES = (2.0, 3.0, 4.0, 5.0, 6.25, 8.0, 10.0, 12.5, 16.0, 20.0, 25.0, 35.0, 50.0)  # percent
_NM, _ANY = "N:M patterns", "Any percentage"


def controls(budget: Budget) -> None:
    """The slider and the choices of how it is spread."""
    share = float(f"{100 * budget.share:g}")
    # What the text says is what they show, however it came there.
    st.session_state["budget.share"] = share
    st.session_state["budget.allocate"] = budget.allocate
    st.session_state["budget.by"] = budget.by
    st.session_state["budget.from"] = _NM if budget.patterns else _ANY
    st.select_slider(
        "Kept of the whole network",
        sorted({*SHARES, share}),
        format_func=lambda value: f"{value:g} %",
        key="budget.share",
        on_change=_write,
        args=(budget,),
    )
    with st.popover("How it is spread", icon=":material/tune:", width="stretch"):
        st.selectbox(
            "Which layer gets how much",
            ALLOCATORS,
            format_func=lambda name: words.SPREAD[name].capitalize(),
            key="budget.allocate",
            on_change=_write,
            args=(budget,),
            help=Budget.model_fields["allocate"].description,
        )
        st.selectbox(
            "What is counted",
            COUNTS,
            format_func=lambda name: words.COUNTED[name].capitalize(),
            key="budget.by",
            on_change=_write,
            args=(budget,),
        )
        st.selectbox("A layer gets one of", (_NM, _ANY), key="budget.from", on_change=_write, args=(budget,))


def _write(before: Budget) -> None:
    given = st.session_state
    patterns = () if given["budget.from"] == _ANY else before.patterns or Budget.model_fields["patterns"].default
    budget = Budget(
        share=given["budget.share"] / 100, by=given["budget.by"], allocate=given["budget.allocate"], patterns=patterns
    )
    given[_PATTERN] = str(budget)


def layers(config: RunConfig) -> None:
    """A bar a layer, and the table to edit it. `config`: with a budget."""
    budget = config.prune.pattern
    assert isinstance(budget, Budget)
    if not budgets.is_recorded(config):
        st.caption(
            "Which layer gets what is measured when the run begins, and shown with the run: of this network nothing is "
            "recorded."
        )
        return
    if not engine.ready():
        st.caption("The engine is being loaded. That takes a few seconds.")
        return
    from snows.method.budget import choose, options

    of, own = budgets.layers(config), budgets.fixed(config)
    try:
        choice = choose(of, budget, {name: pattern for name, pattern in own.items() if name in {one.name for one in of}})
    except (InputError, ValueError):
        return  # the bar says it
    patterns = {name: str(pattern) for name, pattern in choice.patterns.items()}
    frame = tables.given(of, patterns, own)
    offered = {str(pattern) for one in of for pattern in options(one.kind, one.shape, budget)} if budget.patterns else set()
    picture = charts.shares(frame, tables.alternatives(of, patterns, offered))
    live.chart(picture, key="budget", alt=tables.sentence(frame))
    st.caption(
        f"Bars: what each layer keeps, {100 * choice.share:.3g} % of the {words.COUNTED[budget.by]} together. Dots: the error "
        "of the network with this layer alone pruned, a ring for each pattern it might get."
    )
    with st.expander("Edit layer by layer", icon=":material/edit:"):
        texts = [str(pattern) for pattern in (budget.patterns or (*_percentages(), Dense()))]
        content = frame[["layer", "keeps", "loss"]]
        # Another table for other contents, so that an edit is taken over once.
        key = "budget.table." + hashlib.sha256(content.to_csv().encode()).hexdigest()[:12]
        st.data_editor(
            content,
            key=key,
            hide_index=True,
            height=280,
            alt="What each layer keeps, to be edited",
            disabled=["layer", "loss"],
            on_change=_edited,
            args=(key, frame["layer"].tolist()),
            column_config={
                "layer": st.column_config.TextColumn("Layer"),
                "keeps": st.column_config.SelectboxColumn(
                    "Keeps", options=list(dict.fromkeys((*texts, *frame["keeps"]))), required=True
                ),
                "loss": st.column_config.NumberColumn("Error alone", format="%.2g"),
            },
        )
        st.caption("What you choose here stands under “Layers with a pattern of their own”; delete its line to give it back.")


def _percentages() -> tuple[Any, ...]:
    return tuple(parse_network_pattern(f"{removed}%") for removed in (99, 98, 97, 95, 92, 90, 85, 80, 70, 50))


def _edited(key: str, names: list[str]) -> None:
    lines = [line for line in str(st.session_state[_OVERRIDES] or "").splitlines() if line.strip()]
    for row, changes in st.session_state[key]["edited_rows"].items():
        if "keeps" in changes:
            name = names[int(row)]
            lines = [line for line in lines if line.rpartition("=")[0].strip().removesuffix(".weight") != name]
            lines.append(f"{name} = {changes['keeps']}")
    st.session_state[_OVERRIDES] = "\n".join(lines)


def draw(text: str, current: Any) -> bool:
    """All of it, if the pattern's `text` is a budget; whether it was. `current` gives the form's config."""
    try:
        budget = parse_network_pattern(text)
    except ValueError:
        return False  # the bar says it
    if not isinstance(budget, Budget):
        return False
    controls(budget)
    try:
        config = current()
    except ValueError:  # the bar says it
        return True
    layers(config)
    return True
