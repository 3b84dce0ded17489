"""A network as a strip of its layers, which turn as they are done."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import streamlit as st

from app.tables.run import LayerCell

_DRAW = """
export default function ({ parentElement, data, setTriggerValue }) {
  const strip = parentElement.querySelector(".layers");
  strip.setAttribute("aria-label", data.alt);
  data.cells.forEach((cell, place) => {
    const bar = strip.children[place] ?? strip.appendChild(document.createElement("i"));
    bar.className = cell.state;
    bar.title = cell.words;
    bar.style.flexGrow = cell.width;
    bar.style.setProperty("--done", data.color);
    bar.onclick = cell.state === "waiting" ? null : () => setTriggerValue("picked", cell.layer);
  });
  while (strip.children.length > data.cells.length) strip.lastChild.remove();
}
"""
_STYLE = """
.layers { display: flex; gap: 2px; width: 100%; height: 26px; }
i {
  flex: 1 1 2px; min-width: 2px; border-radius: 3px; background: var(--st-border-color); box-sizing: border-box;
  transition: background 0.4s;
}
i.done, i.working { cursor: pointer; }
i.done { background: var(--done); }
i.done:hover, i.working:hover { filter: brightness(1.25); }
i.working { border: 2px solid var(--done); background: repeating-linear-gradient(
  -45deg, var(--done) 0 3px, transparent 3px 7px); }
"""


def layer_strip(cells: Sequence[LayerCell], color: str, *, key: str, alt: str, on_pick: Callable[[str], None]) -> None:
    """One cell a layer in network order, its width by its weights: grey, striped while it is worked on, then of `color`. The
    cells are for a pointer; `alt` says for all others how far it is. `on_pick(layer)` is called before the rerun that a click
    brings."""

    def picked() -> None:
        if (layer := st.session_state[key].picked) is not None:
            on_pick(layer)

    draw = st.components.v2.component("layer_strip", html='<div class="layers" role="img"></div>', css=_STYLE, js=_DRAW)
    data = {"cells": [asdict(cell) for cell in cells], "color": color, "alt": alt}
    draw(data=data, key=key, height="content", on_picked_change=picked)
