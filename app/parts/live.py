"""Plotly figures that change without a flicker, and are told in a table to whoever cannot see or point at them.

`st.plotly_chart` builds its chart anew whenever the data changes: it blinks, takes longer, a zoom is lost, and its letters are
pale. Here a figure goes to `Plotly.react`, which changes only what differs; a zoom stays until the figure's `uirevision`
changes. Plotly's own script, from the installed package, is sent once by `prepare`.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import streamlit as st
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from app.charts.told import Told

_DRAW = """
const ready = new Promise(resolve => {
  const look = () => window.Plotly ? resolve(window.Plotly) : setTimeout(look, 20);
  look();
});

const row = (kind, texts) => {
  const line = document.createElement("tr");
  for (const text of texts) line.appendChild(document.createElement(kind)).textContent = text;
  return line;
};

// Written when it is opened: most never are.
const tell = (details, data) => {
  const { head, rows, more } = data.told;
  details.hidden = !rows.length;
  details.querySelector("summary").textContent = "In numbers: " + data.alt;
  const table = details.querySelector("table");
  const write = () => {
    if (!details.open) return;
    table.replaceChildren(row("th", head), ...rows.map(texts => row("td", texts)));
    if (more) table.append(row("td", [`and ${more} more`]));
  };
  details.ontoggle = write;
  write();
};

export default function ({ parentElement, data, setTriggerValue }) {
  const place = parentElement.querySelector("div.live-chart");
  place.send = setTriggerValue;
  if (place.shown === data.figure) return;
  place.shown = data.figure;
  place.style.height = data.height + "px";
  place.setAttribute("role", "figure");
  place.setAttribute("aria-label", data.alt);
  tell(parentElement.querySelector("details"), data);
  const style = getComputedStyle(place);
  const figure = JSON.parse(data.figure);
  const axis = { gridcolor: "rgba(128, 136, 146, 0.22)", zerolinecolor: "rgba(128, 136, 146, 0.22)" };
  figure.layout.font = { family: style.fontFamily, size: 12, color: style.color };
  for (const name of ["xaxis", "yaxis"]) figure.layout[name] = { ...axis, ...figure.layout[name] };
  figure.layout.uirevision ??= "kept";
  figure.layout.clickanywhere = data.clickable;
  figure.layout.hoverlabel = {
    ...figure.layout.hoverlabel,
    bgcolor: style.getPropertyValue("--st-secondary-background-color"),
    bordercolor: style.getPropertyValue("--st-border-color"),
    font: { family: style.fontFamily, size: 12, color: style.color },
  };
  ready.then(Plotly => {
    Plotly.react(place, figure.data, figure.layout, { displayModeBar: false, doubleClick: false, responsive: true });
    if (place.listening) return;
    place.listening = true;
    // Plotly's own way back is to the ranges of the first figure that was drawn here.
    place.on("plotly_doubleclick", () => {
      const parts = Object.entries(JSON.parse(place.shown).layout);
      const ranges = parts.filter(([name, part]) => /^[xy]axis/.test(name) && part.range);
      Plotly.relayout(place, Object.fromEntries(ranges.map(([name, axis]) => [name + ".range", axis.range])));
    });
    if (!data.clickable) return;
    // From the pixel: what Plotly reports of points lags behind a quick hand, and is nothing where no mark is.
    place.on("plotly_click", ({ event }) => {
      const { xaxis, yaxis } = place._fullLayout;
      const area = place.querySelector(".nsewdrag").getBoundingClientRect();
      place.send("clicked", { x: xaxis.p2d(event.clientX - area.left), y: yaxis.p2d(event.clientY - area.top) });
    });
  });
}
"""
_PLACE = """
<div class="live-chart"></div>
<details class="told">
  <summary></summary>
  <div tabindex="0" role="region" aria-label="Numbers of the figure"><table></table></div>
</details>
"""
# Out of sight until the keyboard comes to it, so that a page of figures is no page of buttons.
_STYLE = """
.told { font-size: 0.85rem; }
.told:not([open], :focus-within) { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.told summary { cursor: pointer; padding: 2px 4px; }
.told:not([open]):focus-within {
  position: absolute; z-index: 5; background: var(--st-background-color); border-radius: 6px;
}
.told > div { max-height: 16rem; overflow: auto; }
.told th, .told td { padding: 2px 14px 2px 4px; text-align: left; font-variant-numeric: tabular-nums; }
"""


def prepare() -> None:
    """Bring Plotly to the browser. Call it once a page, outside of every fragment, so that it is sent once."""
    st.components.v2.component("plotly_script", js=_plotly(), isolate_styles=False)(key="plotly_script", height=1)


@cache
def _plotly() -> str:
    return get_plotlyjs() + "\nexport default function () {}"


def chart(figure: Figure, *, key: str, alt: str, on_click: Callable[[float, float], None] | None = None) -> None:
    """Draw `figure` in place, or change the one drawn before under this key. Its height is its layout's; `alt` says what it is.

    `on_click(x, y)` is called with the place that was clicked, on the figure's axes, before the rerun that the click brings.
    """

    def clicked() -> None:
        point = st.session_state[key].clicked
        if on_click is not None and point is not None:
            on_click(point["x"], point["y"])

    draw = st.components.v2.component("live_chart", html=_PLACE, css=_STYLE, js=_DRAW, isolate_styles=False)
    data = {
        "figure": figure.to_json(),
        "height": figure.layout.height,
        "alt": alt,
        "clickable": on_click is not None,
        "told": asdict(Told.of(figure)),
    }
    draw(data=data, key=key, height="content", on_clicked_change=clicked)
