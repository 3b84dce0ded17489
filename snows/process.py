"""How a process of ours computes, said before torch is imported, for it and what comes with it read the environment once."""

import ctypes
import os
import re
import sys
from collections.abc import Mapping, MutableMapping

# Between two operations a thread of GNU OpenMP turns in circles, by default for milliseconds. Where other programs want the
# cores (a browser that draws this app, say) it so keeps off the very thread that it waits for: many small operations, as in
# mask refinement, then took a hundred times as long. So many turns are microseconds: as fast as before on idle cores.
_TURNS = "2000"
# Every operation of torch gives Python's lock away and takes it back. From a thread that computes in Python, such as a page
# that opens a network, it is had back only at the end of this interval; with Python's own, 5 ms, a run of many small
# operations took fifty times as long beside such a thread (`tests.bench beside`). Seconds.
SWITCH_INTERVAL = 1e-4
# glibc maps every large block anew and hands it back when it is freed, so that each operation of torch pays for fresh pages.
# Up to this size (bytes) a freed block is kept for the next operation. By `mallopt`'s numbers, and what outranks them.
_KEPT = 2**30
_THRESHOLDS = {
    -3: ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold"),
    -1: ("MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold"),
}
# The last one is what a thread says that cannot be started.
_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|(can't|[Cc]annot) allocate memory|bad_alloc|could not create a memory"
    r"|Resource temporarily unavailable"
)


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Threads give way soon, float32 is float32, freed memory is used again; what the environment already says stays."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _TURNS)
    # PyTorch lets convolutions round their factors to TF32 on recent NVIDIA cards, which leaves three digits: too few for
    # curvature products, and a "float32" that is none. This is NVIDIA's own switch for a process; `1` allows it everywhere.
    environment.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    keep_freed_memory(environment)


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> None:
    """Raise glibc's thresholds for this process, but for those that the environment sets; nothing with another C library."""
    if (libc := _glibc()) is not None:
        for number, (name, tunable) in _THRESHOLDS.items():
            if name not in environment and f"{tunable}=" not in environment.get("GLIBC_TUNABLES", ""):
                libc.mallopt(number, _KEPT)


def give_back_memory() -> None:
    """Hand freed memory back to the system at last: after a run, others may want it."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch, oneDNN, safetensors or Python itself says that there is no memory: they have no class for it
    in common."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def _glibc() -> ctypes.CDLL | None:
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError):  # Windows has no confstr, other C libraries no such name
        return None
    return ctypes.CDLL(None)
