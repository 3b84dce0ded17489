"""Other people's idioms: small networks that do in their middle what somebody does, each held to exact derivatives.

Each goes between two convolutions, so that the window of the first one runs through it.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snows.config import PruneConfig
from snows.method.graph import ExportError, NetworkGraph
from tests.zoo.checks import check_answers, check_curvatures, check_cut, check_run, check_window, noise

Idiom = Callable[["Host", Tensor], Tensor]


class Host(nn.Module):
    def __init__(self, idiom: Idiom) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.idiom = idiom

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.idiom(self, self.first(x)).mean((2, 3)))


def _written_slices(net: Host, x: Tensor) -> Tensor:
    y = net.second(x).clone()
    y[:, :2] = 2 * x[:, :2]
    y[:, 3] += 1
    return F.relu(y)


def _unpooled(net: Host, x: Tensor) -> Tensor:
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    return F.relu(net.second(F.max_unpool2d(pooled, places, 2)))


def _top(net: Host, x: Tensor) -> Tensor:
    values, _ = x.flatten(2).topk(4, -1)
    return F.gelu(net.second(x)) * values.mean(-1)[..., None, None]


def _sampled(net: Host, x: Tensor) -> Tensor:  # a spatial transformer
    turn = x.mean((2, 3))[:, :6].reshape(-1, 2, 3)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.relu(net.second(F.grid_sample(x, grid, align_corners=False)))


def _channel_attention(net: Host, x: Tensor) -> Tensor:  # squeeze and excitation, by its average and its maximum
    gate = (x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True)).sigmoid()
    return F.relu(net.second(x * gate))


def _shuffled(net: Host, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return F.relu(net.second(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)))


def _partitioned(net: Host, x: Tensor) -> Tensor:  # windows of 4 x 4, there and back
    b, c, h, w = x.shape
    windows = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    mixed = windows.softmax(1) * windows
    return F.relu(net.second(mixed.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)))


def _self_attention(net: Host, x: Tensor) -> Tensor:
    tokens = x.flatten(2).mT
    weights = torch.einsum("bic,bjc->bij", tokens, tokens).mul(0.3).softmax(-1)
    return F.relu(net.second(torch.einsum("bij,bjc->bci", weights, tokens).view_as(x)))


def _external(net: Host, x: Tensor) -> Tensor:  # attention over a table of its own, normalized twice
    table = net.second.weight[:, :, 0, 0]
    weights = F.linear(x.flatten(2).mT, table).softmax(1)
    weights = weights / (1e-6 + weights.sum(-1, keepdim=True))
    return F.relu((weights @ table).mT.view_as(x))


IDIOMS: dict[str, Idiom] = {
    "absolute value": lambda net, x: F.relu(net.second(x.abs())),
    "argmax and gather": lambda net, x: net.second(x * torch.gather(x, 1, x.argmax(1, keepdim=True))),
    "attention over a table": _external,
    "batch dependent where": lambda net, x: F.relu(
        net.second(torch.where((x.mean((1, 2, 3)) > 0)[:, None, None, None], x, -x))
    ),
    "bicubic": lambda net, x: F.relu(net.second(F.interpolate(x, size=(5, 5), mode="bicubic"))),
    "bilinear": lambda net, x: F.relu(net.second(F.interpolate(x, scale_factor=2, mode="bilinear"))),
    "channel attention": _channel_attention,
    "channel shuffle": _shuffled,
    "clamp": lambda net, x: F.relu(net.second(x.clamp(-1, 1))),
    "comparison as a factor": lambda net, x: F.relu(net.second(x * (x > 0))),
    "constant padding": lambda net, x: F.relu(net.second(F.pad(x, (1, 2, 1, 2), value=0.7))),
    "cumulative sum": lambda net, x: F.relu(net.second(x).cumsum(-1)),
    "detached mean": lambda net, x: F.relu(net.second(x - x.mean((2, 3), keepdim=True).detach())),
    "detached whole": lambda net, x: F.relu(net.second(x.detach())),
    "division by the maximum": lambda net, x: F.relu(net.second(x / x.amax((2, 3), keepdim=True))),
    "einsum": lambda net, x: F.relu(net.second(torch.einsum("bchw,cd->bdhw", x, net.second.weight[:, :, 1, 1]))),
    "exponential": lambda net, x: F.relu(net.second((-x.square()).exp())),
    "flip and roll": lambda net, x: F.relu(net.second(x.flip(-1) + x.roll((1, 2), (2, 3)))),
    "fold and unfold": lambda net, x: F.relu(net.second(F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2))),
    "Fourier filter": lambda net, x: F.relu(net.second(torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=(8, 8)))),
    "gated linear unit": lambda net, x: F.relu(net.second(F.glu(x.repeat(1, 2, 1, 1), 1))),
    "hard sigmoid and swish": lambda net, x: F.hardswish(net.second(F.hardsigmoid(x))),
    "index of channels": lambda net, x: F.relu(net.second(x[:, [1, 0, 3, 2, 5, 4, 7, 6]])),
    "instance norm": lambda net, x: F.relu(net.second(F.instance_norm(x))),
    "local response norm": lambda net, x: F.relu(net.second(F.local_response_norm(x, 2))),
    "log-sum-exp pooling": lambda net, x: F.relu(net.second(x)).flatten(2).logsumexp(-1)[..., None, None],
    "masked fill": lambda net, x: F.relu(net.second(x.masked_fill(x < 0, 0.0))),
    "maximum of two": lambda net, x: F.relu(net.second(torch.maximum(x, x.roll(1, 1)))),
    "median": lambda net, x: F.relu(net.second(x - x.flatten(2).median(-1)[0][..., None, None])),
    "normalize": lambda net, x: F.relu(net.second(F.normalize(x, dim=1))),
    "one-hot of the largest": lambda net, x: net.second(torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0) * x),
    "pixel shuffle": lambda net, x: F.relu(net.second(F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2))),
    "pixel unshuffle": lambda net, x: F.relu(net.second(F.pixel_unshuffle(x, 2)[:, ::4])),
    "power mean": lambda net, x: F.relu(net.second(F.avg_pool2d(x.abs().clamp(min=1e-3).pow(3), 2).pow(1 / 3))),
    "residual with a detached skip": lambda net, x: F.relu(net.second(x) + x.detach()),
    "self-attention by einsum": _self_attention,
    "slices written in place": _written_slices,
    "soft shrinkage": lambda net, x: F.softshrink(net.second(F.threshold(x, 0.1, 0.0))),
    "sorted channels": lambda net, x: F.relu(net.second(x.sort(1)[0])),
    "spatial transformer": _sampled,
    "split and chunk": lambda net, x: F.relu(
        net.second(torch.cat([*x.split([3, 5], 1)][::-1], 1)).chunk(2, 1)[0].repeat(1, 2, 1, 1)
    ),
    "stack and maxout": lambda net, x: F.relu(net.second(torch.stack([x, -2 * x]).amax(0))),
    "standard deviation": lambda net, x: F.relu(net.second((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))),
    "straight-through rounding": lambda net, x: F.relu(net.second(x + (x.round() - x).detach())),
    "tanh GELU": lambda net, x: net.second(F.gelu(x, approximate="tanh")),
    "top values": _top,
    "transposed convolution": lambda net, x: F.relu(F.conv_transpose2d(x, net.second.weight, stride=2)),
    "triangle mask": lambda net, x: F.relu(net.second(x.tril() + x.triu(2))),
    "unpooling": _unpooled,
    "where": lambda net, x: F.relu(net.second(torch.where(x > 0, x, 0.1 * x))),
    "windows there and back": _partitioned,
}


def host(name: str) -> Host:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Host(IDIOMS[name]).double().eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_is_followed_exactly(name: str) -> None:
    module, images = host(name), noise((3, 3, 8, 8), 1)
    graph = NetworkGraph.export(module, images[:2])
    check_answers(graph, module, images)
    window = graph.window(next(s for s in graph.sites if s.name == "first.weight"), 5)
    check_window(window, images)
    check_curvatures(window, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", IDIOMS)
def test_a_network_with_an_idiom_is_pruned_to_its_end_and_comes_back_as_it_was(name: str) -> None:
    images = noise((12, 3, 8, 8), 2).float()
    result = check_run(host(name).float().train(), images, PruneConfig(pattern="50%", k_steps=4, batch_size=6))
    assert "first.weight" in result.masks


@pytest.mark.slow
@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_without_half_of_its_units_answers_as_the_masked_one(name: str) -> None:
    check_cut(host(name), noise((3, 3, 8, 8), 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "idiom",
    [
        lambda net, x: F.dropout(F.relu(net.second(x)), 0.5),
        lambda net, x: F.relu(net.second(x + 0.1 * torch.randn_like(x))),
        lambda net, x: F.relu(net.second(x * torch.bernoulli(x.sigmoid()))),
        lambda net, x: F.relu(net.second(x * F.gumbel_softmax(x, dim=1))),
    ],
    ids=["dropout", "noise", "bernoulli", "gumbel"],
)
def test_a_draw_in_eval_mode_is_named(idiom: Idiom) -> None:
    with pytest.raises(ExportError, match="answers differently each time, also in eval mode"):
        NetworkGraph.export(Host(idiom).eval(), torch.randn(2, 3, 8, 8))
