"""What the environment should say: set in time, and only where nobody else has decided."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from snows import process
from snows.process import prepare


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}, {"NVIDIA_TF32_OVERRIDE": "1"}])
def test_what_the_environment_says_stays(own: dict[str, str]) -> None:
    environment = dict(own)
    prepare(environment)
    assert environment.items() >= own.items()
    assert ("GOMP_SPINCOUNT" in environment) == ("OMP_WAIT_POLICY" not in own)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["snows/__main__.py", "app/main.py"])
def test_it_is_set_before_torch_is_imported(entry: str, tmp_path: Path) -> None:
    # OpenMP reads its settings once, when torch brings it along.
    code = f"""
import os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            said = [os.environ.get(name) for name in ("GOMP_SPINCOUNT", "NVIDIA_TF32_OVERRIDE")]
            print(*said, round(sys.getswitchinterval(), 6), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv = ["snows", "coverage", "--model", "resnet20-fashion"]
runpy.run_path({entry!r}, run_name="__main__")
import torch
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "2000 0 0.0001", done.stderr


@pytest.mark.parametrize(
    ("own", "raised"),
    [
        ({}, {-3, -1}),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, {-3}),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, {-1}),
        ({"MALLOC_MMAP_THRESHOLD_": "1", "MALLOC_TRIM_THRESHOLD_": "1"}, set()),
    ],
)
def test_thresholds_of_the_environment_stay(own: dict[str, str], raised: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    library = Mock()
    monkeypatch.setattr(process, "_glibc", lambda: library)
    process.keep_freed_memory(own)
    assert {call.args[0] for call in library.mallopt.call_args_list} == raised


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", Mock(side_effect=ValueError))
    process.keep_freed_memory()
    process.give_back_memory()


@pytest.mark.skipif(process._glibc() is None, reason="only glibc has thresholds")
@pytest.mark.parametrize("kept", [False, True])
def test_a_freed_block_is_used_again_and_given_back_at_last(kept: bool) -> None:
    # In a process of its own: thresholds cannot be put back.
    code = f"""
import ctypes, os, resource
from snows import process
if {kept}:
    process.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
block = libc.malloc(2**26)
ctypes.memset(block, 1, 2**26)
libc.free(block)
freed = resident()
process.give_back_memory()
print(freed - before > 2**25, resident() - before > 2**25)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | {"PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(kept), "False"], done.stderr
