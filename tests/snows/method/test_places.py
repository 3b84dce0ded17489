"""Softmaxes on their way to a product, and tokens on their way from the image, in networks written in many ways.

The oracle never sees a graph: it is what softmax and fused attention really return, caught in a plain forward pass.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snows.config import InputError
from snows.measures.attention import MapTokens, TokenGrid, attention_maps, map_tokens, rollout, similarity, token_grid
from snows.method.graph import NetworkGraph

pytestmark = pytest.mark.slow

T, C, H, D = 6, 8, 2, 4  # tokens of the 2 x 3 patches, channels, heads and channels of each


@contextmanager
def caught_softmaxes() -> Iterator[list[Tensor]]:
    """All weights that a plain forward pass computes, in order: what a softmax returns, its axis last; those of fused attention
    from their definition."""
    caught: list[Tensor] = []
    inside = False

    def softmax(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def catch(x: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal inside
            outermost, inside = not inside, True
            try:
                result = plain(x, dim, *args, **kwargs)
            finally:
                inside = not outermost
            if outermost:
                caught.append(result.detach().movedim(dim, -1))
            return result

        return catch

    def fused(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def catch(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
            scores = torch.einsum("...qd,...kd->...qk", q, k) * (kwargs.get("scale") or q.shape[-1] ** -0.5)
            if kwargs.get("is_causal"):
                attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            if attn_mask is not None:
                scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            caught.append((weights / weights.sum(-1, keepdim=True)).detach())
            return plain(q, k, v, attn_mask, *args, **kwargs)

        return catch

    places = [(torch, "softmax"), (Tensor, "softmax"), (F, "softmax"), (F, "scaled_dot_product_attention")]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, (softmax if name == "softmax" else fused)(getattr(owner, name)))
        yield caught


# --- attention as people write it ---


class Block(nn.Module):
    """Attention over tokens (N, T, C), written in one of many ways by a subclass; `layout` is that of what its softmax returns
    with the keys last: n images, h heads or windows, q queries, k keys."""

    layout = "nhqk"

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.mix = nn.Parameter(torch.randn(H, H))
        self.scale = nn.Parameter(torch.rand(H, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.randn(H, T, T))
        self.conv = nn.Conv2d(H, H, 1)
        self.wide = nn.Conv2d(H, H, 3, padding=1)
        self.norm, self.layer_norm = nn.BatchNorm2d(H), nn.LayerNorm(H)
        self.heads = nn.Linear(H, H)
        self.drop = nn.Dropout(0.5)
        self.latent = nn.Parameter(torch.randn(1, 3, C))
        self.out = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, H, D).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, C))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, H, T, D) each."""
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * D**-0.5 @ k.transpose(-2, -1)).softmax(-1)


class Plain(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weights(q, k) @ v


class Einsum(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("b h i d, b h j d -> b h i j", q, k).softmax(dim=-1)
        return torch.einsum("b h i j, b h j d -> b h i d", weights, v)


class EinsumWithDots(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("...ij,...jd->...id", F.softmax(torch.einsum("...id,...jd->...ij", q, k), -1), v)


class ImplicitEinsum(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("...qk,...kz", self.weights(q, k), v)


class HeadsLast(Block):
    layout = "nqhk"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhqd,bhkd->bqkh", q, k).softmax(2)
        return torch.einsum("bqkh,bhkd->bhqd", weights, v)


class Transposed(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (v.transpose(-2, -1) @ self.weights(q, k).transpose(-2, -1)).transpose(-2, -1)


class KeysByQueries(Block):
    """Non-local networks and iFormer: the softmax runs over the rows."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (v.mT @ torch.matmul(k, q.mT).softmax(-2)).mT


class Float32(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(dim=-1, dtype=torch.float32).type_as(v) @ v


class CastBack(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax((q @ k.mT).float(), -1).to(v.dtype).contiguous() @ v


class TalkingHeads(Block):
    """CaiT."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.heads((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.drop(self.heads(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) @ v


class TalkingEinsum(Block):
    """lucidrains' vit-pytorch."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("b h i j, h g -> b g i j", self.weights(q, k), self.mix)
        return torch.einsum("b h i j, b h j d -> b h i d", weights, v)


class TalkingMatmul(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.mix @ self.weights(q, k).flatten(2)).unflatten(2, (T, T)) @ v


class ReAttention(Block):
    """DeepViT: heads mixed, then normalized over heads."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("b h i j, h g -> b g i j", self.weights(q, k), self.mix)
        return self.layer_norm(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v


class Refined(Block):
    """Refiner: convolutions over the maps."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.norm(self.wide(self.conv(self.weights(q, k)))) @ v


class Rescaled(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.drop(self.weights(q, k)) * self.scale / 2 + 1e-3) @ v


class Renormalized(Block):
    """ConViT and masked transformers: weights are gated, then made to sum to one again."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.weights(q, k) * (q.mean(-1, keepdim=True) > 0)
        return weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v


class Masked(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(2), -math.inf)
        return torch.softmax(scores + self.bias, dim=-1) @ v


class Relative(Block):
    """BoTNet and Shaw et al.: the query meets the positions as well, and so do the weights."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT + torch.einsum("bhqd,kd->bhqk", q, self.latent[0, :1, :D].expand(T, -1))).softmax(-1)
        return weights @ v + torch.einsum("bhqk,kd->bhqd", weights, self.bias[0, :, :D])


class Written(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.softmax(q @ k.mT, -1)  # for the oracle alone: the network uses its own
        scores = q @ k.mT
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights / weights.sum(-1, keepdim=True) @ v


class Module(Block):
    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(self.softmax(q.matmul(k.transpose(2, 3))), v)


class Cosine(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.scale.exp()).softmax(-1) @ v


class Merged(Block):
    """Images and heads are one axis, as in fairseq and `nn.MultiheadAttention`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        return torch.bmm(torch.baddbmm(self.bias[:1], q, k.mT).softmax(-1), v).unflatten(0, (-1, H))

    @staticmethod
    def arranged(caught: Tensor, images: int) -> Tensor:
        return caught.unflatten(0, (images, H))


class HeadsOutermost(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).flatten(0, 1) for x in (q, k, v))
        return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).unflatten(0, (H, -1)).transpose(0, 1)

    @staticmethod
    def arranged(caught: Tensor, images: int) -> Tensor:
        return caught.unflatten(0, (H, images)).transpose(0, 1)


class SharedValues(Block):
    """Multi-query attention: one head of keys and values."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhnk,bmk->bhnm", q, k[:, 0]).softmax(-1)
        return torch.einsum("bhnm,bmv->bhnv", weights, v[:, 0])


class BroadcastValues(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k[:, :1].mT).softmax(-1) @ v[:, 1:]


class Differential(Block):
    """The difference of two maps (timm's DiffAttention): both are one softmax."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        one, other = self.weights(q, k).unbind(1)
        return (one - 0.3 * other)[:, None] @ v


class Fused(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)


class Rows(Block):
    """Axial attention: the patches of each row attend to each other, the images inside the rows."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (2, 3)).permute(2, 0, 1, 3, 4).flatten(0, 1) for x in (q, k, v))
        out = self.weights(q, k) @ v
        return out.unflatten(0, (2, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)

    @staticmethod
    def arranged(caught: Tensor, images: int) -> Tensor:
        return caught.unflatten(0, (2, images)).transpose(0, 1).flatten(1, 2)


IDIOMS = [
    *(Plain, Einsum, EinsumWithDots, ImplicitEinsum, HeadsLast, Transposed, Float32, CastBack, TalkingHeads, TalkingEinsum),
    *(TalkingMatmul, ReAttention, Refined, Rescaled, Renormalized, Masked, Relative, Written, Module, Cosine, Merged),
    *(HeadsOutermost, SharedValues, BroadcastValues, Differential, Fused, Rows, KeysByQueries),
]


# What attends, or looks as if, and gives no map of the image: with the reason that is given.


class Sigmoid(Block):
    missing = "without a softmax"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT - math.log(T)).sigmoid() @ v


class Linear(Block):
    """EfficientViT and Katharopoulos et al.: keys meet values first."""

    missing = "without a softmax"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = q.relu(), k.relu()
        return q @ (k.mT @ v) / (q @ k.sum(2)[..., None] + 1e-6)


class Slots(Block):
    """Slot attention: queries compete, each sums over what it won."""

    missing = "another axis"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT).softmax(-2)
        return weights / weights.sum(-1, keepdim=True) @ v


class Gate(Block):
    """Selective kernels: a softmax over branches scales them."""

    missing = "one by one"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (
            torch.stack([q, k, v], 1) * self.bias[0, :3, 0].add(q.mean((1, 2, 3))[:, None]).softmax(1)[..., None, None, None]
        ).sum(1)


class BetweenImages(Block):
    missing = "from image to image"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q.flatten(1) @ k.flatten(1).T).softmax(-1) @ v.flatten(1)).view_as(v)


class Channels(Block):
    """XCiT: which channel draws on which, summed over tokens. A map, and none of the image."""

    missing = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q.mT @ k).softmax(-1) @ v.mT).mT


class Efficient(Block):
    """Shen et al.: keys are weighed over tokens, queries over channels."""

    missing = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.softmax(-1) @ (k.softmax(-2).mT @ v)


class Memory(Block):
    """External attention: over learned values, which are no tokens."""

    missing = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ self.bias[0, :, :D].T).softmax(-1) @ self.bias[1, :, :D]


OTHERS = [Sigmoid, Linear, Slots, Gate, BetweenImages, Channels, Efficient, Memory]


class Network(nn.Module):
    """Attention blocks, by their classes' names, on the patches of an image of 4 x 6 pixels, and probabilities of classes."""

    def __init__(self, blocks: list[type[Block]]) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, C, 2, stride=2)
        self.blocks = nn.ModuleDict({block.__name__: block() for block in blocks})
        self.head = nn.Linear(C, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks.values():
            x = x + F.layer_norm(block(x), (C,))
        return self.head(x.mean(1)).softmax(1)


@pytest.fixture(scope="module")
def idioms() -> tuple[NetworkGraph, Tensor, dict[str, Tensor]]:
    """One network of all idioms, images, and what its softmaxes return by block."""
    torch.manual_seed(0)
    network, images = Network(IDIOMS).eval(), torch.randn(3, 1, 4, 6)
    with torch.no_grad(), caught_softmaxes() as caught:
        network(images)
    return (
        NetworkGraph.export(network, images[:2]),
        images,
        {f"blocks.{b.__name__}": c for b, c in zip(IDIOMS, caught, strict=False)},
    )


@pytest.fixture(scope="module")
def others() -> NetworkGraph:
    torch.manual_seed(0)
    return NetworkGraph.export(Network(OTHERS).eval(), torch.randn(2, 1, 4, 6))


@pytest.mark.parametrize("block", IDIOMS, ids=lambda block: block.__name__)
def test_every_softmax_is_followed_to_its_product(
    block: type[Block], idioms: tuple[NetworkGraph, Tensor, dict[str, Tensor]]
) -> None:
    graph, images, caught = idioms
    name = f"blocks.{block.__name__}"
    maps, expected = attention_maps(graph, images, batch_size=2), caught[name]
    if hasattr(block, "arranged"):
        expected = block.arranged(expected, len(images))
    expected = torch.einsum(f"{block.layout}->nhqk", expected).contiguous()
    torch.testing.assert_close(maps[name], expected, rtol=1e-4, atol=1e-5)
    counted = [node for node in graph.nodes if graph.kind(node) == "attention" and graph.path(node) == name]
    assert len(counted) == (2 if block is Relative else 1)  # both products by its weights are
    grid = TokenGrid((), 2, 3, (0, 1, 2, 3, 4, 5))
    windows = MapTokens("windows", None, None)
    assert map_tokens(graph)[name] == (windows if block is Rows else MapTokens("image", grid, grid))


def test_a_network_of_all_idioms_lacks_no_map(idioms: tuple[NetworkGraph, Tensor, dict[str, Tensor]]) -> None:
    graph, images, caught = idioms
    maps = attention_maps(graph, images)
    assert list(maps) == list(caught)
    assert maps.missing == {}  # the probabilities of the classes are no attention
    assert token_grid(graph) is None  # of windows there is one block
    heads = {name: score.shape[1] for name, score in similarity(graph, images, {}).cosine.items()}
    assert heads == dict.fromkeys(caught, H)


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.__name__)
def test_what_has_no_map_of_the_image_says_why(block: type[Block], others: NetworkGraph) -> None:
    name = f"blocks.{block.__name__}"
    maps = attention_maps(others, torch.randn(3, 1, 4, 6))
    counted = [node for node in others.nodes if others.kind(node) == "attention" and others.path(node) == name]
    products = {Efficient: 2, Sigmoid: 0, Linear: 0, Gate: 0}
    assert len(counted) == products.get(block, 1)  # one for each product by a softmax, whatever can be shown of it
    if block.missing is not None:
        assert name not in maps
        assert block.missing in maps.missing[name]
        return
    assert name not in maps.missing
    assert map_tokens(others)[name] == MapTokens("other", None, None)
    torch.testing.assert_close(maps[name].sum(-1), torch.ones(maps[name].shape[:-1]))


# --- tokens ---


class Tokens(nn.Module):
    """A block of attention over tokens that a function puts together."""

    def __init__(self, tokens: Callable[["Tokens", Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens = tokens
        self.embed, self.pixels = nn.Conv2d(1, C, 2, stride=2), nn.Linear(4, C)
        self.cls_token, self.dist_token = nn.Parameter(torch.zeros(1, 1, C)), nn.Parameter(torch.zeros(C))
        self.register_tokens = nn.Parameter(torch.randn(1, 2, C))
        self.pos_embed = nn.Parameter(torch.randn(1, 20, C))
        self.register_buffer("order", torch.tensor([3, 0, 5, 1, 4, 2]))
        self.block, self.head = Plain(), nn.Linear(C, 3)

    def patches(self, images: Tensor) -> Tensor:
        return self.embed(images).flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self, images)
        return self.head((x + self.block(x)).mean(1))


def registers_between(m: Tokens, images: Tensor) -> Tensor:
    x = torch.cat([m.cls_token.expand(images.shape[0], -1, -1), m.patches(images)], 1) + m.pos_embed[:, :7]
    return torch.cat([x[:, :1], m.register_tokens.expand(images.shape[0], -1, -1), x[:, 1:]], dim=1)


def registers_behind(m: Tokens, images: Tensor) -> Tensor:
    x = m.patches(images) + m.pos_embed[:, :6]
    return torch.cat((m.cls_token.repeat(images.shape[0], 1, 1), x, m.register_tokens.repeat(images.shape[0], 1, 1)), dim=-2)


def class_token_last(m: Tokens, images: Tensor) -> Tensor:
    return torch.cat([m.patches(images), m.cls_token.expand(images.shape[0], -1, -1)], 1)


def class_token_in_the_middle(m: Tokens, images: Tensor) -> Tensor:
    """Vision Mamba's."""
    x, cls = m.patches(images), m.cls_token.expand(images.shape[0], -1, -1)
    return torch.cat([x[:, :3], cls, x[:, 3:]], 1)


def distilled(m: Tokens, images: Tensor) -> Tensor:
    cls = m.cls_token.expand(images.shape[0], -1, -1) + m.pos_embed[:, :1]
    x = torch.cat([m.patches(images), m.dist_token.expand(images.shape[0], 1, C)], 1)
    return torch.cat([cls, x], 1)


def average_in_front(m: Tokens, images: Tensor) -> Tensor:
    """CLIP's attention pooling."""
    x = m.embed(images).flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0) + m.pos_embed[0, :7, None]
    return x.transpose(0, 1)


def by_columns(m: Tokens, images: Tensor) -> Tensor:
    return m.embed(images).transpose(2, 3).flatten(2).mT


def shuffled(m: Tokens, images: Tensor) -> Tensor:
    return torch.cat([m.cls_token.expand(images.shape[0], -1, -1), m.patches(images)[:, m.order]], 1)


def rearranged(m: Tokens, images: Tensor) -> Tensor:
    """lucidrains': 'b c (h p) (w q) -> b (h w) (p q c)', then a linear layer."""
    x = images.reshape(images.shape[0], 1, 2, 2, 3, 2).permute(0, 2, 4, 3, 5, 1)
    return m.pixels(x.reshape(images.shape[0], 6, 4))


def unfolded(m: Tokens, images: Tensor) -> Tensor:
    return m.pixels(F.unfold(images, 2, stride=2).transpose(1, 2))


def written_in_place(m: Tokens, images: Tensor) -> Tensor:
    x = images.new_zeros(images.shape[0], 7, C)
    x[:, 1:] = m.patches(images)
    x[:, 0] = m.dist_token
    return x


def rolled_and_back(m: Tokens, images: Tensor) -> Tensor:
    x = torch.roll(m.embed(images), (1, 1), (2, 3)).flatten(2).mT
    return torch.stack([x, x], 1).flatten(0, 1).unflatten(0, (-1, 2))[:, 0]


ROW_BY_ROW = (0, 1, 2, 3, 4, 5)
GRIDS: list[tuple[Callable[[Tokens, Tensor], Tensor], TokenGrid]] = [
    (registers_between, TokenGrid(("cls_token", "register_tokens", "register_tokens"), 2, 3, (3, 4, 5, 6, 7, 8))),
    (registers_behind, TokenGrid(("cls_token", "register_tokens", "register_tokens"), 2, 3, (1, 2, 3, 4, 5, 6))),
    (class_token_last, TokenGrid(("cls_token",), 2, 3, ROW_BY_ROW)),
    (class_token_in_the_middle, TokenGrid(("cls_token",), 2, 3, (0, 1, 2, 4, 5, 6))),
    (distilled, TokenGrid(("cls_token", "dist_token"), 2, 3, (1, 2, 3, 4, 5, 6))),
    (average_in_front, TokenGrid(("average",), 2, 3, (1, 2, 3, 4, 5, 6))),
    (by_columns, TokenGrid((), 2, 3, (0, 2, 4, 1, 3, 5))),
    (shuffled, TokenGrid(("cls_token",), 2, 3, (2, 4, 6, 1, 5, 3))),
    (rearranged, TokenGrid((), 2, 3, ROW_BY_ROW)),
    (unfolded, TokenGrid((), 2, 3, ROW_BY_ROW)),
    (written_in_place, TokenGrid(("dist_token",), 2, 3, (1, 2, 3, 4, 5, 6))),
    (rolled_and_back, TokenGrid((), 2, 3, (4, 5, 3, 1, 2, 0))),
]


@pytest.mark.parametrize(("tokens", "expected"), GRIDS, ids=[tokens.__name__ for tokens, _ in GRIDS])
def test_tokens_are_found_wherever_they_were_put(tokens: Callable[[Tokens, Tensor], Tensor], expected: TokenGrid) -> None:
    torch.manual_seed(0)
    network, images = Tokens(tokens).eval(), torch.randn(2, 1, 4, 6)
    grid = token_grid(NetworkGraph.export(network, images))
    assert grid == expected
    # A patch's token is the one that changes with its pixels.
    for row, column in ((0, 2), (1, 0)):
        changed = images.clone()
        changed[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 1
        with torch.no_grad():
            moved = (network.tokens(network, images) != network.tokens(network, changed)).any(-1)
        own = set(moved.nonzero()[:, 1].tolist()) - set(grid.others)
        assert own == {grid.token(row, column)}


# --- networks of others ---


class FromTorch(nn.Module):
    """PyTorch's own attention modules on patches."""

    def __init__(self, need_weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, C, 2, stride=2)
        self.attention = nn.MultiheadAttention(C, H, batch_first=batch_first, add_bias_kv=not batch_first)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(C, H, 16, batch_first=batch_first), 2)
        self.need_weights, self.batch_first = need_weights, batch_first

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).permute((0, 2, 1) if self.batch_first else (2, 0, 1))
        return self.encoder(x + self.attention(x, x, x, need_weights=self.need_weights)[0]).mean(1 if self.batch_first else 0)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_pytorchs_own_modules(need_weights: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    network, images = FromTorch(need_weights, batch_first).eval(), torch.randn(3, 1, 4, 6)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), caught_softmaxes() as caught:
            network(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    graph = NetworkGraph.export(network, images[:2])
    maps = attention_maps(graph, images)
    assert list(maps) == ["attention", "encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    assert maps.missing == {}
    for weights, expected in zip(maps.values(), caught, strict=True):
        torch.testing.assert_close(weights, expected.reshape(weights.shape), rtol=1e-4, atol=1e-6)
    grid = TokenGrid((), 2, 3, ROW_BY_ROW)
    assert map_tokens(graph)["encoder.layers.1.self_attn"] == MapTokens("image", grid, grid)
    # A learned key beside the patches has a place of its own, and what it is asked by has none.
    learned = TokenGrid(("attention.bias_k",), 2, 3, ROW_BY_ROW)
    assert map_tokens(graph)["attention"] == MapTokens("image", grid, grid if batch_first else learned)


def tiny(name: str, fused: bool = False, **arguments: Any) -> tuple[nn.Module, Tensor]:
    """A network of timm, small, with random weights, and two images for it."""
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=5, **arguments).eval()
    finally:
        timm.layers.set_fused_attn(bool(before))
    size = arguments.get("img_size", network.default_cfg["input_size"][1:])
    return network, torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))


VIT = {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 3}
FOUR = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32)}
# How many of its maps are over the whole image, within windows, and over something else; and what attends without a map.
FAMILIES: list[tuple[str, dict[str, Any], Counter[str]]] = [
    ("cait_xxs24_224", VIT, Counter(image=4)),  # talking heads, then a class token alone
    ("xcit_nano_12_p16_224", {**VIT, "embed_dim": 32, "num_heads": 4}, Counter(image=2, other=2)),  # between channels
    ("convit_tiny", {**VIT, "local_up_to_layer": 1}, Counter(image=2, other=1)),  # a second softmax, over positions
    ("crossvit_9_240", {}, Counter(image=18)),  # two branches, and class tokens that cross over
    ("vit_small_patch16_dinov3", VIT, Counter(image=2)),
    ("vit_dlittle_patch16_reg1_gap_256", VIT, Counter(image=2)),  # differential attention
    ("deit_tiny_distilled_patch16_224", {**VIT, "img_size": (32, 64)}, Counter(image=2)),
    ("vit_relpos_base_patch16_clsgap_224", VIT, Counter(image=2)),
    ("levit_128s", {}, Counter(image=11)),  # fewer queries than keys between stages
    ("pvt_v2_b0", {**FOUR, "embed_dims": (8, 16, 40, 64)}, Counter(image=4)),  # fewer keys than queries
    ("twins_svt_small", {**FOUR, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 3, 4)}, Counter(image=4, windows=3)),
    ("tnt_s_legacy_patch16_224", {"img_size": 64, "depth": 2}, Counter(image=2, windows=2)),  # pixels within patches
    ("hiera_tiny_224", {}, Counter(image=8, windows=4)),  # windows of tokens that were reordered beforehand
    ("mobilevit_xxs", {}, Counter(windows=9)),
    ("mobilevitv2_050", {}, Counter(missing=9)),  # products of single values
    ("efficientvit_b0", {}, Counter(missing=4)),  # ReLU attention
    ("lambda_resnet26t", {}, Counter(other=3)),
    ("coat_lite_tiny", {"img_size": 64}, Counter(other=8)),
    ("resnest14d", {}, Counter(missing=4)),  # branches
    ("gcresnet33ts", {}, Counter(image=10)),  # one query a block, which is no token
    ("resnet50_clip", {}, Counter(image=1)),  # from the average of all patches
]


@pytest.mark.parametrize(("name", "arguments", "expected"), FAMILIES, ids=[name for name, *_ in FAMILIES])
def test_families_of_timm(name: str, arguments: dict[str, Any], expected: Counter[str]) -> None:
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)  # fused, there is nothing to follow
    try:
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=5, **arguments).eval()
    finally:
        timm.layers.set_fused_attn(bool(before))
    size = arguments.get("img_size", network.default_cfg["input_size"][1:])
    images = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    with torch.no_grad(), caught_softmaxes() as caught:
        network(images)
    graph = NetworkGraph.export(network, images)
    maps = attention_maps(graph, images)
    kinds = Counter(tokens.kind for tokens in map_tokens(graph).values())
    if maps.missing:
        kinds["missing"] = len(maps.missing)
    assert kinds == expected
    if "missing" not in expected:
        assert len(maps) == len(caught)
    # Value by value, whatever the order of images, windows and heads; then each image by itself.
    for weights, plain in zip(maps.values(), (c for c in caught if len(maps) == len(caught)), strict=False):
        assert weights.shape[-1] == plain.shape[-1]
        direction = torch.randn(plain.shape[-1], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(*((w @ direction).flatten().sort().values for w in (weights, plain)), rtol=1e-3, atol=1e-4)
    for place in range(2):
        for weights, alone in zip(maps.values(), attention_maps(graph, images[place : place + 1]).values(), strict=True):
            torch.testing.assert_close(weights[place], alone[0], rtol=1e-3, atol=1e-5)
    grid = token_grid(graph)
    if grid is not None:
        assert torch.isfinite(rollout(maps.values())).all()
    else:
        with pytest.raises(InputError):
            rollout(maps.values())
