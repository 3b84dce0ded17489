"""A class that guesses together: everybody opens one link, and all guesses are a bar each. In memory, without names."""

import re
import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import TypeGuard

import streamlit as st

from app import state
from app.charts import lessons as charts
from app.parts import live
from app.texts import text

MOST_CLASSES, MOST_GUESSES = 200, 1000
_CODE = re.compile("[0-9a-f]{6}")


class Classes:
    """The guesses of all classes, by the class's code, the lesson and the visitor, whose last one counts.

    May be used from several threads. Of more than 200 classes the one that has rested longest is forgotten, and no class takes
    more than 1,000 guesses.
    """

    def __init__(self) -> None:
        self._guesses: OrderedDict[str, dict[tuple[str, str], str]] = OrderedDict()
        self._lock = Lock()

    def guess(self, code: str, lesson: str, visitor: str, guess: str) -> None:
        with self._lock:
            of_class = self._guesses.setdefault(code, {})
            self._guesses.move_to_end(code)
            if (lesson, visitor) in of_class or len(of_class) < MOST_GUESSES:
                of_class[lesson, visitor] = guess
            while len(self._guesses) > MOST_CLASSES:
                self._guesses.popitem(last=False)

    def counts(self, code: str, lesson: str) -> Counter[str]:
        """How often each guess was made."""
        with self._lock:
            return Counter(guess for (of, _), guess in self._guesses.get(code, {}).items() if of == lesson)


_POLL_SECONDS = 4  # a class of thirty asks that often, each


def is_code(asked: str | None) -> TypeGuard[str]:
    return asked is not None and _CODE.fullmatch(asked) is not None


# --- what is drawn ---


@st.cache_resource
def _classes() -> Classes:
    return Classes()


def draw(lesson: str, guesses: Mapping[str, str], guess: str | None) -> None:
    """The class that the address names: this visitor's guess goes to the others', and all are shown once it is made."""
    code = state.asked("class")
    if not is_code(code):
        return
    visitor = st.session_state.setdefault("lesson-visitor", secrets.token_hex(8))
    if guess is not None:
        _classes().guess(code, lesson, visitor, guess)
    st.fragment(run_every=_POLL_SECONDS)(_draw_guesses)(code, lesson, guesses, guess is not None)


def _draw_guesses(code: str, lesson: str, guesses: Mapping[str, str], shown: bool) -> None:
    counts = _classes().counts(code, lesson)
    total = counts.total()
    st.markdown(text("class.one" if total == 1 else "class.many", count=total))
    if (shown or st.toggle(text("class.early"), key="lesson-class-shown")) and total:
        bars = {words: float(counts[name]) for name, words in guesses.items()}
        live.chart(
            charts.bars_chart(bars, text("class.axis"), dict.fromkeys(bars, "dense")),
            key="class",
            alt="; ".join(f"{words}: {count:g}" for words, count in bars.items()),
        )


def draw_invitation(lesson: str) -> None:
    """A link that opens the lesson for a class."""
    code = state.asked("class")
    if not is_code(code):
        st.markdown(text("class.about"))
        st.button(
            text("class.make"),
            icon=":material/group_add:",
            on_click=lambda: state.say("class", secrets.token_hex(3)),
        )
        return
    st.markdown(text("class.link"))
    st.code(f"{(st.context.url or '').partition('?')[0]}?lesson={lesson}&class={code}", language=None)
