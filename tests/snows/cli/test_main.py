import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image

from snows import events
from snows.__main__ import _parser, main
from snows.cli.comparisons import slug
from snows.cli.flags import command, config_of
from snows.config import NM, Budget, Cancelled, InputError, PruneConfig, RunConfig, SolverConfig
from snows.measures.descents import WAYS
from snows.method.problem import SiteProblem
from snows.plans.comparisons import METHODS, USUAL
from snows.runs import latency
from snows.runs.store import Execute, Run, RunError, RunStore
from tests.snows.helpers import ALL, case, site_problem

ROOT = Path(__file__).parents[3]
METRICS = {
    "accuracy_dense": 0.94,
    "accuracy_masked": 0.11,
    "accuracy": 0.92,
    "agreement": 0.95,
    "density": 0.125,
    "seconds": 12.5,
    "num_products": 321.0,
}
SITES = ["conv1.weight", "fc.weight"]


def _site(index: int) -> events.SiteFinished:
    return events.SiteFinished(
        site=SITES[index],
        index=index,
        losses={"mask_only": 0.5, "least_squares": 0.125, "final": 0.0625},
        by_k={},
        scale=[1.0],
        exchanged=3,
        density=0.125,
        status="converged",
        message="Done.",
        seconds=1.5,
        num_products=10,
    )


def _started(resumed: int = 0) -> events.RunStarted:
    return events.RunStarted(device="cpu", sites=SITES, skipped={}, resumed=resumed)


def _finishes(run: Run) -> events.RunFinished:
    run.append(events.Phase(name="load"), _started())
    for index, site in enumerate(SITES):
        run.append(events.SiteStarted(site=site, index=index, operations=["conv1"], shape=[16, 1, 3, 3]))
        run.append(events.CGIteration(site=site, step=1, iteration=1, residual=0.1, curvature=1.0), _site(index))
    run.save_metrics(METRICS)
    return events.RunFinished(metrics=METRICS)


def _fails_with_wanda(run: Run) -> events.RunFinished:
    if run.config().prune.mask == "wanda":
        raise RunError("The device ran out of memory.")
    return _finishes(run)


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Callable[[Execute], None]:
    """Puts a function in the runner's place."""

    def put(function: Execute) -> None:
        runner = types.SimpleNamespace(execute=lambda run, device: function(run))
        monkeypatch.setitem(sys.modules, "snows.runs.runner", runner)
        monkeypatch.setattr("snows.runs.runner", sys.modules["snows.runs.runner"], raising=False)

    return put


# --- prune ---


def test_json_result_is_the_last_line_and_the_only_one_on_stdout(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    assert main(["prune", "--json"]) == 0
    out, err = capsys.readouterr()
    (run,) = store.list()
    assert json.loads(out) == {"run_id": run.id, **METRICS}
    assert out.count("\n") == 1
    assert "2/2" in err


def test_flags_reach_the_configuration(execute: Callable, store: RunStore) -> None:
    execute(_finishes)
    flags = (
        "--model vit-fashion --checkpoint w.pt --data photos --num-calibration 64 --num-held-back 9 --num-evaluation 100 "
        "--name mine "
        "--pattern 1:8 --override head.weight=dense --override blocks.0.mlp.fc1.weight=2:4 --mask wanda --refine layer "
        "--update sparsegpt --k-steps 7 --joint network --joint-epochs 3 --targets propagated --ridge 2 "
        "--batch-size 32 --memory 0.5 --seed 5 --device cpu "
        "--precision float64 --repair --batch-norm-reestimate --prune-classifier "
        "--curvature hessian --newton-steps 2 --max-iters 9 --rtol 0.1 --damping 0 --preconditioner none --curvature-share 0.5 "
        "--min-decrease 0.01 --start masked"
    )
    assert main(["prune", *flags.split()]) == 0
    config = store.list()[0].config()
    assert config.model_dump(exclude_defaults=True) == {
        "model": "vit-fashion",
        "checkpoint": "w.pt",
        "data": "photos",
        "num_calibration": 64,
        "num_held_back": 9,
        "num_evaluation": 100,
        "name": "mine",
        "prune": config.prune.model_dump(exclude_defaults=True),
    }
    assert config.prune.model_dump(exclude={"solver"}) == {
        "pattern": {"kind": "nm", "n": 1, "m": 8},
        "overrides": {"head.weight": {"kind": "dense"}, "blocks.0.mlp.fc1.weight": {"kind": "nm", "n": 2, "m": 4}},
        "mask": "wanda",
        "refine": "layer",
        "update": "sparsegpt",
        "k_steps": 7,
        "sweeps": 1,
        "joint": "network",
        "joint_epochs": 3,
        "targets": "propagated",
        "ridge": 2.0,
        "batch_size": 32,
        "memory": 0.5,
        "seed": 5,
        "device": "cpu",
        "precision": "float64",
        "prune_classifier": True,
        "repair": True,
        "batch_norm_reestimate": True,
    }
    assert config.prune.solver.model_dump() == {
        "curvature": "hessian",
        "newton_steps": 2,
        "max_iters": 9,
        "rtol": 0.1,
        "damping": 0.0,
        "preconditioner": "none",
        "curvature_share": 0.5,
        "min_decrease": 0.01,
        "start": "masked",
    }
    assert main(["prune", "--sweeps", "2"]) == 0
    assert sorted(run.config().prune.sweeps for run in store.list()) == [1, 2]


def test_a_budget_takes_the_place_of_a_pattern(execute: Callable, store: RunStore) -> None:
    execute(_finishes)
    assert main(["prune", "--budget", "6.25%"]) == 0
    assert store.list()[0].config().prune.pattern == Budget(share=0.0625)
    store.delete(store.list()[0].id)
    flags = "--budget 10% --budget-by bytes --allocate owl --choose 1:8 2:4 dense --override fc.weight=1:4"
    assert main(["prune", *flags.split()]) == 0
    prune = store.list()[0].config().prune
    assert str(prune.pattern) == "budget 10% of bytes, owl, from 1:8 2:4 dense"
    assert prune.overrides == {"fc.weight": NM(n=1, m=4)}
    store.delete(store.list()[0].id)
    assert main(["prune", "--budget", "5%", "--choose", "any"]) == 0
    assert store.list()[0].config().prune.pattern == Budget(share=0.05, patterns=())


def test_show_says_what_a_budget_gives_each_layer(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def finishes(run: Run) -> events.RunFinished:
        patterns = dict(zip(SITES, ["1:8", "dense"], strict=True))
        run.append(events.Phase(name="budget"), events.BudgetChosen(patterns=patterns, share=0.061, layers=[], seconds=1.0))
        return _finishes(run)

    execute(finishes)
    assert main(["prune", "--budget", "6.25%"]) == 0
    err = capsys.readouterr().err
    assert "The budget is spread: 6.1% is kept" in err
    (run,) = store.list()
    assert main(["show", run.id]) == 0
    shown = capsys.readouterr().out
    assert "budget 6.25%" in shown
    assert re.search(r"LAYER +PATTERN +", shown)
    assert re.search(r"conv1\.weight +1:8 +", shown)
    assert re.search(r"fc\.weight +dense +", shown)


def test_every_setting_has_a_flag_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    said = capsys.readouterr().out
    config = RunConfig()
    settings = {*RunConfig.model_fields, *PruneConfig.model_fields, *type(config.prune.solver).model_fields}
    settings |= {"budget", "budget_by", "allocate", "choose"}
    renamed = {"prune": None, "solver": None, "overrides": "override"}
    for name in settings:
        flag = renamed.get(name, name.replace("_", "-"))
        assert flag is None or re.search(rf"^  --{flag}\b.*(\n {{8,}}|  )[A-Za-z.0-9]", said, re.MULTILINE), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prune": {"pattern": "1:8", "update": "none", "seed": 3, "ridge": 0.0}},
        {"model": "timm:resnet18", "data": "/a folder/it's", "checkpoint": "-x.pt", "name": "-1 & $HOME"},
        {"prune": {"sweeps": 2, "prune_classifier": True, "solver": {"rtol": 0.01, "start": "masked"}}},
        {"prune": {"pattern": "70% global", "overrides": {"fc.weight": "dense", "conv1.weight": "2:4"}}},
    ],
)
def test_the_command_of_a_configuration_makes_it_again(changes: dict) -> None:
    config = RunConfig.model_validate(changes)
    given = _parser().parse_args(shlex.split(command(config))[3:])
    assert config_of(given) == config


def test_no_flags_mean_the_defaults_of_the_configuration(execute: Callable, store: RunStore) -> None:
    execute(_finishes)
    assert main(["prune"]) == 0
    assert store.list()[0].config() == RunConfig()


def test_human_summary(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_finishes)
    assert main(["prune"]) == 0
    out = capsys.readouterr().out
    for part in ("94.00 %", "11.00 %", "92.00 %", "95.00 %", "12.50 %", "12.5", "321", str(store.list()[0].weights_path)):
        assert part in out


def test_the_bar_reads_on_and_not_again(execute: Callable, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets: list[int] = []
    read = Run.events
    monkeypatch.setattr(Run, "events", lambda run, offset=0: (offsets.append(offset), read(run, offset))[1])
    monkeypatch.setattr("snows.cli.runs.POLL_SECONDS", 0.001)

    def chatty(run: Run) -> events.RunFinished:
        run.append(_started())
        while len(offsets) < 20:
            run.append(events.CGIteration(site="fc.weight", step=0, iteration=1, residual=1.0, curvature=1.0))
        return _finishes(run)

    execute(chatty)
    assert main(["prune"]) == 0
    assert offsets.count(0) == 1
    assert offsets == sorted(offsets)


def test_run_is_held_while_it_works(execute: Callable, store: RunStore) -> None:
    seen = []

    def look(run: Run) -> events.RunFinished:
        run.append(_started())
        seen.append(run.state())
        return _finishes(run)

    execute(look)
    assert main(["prune"]) == 0
    assert seen == ["running"]
    assert store.list()[0].state() == "finished"


@pytest.mark.parametrize(("bad_input", "code"), [(True, 2), (False, 1)])
def test_failure_is_a_sentence_and_a_code(
    bad_input: bool, code: int, execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Run) -> events.RunFinished:
        raise (InputError if bad_input else RunError)("The disk is full. Free some space.")

    execute(fail)
    assert main(["prune", "--json"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("The disk is full. Free some space.\n")
    assert "Traceback" not in err
    assert [run.state() for run in store.list()] == ([] if bad_input else ["failed"])


def test_unexpected_error_shows_no_trace(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(run: Run) -> events.RunFinished:
        raise RuntimeError("out of luck")

    execute(crash)
    assert main(["prune"]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError: out of luck" in err
    assert "Traceback" not in err
    last = store.list()[0].events()[0][-1]
    assert isinstance(last, events.RunFailed)
    assert "Traceback" in last.detail


def test_interrupt_asks_to_cancel_and_says_how_to_go_on(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: Run) -> events.RunFinished:
        run.append(_started(), _site(0))
        os.kill(os.getpid(), signal.SIGINT)
        assert run.cancel_requested()
        raise Cancelled

    execute(interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["prune"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    (run,) = store.list()
    assert run.state() == "cancelled"
    assert f"python -m snows prune --resume {run.id}" in capsys.readouterr().err


def test_second_interrupt_stops_at_once(execute: Callable, store: RunStore) -> None:
    def stubborn(run: Run) -> events.RunFinished:
        run.append(_started())
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second interrupt did not stop the run")

    execute(stubborn)
    assert main(["prune"]) == 130
    assert store.list()[0].state() == "interrupted"


def test_resume_goes_on_with_the_same_run(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run = store.create(RunConfig(prune=PruneConfig(pattern=NM(n=1, m=8))))
    run.append(_started(), _site(0), events.RunCancelled(finished_sites=1))
    run.request_cancel()

    def go_on(resumed: Run) -> events.RunFinished:
        assert resumed == run
        assert not resumed.cancel_requested()
        resumed.append(_started(resumed=1), _site(1))
        resumed.save_metrics(METRICS)
        return events.RunFinished(metrics=METRICS)

    execute(go_on)
    assert main(["prune", "--resume", run.id, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["run_id"] == run.id
    assert "2/2" in err
    assert len(store.list()) == 1


@pytest.mark.slow
def test_resume_refuses_what_cannot_go_on(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(lambda run: pytest.fail("nothing may run"))
    run = store.create(RunConfig())
    assert main(["prune", "--resume", run.id, "--pattern", "1:4", "--rtol", "0.1", "--budget-by", "bytes"]) == 2
    assert "leave out --pattern, --budget-by, --rtol" in capsys.readouterr().err
    with run.queue():
        assert main(["prune", "--resume", run.id]) == 2
    assert f"is queued: process {os.getpid()} on {socket.gethostname()} works on it. Wait" in capsys.readouterr().err
    run.append(events.RunFinished(metrics=METRICS))
    assert main(["prune", "--resume", run.id]) == 2
    assert "is finished; there is nothing to resume" in capsys.readouterr().err
    assert main(["prune", "--resume", "nope"]) == 2
    assert "There is no run 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--pattern 3:2", "N smaller than M"),
        ("--pattern soon", "Unknown pattern 'soon'. Write N:M"),
        ("--pattern 120%", "sparsity must be below 1"),
        ("--k-steps -1", "k_steps must be at least 0, but is '-1'."),
        ("--k-steps 1.5", "k_steps must be a whole number"),
        ("--mask biggest", "Unknown mask method 'biggest'"),
        ("--update wish", "update must be one of"),
        ("--targets none", "targets must be one of"),
        ("--curvature flat", "curvature must be one of"),
        ("--num-calibration 0", "num_calibration must be at least 1"),
        ("--num-evaluation many", "num_evaluation must be a whole number"),
        ("--rtol nan", "rtol must be a finite number"),
        ("--damping -1", "damping must be at least 0"),
        ("--curvature-share 0", "curvature_share must be above 0"),
        ("--device tpu", "Unknown device 'tpu'"),
        ("--override fc", "is not of the form SITE=PATTERN"),
        ("--override fc=5:4", "N smaller than M"),
        ("--budget lots", "A budget is a percentage to keep, above 0% and below 100%, such as 6.25%, but is 'lots'."),
        ("--budget 5% --budget-by hats", "by must be one of 'weights', 'operations' or 'bytes'"),
        ("--budget 5% --allocate wishes", "allocate must be one of 'loss'"),
        ("--budget 5% --choose 1:8 9", "Unknown pattern '9'"),
        ("--budget 5% --pattern 1:8", "--budget takes the place of --pattern"),
        ("--allocate owl", "--allocate says how a budget is spread, and there is none. Add --budget"),
        ("--budget 5% --mask mine.safetensors", "The masks of mine.safetensors say which weights stay"),
    ],
)
def test_bad_settings_are_a_sentence_and_no_run(
    flags: str, said: str, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert store.list() == []


def test_descend_sets_the_ways_down_one_layers_loss_side_by_side(
    execute: Callable, store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    assert main(["prune"]) == 0
    (run,) = store.list()
    asked = []

    def problem(site: str, num_images: int, batch_size: int) -> SiteProblem:
        asked.append((site, num_images, batch_size))
        return site_problem(case("mlp", "0.weight", ALL), SolverConfig())

    site = types.SimpleNamespace(name="first.weight", module="first")
    opened = types.SimpleNamespace(sites=[site], problem=problem)
    monkeypatch.setattr("snows.runs.inspection.Inspection.open", lambda run: opened)
    capsys.readouterr()
    assert main(["descend", run.id, "first", "--images", "64", "--passes", "8"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"first.weight of {run.id}, 64 images, from the mask alone: loss ")
    for way in ("Gauss-Newton", "Exact Hessian", "Empirical Fisher", "Adam, rate ", "Gradient descent"):
        assert re.search(rf"^{way}.* %  ", text, re.MULTILINE), way
    assert main(["descend", run.id, "first.weight", "--passes", "8", "--start", "least_squares", "--json"]) == 0
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {point["way"] for point in points} == set(WAYS)
    assert all(point["passes"] <= 8.001 for point in points)
    assert asked == [("first.weight", 64, 32), ("first.weight", 128, 32)]
    assert main(["descend", "nope", "first"]) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prune --bogus 1", "Unrecognized arguments: --bogus"),
        ("prune --patt 2:4", "Unrecognized arguments: --patt"),
        ("frob", "invalid choice: 'frob'"),
        ("show", "arguments are required: RUN"),
        ("train", "arguments are required: --model"),
    ],
)
def test_misspelt_commands_are_a_sentence(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert "--help` shows" in err
    assert err.count("\n") == 1


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "prune " in capsys.readouterr().out


def test_store_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SNOWS_RUNS", str(tmp_path / "file" / "runs"))
    assert main(["prune"]) == 1
    assert "Set SNOWS_RUNS to a folder that can be written" in capsys.readouterr().err


# --- list, show ---


def test_list_without_runs_says_how_to_start(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "Start one with `python -m snows prune`" in capsys.readouterr().out


def test_list_and_show(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_finishes)
    main(["prune", "--pattern", "1:8"])
    failed = store.create(RunConfig(model="vit-fashion", prune=PruneConfig(update="none")))
    failed.append(events.RunFailed(message="It broke. Mend it."))
    (store.root / "20200101-000000-abcd").mkdir()
    (store.root / "20200101-000000-abcd" / "config.json").write_text('{"from": "the future"}')
    capsys.readouterr()

    assert main(["list"]) == 0
    rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    states = {row[1]: row for row in rows}
    assert states["finished"][2:] == ["92.00 %", "95.00 %", "resnet20-fashion · 1:8 · SNOWS, refined mask, K = 3"]
    assert states["failed"][2:] == ["-", "-", "vit-fashion · 2:4 · Magnitude only"]
    assert "unreadable" in states

    assert main(["list", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"run_id": states["finished"][0], "state": "finished", **METRICS} in records

    assert main(["show", states["finished"][0]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"fc\.weight +12\.50 % +3 +0\.5 +0\.125 +0\.0625 +- +1\.5 s +converged", out)
    assert "92.00 %" in out
    assert main(["show", failed.id]) == 0
    assert "It broke. Mend it." in capsys.readouterr().out
    assert main(["show", "nope"]) == 2


# --- coverage, train, bundle-data ---


@dataclass
class _SitePlan:
    name: str = "layer1.0.conv1.weight"
    kind: str = "conv2d"
    shape: tuple[int, ...] = (16, 16, 3, 3)
    density: float = 0.25
    operations: tuple[str, ...] = ("layer1.0.conv1", "layer1.0.act1")


@dataclass
class _Plan:
    sites: list[_SitePlan] = field(default_factory=lambda: [_SitePlan()])
    skipped: dict[str, str] = field(default_factory=lambda: {"conv1.weight": "4 does not divide its 1 input channel"})
    warning: str = "A row of fc has 32 weights to fit, but 8 calibration images give only 8 samples of its input."


def test_coverage_lists_every_weight(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def plan(config: RunConfig) -> _Plan:
        asked.append(config)
        return _Plan()

    monkeypatch.setitem(sys.modules, "snows.runs.estimate", types.SimpleNamespace(plan=plan))
    monkeypatch.setattr("snows.runs.estimate", sys.modules["snows.runs.estimate"], raising=False)
    flags = "--model resnet20-fashion --pattern 1:4 --k-steps 1 --override fc.weight=dense --num-calibration 8 --ridge 1"
    assert main(["coverage", *flags.split()]) == 0
    out = capsys.readouterr().out
    assert "8 calibration images give only 8 samples" in out
    assert (asked[0].num_calibration, asked[0].prune.ridge) == (8, 1.0)
    assert re.search(r"layer1\.0\.conv1\.weight +conv2d +16x16x3x3 +25\.00 % +layer1\.0\.conv1, layer1\.0\.act1", out)
    assert re.search(r"conv1\.weight +4 does not divide", out)
    assert asked[0].prune.k_steps == 1
    assert list(asked[0].prune.overrides) == ["fc.weight"]


@pytest.mark.slow
def test_train_reports_on_stderr_and_prints_its_card(
    fashion_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"train --model resnet20-fashion --epochs 1 --limit 20 --output {tmp_path} --root {fashion_root}"
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == "resnet20-fashion"
    assert "epoch 1/1" in err
    assert (tmp_path / "resnet20-fashion.safetensors").exists()


def test_train_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "resnet50"]) == 2
    assert "Recipes exist for" in capsys.readouterr().err


def test_bundle_data_without_the_full_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("snows.sources.data.SYSTEM_FOLDER", tmp_path)
    assert main(["bundle-data", "--output", str(tmp_path / "b.npz"), "--root", str(tmp_path)]) == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err


# --- study ---


def _learns_with_k(run: Run) -> events.RunFinished:
    """Of 1,000 images a run gets right 900 at K = 0, 949 at K = 3 and 950 at K = 10, each among those of the next."""
    config = run.config()
    k = config.prune.k_steps
    right = {0: 900, 3: 949, 10: 950}[k]
    found = {"accuracy": right / 1000, "agreement": 0.5, "divergence": 0.1, "num_products": 10 + k, "num_evaluation": 1000}
    operations = {"resnet20-fashion": 40, "vit-fashion": 50}[config.model]
    run.append(events.RunStarted(device="cpu", sites=SITES, skipped={}, operations=operations), _site(0), _site(1))
    run.save_metrics(found)
    return events.RunFinished(metrics=found, right=f"{int('1' * right + '0' * (1000 - right), 2):0250x}")


def test_study_says_which_k_is_enough(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_learns_with_k)
    what = "--model resnet20-fashion vit-fashion --k 10 0 3 --num-calibration 64"
    assert main(f"study {what} --pattern 1:8 --targets propagated --seed 7".split()) == 0
    out, err = capsys.readouterr()
    rows = [row.split() for row in out.splitlines()]
    assert rows[0] == ["NETWORK", "K", "OF", "ALL", "ACCURACY", "AGREEMENT", "DIVERGENCE", "CURVATURE", "PRODUCTS"]
    assert rows[2] == ["resnet20-fashion", "3", "8", "%", "94.90", "%", "50.00", "%", "0.1", "nats", "13", "★"]
    assert [(row[0], row[1], row[-1]) for row in rows[1:7]] == [
        (model, k, mark) for model in ("resnet20-fashion", "vit-fashion") for k, mark in (("0", "10"), ("3", "★"), ("10", "☆"))
    ]
    assert out.endswith(
        "vit-fashion: K = 3 is the smallest whose accuracy, 94.90 % (95 % interval 93.4 to 96.1 %), is within the noise of the "
        "best, 95.00 % (93.5 to 96.2 %) at K = 10. All of one seed: another draw of calibration images may order them "
        "otherwise.\n"
    )
    (batch,) = store.comparisons()
    configs = [run.config() for run in batch.runs()]
    assert [(c.prune.k_steps, c.model) for c in configs] == [
        (k, model) for k in (0, 3, 10) for model in ("resnet20-fashion", "vit-fashion")
    ]
    assert {(str(c.prune.pattern), c.prune.targets, c.prune.seed, c.num_calibration) for c in configs} == {
        ("1:8", "propagated", 7, 64)
    }
    assert batch.id in err

    # The same runs again, one line of JSON a network, without pruning anything.
    assert main(["study", batch.id, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["network"], first["operations"], first["recommended"]) == ("resnet20-fashion", 40, 3)
    assert [point["k_steps"] for point in second["points"]] == [0, 3, 10]
    assert second["points"][1]["accuracy"] == 0.949
    assert len(store.list()) == 6


def test_study_goes_on_after_an_interruption(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(run: Run) -> events.RunFinished:
        if run.config().prune.k_steps == 0:
            return _learns_with_k(run)
        os.kill(os.getpid(), signal.SIGINT)
        raise Cancelled

    execute(interrupted)
    assert main(["study", "--k", "0", "3", "10"]) == 130
    (batch,) = store.comparisons()
    assert f"python -m snows study --resume {batch.id}" in capsys.readouterr().err
    assert [run.state() for run in batch.runs()] == ["finished", "cancelled", "cancelled"]
    execute(_learns_with_k)
    assert main(["study", "--resume", batch.id]) == 0
    assert "K = 3 is the smallest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("study --k 3", 2, "A study compares several K"),
        ("study --k 3 soon", 2, "k_steps must be a whole number"),
        ("study --k 1 3 --num-calibration 0", 2, "num_calibration must be at least 1"),
        ("study nonsense", 2, "There is no run 'nonsense'"),
        ("export nonsense", 2, "There is no run 'nonsense'"),
        ("study --resume nonsense", 2, "There is no comparison 'nonsense'"),
    ],
)
def test_study_says_what_is_wrong(
    line: str, code: int, sentence: str, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == code
    assert sentence in capsys.readouterr().err
    assert store.list() == []


def test_study_says_how_many_images_are_enough(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_finishes)
    assert main(["study", "--k", "3", "--num-calibration", "64", "256"]) == 0
    (batch,) = store.comparisons()
    out = capsys.readouterr().out
    assert re.match(r"METHOD +IMAGES +ACCURACY", out)
    assert "No number that was tried can be told from another" in out
    assert "the fewest images within the noise" in out
    assert main(["study", batch.id, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["recommended"], record["k_steps"], "num_calibration" in record) == (64, 3, False)
    assert [point["num_calibration"] for point in record["points"]] == [64, 256]
    assert main(["study", batch.id, "--against", "k"]) == 0
    assert re.match(r"NETWORK +K +OF ALL", capsys.readouterr().out)


def test_notes_are_said_while_it_runs(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(lambda run: (run.append(events.Note(message="Of the images, one is upside down.")), _finishes(run))[1])
    assert main(["prune", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "Of the images, one is upside down." in err
    assert out.count("\n") == 1


def test_study_of_runs_without_k(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run = store.create(RunConfig(prune=PruneConfig(update="none")))
    run.save_metrics(METRICS)
    assert main(["study", run.id]) == 1
    assert "no K to look at" in capsys.readouterr().err


# --- imports ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import snows; snows.PruneConfig(pattern='2:4'); snows.RunStore",
        "from snows.__main__ import main; main(['list'])",
        "from snows.__main__ import main; main(['prune', '--pattern', 'soon'])",
        "from snows.__main__ import main; main([])",
    ],
)
def test_torch_is_not_imported(code: str, store: RunStore) -> None:
    check = f"{code}; import sys; sys.exit(' '.join({{'torch', 'timm', 'numpy', 'tqdm'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_exist() -> None:
    import snows

    for name in snows.__all__:
        assert callable(getattr(snows, name)), name
    assert sorted(snows.__all__) == sorted(snows._HOMES)
    assert dir(snows) == sorted(snows.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        _ = snows.prone


@pytest.mark.slow
def test_output_may_be_cut_short(store: RunStore) -> None:
    for _ in range(3):
        store.create(RunConfig())
    done = subprocess.run(f"{sys.executable} -m snows list | true", shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_commands_of_the_readme_are_understood() -> None:
    parser = _parser()
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    python -m snows ")]
    assert len(lines) >= 8
    for line in lines:
        if "--help" not in line:
            parser.parse_args(shlex.split(line)[3:])


@pytest.mark.slow
def test_example_of_the_readme_does_what_it_says() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["accuracy"] > 0.9


# --- networks and images from elsewhere ---


@pytest.mark.slow
def test_models_are_found_with_size_and_input_before_loading(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "test", "vit", "--limit", "3"]) == 0
    heading, first, *_ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["MODEL", "PARAMETERS", "INPUT", "OUTPUTS", "WEIGHTS"]
    assert first.split()[:4] == ["timm:test_vit", "371,240", "3x160x160", "1,000"]
    assert main(["models", "no-such-thing"]) == 2
    assert "No model has no-such-thing in its name" in capsys.readouterr().err


def test_images_are_shown_before_anything_runs(store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["images", "--num-calibration", "12", "--num-evaluation", "20", "--output", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "12 of 3,000 training images calibrate; 20 of 10,000 test images are measured on." in said
    assert "Measured: accuracy and agreement" in said
    assert "Preparation: Takes 28x28 grey pictures" in said
    with Image.open(sheet) as picture:
        assert picture.size == (6 * 36, 2 * 36)
    assert store.list() == []


def test_a_shell_is_told_what_to_type_and_the_log_is_not(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", "--num-calibration", "5000"]) == 2
    said = "5,000 calibration images were asked for, but Fashion-MNIST has 3,000 training images. Ask for at most 3,000."
    assert f"{said} In the shell: --num-calibration.\n" in capsys.readouterr().err
    assert main(["prune", "--num-calibration", "5000"]) == 2
    assert f"{said} In the shell: --num-calibration.\n" in capsys.readouterr().err


def test_an_archive_of_images_is_unpacked_beside_the_runs(
    execute: Callable, store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        for i in range(4):
            Image.new("L", (28, 28), i).save(tmp_path / "a.png")
            archive.write(tmp_path / "a.png", f"bag/{i}.png")
        archive.writestr("evil.sh", "x")
    assert main(["prune", "--data", str(tmp_path / "shop.zip")]) == 0
    assert "left out 1 file: evil.sh" in capsys.readouterr().err
    data = Path(store.list()[0].config().data)
    assert data.is_relative_to(store.root)
    assert len(list((data / "bag").iterdir())) == 4
    (tmp_path / "bad.zip").write_bytes(b"PK nonsense")
    assert main(["prune", "--data", str(tmp_path / "bad.zip")]) == 2
    assert "not a whole zip or tar archive" in capsys.readouterr().err


@pytest.mark.slow
def test_a_preset_is_a_beginning(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_finishes)
    assert main(["prune", "--preset", "resnet50-cifar100", "--k-steps", "5"]) == 0
    config = store.list()[0].config()
    assert (config.model, config.data, str(config.prune.pattern)) == ("resnet50-cifar100", "cifar-100", "1:4")
    assert config.prune.k_steps == 5
    capsys.readouterr()
    assert main(["prune", "--preset", "resnet51"]) == 2
    assert "There is no preset 'resnet51'. Choose one of resnet50-cifar100" in capsys.readouterr().err
    assert main(["presets"]) == 0
    said = capsys.readouterr().out
    assert "resnet50-cifar100: ResNet-50 on CIFAR-100, keep 1:4, K = 30" in said
    assert "Download: CIFAR-100, 169 MB" in said


def test_class_names_come_from_a_file(execute: Callable, store: RunStore, tmp_path: Path) -> None:
    execute(_finishes)
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    assert main(["prune", "--class-names", str(tmp_path / "names.txt")]) == 0
    assert store.list()[0].config().class_names == ("cat", "dog")


def test_fetch_says_how_to_bring_what_cannot_be_reached(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snows.sources import downloads, named_sets

    monkeypatch.setattr(named_sets, "ROOT", tmp_path)
    monkeypatch.setattr(named_sets, "no_route", lambda address: "no route to host")
    assert main(["fetch", "cifar-10"]) == 2
    said = capsys.readouterr().err
    assert "could not be fetched from www.cs.toronto.edu: no route to host. Download https" in said
    assert f"In the shell: unpack it in {tmp_path} so that the folder cifar-10-batches-py is there" in said
    monkeypatch.setattr(downloads, "hub_path", lambda address: tmp_path / "absent")
    monkeypatch.setattr(downloads, "no_route", lambda address: "no route to host")
    assert main(["fetch", "resnet20-cifar10"]) == 2
    said = capsys.readouterr().err
    assert "bring it here as your own weights. In the shell: --model resnet20-cifar10 --checkpoint FILE." in said
    assert main(["fetch", "vit-fashion"]) == 0


# --- methods ---


def test_methods_says_what_each_is_and_how_to_ask_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\S+): ", out, re.MULTILINE) == [slug(name) for name in METHODS]
    alps = " ".join(out[out.index("\nalps: ") : out.index("\nobc: ")].split())
    assert alps.startswith("alps: ALPS Idea: Pull the weights")
    assert "From: Meng et al. 2024" in alps
    assert "arXiv 2406.07831; Hassibi & Stork 1993" in alps
    assert "Touches: mask and values" in alps
    assert "Cost: One eigendecomposition a layer" in alps
    assert max(map(len, out.splitlines())) <= 110
    assert main(["methods", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["name"] for record in records] == list(METHODS)
    parser = _parser()
    for record, method in zip(records, METHODS.values(), strict=True):
        asked = config_of(parser.parse_args(["prune", *record["flags"].split()])).prune
        assert (asked.mask, asked.update, asked.batch_norm_reestimate, asked.joint, asked.repair) == (
            method.mask,
            method.update,
            method.batch_norm_reestimate,
            method.joint,
            method.repair,
        )
        if method.update != "none":
            assert (asked.targets, asked.refine, asked.ridge > 0) == (method.targets, method.refine, method.has_ridge)


# --- compare ---


def test_compare_makes_a_batch_of_every_combination_and_prints_it_side_by_side(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    flags = "--mask wanda magnitude --update none snows --pattern 2:4 1:8 --k 1 3 --seed 0 1 --num-calibration 64"
    assert main(["compare", *flags.split()]) == 0
    (batch,) = store.comparisons()
    configs = [run.config() for run in batch.runs()]
    assert len(configs) == 2 * 2 * (2 + 2 * 2)  # seeds x patterns x (without an update, and SNOWS with each K; for each mask)
    assert {(c.prune.mask, c.prune.update) for c in configs} == {
        (mask, update) for mask in ("wanda", "magnitude") for update in ("none", "snows")
    }
    assert {c.num_calibration for c in configs} == {64}
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert re.fullmatch(r"METHOD +ACCURACY +CHANGE +AGREEMENT +WEIGHTS KEPT +TIME +SEEDS", lines[0])
    assert re.fullmatch(r"2:4 · Wanda +92.00 % +.2.00 points +95.00 % +12.50 % +12 s +2", lines[2])
    assert re.fullmatch(r"Dense network +94.00 % +100.00 % +100.00 % *", lines[1])
    assert len(lines) == 1 + 1 + 12 + 2
    assert f"Comparison {batch.id}: 24 runs." in err


def test_compare_takes_several_numbers_of_images(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    assert (
        main(["compare", "--method", "wanda", "snows-refined-mask", "--num-calibration", "64", "256", "--num-held-back", "8"])
        == 0
    )
    (batch,) = store.comparisons()
    configs = [run.config() for run in batch.runs()]
    assert [(c.num_calibration, c.prune.update) for c in configs] == [(n, u) for n in (64, 256) for u in ("none", "snows")]
    assert {c.num_held_back for c in configs} == {8}
    assert "SNOWS, refined mask, K = 3 · 256 images" in capsys.readouterr().out


def test_compare_without_a_choice_tries_the_usual_methods(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    assert main(["compare", "--json"]) == 0
    found = [json.loads(line)["method"] for line in capsys.readouterr().out.splitlines()]
    assert found == [f"{name}, K = 3" if name.startswith("SNOWS") else name for name in USUAL]
    assert main(["compare", "--method", "snows-dense-targets", "Wanda"]) == 0
    assert sorted(len(batch.runs()) for batch in store.comparisons()) == [2, len(USUAL)]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--method nonsense", "There is no method 'nonsense'. Choose from magnitude-only, wanda"),
        ("--method wanda --mask wanda", "leave out --mask and --update"),
        ("--seed first", "seed must be a whole number, but is 'first'"),
        ("--pattern 2by4", "Unknown pattern '2by4'"),
        ("--resume nonsense", "There is no comparison 'nonsense'"),
        ("nonsense", "There is no run 'nonsense'"),
    ],
)
def test_compare_refuses_what_cannot_be(
    flags: str, sentence: str, execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    assert main(["compare", *flags.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert store.list() == []


def test_compare_goes_on_after_a_failure_and_resumes_what_is_missing(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_fails_with_wanda)
    assert main(["compare"]) == 1
    (batch,) = store.comparisons()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 + len(USUAL) - 1 + 2
    assert "The device ran out of memory." in err
    assert f"python -m snows compare --resume {batch.id}" in err
    done: list[str] = []
    execute(lambda run: (done.append(run.id), _finishes(run))[1])
    assert main(["compare", "--resume", batch.id]) == 0
    assert done == [batch.runs()[1].id]
    capsys.readouterr()
    assert main(["compare", batch.id]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(USUAL) + 2
    assert main(["compare", *(run.id for run in batch.runs()[:2])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 + 2


def test_compare_stops_as_a_whole_on_ctrl_c_and_for_one_on_the_app_s_cancel(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def interrupted_at_the_third(run: Run) -> events.RunFinished:
        (batch,) = store.comparisons()
        seen.append([other.state() for other in batch.runs()])
        if len(seen) == 1:
            batch.runs()[1].request_cancel()
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            while not run.cancel_requested():
                pass
            raise Cancelled
        return _finishes(run)

    execute(interrupted_at_the_third)
    assert main(["compare"]) == 130
    assert seen[0] == ["queued"] * len(USUAL)  # the app shows them waiting
    assert seen[1] == ["finished", "cancelled"] + ["queued"] * (len(USUAL) - 2)
    (batch,) = store.comparisons()
    assert [run.state() for run in batch.runs()] == ["finished"] + ["cancelled"] * (len(USUAL) - 1)
    assert "--resume" in capsys.readouterr().err


def test_compare_forgets_a_batch_that_never_began(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Run) -> events.RunFinished:
        raise InputError("There is no model 'x'.")

    execute(fail)
    assert main(["compare", "--model", "x"]) == 2
    assert capsys.readouterr().err.count("There is no model 'x'.") == 1
    assert store.list() == store.comparisons() == []


def a_layer_and_then_bad_input(run: Run) -> events.RunFinished:
    run.save_site(0, torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    raise InputError("layer2.weight: the values found for it are NaN.")


def test_a_run_that_fails_after_a_layer_is_kept(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(a_layer_and_then_bad_input)
    assert main(["prune"]) == 2
    (run,) = store.list()
    assert run.state() == "failed"
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "layer2.weight: the values found for it are NaN.",
        f"The layers that are finished are kept: python -m snows show {run.id}",
    ]
    assert main(["show", run.id]) == 0


def test_a_comparison_whose_runs_fail_after_a_layer_is_kept(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(a_layer_and_then_bad_input)
    assert main(["compare", "--pattern", "2:4", "1:4"]) == 2
    assert {run.state() for run in store.list()} == {"failed"}
    assert capsys.readouterr().err.endswith("\nWhat is finished is kept.\n")  # as it is, it would fail again


# --- work, and what is put in line for it ---


def test_compare_queues_and_work_does_it(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_finishes)
    assert main(["compare", "--method", "wanda", "sparsegpt", "--device", "cpu", "--queue", "--json"]) == 0
    (batch,) = store.comparisons()
    out, err = capsys.readouterr()
    assert json.loads(out) == {"comparison": batch.id, "queued": [run.id for run in batch.runs()]}
    assert f"`python -m snows work` on a machine that sees {store.root}" in err
    assert [run.state() for run in batch.runs()] == ["queued"] * 2
    assert main(["compare", "--resume", batch.id, "--queue"]) == 0  # those in line stay where they are
    assert "0 of its runs were put in line" in capsys.readouterr().err
    assert main(["work", "--device", "cpu", "--once"]) == 0
    assert [run.state() for run in batch.runs()] == ["finished", "queued"]
    assert main(["work", "--device", "cpu", "--until-empty", "--root", str(store.root)]) == 0
    assert [run.state() for run in batch.runs()] == ["finished"] * 2
    assert capsys.readouterr().err.count(": finished\n") == 2
    assert main(["work", "--device", "cpu", "--once"]) == 0  # nothing waits


def test_study_queues(execute: Callable, store: RunStore) -> None:
    execute(_finishes)
    assert main(["study", "--k", "0", "1", "--queue"]) == 0
    (batch,) = store.comparisons()
    assert [(run.state(), run.config().prune.k_steps) for run in batch.runs()] == [("queued", 0), ("queued", 1)]


def test_shards_are_the_whole_once(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_finishes)
    line = ["compare", "--method", "wanda", "sparsegpt", "magnitude-only", "--pattern", "2:4", "1:8"]
    assert main([*line, "--queue"]) == 0
    (whole,) = store.comparisons()
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        assert main([*line, "--shard", shard]) == 0
    parts = [batch.runs() for batch in store.comparisons() if batch.id != whole.id]
    assert sorted(map(len, parts)) == [1, 1, 2, 2]
    assert sorted(str(run.config()) for part in parts for run in part) == sorted(str(run.config()) for run in whole.runs())
    assert main(["compare", "--resume", whole.id, "--shard", "2/2"]) == 0
    assert [run.state() for run in whole.runs()] == ["queued", "finished"] * 3


@pytest.mark.parametrize(
    ("shard", "sentence"),
    [
        ("2", "A shard is written i/n, the i-th of n parts, but is '2'. Write 1/2 here and 2/2 elsewhere."),
        ("0/2", "but is '0/2'"),
        ("3/2", "but is '3/2'"),
        ("3/3", "Shard 3/3 of 2 runs is empty. Divide them into at most 2 parts."),
    ],
)
def test_shards_that_cannot_be(
    shard: str, sentence: str, execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_finishes)
    assert main(["compare", "--method", "wanda", "sparsegpt", "--shard", shard]) == 2
    assert sentence in capsys.readouterr().err
    assert store.list() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_stopped_puts_its_run_back_and_says_so(
    number: int, execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(run: Run) -> events.RunFinished:
        run.append(events.Phase(name="load"))
        os.kill(os.getpid(), number)
        while not run.stop_requested():
            pass
        raise Cancelled

    before = signal.getsignal(number)
    execute(stopped)
    runs = [store.create(RunConfig(prune=PruneConfig(device="cpu"))) for _ in range(2)]
    store.enqueue(runs)
    assert main(["work", "--device", "cpu"]) == 130
    assert signal.getsignal(number) == before
    assert [run.state() for run in runs] == ["queued"] * 2
    assert f"{runs[0].id}: back in line; its finished layers are kept" in capsys.readouterr().err


def test_a_worker_goes_on_after_a_failure_and_its_code_says_so(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(_fails_with_wanda)
    assert main(["compare", "--method", "wanda", "sparsegpt", "--device", "cpu", "--queue"]) == 0
    assert main(["work", "--device", "cpu", "--until-empty"]) == 1
    assert "failed. The device ran out of memory." in capsys.readouterr().err
    (batch,) = store.comparisons()
    assert [run.state() for run in batch.runs()] == ["failed", "finished"]


def test_a_worker_for_a_card_where_there_is_none_takes_nothing(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    store.enqueue([run := store.create(RunConfig())])
    assert main(["work", "--device", "cuda:0"]) == 2
    assert "cuda" in capsys.readouterr().err.lower()
    assert run.state() == "queued"
    assert main(["work", "--device", "gpu"]) == 2
    assert "device" in capsys.readouterr().err


def test_show_says_where_it_will_be_faster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SNOWS_RUNS", str(ROOT / "assets" / "runs"))
    assert main(["show", "recorded-1-vit-fashion", "--faster"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"NVIDIA GPU, 2:4 +eligible, not measured +\d+ of 24 ", out)
    assert re.search(r"Core ML, processor +eligible, not measured +24 of 24 +100 %", out)
    assert re.search(r"ONNX Runtime +no +0 of 24 +0", out)
    assert "written on 27 October 2020: https://github.com/microsoft/onnxruntime/issues/5578" in out
    assert main(["show", "recorded-1-vit-fashion"]) == 0
    assert "ONNX Runtime" not in capsys.readouterr().out


def test_how_fast_it_is_here_is_timed_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SNOWS_RUNS", str(ROOT / "assets" / "runs"))
    monkeypatch.setattr(latency, "of_run", lambda run: [latency.Timing("PyTorch", 32, [0.2] * 5, [0.1] * 5)])
    monkeypatch.setattr(latency, "onnx_runtime_obstacle", lambda: "ONNX Runtime is not installed here.")
    assert main(["show", "recorded-1-vit-fashion", "--latency"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"PyTorch +32 +2\.00 +2\.00 to 2\.00 +200 ms +100 ms\nONNX Runtime is not installed here\.\n", out)
    assert main(["coverage", "--pattern", "2:4", "--latency"]) == 2
    assert "2:4 leaves all sizes as they are, so there is nothing to be timed." in capsys.readouterr().err


# --- export ---


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--format onnx --dtype float16", "--dtype is for packed files (--format packed or hub). Leave it out."),
        ("--format packed --push me/it", "--push sends a folder for the hub. Add --format hub."),
        ("--format packed", "has no pruned network yet. Wait until it has finished, or resume it."),
        ("--format csv", "invalid choice: 'csv'"),
    ],
)
def test_an_export_that_cannot_be_is_explained(
    flags: str, sentence: str, store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = store.create(RunConfig())
    arguments = ["export", run.id, "--output", str(tmp_path / "out"), *flags.split()]
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_written_and_pushed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SNOWS_RUNS", str(ROOT / "assets" / "runs"))
    sent: list[tuple[Path, str]] = []

    def push(folder: Path, repository: str) -> str:
        sent.append((folder, repository))
        return "https://hub/" + repository

    monkeypatch.setattr("snows.cli.exports.push", push)
    folder = tmp_path / "folder"
    assert main(f"export recorded-2-resnet20-fashion --format hub --output {folder} --push me/it".split()) == 0
    assert capsys.readouterr().out == f"{folder}\nhttps://hub/me/it\n"
    assert sent == [(folder, "me/it")]
    assert (folder / "README.md").exists()
    monkeypatch.chdir(tmp_path)
    assert main(["export", "recorded-2-resnet20-fashion", "--format", "packed", "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == "recorded-2-resnet20-fashion-packed.safetensors\n"
    whole = (ROOT / "assets" / "runs" / "recorded-2-resnet20-fashion" / "weights.safetensors").stat().st_size
    assert (tmp_path / "recorded-2-resnet20-fashion-packed.safetensors").stat().st_size < whole / 4
