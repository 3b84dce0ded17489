"""The cascade against a plain reference made of module hooks; what comes out, what is handed on, what is refused."""

import gc
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snows import events
from snows.config import (
    MASKS,
    MASKS_OF_ONE_LAYER,
    NM,
    TARGETS,
    UPDATES,
    Dense,
    InputError,
    PruneConfig,
    SolverConfig,
    Unstructured,
)
from snows.method import rows, updates
from snows.method.cascade import Cancelled
from snows.method.coverage import PruneError, batches_of, coverage, last_remade, resolve_device, scarcity, share_out
from snows.method.graph import ExportError, NetworkGraph
from snows.method.problem import SiteProblem
from snows.method.pruner import PruneResult, prune, reestimate_batch_norm
from snows.method.sparsity import check_compliance, check_compliance_global, keep_mask, to_matrix
from snows.method.updates import UpdateResult
from tests.snows.helpers import ALL, Attention, Residual, assert_entries_close

pytestmark = pytest.mark.slow


class Chain(nn.Module):
    """Every counted operation is a module of its own, so that plain hooks see all of them, in order."""

    OPERATIONS = ("conv1", "act1", "conv2", "act2", "fc1", "act3", "fc2")
    SITES = ("conv1", "conv2", "fc1", "fc2")

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(4, 4, 3, 2, padding=1), nn.BatchNorm2d(4), nn.GELU()
        self.flatten, self.fc1, self.act3, self.fc2 = nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))
        return self.fc2(self.act3(self.fc1(self.flatten(x))))


def seeded(build: Any, *shape: int, images: int = 10) -> tuple[nn.Module, Tensor]:
    """A float64 network with seeded weights and batch-norm statistics, and images for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().double()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
        return module.eval(), torch.randn(images, *shape, dtype=torch.float64)


def chain(images: int = 10) -> tuple[nn.Module, Tensor]:
    return seeded(Chain, 2, 4, 4, images=images)


def residual(images: int = 10) -> tuple[nn.Module, Tensor]:
    return seeded(Residual, 2, 6, 6, images=images)


def config(**overrides: Any) -> PruneConfig:
    settings = {"pattern": "1:2", "precision": "float64", "batch_size": 4, "device": "cpu", "k_steps": 2}
    settings |= {"prune_classifier": True, "ridge": 0} | overrides  # with a ridge, no loss that is reported is the minimum
    return PruneConfig.model_validate(settings)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


# --- the cascade, told with hooks ---


@torch.no_grad()
def hooked(module: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs and outputs of all of the chain's operations."""
    inputs, outputs, handles = {}, {}, []
    for name in Chain.OPERATIONS:

        def hook(_: nn.Module, given: tuple[Tensor], output: Tensor, name: str = name) -> None:
            inputs[name], outputs[name] = given[0], output

        handles.append(module.get_submodule(name).register_forward_hook(hook))
    module(images)
    for handle in handles:
        handle.remove()
    return inputs, outputs


def set_weight(module: nn.Module, site: str, weight: Tensor) -> None:
    module.get_submodule(site).weight.data.copy_(weight)


def matrix_of(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def unmatrix(matrix: Tensor, like: Tensor) -> Tensor:
    if like.ndim == 2:
        return matrix
    return matrix.view(like.shape[0], *like.shape[2:], like.shape[1]).permute(0, 3, 1, 2)


def layer_rows(module: nn.Module, site: str, x: Tensor) -> Tensor:
    layer = module.get_submodule(site)
    if isinstance(layer, nn.Linear):
        return x
    kh, kw = layer.kernel_size
    unfolded = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
    return unfolded.view(len(x), -1, kh, kw, unfolded.shape[-1]).permute(0, 4, 2, 3, 1).reshape(-1, kh * kw * x.shape[1])


def reference_least_squares(
    dense: nn.Module, cascade: nn.Module, site: str, images: Tensor, targets: str, ridge: float
) -> Tensor:
    """The best weight on the magnitude mask for the layer's own output, row by row."""
    weight = dense.get_submodule(site).weight.detach()
    keep = keep_mask(matrix_of(weight).abs(), NM(n=1, m=2))
    inputs, _ = hooked(cascade, images)
    rows = layer_rows(dense, site, inputs[site])
    if targets == "dense":
        output = hooked(dense, images)[1][site]
        bias = dense.get_submodule(site).bias
        output = output if output.ndim == 2 else output.permute(0, 2, 3, 1).flatten(0, 2)
        output = output if bias is None else output - bias.detach()
    else:
        output = rows @ matrix_of(weight).T
    # The pull towards the dense values, and the engine's own faint one, as further rows of the system.
    size = ((ridge / len(images) + 1e-8) * rows.square().mean()).sqrt()
    system = torch.cat([rows / len(rows) ** 0.5, size * torch.eye(rows.shape[1], dtype=rows.dtype)])
    wanted = torch.cat([output / len(rows) ** 0.5, size * matrix_of(weight).T])
    solution = torch.zeros_like(matrix_of(weight))
    for r, row in enumerate(keep):
        solution[r, row] = torch.linalg.lstsq(system[:, row], wanted[:, r : r + 1], driver="gelsd").solution[:, 0]
    return unmatrix(solution, weight)


def reference_losses(
    dense: nn.Module, cascade: nn.Module, site: str, weight: Tensor, images: Tensor, targets: str, k: int
) -> list[float]:
    """The window's loss at each operation when `site` has `weight` in the network as pruned so far."""
    first = Chain.OPERATIONS.index(site)
    here = deepcopy(cascade)
    if targets == "dense":
        wanted = hooked(dense, images)[1]
    else:
        set_weight(here, site, dense.get_submodule(site).weight.detach())
        wanted = hooked(here, images)[1]
    set_weight(here, site, weight)
    reached = hooked(here, images)[1]
    return [float((reached[n] - wanted[n]).square().mean()) for n in Chain.OPERATIONS[first : first + k + 1]]


@pytest.mark.parametrize("ridge", [0.0, 3.0])
@pytest.mark.parametrize("update", ["least-squares", "snows"])
@pytest.mark.parametrize("k", [0, 2, ALL])
@pytest.mark.parametrize("targets", TARGETS)
def test_the_cascade_is_the_reference_cascade(targets: str, k: int, update: str, ridge: float) -> None:
    dense, every = chain(images=75)
    images, held_back = every[:50], every[50:]
    settings = config(update=update, k_steps=k, targets=targets, batch_size=20, refine="none", ridge=ridge)
    result = prune(dense, images, settings, held_back=held_back)
    assert [r.site for r in result.sites] == [f"{site}.weight" for site in Chain.SITES]
    cascade = deepcopy(dense)
    for site, record in zip(Chain.SITES, result.sites, strict=True):
        dense_weight = dense.get_submodule(site).weight.detach()
        mask = unmatrix(keep_mask(matrix_of(dense_weight).abs(), NM(n=1, m=2)), dense_weight)
        found = result.model.get_submodule(site).weight.detach()
        least_squares = reference_least_squares(dense, cascade, site, images, targets, ridge)
        if update == "least-squares":
            assert_entries_close(found, least_squares, rtol=1e-5, atol=1e-6, what=site)
        stages = {"mask_only": dense_weight * mask, "least_squares": least_squares, "final": found}
        assert record.by_k.keys() == stages.keys() - ({"least_squares"} if update == "least-squares" else set())
        assert list(record.held_back) == list(record.by_k)
        for stage in record.by_k:
            weight = stages[stage]
            expected = reference_losses(dense, cascade, site, weight, images, targets, k)
            assert record.by_k[stage] == pytest.approx(expected, rel=1e-5, abs=1e-10), f"{site} {stage}"
            assert record.losses[stage] == pytest.approx(sum(expected), rel=1e-5, abs=1e-10)
            expected = reference_losses(dense, cascade, site, weight, held_back, targets, k)
            assert record.held_back[stage] == pytest.approx(expected, rel=1e-5, abs=1e-10), f"{site} {stage} held back"
        zero = reference_losses(dense, cascade, site, torch.zeros_like(dense_weight), images, targets, 0)
        elsewhere = reference_losses(dense, cascade, site, torch.zeros_like(dense_weight), held_back, targets, 0)
        assert len(record.scale) == len(record.held_back_scale) == len(record.by_k["final"])
        if dense.get_submodule(site).bias is None:
            assert record.scale[0] == pytest.approx(zero[0], rel=1e-9)
            assert record.held_back_scale[0] == pytest.approx(elsewhere[0], rel=1e-9)
        set_weight(cascade, site, found)
    assert_same(weights(cascade), weights(result.model))


@pytest.mark.parametrize(
    "more",
    [
        {"ridge": 4.0},
        {"ridge": 4.0, "sweeps": 2, "mask": "wanda"},
        {"update": "least-squares", "pattern": "50% global", "mask": "sparsegpt"},
        {"update": "sparsegpt", "targets": "propagated", "batch_norm_reestimate": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_what_is_held_back_changes_no_bit(precision: str, more: dict[str, Any]) -> None:
    model, every = residual()
    model, images, held_back = model.float(), every[:7].float(), every[7:].float()
    settings = config(precision=precision, **more)
    alone, beside = prune(model, images, settings), prune(model, images, settings, held_back=held_back)
    assert_same(weights(alone.model), weights(beside.model))
    assert_same(alone.masks, beside.masks)
    assert [(r.by_k, r.scale, r.num_products) for r in alone.sites] == [(r.by_k, r.scale, r.num_products) for r in beside.sites]
    assert all(not r.held_back and not r.held_back_scale for r in alone.sites)
    assert all(len(r.held_back["final"]) == len(r.held_back_scale) == len(r.scale) for r in beside.sites)
    assert all(events.from_json(events.to_json(r)) == r for r in beside.sites)


def test_images_held_back_are_as_the_others_or_refused() -> None:
    model, images = chain()
    with pytest.raises(PruneError, match=r"one shape, but there are \(2, 4, 4\) and \(2, 5, 4\)"):
        prune(model, images, config(), held_back=torch.zeros(2, 2, 5, 4, dtype=torch.float64))
    loaded = prune(model, images, config(update="none"), held_back=DataLoader(TensorDataset(images[:3]), 2))
    given = prune(model, images, config(update="none"), held_back=images[:3])
    for ours, theirs in zip(loaded.sites, given.sites, strict=True):
        assert ours.held_back["final"] == pytest.approx(theirs.held_back["final"], rel=1e-12)


def test_a_run_says_which_layer_the_images_say_too_little_of() -> None:
    model, images = chain(images=5)
    seen: list[events.Event] = []
    prune(model, images, config(update="least-squares", ridge=4.0), on_event=seen.append)
    # Kept in a row of 1:2: 9 of conv1's 18 and 18 of conv2's 36, at 16 and 4 positions an image; 8 of fc1's 16, 3 of fc2's 6.
    assert [e.message for e in seen if isinstance(e, events.Note)] == [
        "A row of fc1 has 8 weights to fit, but 5 calibration images give only 5 samples of its input: the fit may not hold on "
        "other images. Use at least 8 images, or rely on the ridge, which pulls what they leave open toward the dense values."
    ]
    graph = NetworkGraph.export(model, images[:2])

    def said(count: int, **more: Any) -> str:
        settings = config(**more)
        return scarcity(graph, coverage(graph, settings), settings, count)

    assert "fc1 has 8 weights" in said(7)
    assert "rely on a ridge, which would pull" in said(7)
    assert said(8) == ""
    # At 2 images: fc1 has 8 for 2, conv2 18 for 8, fc2 3 for 2.
    assert (
        "fc1 has 8 weights to fit, but 2 calibration images give only 2 samples of its input, and 2 more layers are short"
        in (said(2))
    )
    assert "conv2 has 18 weights to fit, but 2 calibration images give only 8 samples of its input, and 1 more layer is" in (
        said(2, overrides={"fc1": "dense"})
    )
    assert "Use at least 5 images" in said(2, overrides={"fc1": "dense"})
    assert said(2, update="none") == ""
    assert said(1, overrides={"conv2": "dense", "fc1": "dense", "fc2": "dense"}) == ""


def test_the_targets_differ_once_something_is_pruned() -> None:
    dense, images = chain()
    by_target = {t: prune(dense, images, config(update="least-squares", targets=t)) for t in TARGETS}
    first, last = "conv1.weight", "fc2.weight"
    a, b = (weights(by_target[t].model) for t in TARGETS)
    assert_entries_close(a[first], b[first], rtol=1e-6)
    assert float((a[last] - b[last]).abs().max()) > 1e-3


# --- what comes out ---


@pytest.mark.parametrize("targets", ["dense", "propagated"])
def test_held_memory_is_that_of_the_values_that_wait_each_counted_once(targets: str) -> None:
    model, images = chain(images=10)
    # Inputs and outputs of the sites, of 10 images in 8 bytes: conv1 from 2x4x4 to 4x4x4, conv2 to 4x2x2, fc1 to 6, fc2 to 3.
    own = [80 * count for count in (32 + 64, 64 + 16, 16 + 6, 6 + 3)]
    alone = prune(model, images, config(update="none", k_steps=0, targets=targets))
    if targets == "propagated":
        assert [record.held_memory for record in alone.sites] == own
    else:  # from the second site on, the dense network has values of its own
        assert alone.sites[0].held_memory == own[0]
        assert all(record.held_memory >= size for record, size in zip(alone.sites, own, strict=True))
    ahead = prune(model, images, config(update="none", k_steps=2, targets=targets))
    assert ahead.sites[0].held_memory == own[0] + 80 * (64 + 16)  # act1 and conv2 are targets too


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("mask", MASKS)
def test_pruned_weights_are_zero_and_the_model_is_left_alone(update: str, mask: str) -> None:
    model, images = chain()
    before = weights(model)
    original = images.clone()
    result = prune(model, images, config(update=update, mask=mask, k_steps=1))
    assert_same(weights(model), before)
    assert torch.equal(images, original)
    assert result.model is not model
    assert set(result.masks) == {f"{s}.weight" for s in Chain.SITES} == set(result.patterns)
    for name, kept in result.masks.items():
        weight = result.model.get_parameter(name)
        assert kept.dtype == torch.bool
        assert kept.shape == weight.shape
        assert not bool(weight[~kept].any())
        assert float(kept.double().mean()) == 0.5
        assert check_compliance(weight.detach(), NM(n=1, m=2)).ok
    untouched = set(before) - set(result.masks)
    assert_same({n: t for n, t in weights(result.model).items() if n in untouched}, {n: before[n] for n in untouched})
    for record in result.sites:
        assert record.losses["final"] <= record.losses["mask_only"] * (1 + 1e-9) or update in ("sparsegpt", "least-squares")
        assert record.seconds >= 0
        assert record.density == 0.5
        assert record.peak_memory is None
    assert result.num_products == sum(r.num_products for r in result.sites)
    assert (result.num_products > 0) == (update == "snows")
    if update == "none":
        assert all(torch.equal(result.model.get_parameter(n), before[n] * m) for n, m in result.masks.items())


@pytest.mark.parametrize("build", [lambda: chain(), lambda: residual(), lambda: seeded(lambda: Attention("fused"), 1, 4, 4)])
def test_snows_never_ends_above_its_start(build: Any) -> None:
    model, images = build()
    result = prune(model, images, config(k_steps=4))
    assert result.sites
    for record in result.sites:
        assert record.losses["final"] <= min(record.losses["mask_only"], record.losses["least_squares"]) * (1 + 1e-12)
    assert sum(r.losses["final"] for r in result.sites) < sum(r.losses["mask_only"] for r in result.sites)


def test_every_loss_in_a_layer_only_falls() -> None:
    model, images = residual()
    seen: list[events.Event] = []
    prune(model, images, config(k_steps=3), on_event=seen.append)
    by_site: dict[str, list[float]] = {}
    for event in seen:
        if isinstance(event, events.NewtonStep):
            by_site.setdefault(event.site, []).append(event.loss)
            assert event.actual >= 0
            assert (event.step_size > 0) == (event.status == "accepted")
    assert by_site
    assert all(losses == sorted(losses, reverse=True) for losses in by_site.values())


def test_events_come_in_order() -> None:
    model, images = chain()
    seen: list[events.Event] = []
    handed: list[int] = []
    result = prune(model, images, config(), on_event=seen.append, on_site=lambda i, w, m: handed.append(i))
    started = seen[0]
    assert isinstance(started, events.RunStarted)
    assert started.sites == [f"{s}.weight" for s in Chain.SITES]
    assert started.resumed == 0
    assert started.device == "CPU"
    assert started.skipped == result.skipped
    assert handed == [0, 1, 2, 3]
    assert [e.index for e in seen if isinstance(e, events.SiteStarted)] == handed
    assert [e for e in seen if isinstance(e, events.SiteFinished)] == result.sites
    current = None
    for event in seen[1:]:
        if isinstance(event, events.SiteStarted):
            assert current is None
            current = event.site
            first = Chain.OPERATIONS.index(event.site.removesuffix(".weight"))
            kinds = {"conv": "convolution", "act": "activation", "fc": "linear"}
            assert event.operations == [f"{n} ({kinds[n[:-1]]})" for n in Chain.OPERATIONS[first : first + 3]]
        else:
            assert event.site == current
            if isinstance(event, events.SiteFinished):
                current = None
    assert current is None
    assert all(events.from_json(events.to_json(e)) == e for e in seen)


# --- patterns and masks ---


@pytest.mark.parametrize(
    ("pattern", "density"), [("1:2", 0.5), ("1:4", 0.25), ("3:4", 0.75), ("70%", 0.3), ("90%", 0.1), ("60% global", 0.4)]
)
def test_every_kind_of_pattern(pattern: str, density: float) -> None:
    model, images = residual()
    result = prune(model, images, config(pattern=pattern, update="least-squares"))
    named = {n: p for n, p in result.model.named_parameters() if n in result.masks}
    kept, size = sum(int(m.sum()) for m in result.masks.values()), sum(m.numel() for m in result.masks.values())
    assert kept / size == pytest.approx(density, abs=0.01)
    for name, applied in result.patterns.items():
        assert check_compliance(named[name].detach(), applied).ok
        assert check_compliance(result.masks[name], applied).ok
    if "4" in pattern and ":" in pattern:
        assert set(result.skipped) >= {"conv1.weight"}
        assert "needs a number of input channels that 4 divides" in result.skipped["conv1.weight"]
    else:
        assert len(result.masks) == 5


@pytest.mark.parametrize("mask", sorted(set(MASKS) - set(MASKS_OF_ONE_LAYER)))
def test_a_global_pattern_keeps_its_total_and_its_cap(mask: str) -> None:
    model, images = residual()
    with torch.no_grad():
        model.conv3.weight.mul_(1e-3)  # no one would miss this layer
    pattern = Unstructured(sparsity=0.6, scope="global", layer_cap=0.8)
    result = prune(model, images, config(pattern=pattern, mask=mask, update="none"))
    assert check_compliance_global(result.masks, pattern).ok
    shares = {n: float(m.double().mean()) for n, m in result.masks.items()}
    assert min(shares.values()) >= 0.2 - 1e-9
    if mask != "random":
        assert len({round(s, 3) for s in shares.values()}) > 1
    if mask == "magnitude":
        assert shares["conv3.weight"] == pytest.approx(0.2, abs=0.01)
        assert [record.density for record in result.sites] == pytest.approx(list(shares.values()), rel=1e-6)


def test_overrides_by_weight_and_by_module() -> None:
    model, images = residual()
    overrides = {"conv1": "dense", "fc.weight": "25%", "conv2.weight": "50% global", "conv3": "1:4"}
    result = prune(model, images, config(pattern="1:2", update="none", overrides=overrides))
    assert result.skipped["conv1.weight"] == "left dense as asked"
    assert torch.equal(result.model.conv1.weight, model.conv1.weight)
    shares = {n: float(m.double().mean()) for n, m in result.masks.items()}
    assert shares == {"fc.weight": 0.75, "conv2.weight": 0.5, "conv3.weight": 0.25, "shortcut.weight": 0.5}
    assert result.patterns["shortcut.weight"] == NM(n=1, m=2)


def test_two_global_patterns_each_rank_their_own_layers() -> None:
    model, images = residual()
    overrides = {"fc": "20% global", "shortcut": "20% global"}
    result = prune(model, images, config(pattern="75% global", update="none", overrides=overrides))
    own = [n for n in result.masks if n in ("fc.weight", "shortcut.weight")]
    for names, density in ((own, 0.8), ([n for n in result.masks if n not in own], 0.25)):
        kept, size = sum(int(result.masks[n].sum()) for n in names), sum(result.masks[n].numel() for n in names)
        assert kept == round(density * size)


def test_random_masks_differ_by_seed_and_by_layer_and_repeat() -> None:
    model, images = chain()
    one, again, other = (prune(model, images, config(mask="random", update="none", seed=s)).masks for s in (0, 0, 1))
    assert_same(one, again)
    assert all(not torch.equal(one[n], other[n]) for n in one if one[n].numel() > 20)


@pytest.mark.parametrize("saved", ["mask", "checkpoint"])
def test_a_mask_from_a_file(tmp_path: Path, saved: str) -> None:
    model, images = chain()
    earlier = prune(model, images, config(mask="random", update="none", seed=7))
    path = tmp_path / "mask.safetensors"
    save_file(earlier.masks if saved == "mask" else earlier.model.state_dict(), path)
    result = prune(model, images, config(mask=str(path), k_steps=1))
    assert_same(result.masks, earlier.masks)
    assert all(not bool(result.model.get_parameter(n)[~m].any()) for n, m in result.masks.items())
    assert all(r.losses["final"] <= r.losses["mask_only"] for r in result.sites)


def test_a_mask_file_of_another_network_is_refused_before_any_work(tmp_path: Path) -> None:
    model, images = chain()
    masks = prune(model, images, config(update="none")).masks
    seen: list[events.Event] = []
    for masks_, sentence in (
        ({n: m for n, m in masks.items() if n != "fc2.weight"}, "no mask for fc2.weight, which has shape (3, 6)"),
        (masks | {"fc1.weight": masks["fc1.weight"].T.contiguous()}, "a mask of shape (16, 6) for fc1.weight, which has shape"),
    ):
        path = tmp_path / "other.safetensors"
        save_file(masks_, path)
        with pytest.raises(InputError) as caught:
            prune(model, images, config(mask=str(path)), on_event=seen.append)
        assert sentence in str(caught.value)
        assert "Use a file from this network." in str(caught.value)
    assert seen == []


def test_a_mask_file_may_empty_a_layer(tmp_path: Path) -> None:
    model, images = chain()
    masks = prune(model, images, config(update="none")).masks
    masks["conv2.weight"] = torch.zeros_like(masks["conv2.weight"])
    save_file(masks, tmp_path / "empty.safetensors")
    result = prune(model, images, config(mask=str(tmp_path / "empty.safetensors")))
    assert not bool(result.model.conv2.weight.any())
    assert [r.density for r in result.sites] == [0.5, 0.0, 0.5, 0.5]


# --- the same again ---


@pytest.mark.parametrize("build", [lambda: residual(), lambda: seeded(lambda: Attention("fused"), 1, 4, 4)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_run_repeats_bit_for_bit(build: Any, precision: str) -> None:
    model, images = build()
    settings = config(k_steps=3, seed=3, precision=precision, solver=SolverConfig(curvature_share=0.5))
    first, second = prune(model, images, settings), prune(model, images, settings)
    assert_same(weights(first.model), weights(second.model))
    assert [r.by_k for r in first.sites] == [r.by_k for r in second.sites]
    assert next(first.model.parameters()).dtype == next(model.parameters()).dtype


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    model, images = chain()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = prune(model, images, config(mask="random"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert_same(weights(prune(model, images, config(mask="random")).model), weights(first.model))


@pytest.mark.parametrize("pattern", ["1:2", "50% global"])
@pytest.mark.parametrize(("targets", "sweeps"), [("dense", 1), ("propagated", 1), ("dense", 2)])
def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(targets: str, sweeps: int, pattern: str) -> None:
    model, images = residual()
    settings = config(
        precision="float32",
        mask="wanda",
        k_steps=3,
        targets=targets,
        pattern=pattern,
        sweeps=sweeps,
        solver=SolverConfig(curvature_share=0.5),
    )
    stored: dict[int, bytes] = {}

    def keep(index: int, weight: Tensor, mask: Tensor) -> None:
        stored[index] = save({"weight": weight.contiguous(), "mask": mask.contiguous()})

    images, held_back = images[:7], images[7:]
    whole = prune(model, images, settings, on_site=keep, held_back=held_back)
    assert sorted(stored) == list(range(5 * sweeps))
    for done in {1, 3, 4, 5, 5 * sweeps - 2, 5 * sweeps}:

        def finished(index: int, done: int = done) -> tuple[Tensor, Tensor] | None:
            if index >= done:
                return None
            tensors = load(stored[index])
            return tensors["weight"], tensors["mask"]

        seen: list[events.Event] = []
        handed: list[int] = []
        again = prune(
            model,
            images,
            settings,
            held_back=held_back,
            finished=finished,
            on_event=seen.append,
            on_site=lambda i, w, m, h=handed: h.append(i),
        )
        assert_same(weights(again.model), weights(whole.model))
        assert_same(again.masks, whole.masks)
        assert handed == list(range(done, 5 * sweeps))
        assert (seen[0].resumed, seen[0].sweeps) == (done, sweeps)
        assert [(r.by_k, r.held_back) for r in again.sites] == [(r.by_k, r.held_back) for r in whole.sites[done:]]


def test_a_second_sweep_starts_from_the_first_ones_weights_and_keeps_its_masks() -> None:
    model, images = residual()
    once = prune(model, images, config(k_steps=3, refine="layer"))
    twice = prune(model, images, config(k_steps=3, sweeps=2, refine="layer"))
    assert_same(twice.masks, once.masks)
    first, second = twice.sites[:5], twice.sites[5:]
    assert [(r.site, r.sweep) for r in second] == [(r.site, 1) for r in first]
    assert [r.losses for r in first] == [r.losses for r in once.sites]
    # The last window sees the network's end: nothing after it was pruned in between, so its loss can only have fallen.
    assert second[-1].losses["final"] <= first[-1].losses["final"]
    assert any(bool((weights(twice.model)[n] != w).any()) for n, w in weights(once.model).items())


def test_a_second_sweep_may_refine_masks_by_the_window() -> None:
    model, images = residual()
    once, twice = (prune(model, images, config(k_steps=3, sweeps=sweeps, refine="window")) for sweeps in (1, 2))
    for (name, first), second, record in zip(once.masks.items(), twice.masks.values(), twice.sites[5:], strict=True):
        assert record.exchanged == int((second & ~first).sum())
        assert check_compliance(second, twice.patterns[name]).ok
    assert sum(r.exchanged for r in twice.sites[5:]) > 0


@pytest.mark.parametrize("pattern", ["1:2", "50%", "60% global"])
@pytest.mark.parametrize("refine", ["layer", "window"])
def test_a_refined_mask_keeps_to_its_pattern_and_says_what_it_exchanged(refine: str, pattern: str) -> None:
    model, images = residual()
    scored = prune(model, images, config(pattern=pattern, update="none"))
    refined = prune(model, images, config(pattern=pattern, refine=refine))
    for record in refined.sites:
        mask = refined.masks[record.site]
        assert record.exchanged == int((mask & ~scored.masks[record.site]).sum())
        assert mask.sum() == scored.masks[record.site].sum()
        assert not bool(refined.model.get_parameter(record.site)[~mask].any())
    assert sum(r.exchanged for r in refined.sites) > 0
    if "global" not in pattern:
        assert all(check_compliance(mask, refined.patterns[name]).ok for name, mask in refined.masks.items())


@pytest.mark.parametrize("update", ["none", "sparsegpt"])
def test_what_fits_no_values_leaves_the_mask_as_it_was_chosen(update: str) -> None:
    model, images = residual()
    found = [prune(model, images, config(update=update, refine=refine)) for refine in ("none", "window")]
    assert_same(found[0].masks, found[1].masks)
    assert not any(r.exchanged for r in found[1].sites)


def test_a_second_sweep_is_refused_where_it_has_nothing_to_do() -> None:
    with pytest.raises(ValueError, match="Use update snows, or one sweep"):
        config(update="least-squares", sweeps=2)


def test_cancelling_stops_between_two_iterations_and_keeps_what_is_finished() -> None:
    model, images = chain()
    seen: list[events.Event] = []
    handed: dict[int, tuple[Tensor, Tensor]] = {}

    def cancelled() -> bool:
        return any(isinstance(e, events.CGIteration) and e.site == "fc1.weight" and e.iteration == 2 for e in seen)

    settings = config(solver=SolverConfig(rtol=1e-8, preconditioner="none"))
    with pytest.raises(Cancelled):
        prune(
            model,
            images,
            settings,
            on_event=seen.append,
            cancelled=cancelled,
            on_site=lambda i, w, m: handed.__setitem__(i, (w, m)),
        )
    assert sorted(handed) == [0, 1]
    last = seen[-1]
    assert isinstance(last, events.CGIteration)
    assert (last.site, last.iteration) == ("fc1.weight", 2)
    resumed = prune(model, images, settings, finished=handed.get)
    assert_same(weights(resumed.model), weights(prune(model, images, settings).model))


@pytest.mark.parametrize("after", [1, 3, 10])
def test_cancelling_works_at_any_moment(after: int) -> None:
    model, images = chain()
    asked = count(1)
    with pytest.raises(Cancelled):
        prune(model, images, config(mask="wanda", pattern="50% global"), cancelled=lambda: next(asked) >= after)
    assert next(asked) == after + 1


# --- images ---


def test_loaders_of_tensors_and_of_pairs_give_what_one_tensor_gives() -> None:
    model, images = chain()
    expected = weights(prune(model, images, config(batch_size=5)).model)
    labels = torch.arange(len(images))
    loaders: list[Any] = [
        DataLoader(TensorDataset(images, labels), batch_size=5),
        DataLoader(images, batch_size=5),
        iter(images.split(5)),
    ]
    for loader in loaders:
        assert_same(weights(prune(model, loader, config()).model), expected)


def test_the_batch_size_changes_nothing_but_rounding() -> None:
    model, images = chain()
    by_size = [
        weights(prune(model, images, config(batch_size=b, solver=SolverConfig(curvature_share=1))).model) for b in (3, 10)
    ]
    for name in by_size[0]:
        assert_entries_close(by_size[0][name], by_size[1][name], rtol=1e-5, atol=1e-6, what=name)


def test_one_image_is_enough() -> None:
    model, images = chain(images=1)
    result = prune(model, images, config())
    assert all(bool(torch.isfinite(t).all()) for t in weights(result.model).values())


def test_a_training_model_is_pruned_in_eval_mode_and_stays_in_training() -> None:
    model, images = chain()
    expected = weights(prune(model, images, config()).model)
    model.train()
    result = prune(model, images, config())
    assert model.training
    assert result.model.training  # as it was given
    assert_same(weights(result.model), expected)


def empty() -> Iterator[Tensor]:
    yield from ()


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum() if float(x.sum()) > 1e9 else x


def bad_weight(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.fc1.weight[2, 3] = torch.nan
    return module


@pytest.mark.parametrize(
    ("spoil_images", "sentence"),
    [
        (lambda x: x[:0], "There are no calibration images"),
        (lambda x: empty(), "There are no calibration images"),
        (lambda x: [], "There are no calibration images"),
        (lambda x: [{"caption": "a boot"}], "none of them is known to hold the images"),
        (lambda x: torch.tensor(1.0), "There are no calibration images"),
        (lambda x: x.index_fill(0, torch.tensor(7), torch.nan), "A calibration image holds NaN or infinity"),
        (lambda x: x.index_fill(0, torch.tensor(7), torch.inf), "A calibration image holds NaN or infinity"),
        (lambda x: (x * 9).to(torch.uint8), "must be preprocessed to floating point, but these are torch.uint8"),
        (lambda x: x[:, :1], "cannot run on images of shape (1, 4, 4): Given groups=1"),
        (lambda x: F.pad(x, (0, 3)), "cannot run on images of shape (2, 4, 7)"),
        (lambda x: x[:, 0, 0], "cannot run on images of shape (4,)"),
        (lambda x: [x[:4], F.pad(x[4:], (0, 2))], "must have one shape, but there are (2, 4, 4) and (2, 4, 6)"),
    ],
)
def test_images_that_cannot_be_used_give_a_sentence(spoil_images: Any, sentence: str) -> None:
    model, images = chain()
    with pytest.raises(PruneError) as caught:
        prune(model, spoil_images(images), config())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_images_one_by_one_instead_of_in_batches_give_a_sentence() -> None:
    class Free(nn.Module):
        """A convolution takes (C, H, W) for an image without a batch, and no error would be raised."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((-2, -1)))

    model, images = seeded(Free, 2, 4, 4)
    with pytest.raises(PruneError, match="From 2 images of shape"):
        prune(model, list(images), config())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"pattern": "1:7"}, "No weight of this network can be pruned to this pattern: "),
        ({"overrides": {"conv9": "1:2"}}, "No prunable weight is called 'conv9'. There are: conv1.weight, conv2.weight"),
        ({"overrides": {n: "dense" for n in Chain.SITES}}, "No weight of this network can be pruned to this pattern"),
        ({"mask": "/nowhere/mask.safetensors"}, "There is no mask file /nowhere/mask.safetensors"),
    ],
)
def test_a_config_that_does_not_fit_the_network_gives_a_sentence(overrides: dict[str, Any], sentence: str) -> None:
    model, images = chain()
    with pytest.raises(InputError) as caught:
        prune(model, images, config(**overrides))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("targets", ["dense", "propagated"])
@pytest.mark.parametrize("build", [chain, residual])
def test_targets_that_memory_does_not_hold_are_made_again(build: Callable[..., Any], targets: str) -> None:
    model, images = build(images=20)
    held, remade = (prune(model, images, config(targets=targets, memory=memory)) for memory in (1.0, 1e-9))
    assert remade.sites[0].held_memory < held.sites[0].held_memory  # type: ignore[operator]
    # The dense window's values are computed by other kernels than the dense network's.
    for one, other in zip(held.sites, remade.sites, strict=True):
        assert one.losses["final"] == pytest.approx(other.losses["final"], rel=1e-6)
    for name, mask in held.masks.items():
        assert torch.equal(mask, remade.masks[name])


def test_targets_are_made_again_up_to_the_last_window_that_memory_does_not_hold() -> None:
    windows: Any = [SimpleNamespace(target_bytes=size) for size in (100, 300, 200, 100)]
    for most, last in ((3000, -1), (2999, 1), (2000, 1), (1999, 2), (999, 3)):
        assert last_remade(windows, 10, config(memory=most / 2 / 2**30)) == last


def test_a_layers_images_go_with_it() -> None:
    model, images = chain(images=20)
    problems: list[Any] = []

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.SiteStarted):
            assert all(problem() is None for problem in problems)

    def update(problem: Any) -> Any:
        problems.append(weakref.ref(problem))
        return updates.snows(problem)

    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(updates.UPDATES, "snows", update)
            prune(model, images, config(update="snows"), on_event=on_event)
    finally:
        gc.enable()
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("batches", "batch_size", "memory", "expected"),
    [
        ([512], 128, 1000.0, [128] * 4),
        ([128], 128, 1000.0, [32] * 4),  # a quarter of the images for curvature
        ([30, 30], 20, 1000.0, [15] * 4),
        ([512], 128, 4 * 100 * 3 * 30 / 2**30, [29] * 8 + [28] * 10),
        ([64], 128, 1e-9, [8] * 8),
    ],
)
def test_images_are_shared_out_by_memory_and_by_the_share_of_curvature(
    batches: list[int], batch_size: int, memory: float, expected: list[int]
) -> None:
    windows: Any = [SimpleNamespace(image_bytes=100), SimpleNamespace(image_bytes=10)]
    parts = share_out([torch.zeros(n, 1) for n in batches], windows, config(batch_size=batch_size, memory=memory))
    assert [len(part) for part in parts] == expected


def test_the_form_of_the_rows_systems_is_chosen_by_size_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = chain()
    by_factors = prune(model, images, config(ridge=1.0))
    assert {record.row_systems for record in by_factors.sites} == {"factors"}
    monkeypatch.setattr(rows, "LARGEST_BLOCKS", 0)
    by_products = prune(model, images, config(ridge=1.0))
    assert {record.row_systems for record in by_products.sites} == {"products"}
    for one, other in zip(by_factors.sites, by_products.sites, strict=True):
        assert other.losses["least_squares"] == pytest.approx(one.losses["least_squares"], rel=1e-3)
        assert other.losses["final"] == pytest.approx(one.losses["final"], rel=0.1)
    assert {record.row_systems for record in prune(model, images, config(update="none")).sites} == {""}


@given(st.integers(1, 700), st.integers(1, 200))
def test_batches_are_alike_in_size_and_none_is_larger_than_asked(images: int, batch_size: int) -> None:
    sizes = [len(batch) for batch in batches_of(torch.zeros(images, 1, 2, 2), batch_size)]
    assert sum(sizes) == images
    assert len(sizes) == -(-images // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_end_the_run_with_a_sentence_and_what_is_finished_stays(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[int] = []

    def update(problem: SiteProblem) -> UpdateResult:
        solved.append(1)
        return UpdateResult(problem, problem.masked * (bad if len(solved) > 1 else 1), "EXACT", "So it says.")

    monkeypatch.setitem(updates.UPDATES, "least-squares", update)
    model, images = chain()
    stayed: list[int] = []
    with pytest.raises(PruneError, match=r"conv2\.weight: the values found for it.* Use float64"):
        prune(model, images, config(update="least-squares"), on_site=lambda place, *_: stayed.append(place))
    assert stayed == [0]


def test_a_weight_that_is_not_finite_is_named() -> None:
    model, images = chain()
    with pytest.raises(PruneError, match=r"The weight fc1\.weight holds NaN or infinity"):
        prune(bad_weight(model), images, config())


def test_a_network_that_cannot_be_followed_gives_a_sentence() -> None:
    with pytest.raises(ExportError, match="This network cannot be exported to a graph"):
        prune(nn.Sequential(nn.Linear(4, 4), Odd()), torch.randn(4, 4), config(precision="float32"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_where_there_is_none() -> None:
    model, images = chain()
    assert resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(PruneError, match=f"Device '{name}' was asked for, but PyTorch finds no CUDA device"):
            prune(model, images, config(device=name))


def test_coverage_names_every_weight() -> None:
    model, images = residual()
    graph = NetworkGraph.export(model, images[:2])
    covered = coverage(graph, config(pattern="2:4", overrides={"fc": Dense()}))
    names = [s.name for s in covered.sites]
    assert names == ["conv2.weight", "conv3.weight", "shortcut.weight"]
    assert set(names) | set(covered.skipped) == {n for n, _ in model.named_parameters()}
    assert covered.skipped["fc.weight"] == "left dense as asked"
    assert covered.patterns == dict.fromkeys(names, NM(n=2, m=4))


def test_the_classifier_stays_dense_unless_asked_for() -> None:
    model, images = residual()
    graph = NetworkGraph.export(model, images[:2])
    assert [site.name for site in graph.classifiers] == ["fc.weight"]
    kept = coverage(graph, config(prune_classifier=False))
    assert kept.skipped["fc.weight"] == "the classifier, left dense unless asked for"
    for asked in (config(prune_classifier=True), config(prune_classifier=False, overrides={"fc": "1:2"})):
        assert coverage(graph, asked).patterns == kept.patterns | {"fc.weight": NM(n=1, m=2)}
    result = prune(model, images, config(prune_classifier=False, update="none"))
    assert torch.equal(result.model.fc.weight, model.fc.weight)


def test_a_network_that_ends_in_an_activation_has_no_classifier() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
    assert NetworkGraph.export(module, torch.zeros(2, 4, dtype=torch.float64)).classifiers == []


# --- batch norm ---


def test_batch_norm_statistics_are_those_of_the_pruned_network() -> None:
    model, images = chain(images=12)
    plain = prune(model, images.split(5), config(update="none"))
    result = prune(model, images.split(5), config(update="none", batch_norm_reestimate=True))
    for name, mask in result.masks.items():
        assert torch.equal(result.model.get_parameter(name), plain.model.get_parameter(name))
        assert not bool(result.model.get_parameter(name)[~mask].any())
    values = F.conv2d(images, result.model.conv1.weight, padding=1).detach()
    parts = values.split(5)
    # The last batch is smaller and counts for less: an average over images.
    mean = sum(len(p) * p.mean((0, 2, 3)) for p in parts) / len(values)
    variance = sum(len(p) * p.var((0, 2, 3)) for p in parts) / len(values)
    assert_entries_close(result.model.bn1.running_mean, mean)
    assert_entries_close(result.model.bn1.running_var, variance)
    assert not torch.allclose(result.model.bn2.running_mean, model.bn2.running_mean)
    assert not result.model.training
    assert all(not m.training and getattr(m, "momentum", 0.1) == 0.1 for m in result.model.modules())


def test_reestimation_restores_every_mode_when_it_fails() -> None:
    model, _ = chain()
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [torch.zeros(2, 5, 4, 4, dtype=torch.float64)])
    assert all(not m.training and m.momentum == 0.1 for m in (model.bn1, model.bn2))


def test_a_network_without_batch_norm_is_left_alone() -> None:
    model, images = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), 4)
    settings = config(update="least-squares")
    result = prune(model, images, settings)
    again = prune(model, images, settings.model_copy(update={"batch_norm_reestimate": True}))
    assert_same(weights(result.model), weights(again.model))


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, images = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), 4)
    result: PruneResult = prune(model, images, config(), progress=True)
    assert len(result.sites) == 2
    shown = capsys.readouterr()
    assert "pruning" in shown.err
    assert shown.out == ""
    prune(model, images, config())
    assert capsys.readouterr() == ("", "")


def test_to_matrix_here_is_the_engines() -> None:
    weight = torch.randn(3, 4, 2, 5)
    assert torch.equal(matrix_of(weight), to_matrix(weight))
    assert torch.equal(unmatrix(matrix_of(weight), weight), weight)


class Tutorial(nn.Module):
    """The form of PyTorch's own tutorial network: it flattens with `view`, which asks for the usual strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(-1, 16 * 5 * 5))))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_a_private_matter(layout: torch.memory_format) -> None:
    module = Tutorial().to(memory_format=layout) if layout is torch.contiguous_format else nn.Sequential(nn.Conv2d(3, 8, 3))
    module = module.to(memory_format=layout)
    result = prune(module, torch.randn(8, 3, 32, 32), PruneConfig(pattern="50%", k_steps=2, prune_classifier=True))
    before, after = module.state_dict(), result.model.state_dict()
    assert {name: t.stride() for name, t in before.items()} == {name: t.stride() for name, t in after.items()}
    assert not any(torch.equal(before[name], after[name]) for name in result.masks)


def test_the_faster_layout_is_kept_for_a_network_that_flattens_with_view() -> None:
    graph = NetworkGraph.export(Tutorial(), torch.randn(2, 3, 32, 32))
    assert graph.layout is torch.channels_last
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(graph.run(images)[0], Tutorial.forward(_module_of(graph), images))


def _module_of(graph: NetworkGraph) -> Tutorial:
    module = Tutorial()
    module.load_state_dict(graph.parameters)
    return module


# --- networks and loaders of other people ---


class TwoHeads(nn.Module):
    """As DeiT's distilled form: two classifiers, of which the mean counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.head_dist = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(x))
        return (self.head(x) + self.head_dist(x)) / 2


class ComputedBias(nn.Module):
    """As BEiT's attention: keys have no bias of their own, so that of the fused layer is put together."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 12, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.register_buffer("k_bias", torch.zeros(4))
        self.proj = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = qkv.chunk(3, -1)
        return self.proj(q * k + v)


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


HALF = PruneConfig(pattern="2:4", k_steps=2, batch_size=8)


def test_every_head_that_ends_the_network_stays_dense() -> None:
    result = prune(TwoHeads(), torch.randn(16, 6), PruneConfig(pattern="50%"))
    assert set(result.masks) == {"body.weight"}
    assert {"head.weight", "head_dist.weight"} <= {n for n, reason in result.skipped.items() if "classifier" in reason}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("update", UPDATES)
def test_a_bias_that_is_put_together(update: str, targets: str) -> None:
    config = PruneConfig(pattern="50%", update=update, targets=targets, precision="float64", ridge=0)
    module, images = ComputedBias().double(), torch.randn(40, 6, dtype=torch.float64)
    result = prune(module, images, config)
    assert set(result.masks) == {"qkv.weight"}
    if update == "least-squares":  # the layer's own output is met as well as the mask allows, given the bias
        bias = torch.cat([module.q_bias, module.k_bias, module.v_bias])
        for row, mask in enumerate(result.masks["qkv.weight"]):
            best = torch.linalg.lstsq(images[:, mask], F.linear(images, module.qkv.weight, bias)[:, row] - bias[row]).solution
            assert_entries_close(result.model.qkv.weight[row, mask], best, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr, index, operator]


@pytest.mark.parametrize("kind", ["prune", "old weight norm", "weight norm", "old spectral norm", "spectral norm", "symmetric"])
def test_a_weight_that_is_computed_is_worked_out(kind: str) -> None:
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.triu() + x.triu(1).transpose(-1, -2)

    module = _mlp()
    match kind:
        case "prune":
            torch.nn.utils.prune.l1_unstructured(module[2], "weight", 0.3)
        case "old weight norm":
            torch.nn.utils.weight_norm(module[2])
        case "weight norm":
            torch.nn.utils.parametrizations.weight_norm(module[2])
        case "old spectral norm":
            torch.nn.utils.spectral_norm(module[2])
        case "spectral norm":
            torch.nn.utils.parametrizations.spectral_norm(module[2])
        case "symmetric":
            torch.nn.utils.parametrize.register_parametrization(module[2], "weight", Symmetric())
    images = torch.randn(16, 6)
    module(images)  # in training, as it was left: the weight is a part of autograd's graph
    before = {name: t.clone() for name, t in module.state_dict().items()}
    result = prune(module, images, HALF)
    assert {"2.weight"} <= set(result.masks)
    assert result.model.get_parameter("2.weight")[~result.masks["2.weight"]].abs().max() == 0
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert all(part.training for part in result.model.modules())
    assert module(images).shape == (16, 3)  # the original still runs, its weight computed as before


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_the_callers_block_does_not_matter(block: Any) -> None:
    module, images = _mlp(), torch.randn(16, 6)
    expected = prune(module, images, HALF).model.state_dict()
    with block():
        images = images.clone()  # an inference tensor there
        found = prune(module, images, HALF).model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    module, images = _mlp(), torch.randn(16, 6)
    expected = prune(module, images, HALF).model.state_dict()
    found = prune(wrap(module), images, HALF).model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_complex_parameters_keep_their_imaginary_part() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.filter = nn.Parameter(torch.randn(5, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.filter, n=8)
            return self.last(F.relu(x))

    module = Filter()
    result = prune(module, torch.randn(32, 6), PruneConfig(pattern="2:4", prune_classifier=True, k_steps=3))
    assert torch.equal(result.model.filter, module.filter)  # type: ignore[arg-type]
    assert {s.status for s in result.sites} <= {"MAX_STEPS", "CONVERGED", "NO_FURTHER_DECREASE", "ALREADY_OPTIMAL"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_comes_back_in_its_number_format(dtype: torch.dtype) -> None:
    module = _mlp().to(dtype).eval()
    module[0].weight.requires_grad_(False)
    result = prune(module, torch.randn(16, 6).to(dtype), HALF)
    assert {t.dtype for t in result.model.state_dict().values()} == {dtype}
    assert not any(part.training for part in result.model.modules())
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in module.parameters()]
    assert all(bool((result.model.get_parameter(n)[~m] == 0).all()) for n, m in result.masks.items())


def test_a_network_that_draws_at_random_is_named() -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.dropout(self.first(x), 0.5))

    with pytest.raises(ExportError, match=r"answers differently each time.*dropout.*self.training"):
        prune(Careless(), torch.randn(16, 6), HALF)


@pytest.mark.parametrize("key", ["pixel_values", "image", "inputs", "whatever"])
def test_a_loader_of_mappings(key: str) -> None:
    module, images = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)), torch.randn(16, 4, 4, 4)
    loader = [{"labels": torch.zeros(8, dtype=torch.long), key: part} for part in images.split(8)]
    expected = prune(module, images, HALF).model.state_dict()
    found = prune(module, loader, HALF).model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_loader_of_mappings_without_images() -> None:
    with pytest.raises(PruneError, match=r"labels.*Call the images 'pixel_values'"):
        prune(_mlp(), [{"labels": torch.zeros(8)}], HALF)


@pytest.mark.parametrize("form", ["dict", "tuple", "list of dicts"])
def test_a_network_with_several_outputs_gets_a_sentence(form: str, capfd: pytest.CaptureFixture) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes, self.scores = nn.Linear(6, 4), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            boxes, scores = self.boxes(x), self.scores(x)
            match form:
                case "dict":
                    return {"boxes": boxes, "scores": scores}
                case "tuple":
                    return boxes, scores
            return [{"boxes": b, "scores": s} for b, s in zip(boxes, scores, strict=True)]

    with pytest.raises(PruneError, match=r"returns .* tensors in a .* Wrap it in a module that returns the logits alone"):
        prune(Detector(), torch.randn(16, 6), HALF)
    assert capfd.readouterr().err == ""


def test_what_cannot_be_differentiated_stays_dense_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.second(torch.special.zeta(self.first(x).square() + 1.5, x.new_tensor(2.0)))))

    result = prune(Broken(), torch.randn(16, 6), PruneConfig(pattern="50%", k_steps=3))
    assert set(result.masks) == {"second.weight"}
    assert "cannot be differentiated" in result.skipped["first.weight"]
    again = prune(Broken(), torch.randn(16, 6), PruneConfig(pattern="50%", k_steps=3, update="least-squares"))
    assert set(again.masks) == {"first.weight", "second.weight"}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("update", UPDATES)
def test_a_layer_that_sees_zeros_alone(update: str, mask: str) -> None:
    module = _mlp()
    with torch.no_grad():
        module[0].bias.fill_(-100.0)
    result = prune(module, torch.randn(16, 6), PruneConfig(pattern="2:4", mask=mask, update=update, k_steps=2))
    assert all(bool(torch.isfinite(t).all()) for t in result.model.state_dict().values())
    assert set(result.masks) >= {"2.weight"}


@pytest.mark.parametrize("mask", ["wanda", "sparsegpt"])
def test_a_layer_applied_to_a_parameter_under_a_global_pattern(mask: str) -> None:
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.project = nn.Parameter(torch.randn(4, 6)), nn.Linear(6, 6)
            self.first, self.last = nn.Linear(6, 6), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.first(x)) @ self.project(self.query).T)

    result = prune(Query(), torch.randn(16, 6), PruneConfig(pattern="50% global", mask=mask))
    assert set(result.masks) == {"project.weight", "first.weight"}
