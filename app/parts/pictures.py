"""A strip of pictures with a network's answers under them, and a pad to draw one on."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

_PAD_SIDE = 224
_LONGEST_DRAWING = 400_000  # characters; a drawing takes a few thousand

# --- the strip ---

_SHOW = """
export default function ({ parentElement, data }) {
  const strip = parentElement.querySelector("ol");
  const cells = data.pictures.map((picture, place) => {
    const cell = strip.children[place] ?? strip.appendChild(document.createElement("li"));
    if (!cell.firstChild) cell.append(...["img", "b", "span", "em"].map(name => document.createElement(name)));
    const [image, answer, sure, was] = cell.children;
    if (image.src !== picture.address) image.src = picture.address;
    image.alt = image.title = picture.words;
    answer.textContent = picture.answer;
    sure.textContent = picture.sure;
    was.textContent = picture.was;
    cell.className = picture.was ? "changed" : "";
    return cell;
  });
  while (strip.children.length > cells.length) strip.lastChild.remove();
}
"""
# Eight in a row, four or two: a last one that stands alone would look like another kind.
_STRIP_STYLE = """
div { container-type: inline-size; }
ol { display: grid; grid-template-columns: repeat(8, 1fr); gap: 8px; margin: 0; padding: 2px; list-style: none; }
@container (max-width: 540px) { ol { grid-template-columns: repeat(4, 1fr); } }
@container (max-width: 250px) { ol { grid-template-columns: repeat(2, 1fr); } }
li { display: flex; flex-direction: column; font-family: var(--st-font); color: var(--st-text-color); min-width: 0; }
img {
  width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 8px; box-sizing: border-box; background: #000;
  border: 2px solid var(--st-border-color);
}
b { font-size: 0.86rem; line-height: 1.25; margin-top: 4px; overflow-wrap: anywhere; }
span, em { font-size: 0.78rem; line-height: 1.3; opacity: 0.85; font-style: normal; }
em { min-height: 2.6em; opacity: 1; }
.changed img { border: 3px dashed var(--st-red-text-color, #c02b3a); }
.changed b::before { content: "\\2715\\00a0"; }
.changed b, .changed em { color: var(--st-red-text-color, #c02b3a); }
"""


@dataclass(frozen=True)
class Shown:
    """`address`: of the picture, as `charts.picture_address` gives it; `words`: what is in it. Under it the `answer`, how
    `sure` it is, and where it is another than before, what it `was`; empty texts where nothing is known."""

    address: str
    words: str
    answer: str = ""
    sure: str = ""
    was: str = ""


def strip(pictures: Sequence[Shown], *, key: str) -> None:
    """Show `pictures` in a row, or rows where it is narrow. Of those drawn before under this key only what differs changes."""
    show = st.components.v2.component("strip", html="<div><ol></ol></div>", css=_STRIP_STYLE, js=_SHOW)
    show(data={"pictures": [asdict(picture) for picture in pictures]}, key=key, height="content")


# --- the pad ---

_DRAW = """
export default function ({ parentElement, setTriggerValue }) {
  const pad = parentElement.querySelector("canvas");
  pad.send = setTriggerValue;
  if (pad.ready) return;
  pad.ready = true;
  const brush = pad.getContext("2d");
  const wipe = () => { brush.fillStyle = "#000"; brush.fillRect(0, 0, pad.width, pad.height); };
  const place = event => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
  };
  wipe();
  brush.strokeStyle = brush.fillStyle = "#eee";
  brush.lineCap = brush.lineJoin = "round";
  let before = null;
  const stroke = event => {
    const now = place(event);
    brush.lineWidth = Number(parentElement.querySelector("input").value);
    brush.beginPath();
    brush.moveTo(...(before ?? now));
    brush.lineTo(...now);
    brush.stroke();
    before = now;
  };
  pad.onpointerdown = event => { pad.setPointerCapture(event.pointerId); stroke(event); };
  pad.onpointermove = event => { if (before) stroke(event); };
  pad.onpointerup = pad.onpointercancel = () => {
    if (before) pad.send("drawn", pad.toDataURL("image/png"));
    before = null;
  };
  parentElement.querySelector("button").onclick = () => { wipe(); pad.send("drawn", ""); };
}
"""
_PAD = f"""
<canvas width="{_PAD_SIDE}" height="{_PAD_SIDE}" role="img" aria-label="A pad to draw on, white on black"></canvas>
<label>Brush <input type="range" min="4" max="48" value="22"></label>
<button type="button">Wipe</button>
"""
_PAD_STYLE = f"""
canvas {{
  display: block; width: {_PAD_SIDE}px; height: {_PAD_SIDE}px; border-radius: 8px; touch-action: none; cursor: crosshair;
}}
label, button {{ font: 0.9rem var(--st-font); color: var(--st-text-color); margin-top: 8px; }}
label {{ display: inline-flex; align-items: center; gap: 6px; }}
input {{ width: 90px; accent-color: var(--st-primary-color); }}
button {{
  float: right; padding: 3px 12px; border: 1px solid var(--st-border-color); border-radius: 6px; background: none;
  cursor: pointer;
}}
button:hover, button:focus-visible {{ border-color: var(--st-primary-color); }}
"""


def pad(*, key: str, on_draw: Callable[[bytes | None], None]) -> None:
    """A square to draw on with a mouse, a pen or a finger. After each stroke `on_draw` is called with the drawing so far, a PNG
    of light on black, before the rerun that it brings; with None once it was wiped."""

    def drawn() -> None:
        address = st.session_state[key].drawn
        if address == "":
            on_draw(None)
        elif address is not None and (content := decoded(address)) is not None:
            on_draw(content)

    draw = st.components.v2.component("pad", html=_PAD, css=_PAD_STYLE, js=_DRAW)
    draw(key=key, height="content", on_drawn_change=drawn)


def decoded(address: str) -> bytes | None:
    """The bytes of a PNG that the browser sent as an address; None for anything else."""
    head, _, body = address.partition(",")
    if head != "data:image/png;base64" or len(body) > _LONGEST_DRAWING:
        return None
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        return None
