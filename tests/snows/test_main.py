import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snows import events
from snows.__main__ import _parser, main
from snows.config import NM, PruneConfig, RunConfig
from snows.store import Run, RunStore

ROOT = Path(__file__).parents[2]
METRICS = {
    "accuracy_dense": 0.94,
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
        density=0.125,
        status="converged",
        message="Done.",
        seconds=1.5,
        num_products=10,
    )


def _started(resumed: int = 0) -> events.RunStarted:
    return events.RunStarted(device="cpu", sites=SITES, skipped={}, resumed=resumed)


def _finishes(run: Run) -> None:
    run.append(events.Phase(name="load"), _started())
    for index, site in enumerate(SITES):
        run.append(events.SiteStarted(site=site, index=index, operations=["conv1"], shape=[16, 1, 3, 3]))
        run.append(events.CGIteration(site=site, step=1, iteration=1, residual=0.1, curvature=1.0), _site(index))
    run.save_metrics(METRICS)
    run.append(events.RunFinished(metrics=METRICS))


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Run], None]], None]:
    """Puts a function in the runner's place."""

    def put(function: Callable[[Run], None]) -> None:
        monkeypatch.setitem(sys.modules, "snows.runner", types.SimpleNamespace(execute=function))
        monkeypatch.setattr("snows.runner", sys.modules["snows.runner"], raising=False)

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
        "--model vit-fashion --checkpoint w.pt --data photos --num-calibration 64 --num-evaluation 100 --name mine "
        "--pattern 1:8 --override head.weight=dense --override blocks.0.mlp.fc1.weight=2:4 --mask wanda --update sparsegpt "
        "--k-steps 7 --targets propagated --batch-size 32 --seed 5 --device cpu --precision float64 "
        "--batch-norm-reestimate --prune-classifier "
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
        "num_evaluation": 100,
        "name": "mine",
        "prune": config.prune.model_dump(exclude_defaults=True),
    }
    assert config.prune.model_dump(exclude={"solver"}) == {
        "pattern": {"kind": "nm", "n": 1, "m": 8},
        "overrides": {"head.weight": {"kind": "dense"}, "blocks.0.mlp.fc1.weight": {"kind": "nm", "n": 2, "m": 4}},
        "mask": "wanda",
        "update": "sparsegpt",
        "k_steps": 7,
        "targets": "propagated",
        "batch_size": 32,
        "seed": 5,
        "device": "cpu",
        "precision": "float64",
        "prune_classifier": True,
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


def test_every_setting_has_a_flag_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    said = capsys.readouterr().out
    config = RunConfig()
    settings = {*RunConfig.model_fields, *PruneConfig.model_fields, *type(config.prune.solver).model_fields}
    renamed = {"prune": None, "solver": None, "overrides": "override"}
    for name in settings:
        flag = renamed.get(name, name.replace("_", "-"))
        assert flag is None or re.search(rf"^  --{flag}\b.*(\n {{8,}}|  )[A-Za-z.0-9]", said, re.MULTILINE), name


def test_no_flags_mean_the_defaults_of_the_configuration(execute: Callable, store: RunStore) -> None:
    execute(_finishes)
    assert main(["prune"]) == 0
    assert store.list()[0].config() == RunConfig()


def test_human_summary(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(_finishes)
    assert main(["prune"]) == 0
    out = capsys.readouterr().out
    for part in ("94.00 %", "92.00 %", "95.00 %", "12.50 %", "12.5", "321", str(store.list()[0].weights_path)):
        assert part in out


def test_run_is_held_while_it_works(execute: Callable, store: RunStore) -> None:
    seen = []

    def look(run: Run) -> None:
        run.append(_started())
        seen.append(run.state())
        _finishes(run)

    execute(look)
    assert main(["prune"]) == 0
    assert seen == ["running"]
    assert store.list()[0].state() == "finished"


@pytest.mark.parametrize(("bad_input", "code"), [(True, 2), (False, 1)])
def test_failure_is_a_sentence_and_a_code(
    bad_input: bool, code: int, execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = events.RunFailed(message="The disk is full. Free some space.", detail="Traceback …", bad_input=bad_input)
    execute(lambda run: run.append(failure))
    assert main(["prune", "--json"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("The disk is full. Free some space.\n")
    assert "Traceback" not in err
    assert [run.state() for run in store.list()] == ([] if bad_input else ["failed"])


def test_unexpected_error_shows_no_trace(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(run: Run) -> None:
        raise RuntimeError("out of luck")

    execute(crash)
    assert main(["prune"]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError: out of luck" in err
    assert "Traceback" not in err
    assert store.list()[0].state() == "interrupted"


def test_a_runner_that_ends_without_a_result_is_a_failure(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(lambda run: run.append(_started()))
    assert main(["prune"]) == 1
    assert "ended without a result" in capsys.readouterr().err


def test_interrupt_asks_to_cancel_and_says_how_to_go_on(
    execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: Run) -> None:
        run.append(_started(), _site(0))
        os.kill(os.getpid(), signal.SIGINT)
        assert run.cancel_requested()
        run.append(events.RunCancelled(finished_sites=1))

    execute(interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["prune"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    (run,) = store.list()
    assert run.state() == "cancelled"
    assert f"python -m snows prune --resume {run.id}" in capsys.readouterr().err


def test_second_interrupt_stops_at_once(execute: Callable, store: RunStore) -> None:
    def stubborn(run: Run) -> None:
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

    def go_on(resumed: Run) -> None:
        assert resumed == run
        assert not resumed.cancel_requested()
        resumed.append(_started(resumed=1), _site(1))
        resumed.save_metrics(METRICS)
        resumed.append(events.RunFinished(metrics=METRICS))

    execute(go_on)
    assert main(["prune", "--resume", run.id, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["run_id"] == run.id
    assert "2/2" in err
    assert len(store.list()) == 1


def test_resume_refuses_what_cannot_go_on(execute: Callable, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    execute(lambda run: pytest.fail("nothing may run"))
    run = store.create(RunConfig())
    assert main(["prune", "--resume", run.id, "--pattern", "1:4", "--rtol", "0.1"]) == 2
    assert "leave out --pattern, --rtol" in capsys.readouterr().err
    with run.held():
        assert main(["prune", "--resume", run.id]) == 2
    assert "another process works on it" in capsys.readouterr().err
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
    assert "set SNOWS_RUNS to a folder that can be written" in capsys.readouterr().err


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
    assert states["finished"][2:] == ["resnet20-fashion", "1:8", "magnitude + snows K=3", "92.00 %", "95.00 %"]
    assert states["failed"][2:] == ["vit-fashion", "2:4", "magnitude + none", "-", "-"]
    assert "unreadable" in states

    assert main(["list", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"run_id": states["finished"][0], "state": "finished", **METRICS} in records

    assert main(["show", states["finished"][0]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"fc\.weight +12\.50 % +0\.5 +0\.125 +0\.0625 +1\.5 +converged", out)
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


def test_coverage_lists_every_weight(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def plan(config: RunConfig) -> _Plan:
        asked.append(config)
        return _Plan()

    monkeypatch.setitem(sys.modules, "snows.runner", types.SimpleNamespace(plan=plan))
    monkeypatch.setattr("snows.runner", sys.modules["snows.runner"], raising=False)
    flags = "--model resnet20-fashion --pattern 1:4 --k-steps 1 --override fc.weight=dense"
    assert main(["coverage", *flags.split()]) == 0
    out = capsys.readouterr().out
    assert re.search(r"layer1\.0\.conv1\.weight +conv2d +16x16x3x3 +25\.00 % +layer1\.0\.conv1, layer1\.0\.act1", out)
    assert re.search(r"conv1\.weight +4 does not divide", out)
    assert asked[0].prune.k_steps == 1
    assert list(asked[0].prune.overrides) == ["fc.weight"]


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
    monkeypatch.setattr("snows.data.SYSTEM_FOLDER", tmp_path)
    assert main(["bundle-data", "--output", str(tmp_path / "b.npz"), "--root", str(tmp_path)]) == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err


# --- imports ---


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
