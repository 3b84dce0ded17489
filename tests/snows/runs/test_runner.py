"""A run folder from its config to its last event, on the bundled network and a few images."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from snows import events
from snows.config import InputError, PruneConfig, RunConfig
from snows.measures import metrics
from snows.method.sparsity import check_compliance
from snows.runs import estimate, runner
from snows.runs.estimate import plan
from snows.runs.inspection import Inspection
from snows.runs.store import Run, RunStore, StoreError
from snows.sources import data, models
from tests.bench.speed import ROOT

pytestmark = pytest.mark.slow

# Four layers from all over the network: a run of seconds that still cascades.
CHOSEN = ("layer1.0.conv1", "layer2.0.downsample.0", "layer3.1.conv2", "fc")
LEFT = [
    "conv1",
    *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)),
    "layer2.0.downsample.0",
    "layer3.0.downsample.0",
]


def config(**overrides: Any) -> RunConfig:
    prune = {
        "pattern": "2:4",
        "k_steps": 1,
        "prune_classifier": True,
        "ridge": 0,  # with a ridge, no loss that is reported is the minimum
        "batch_size": 4,
        "device": "cpu",
        "overrides": {name: "dense" for name in LEFT if name not in CHOSEN},
        "solver": {"newton_steps": 1, "max_iters": 3, "curvature_share": 0.5},
    } | overrides.pop("prune", {})
    settings = {"num_calibration": 8, "num_evaluation": 40, "prune": prune} | overrides
    return RunConfig.model_validate(settings)


def execute(run: Run) -> None:
    with run.queue() as hold:
        hold.work(runner.execute)


def happened(run: Run) -> list[events.Event]:
    return run.events()[0]


def kinds(run: Run) -> list[str]:
    """The kinds of events in order, phases by name, each kind once in a row."""
    names = [e.name if isinstance(e, events.Phase) else type(e).__name__ for e in happened(run)]
    return [n for i, n in enumerate(names) if i == 0 or names[i - 1] != n]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One finished run that several tests read."""
    run = RunStore(tmp_path_factory.mktemp("runs")).create(config())
    execute(run)
    return run


def test_a_run_goes_through_its_phases_in_order(finished: Run) -> None:
    solved = ["SiteStarted", "CGIteration", "NewtonStep", "SiteFinished"]
    # A row of the classifier keeps 32 of 64 weights, and 8 images are 8 samples.
    assert kinds(finished) == ["Queued", "load", "prune", "RunStarted", "Note", *solved * 4, "evaluate", "save", "RunFinished"]
    (note,) = (e.message for e in happened(finished) if isinstance(e, events.Note))
    assert "A row of fc has 32 weights to fit, but 8 calibration images give only 8 samples" in note
    assert finished.state() == "finished"
    started = next(e for e in happened(finished) if isinstance(e, events.RunStarted))
    assert started.sites == [f"{name}.weight" for name in CHOSEN]
    assert started.skipped["conv1.weight"] == "left dense as asked"
    assert (started.device, started.resumed) == ("CPU", 0)
    assert started.operations == 41  # 22 convolutions and linear layers, 19 activations
    done = [e for e in happened(finished) if isinstance(e, events.SiteFinished)]
    assert [(e.site, e.index) for e in done] == [(f"{name}.weight", i) for i, name in enumerate(CHOSEN)]
    assert all(e.losses["final"] <= min(e.losses["mask_only"], e.losses["least_squares"]) for e in done)
    assert list(finished.finished_sites()) == [0, 1, 2, 3]


def test_losses_on_images_held_back_are_in_the_records(finished: Run) -> None:
    done = [e for e in happened(finished) if isinstance(e, events.SiteFinished)]
    assert all(list(e.held_back) == list(e.by_k) == ["mask_only", "least_squares", "final"] for e in done)
    assert all(len(e.held_back_scale) == len(e.scale) == len(e.held_back["final"]) for e in done)
    # Fitted on 8 images, without a ridge, the classifier meets those and no others.
    assert done[-1].held_back["final"][0] > 2 * done[-1].by_k["final"][0]


def test_metrics_are_complete_and_true(finished: Run) -> None:
    found = finished.metrics()
    assert found is not None
    assert found.keys() == {
        "accuracy_dense",
        "accuracy_masked",
        "accuracy",
        "agreement_masked",
        "agreement",
        "divergence",
        "density",
        "seconds",
        "num_products",
        "dense_bytes",
        "packed_bytes",
        "half_bytes",
        "num_evaluation",
        "chance",
    }
    assert found["chance"] == 0.1
    last = happened(finished)[-1]
    assert isinstance(last, events.RunFinished)
    assert last.metrics == found
    assert all(value is not None and math.isfinite(value) for value in found.values())
    assert found["density"] == pytest.approx(0.5, abs=1e-6)
    assert found["num_evaluation"] == 40
    # Image by image it says the same: 40 of them, a bit each.
    assert len(last.right) == 40 // 4
    assert int(last.right, 16).bit_count() / 40 == pytest.approx(found["accuracy"])
    done = [e for e in happened(finished) if isinstance(e, events.SiteFinished)]
    assert found["num_products"] == sum(e.num_products for e in done) > 0
    assert found["half_bytes"] < found["packed_bytes"] < found["dense_bytes"]
    assert found["seconds"] > sum(e.seconds for e in done) * 0.99


def test_the_weights_load_and_give_the_reported_numbers(finished: Run) -> None:
    model = models.load("resnet20-fashion")
    images = data.load("fashion-mnist", model, 8, 40, 0)
    with torch.no_grad():
        dense_logits = model.module(images.evaluation)
    model.module.load_state_dict(load_file(finished.weights_path), strict=True)
    with torch.no_grad():
        logits = model.module(images.evaluation)
    fresh = models.load("resnet20-fashion").module
    with torch.no_grad():
        for index, name in enumerate(CHOSEN):
            fresh.get_submodule(name).weight.mul_(finished.load_site(index)[1])
        masked_logits = fresh(images.evaluation)
    found = finished.metrics()
    assert metrics.accuracy(masked_logits, images.labels) == pytest.approx(found["accuracy_masked"], abs=1e-9)
    assert metrics.agreement(masked_logits, dense_logits) == pytest.approx(found["agreement_masked"], abs=1e-9)
    assert metrics.accuracy(dense_logits, images.labels) == pytest.approx(found["accuracy_dense"], abs=1e-9)
    assert metrics.accuracy(logits, images.labels) == pytest.approx(found["accuracy"], abs=1e-9)
    assert metrics.agreement(logits, dense_logits) == pytest.approx(found["agreement"], abs=1e-9)
    assert metrics.divergence(logits, dense_logits) == pytest.approx(found["divergence"], rel=1e-3)
    for index, name in enumerate(CHOSEN):
        weight, mask = finished.load_site(index)
        saved = model.module.get_submodule(name).weight
        assert torch.equal(saved, weight)
        assert not bool(saved[~mask].any())
        assert check_compliance(weight, config().prune.pattern).ok


class Killed(BaseException):
    """What no handler catches, as a worker that is gone."""


def stop_after(run: Run, sites: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute `run` until `sites` sites are finished, then cancel it or kill its worker in the middle of the next one."""
    append = Run.append

    def watched(self: Run, *new: events.Event) -> None:
        append(self, *new)
        inside = any(isinstance(e, events.CGIteration) for e in new)
        if inside and len(list(self.finished_sites())) == sites:
            if how == "killed":
                raise Killed
            self.request_cancel()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", watched)
        if how == "killed":
            with pytest.raises(Killed):
                execute(run)
        else:
            execute(run)


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_stopped_run_resumes_to_the_same_end(
    how: str, finished: Run, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.create(config())
    stop_after(run, 2, how, monkeypatch)
    assert list(run.finished_sites()) == [0, 1]
    assert run.state() == ("cancelled" if how == "cancelled" else "interrupted")
    assert not run.cancel_requested()
    assert run.metrics() is None
    assert not run.weights_path.exists()
    if how == "cancelled":
        last = happened(run)[-1]
        assert isinstance(last, events.RunCancelled)
        assert last.finished_sites == 2
        # Not a site but an iteration later.
        assert isinstance(happened(run)[-2], events.CGIteration)

    execute(run)
    assert run.state() == "finished"
    assert [e.resumed for e in happened(run) if isinstance(e, events.RunStarted)] == [0, 2]
    assert [e.index for e in happened(run) if isinstance(e, events.SiteFinished)] == [0, 1, 2, 3]
    whole, resumed = load_file(finished.weights_path), load_file(run.weights_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    expected, found = finished.metrics(), run.metrics()
    assert {n: v for n, v in found.items() if n != "seconds"} == {n: v for n, v in expected.items() if n != "seconds"}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_stopped_in_its_joint_fit_resumes_there(damaged: bool, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk damaged what was kept of it, at its beginning."""
    asked = config(prune={"joint": "network", "joint_epochs": 3, "update": "none"})
    whole, stopped = store.create(asked), store.create(asked)
    execute(whole)
    kept = stopped.path / "joint.safetensors"
    assert not (whole.path / kept.name).exists()
    append = Run.append

    def watched(self: Run, *new: events.Event) -> None:
        append(self, *new)
        if any(isinstance(e, events.JointEpoch) and e.epoch == 0 for e in new):
            self.request_cancel()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", watched)
        execute(stopped)
    assert stopped.state() == "cancelled"
    if damaged:
        kept.write_bytes(kept.read_bytes()[:-1])
    execute(stopped)
    assert [e.resumed for e in happened(stopped) if isinstance(e, events.JointStarted)] == [0, 0 if damaged else 1]
    counted = stopped.log().passes
    assert [e.epoch for e in counted.values()] == [0, 1, 2]
    assert stopped.metrics()["seconds"] >= sum(e.seconds for e in counted.values()) > 0
    assert not kept.exists()
    expected, resumed = load_file(whole.weights_path), load_file(stopped.weights_path)
    assert all(torch.equal(expected[n], resumed[n]) for n in expected)


def test_a_run_with_a_budget_resumes_with_what_was_chosen(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # What overrides leave dense counts too: 85 % of the weights.
    asked = config(prune={"pattern": "budget 90%, from 1:8 1:4 2:4 dense"})
    whole, stopped = store.create(asked), store.create(asked)
    execute(whole)
    assert kinds(whole)[:6] == ["Queued", "load", "prune", "budget", "Measured", "BudgetChosen"]
    chosen = whole.log().budget
    assert chosen is not None
    assert chosen.share <= 0.9
    assert {chosen.patterns[f"{name}.weight"] for name in LEFT if name not in CHOSEN} == {"dense"}
    done = [e for e in happened(whole) if isinstance(e, events.SiteFinished)]
    stop_after(stopped, 2, "cancelled", monkeypatch)
    execute(stopped)
    assert [e.resumed for e in happened(stopped) if isinstance(e, events.RunStarted)] == [0, 2]
    (again,) = (e for e in happened(stopped) if isinstance(e, events.BudgetChosen))
    assert again.patterns == chosen.patterns
    expected, resumed = load_file(whole.weights_path), load_file(stopped.weights_path)
    assert all(torch.equal(expected[n], resumed[n]) for n in expected)
    # Whoever opens the run sees each layer under its own pattern.
    opened = Inspection.open(whole)
    for record in done:
        assert str(opened.covered.patterns[record.site]) == chosen.patterns[record.site]
        assert record.density == pytest.approx(opened.covered.patterns[record.site].density)


def test_a_plan_of_a_budget_that_measures_says_so() -> None:
    by_shape = plan(config(prune={"pattern": "budget 90%, erdos-renyi, from any"}))
    assert by_shape.spreading == 0
    assert len({site.density for site in by_shape.sites}) > 1
    measuring = plan(config(prune={"pattern": "budget 90%, from 1:8 1:4 2:4 dense"}))
    assert 0 < measuring.spreading < measuring.seconds
    with pytest.raises(InputError, match=r"A budget of 5% of the weights cannot be met"):
        plan(config(prune={"pattern": "budget 5%"}))


def test_a_finished_folder_gives_the_same_result_without_work(finished: Run, store: RunStore) -> None:
    run = store.create(config())
    shutil.copytree(finished.path / "sites", run.path / "sites")
    run.append(*happened(finished)[:-1])  # the worker died before it could say that it had finished
    before = len(happened(run))
    execute(run)
    assert not [e for e in happened(run)[before:] if isinstance(e, events.SiteStarted)]
    assert run.metrics()["num_products"] == finished.metrics()["num_products"]
    whole, again = load_file(finished.weights_path), load_file(run.weights_path)
    assert all(torch.equal(whole[n], again[n]) for n in whole)


def test_a_layer_without_its_record_or_with_a_torn_file_is_solved_again(finished: Run, store: RunStore) -> None:
    run = store.create(config())
    shutil.copytree(finished.path / "sites", run.path / "sites")
    torn = run.path / "sites" / "0002.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    written = happened(finished)
    last = next(i for i, e in enumerate(written) if isinstance(e, events.SiteFinished) and e.index == 3)
    run.append(*written[:last])  # the worker died between the file of the last layer and its record
    execute(run)
    assert run.state() == "finished"
    assert [e.resumed for e in happened(run) if isinstance(e, events.RunStarted)] == [0, 2]
    assert [e.index for e in happened(run)[last:] if isinstance(e, events.SiteFinished)] == [2, 3]
    whole, again = load_file(finished.weights_path), load_file(run.weights_path)
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    assert run.metrics()["num_products"] == finished.metrics()["num_products"]


def test_a_run_whose_layers_are_told_apart_otherwise_now_is_not_gone_on_with(finished: Run, store: RunStore) -> None:
    run = store.create(config())
    shutil.copytree(finished.path / "sites", run.path / "sites")
    for event in happened(finished)[:-1]:
        run.append(replace(event, sites=["stem.weight", *event.sites]) if isinstance(event, events.RunStarted) else event)
    execute(run)
    last = happened(run)[-1]
    assert isinstance(last, events.RunFailed)
    assert "began with 5 layers, and now 4 can be pruned; they differ in stem.weight" in last.message


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model": "resnet21-fashion"}, "There is no model 'resnet21-fashion'."),
        ({"checkpoint": "/nowhere/weights.safetensors"}, "There is no checkpoint file /nowhere/weights.safetensors."),
        ({"data": "/nowhere/images"}, "/nowhere/images"),
        ({"prune": {"pattern": "2:9"}}, "No weight of this network can be pruned to this pattern"),
        ({"prune": {"overrides": {"layer9": "dense"}}}, "No prunable weight is called 'layer9'."),
        ({"prune": {"mask": "/nowhere/mask.safetensors"}}, "There is no mask file /nowhere/mask.safetensors."),
    ],
)
def test_a_run_that_cannot_be_done_fails_with_a_sentence(overrides: dict[str, Any], sentence: str, store: RunStore) -> None:
    run = store.create(config(**overrides))
    execute(run)
    last = happened(run)[-1]
    assert isinstance(last, events.RunFailed)
    assert sentence in last.message
    assert last.bad_input
    assert last.detail == ""
    assert "\n" not in last.message
    assert run.state() == "failed"
    assert run.metrics() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_where_there_is_none(store: RunStore) -> None:
    run = store.create(config(prune={"device": "cuda"}))
    execute(run)
    last = happened(run)[-1]
    assert isinstance(last, events.RunFailed)
    assert last.message == "Device 'cuda' was asked for, but PyTorch finds no CUDA device here. Choose cpu or auto."
    assert kinds(run) == ["Queued", "load", "RunFailed"]


def test_images_of_the_wrong_size_fail_with_a_sentence(store: RunStore, tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((30, 30), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    run = store.create(config(data=str(tmp_path), num_calibration=2, num_evaluation=1))
    execute(run)
    last = happened(run)[-1]
    assert isinstance(last, events.RunFailed)
    assert last.bad_input
    assert "28x28" in last.message


def test_images_without_labels_have_no_accuracy(store: RunStore, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 255, (28, 28), np.uint8)).save(tmp_path / f"{i}.png")
    run = store.create(config(data=str(tmp_path), num_calibration=3, num_evaluation=3, prune={"update": "none"}))
    execute(run)
    found = run.metrics()
    assert found is not None, happened(run)[-1]
    assert found["accuracy"] is None
    assert found["accuracy_dense"] is None
    assert found["accuracy_masked"] is None
    assert found["agreement_masked"] == found["agreement"]  # nothing was refitted
    assert 0 <= found["agreement"] <= 1


def test_what_the_images_lack_is_noted(store: RunStore, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (28, 28), np.uint8)).save(folder / f"{i}.png")
    run = store.create(config(data=str(folder), num_calibration=2, num_evaluation=2, prune={"update": "none"}))
    execute(run)
    notes = [e.message for e in happened(run) if isinstance(e, events.Note)]
    included, held_back = notes
    assert "calibration images included" in included
    assert "32 images were to be held back from the fit, but calibration leaves none" in held_back


def test_a_long_evaluation_says_how_far_it_is(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("snows.runs.runner.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("snows.runs.runner.EVALUATION_BATCH", 10)
    run = store.create(config(prune={"update": "none"}))
    execute(run)
    said = [(e.done, e.total) for e in happened(run) if isinstance(e, events.Measured)]
    assert said
    assert said == sorted(set(said))
    assert {total for _, total in said} == {120}  # through three networks
    assert said[-1][0] <= 120


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_an_unexpected_error_is_a_sentence_with_its_trace_apart(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "prune", failing(RuntimeError("the moon was full")))
    run = store.create(config())
    execute(run)
    last = happened(run)[-1]
    assert isinstance(last, events.RunFailed)
    assert not last.bad_input
    assert last.message.startswith("The run stopped on an unexpected error (RuntimeError: the moon was full).")
    assert "Traceback" in last.detail
    assert "Traceback" not in last.message


def test_no_memory_names_the_remedy(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "prune", failing(torch.OutOfMemoryError("CUDA out of memory")))
    run = store.create(config())
    execute(run)
    last = happened(run)[-1]
    assert isinstance(last, events.RunFailed)
    assert last.message.startswith("The device ran out of memory. Use a smaller batch size")


def test_a_full_disk_is_how_the_run_ended(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "save_site", failing(StoreError("no space")))
    run = store.create(config(prune={"update": "none"}))
    with run.queue() as hold:
        assert (run.path / "reserve").stat().st_size > 10_000
        hold.work(runner.execute)
        assert not (run.path / "reserve").exists()  # its room was given to the event
    last = happened(run)[-1]
    assert isinstance(last, events.RunFailed)
    assert last.message == "no space"
    assert not last.bad_input


def test_a_run_asked_to_stop_before_it_starts_does_no_layer(store: RunStore) -> None:
    run = store.create(config())
    with run.queue() as hold:
        run.request_cancel()
        hold.work(runner.execute)
    assert run.state() == "cancelled"
    assert kinds(run) == ["Queued", "RunCancelled"]
    assert not run.cancel_requested()


def test_evaluation_can_be_cancelled_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "EVALUATION_BATCH", 2)
    module = torch.nn.Linear(3, 2)
    images = torch.randn(7, 3)
    sizes: list[int] = []
    whole = runner.logits(module, images, config().prune, torch.device("cpu"), sizes.append)
    assert sizes == [2, 2, 2, 1]
    with torch.no_grad():
        torch.testing.assert_close(whole, module(images))


# --- beforehand ---


@pytest.fixture(scope="module")
def planned() -> estimate.Plan:
    return plan(config())


def test_a_plan_names_what_the_run_will_do(planned: estimate.Plan, finished: Run) -> None:
    started = [e for e in happened(finished) if isinstance(e, events.SiteStarted)]
    assert [(s.name, list(s.shape), s.operations) for s in planned.sites] == [(e.site, e.shape, e.operations) for e in started]
    assert [s.kind for s in planned.sites] == ["conv2d", "conv2d", "conv2d", "linear"]
    assert all(s.density == 0.5 for s in planned.sites)
    announced = next(e for e in happened(finished) if isinstance(e, events.RunStarted))
    assert planned.skipped == announced.skipped
    # Images of 32 x 32: the shortcut halves them, the last stage has 8 x 8 positions, the classifier one.
    assert [s.samples for s in planned.sites] == [8 * 1024, 8 * 256, 8 * 64, 8]
    assert [s.to_fit for s in planned.sites] == [72, 8, 288, 32]
    assert planned.warning in [e.message for e in happened(finished) if isinstance(e, events.Note)]
    assert plan(config(num_calibration=32)).warning == ""


def test_a_plan_estimates_time_and_memory(planned: estimate.Plan) -> None:
    assert 0 < planned.seconds < 600
    assert 1e5 < planned.bytes < 1e10
    more = plan(config(num_calibration=800, prune={"k_steps": 6, "solver": {"newton_steps": 10}}))
    assert more.seconds > 3 * planned.seconds
    assert more.bytes > planned.bytes
    assert [len(s.operations) for s in more.sites] == [7, 7, 6, 1] or len(more.sites[0].operations) == 7
    joint = plan(config(prune={"joint": "network"}))
    assert joint.together > 0
    assert joint.seconds == pytest.approx(sum(site.seconds for site in joint.sites) + joint.together)
    assert joint.left({site.name: site.seconds for site in joint.sites})[0] == pytest.approx(joint.together, rel=0.6)


def test_a_plan_gives_a_range_that_narrows_with_the_layers_that_are_timed(planned: estimate.Plan) -> None:
    assert planned.seconds == pytest.approx(sum(site.seconds for site in planned.sites))
    least, most = planned.range
    assert least < planned.seconds < most
    steady = replace(planned, unsteady=1.0)
    assert steady.left({}) == pytest.approx(steady.range)
    names = [site.name for site in planned.sites]
    twice = {site.name: 2 * site.seconds for site in planned.sites}
    rest = [sum(2 * site.seconds for site in planned.sites[done:]) for done in range(len(names))]
    wide = []
    for done in (1, 2, 3):
        low, high = steady.left({name: twice[name] for name in names[:done]})
        assert low < rest[done] < high
        wide.append((high - low) / rest[done])
    assert wide == sorted(wide, reverse=True)
    assert wide[0] < (most - least) / planned.seconds + 0.5
    assert steady.left(twice) == (0, 0)
    noisy = replace(planned, unsteady=3.0)
    assert noisy.range[1] == pytest.approx(3 * steady.range[1])


def test_a_plan_refuses_the_mask_of_another_network(tmp_path: Path) -> None:
    save_file({"elsewhere.weight": torch.zeros(2, 2, dtype=torch.bool)}, tmp_path / "mask.safetensors")
    with pytest.raises(InputError, match="The mask file has no mask for"):
        plan(config(prune={"mask": str(tmp_path / "mask.safetensors")}))


PEAK = """
import sys
from snows.process import prepare
prepare()
import torch
from snows.sources import models
from snows.config import RunConfig
from snows.method.pruner import prune
from tests.bench.speed import peak_bytes

config = RunConfig.model_validate_json(sys.argv[1])
model = models.load_configured(config)
images = torch.randn(config.num_calibration, *model.input_size)
prune(model.module, images, config.prune)
print(peak_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read as Linux tells it")
@pytest.mark.parametrize(("images", "share"), [(384, 1.0), (1024, 0.25)])
def test_the_memory_that_a_plan_says_is_what_a_run_takes(images: int, share: float) -> None:
    settings: dict[str, Any] = {"pattern": "1:4", "solver": {"curvature_share": share, "newton_steps": 1, "max_iters": 1}}
    given: dict[str, Any] = {"model": "resnet20-fashion", "num_calibration": images, "num_held_back": 0, "prune": settings}
    sites = [site.name for site in plan(RunConfig.model_validate(given)).sites]
    settings["overrides"] = dict.fromkeys(sites[1:], "dense")  # the first layer's window is the largest
    chosen = RunConfig.model_validate(given)
    arguments = [sys.executable, "-c", PEAK, chosen.model_dump_json()]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < plan(chosen).bytes < 1.3 * int(done.stdout)


def test_a_plan_counts_the_systems_of_a_layers_rows() -> None:
    def planned(preconditioner: str) -> estimate.Plan:
        prune = {"pattern": "2:4", "solver": {"preconditioner": preconditioner}}
        return plan(RunConfig.model_validate({"model": "timm:vit_tiny_patch16_224", "num_calibration": 1, "prune": prune}))

    # mlp.fc2 has 192 rows, each with 384 of 768 weights kept: inverses (192, 384, 384) in float32, for a mask and the next.
    assert planned("row_blocks").bytes - planned("none").bytes == pytest.approx(2 * 192 * 384**2 * 4, rel=0.1)


@pytest.mark.slow
def test_a_plan_counts_the_search_for_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_seconds_of_products", lambda device: 1e-9)
    scored, searched = (
        plan(RunConfig(num_calibration=1, num_held_back=0, prune=PruneConfig(pattern="2:4", mask=mask, update="none")))
        for mask in ("wanda", "obc")
    )
    cubes = sum(site.shape[0] * math.prod(site.shape[1:]) ** 3 for site in searched.sites)
    assert searched.seconds - scored.seconds == pytest.approx(15e-9 * cubes, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model": "resnet21-fashion"}, "There is no model 'resnet21-fashion'"),
        ({"prune": {"overrides": {"layer9": "dense"}}}, "No prunable weight is called 'layer9'"),
    ],
)
def test_a_plan_that_cannot_be_made_gives_a_sentence(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        plan(config(**overrides))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Few images on few cores: bit-for-bit comparisons must not depend on how work was split."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("labelled", [True, False])
def test_outputs_that_are_not_numbers_are_never_right(labelled: bool, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    really, loaded = runner.logits, data.load_configured
    truth: list[torch.Tensor] = []

    def broken(*args: Any) -> torch.Tensor:
        result = really(*args)
        result[3:7] = math.nan  # of both networks: argmax of NaN is class 0, so they would agree, and be right on that class
        result[11, 2] = math.nan
        truth.append(result)
        return result

    def load(*args: Any, **kwargs: Any) -> data.Data:
        images = loaded(*args, **kwargs)
        return replace(images, labels=torch.zeros_like(images.labels) if labelled else None)

    monkeypatch.setattr(runner, "logits", broken)
    monkeypatch.setattr(data, "load_configured", load)
    run = store.create(config())
    execute(run)
    last, found = happened(run)[-1], run.metrics()
    assert isinstance(last, events.RunFinished)
    assert found == last.metrics
    assert found["divergence"] is None
    dense, pruned, _ = (logits.argmax(1) for logits in truth)  # and when it is just cut
    answered = torch.ones(40, dtype=torch.bool)
    answered[[3, 4, 5, 6, 11]] = False
    assert found["agreement"] == float((answered & (dense == pruned)).double().mean())
    right = answered & (pruned == (0 if labelled else dense))
    assert np.unpackbits(np.frombuffer(bytes.fromhex(last.right), np.uint8)).tolist() == right.int().tolist()
    if labelled:
        assert found["accuracy"] == float(right.double().mean())
    notes = [event.message for event in happened(run) if isinstance(event, events.Note)]
    said = [note for note in notes if "no answer to 5 of 40 evaluation images" in note]
    assert [note.split()[1] for note in said] == ["dense", "pruned"]
    json.loads((run.path / "metrics.json").read_text(), parse_constant=pytest.fail)
