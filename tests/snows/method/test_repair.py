"""Repair, against the statistics of the module's own layers."""

import copy

import pytest
import torch
from torch import Tensor, nn

from snows.config import Cancelled, PruneConfig
from snows.events import Event
from snows.method.pruner import PruneResult, prune
from tests.snows.helpers import network

NETWORKS = ["residual", "mlp", "module", "strided", "sound", "video", "gates"]
ONLY_CUT = PruneConfig.model_validate(
    {"pattern": "50%", "update": "none", "precision": "float64", "batch_size": 4, "prune_classifier": True}
)
REPAIRED = ONLY_CUT.model_copy(update={"repair": True})


def _outputs(module: nn.Module, path: str, images: Tensor, normed: str = "") -> Tensor:
    """The output of a layer, or of the batch norm behind it: (N, R)."""
    seen: list[Tensor] = []
    layer = module.get_submodule(normed or path)
    hook = layer.register_forward_hook(
        lambda layer, inputs, output: seen.append(output.clone())
    )  # what follows may write into it
    with torch.no_grad():
        module(images)
    hook.remove()
    (output,) = seen
    return (output if isinstance(module.get_submodule(path), nn.Linear) else output.movedim(1, -1)).flatten(0, -2)


@pytest.fixture(params=NETWORKS)
def repaired(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor, PruneResult]:
    module, _, images = network(request.param)
    return request.param, module, images, prune(module, images, REPAIRED)


def test_every_channel_has_the_mean_and_spread_that_it_had(repaired: tuple[str, nn.Module, Tensor, PruneResult]) -> None:
    name, module, images, result = repaired
    behind = {"conv1": "bn1", "conv2": "bn2", "shortcut": "bn4", "0": "1"} if name in ("residual", "sound") else {}
    judged = 0
    for site in result.masks:
        path = site.removesuffix(".weight")
        if path.startswith("attention"):
            continue  # computed by a function, of which no hook hears
        normed = behind.get(path, "") if name == "residual" or path == "0" else ""
        was, now = (_outputs(of, path, images, normed) for of in (module, result.model))
        judged += 1
        heard = now.std(0) > 0  # not where no weight is left, or only some whose inputs never change
        assert int(heard.sum()) >= 2
        torch.testing.assert_close(now.std(0)[heard], was.std(0)[heard], rtol=1e-8, atol=1e-10)
        layer = module.get_submodule(path)
        if layer.bias is not None or normed:
            torch.testing.assert_close(now.mean(0), was.mean(0), rtol=1e-8, atol=1e-10)
    assert judged >= 2


def test_only_what_it_names_has_changed(repaired: tuple[str, nn.Module, Tensor, PruneResult]) -> None:
    _, module, images, result = repaired
    cut = prune(module, images, ONLY_CUT)
    for site, mask in result.masks.items():
        assert torch.equal(mask, cut.masks[site])
        now, was = (of.model.get_parameter(site).flatten(1) for of in (result, cut))
        assert not bool(now[was == 0].any())
        # A row is scaled as one, and never turned around.
        for row, of_row in zip(now, was, strict=True):
            ratio = (row / of_row)[of_row != 0]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
            assert bool((ratio > 0).all())
    changed = {key for key, tensor in result.model.state_dict().items() if not torch.equal(tensor, cut.model.state_dict()[key])}
    allowed = set(result.masks) | {key for key in changed if key.endswith(("bias", "running_mean"))}
    assert changed <= allowed
    assert changed & set(result.masks)


def test_a_channel_that_says_nothing_any_more_is_not_made_louder() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        module[0].weight[0] = 1e-9  # pruned throughout
    images = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = prune(module, images, REPAIRED.model_copy(update={"overrides": {"2.weight": ONLY_CUT.pattern}}))
    assert all(bool(torch.isfinite(t).all()) for t in result.model.state_dict().values())
    was, now = (_outputs(of, "0", images) for of in (module, result.model))
    torch.testing.assert_close(now.mean(0), was.mean(0))
    assert float(result.model[0].weight[0].abs().max()) == 0
    assert float(now[:, 0].std()) == 0


def test_it_comes_after_a_fit_and_takes_its_bits_from_nothing_else() -> None:
    module, _, images = network("residual")
    fitted = prune(module, images, ONLY_CUT.model_copy(update={"update": "least-squares"}))
    both = prune(module, images, REPAIRED.model_copy(update={"update": "least-squares"}))
    again = prune(module, images, REPAIRED.model_copy(update={"update": "least-squares"}))
    assert all(torch.equal(a, b) for a, b in zip(both.model.parameters(), again.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(both.model.parameters(), fitted.model.parameters(), strict=True))
    assert all(torch.equal(both.masks[name], mask) for name, mask in fitted.masks.items())


def test_it_can_be_cancelled() -> None:
    module, _, images = network("residual")
    before, ended = copy.deepcopy(module.state_dict()), list[Event]()
    with pytest.raises(Cancelled):
        prune(module, images, REPAIRED, on_event=ended.append, cancelled=lambda: len(finished(ended)) == 5)
    assert len(finished(ended)) == 5
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())


def finished(happened: list[Event]) -> list[Event]:
    return [event for event in happened if type(event).__name__ == "SiteFinished"]
