"""`make gpu`, rehearsed without a card: every part that needs none, on the CPU and small."""

import json
from pathlib import Path

import pytest
import torch

from tests.bench import gpu

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
torch.set_num_threads(1)  # the tests beside this one want the other cores


def test_whole_runs_are_measured_and_one_that_fails_leaves_the_others() -> None:
    networks = [("no such", "no_such_network", "2:4"), ("small", "test_vit", "2:4")]
    missing, small = gpu.large(CPU, 600, networks, images=2, side=160, refine="none", k_steps=1)
    assert "no_such_network" in missing["error"]
    assert "error" not in small
    assert small["products"] > 0
    assert small["passes"] == pytest.approx(small["seconds"] / small["forward_seconds"], rel=0.01)
    assert 0 < small["seconds_to_first_layer"] < small["seconds"]
    assert 0 < small["share"] < 1


def test_what_the_deadline_cuts_off_is_said() -> None:
    (late,) = gpu.large(CPU, 0, [("small", "test_vit", "2:4")], images=4, side=160)
    assert late["error"] == "no time was left"


def test_the_same_device_twice_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BUNDLED", ("vit-fashion",))
    (record,) = gpu.bundled(CPU, 600, ("2:4",), images=8, evaluated=100, refine="none", k_steps=1)
    assert record["masks_alike"] == record["answers_alike"] == 1.0
    assert record["accuracy_cpu"] == record["accuracy_card"] > 0.3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert "finds no CUDA device" in capsys.readouterr().err
    assert gpu.main(["larger"]) == 2
    assert "There are: bundled, tests, large, together." in capsys.readouterr().err
    assert gpu.measure(CPU, ["tests", "together"], tmp_path / "record.json") == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["tests"]["skipped"] > 90
    assert record["together"] == {"skipped": "needs two cards, and there is none"}


def test_a_part_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device, left: float) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.PARTS, "large", fail)
    assert gpu.measure(CPU, ["large", "together"], tmp_path / "record.json") == 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert "out of memory" in record["large"]["error"]
    assert "skipped" in record["together"]
