"""The same on a CUDA device as on the CPU. Skipped, with the reason, where there is no such device."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snows import events
from snows.config import CURVATURES, MASKS, MASKS_OF_ONE_LAYER, UPDATES, PruneConfig, Unstructured
from snows.method.cascade import Cancelled
from snows.method.coverage import PruneError, resolve_device
from snows.method.graph import NetworkGraph
from snows.method.linearization import Linearization
from snows.method.problem import SiteProblem
from snows.method.pruner import prune
from snows.method.rows import KeptWeights
from snows.runs.store import RunStore
from tests.snows.helpers import ALL, CASE_IDS, CASES, NETWORKS, Attention, Residual, assert_entries_close, case
from tests.snows.runs.test_runner import config as run_config
from tests.snows.runs.test_runner import execute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and PyTorch finds none here"),
]
CUDA = torch.device("cuda")


def build(make: Callable[[], nn.Module], *shape: int) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval(), torch.randn(12, *shape, dtype=torch.float64)


BUILDS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: build(Residual, 2, 6, 6),
    "fused attention": lambda: build(lambda: Attention("fused"), 1, 4, 4),
    "written-out attention": lambda: build(lambda: Attention("written"), 1, 4, 4),
}


def config(device: str, **overrides: Any) -> PruneConfig:
    settings = {"pattern": "1:2", "precision": "float64", "batch_size": 5, "k_steps": 3, "device": device} | overrides
    return PruneConfig.model_validate(settings)


def on_cuda(values: dict[Any, Any]) -> dict[Any, Any]:
    return {n: v.to(CUDA) if isinstance(v, Tensor) else v for n, v in values.items()}


def test_cuda_is_preferred() -> None:
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:0") == torch.device("cuda:0")


def test_a_device_beyond_the_last_gives_a_sentence() -> None:
    with pytest.raises(PruneError, match=f"there are only {torch.cuda.device_count()} CUDA devices"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_on_cuda_gives_what_it_gives_on_the_cpu(name: str) -> None:
    make, shape = NETWORKS[name]
    module, images = build(make, *shape)
    expected, _ = NetworkGraph.export(module, images[:2]).run(images)
    module = module.to(CUDA)
    output, _ = NetworkGraph.export(module, images[:2].to(CUDA)).run(images.to(CUDA))
    assert output.is_cuda
    assert_entries_close(output.cpu(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)
def test_jacobian_products_agree(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    inputs, weight = problem.batches[2].inputs, problem.kept.expand(problem.point)
    here = Linearization(problem.window, weight, inputs)
    there = Linearization(problem.window, weight.to(CUDA), on_cuda(inputs))
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a, b in zip(there.push(direction.to(CUDA)), here.push(direction), strict=True):
        assert_entries_close(a.cpu(), b, rtol=1e-7, atol=1e-8)
    cotangents = [torch.ones_like(y) for y in here.outputs]
    assert_entries_close(there.pull([c.to(CUDA) for c in cotangents]).cpu(), here.pull(cotangents), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", CURVATURES)
@pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)
def test_curvature_products_agree(name: str, site: str, k: int, kind: str) -> None:
    problem = case(name, site, k)
    kept = KeptWeights(problem.mask.to(CUDA), problem.weight.shape)
    point = problem.point.to(CUDA)
    v = torch.randn(point.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = problem.objective(curvature_kind=kind)
    there = type(here)(
        problem.window,
        kept,
        problem.batches,
        coefficients=problem.coefficients,
        device=CUDA,
        curvature_kind=kind,
    )
    assert there.loss(point) == pytest.approx(here.loss(problem.point), rel=1e-9)
    loose = {"rtol": 1e-5, "atol": 1e-6} if kind == "finite_difference" else {"rtol": 1e-7, "atol": 1e-8}
    assert_entries_close(there.product(point)(v.to(CUDA)).cpu(), here.product(problem.point)(v), **loose)


def test_least_squares_agrees() -> None:
    problem = case("residual", "conv1.weight", ALL)
    solutions = []
    for device in (torch.device("cpu"), CUDA):
        made = SiteProblem(
            problem.window,
            problem.weight.to(device),
            problem.mask.to(device),
            Unstructured(sparsity=0.6),
            problem.batches,
            [b.inputs[problem.site.input] for b in problem.batches],
            bias=None,
            config=PruneConfig().solver,
            device=device,
            seed=0,
        )
        solutions.append(made.least_squares.cpu())
    assert_entries_close(solutions[1], solutions[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", BUILDS)
def test_a_pruned_network_agrees(name: str, update: str) -> None:
    model, images = BUILDS[name]()
    here = prune(model, images, config("cpu", update=update))
    there = prune(model, images, config("cuda", update=update))
    assert next(model.parameters()).device.type == "cpu"
    assert not next(there.model.parameters()).is_cuda  # as it was given
    assert not any(mask.is_cuda for mask in there.masks.values())
    for site, mask in here.masks.items():
        assert torch.equal(there.masks[site].cpu(), mask)
        weight = there.model.get_parameter(site).detach().cpu()
        assert not bool(weight[~mask].any())
        assert_entries_close(weight, here.model.get_parameter(site).detach(), rtol=1e-3, atol=1e-4, what=site)
    for a, b in zip(there.sites, here.sites, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_the_same_on_both(mask: str) -> None:
    model, images = BUILDS["residual"]()
    for pattern in ("1:2", "60%", "60% global")[: 2 if mask in MASKS_OF_ONE_LAYER else 3]:
        here, there = (prune(model, images, config(d, mask=mask, pattern=pattern, update="none")) for d in ("cpu", "cuda"))
        assert all(torch.equal(there.masks[n].cpu(), m) for n, m in here.masks.items())


def test_peak_memory_is_reported_for_every_site() -> None:
    model, images = BUILDS["residual"]()
    seen: list[events.Event] = []
    result = prune(model, images, config("cuda"), on_event=seen.append)
    assert seen[0].device == torch.cuda.get_device_name(CUDA)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert all(record.peak_memory is not None and record.peak_memory > weights for record in result.sites)


def test_a_run_on_cuda_repeats_and_resumes() -> None:
    model, images = BUILDS["residual"]()
    stored: dict[int, tuple[Tensor, Tensor]] = {}
    settings = config("cuda")
    whole = prune(model, images, settings, on_site=lambda i, w, m: stored.__setitem__(i, (w.cpu(), m.cpu())))
    again = prune(model, images, settings, finished=lambda i: stored.get(i) if i < 2 else None)
    for name, weight in whole.model.state_dict().items():
        assert_entries_close(again.model.state_dict()[name].cpu().double(), weight.cpu().double(), rtol=1e-6, atol=1e-7)


def test_a_run_on_cuda_can_be_cancelled() -> None:
    model, images = BUILDS["residual"]()
    asked = count(1)
    with pytest.raises(Cancelled):
        prune(model, images, config("cuda"), cancelled=lambda: next(asked) >= 12)


def test_a_run_folder_is_executed_on_cuda(store: RunStore) -> None:
    run = store.create(run_config(prune={"device": "cuda"}))
    execute(run)
    assert run.state() == "finished", run.events()[0][-1]
    done = [e for e in run.events()[0] if isinstance(e, events.SiteFinished)]
    assert all(e.peak_memory for e in done)
    assert all(not t.is_cuda for t in run.load_site(0))
