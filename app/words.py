"""How pages say what is on them: a layer's, a pattern's and an operation's name, and what is counted."""

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from snows.config import NM, Budget, LayerPattern, Structured, Unstructured

Key = TypeVar("Key")


def distinct(labels: Mapping[Key, str]) -> dict[Key, str]:
    """The labels, where one that is there already bears a number: Streamlit knows by its label alone what was chosen.

    What comes later never changes the label of what came before it.
    """
    taken: dict[str, Key] = {}
    for key, label in labels.items():
        number, apart = 1, label
        while apart in taken:
            number += 1
            apart = f"{label} ({number})"
        taken[apart] = key
    return {key: label for label, key in taken.items()}


def layer(site: str) -> str:
    """A site's name as a person knows it: the module it belongs to."""
    return site.removesuffix(".weight")


# What Streamlit makes something of once Markdown is read, so that no backslash helps: colors and the like, emoji, addresses,
# arrows and dashes.
_STYLES = "red|orange|yellow|green|blue|violet|gr[ae]y|rainbow|primary|small|material/|streamlit"
_JOINED = re.compile(rf"(?<=:)(?={_STYLES}|//|[\w+-]+:)|(?<=[<>~-])(?=[-=>])|(?<=www)(?=\.)|(?<=@)(?=\w)")
_MARKS = re.compile(r"([\\`*_\[\]<>$~!&])")
_AT_THE_START = re.compile(r"^(\s*\d*)([.)#+-])")


def plain(text: str) -> str:
    """A text that somebody made, such as a run's name, to be shown as it is where Markdown is read: it fetches no image and
    makes no link. Unseen joiners keep apart what would be read as one sign."""
    marked = _MARKS.sub(r"\\\1", _JOINED.sub("\N{WORD JOINER}", text))
    return _AT_THE_START.sub(r"\1\\\2", marked)


def in_figure(text: str) -> str:
    """The same for a figure, which reads a little HTML, and in hover texts `%{…}`."""
    return html.escape(text, quote=False).replace("{", "&#123;")


def without_paths(text: str, paths: Iterable[str] = ()) -> str:
    """The text without the folders of the machine that the app runs on; a file or the last folder keeps its name. `paths`: some
    that may hold blanks."""
    text = re.sub(r"(?<![\w.])~?/(?:[^\s'\"]*/)?\.uploads/[0-9a-f]+/", "", text)
    for path in sorted(filter(lambda path: "/" in path, paths), key=len, reverse=True):
        for form in (str(Path(path).expanduser()), path):
            text = text.replace(form, Path(path).name)
    return re.sub(r"(?<![\w.:/~])(?:~|\.)?/(?:[^\s'\"(),;:]+/)+", "", text)


COUNTED = {"weights": "weights", "operations": "multiply-adds", "bytes": "bytes"}
UNITS = {"width": "units and heads", "channels": "units", "heads": "heads"}
SPREAD = {
    "loss": "where it hurts least",
    "uniform": "evenly",
    "owl": "by outliers (OWL)",
    "alphapruning": "by spectra (AlphaPruning)",
    "erdos-renyi": "by shapes (Erdős-Rényi)",
}


def kept_share(pattern: LayerPattern | Budget) -> str:
    """How much of what a pattern keeps: `25 % of the weights`."""
    if isinstance(pattern, Budget):
        return f"{100 * pattern.share:g} % of the {COUNTED[pattern.by]}"
    return f"{100 * pattern.density:g} % of the {UNITS[pattern.what] if isinstance(pattern, Structured) else 'weights'}"


def pattern_words(pattern: LayerPattern | Budget) -> str:
    """The pattern as a person reads it, with the expert's short form beside it."""
    match pattern:
        case NM():
            return f"Keep {pattern.n} of {pattern.m} weights ({pattern})"
        case Unstructured(scope="layer"):
            return f"Keep {100 * pattern.density:g} % of each layer ({pattern} unstructured)"
        case Unstructured():
            return f"Keep {100 * pattern.density:g} % of the whole network ({pattern})"
        case Structured():
            return f"Keep {kept_share(pattern)}, cut to size ({pattern})"
        case Budget():
            return f"Keep {kept_share(pattern)}, spread {SPREAD[pattern.allocate]} ({pattern})"
    return "Keep every weight (dense)"


def operations(names: list[str]) -> str:
    """A window's operations, `path (kind)` each and n_0 first, as a numbered Markdown list."""
    parts = (name.partition(" (") for name in names)
    return "\n".join(f"{k}. `{path}` {kind.removesuffix(')')}" for k, (path, _, kind) in enumerate(parts))


def words(name: str) -> str:
    """`MAX_ITERS` to `max iters`."""
    return name.replace("_", " ").lower()


# How conjugate gradient ended, by the name of its status: what goes behind its name in a sentence.
CG_ENDED = {
    "CONVERGED": "reached the tolerance",
    "NO_FURTHER_DECREASE": "ended where more would bring next to nothing",
    "MODEL_FAILED": "ended where other images no longer gained",
    "MAX_ITERS": "stopped at the limit",
    "NEGATIVE_CURVATURE": "cut at negative curvature",
    "NOT_FINITE": "stopped at NaN or infinity",
    "ALREADY_OPTIMAL": "had nothing to do",
}


def cg_ended(status: str) -> str:
    """How conjugate gradient ended; a status of another version as it is."""
    return CG_ENDED.get(status, words(status))


def counted(count: int, noun: str) -> str:
    """`1 layer`, `21 layers`, `5,000 runs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
