"""What is measured of a run that was opened again."""

import dataclasses

import pytest
import torch
from torch import Tensor

from snows.runs.inspection import channel_errors, most_moved
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
