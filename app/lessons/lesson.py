"""What all lessons have in common: what one is made of, how it is laid out, and numbers that live in the address."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import streamlit as st

from app import state
from app.lessons import classroom
from app.texts import choices, text


@dataclass(frozen=True)
class Lesson:
    """One idea, and one thing to move. Its texts are the table of its name, looked up when they are drawn.

    `name`: its word in the address. `guesses`: what one may expect before anything is shown, by its word in the address. `draw`
    is given the one that was chosen. `page`: one of the app that shows the same thing.
    """

    name: str
    guesses: Sequence[str]
    draw: Callable[[str], None]
    page: str

    @property
    def title(self) -> str:
        return text(f"{self.name}.title")

    @property
    def idea(self) -> str:
        return text(f"{self.name}.idea")

    def guesses_said(self) -> dict[str, str]:
        """The texts of the guesses, by their words in the address."""
        return choices(f"{self.name}.guesses", self.guesses)


def draw(lesson: Lesson, number: int) -> None:
    """The lesson from top to bottom; what it shows comes once something is expected of it."""
    st.title(f"{number}. {lesson.title}", anchor=False)
    st.markdown(lesson.idea)
    with st.container(border=True):
        guess = _draw_prediction(lesson)
        classroom.draw(lesson.name, lesson.guesses_said(), guess)
    if guess is None:
        st.caption(f":material/lightbulb: {text('lessons.choose')}")
    else:
        st.fragment(lesson.draw)(guess)  # what is moved there changes nothing outside of it
        st.header(text("lessons.question"), anchor=False)
        st.markdown(text(f"{lesson.name}.question"))
        with st.expander(text("lessons.answer"), icon=":material/check:"):
            st.markdown(text(f"{lesson.name}.answer"))
    with st.expander(text("lessons.formula"), icon=":material/function:"):
        st.markdown(text(f"{lesson.name}.formula"))
    st.page_link(state.page(lesson.page), label=text(f"{lesson.name}.link"), icon=":material/arrow_forward:")
    with st.expander(text("lessons.teacher"), icon=":material/school:"):
        st.markdown(text(f"{lesson.name}.teacher"))
        st.markdown(text("lessons.class"))
        classroom.draw_invitation(lesson.name)


def _draw_prediction(lesson: Lesson) -> str | None:
    guesses = lesson.guesses_said()
    guess = state.chosen("guess", guesses, "") or None
    return st.radio(
        text("lessons.guess", prediction=text(f"{lesson.name}.prediction")),
        list(guesses),
        format_func=guesses.__getitem__,
        **state.linked("guess", guess, lambda value: state.say("guess", value)),
    )


def draw_outcome(lesson: Lesson, guess: str, truth: str, outcome: str) -> None:
    """What was expected beside what was computed just now."""
    if guess == truth:
        st.markdown(f":material/check_circle: {text('lessons.expected', outcome=outcome)}")
    else:
        said = text("lessons.unexpected", guess=lesson.guesses_said()[guess], outcome=outcome)
        st.markdown(f":material/lightbulb: {said}")


def draw_number(
    label: str,
    name: str,
    options: Sequence[float],
    default: float,
    say: Callable[[float], str] = lambda value: f"{value:g}",
    help: str | None = None,
) -> float:
    """A slider over `options`; the address says the number under `name`."""
    by_text = {f"{option:g}": option for option in options}
    value = by_text[state.chosen(name, by_text, f"{default:g}")]
    write = lambda number: state.say(name, f"{number:g}", f"{default:g}")  # noqa: E731
    return st.select_slider(label, list(options), format_func=say, help=help, **state.linked(name, value, write))


def draw_choice(label: str, name: str, options: Mapping[str, str], default: str, help: str | None = None) -> str:
    """One of few `options`, by their words in the address."""
    return st.segmented_control(
        label,
        list(options),
        format_func=options.__getitem__,
        required=True,
        wrap=True,
        help=help,
        **state.addressed(name, options, default),
    )
