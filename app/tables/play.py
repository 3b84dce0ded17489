"""What the first screen says, and a run's end: the networks' answers to the pictures, three shares of right answers, and one
sentence on either."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from app.words import counted
from snows.plans.levels import DENSE, Level, Levels

_SHARES = {"2:4": "half of its weights", "1:4": "1 of 4 weights", "1:8": "1 of 8 weights", "1:16": "1 of 16 weights"}
_NEAR_GUESSING = 1.5  # times what guessing would get right


@dataclass(frozen=True)
class Answer:
    """What a network takes a picture for, its probability, and the dense network's answer where that is another."""

    name: str
    probability: float
    was: str | None = None


def answers(probabilities: np.ndarray, dense: np.ndarray, names: Sequence[str]) -> list[Answer]:
    """One a picture. `probabilities`, `dense`: (N, C), of the network shown and of the dense one. `names`: of the classes."""
    before = [names[i] for i in dense.argmax(1)]
    return [
        Answer(names[row.argmax()], float(row.max()), None if names[row.argmax()] == was else was)
        for row, was in zip(probabilities, before, strict=True)
    ]


def right_so_far(probabilities: np.ndarray, dense: np.ndarray, labels: np.ndarray) -> str:
    """How many pictures (N, C) are given their `labels` (N,), the end of a sentence; empty where there are none."""
    if not len(labels):
        return ""
    now, before = (100 * float((answered.argmax(1) == labels).mean()) for answered in (probabilities, dense))
    return f"; {now:.1f} % of {len(labels)} test pictures right, the dense network {before:.1f} %"


def accuracies(levels: Levels) -> pd.DataFrame:
    """One row a level, densest first: pattern, kept, cut, refitted (shares)."""
    rows = [(level.pattern, level.density, level.cut, level.refitted) for level in levels.levels]
    return pd.DataFrame(rows, columns=["pattern", "kept", "cut", "refitted"])


def share(density: float) -> str:
    """`12.5 %`."""
    return f"{100 * density:g} %"


def sentence(level: Level, refitted: bool, shown: Sequence[Answer], classes: int = 10) -> str:
    """What the state means, in plain words. `shown`: the answers below the pictures, none while they are not known."""

    def right(accuracy: float) -> str:
        return f"right on {100 * accuracy:.0f} of 100 test pictures"

    if level.pattern == DENSE:
        return f"The whole network is {right(level.cut)}. Now take weights away: move the slider."
    kept = _SHARES.get(level.pattern, f"{share(level.density)} of its weights")
    changed = sum(answer.was is not None for answer in shown)
    if refitted:
        gained = level.refitted - level.cut
        less = f", where just cut it was right on {100 * level.cut:.0f}" if gained >= 0.01 else ""
        return f"With {kept} left and refitted, it is {right(level.refitted)}{less}." + _changes(changed, len(shown))
    if len(shown) > 1 and changed and len({answer.name for answer in shown}) == 1:
        what = f"it calls all {len(shown)} of these “{shown[0].name}”, and is {right(level.cut)}"
    else:
        what = f"it is {right(level.cut)}"
    guess = ", about as guessing would be" if level.cut <= _NEAR_GUESSING / classes else ""
    return f"With {kept} left, just cut, {what}{guess}. Refitted, as many weights are right on {100 * level.refitted:.0f}."


def _changes(changed: int, count: int) -> str:
    if not count:
        return ""
    return (
        f" {counted(changed, 'answer')} of these {count} {'is' if changed == 1 else 'are'} another than before."
        if changed
        else (f" All {count} answers here are the whole network's.")
    )


# --- a run's end ---


@dataclass(frozen=True)
class Ending:
    """How often the dense network, the one that was just cut and the refitted one are right, or, where nobody has labels, give
    the dense network's answer. Shares; None: not measured, in runs of older versions, or nothing was refitted."""

    dense: float
    cut: float | None
    refitted: float | None
    labelled: bool

    @classmethod
    def of(cls, metrics: Mapping[str, float | None], update: str) -> "Ending | None":
        """None for a run that was not measured."""
        labelled = metrics.get("accuracy") is not None
        dense = metrics.get("accuracy_dense") if labelled else 1.0
        measure = "accuracy" if labelled else "agreement"
        result, cut = metrics.get(measure), metrics.get(f"{measure}_masked")
        if dense is None or result is None:
            return None
        return cls(dense, result, None, labelled) if update == "none" else cls(dense, cut, result, labelled)

    def bars(self, update: str) -> pd.DataFrame:
        """One row a bar, from the top: label, method (a key of the palette), share."""
        rows = [("Dense", "dense", self.dense), ("Just cut", "none", self.cut), ("Refitted", update, self.refitted)]
        return pd.DataFrame([row for row in rows if row[2] is not None], columns=["label", "method", "share"])

    def sentence(self) -> str:
        """What cutting cost and what the fit brought back, in plain words."""
        cut, refitted = (None if share is None else f"{100 * share:.0f}" for share in (self.cut, self.refitted))
        if not self.labelled:
            parts = [f"just cut on {cut}"] * (cut is not None) + [f"refitted on {refitted}"] * (refitted is not None)
            return f"Of 100 pictures it gives the dense network's answer {', '.join(parts)}."
        parts = [f"{cut} when just cut"] * (cut is not None) + [f"{refitted} refitted"] * (refitted is not None)
        text = f"Of 100 pictures it gets {100 * self.dense:.0f} right while it is dense, {' and '.join(parts)}"
        if self.cut is None or self.refitted is None:
            return f"{text}."
        taken, back = 100 * (self.dense - self.cut), 100 * (self.refitted - self.cut)
        if taken < 1:
            return f"{text}: cutting alone cost next to nothing."
        if back < 0:
            return f"{text}: the fit made it worse."
        return f"{text}: refitting brought back {back:.0f} of the {taken:.0f} points that cutting took."
