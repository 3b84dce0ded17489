"""What is measured of a run that was opened again."""

import dataclasses

import pytest
import torch
from torch import Tensor

from snows.config import PruneConfig, RunConfig
from snows.measures import metrics
from snows.method.graph import NetworkGraph
from snows.runs import runner
from snows.runs.inspection import Inspection, InspectionError, channel_errors, most_moved
from snows.runs.store import RunStore
from tests.snows.helpers import CASE_IDS, CASES, assert_entries_close, captured_values, case
from tests.snows.method.test_updates import site_problem


def channel(value: Tensor, kind: str, number: int) -> Tensor:
    return value.select(value.ndim - 1 if kind == "linear" else 1, number).flatten()


@pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)
def test_channel_errors_are_those_of_the_layer_in_the_whole_network(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    weight = problem.weight + 0.1
    outputs = [captured_values(problem.window, weight, part)[0].detach() for part in problem.parts]
    expected = []
    for number in range(problem.site.shape[0]):
        output, target = (
            torch.cat([channel(value, problem.site.kind, number) for value in values])
            for values in (outputs, [targets[0] for targets in problem.targets])
        )
        expected.append(((output - target) ** 2).sum() / (target**2).sum())
    assert_entries_close(channel_errors(site_problem(problem), weight), torch.stack(expected), what="channel errors")


def test_a_channel_whose_target_is_zero_has_no_relative_error() -> None:
    made = site_problem(case(*CASES[0]))
    made.batches = [dataclasses.replace(b, targets=[t * 0 for t in b.targets]) for b in made.batches]
    assert bool(channel_errors(made, made.weight).isnan().all())


class TestMostMoved:
    before = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    after = torch.tensor([[1.5, 0.0, 3.0], [1.0, 5.0, 0.0]])
    mask = torch.tensor([[True, False, True], [True, True, False]])

    def test_largest_change_of_the_kept_first_and_the_earlier_of_two_alike(self) -> None:
        assert most_moved(self.before, self.after, self.mask, 3).tolist() == [[1, 0], [0, 0], [0, 2]]

    def test_a_pruned_weight_never_counts_and_there_may_be_fewer_than_asked_for(self) -> None:
        assert most_moved(self.before, self.after, self.mask, 99).tolist() == [[1, 0], [0, 0], [0, 2], [1, 1]]

    def test_a_convolution_s_places_have_four_parts(self) -> None:
        before = torch.zeros(2, 3, 2, 2)
        after = before.clone()
        after[1, 2, 0, 1] = -7
        assert most_moved(before, after, torch.ones_like(before, dtype=torch.bool), 1).tolist() == [[1, 2, 0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit-fashion", "resnet20-fashion"])
def test_a_network_that_was_cut_is_opened_in_its_own_sizes(model: str, store: RunStore) -> None:
    config = PruneConfig.model_validate({"pattern": "width 50%", "update": "none"})
    run = store.create(RunConfig(model=model, num_calibration=8, num_held_back=0, num_evaluation=20, prune=config))
    with run.queue():
        runner.execute(run)
    opened = Inspection.open(run)
    recorded = run.metrics()
    assert opened.size() == tuple(recorded[f"{form}_bytes"] for form in ("dense", "packed", "half"))
    network, images = opened.network(), opened.images.evaluation
    smaller = NetworkGraph.export(network, images[:2])
    counted = opened.multiply_adds()
    assert counted.pruned == metrics.multiply_adds(smaller, images[:1]).dense < 0.6 * counted.dense
    assert counted.dense == metrics.multiply_adds(opened.graph, images[:1]).dense
    # Half precision halves what the smaller network has, not what the dense one had.
    assert opened.size().half < 0.6 * opened.size().packed < 0.6 * opened.size().dense
    with torch.no_grad():
        torch.testing.assert_close(network(images), opened.run_network(images, "pruned")[0], rtol=1e-4, atol=1e-4)


def test_a_run_that_has_not_finished_has_no_network(store: RunStore) -> None:
    run = store.create(RunConfig())
    begun = Inspection(run, None, None, None, {}, {}, None)  # type: ignore[arg-type]
    with pytest.raises(InspectionError, match=r"has not finished, so its network is not there yet\."):
        begun.network()
