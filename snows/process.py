"""How a process of ours computes, said before torch is imported, for it and what comes with it read the environment once."""

import os
import sys
from collections.abc import MutableMapping

# Between two operations a thread of GNU OpenMP turns in circles, by default for milliseconds. Where other programs want the
# cores (a browser that draws this app, say) it so keeps off the very thread that it waits for: many small operations, as in
# mask refinement, then took a hundred times as long. So many turns are microseconds: as fast as before on idle cores.
_TURNS = "2000"
# Every operation of torch gives Python's lock away and takes it back. From a thread that computes in Python, such as a page
# that opens a network, it is had back only at the end of this interval; with Python's own, 5 ms, a run of many small
# operations took fifty times as long beside such a thread (`tests.bench beside`). Seconds.
SWITCH_INTERVAL = 1e-4


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Waiting and computing threads give way soon, and float32 is float32; what the environment already says stays."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _TURNS)
    # PyTorch lets convolutions round their factors to TF32 on recent NVIDIA cards, which leaves three digits: too few for
    # curvature products, and a "float32" that is none. This is NVIDIA's own switch for a process; `1` allows it everywhere.
    environment.setdefault("NVIDIA_TF32_OVERRIDE", "0")
