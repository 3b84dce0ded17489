"""What is left of a layer by each rule, and the network's answers with it, against the network run from its first layer."""

import pytest
import torch

from app.lessons import worth
from app.lessons.networks import Opened
from snows.method.sparsity import from_matrix


def test_each_rule_keeps_what_it_says() -> None:
    weight = torch.tensor([[4.0, -1.0, 3.0, -2.0], [0.5, -6.0, 5.0, 0.1]])
    assert worth.keep(weight, "size", 0.5).tolist() == [[True, False, True, False], [False, True, True, False]]
    assert worth.keep(weight, "largest", 0.5).tolist() == [[False, True, False, True], [True, False, False, True]]
    assert worth.keep(weight, "hand", 0.5, [1]).tolist() == [[True] * 4, [False] * 4]
    assert worth.keep(weight, "size", 1).sum() == 0
    chance = worth.keep(weight, "chance", 0.25, seed=3)
    assert chance.sum() == 6
    assert torch.equal(chance, worth.keep(weight, "chance", 0.25, seed=3))


@pytest.mark.parametrize(("right", "guess"), [(99, "all"), (50, "half"), (10, "few")])
def test_which_guess_was_right(right: int, guess: str) -> None:
    assert worth.truth(right, 100) == guess


@pytest.mark.slow
@pytest.mark.parametrize("module", ["layer2.0.conv1", "fc"])
def test_the_rest_of_the_network_answers_as_the_whole(network: Opened, module: str) -> None:
    rest = worth.Rest.of(network, module, 20)
    mask = worth.keep(rest.weight, "chance", 0.7)
    site = network.site(module)
    weight = network.graph.parameters[site.name] * from_matrix(mask, site.shape)
    expected, _ = network.graph.run(network.images.evaluation[:20], {site.name: weight})
    torch.testing.assert_close(rest.logits(mask), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rest.logits(mask), rest.logits(torch.ones_like(mask)), atol=0.1)
