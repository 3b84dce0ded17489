"""All runs in one table, and what can be done with those that are ticked. The address names them: `?run=ID&find=WORDS`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from pydantic import ValidationError

from app import state, take_along, visitor, words
from app.forms import run as form
from app.parts import panels
from app.tables import runs
from app.work import public, views
from snows.config import MASKS, REFINEMENTS, TARGETS, UPDATES, InputError, RunConfig, explain
from snows.measures.names import MEASURES
from snows.plans.words import name_of
from snows.runs import archive
from snows.runs.store import ACTIVE, TRASH_SECONDS, Labels, Run, StoreError

STATES = ("running", "queued", "finished", "failed", "cancelled", "interrupted")
# What "again, with one change" offers: the setting, its name, values one may want, and their words.
CHANGES: dict[str, tuple[str, Sequence[object], dict[str, str]]] = {
    "prune.pattern": ("Pattern: which weights stay", form.PATTERNS, {}),
    "prune.k_steps": ("K: how many operations ahead", (0, 1, 3, 5, 10), {}),
    "prune.update": ("Update: what the kept weights become", UPDATES, form.UPDATE_WORDS),
    "prune.targets": ("Target: what to reproduce", TARGETS, form.TARGET_WORDS),
    "prune.mask": ("Mask: how the weights are chosen", MASKS, form.MASK_WORDS),
    "prune.refine": ("Mask refinement: whether it is chosen anew", REFINEMENTS, form.REFINE_WORDS),
    "prune.ridge": ("Ridge: the pull toward the dense values", (0.0, 1.0, 4.0, 16.0), {}),
    "num_calibration": ("Calibration images", (64, 128, 256, 512, 1024, 2048), {}),
    "num_held_back": ("Images held back", (0, 16, 32, 64, 128), {}),
    "prune.seed": ("Seed: which random draws", (0, 1, 2), {}),
    "prune.solver.newton_steps": ("Newton steps a layer", (1, 2, 3, 5), {}),
    "prune.solver.rtol": ("Rtol: when conjugate gradient stops", (0.3, 0.1, 0.01), {}),
    "prune.solver.damping": ("Damping", (0.0, 1e-4, 1e-3, 1e-2), {}),
}
# How long a deleted run can be had back.
KEPT = f"for {round(TRASH_SECONDS / 86400)} days"
KEPT_IN_PUBLIC = "until {hours} hours after it was made"
PAGES = ("prune", "layers", "convergence", "attention")


def show() -> None:
    heading = st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute", gap="large")
    heading.title("What has been tried, and what came of it?", anchor=False, width="content")
    with heading, st.container(horizontal=True, vertical_alignment="bottom", width="content"):
        if not public.is_public():  # it reads any run's folder of the machine, and takes in anybody's
            import_form()
        visitor.sign_out()
    st.markdown("Every run with its settings and its result. Tick one to name it, open it, take it along, or run it again.")
    visitor.limits()
    undo_bar()
    if problem := st.session_state.pop("runs-problem", ""):
        st.error(words.plain(problem), icon=":material/error:")
    # A place each, so that what comes and goes does not make Streamlit build the next part anew.
    table, chosen = st.container(), st.container()
    with table:
        every = runs.table(state.store().list(), state.recorded_runs().list())
        matching = runs.filtered(every, *filters(every))
        by, columns = layout()
        most = len(matching) if st.session_state.get("runs-all") else runs.MOST
        at_work = matching["state"].map(runs.base_state).isin(ACTIVE).any()
        st.fragment(run_every=1 if at_work else None)(draw_table)(matching, len(matching) < len(every), by, columns, most)
        if len(matching) > runs.MOST:
            how_many_are_shown(len(matching))
    with chosen:
        ticked(state.asked_all("run"))
    trash()


# --- the table ---


def how_many_are_shown(matching: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        said = f"The newest {runs.MOST} of {matching:,} runs are shown; the filters above look through all of them."
        st.caption(f"All {matching:,} runs are shown." if st.session_state.get("runs-all") else said, width="content")
        st.toggle("Show all", key="runs-all", help="The table takes some seconds to draw, each time.")


def filters(every: pd.DataFrame) -> tuple[str, list[str], list[str], bool]:
    words, states, tags, marked = st.columns([3, 5, 2, 2])
    marked.space("small")  # to the height of the others' labels
    known = sorted({tag for row in every["tags"] for tag in row})
    return (
        words.text_input("Find", placeholder="Name, network, pattern, tag …", **state.addressed("find", None, "")),
        states.pills("State", STATES, selection_mode="multi", **state.addressed("state", STATES, [])),
        tags.multiselect("Tags", known, placeholder="Any", **state.addressed("tag", known, [])),
        marked.toggle(
            "Marked only",
            help="Runs that you marked, so as to set them side by side later.",
            **state.addressed("marked", None, False),
        ),
    )


def layout() -> tuple[str, list[str]]:
    """How the table is laid out: by what runs are put together, and which columns it has. Drawn with the saved views."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        by = st.selectbox(
            "Group by",
            options := ["", *runs.GROUPS],
            format_func=lambda name: COLUMNS[name]["label"] if name else "Nothing",
            width=160,
            **state.addressed("group", options, ""),
        )
        with st.popover("Columns", icon=":material/view_column:"):
            columns = st.pills(
                "Columns of the table",
                list(TITLES),
                selection_mode="multi",
                format_func=TITLES.__getitem__,
                **state.addressed("column", list(TITLES), list(USUAL)),
            )
        saved_views()
    return by, [name for name in TITLES if name in columns]


def saved_views() -> None:
    """Filters, grouping and columns under a name, to come back to."""
    saved = views.read(visitor.home())
    number = st.session_state.setdefault("views-saved", 0)
    with st.popover("Saved views", icon=":material/bookmarks:", key=f"views-{number}"):
        if not saved:
            st.caption("None yet. A view is what is looked for, how it is grouped, and which columns are shown.")
        for name, said in saved.items():
            with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
                st.page_link(state.page("runs"), label=words.plain(name), icon=":material/bookmark:", query_params=said)
                if st.button("Remove", icon=":material/close:", type="tertiary", key=f"remove-view-{name}"):
                    keep(views.remove, name)
        called = st.text_input("Name of what is shown now", max_chars=60, key=f"view-name-{number}", placeholder="Best at 1:8")
        if st.button("Save this view", icon=":material/save:", disabled=not called.strip(), key=f"save-view-{number}"):
            keep(views.save, called.strip(), state.said(VIEWED))


def keep(act: Callable[..., None], *what: Any) -> None:
    """Change the saved views; why that failed is said when the page is drawn next."""
    try:
        act(visitor.home(), *what)
    except OSError as error:
        st.session_state["runs-problem"] = f"The view was not kept: {error.strerror}. Make room or check the folder's rights."
    st.session_state["views-saved"] += 1
    st.rerun()


def draw_table(table: pd.DataFrame, filtered: bool, by: str, columns: list[str], most: int) -> None:
    table = as_it_is_now(table)
    if table.empty:
        if filtered:
            st.info("No run is like that. Clear a filter above.", icon=":material/filter_alt_off:")
        else:
            other = "." if public.is_public() else ", or import one."
            st.info(f"There is no run yet. Start one{other}", icon=":material/info:")
            st.page_link(state.page("prune"), label="Set up a run", icon=":material/ac_unit:")
        return
    opened, shown = state.asked_all("run"), set(table["id"].head(most))
    picked: list[str] = []
    for common, rows in runs.grouped(table, by):
        if common:
            best = (
                f" · best accuracy {MEASURES['accuracy'].say(rows['accuracy'].max())}" if rows["accuracy"].notna().any() else ""
            )
            st.markdown(f"**{words.plain(common)}** · {words.counted(len(rows), 'run')}{best}")
        if not (drawn := rows[rows["id"].isin(shown)]).empty:
            names = [name for name in columns if name != by or name == "state"]
            picked += _draw_rows(drawn.reset_index(drop=True), opened, common, names)
    if set(picked) != shown & set(opened):
        state.say("run", picked)
        st.rerun()


def as_it_is_now(table: pd.DataFrame) -> pd.DataFrame:
    """The table with how far those at work are. Where one has begun or ended, the rest of the page is to say so too."""
    before = table["state"][table["state"].map(runs.base_state).isin(ACTIVE)]
    now = runs.table(run for run_id in table["id"][before.index] if (run := find(run_id)) is not None)["state"]
    if now.map(runs.base_state).tolist() != before.map(runs.base_state).tolist():
        st.rerun()
    return table.assign(state=table["state"].where(~table.index.isin(before.index), now.set_axis(before.index)))


def _draw_rows(rows: pd.DataFrame, opened: list[str], group: str, columns: list[str]) -> list[str]:
    """One table; the runs that are ticked in it."""
    ids = rows["id"].tolist()
    # Streamlit keeps ticks by their place in the table: another set of rows, or another address, is another table.
    places = st.dataframe(
        panels.said(rows),
        key=f"runs-{state.turn('run')}-{hash((group, *ids))}",
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [place for place, run_id in enumerate(ids) if run_id in opened]}},
        hide_index=True,
        column_order=[name for name in columns if name != "tags" or rows["tags"].map(bool).any()],
        column_config=COLUMNS | panels.measure_columns(rows, WIDTHS),
        placeholder="",
        alt=f"Runs: {group}" if group else "All runs",
    )["selection"]["rows"]
    return [ids[place] for place in places]


COLUMNS: dict[str, Any] = {
    "name": st.column_config.TextColumn("Name", width=140),
    "network": st.column_config.TextColumn("Network", width=125),
    "pattern": st.column_config.TextColumn("Pattern", width=75, help="2:4 keeps 2 of 4 weights; 70% removes that share."),
    "method": st.column_config.TextColumn("Method", help="What the kept weights became."),
    "state": st.column_config.TextColumn("State", width=124, help="While it runs: how many layers are done."),
    "made": st.column_config.DatetimeColumn("Made", format="D MMM YYYY, HH:mm", width=142),
    "compare": st.column_config.CheckboxColumn("Marked", width=70, help="Marked to be compared."),
    "tags": st.column_config.ListColumn("Tags"),
    "id": st.column_config.TextColumn("Id", width=170),
    "k": st.column_config.NumberColumn("K", width=50, help="How many operations ahead a layer looks."),
    "images": st.column_config.NumberColumn("Calibration images", width=135, format="localized"),
    "seed": st.column_config.NumberColumn("Seed", width=60),
}
WIDTHS = {"accuracy": 85, "accuracy_masked": 145, "change": 100, "agreement": 92, "density": 105, "seconds": 95}
# In their order; those of `USUAL` are shown where nobody chose.
USUAL = ("name", "network", "pattern", "method", "state", *WIDTHS, "made", "compare", "tags", "id")
ORDER = ("name", "network", "pattern", "method", "k", "images", "seed", "state", *WIDTHS)
ORDER += ("divergence", "packed_bytes", "num_products", "made", "compare", "tags", "id")
TITLES = {name: MEASURES[name].title if name in MEASURES else COLUMNS[name]["label"] for name in ORDER}
VIEWED = ("find", "state", "tag", "marked", "group", "column")  # what a saved view says


# --- what can be done ---


def find(run_id: str) -> Run | None:
    try:
        return state.find_run(run_id)
    except KeyError:
        return None


def ticked(ids: list[str]) -> None:
    runs_by_id = {run_id: find(run_id) for run_id in ids}
    for run_id, run in runs_by_id.items():
        if run is None:
            st.error(
                f"There is no run {words.plain(repr(run_id))}. It may have been deleted: see below.", icon=":material/error:"
            )
    match [run for run in runs_by_id.values() if run is not None]:
        case []:
            st.caption("Tick the box at the left of a run to see what can be done with it, or several to mark or delete them.")
        case [run]:
            details(run)
        case several:
            together(several)


def details(run: Run) -> None:
    recorded = state.is_recorded(run)
    try:
        config, labels, run_state = run.config(), run.labels(), run.state()
    except ValueError:
        problem = run.unreadable() or f"What run {run.id} is called (label.json) cannot be read, so it is not shown."
        st.error(words.plain(problem), icon=":material/error:")
        with st.container(horizontal=True):
            if not recorded:
                delete_button([run])
        return
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.header(words.plain(name_of(run)), anchor=False, width="content")
            panels.badge(run_state)
        st.caption(
            f"{run.id} · made {panels.when(run)}"
            + (" · It came with the app, so it cannot be named, marked or deleted." if recorded else "")
        )
        name, tags, mark = st.columns([4, 4, 2], vertical_alignment="bottom")
        label_inputs(run, labels, config, name, tags, mark, recorded)
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            st.markdown("**Open in**", width="content")
            for page in PAGES:
                title, icon = state.PAGES[page]
                st.page_link(state.page(page), label=title, icon=icon, query_params={"run": run.id})
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown("**Download**", width="content")
            refusal = visitor.refusal()
            for file in take_along.downloads(run):
                obstacle = file.obstacle or refusal
                st.download_button(
                    file.label,
                    visitor.in_turn(file.content),
                    file.file_name,
                    file.mime,
                    icon=":material/download:",
                    on_click="ignore",
                    disabled=bool(obstacle),
                    help=obstacle or file.help,
                    key=f"download-{file.label}-{run.id}-{run_state}",
                )
        st.markdown("**Run it again with one change**")
        again(run, config)
        with st.expander("The exact settings", icon=":material/settings:"):
            st.code((run.path / "config.json").read_text(), language="json")
        if run_state in ACTIVE:
            with st.container(horizontal=True, vertical_alignment="center"):
                cancelling = run.cancel_requested()
                label = "Cancelling…" if cancelling else "Cancel"
                if st.button(label, icon=":material/close:", disabled=cancelling, key=f"cancel-{run.id}"):
                    state.jobs().cancel(run.id)
                    st.rerun()
                st.caption(f"It is {run_state}. Cancel it before you delete it.", width="content")
        elif not recorded:
            delete_button([run])


def label_inputs(run: Run, labels: Labels, config: RunConfig, name: Any, tags: Any, mark: Any, fixed: bool) -> None:
    # The stored value is part of the key: what another tab has written shows here, and is never overwritten unseen.
    name.text_input(
        "Name",
        called := labels.name or config.name,
        max_chars=80,
        placeholder="Give it a name",
        disabled=fixed,
        key=(key := f"name-{run.id}-{called}"),
        on_change=lambda: relabel(run, name=st.session_state[key]),
    )
    known = sorted({tag for other in state.store().list() for tag in readable_labels(other).tags})
    tags.multiselect(
        "Tags",
        sorted({*known, *labels.tags}),
        labels.tags,
        accept_new_options=True,
        placeholder="Choose, or type a new one",
        disabled=fixed,
        help="Words of your own, to find runs by.",
        key=(tags_key := f"tags-{run.id}-{labels.tags}"),
        on_change=lambda: relabel(run, tags=st.session_state[tags_key]),
    )
    mark.toggle(
        "Mark to compare",
        labels.compare,
        disabled=fixed,
        key=(mark_key := f"mark-{run.id}-{labels.compare}"),
        on_change=lambda: relabel(run, compare=st.session_state[mark_key]),
    )


def readable_labels(run: Run) -> Labels:
    try:
        return run.labels()
    except ValidationError:
        return Labels()


def relabel(run: Run, **changes: Any) -> None:
    try:
        run.save_labels(Labels.model_validate(run.labels().model_dump() | changes))
    except ValidationError as error:
        st.session_state["runs-problem"] = explain(error)
    except StoreError as error:
        st.session_state["runs-problem"] = str(error)


def together(ticked_runs: list[Run]) -> None:
    own = [run for run in ticked_runs if not state.is_recorded(run)]
    with st.container(border=True):
        st.header(words.counted(len(ticked_runs), "run") + " ticked", anchor=False)
        if len(own) < len(ticked_runs):
            st.caption("Those that came with the app cannot be marked or deleted; they are left as they are.")
        active = [run for run in own if run.state() in ACTIVE]
        with st.container(horizontal=True, vertical_alignment="center"):
            st.page_link(
                state.page("compare"),
                label="Compare these",
                icon=state.PAGES["compare"][1],
                query_params={"runs": ",".join(run.id for run in ticked_runs)},
            )
            for label, icon, compare in (
                ("Mark to compare", ":material/bookmark:", True),
                ("Remove the marks", ":material/bookmark_remove:", False),
            ):
                if st.button(label, icon=icon, disabled=not own):
                    for run in own:
                        relabel(run, compare=compare)
                    st.rerun()
            delete_button([run for run in own if run not in active])
            if active:
                st.caption(f"{words.counted(len(active), 'run')} in work: cancel before deleting.", width="content")


def again(run: Run, config: RunConfig) -> None:
    path_column, value_column, go = st.columns([4, 4, 2], vertical_alignment="bottom")
    path = path_column.selectbox("Change", list(CHANGES), format_func=lambda p: CHANGES[p][0], key=f"change-{run.id}")
    current = runs.setting(config, path)
    _, values, called = CHANGES[path]
    value = value_column.selectbox(
        f"From {words.plain(called.get(str(current), str(current)))} to",
        [str(v) for v in values if str(v) != str(current)],
        None,
        format_func=lambda v: called.get(v, v),
        accept_new_options=True,
        placeholder="Choose, or type another",
        key=f"value-{run.id}-{path}",
    )
    try:
        changed = None if value is None else runs.with_change(config, path, value)
    except ValidationError as error:
        st.error(words.plain(explain(error)), icon=":material/error:")
        changed = None
    if go.button(
        "Set it up",
        icon=":material/ac_unit:",
        width="stretch",
        disabled=changed is None,
        help="Fills the form on the Prune page; look it over and start it there.",
        on_click=partial(form.fill, changed) if changed else None,
        key=f"again-{run.id}",
    ):
        state.open_run(None)


# --- delete and undo ---


def kept() -> str:
    return KEPT_IN_PUBLIC.format(hours=public.Limits.read().hours) if public.is_public() else KEPT


def delete_button(chosen_runs: list[Run]) -> None:
    with st.popover("Delete", icon=":material/delete:", disabled=not chosen_runs):
        st.markdown("  \n".join(["**Delete?**", *(words.plain(name_of(run)) for run in chosen_runs)]))
        st.caption(f"You can have it back {kept()}; after that its files are gone.")
        if st.button("Yes, delete", key="delete", type="primary", icon=":material/delete:"):
            deleted = done(state.store().trash, [run.id for run in chosen_runs])
            st.session_state["runs-deleted"] = [run.path for run in deleted]
            state.choose("run", [], [])
            st.rerun()


def undo_bar() -> None:
    deleted = [Run(path) for path in st.session_state.get("runs-deleted", []) if path.exists()]
    if deleted:
        with st.container(horizontal=True, vertical_alignment="center", border=True, key="undo-bar"):
            st.markdown(f":material/delete: Deleted {', '.join(run.id for run in deleted)}.", width="content")
            if st.button("Undo", icon=":material/undo:", type="primary"):
                restore(deleted)


def trash() -> None:
    deleted = state.store().trashed()
    if deleted:
        with st.expander(f"Deleted runs ({len(deleted)})", icon=":material/delete:"):
            st.caption(f"Kept {kept()}.")
            for run in deleted[:50]:
                with st.container(horizontal=True, vertical_alignment="center"):
                    if st.button("Restore", icon=":material/undo:", key=f"restore-{run.path}"):
                        restore([run])
                    st.markdown(f"{words.plain(name_of(run))} · {run.id}", width="content")


def restore(deleted: list[Run]) -> None:
    state.choose("run", [run.id for run in done(state.store().restore, deleted)], [])
    st.session_state.pop("runs-deleted", None)
    st.rerun()


def done(act: Callable[[Any], Run], things: Sequence[Any]) -> list[Run]:
    """What `act` made of each; why it refused one is said when the page is drawn next."""
    made, problems = [], []
    for thing in things:
        try:
            made.append(act(thing))
        except (InputError, StoreError) as error:
            problems.append(str(error))
    st.session_state["runs-problem"] = " ".join(problems)
    return made


# --- import ---


def import_form() -> None:
    number = st.session_state.setdefault("runs-imported", 0)  # a new number is a new form: empty, and closed
    with st.popover("Import a run", icon=":material/upload:", key=f"import-{number}"):
        st.markdown("A run that was downloaded as a whole, here or elsewhere. It is looked through before it is taken in.")
        upload = st.file_uploader("Archive (.zip)", type="zip", key=f"upload-{number}")
        typed = st.text_input(
            "Or a path on this machine",
            placeholder="/somewhere/20250101-120000-abcd",
            help="A run's folder, or a zip of it. For what is too large to upload.",
            key=f"path-{number}",
        )
        as_copy = st.toggle(
            "Import as a copy",
            help="Gives it an id of its own, to stand beside a run that is here already.",
            key=f"copy-{number}",
        )
        if st.button("Import", type="primary", disabled=not (upload or typed.strip()), key=f"take-{number}"):
            taken = {run.id for run in state.recorded_runs().list()}
            try:
                run = archive.import_run(
                    state.store(), upload or Path(typed.strip()).expanduser(), taken=taken, as_copy=as_copy
                )
            except InputError as error:
                st.error(words.plain(str(error)), icon=":material/error:")
            else:
                st.session_state["runs-imported"] = number + 1
                state.choose("run", run.id, "")
                st.rerun()


show()
