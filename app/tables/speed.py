"""How fast a pruned network is beside its dense one, as a table and a sentence. Pure functions of timings (`runs.latency`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from snows.runs.latency import Timing

# Of each program and size of batch.
STEPS = 4


def timings(measured: "Sequence[Timing]") -> pd.DataFrame:
    """One row a program and number of images at once, as `Timing.said` has it."""
    return pd.DataFrame([timing.said() for timing in measured])


def sentence(measured: "Sequence[Timing]", *, before: bool = False) -> str:
    """How many times as fast it is in the program that was timed last, on each size of batch. `before`: the run has yet to be
    made. Empty where nothing was measured."""
    if not measured:
        return ""
    own = [timing for timing in measured if timing.program == measured[-1].program]
    will = "will be" if before else "is"
    parts = []
    for timing in own:
        images = "one image at a time" if timing.batch == 1 else f"on {timing.batch} images at once"
        faster = timing.faster
        if faster.low <= 1 <= faster.high:
            parts.append(f"no faster {images} beyond the noise")
        else:
            parts.append(f"**{faster.median:.2f} times** as fast {images} ({faster.low:.2f} to {faster.high:.2f})")
    return f"In {own[0].program} it {will} " + ", and ".join(parts) + "."
