"""Maps against the nodes they explain, rollout and similarity against plain loops, bounds by hypothesis."""

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snows.config import InputError
from snows.measures.attention import (
    Similarity,
    TokenGrid,
    attention_maps,
    cosine,
    jensen_shannon,
    rollout,
    similarity,
    spatial_attention,
    token_grid,
)
from snows.method.graph import NetworkGraph
from snows.method.operations import fused_attention_map
from snows.sources.models import ResNet20


class Attention(nn.Module):
    """Attention over tokens (N, T, 8), two heads, fused or written out, with a fixed mask or causal."""

    def __init__(self, fused: bool, mask: Tensor | None = None, causal: bool = False) -> None:
        super().__init__()
        self.fused, self.causal = fused, causal
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-2, -1) / 2
            y = (scores if self.mask is None else scores + self.mask).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class Network(nn.Module):
    """Two attention blocks with a residual connection on the patches of an 8x8 image: 16 tokens."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 2, stride=2)
        self.blocks = nn.ModuleList(Attention(**arguments) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


def example(**arguments: Any) -> tuple[Network, NetworkGraph, Tensor]:
    torch.manual_seed(0)
    network = Network(**arguments).double().eval()
    with torch.no_grad():
        for block in network.blocks:
            block.qkv.weight *= 4  # maps with contrast
    images = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    return network, NetworkGraph.export(network, images[:2]), images


def random_maps(seed: int, images: int = 2, heads: int = 3, tokens: int = 5, contrast: float = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (contrast * torch.randn(images, heads, tokens, tokens, generator=generator, dtype=torch.float64)).softmax(-1)


# --- maps ---


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.randn(7, 9, dtype=torch.float64)},
        {"attn_mask": torch.rand(2, 1, 7, 9) > 0.4},
        {"attn_mask": torch.zeros(7, 9, dtype=torch.bool)},
    ],
    ids=["plain", "causal", "scale", "additive mask", "bool mask", "nothing to attend to"],
)
def test_fused_map_times_value_is_the_fused_output(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, t, 6, dtype=torch.float64) for t in (7, 9, 9))
    expected = F.scaled_dot_product_attention(query, key, value, **arguments)
    torch.testing.assert_close(fused_attention_map(query, key, **arguments) @ value, expected, rtol=1e-12, atol=1e-12)


def test_fused_map_with_grouped_queries() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, h, 7, 6, dtype=torch.float64) for h in (6, 2, 2))
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    weights = fused_attention_map(query, key, enable_gqa=True)
    torch.testing.assert_close(weights @ value.repeat_interleave(3, 1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"fused": True},
        {"fused": True, "causal": True},
        {"fused": True, "mask": torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).double()},
        {"fused": False},
    ],
    ids=["fused", "causal", "masked", "written out"],
)
def test_maps_explain_the_output_of_every_block(arguments: dict[str, Any]) -> None:
    network, graph, images = example(**arguments)
    maps = attention_maps(graph, images, batch_size=2)
    assert list(maps) == ["blocks.0", "blocks.1"]
    x = network.embed(images).flatten(2).transpose(1, 2)
    for block, weights in zip(network.blocks, maps.values(), strict=True):
        assert weights.shape == (5, 2, 16, 16)
        assert weights.dtype == torch.float32
        value = block.qkv(x)[..., 16:].reshape(5, 16, 2, 4).transpose(1, 2)
        explained = block.proj((weights.double() @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(explained, block(x), rtol=1e-5, atol=1e-5)
        x = x + block(x)


@pytest.mark.slow
def test_fused_and_written_out_attention_have_equal_maps() -> None:
    fused, written = example(fused=True), example(fused=False)
    before, after = attention_maps(*fused[1:]), attention_maps(*written[1:])
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_batches_do_not_change_the_maps() -> None:
    _, graph, images = example(fused=True)
    whole, parts = attention_maps(graph, images, batch_size=5), attention_maps(graph, images, batch_size=2)
    assert all(torch.allclose(whole[n], parts[n], rtol=0, atol=1e-6) for n in whole)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_timm_swin_maps_by_window(fused: bool) -> None:
    previous = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        torch.manual_seed(0)
        network = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=3
        ).eval()
    finally:
        timm.layers.set_fused_attn(bool(previous))
    images = torch.randn(3, 3, 56, 56)
    graph = NetworkGraph.export(network, images)
    maps = attention_maps(graph, images, batch_size=2)
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        "layers.0.blocks.0.attn": (3, 4 * 2, 49, 49),
        "layers.0.blocks.1.attn": (3, 4 * 2, 49, 49),
        "layers.1.blocks.0.attn": (3, 1 * 4, 49, 49),
        "layers.1.blocks.1.attn": (3, 1 * 4, 49, 49),
    }
    assert token_grid(graph) is None
    result = similarity(graph, images, dict(network.state_dict()))
    assert [tuple(heads.shape) for heads in result.cosine.values()] == [(3, 2), (3, 2), (3, 4), (3, 4)]
    # The first block's maps from its own weights, written out.
    block = network.layers[0].blocks[0]
    with torch.no_grad():
        x = block.norm1(network.patch_embed(images))
        windows = x.view(3, 2, 7, 2, 7, 24).permute(0, 1, 3, 2, 4, 5).reshape(12, 49, 24)
        q, k, _ = block.attn.qkv(windows).reshape(12, 49, 3, 2, 12).permute(2, 0, 3, 1, 4)
        expected = (q @ k.transpose(-2, -1) * 12**-0.5 + block.attn._get_rel_pos_bias()).softmax(-1)
    torch.testing.assert_close(maps["layers.0.blocks.0.attn"], expected.reshape(3, 8, 49, 49), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_multihead_attention_module_gives_its_own_weights() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    network, tokens = Wrapped().eval(), torch.randn(3, 6, 8)
    maps = attention_maps(NetworkGraph.export(network, tokens), tokens)
    with torch.no_grad():
        expected = network.attention(tokens, tokens, tokens, average_attn_weights=False)[1]
    (weights,) = maps.values()
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_rows_sum_to_one_and_pruned_parameters_are_used() -> None:
    _, graph, images = example(fused=True)
    pruned = {"blocks.0.qkv.weight": torch.zeros(24, 8, dtype=torch.float64)}
    before, after = attention_maps(graph, images), attention_maps(graph, images, pruned)
    for weights in (*before.values(), *after.values()):
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 2, 16), rtol=0, atol=1e-5)
        assert (weights >= 0).all()
    assert not torch.allclose(before["blocks.0"], after["blocks.0"], atol=1e-3)


@pytest.mark.slow
def test_two_attentions_in_one_module_have_names_of_their_own() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.scaled_dot_product_attention(x, x, x)
            return F.scaled_dot_product_attention(x, x, x)

    tokens = torch.randn(2, 4, 6)
    assert list(attention_maps(NetworkGraph.export(Twice(), tokens), tokens)) == ["network", "network#2"]


@pytest.mark.slow
def test_a_network_without_attention_has_no_maps() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    images = torch.randn(2, 1, 8, 8)
    graph = NetworkGraph.export(network, images)
    assert attention_maps(graph, images) == {}
    assert token_grid(graph) is None


@pytest.mark.slow
def test_a_network_without_any_maps_has_nothing_to_compare() -> None:
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="neither attention nor convolutional stages"):
        similarity(NetworkGraph.export(network, images), images, {})


# --- tokens ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ({}, ["cls_token"]),
        ({"no_embed_class": True, "reg_tokens": 2}, ["cls_token", "reg_token", "reg_token"]),
        ({"class_token": False, "global_pool": "avg"}, []),
    ],
    ids=["class token", "registers", "average pooling"],
)
def test_tokens_of_timm_transformers(arguments: dict[str, Any], extra: list[str]) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    network = timm.models.vision_transformer.VisionTransformer(**sizes, **arguments).eval()
    grid = token_grid(NetworkGraph.export(network, torch.randn(2, 3, 12, 20)))
    assert grid == TokenGrid(tuple(extra), 3, 5, tuple(range(len(extra), len(extra) + 15)))


@pytest.mark.slow
def test_tokens_of_a_distilled_transformer() -> None:
    torch.manual_seed(0)
    network = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3
    ).eval()
    grid = token_grid(NetworkGraph.export(network, torch.randn(2, 3, 32, 32)))
    assert grid == TokenGrid(("cls_token", "dist_token"), 2, 2, (2, 3, 4, 5))


@pytest.mark.slow
def test_tokens_of_a_torchvision_transformer() -> None:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(16, 4, 1, 2, 8, 16, num_classes=3).eval()
    grid = token_grid(NetworkGraph.export(network, torch.randn(2, 3, 16, 16)))
    assert grid == TokenGrid(("class_token",), 4, 4, tuple(range(1, 17)))


@pytest.mark.slow
def test_a_patchs_token_is_the_one_that_changes_with_it() -> None:
    network, graph, images = example(fused=True)
    grid = token_grid(graph)
    assert grid == TokenGrid((), 4, 4, tuple(range(16)))
    changed = images.clone()
    changed[:, :, 2:4, 6:8] += 1  # the patch in row 1, column 3
    before, after = (network.embed(x).flatten(2).transpose(1, 2) for x in (images, changed))
    assert (before != after).any(-1).nonzero()[:, 1].unique().tolist() == [grid.token(1, 3)]
    weights = torch.arange(16.0)[None]
    assert grid.on_patches(weights)[0, 1, 3] == grid.token(1, 3)
    assert TokenGrid(("cls_token",), 2, 2, (4, 2, 0, 1)).on_patches(torch.arange(5)).tolist() == [[4, 2], [0, 1]]


@pytest.mark.slow
def test_tokens_that_change_between_blocks_have_no_grid() -> None:
    class Pooled(Network):
        def forward(self, images: Tensor) -> Tensor:
            x = self.embed(images).flatten(2).transpose(1, 2)
            return self.head(self.blocks[1](self.blocks[0](x)[:, ::2]).mean(1))

    network, images = Pooled(fused=True).eval(), torch.randn(2, 1, 8, 8)
    graph = NetworkGraph.export(network, images)
    assert [maps.shape[-1] for maps in attention_maps(graph, images).values()] == [16, 8]
    assert token_grid(graph) is None


# --- rollout ---


def test_rollout_against_a_plain_loop() -> None:
    maps = [random_maps(seed) for seed in range(3)]
    result = rollout(maps)
    for image in range(2):
        expected = torch.eye(5, dtype=torch.float64)
        for block in maps:
            step = torch.zeros(5, 5, dtype=torch.float64)
            for q in range(5):
                row = [sum(float(block[image, h, q, k]) for h in range(3)) / 3 + (q == k) for k in range(5)]
                step[q] = torch.tensor(row, dtype=torch.float64) / sum(row)
            expected = step @ expected
        torch.testing.assert_close(result[image], expected)


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_rollout_rows_sum_to_one(seed: int, depth: int) -> None:
    result = rollout(random_maps(seed + i) for i in range(depth))
    torch.testing.assert_close(result.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert (result >= 0).all()


def test_rollout_names_what_it_cannot_follow() -> None:
    with pytest.raises(ValueError, match="undefined for windowed or pooled attention"):
        rollout([random_maps(0, tokens=5), random_maps(0, tokens=4)])
    with pytest.raises(InputError, match="needs at least one attention map"):
        rollout([])
    # A class token alone, queries of another stage, a pyramid's reduced keys: first, last, alone, and of one token.
    for shapes in ([(1, 5)], [(5, 4)], [(4, 5), (4, 5)], [(5, 5), (1, 5)], [(1, 5), (5, 5)], [(5, 1)], [(1, 1), (5, 5)]):
        maps = [torch.rand(2, 3, *shape).softmax(-1) for shape in shapes]
        with pytest.raises(InputError, match=r"but here is a map of \(\d, \d\)"):
            rollout(maps)


# --- similarity ---


def test_similarity_measures_against_plain_loops() -> None:
    dense, pruned = random_maps(0), random_maps(1)
    for head in range(3):
        for image in range(2):
            cosines, divergences = [], []
            for q in range(5):
                p, r = dense[image, head, q].tolist(), pruned[image, head, q].tolist()
                norm = math.sqrt(sum(a * a for a in p) * sum(b * b for b in r))
                cosines.append(sum(a * b for a, b in zip(p, r, strict=True)) / norm)
                middle = [(a + b) / 2 for a, b in zip(p, r, strict=True)]
                divergences.append(
                    sum(a * math.log2(a / m) / 2 + b * math.log2(b / m) / 2 for a, b, m in zip(p, r, middle, strict=True))
                )
            assert float(cosine(dense, pruned)[image, head]) == pytest.approx(sum(cosines) / 5)
            assert float(jensen_shannon(dense, pruned)[image, head]) == pytest.approx(sum(divergences) / 5)


@given(st.integers(0, 2**31), st.floats(0, 200))
def test_similarity_measures_are_bounded_and_symmetric(seed: int, contrast: float) -> None:
    dense, pruned = (random_maps(seed + i, contrast=contrast).float() for i in range(2))
    for measure in (cosine, jensen_shannon):
        forward, backward = measure(dense, pruned), measure(pruned, dense)
        assert forward.isfinite().all()
        assert ((forward >= 0) & (forward <= 1 + 1e-6)).all()
        torch.testing.assert_close(forward, backward)
    torch.testing.assert_close(cosine(dense, dense), torch.ones(2, 3))
    torch.testing.assert_close(jensen_shannon(dense, dense), torch.zeros(2, 3))


def test_maps_with_nothing_in_common() -> None:
    dense = torch.zeros(1, 1, 2, 4)
    dense[..., 0] = 1
    pruned = dense.flip(-1)
    assert float(jensen_shannon(dense, pruned)) == 1
    assert float(cosine(dense, pruned)) == 0


@pytest.mark.slow
def test_identical_networks_preserve_attention_fully() -> None:
    network, graph, images = example(fused=True)
    result = similarity(graph, images, dict(network.state_dict()))
    assert (result.preservation == torch.ones(5)).all()
    assert all((heads - 1).abs().max() < 1e-6 for heads in result.cosine.values())
    assert all((heads == 0).all() for heads in result.jensen_shannon.values())


@pytest.mark.slow
def test_joined_parts_are_the_whole() -> None:
    _, graph, images = example(fused=True)
    pruned = {"blocks.1.qkv.weight": graph.parameters["blocks.1.qkv.weight"] / 2}
    whole = similarity(graph, images, pruned)
    joined = Similarity.join([similarity(graph, part, pruned) for part in images.split(2)])
    torch.testing.assert_close(joined.preservation, whole.preservation)
    torch.testing.assert_close(joined.cosine["blocks.1"], whole.cosine["blocks.1"])


@pytest.mark.slow
def test_similarity_in_batches_is_that_of_all_maps() -> None:
    _, graph, images = example(fused=True)
    pruned = {"blocks.0.qkv.weight": graph.parameters["blocks.0.qkv.weight"] * (torch.rand(24, 8) > 0.5)}
    result = similarity(graph, images, pruned, batch_size=2)
    before, after = attention_maps(graph, images), attention_maps(graph, images, pruned)
    for name in before:
        torch.testing.assert_close(result.cosine[name], cosine(before[name], after[name]))
        torch.testing.assert_close(result.jensen_shannon[name], jensen_shannon(before[name], after[name]))
        assert result.cosine[name].shape == (5, 2)
        even = torch.full_like(before[name], 1 / before[name].shape[-1])
        torch.testing.assert_close(result.even[name], jensen_shannon(before[name], even))
    for image, (overlap, floor, preservation) in enumerate(zip(result.overlap, result.floor, result.preservation, strict=True)):
        for score, divergences in ((overlap, result.jensen_shannon), (floor, result.even)):
            assert float(score) == pytest.approx(1 - sum(float(heads[image].mean()) for heads in divergences.values()) / 2)
            assert 0 < score < 0.9999
        assert float(preservation) == pytest.approx(float((overlap - floor) / (1 - floor)), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("build", ["transformer", "convolutional"])
def test_attention_that_looks_everywhere_alike_is_preserved_to_zero(build: str) -> None:
    if build == "transformer":
        _, graph, images = example(fused=True)
        blind = {name: torch.zeros_like(t) for name, t in graph.parameters.items() if "qkv" in name}
    else:
        images = torch.randn(2, 1, 32, 32)
        graph = NetworkGraph.export(ResNet20().eval(), images)
        blind = {name: torch.zeros_like(t) for name, t in graph.parameters.items()}
    result = similarity(graph, images, blind)
    torch.testing.assert_close(result.overlap, result.floor)
    torch.testing.assert_close(result.preservation, torch.zeros(len(images)), atol=1e-4, rtol=0)


# --- convolutional networks ---


@pytest.mark.slow
def test_spatial_attention_is_the_energy_of_each_stages_output() -> None:
    torch.manual_seed(0)
    network, images = ResNet20().eval(), torch.randn(5, 1, 32, 32)
    maps = spatial_attention(NetworkGraph.export(network, images[:2]), images, batch_size=2)
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        "layer1.2.act2": (5, 32, 32),
        "layer2.2.act2": (5, 16, 16),
        "layer3.2.act2": (5, 8, 8),
    }
    with torch.no_grad():
        x = network.act1(network.bn1(network.conv1(images)))
        for stage, found in zip((network.layer1, network.layer2, network.layer3), maps.values(), strict=True):
            x = stage(x)
            energy = (x**2).sum(1)
            torch.testing.assert_close(found, energy / energy.flatten(1).norm(dim=1)[:, None, None], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_spatial_attention_reads_block_ends_not_the_next_stages_inside() -> None:
    torch.manual_seed(0)
    network, images = timm.create_model("resnet26", num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    maps = spatial_attention(NetworkGraph.export(network, images), images)
    # layer2.0 begins with a 1x1 convolution at layer1's resolution, inside a residual block.
    assert list(maps) == ["act1", "layer1.1.act3", "layer2.1.act3", "layer3.1.act3", "layer4.1.act3"]


@pytest.mark.slow
def test_similarity_of_stages_is_that_of_their_shares() -> None:
    torch.manual_seed(0)
    network, images = ResNet20().eval(), torch.randn(3, 1, 32, 32)
    graph = NetworkGraph.export(network, images)
    pruned = {"layer2.0.conv1.weight": torch.zeros_like(graph.parameters["layer2.0.conv1.weight"])}
    result = similarity(graph, images, pruned, batch_size=2)
    before, after = spatial_attention(graph, images), spatial_attention(graph, images, pruned)
    for name in before:
        dense, changed = (maps[name].flatten(1) / maps[name].flatten(1).sum(1, keepdim=True) for maps in (before, after))
        torch.testing.assert_close(result.cosine[name][:, 0], F.cosine_similarity(dense, changed))
        torch.testing.assert_close(
            result.jensen_shannon[name], jensen_shannon(dense[:, None, None], changed[:, None, None]), rtol=1e-4, atol=1e-6
        )
    assert (result.jensen_shannon["layer1.2.act2"] == 0).all()
    assert (result.jensen_shannon["layer3.2.act2"] > 0).all()


@pytest.mark.slow
def test_a_silent_stage_compares_as_one_that_looks_everywhere_alike() -> None:
    network, images = ResNet20().eval(), torch.randn(2, 1, 32, 32)
    graph = NetworkGraph.export(network, images)
    silent = {name: torch.zeros_like(t) for name, t in graph.parameters.items()}
    assert (similarity(graph, images, silent, silent).preservation == 1).all()
    assert (similarity(graph, images, silent).preservation < 1).all()


@pytest.mark.slow
def test_spatial_attention_of_a_silent_stage_is_zero_not_nan() -> None:
    network, images = ResNet20().eval(), torch.randn(2, 1, 32, 32)
    graph = NetworkGraph.export(network, images)
    silent = {name: torch.zeros_like(t) for name, t in graph.parameters.items()}
    assert all((energy == 0).all() for energy in spatial_attention(graph, images, silent).values())
