"""Plotly figures that change every second without a flicker.

`st.plotly_chart` builds its chart anew whenever the data changes: it blinks, and a zoom is lost. Here a figure goes to
`Plotly.react`, which changes only what differs. Plotly's own script, from the installed package, is sent once by `prepare`.
"""

import streamlit as st
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

_DRAW = """
const ready = new Promise(resolve => {
  const look = () => window.Plotly ? resolve(window.Plotly) : setTimeout(look, 20);
  look();
});

export default function ({ parentElement, data }) {
  const place = parentElement.querySelector("div.live-chart");
  if (place.shown === data.figure) return;
  place.shown = data.figure;
  place.style.height = data.height + "px";
  place.setAttribute("role", "figure");
  place.setAttribute("aria-label", data.alt);
  const style = getComputedStyle(place);
  const figure = JSON.parse(data.figure);
  const axis = { gridcolor: "rgba(128, 136, 146, 0.22)", zerolinecolor: "rgba(128, 136, 146, 0.22)" };
  figure.layout.font = { family: style.fontFamily, size: 12, color: style.color };
  for (const name of ["xaxis", "yaxis"]) figure.layout[name] = { ...axis, ...figure.layout[name] };
  figure.layout.uirevision = "kept";
  ready.then(Plotly => Plotly.react(place, figure.data, figure.layout, { displayModeBar: false, responsive: true }));
}
"""


def prepare() -> None:
    """Bring Plotly to the browser. Call it outside the fragment that draws, so that it is sent once."""
    st.components.v2.component("plotly_script", js=get_plotlyjs() + "\nexport default function () {}", isolate_styles=False)(
        key="plotly_script", height=1
    )


def chart(figure: Figure, *, key: str, alt: str) -> None:
    """Draw `figure` in place, or change the one drawn before under this key. Its height is its layout's."""
    draw = st.components.v2.component("live_chart", html='<div class="live-chart"></div>', js=_DRAW, isolate_styles=False)
    draw(data={"figure": figure.to_json(), "height": figure.layout.height, "alt": alt}, key=key, height="content")
