"""Who uses this session, and what is theirs: nothing to ask on one's own machine, a visitor where the app is public.

A visitor is known by a random key, which the browser keeps as a cookie, so that a reload and a second tab are the same visitor;
or, where the operator has set up a sign-in, by what the provider says. The key itself is nowhere on disk: what is written there
is its hash.
"""

import hashlib
import re
import secrets
from pathlib import Path

import streamlit as st

from app.work import public
from snows.runs.store import default_root

_COOKIE = "snows-visitor"
_KEY = re.compile(r"[\w-]{43}")  # 256 bits, as `secrets.token_urlsafe` writes them
_DAYS = 30
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


# --- what is drawn ---


def admit() -> None:
    """Ask for a sign-in before anything else where there is one, and stop there until it is done."""
    if not signs_in() or st.user.is_logged_in:
        return
    st.title("SNOWS Explorer", anchor=False)
    st.markdown("This app is for people whom its operator knows.")
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
