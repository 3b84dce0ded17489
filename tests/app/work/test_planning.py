"""Plans from another process: the same answers, the same errors, and no trace left in this one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.work.planning import Planner
from snows.config import InputError, RunConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def planner() -> Iterator[Planner]:
    planner = Planner()
    yield planner
    if planner._process:
        planner._process.kill()
        planner._process.wait()


def test_answers_as_the_engine_does(planner: Planner) -> None:
    config = RunConfig.model_validate({"num_calibration": 64, "prune": {"pattern": "1:4", "k_steps": 2, "device": "cpu"}})
    plan = planner.plan(config)
    assert [len(site.operations) for site in plan.sites][:3] == [3, 3, 3]
    assert {site.density for site in plan.sites} == {0.25}
    assert "conv1.weight" in plan.skipped
    assert plan.seconds > 0
    assert plan.bytes > 0


def test_bad_input_comes_back_as_a_sentence(planner: Planner) -> None:
    with pytest.raises(InputError, match="no-such-model"):
        planner.plan(RunConfig(model="no-such-model"))
    assert planner.plan(RunConfig()).sites  # and it goes on


def test_an_ended_process_is_named_and_started_again(planner: Planner) -> None:
    planner.start()
    planner._process.kill()
    assert planner._process.wait() != 0
    assert planner.plan(RunConfig()).sites


def test_it_ends_with_the_app() -> None:
    code = "from app.work.planning import Planner; p = Planner(); p.start(); print(p._process.pid)"
    pid = int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    for _ in range(300):
        try:
            if b"app.work.planning" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail(f"process {pid} lives on")
