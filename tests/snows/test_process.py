"""What the environment should say: set in time, and only where nobody else has decided."""

import subprocess
import sys
from pathlib import Path

import pytest

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
