"""What is measured of a network and of a run, each measure once: its title, unit and meaning, which way is better, and how a
number of it is said. The shell, the pages, the figures and the report all read it here.

The names are those of `metrics.json`, of the rows of `plans.comparisons` and `plans.study`, and of `comparison.Likeness`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# --- numbers as people read them ---


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share of 1 in percent, three significant digits: `93.3 %`."""
    return f"{100 * share:#.3g}".rstrip(".") + " %"


def duration(seconds: float) -> str:
    """`0.42 s`, `28 s`, `1 min 05 s`, `2 h 03 min`."""
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def duration_range(least: float, most: float) -> str:
    """20 to 30 s, 1 to 2 min, 40 s to 1 min 20 s, with a dash: no finer than an estimate is."""
    low, high = _coarse(least), _coarse(most)
    if low < 1:
        return f"under {max(high, 1)} s"
    if low == high:
        return _whole(low)
    unit, seconds = next((unit, seconds) for unit, seconds in _UNITS if low >= seconds)
    if low % seconds == 0 and high % seconds == 0 and (high < 120 or low >= 60):
        return f"{low // seconds}\N{EN DASH}{high // seconds} {unit}"
    return f"{_whole(low)}\N{EN DASH}{_whole(high)}"


_UNITS = (("h", 3600), ("min", 60), ("s", 1))


def _whole(seconds: float) -> str:
    return duration(seconds).removesuffix(" 00 s").removesuffix(" 00 min")


def _coarse(seconds: float) -> int:
    """Seconds to about a tenth, in steps that a person uses."""
    for step, until in ((1, 10), (5, 60), (10, 180), (60, 1800), (300, 7200)):
        if seconds < until:
            return round(seconds / step) * step
    return round(seconds / 1800) * 1800


def size(count: float) -> str:
    """Bytes in the unit that suits: `1.23 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# --- measures ---


@dataclass(frozen=True)
class Measure:
    """`scale` times a value is its number in `unit`, which `form` writes. `words` says a value whose unit depends on it.

    `more_is_better`: or less. `of_images`: a share of the evaluation images, which chance moves. `log`: it spans decades, so
    its axis is logarithmic.
    """

    title: str
    meaning: str
    unit: str = ""
    scale: float = 1.0
    form: str = ".3g"
    more_is_better: bool = False
    of_images: bool = False
    log: bool = False
    words: Callable[[float], str] | None = None

    @property
    def axis(self) -> str:
        """The title of an axis: `Accuracy (%)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def say(self, value: float, deviation: float | None = None) -> str:
        """`93.31 %`; with a standard deviation over seeds `93.31 ± 0.12 %`."""
        if not math.isfinite(value):
            return "not a number" if math.isnan(value) else "infinite"
        if not deviation and self.words is not None:
            return self.words(value)
        text = f"{self.scale * value:{self.form}}"
        if text.startswith("-"):
            text = "\N{MINUS SIGN}" + text[1:]
        if deviation:
            text += f" ± {self.scale * deviation:{self.form.removeprefix('+')}}"
        return f"{text} {self.unit}".rstrip()


def _share(title: str, meaning: str, *, more_is_better: bool = True, of_images: bool = True) -> Measure:
    # Two decimals: one of ten thousand images is a hundredth of a percent, and networks that differ by less than one percent
    # are set side by side everywhere.
    return Measure(title, meaning, "%", 100, ".2f", more_is_better, of_images)


_ERROR = "0: equal, 1: as wrong as answering zero."

MEASURES = {
    "accuracy": _share("Accuracy", "The share of evaluation images it labels rightly."),
    "accuracy_dense": _share(
        "Accuracy of the dense network", "The share of evaluation images that the network labeled rightly before it was pruned."
    ),
    "accuracy_masked": _share(
        "Accuracy, mask only",
        "The share of evaluation images that the network labels rightly when it is just cut: the dense network's own values "
        "under this run's mask, none of them refitted.",
    ),
    "change": Measure(
        "Change", "Of accuracy, against the dense network, in percentage points.", "points", 100, "+.2f", more_is_better=True
    ),
    "agreement": _share(
        "Agreement", "The share of evaluation images on which it gives the dense network's answer. Needs no labels."
    ),
    "agreement_masked": _share(
        "Agreement, mask only",
        "The share of evaluation images on which the network, when it is just cut, gives the dense network's answer. Just cut: "
        "the dense network's own values under this run's mask, none of them refitted.",
    ),
    "divergence": Measure(
        "Divergence",
        "How far its class probabilities are from the dense network's, on evaluation images (Kullback-Leibler). 0: equal.",
        "nats",
        log=True,
    ),
    "density": _share(
        "Weights kept", "The share of weights kept, in the layers that were pruned.", more_is_better=False, of_images=False
    ),
    "packed_bytes": Measure("Size", "With kept weights stored as values and positions: a packed file.", "MB", 1e-6, words=size),
    "half_bytes": Measure(
        "Size, half precision",
        "Of a packed file whose weights are stored in 16 bits, kept or not; biases and norms as they are.",
        "MB",
        1e-6,
        words=size,
    ),
    "bits": Measure(
        "Bits a weight",
        "Of that size, shared out over all weights of the network: the values that are kept with their positions, and what was "
        "left dense in full. The dense network takes 32.",
        form=".2f",
    ),
    "multiply_adds": Measure(
        "Multiply-adds",
        "For one image, those with a removed weight left out: what a program that skips zeros has to do. Attention's own "
        "products count in full.",
        "millions",
        1e-6,
        "#.3g",
    ),
    "seconds": Measure("Time", "Of pruning, from the first layer to the last.", "s", form=".1f", log=True, words=duration),
    "num_products": Measure(
        "Curvature products",
        "How often the solver asked how the loss bends in a direction. Each costs about two passes through the window.",
        form=",.0f",
    ),
    "memory": Measure(
        "Memory",
        "What the layer that needs most has in memory at once: on a GPU all that is measured there, on a CPU the images' "
        "values that wait for their turn, without the batch in work.",
        "MB",
        1e-6,
        log=True,
        words=size,
    ),
    "window_error": Measure(
        "Error ÷ target, window",
        "What SNOWS minimizes: the squared error of the layer and the K operations after it, relative to their values, in the "
        "middle layer. Each K looks at other operations.",
        log=True,
    ),
    "held_back_error": Measure(
        "Error ÷ target, held back",
        "The same as in the window, on images that nothing was fitted on: far above it, the fit does not carry over, and more "
        "calibration images or a larger ridge help.",
        log=True,
    ),
    "own_error": Measure(
        "Error ÷ target, layer",
        "The squared error at the layer's own output, relative to its values, in the middle layer. Looking ahead gives way "
        "here, to be right further on.",
        log=True,
    ),
    "loss": Measure(
        "Loss (mean squared error)",
        "The mean squared error itself, in the units of each layer's own values: what the solver makes smaller.",
        log=True,
    ),
    "relative_loss": Measure(
        "Error ÷ target",
        f"The loss, divided by the size of the values that should come out, so that layers compare. {_ERROR}",
        log=True,
    ),
    "cka": Measure(
        "Linear CKA",
        "Whether the same images lie close together, whatever the axes (Kornblith et al., 2019).",
        "1 = alike",  # what a scale without a unit has in its place
        more_is_better=True,
        words=number,
    ),
    "cosine": Measure(
        "Cosine",
        "Whether each image's values point the same way.",
        "1 = same direction",
        more_is_better=True,
        words=number,
    ),
    "error": Measure(
        "Relative error", f"How far the values are from the dense network's, in direction and size. {_ERROR}", log=True
    ),
    "preserved": Measure(
        "Attention preserved",
        "How near its attention maps are to the dense network's, by Jensen-Shannon divergence, mean over blocks and heads. "
        "100 %: unchanged; 0 %: no nearer than looking everywhere alike, which knows nothing of the image.",
        "%",
        100,
        more_is_better=True,
        words=percent,
    ),
}


def missing(measure: str) -> str:
    """Why a run that has finished has no value of a measure."""
    return "no labels" if measure in ("accuracy", "accuracy_dense", "accuracy_masked", "change") else "not a number"


def said(measure: str, metrics: Mapping[str, float | None]) -> str:
    """A run's measure as people read it; where it has none, why, and `-` where nothing was measured yet."""
    if measure not in metrics:
        return "-"
    value = metrics[measure]
    return missing(measure) if value is None else MEASURES[measure].say(value)
