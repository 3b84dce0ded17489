"""How a process of ours computes, said before torch is imported, for it and what comes with it read the environment once."""

import os
from collections.abc import MutableMapping

# Between two operations a thread of GNU OpenMP turns in circles, by default for milliseconds. Where other programs want the
# cores (a browser that draws this app, say) it so keeps off the very thread that it waits for: many small operations, as in
# mask refinement, then took a hundred times as long. So many turns are microseconds: as fast as before on idle cores.
_TURNS = "2000"


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Waiting threads give way soon, and float32 is float32; what the environment already says stays."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _TURNS)
    # PyTorch lets convolutions round their factors to TF32 on recent NVIDIA cards, which leaves three digits: too few for
    # curvature products, and a "float32" that is none. This is NVIDIA's own switch for a process; `1` allows it everywhere.
    environment.setdefault("NVIDIA_TF32_OVERRIDE", "0")
