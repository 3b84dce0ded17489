"""Who uses this session, and what is theirs: nothing to ask on one's own machine, a visitor where the app is public.

A visitor is known by a random key, which the browser keeps as a cookie, so that a reload and a second tab are the same visitor;
or, where the operator has set up a sign-in, by what the provider says. The key itself is nowhere on disk: what is written there
is its hash.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import streamlit as st

from app.work import public
from snows.measures.names import duration
from snows.runs.store import default_root

_COOKIE = "snows-visitor"
_KEY = re.compile(r"[\w-]{43}")  # 256 bits, as `secrets.token_urlsafe` writes them
_DAYS = 30
IN_LINE = "Waiting for what other visitors have computed"
Made = TypeVar("Made")
# Two tabs that are opened at once, the first time, were given a key each: the later one takes over the earlier one's.
_BROWSER = """
export default function ({ data }) {
  const known = document.cookie.match(/(?:^|; )COOKIE=([\\w-]{43})(?:;|$)/)?.[1];
  if (known && known !== data.key) { location.reload(); return; }
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `COOKIE=${data.key}; Path=/; Max-Age=${data.seconds}; SameSite=Strict${secure}`;
}
""".replace("COOKIE", _COOKIE)


def owner() -> str | None:
    """Whom runs of this session belong to; None where the app is not public and all runs are everybody's."""
    if not public.is_public():
        return None
    who = f"{st.user.get('iss')} {st.user['sub']}" if signs_in() else f"visitor {_key()}"
    return hashlib.sha256(who.encode()).hexdigest()[:32]


def home() -> Path:
    """The folder for what this session's user keeps beside the runs."""
    own = owner()
    return default_root() if own is None else public.home(default_root(), own)


def signs_in() -> bool:
    """Whether the operator has set up a sign-in: a section `[auth]` in Streamlit's secrets."""
    return "is_logged_in" in st.user


def _key() -> str:
    if "visitor" not in st.session_state:
        brought = st.context.cookies.get(_COOKIE, "")
        st.session_state["visitor"] = brought if _KEY.fullmatch(brought) else secrets.token_urlsafe(32)
    return st.session_state["visitor"]


# --- what is theirs of the machine ---


@st.cache_resource
def _turns() -> public.Turns:
    """The process's."""
    return public.Turns()


def turn() -> AbstractContextManager[None]:
    """To be held while a page computes what takes a while, other than a run; see `public.Turns.on_page`. At once where the app
    is not public."""
    own = owner()
    return nullcontext() if own is None else _turns().on_page(own)


def in_turn(make: Callable[[], Made]) -> Callable[[], Made]:
    """`make` as it may be called later and by any thread, in this session's user's turn."""
    own, turns = owner(), _turns()

    def made() -> Made:
        with nullcontext() if own is None else turns.on_page(own):
            return make()

    return made


def behind(make: Callable[[Callable[[], None]], Iterable[Made]]) -> Callable[[Callable[[], None]], Iterable[Made]]:
    """`make`, of `app.work.making.Making`, in this session's user's turn; see `public.Turns.behind`."""
    own = owner()
    return make if own is None else _turns().behind(own, make)


def waits() -> bool:
    """Whether what this session's user has computed in the background waits for others'."""
    own = owner()
    return own is not None and _turns().waits(own)


def refusal() -> str:
    """Why this session's user may have nothing more computed now, in a sentence; empty where they may."""
    own = owner()
    return "" if own is None else _turns().refusal(own)


# --- what is drawn ---


def admit() -> None:
    """Ask for a sign-in before anything else where there is one, and stop there until it is done."""
    if not signs_in() or st.user.is_logged_in:
        return
    st.title("SNOWS Explorer", anchor=False)
    st.markdown("Take weights out of an image network, refit those that stay, and see what it still knows.")
    st.caption("This app is for people whom its operator knows.")
    st.button("Sign in", type="primary", icon=":material/login:", on_click=st.login)
    st.stop()


def remember() -> None:
    """Have the browser keep the visitor's key."""
    if public.is_public() and not signs_in():
        data = {"key": _key(), "seconds": _DAYS * 86400}
        st.components.v2.component("visitor", js=_BROWSER, isolate_styles=False)(key="visitor-cookie", data=data, height=1)


def sign_out() -> None:
    """Who is signed in, and a way out; nothing where nobody is."""
    if signs_in():
        with st.popover(str(st.user.get("name") or st.user.get("email") or "Signed in"), icon=":material/person:"):
            st.button("Sign out", icon=":material/logout:", on_click=st.logout)


def limits() -> None:
    """What a visitor may do here; nothing where the app is not public."""
    if public.is_public():
        st.caption(f":material/groups: This app is open to everybody. {public.Limits.read()}")


def computing() -> None:
    """How much of what a visitor may have computed besides runs is left; nothing where the app is not public."""
    if (own := owner()) is not None:
        turns, most = _turns(), public.Limits.read().computing
        left = f"{duration(seconds)} left" if (seconds := turns.seconds_left(own)) else "none left"
        st.caption(f":material/groups: What you have computed, besides runs, may take {most} min of an hour: {left}.")
