"""The frame around every page: the menu in the order of work, what is at work now, and one entry a page in the history."""

import streamlit as st

from app import state, visitor, words
from app.parts import live
from app.tables import runs
from snows.bundled import ASSETS
from snows.plans.words import name_of

_LOGO = str(ASSETS / "logo.svg")
_POLL_SECONDS = 2.0  # while a run is active; where none is, the next click looks again

# Streamlit shows pages outside of lists before all lists, so the order of work is the style's; `reading-flow` takes the
# keyboard along.
_STYLE = """
<style>
[data-testid="stTopNav"] { reading-flow: flex-visual; }
[data-testid="stTopNav"] > :nth-child(3), [data-testid="stTopNav"] > :nth-child(4) { order: 90 !important; }
[data-testid="stTopNav"] > .rc-overflow-item-rest { order: 91 !important; }
[data-testid="stLayoutWrapper"]:has(> .st-key-frame) { position: absolute; }
.st-key-frame { position: fixed; top: 0.85rem; right: 9rem; z-index: 999990; width: auto; gap: 0; }
.st-key-pill a {
  border: 1px solid rgba(128, 136, 146, 0.55); border-radius: 999px; padding: 0.2rem 0.75rem; text-decoration: none;
  max-width: min(27rem, calc(100vw - 52rem)); white-space: nowrap; overflow: hidden;
}
[data-testid^="stBaseButton-primary"] kbd { color: inherit !important; opacity: 1 !important; }
.st-key-pill a p { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: 0.82rem; }
@media (max-width: 1000px) {
  .st-key-frame { right: 3.6rem; }
  .st-key-pill a { max-width: calc(100vw - 45rem); }
}
@media (max-width: 768px) {  /* where the menu is a drawer */
  .st-key-pill a { max-width: calc(100vw - 14rem); }
  body:has([data-testid="stSidebar"][data-collapsed="false"]) .st-key-pill { visibility: hidden; }
}
</style>
"""
# Streamlit writes white on any primary color; on the dark theme's, which is light, that cannot be read.
_DARK_STYLE = '<style>[data-testid^="stBaseButton-primary"]:enabled, [data-tag] { color: #07111b }</style>'

_NARROW = 768  # pixels; below, Streamlit makes the menu a drawer, and leaves it open over the page that was chosen there

# A choice on a page changes its address, and is no step to go back by: Streamlit would make an entry of each. What a lesson
# shows is a page of its own.
_BROWSER = """
if (!window.oneEntryAPage) {
  window.oneEntryAPage = true;
  const push = history.pushState.bind(history);
  const place = address => address.pathname + " " + address.searchParams.get("lesson");
  history.pushState = (data, title, address) => {
    const here = new URL(location.href), there = new URL(address ?? here, here);
    return place(here) === place(there) ? history.replaceState(data, title, address) : push(data, title, address);
  };
  const close = () => document.querySelector("[data-testid=stSidebarCollapseButton] button")?.click();
  document.addEventListener("click", event => {
    if (innerWidth < NARROW && event.target.closest("[data-testid=stSidebarNavLink]")) setTimeout(close);
  });
  document.addEventListener("keydown", event => {
    if (innerWidth < NARROW && event.key === "Escape") close();
  });
}
export default function () {}
""".replace("NARROW", str(_NARROW))


def navigation() -> "st.Page":
    """The menu; the page that is asked for."""
    within = {name: part for part, names in state.MENU.items() for name in names}
    menu = {"": [state.page(name) for name in state.PAGES if name not in within]}
    menu |= {part: [state.page(name) for name in names] for part, names in state.MENU.items()}
    return st.navigation(menu, position="top")


def dress() -> None:
    """The logo, and how everything looks: before a sign-in, too."""
    st.logo(_LOGO, size="large")
    st.html(_STYLE + (_DARK_STYLE if st.context.theme.type == "dark" else ""))


def draw() -> None:
    """All but the menu: the pill at its right, the history, and the drawer that closes."""
    with st.container(key="frame"):
        live.prepare()
        visitor.remember()
        st.components.v2.component("history", js=_BROWSER, isolate_styles=False)(key="history", height=1)
        if state.store().active():
            st.fragment(run_every=_POLL_SECONDS)(_draw_pill)()


def _draw_pill() -> None:
    active = state.store().active()
    if not active:
        return
    run, run_state = active[0]
    log = state.log(run)
    others = f" · {len(active) - 1} more" if len(active) > 1 else ""
    with st.container(key="pill"):
        st.page_link(
            state.page("prune"),
            label=words.plain(runs.at_work(name_of(run), run_state, log)) + others,
            icon=":material/play_arrow:" if run_state == "running" else ":material/hourglass_empty:",
            query_params={"run": run.id},
            width="content",
        )
        share = 100 * log.share if run_state == "running" else 0
        st.html(
            "<style>.st-key-pill a { background: linear-gradient(to right, rgba(0, 119, 187, 0.28) "
            f"{share:.0f}%, transparent {share:.0f}%) }}</style>"
        )
