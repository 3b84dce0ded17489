"""What all lessons have in common: what one is made of, how it is laid out, and numbers that live in the address."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import streamlit as st

from app import state
from app.lessons import classroom


@dataclass(frozen=True)
class Lesson:
    """One idea, and one thing to move. All texts are Markdown.

    `guesses`: what one may expect before anything is shown, by its word in the address. `draw` is given the one that was
    chosen. `link`: a page of the app that shows the same thing, the words of the link, and what its address shall say.
    """

    title: str
    idea: str
    prediction: str
    guesses: Mapping[str, str]
    draw: Callable[[str], None]
    question: str
    answer: str
    formula: str
    link: tuple[str, str]
    teacher: str
    link_says: Mapping[str, str] = field(default_factory=dict)


def draw(lesson: Lesson, name: str, number: int) -> None:
    """The lesson from top to bottom; what it shows comes once something is expected of it. `name`: its word in the address."""
    st.title(f"{number}. {lesson.title}", anchor=False)
    st.markdown(lesson.idea)
    with st.container(border=True):
        guess = _draw_prediction(lesson)
        classroom.draw(name, lesson.guesses, guess)
    if guess is None:
        st.caption(":material/lightbulb: Choose, and the lesson begins. A wrong guess teaches as much as a right one.")
    else:
        lesson.draw(guess)
        st.header("A question", anchor=False)
        st.markdown(lesson.question)
        with st.expander("The answer", icon=":material/check:"):
            st.markdown(lesson.answer)
    with st.expander("The formula", icon=":material/function:"):
        st.markdown(lesson.formula)
    page, words = lesson.link
    st.page_link(
        state.page(page),
        label=f"In the real pages: {words}",
        icon=":material/arrow_forward:",
        query_params=dict(lesson.link_says),
    )
    with st.expander("For the teacher", icon=":material/school:"):
        st.markdown(lesson.teacher)
        st.markdown("**With a class.**")
        classroom.draw_invitation(name)


def _draw_prediction(lesson: Lesson) -> str | None:
    options = list(lesson.guesses)
    guess = state.chosen("guess", options, "") or None
    return st.radio(
        f"**First a guess.** {lesson.prediction}",
        options,
        format_func=lesson.guesses.__getitem__,
        **state.linked("guess", guess, lambda value: state.say("guess", value)),
    )


def draw_outcome(lesson: Lesson, guess: str, truth: str, sentence: str) -> None:
    """What was expected beside what was computed just now."""
    icon = ":material/check_circle:" if guess == truth else ":material/lightbulb:"
    as_expected = "As you expected" if guess == truth else f"You expected: {lesson.guesses[guess]}"
    st.markdown(f"{icon} **{as_expected.rstrip('.')}.** {sentence}")


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
