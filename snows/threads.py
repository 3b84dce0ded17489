"""How the threads that PyTorch computes with wait for each other."""

import os
from collections.abc import MutableMapping

# Between two operations a thread of GNU OpenMP turns in circles, by default for milliseconds. Where other programs want the
# cores (a browser that draws this app, say) it so keeps off the very thread that it waits for: many small operations, as in
# mask refinement, then took a hundred times as long. So many turns are microseconds: as fast as before on idle cores.
_TURNS = "2000"


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads give way soon, unless the environment already says how they wait.

    For the processes that are ours, before torch is imported: it reads the environment once.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _TURNS)
