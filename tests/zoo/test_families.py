"""The families of timm and torchvision, small and with random weights: each exports, and is pruned by exact derivatives."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from snows.config import NM, Dense, PruneConfig, Unstructured
from snows.export.files import save_weights
from snows.export.packed import save_packed
from snows.method.coverage import coverage
from snows.method.graph import NetworkGraph
from snows.method.sparsity import from_matrix, keep_mask, to_matrix
from snows.sources import checkpoints
from tests.zoo.checks import check_answers, check_curvatures, check_cut, check_run, check_window, noise

CLASSES = 5
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2)}

# timm: a family's variant, the size of its images, and arguments that make it small.
TIMM: dict[str, tuple[int, dict[str, object]]] = {
    "beit_base_patch16_224": (32, VIT),
    "cait_xxs24_224": (32, {**VIT, "depth_token_only": 1}),
    "convit_tiny": (32, {**VIT, "local_up_to_layer": 1}),
    "cs3darknet_focus_s": (64, {}),
    "davit_tiny": (64, {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (2, 2)}),
    "deit_tiny_distilled_patch16_224": (32, VIT),
    "deit3_small_patch16_224": (32, VIT),
    "densenet121": (64, {"growth_rate": 8, "block_config": (2, 2)}),
    "dla46_c": (64, {}),
    "eva02_tiny_patch14_224": (28, {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 28}),
    "fasternet_t0": (64, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (64, {"img_size": (64, 64), "stages": (1, 1, 1, 1), "embed_dim": 16}),
    "inception_next_atto": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small_035": (64, {}),
    "poolformer_s12": (64, {}),
    "regnetx_002": (64, {}),
    "resnet10t": (64, {}),
    "resnetv2_50": (64, {"layers": (1, 1, 1, 1)}),
    "selecsls42": (64, {}),
    "shvit_s1": (64, {}),
    "skresnet18": (64, {}),
    "swin_tiny_patch4_window7_224": (32, SWIN),
    "swinv2_tiny_window8_256": (32, SWIN),
    "test_convnext2": (64, {}),
    "test_efficientnet": (64, {}),
    "tnt_s_patch16_224": (
        32,
        {"img_size": 32, "embed_dim": 16, "inner_dim": 8, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 2},
    ),
    "twins_svt_small": (64, {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2)}),
    "visformer_tiny": (64, {"img_size": 64, "depth": (1, 1, 1), "embed_dim": 32}),
    "vit_tiny_patch16_224": (32, VIT),
    "vit_relpos_small_patch16_224": (32, VIT),
    "xcit_nano_12_p16_224": (32, {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}),
}
TORCHVISION: dict[str, tuple[int, dict[str, object]]] = {
    "mobilenet_v2": (64, {}),
    "regnet_y_400mf": (64, {}),
    "resnet18": (64, {}),
    "resnext50_32x4d": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "squeezenet1_1": (64, {}),
}
BUILDS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{
        f"timm {name}": (lambda name=name, arguments=arguments: timm.create_model(name, num_classes=CLASSES, **arguments), size)
        for name, (size, arguments) in TIMM.items()
    },
    **{
        f"torchvision {name}": (
            lambda name=name, arguments=arguments: torchvision.models.get_model(name, num_classes=CLASSES, **arguments),
            size,
        )
        for name, (size, arguments) in TORCHVISION.items()
    },
}


@torch.no_grad()
def build(name: str) -> nn.Module:
    """The network with seeded weights, none of them special: published initial values hold zeros that hide an error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = BUILDS[name][0]()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 2)
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", BUILDS)
def test_a_family_comes_back_from_a_packed_file(name: str, dtype: str | None, tmp_path: Path) -> None:
    module = build(name)
    for parameter in module.parameters():
        if parameter.ndim in (2, 4):
            pattern = NM(n=1, m=4) if parameter.shape[1] % 4 == 0 else Unstructured(sparsity=0.7)
            parameter.data *= from_matrix(keep_mask(to_matrix(parameter.data).abs(), pattern), parameter.shape)
    state = module.state_dict()
    save_packed(tmp_path / "packed.safetensors", state, [NM(n=1, m=4)], dtype)
    save_weights(tmp_path / "whole.safetensors", state)
    assert (tmp_path / "packed.safetensors").stat().st_size < 0.8 * (tmp_path / "whole.safetensors").stat().st_size
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        parameter.data.zero_()
    checkpoints.load_into(other, checkpoints.read(tmp_path / "packed.safetensors", other), tmp_path)
    for key, tensor in other.state_dict().items():
        narrow = dtype is not None and tensor.ndim >= 2 and tensor.is_floating_point()
        assert torch.equal(tensor, state[key].bfloat16().to(tensor.dtype) if narrow else state[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_a_family_is_followed_exactly_and_pruned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, size = build(name), BUILDS[name][1]
    exact = copy.deepcopy(module).double().eval()
    images = noise((3, 3, size, size), 0)
    graph = NetworkGraph.export(exact, images[:2])
    check_answers(graph, exact, images)
    config = PruneConfig(pattern="50%", k_steps=3, batch_size=2, precision="float64")
    covered = coverage(graph, config)
    assert covered.skipped.keys() | set(covered.patterns) == dict(module.named_parameters(remove_duplicate=False)).keys()
    assert not [reason for reason in covered.skipped.values() if "cannot be" in reason or "NaN" in reason]
    sites = covered.sites
    for site in (sites[i] for i in sorted({0, len(sites) // 2, len(sites) - 1})):
        window = graph.window(site, config.k_steps)
        check_window(window, images)
        check_curvatures(window, images)
    # Exporting takes most of the time, and the run would export the same network once more.
    monkeypatch.setattr(NetworkGraph, "export", lambda *arguments: graph)
    # Two layers whose rows make small systems: those of a wide layer take minutes.
    chosen = {site.name for site in sorted(sites, key=lambda s: s.shape[0] * math.prod(s.shape[1:]) ** 3)[:2]}
    others = {site.name: Dense() for site in graph.sites if site.name not in chosen}
    for parameter in list(module.parameters())[::3]:
        parameter.requires_grad_(False)
    module.train()
    next(module.children()).eval()
    result = check_run(module, images.float(), config.model_copy(update={"overrides": others}))
    assert result.masks.keys() == chosen


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_a_family_without_half_of_its_units_answers_as_the_masked_one(name: str) -> None:
    size = BUILDS[name][1]
    assert check_cut(build(name).double().eval(), noise((3, 3, size, size), 0)) > 0
