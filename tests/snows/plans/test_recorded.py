"""The comparison that comes with the app: what it says of its measurements, and that it says nothing that is not so."""

import json
from pathlib import Path

import pytest

from snows.config import InputError
from snows.plans import recorded
from snows.plans.comparisons import summarize
from snows.runs.store import Run

ROOT = Path(__file__).parents[3]
LINE = {"model": "vit-fashion", "pattern": "1:8", "update": "snows", "k_steps": 3, "targets": "dense", "seed": 1}


def test_every_measurement_is_there_once_with_what_follows_from_its_pattern() -> None:
    measured = recorded.comparison()
    lines = (recorded.FOLDER / recorded.MEASUREMENTS).read_text().splitlines()
    assert len({one.config.model_dump_json() for one in measured}) == len(measured) == len(lines)
    rows = summarize([(one.config, one.metrics) for one in measured])
    for row in rows:
        assert {
            "accuracy",
            "agreement",
            "divergence",
            "change",
            "density",
            "bits",
            "multiply_adds",
            "seconds",
        } <= row.values.keys()
        assert row.config.prune.ridge == 0
        assert row.num_evaluation == 5_000
        assert len(row.runs) == 3
    assert [row.config.model for row in rows] == sorted(row.config.model for row in rows)


def test_its_sizes_are_those_of_runs_that_measured_them() -> None:
    by_pattern = {(one.config.model, str(one.config.prune.pattern)): one.metrics for one in recorded.comparison()}
    for name in ("recorded-1-vit-fashion", "recorded-2-resnet20-fashion"):
        run = Run(ROOT / "assets/runs" / name)
        measures, config = run.metrics(), run.config()
        follows = by_pattern[config.model, str(config.prune.pattern)]
        for measure in ("density", "dense_bytes", "packed_bytes", "chance"):
            assert follows[measure] == measures[measure], measure


@pytest.mark.slow
def test_a_size_is_what_the_benchmark_works_out() -> None:
    from tests.bench.quality import size_of

    for line in map(json.loads, (recorded.FOLDER / recorded.SIZES).read_text().splitlines()):
        if line["pattern"] in ("1:16", "90%"):
            assert size_of(line["model"], line["pattern"]) == line


def test_a_line_is_read_as_it_was_measured(tmp_path: Path) -> None:
    line = LINE | {"accuracy": 0.8, "accuracy_dense": 0.9, "device": "CPU, 1 threads", "seconds": 9.0}
    (tmp_path / recorded.MEASUREMENTS).write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"seed": 0, "refine": "window", "joint": "network", "cpu_seconds": 4.0})
    )
    (tmp_path / recorded.SIZES).write_text("")
    plain, refined = recorded.comparison(tmp_path)
    assert (plain.config.prune.refine, plain.config.prune.joint, plain.config.prune.ridge) == ("none", "none", 0)
    assert "seconds" not in plain.metrics  # what else the machine did was in them
    assert "density" not in plain.metrics  # nobody worked it out
    assert (refined.config.prune.refine, refined.config.prune.joint, refined.metrics["seconds"]) == ("window", "network", 4)


def test_what_it_cannot_know_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names unheard_of, which this version does not know"):
        recorded.config_of(LINE | {"unheard_of": 1})
    with pytest.raises(InputError, match="Restore it from the repository"):
        recorded.comparison(tmp_path)
