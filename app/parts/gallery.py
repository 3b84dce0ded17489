"""A row of small pictures to choose from, by mouse, touch or keyboard: one stop, and arrows from there."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

_DRAW = """
export default function ({ parentElement, data, setTriggerValue }) {
  const strip = parentElement.querySelector(".strip");
  // One stop of the keyboard, however many there are; arrows go on from there.
  const enterAt = entered => [...strip.children].forEach(button => { button.tabIndex = button === entered ? 0 : -1; });
  strip.send = setTriggerValue;
  const shown = JSON.stringify(data.pictures);
  if (strip.shown !== shown) {
    strip.shown = shown;
    strip.replaceChildren(...data.pictures.map(picture => {
      const button = document.createElement("button");
      const image = document.createElement("img");
      button.type = "button";
      button.dataset.id = picture.id;
      button.title = picture.words;
      image.src = picture.address;
      image.alt = picture.words;
      button.append(image);
      button.onclick = () => strip.send("picked", picture.id);
      button.onfocus = () => enterAt(button);
      return button;
    }));
    strip.onkeydown = event => {
      const buttons = [...strip.children], here = buttons.indexOf(event.target), last = buttons.length - 1;
      const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      buttons[Math.min(Math.max(to, 0), last)].focus();
    };
  }
  const buttons = [...strip.children];
  for (const button of buttons) button.setAttribute("aria-pressed", data.chosen.includes(button.dataset.id));
  if (!buttons.some(button => button.matches(":focus"))) {
    enterAt(buttons.find(button => button.getAttribute("aria-pressed") === "true") ?? buttons[0]);
  }
}
"""
_STYLE = """
.strip { display: flex; gap: 6px; overflow-x: auto; padding: 4px 4px 8px; scrollbar-width: thin; }
button {
  flex: none; width: 56px; height: 56px; padding: 0; border: 2px solid var(--st-border-color); border-radius: 6px;
  background: none; cursor: pointer; overflow: hidden;
}
button:hover, button:focus-visible { border-color: var(--st-primary-color); outline: none; }
button:focus-visible { box-shadow: 0 0 0 3px color-mix(in srgb, var(--st-primary-color) 45%, transparent); }
button[aria-pressed="true"] { border-color: var(--st-primary-color); box-shadow: 0 0 0 1px var(--st-primary-color); }
img { display: block; width: 100%; height: 100%; object-fit: cover; image-rendering: pixelated; }
"""


@dataclass(frozen=True)
class Thumbnail:
    """`address`: of the picture, as `charts.picture_address` gives it. `words`: what is in it, for a hand that hovers and an
    ear that listens."""

    id: str
    address: str
    words: str


def gallery(pictures: Sequence[Thumbnail], chosen: Sequence[str], *, key: str, on_pick: Callable[[str], None]) -> None:
    """Show `pictures`, those whose id is in `chosen` marked. `on_pick(id)` is called before the rerun that a click brings."""

    def picked() -> None:
        if (picture := st.session_state[key].picked) is not None:
            on_pick(picture)

    draw = st.components.v2.component("gallery", html='<div class="strip"></div>', css=_STYLE, js=_DRAW)
    data = {"pictures": [asdict(picture) for picture in pictures], "chosen": list(chosen)}
    draw(data=data, key=key, height="content", on_picked_change=picked)
