"""The engine on a pretend accelerator: nothing is mixed, and the numbers are those of the host."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snows.config import PruneConfig, RunConfig
from snows.events import RunFinished
from snows.method.coverage import PruneError, resolve_device
from snows.method.pruner import prune
from snows.runs.estimate import plan
from snows.runs.runner import execute
from snows.runs.store import RunStore
from tests.snows.helpers import Attention, Gates, Residual
from tests.snows.pretend import MixedDevicesError, accelerator

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual": (Residual, (2, 6, 6)),
    "fused attention": (lambda: Attention("fused"), (1, 4, 4)),
    "written attention": (lambda: Attention("written"), (1, 4, 4)),
    "grouped attention": (lambda: Attention("grouped"), (1, 4, 4)),
    "gates": (Gates, (2, 9, 9)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make, shape = NETWORKS[name]
        return make().eval(), torch.randn(12, *shape)


def config(device: str, **overrides: Any) -> PruneConfig:
    return PruneConfig.model_validate(
        {"pattern": "50%", "batch_size": 5, "k_steps": 3, "device": device, "precision": "float64"} | overrides
    )


# --- the device itself ---


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: there @ here,
        lambda here, there: there.mul_(here),
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.stack([here.sum(), there.sum()]),
        lambda here, there: here[there.argmax(0)],
        lambda here, there: torch.where(there > 0, here, here),
        lambda here, there: nn.Linear(3, 3)(there),
        lambda here, there: torch.autograd.grad(there.requires_grad_().square(), there, here),
        lambda here, there: torch.func.jvp(torch.sin, (there,), (here,))[1] * there,
        lambda here, there: there.to("cuda:1") + there,
    ],
)
def test_a_mixed_operation_raises(mix: Any) -> None:
    with accelerator(2), pytest.raises(MixedDevicesError):
        mix(torch.ones(3, 3), torch.ones(3, 3).to("cuda"))


def test_what_a_real_device_allows_is_allowed() -> None:
    with accelerator():
        there = torch.arange(6.0).view(2, 3).to("cuda")
        assert there.is_cuda
        assert there.device == torch.device("cuda:0")
        for made in (
            2 * there,
            there + torch.tensor(1.0),
            there[torch.tensor([1, 0])],
            there.T.contiguous(),
            torch.zeros(2, device=there.device),
            torch.zeros_like(there),
            there.new_ones(1),
            torch.func.jvp(torch.sin, (there,), (there,))[1],
            torch.ones(2).to(there),
            nn.Linear(3, 3).to("cuda")(there),
        ):
            assert made.is_cuda
        for made in (there.cpu(), there.to("cpu"), there.to(torch.device("cpu"), torch.float64), torch.ones(1)):
            assert not made.is_cuda
        there.copy_(torch.ones(2, 3))
        assert there.is_cuda
        assert there.tolist() == [[1.0] * 3] * 2
        with pytest.raises(TypeError, match=r"Use Tensor.cpu"):
            there.numpy()
        weight = there.clone().requires_grad_()
        assert torch.autograd.grad(weight.square().sum(), weight)[0].is_cuda


def test_devices_are_found_and_counted() -> None:
    with accelerator(2):
        assert resolve_device("auto") == torch.device("cuda")
        assert resolve_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(PruneError, match="there are only 2 CUDA devices"):
            resolve_device("cuda:2")
    if not torch.cuda.is_available():
        assert resolve_device("auto") == torch.device("cpu")


# --- the engine on it ---


def check_same(name: str, device: str = "cuda", **overrides: Any) -> None:
    module, images = build(name)
    here = prune(module, images, config("cpu", **overrides))
    with accelerator(2):
        there = prune(module, images, config(device, **overrides))
        assert all(t.device.type == "cpu" for t in there.model.state_dict().values())
        assert all(mask.device == there.model.get_parameter(n).device for n, mask in there.masks.items())
        assert all(record.peak_memory is not None for record in there.sites)
        state = {n: t.cpu() for n, t in there.model.state_dict().items()}
        masks = {n: m.cpu() for n, m in there.masks.items()}
    assert all(torch.equal(masks[n], mask) for n, mask in here.masks.items())
    for key, tensor in here.model.state_dict().items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_there_gives_what_it_gives_here(name: str) -> None:
    check_same(name)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["none", "least-squares"])
def test_every_update(update: str) -> None:
    check_same("residual", update=update)


@pytest.mark.slow
def test_propagated_targets() -> None:
    check_same("residual", targets="propagated")


@pytest.mark.slow
def test_the_second_device() -> None:
    check_same("residual", device="cuda:1")


@pytest.mark.slow
def test_a_network_that_lies_there_comes_back_there() -> None:
    module, images = build("residual")
    here = prune(module, images, config("cpu"))
    with accelerator():
        there = prune(module.to("cuda"), images.to("cuda"), config("cuda"))
        assert all(t.is_cuda for t in [*there.model.state_dict().values(), *there.masks.values()])
        assert all(t.is_cuda for t in module.state_dict().values())
        masks = {n: m.cpu() for n, m in there.masks.items()}
    assert all(torch.equal(masks[n], mask) for n, mask in here.masks.items())


@pytest.mark.slow
def test_a_run_of_the_store_works_there(store: RunStore) -> None:
    settings: dict[str, Any] = {"pattern": "1:4", "update": "least-squares", "refine": "none", "batch_size": 4}
    given = {"model": "resnet20-fashion", "num_calibration": 8, "num_evaluation": 8, "prune": settings}
    sites = [site.name for site in plan(RunConfig.model_validate(given)).sites]
    settings["overrides"] = dict.fromkeys(sites[2:], "dense")
    measured = []
    for device in ("cpu", "cuda"):
        settings["device"] = device
        run = store.create(RunConfig.model_validate(given))
        with accelerator(), run.queue() as hold:
            ended = hold.work(execute)
        assert isinstance(ended, RunFinished), ended
        measured.append(ended.metrics)
    assert measured[0]["agreement"] == measured[1]["agreement"]
    assert measured[0]["divergence"] == pytest.approx(measured[1]["divergence"], rel=1e-2)
