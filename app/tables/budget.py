"""What a budget gives each layer, and why, as data frames."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from app.words import layer as layer_name
from snows.config import Dense, parse_pattern
from snows.events import BudgetLayer


def given(layers: Sequence[BudgetLayer], patterns: Mapping[str, str], own: Collection[str] = ()) -> pd.DataFrame:
    """One row a layer, in network order: layer, keeps (the pattern's text), kept (the share), loss (how far the output of the
    network moves, relative to its norm, with this layer alone pruned so; None where that was not measured), own (whether a
    person gave the pattern)."""
    from snows.method.budget import loss_of

    rows = []
    for one in layers:
        pattern = parse_pattern(patterns[one.name])
        known = one.curve and (str(pattern) in one.curve or str(pattern).endswith("%") or isinstance(pattern, Dense))
        loss = loss_of(one.curve, pattern) if known else None
        rows.append((layer_name(one.name), str(pattern), pattern.density, loss, one.name in own))
    return pd.DataFrame(rows, columns=["layer", "keeps", "kept", "loss", "own"])


def alternatives(layers: Sequence[BudgetLayer], patterns: Mapping[str, str], offered: Collection[str] = ()) -> pd.DataFrame:
    """One row a layer and pattern that its curve was measured at: row (of the layer, from 0), keeps, loss, chosen. `offered`:
    the patterns to show, all by default."""
    rows = [
        (row, text, loss, text == patterns[one.name])
        for row, one in enumerate(layers)
        for text, loss in one.curve.items()
        if loss > 0 and (not offered or text in offered or text == patterns[one.name])
    ]
    return pd.DataFrame(rows, columns=["row", "keeps", "loss", "chosen"])


def sentence(frame: pd.DataFrame) -> str:
    """What the budget comes to, for whoever does not see the figure."""
    most, least = frame.loc[frame["kept"].idxmax()], frame.loc[frame["kept"].idxmin()]
    if most["kept"] == least["kept"]:
        return f"Each layer keeps {100 * most['kept']:.3g} % of its weights"
    low, high = (f"{100 * row['kept']:.3g} % of {row['layer']}" for row in (least, most))
    return f"What each layer keeps: from {low} to {high}"
