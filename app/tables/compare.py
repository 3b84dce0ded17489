"""Runs side by side, ready to draw: their table, what each cost and kept, layer by layer, answer by answer, and why they are or
are not smaller and faster. Pure functions of run folders and of what `snows.measures.comparison` measured; no torch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import pandas as pd

from app import words
from app.charts import palette
from snows.config import RunConfig
from snows.events import RunFailed
from snows.measures.names import MEASURES, number, size
from snows.plans.comparisons import Row, Spread, difference, pareto, summarize
from snows.plans.words import (
    BEST,
    COLUMNS,
    LEVEL,
    as_called,
    by_method,
    cells,
    data_name,
    labels,
    network_name,
    row_names,
    set_apart,
    with_dense,
    without_pattern,
)
from snows.runs.log import Log
from snows.runs.store import ACTIVE, Run

if TYPE_CHECKING:
    from snows.measures.comparison import Flip, Likeness, SignTest

DENSE = "Dense"


@dataclass(frozen=True)
class Entry:
    """One of the runs side by side. `label` says what sets it apart from the others, `mark` how figures draw it."""

    run: Run
    config: RunConfig
    state: str
    metrics: Mapping[str, float | None]
    label: str
    mark: palette.Mark


def entries(runs: Iterable[Run]) -> list[Entry]:
    """Those of the runs that this version can read, in the order given."""
    readable = []
    for run in runs:
        try:
            readable.append((run, as_called(run), run.state(), run.metrics() or {}))
        except ValueError:  # written by another version, or damaged
            continue
    configs = [config for _, config, _, _ in readable]
    apart = zip(labels(configs), marks(configs), strict=True)
    return [Entry(*parts, label, mark) for parts, (label, mark) in zip(readable, apart, strict=True)]


def marks(configs: Sequence[RunConfig]) -> list[palette.Mark]:
    """A color by what fills the mask, as everywhere, and among those of one color a symbol each; seeds share it."""
    settings: dict[str, list[str]] = {}
    config_marks = []
    for config in configs:
        update, prune = config.prune.update, config.prune.model_copy(update={"seed": 0})
        of_update = settings.setdefault(update, [])
        if (setting := f"{config.num_calibration} images, {prune.model_dump_json()}") not in of_update:
            of_update.append(setting)
        config_marks.append(palette.Mark.of(update, of_update.index(setting)))
    return config_marks


class Measured(Protocol):
    """What can be set side by side: a finished run (`Entry`), or a measurement without one (`snows.plans.recorded`)."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def metrics(self) -> Mapping[str, float | None]: ...


One = TypeVar("One", bound=Measured)


def networks(ones: Iterable[One]) -> dict[str, list[One]]:
    """Runs by network and images: only runs of one network, on the same images, can be set side by side."""
    by_network: dict[str, list[One]] = {}
    for one in ones:
        config = one.config
        whose = f" from {config.checkpoint}" if config.checkpoint else ""  # the whole path: names of files repeat
        by_network.setdefault(f"{config.model}{whose} on {config.data}", []).append(one)
    return by_network


def network_titles(by_network: Mapping[str, Sequence[Measured]]) -> dict[str, str]:
    """What to call each of `networks`."""
    configs = [ones[0].config for ones in by_network.values()]
    titles = set_apart([(f"{network_name(config)} on {data_name(config)}",) for config in configs])
    return dict(zip(by_network, titles, strict=True))


# --- a comparison at work ---


@dataclass(frozen=True)
class ComparisonProgress:
    """How far a comparison is. `fraction`: of its layers, those of a run that has not begun being like those of the others."""

    done: int
    total: int
    fraction: float
    active: int
    resumable: int
    left: float | None  # seconds; None until a first run has ended


def comparison_progress(entries: Sequence[Entry], log: Callable[[Run], Log] = Run.log) -> ComparisonProgress:
    """Read from what the members' folders say now. `log`: what a run's log says, for a caller that has read most of it."""
    parts = [1.0 if e.state == "finished" else log(e.run).share for e in entries]
    finished = [seconds for e in entries if e.state == "finished" and (seconds := e.metrics.get("seconds")) is not None]
    active = [part for e, part in zip(entries, parts, strict=True) if e.state in ACTIVE]
    left = None if not finished else sum(1 - part for part in active) * sum(finished) / len(finished)
    return ComparisonProgress(
        done=sum(e.state == "finished" for e in entries),
        total=len(entries),
        fraction=sum(parts) / len(parts) if parts else 0.0,
        active=len(active),
        resumable=sum(e.state not in (*ACTIVE, "finished") for e in entries),
        left=left,
    )


def problem(entry: Entry) -> str:
    """Why a run failed, or nothing."""
    last = entry.run.last()
    return last.message if isinstance(last, RunFailed) else ""


# --- the table ---


def rows(measured: Iterable[Measured]) -> list[Row]:
    """Finished runs, or measurements, as rows: those that differ in their seed alone as one."""
    return summarize([(one.config, one.metrics) for one in measured])


def finished(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.state == "finished"]


def patterns(rows: Sequence[Row]) -> list[str]:
    """The patterns of the rows, the one that keeps most weights first."""
    density = {str(row.config.prune.pattern): row.config.prune.pattern.density for row in rows}
    return sorted(density, key=lambda pattern: -density[pattern])


def judged_by(rows: Sequence[Row]) -> str:
    """`accuracy`, or `agreement` where it is not known of all rows."""
    return "accuracy" if all("accuracy" in row.values for row in rows) else "agreement"


def table(rows: Sequence[Row]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows as numbers to sort by, and as the texts of `snows.plans.words.cells` to show; one shape, the same titles."""
    texts = pd.DataFrame(cells(rows))
    numbers, shown = texts.copy(), with_dense(rows)
    for name in COLUMNS:
        if (title := MEASURES[name].title) in texts:
            numbers[title] = [row.values[name].mean if name in row.values else np.nan for row in shown]
    if "Seeds" in texts:
        numbers["Seeds"] = [len(row.runs) for row in shown]
    return numbers, texts


@dataclass(frozen=True)
class Behind:
    """A row beside the best of its pattern. `difference`: how far it is above that one in what rows are judged by, which is
    below 0 but for the best itself. `said`: what to say of it, with its mark."""

    row: Row
    difference: Spread
    said: str


def behind_the_best(rows: Sequence[Row]) -> dict[str, dict[str, Behind]]:
    """By method and by pattern, as `by_method`, each row beside the best of its pattern: methods that are nearest to the best
    over all patterns first. Empty where no pattern has a best, see `summarize`."""
    value = judged_by(rows)
    best: dict[str, Row] = {}
    for row in sorted((row for row in rows if value in row.best), key=lambda row: row.values[value].mean):
        best[str(row.config.prune.pattern)] = row
    beside: dict[str, dict[str, Behind]] = {}
    for method, of_method in by_method(rows).items():
        with_best = {pattern: row for pattern, row in of_method.items() if pattern in best and value in row.values}
        if with_best:
            beside[method] = {pattern: _behind(row, best[pattern], value) for pattern, row in with_best.items()}
    return dict(sorted(beside.items(), key=lambda pair: -fmean(one.difference.mean for one in pair[1].values())))


def _behind(row: Row, best: Row, value: str) -> Behind:
    if row is best:
        return Behind(row, Spread(0.0, None, len(row.runs)), f"{row.values[value].said(value)} {BEST}")
    away = difference(row, best, value)
    mark = BEST if value in row.best else LEVEL if value in row.level else ""
    return Behind(row, away, f"{away.said('change').removesuffix(MEASURES['change'].unit).rstrip()} {mark}".rstrip())


def beside_table(rows: Sequence[Row]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Methods down and patterns across, as in `table`: the value of the best of each pattern, and how far the others are from
    it."""
    beside, value = behind_the_best(rows), judged_by(rows)
    across = [pattern for pattern in patterns(rows) if any(pattern in of_method for of_method in beside.values())]
    numbers, texts = (pd.DataFrame({"Method": list(beside)}) for _ in range(2))
    for pattern in across:
        ones = [of_method.get(pattern) for of_method in beside.values()]
        numbers[pattern] = [np.nan if one is None else one.row.values[value].mean for one in ones]
        texts[pattern] = ["" if one is None else one.said for one in ones]
    return numbers, texts


def differences(rows: Sequence[Row]) -> pd.DataFrame:
    """Of rows of one pattern how far each is from the best: label, color, symbol, x, x_deviation, level (or the best), said.
    Those of no use are left out."""
    value, mark_of = judged_by(rows), method_marks(rows)
    ones = [(method, one) for method, of_method in behind_the_best(rows).items() for one in of_method.values()]
    points = []
    for method, one in ones:
        if one.row.is_of_use:
            mark, level = mark_of[method], value in one.row.best | one.row.level
            away = one.difference.mean, one.difference.deviation or 0.0
            points.append((method, mark.color, mark.symbol, *away, level, one.said))
    return pd.DataFrame(points, columns=["label", "color", "symbol", "x", "x_deviation", "level", "said"])


def verdict(rows: Sequence[Row], write: Callable[[str], str] = words.plain, bold: str = "**") -> str:
    """What the table says, in a sentence or two; empty where there is nothing to choose from. In Markdown, unless names are to
    be written in another way, and made `bold` by something else."""
    if len(patterns(rows)) > 1:
        return _verdict_over_patterns(rows, write, bold)
    measure = judged_by(rows)
    named = list(zip(row_names(rows), rows, strict=True))
    of_no_use = [name for name, row in named if not row.is_of_use]
    if len(rows) > 1 and len(of_no_use) == len(rows) and all(measure in row.values for row in rows):
        name, row = max(named, key=lambda pair: pair[1].values[measure].mean)
        return (
            "None of these is of use: not one keeps half of what the dense network has over chance. "
            f"{bold}{write(name)}{bold} comes nearest, with an {measure} of {row.values[measure].said(measure)}."
        )
    best = [name for name, row in named if measure in row.best]
    if not best:
        return ""
    level = [name for name, row in named if measure in row.level]
    seeds = min(len(row.runs) for row in rows)
    value = next(row.values[measure].mean for name, row in named if name == best[0])
    says = f"{bold}{write(best[0])}{bold} has the best {measure}, {MEASURES[measure].say(value)}."
    if level:
        says += f" The lead on {_named(level, write)} may be chance."
    if of_no_use:
        lose = "loses too much to be of use, and is" if len(of_no_use) == 1 else "lose too much to be of use, and are"
        says += f" {_named(of_no_use, write)} {lose} not ranked."
    if seeds == 1:
        says += " Each is one seed; add seeds to see how far another choice of calibration images moves them."
    return says


def _named(methods: Sequence[str], write: Callable[[str], str], most: int = 3) -> str:
    """Their names; of many how many there are."""
    if len(methods) > most:
        return f"{len(methods)} others"
    *first, last = methods
    return write(f"{', '.join(first)} and {last}" if first else last)


def _verdict_over_patterns(rows: Sequence[Row], write: Callable[[str], str], bold: str) -> str:
    """Which method is the best, or level with it, at most of the patterns, and what it gives up."""
    beside, value = behind_the_best(rows), judged_by(rows)
    if not beside or len(beside) < 2:
        return ""
    leads = {method: [p for p, one in of.items() if value in one.row.best | one.row.level] for method, of in beside.items()}
    first = max(leads, key=lambda method: len(leads[method]))  # of several the one that is nearest over all
    at = [pattern for pattern in patterns(rows) if any(pattern in of for of in beside.values())]

    def where(method: str) -> str:
        there, count = [pattern for pattern in at if pattern in leads[method]], len(leads[method])
        return f"all {len(at)} patterns" if count == len(at) else f"{count} of {len(at)} patterns ({', '.join(there)})"

    says = f"Of {len(beside)} methods {bold}{write(first)}{bold} is best in {value}, or level with the best, at {where(first)}"
    others = [method for method in leads if method != first and len(leads[method]) == len(leads[first])]
    says += f"; so {'is' if len(others) == 1 else 'are'} {_named(others, write)}." if others else "."
    lost = {
        pattern: one.row.values["change"]
        for pattern in at
        if (one := beside[first].get(pattern)) is not None and "change" in one.row.values
    }
    if len(lost) > 1:
        ends = [
            f"{lost[pattern].said('change')} at {pattern}" for pattern in (min(lost, key=at.index), max(lost, key=at.index))
        ]
        says += f" Against the dense network that is {' and '.join(ends)}."
    if min(len(row.runs) for row in rows) == 1:
        says += " Some are one seed; add seeds to see how far another choice of calibration images moves them."
    return says


# --- what it costs, what it keeps ---

COSTS = ("density", "packed_bytes", "multiply_adds", "seconds")
_REACH = 1.5  # how far below the front a figure shows, in heights of the front


def costs(rows: Sequence[Row]) -> list[str]:
    """Of `COSTS` those that were measured of every row and differ: what all cost alike is no choice. All, of a single row."""
    measured = [cost for cost in COSTS if all(cost in row.values for row in rows)]
    return [cost for cost in measured if len(rows) == 1 or len({row.values[cost].said(cost) for row in rows}) > 1]


def tradeoff(rows: Sequence[Row], cost: str) -> tuple[pd.DataFrame, str]:
    """Accuracy (agreement without labels) against one of `COSTS`, and which of the two it is.

    One row a point: label, method, color, symbol, x, y, x_deviation, y_deviation, best (on the Pareto front, which begins at
    the first that is of use). A method has one color and symbol at all patterns.
    """
    value = judged_by(rows)
    measured_rows = [(name, row) for name, row in zip(row_names(rows), rows, strict=True) if {cost, value} <= row.values.keys()]
    # None of use: none is on the front. What is of no use can beat what is in nothing but its cost.
    on_front = [
        row.is_of_use and is_front
        for (_, row), is_front in zip(
            measured_rows,
            pareto([row.values[cost].mean for _, row in measured_rows], [row.values[value].mean for _, row in measured_rows]),
            strict=True,
        )
    ]
    marks = method_marks(rows)
    method_of = {id(row): method for method, of_method in by_method(rows).items() for row in of_method.values()}
    points = [
        (name, method, marks[method].color, marks[method].symbol, x.mean, y.mean, x.deviation or 0.0, y.deviation or 0.0, best)
        for (name, row), best in zip(measured_rows, on_front, strict=True)
        for x, y, method in [(row.values[cost], row.values[value], method_of[id(row)])]
    ]
    columns = ["label", "method", "color", "symbol", "x", "y", "x_deviation", "y_deviation", "best"]
    return pd.DataFrame(points, columns=columns), value


def method_marks(rows: Sequence[Row]) -> dict[str, palette.Mark]:
    """How figures draw each method, whatever its pattern."""
    first = {method: next(iter(of_method.values())).config for method, of_method in by_method(rows).items()}
    return dict(zip(first, marks([without_pattern(config) for config in first.values()]), strict=True))


def drawn_marks(rows: Sequence[Row], points: pd.DataFrame) -> dict[str, palette.Mark]:
    """The marks of those methods of which a figure of a `tradeoff` shows a point."""
    least = shown_from(points)
    drawn = set(points["method"] if least is None else points.loc[points["y"] >= least, "method"])
    return {method: mark for method, mark in method_marks(rows).items() if method in drawn}


def shown_from(points: pd.DataFrame) -> float | None:
    """From which value on a figure of a `tradeoff` shows its points: what is far below the front would press it flat. None: it
    shows all."""
    front = points.loc[points["best"], "y"]
    if len(front) < 2:
        return None
    lowest = front.min() - _REACH * (front.max() - front.min())
    return None if lowest <= points["y"].min() else float(lowest)


def not_drawn(points: pd.DataFrame, value: str) -> str:
    """How many points `shown_from` leaves out, as a sentence; empty where none."""
    least = shown_from(points)
    if least is None:
        return ""
    below = int((points["y"] < least).sum())
    return f"{below} of {len(points)} {'is' if below == 1 else 'are'} below {MEASURES[value].say(least)}, and not drawn."


def dense_value(rows: Sequence[Row], value: str) -> float | None:
    """The dense network's accuracy, or its agreement with itself; `rows` are of one network."""
    if value == "agreement":
        return 1.0
    return next((row.values["accuracy_dense"].mean for row in rows if "accuracy_dense" in row.values), None)


# --- layer by layer ---


def layer_losses(entries: Sequence[Entry], log: Callable[[Run], Log] = Run.log) -> tuple[pd.DataFrame, list[str]]:
    """Each run's error at every layer's own output, at the end and relative to its target: label, index, value; and the layers.

    At the layer itself, since only there do runs with another K look at the same values.
    """
    order: dict[str, None] = {}
    losses = []
    for entry in entries:
        order |= dict.fromkeys(map(words.layer, log(entry.run).sites))  # those to come have their places too
        for event in log(entry.run).layers():
            order.setdefault(words.layer(event.site))
            scale = event.scale[0] if event.scale else 0.0
            final = event.by_k.get("final")
            if final and scale > 0:
                losses.append((entry.label, words.layer(event.site), final[0] / scale))
    layers = list(order)
    rows = [(label, layers.index(layer), value) for label, layer, value in losses]
    return pd.DataFrame(rows, columns=["label", "index", "value"]), layers


def likenesses(by_layer: "Sequence[Likeness]", measure: str) -> tuple[pd.DataFrame, list[str]]:
    """`cka`, `cosine` or `error` by depth: label, index, value; and the layers, downwards."""
    layers = list(dict.fromkeys(words.layer(row.layer) for row in by_layer))
    rows = [(row.network, layers.index(words.layer(row.layer)), getattr(row, measure)) for row in by_layer]
    return pd.DataFrame(rows, columns=["label", "index", "value"]), layers


# --- answer by answer ---


def class_accuracies(by_network: Mapping[str, Sequence[float]], classes: Sequence[str], most: int = 30) -> pd.DataFrame:
    """Accuracy by class: label, index, value, class; of many classes the `most` that differ most between the networks.

    `by_network`: a label to one share a class, NaN where no image is of it.
    """
    values = np.array(list(by_network.values()), float)
    seen = np.flatnonzero(~np.isnan(values).any(0))
    widest = seen[np.argsort(-np.ptp(values[:, seen], axis=0), kind="stable")][:most]
    rows = [
        (label, place, by_network[label][index], classes[index])
        for place, index in enumerate(sorted(widest))
        for label in by_network
    ]
    return pd.DataFrame(rows, columns=["label", "index", "value", "class"])


KINDS = {"lost": "Lost: the dense network was right", "won": "Won: it was wrong", "other": "Both wrong, or no label"}


def flipped(by_network: "Mapping[str, Sequence[Flip]]", kinds: Sequence[str] = ()) -> pd.DataFrame:
    """The images that any network answers differently from the dense one: image, label, dense (class numbers), and a column a
    network with its own answer, None where it agrees. Those that most networks flip come first."""
    answers: dict[int, dict[str, int]] = {}
    about: dict[int, tuple[int | None, int]] = {}
    for network, flips in by_network.items():
        for flip in flips:
            if not kinds or flip.kind in kinds:
                answers.setdefault(flip.image, {})[network] = flip.pruned
                about[flip.image] = flip.label, flip.dense
    order = sorted(answers, key=lambda image: (-len(answers[image]), image))
    rows = [(image, *about[image], *(answers[image].get(network) for network in by_network)) for image in order]
    return pd.DataFrame(rows, columns=["image", "label", "dense", *by_network], dtype=object)


def flip_counts(by_network: "Mapping[str, Sequence[Flip]]", num_images: int) -> pd.DataFrame:
    """One row a network: network, changed (a share of the images), and how many it lost, won, and other."""
    rows = [
        (network, len(flips) / num_images, *(sum(flip.kind == kind for flip in flips) for kind in KINDS))
        for network, flips in by_network.items()
    ]
    return pd.DataFrame(rows, columns=["network", "changed", *KINDS])


def sign_tests(by_network: "Mapping[str, SignTest]") -> pd.DataFrame:
    """The best network against each other one: against, best_only and other_only (images), chance, verdict."""
    rows = [
        (other, test.first_only, test.second_only, test.chance, "real" if test.chance < 0.05 else "may be chance")
        for other, test in by_network.items()
    ]
    return pd.DataFrame(rows, columns=["against", "best_only", "other_only", "chance", "verdict"])


# --- size and speed ---


def sizes(by_network: Mapping[str, tuple[int, int, int]]) -> pd.DataFrame:
    """Bytes as label, form, bytes. `by_network`: a label to its size dense, packed, and packed in half precision."""
    forms = ("Dense, zeros included", "Packed", "Packed, half precision")
    rows = []
    for label, by_form in by_network.items():
        rows += [(label, form, count) for form, count in zip(forms, by_form, strict=True)]
    return pd.DataFrame(rows, columns=["label", "form", "bytes"])


def why_smaller(dense: int, packed: int, half: int, file: int, pattern: str, density: float, *, is_cut: bool = False) -> str:
    """Why a pruned model's file is, or is not, smaller. `is_cut`: whether whole units were cut away."""
    if is_cut:
        return (
            f"The run's own file holds {size(file)}: it has the dense network's shapes, with zeros where units were, so that "
            f"any program can load it. Cut to size ({pattern}), as the ONNX file is, the network takes {size(packed)} "
            f"({100 * packed / dense:.0f} % of {size(dense)}), with weights in half precision {size(half)}, "
            f"{dense / half:.3g} times less than the dense network."
        )
    return (
        f"The run's own file holds {size(file)}: every weight is written, the zeros too, so that any program can load it. "
        f"A packed file, of the kept values and the bits that say where they lie, takes {size(packed)} "
        f"({100 * packed / dense:.0f} % of {size(dense)}), with weights in half precision {size(half)}, "
        f"{dense / half:.3g} times less than the dense network. "
        f"Of the pruned layers' weights {100 * density:.0f} % are kept ({pattern}); layers left dense, biases and norms count "
        "in full."
    )


def why_faster(
    dense: Sequence[float],
    pruned: Sequence[float],
    work: float,
    eligible: int,
    layers: int,
    device: str,
    *,
    is_cut: bool = False,
) -> str:
    """Why a pruned model is, or is not, faster here. `dense`, `pruned`: seconds a batch. `work`: the share of the dense
    network's multiply-adds that are not with a zero. `eligible`: how many of the pruned `layers` suit 2:4 kernels. `device`:
    `cpu`, or a GPU's name. `is_cut`: whether whole units were cut away."""
    before, after = float(np.median(dense)), float(np.median(pruned))
    noise = max(float(np.subtract(*np.percentile(seconds, [75, 25]))) for seconds in (dense, pruned))
    if abs(after - before) <= max(noise, 0.03 * before):
        word, more = "Not faster", "; the difference is within the noise"
    else:
        word, more = "Faster" if after < before else "Slower", ""
    says = f"**{word} here**: {_milliseconds(after)} a batch, the dense network {_milliseconds(before)}{more}. "
    if is_cut:
        return says + (
            f"Whole units are gone, so {100 * work:.0f} % of the multiplications are left to do, by the same dense kernels. "
            "Narrower products run at a lower rate, and norms and softmax are not less in proportion."
        )
    says += (
        "A zero takes part in the product like any other number: the kernels that ran are dense ones, and know nothing of the "
        f"mask. One that skipped zeros would have {100 * work:.0f} % of the multiplications to do. "
    )
    if not eligible:
        return says + "No pruned layer has the pattern and the shape that NVIDIA's 2:4 kernels need."
    where = "a GPU of compute capability 8.0 or later" if device == "cpu" else device
    return says + (
        f"{eligible} of the {layers} pruned layers have the pattern and the shape for NVIDIA's 2:4 kernels: on {where}, in "
        "half precision, these could gain; see `snows.export.files.to_semi_structured`."
    )


def _milliseconds(seconds: float) -> str:
    return f"{number(1000 * seconds)} ms"


def times(by_network: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Milliseconds of each round as label, milliseconds."""
    rows = [(label, 1000 * second) for label, seconds in by_network.items() for second in seconds]
    return pd.DataFrame(rows, columns=["label", "milliseconds"])


def kernels(obstacles: Mapping[str, str | None], shapes: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """One row a pruned layer: layer, shape, eligible for 2:4 kernels, and why not."""
    rows = [
        (words.layer(site), " x ".join(map(str, shapes[site])), reason is None, reason or "")
        for site, reason in obstacles.items()
    ]
    return pd.DataFrame(rows, columns=["layer", "shape", "eligible", "reason"])
