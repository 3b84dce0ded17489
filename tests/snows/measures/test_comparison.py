"""Networks side by side, each measure against an oracle of its own."""

import math
import time

import pytest
import torch
from torch import Tensor, nn

from snows.measures import comparison
from snows.measures.comparison import OUTPUT, Flip
from snows.measures.metrics import NO_ANSWER
from snows.method.graph import NetworkGraph

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [5.0, 0.0, 1.0]])  # answers 0, 1, 2, 0


class TestAnswers:
    pruned = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 1.0], [4.0, 1.0, 2.0], [0.0, 0.0, 1.0]])  # 1, 1, 0, 2

    def test_flips_are_the_images_with_another_answer_and_what_that_means(self) -> None:
        labels = torch.tensor([0, 1, 0, 1])
        found = comparison.flips(LOGITS, self.pruned, labels)
        assert found == [Flip(0, 0, 1, 0), Flip(2, 2, 0, 0), Flip(3, 0, 2, 1)]
        assert [flip.kind for flip in found] == ["lost", "won", "other"]

    def test_no_answer_is_another_answer_than_any_and_right_for_nobody(self) -> None:
        nothing = torch.full_like(LOGITS, math.nan)
        before, labels = LOGITS.argmax(1).tolist(), LOGITS.argmax(1)
        found = comparison.flips(LOGITS, nothing, labels)
        assert found == [Flip(i, before[i], NO_ANSWER, before[i]) for i in range(len(LOGITS))]
        assert {flip.kind for flip in found} == {"lost"}
        assert {flip.kind for flip in comparison.flips(nothing, LOGITS, labels)} == {"won"}
        assert comparison.flips(nothing, nothing, labels) == []
        # argmax of NaN is a class like any other: each of them, in turn, must not be right.
        for place in range(LOGITS.shape[1]):
            logits = LOGITS.clone()
            logits[:, place] = math.nan
            assert comparison.class_accuracy(logits, torch.full((len(LOGITS),), place))[place] == 0

    def test_without_labels_nobody_knows_who_is_right(self) -> None:
        assert {flip.kind for flip in comparison.flips(LOGITS, self.pruned)} == {"other"}
        assert comparison.flips(LOGITS, LOGITS) == []

    def test_class_accuracy_counts_each_class_s_own_images(self) -> None:
        labels = torch.tensor([0, 0, 2, 0])
        right = comparison.class_accuracy(LOGITS, labels).tolist()
        assert right[0] == pytest.approx(2 / 3)
        assert math.isnan(right[1])
        assert right[2] == 1.0

    @pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (9, 1), (1, 9), (34, 20), (700, 640)])
    def test_sign_test_is_the_exact_binomial_one(self, first: int, second: int) -> None:
        one = torch.tensor([True] * first + [False] * second + [True, False])
        other = torch.tensor([False] * first + [True] * second + [True, False])
        found = comparison.sign_test(one, other)
        assert (found.first_only, found.second_only) == (first, second)
        count = first + second
        as_uneven = [k for k in range(count + 1) if abs(2 * k - count) >= abs(first - second)]
        assert found.chance == pytest.approx(sum(math.comb(count, k) for k in as_uneven) / 2**count, rel=1e-9)

    def test_sign_test_of_more_images_than_a_float_has_room_for(self) -> None:
        # 2 to the power of 10,000 is beyond float64; an even split of that many says nothing, a slight lean much.
        right = torch.zeros(10_000, dtype=torch.bool)
        right[:5_000] = True
        assert comparison.sign_test(right, ~right).chance == 1.0
        right[5_000:5_200] = True
        assert comparison.sign_test(right, ~right).chance == pytest.approx(6.6e-5, rel=0.02)  # z = 3.99, two sides


def cka_by_features(x: Tensor, y: Tensor) -> float:
    """Kornblith et al.'s formula as it is printed, with features on the inside."""
    x, y = (v.double() - v.double().mean(0) for v in (x, y))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


class TestRepresentations:
    def test_cka_is_the_printed_formula(self) -> None:
        torch.manual_seed(0)
        x, y = torch.randn(9, 5), torch.randn(9, 14)
        assert comparison.linear_cka(x, y) == pytest.approx(cka_by_features(x, y), rel=1e-12)

    def test_cka_is_the_correlation_coefficient_squared_of_single_features(self) -> None:
        x, y = torch.tensor([1.0, 2.0, 4.0, 7.0]), torch.tensor([2.0, 1.0, 5.0, 5.0])
        expected = float(torch.corrcoef(torch.stack([x, y]))[0, 1]) ** 2
        assert comparison.linear_cka(x[:, None], y[:, None]) == pytest.approx(expected, rel=1e-6)

    def test_cka_sees_neither_rotation_nor_scale_nor_shift(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(12, 6, dtype=torch.float64)
        rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
        assert comparison.linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, rel=1e-12)
        assert math.isnan(comparison.linear_cka(x, torch.ones(12, 3)))

    def test_cosine_is_of_each_image_and_skips_a_silent_one(self) -> None:
        x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        y = torch.tensor([[0.0, 2.0], [3.0, 3.0], [1.0, 1.0]])
        assert comparison.mean_cosine(x, y) == pytest.approx(0.5)

    def test_relative_error(self) -> None:
        target = torch.tensor([3.0, 4.0])
        assert comparison.relative_error(target, torch.tensor([3.0, 9.0])) == pytest.approx(1)
        assert comparison.relative_error(target, torch.zeros(2)) == 1
        assert math.isnan(comparison.relative_error(torch.zeros(2), target))


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, NetworkGraph]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    return module, NetworkGraph.export(module, torch.zeros(2, 1, 4, 4))


class TestByDepth:
    def test_each_layer_is_compared_by_its_own_output_as_hooks_see_it(self, network: tuple[nn.Module, NetworkGraph]) -> None:
        module, graph = network
        images = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        pruned = comparison.with_weights(module, {**module.state_dict(), "2.weight": module[2].weight.detach() * 0.5})
        captured: dict[tuple[str, str], Tensor] = {}
        hooks = [
            part.register_forward_hook(lambda m, i, out, key=(name, layer): captured.__setitem__(key, out))
            for name, whole in {"dense": module, "pruned": pruned}.items()
            for layer, part in whole.named_children()
        ]
        try:
            with torch.no_grad():
                module(images), pruned(images)
        finally:
            for hook in hooks:
                hook.remove()
        tensors = {"2.weight": pruned[2].weight.detach()}
        found = comparison.by_depth(graph, images, graph.sites, {"half": tensors, "same": {}})
        assert [(row.layer, row.network) for row in found] == [
            (layer, name) for layer in ("0.weight", "2.weight", "5.weight", OUTPUT) for name in ("half", "same")
        ]
        for row in found:
            layer = row.layer.removesuffix(".weight").replace(OUTPUT, "5")
            target = captured["dense", layer]
            value = captured["pruned", layer] if row.network == "half" else target
            x, y = target.flatten(1), value.flatten(1)
            assert row.cka == pytest.approx(cka_by_features(x, y), rel=1e-5)
            assert row.cosine == pytest.approx(float(nn.functional.cosine_similarity(x, y).mean()), rel=1e-5)
            assert row.error == pytest.approx(float((x - y).norm() ** 2 / x.norm() ** 2), rel=1e-5, abs=1e-12)
        assert found[2].error > 0.01

    def test_the_network_given_is_left_as_it_was(self, network: tuple[nn.Module, NetworkGraph]) -> None:
        module, _ = network
        before = module[2].weight.clone()
        changed = comparison.with_weights(module, {name: torch.zeros_like(t) for name, t in module.state_dict().items()})
        assert not changed.training
        assert torch.equal(changed[2].weight, torch.zeros_like(before))
        assert torch.equal(module[2].weight, before)


class TestSizeAndSpeed:
    def test_tasks_take_turns_and_the_warm_up_does_not_count(self) -> None:
        done: list[str] = []

        def task(name: str, seconds: float) -> None:
            done.append(name)
            time.sleep(seconds)

        found = comparison.alternate({"quick": lambda: task("quick", 0), "slow": lambda: task("slow", 0.02)}, rounds=3)
        assert done == ["quick", "slow", "slow", "quick", "quick", "slow", "slow", "quick"]
        assert {name: len(seconds) for name, seconds in found.items()} == {"quick": 3, "slow": 3}
        assert min(found["slow"]) >= 0.02 > min(found["quick"])

    def test_latencies_of_modules(self, network: tuple[nn.Module, NetworkGraph]) -> None:
        module, _ = network
        found = comparison.latencies({"dense": module, "again": module}, torch.zeros(2, 1, 4, 4), rounds=2)
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.values())
