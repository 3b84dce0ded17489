"""A run as one HTML file that needs nothing else: what it did, its figures, every number behind them, its exact settings.

    python -m snows report RUN [--output FILE]

The file holds Plotly and the figures' data, so that it opens without a network, years from now. It is readable without scripts
too: every figure has its numbers in a table beside it.
"""

import html
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from app import charts, convergence, frames, layers
from snows.config import RunConfig
from snows.events import Event, RunFailed
from snows.store import Run

_STAGES = {"mask_only": "Mask only", "least_squares": "Least squares", "final": "At the end"}
_STYLE = """
:root { color-scheme: light dark; --ink: #16222E; --faint: #5A6876; --line: #D5DEE7; --back: #FCFDFE; --soft: #F0F4F8;
  --link: #0B62A4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #E4EAF0; --faint: #9AA8B5; --line: #303C49; --back: #10161D; --soft: #19222C; --link: #7CC0F2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; color: var(--ink); background: var(--back);
  font: 1rem/1.55 "Source Sans 3", "Source Sans Pro", system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; } .faint { color: var(--faint); } a { color: var(--link); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tiles div { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.25; }
.tiles span { color: var(--faint); font-size: .875rem; }
.note { border-left: 3px solid var(--link); background: var(--soft); padding: .5rem .9rem; border-radius: .25rem; }
.bad { border-left-color: #D55E00; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .875rem; margin: .5rem 0; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 500; white-space: nowrap; } .number { text-align: right; white-space: nowrap; }
pre { background: var(--soft); border-radius: .5rem; padding: .9rem 1rem; overflow-x: auto;
  font-size: .8125rem; line-height: 1.45; }
figure { margin: .75rem 0; } figcaption { color: var(--faint); font-size: .875rem; max-width: 46rem; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--link); }
@media print {
  :root { --ink: #000; --faint: #444; --line: #bbb; --back: #fff; --soft: #f4f4f4; --link: #000; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: .85rem; } h2 { break-after: avoid; }
  figure, .tiles, tr { break-inside: avoid; }
  pre { white-space: pre-wrap; }
}
"""
# As in `live`: a figure has no theme, so it takes the page's ink; and again when the page turns dark, or goes to paper.
_DRAW = """
const ink = () => getComputedStyle(document.body).color;
const places = [...document.querySelectorAll("figure > div")];
for (const place of places) {
  const { data, layout } = JSON.parse(place.nextElementSibling.textContent);
  const axis = { gridcolor: "rgba(128, 136, 146, 0.22)", zerolinecolor: "rgba(128, 136, 146, 0.22)" };
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink() };
  for (const name in layout) if (/^[xy]axis/.test(name)) layout[name] = { ...axis, ...layout[name] };
  Plotly.newPlot(place, data, layout, { displayModeBar: false, responsive: true });
}
const repaint = () => places.forEach(place => Plotly.relayout(place, { "font.color": ink(), width: place.clientWidth }));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
matchMedia("print").addEventListener("change", repaint);
"""


def report(run: Run) -> str:
    """The run as HTML. Raises `ValidationError` for one that this version cannot read."""
    config, (events, _), labels = run.config(), run.events(), run.labels()
    state = run.state_after(events[-1] if events else None)
    progress = frames.progress(events, events[-1].time if events else 0.0)
    heading = frames.title(config)
    made = datetime.fromtimestamp(run.created()).strftime("%d %B %Y, %H:%M").lstrip("0")
    name = labels.name or config.name
    parts = [
        f"<h1>{_text(name or heading)}</h1>",
        f'<p class="faint">{_text(" · ".join(filter(None, (heading if name else "", run.id, made, state, *labels.tags))))}</p>',
        _result(run, config, events, state, progress),
    ]
    if layers.finished(events):
        parts += [_layers(events, config, progress), _solver(events, config)]
    parts += [_left_dense(progress), _settings(run, config), _log(events)]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(name or heading)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + f"\n<script>{get_plotlyjs()}</script>\n<script>{_DRAW}</script>\n</body>\n</html>\n"
    )


# --- the parts ---


def _result(run: Run, config: RunConfig, events: list[Event], state: str, progress: frames.Progress) -> str:
    metrics = run.metrics() or {}
    tiles = [
        ("Accuracy of the dense network", "accuracy_dense", frames.percent),
        ("Accuracy", "accuracy", frames.percent),
        ("Agreement with the dense network", "agreement", frames.percent),
        ("Weights kept in the pruned layers", "density", frames.percent),
        ("Time to prune", "seconds", frames.duration),
    ]
    shown = "".join(
        f"<div><b>{_text(words(value))}</b><span>{_text(label)}</span></div>"
        for label, key, words in tiles
        if (value := metrics.get(key)) is not None
    )
    last = events[-1] if events else None
    sentences = [
        f"{frames.pattern_words(config.prune.pattern)}, in {frames.counted(len(progress.sites), 'layer')} of {config.model}; "
        f"{frames.counted(progress.done, 'layer')} finished, on {config.num_calibration:,} calibration images."
    ]
    notes = [("note bad", last.message)] if isinstance(last, RunFailed) else []
    if state not in ("finished", "failed"):
        notes.append(("note", f"The run is {state}: what follows is how far it has come."))
    notes += [("note", note) for note in progress.notes]
    return (
        "".join(f"<p>{_text(sentence)}</p>" for sentence in sentences)
        + (f'<div class="tiles">{shown}</div>' if shown else "")
        + "".join(f'<p class="{kind}">{_text(sentence)}</p>' for kind, sentence in notes)
    )


def _layers(events: list[Event], config: RunConfig, progress: frames.Progress) -> str:
    names = [frames.layer(site) for site in progress.sites]
    blocks = [layers.block(name) for name in names]
    losses = layers.window_losses(events, relative=True)
    figures = _figure(
        charts.loss_chart(losses, names, config.prune.update, title="Error ÷ target", blocks=blocks),
        "Error of each layer's window, relative to the values that the dense network has there: with the mask only, after an "
        "exact fit of the layer's own output, and at the end. 1 would be as wrong as answering zero.",
    )
    errors = layers.window_errors(events)
    if errors["k"].max() > 0:
        figures += _figure(
            charts.window_chart(errors, names, "final", config.prune.update, blocks=blocks),
            "The error at the end along each layer's window: at the layer itself (n₀) and at each of the operations after it. "
            "The stronger the color, the worse.",
        )
    rows = []
    for site in layers.finished(events):
        found = losses[losses["index"] == site.index].set_index("stage")["loss"]
        rows.append(
            (
                frames.layer(site.site),
                frames.percent(site.density),
                *(frames.number(found[stage]) if stage in found else "" for stage in _STAGES),
                frames.duration(site.seconds),
                str(site.num_products),
                frames.words(site.status),
            )
        )
    head = ("Layer", "Kept", *_STAGES.values(), "Time", "Products", "Status")
    meanings = {frames.words(site.status): site.message for site in layers.finished(events)}
    return (
        "<h2>What each layer lost, and got back</h2>"
        + figures
        + _table(head, rows, numbers=range(1, 7))
        + "".join(f'<p class="faint"><b>{_text(status)}</b>: {_text(message)}</p>' for status, message in meanings.items())
    )


def _solver(events: list[Event], config: RunConfig) -> str:
    steps = convergence.newton_steps(events)
    if steps.empty:
        return ""
    findings = "".join(
        f'<p class="note{" bad" if found.failure else ""}"><b>{_text(found.what)}.</b> {_text(found.why)} '
        f'<span class="faint">{_text(", ".join(found.layers))}</span></p>'
        for found in convergence.findings(steps, config.prune.solver)
    )
    rows = [
        (
            step["layer"],
            str(step["step"]),
            frames.number(step["before"]),
            frames.number(step["loss"]),
            str(step["iterations"]),
            frames.number(step["residual"]),
            frames.number(step["step_size"]) if step["step_size"] > 0 else "none",
            frames.words(step["cg"]),
        )
        for step in steps.to_dict("records")
    ]
    head = ("Layer", "Step", "Loss before", "Loss after", "CG iterations", "Residual", "Step size", "CG status")
    return (
        "<h2>How the solver fared</h2>"
        + (findings or "<p>Nothing went wrong: every solve ended as it should, and every step lowered the loss.</p>")
        + _more(f"Every Newton step ({len(rows)})", _table(head, rows, numbers=range(1, 7)))
    )


def _left_dense(progress: frames.Progress) -> str:
    if not progress.skipped:
        return ""
    few, many = frames.left_dense(progress.skipped)
    rows = [*few.items(), *((", ".join(names), reason) for reason, names in many.items())]
    return "<h2>Left dense</h2>" + _table(("Layer", "Why"), rows)


def _settings(run: Run, config: RunConfig) -> str:
    return f"<h2>Exact settings</h2><pre>{_text(config.model_dump_json(indent=2))}</pre>"


def _log(events: list[Event]) -> str:
    log = frames.log(events)[::-1]
    rows = [(f"{row.after:.1f} s", row.layer, row.what, row.status) for row in log.itertuples()]
    return "<h2>What happened</h2>" + _more(f"All {len(rows)} entries", _table(("After", "Layer", "What", "Status"), rows, [0]))


# --- HTML ---


def _text(text: str) -> str:
    # A run made elsewhere may hold any text: a name, a layer, a message.
    return html.escape(text)


def _more(summary: str, content: str) -> str:
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """`numbers`: the columns to align at the right."""
    right = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f"<{tag}{' class=number' if i in right else ''}>{_text(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _figure(figure: Figure, caption: str) -> str:
    data = figure.to_json().replace("<", "\\u003c")  # no text in it can end the script
    return (
        f'<figure><div style="height: {figure.layout.height}px" role="img" aria-label="{_text(caption)}"></div>'
        f'<script type="application/json">{data}</script><figcaption>{_text(caption)}</figcaption></figure>'
    )


if __name__ == "__main__":  # the other end of `python -m snows report`
    sys.stdout.buffer.write(report(Run(Path(sys.argv[1]))).encode())
