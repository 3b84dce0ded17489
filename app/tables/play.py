"""What the first screen says, and a run's end: the networks' answers to the pictures, three shares of right answers, and one
sentence on either."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from app.texts import choices, text
from snows.plans.levels import DENSE, Level, Levels

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
    right, refitted_right = (f"{100 * accuracy:.0f}" for accuracy in (level.cut, level.refitted))
    if level.pattern == DENSE:
        return text("play.whole", right=right)
    left = _left(level)
    changed = sum(answer.was is not None for answer in shown)
    if refitted:
        more = level.refitted - level.cut >= 0.01
        said = text("play.refitted_more" if more else "play.refitted", left=left, right=refitted_right, cut=right)
        return f"{said} {_changes(changed, len(shown))}".rstrip()
    guessing = level.cut <= _NEAR_GUESSING / classes
    if len(shown) > 1 and changed and len({answer.name for answer in shown}) == 1:
        return text(
            "play.cut_same_guessing" if guessing else "play.cut_same",
            left=left,
            right=right,
            refitted=refitted_right,
            count=len(shown),
            name=shown[0].name,
        )
    return text("play.cut_guessing" if guessing else "play.cut", left=left, right=right, refitted=refitted_right)


def _left(level: Level) -> str:
    if level.pattern == "2:4":
        return text("play.half_left")
    if level.pattern.startswith("1:"):
        return text("play.one_left", group=level.pattern.removeprefix("1:"))
    return text("play.share_left", share=share(level.density))


def _changes(changed: int, count: int) -> str:
    if not count:
        return ""
    if not changed:
        return text("play.changed_none", count=count)
    return text("play.changed_one" if changed == 1 else "play.changed_many", changed=changed, count=count)


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
        labels = choices("ending.bars", ("dense", "cut", "refitted")).values()
        rows = zip(labels, ("dense", "none", update), (self.dense, self.cut, self.refitted), strict=True)
        return pd.DataFrame([row for row in rows if row[2] is not None], columns=["label", "method", "share"])

    def sentence(self) -> str:
        """What cutting cost and what the fit brought back, in plain words."""
        dense, cut, refitted = (
            "" if share is None else f"{100 * share:.0f}" for share in (self.dense, self.cut, self.refitted)
        )
        if self.cut is None:
            return text("ending.refitted" if self.labelled else "ending.same_refitted", dense=dense, refitted=refitted)
        if self.refitted is None:
            return text("ending.cut" if self.labelled else "ending.same_cut", dense=dense, cut=cut)
        if not self.labelled:
            return text("ending.same_both", cut=cut, refitted=refitted)
        taken, back = 100 * (self.dense - self.cut), 100 * (self.refitted - self.cut)
        if taken >= 1 and back >= 0:
            return text("ending.back", dense=dense, cut=cut, refitted=refitted, back=f"{back:.0f}", taken=f"{taken:.0f}")
        return text("ending.free" if taken < 1 else "ending.worse", dense=dense, cut=cut, refitted=refitted)
