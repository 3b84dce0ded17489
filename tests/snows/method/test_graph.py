"""Graphs against the modules they come from, windows against runs of the whole network, frontiers against one pass."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from snows.method import graph as graph_module
from snows.method import operations
from snows.method.graph import ExportError, Frontier, NetworkGraph, Site
from snows.method.operations import batch_norm_affine
from snows.method.rows import input_rows
from snows.sources import models
from tests.snows.helpers import ALL, NETWORKS, assert_entries_close, network, window_inputs

# The smallest images that each architecture accepts, and no more blocks than differ in kind.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "torchvision resnet50": (torchvision.models.resnet50, (3, 32, 32)),
    "torchvision mobilenet_v2": (torchvision.models.mobilenet_v2, (3, 32, 32)),
    "torchvision vit_b_16": (lambda: torchvision.models.VisionTransformer(32, 16, 2, 12, 768, 3072), (3, 32, 32)),
    "timm resnet18": (lambda: timm.create_model("resnet18"), (3, 32, 32)),
    "timm vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2), (3, 32, 32)),
    "timm deit_tiny_patch16_224": (lambda: timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2), (3, 32, 32)),
    "timm vit_small_patch14_dinov2": (lambda: timm.create_model("vit_small_patch14_dinov2", img_size=28, depth=2), (3, 28, 28)),
    "timm swin_tiny_patch4_window7_224": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, depths=(2, 2, 2, 2)),
        (3, 64, 64),
    ),
    "timm convnext_tiny": (lambda: timm.create_model("convnext_tiny", depths=(1, 1, 2, 1)), (3, 32, 32)),
    "timm mobilenetv3_small_100": (lambda: timm.create_model("mobilenetv3_small_100"), (3, 32, 32)),
    "timm tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), (3, 32, 32)),
    "resnet20-fashion": (models.BUNDLED["resnet20-fashion"].build, (1, 8, 8)),
    "vit-fashion": (models.BUNDLED["vit-fashion"].build, (1, 28, 28)),
}
EVERY = [*ARCHITECTURES, *NETWORKS]


@lru_cache
def exported(name: str) -> tuple[nn.Module, NetworkGraph, Tensor]:
    """A network in float64 with random weights, its graph, and three images."""
    if name in NETWORKS:
        module, graph, images = network(name)
        return module, graph, images[:3]
    build, shape = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().double().eval()
        images = torch.randn(3, *shape, dtype=torch.float64)
    return module, NetworkGraph.export(module, images[:2], torch.contiguous_format), images


def site(graph: NetworkGraph, name: str) -> Site:
    return next(s for s in graph.sites if s.name == name)


@torch.no_grad()
def plain_output(module: nn.Module, images: Tensor) -> Tensor:
    """The module's output from the kernels that the graph runs too.

    `nn.MultiheadAttention` has an opaque kernel of its own for eval mode, and PyTorch multiplies by a weight that wants a
    gradient in another way than by one that does not, even without recording.
    """
    detached = {n: t.detach() for n, t in module.state_dict().items()}
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return torch.func.functional_call(module, detached, (images,), tie_weights=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def export(module: nn.Module, *shape: int) -> NetworkGraph:
    return NetworkGraph.export(module, torch.randn(shape))


# --- the graph is the network ---


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_running_the_nodes_in_order_equals_the_module_bit_for_bit(name: str) -> None:
    module, graph, images = exported(name)
    for count in (1, 2, 3):
        expected = plain_output(module, images[:count])
        output, captured = graph.run(images[:count])
        assert torch.equal(output, expected)
        assert captured == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_weight_is_a_site_or_has_a_reason(name: str) -> None:
    module, graph, _ = exported(name)
    named = {n for n, _ in module.named_parameters()}
    sites = [s.name for s in graph.sites]
    assert len(sites) == len(set(sites)) >= 3
    assert set(sites).isdisjoint(graph.skipped)
    assert set(sites) | set(graph.skipped) == named
    assert all(len(reason) > 10 for reason in graph.skipped.values())
    order = [graph.index[s.node] for s in graph.sites]
    assert order == sorted(order)
    assert all(module.get_parameter(s.name).shape == s.shape for s in graph.sites)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_window_equals_the_whole_network_at_its_captured_nodes(name: str) -> None:
    module, graph, images = exported(name)
    chosen = {graph.sites[i] for i in (0, len(graph.sites) // 3, 2 * len(graph.sites) // 3, len(graph.sites) - 1)}
    generator = torch.Generator().manual_seed(0)
    for one in sorted(chosen, key=lambda s: graph.index[s.node]):
        weight = module.get_parameter(one.name).detach()
        other = weight + weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        whole = graph.window(one, ALL)
        assert whole.captured[-1] is [n for n in graph.nodes if graph.kind(n) is not None][-1]
        for parameters in ({}, {one.name: other}):
            _, expected = graph.run(images, parameters, capture=whole.captured)
            for k in (0, 1, 4, ALL):
                window = graph.window(one, k)
                assert window.captured == whole.captured[: k + 1]
                assert window.operations == whole.operations[: k + 1]
                values = window.outputs(parameters.get(one.name, weight), window_inputs(window, images))
                rewritten = {n.target for n in window.nodes} & operations.IN_WINDOWS.keys()
                for node, value in zip(window.captured, values, strict=True):
                    if rewritten:  # another form of the same function
                        assert_entries_close(value, expected[node], rtol=1e-9, atol=1e-11, what=f"{one.name} {node}")
                    else:
                        assert torch.equal(value, expected[node])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_window_is_a_pure_function_of_its_weight(name: str) -> None:
    _, graph, images = exported(name)
    window = graph.window(graph.sites[0], ALL)
    inputs = window_inputs(window, images)
    before = {n: v.clone() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    weight = graph.parameters[window.site.name].clone()
    first = window.outputs(weight, inputs)
    copies = [v.clone() for v in first]
    window.outputs(2 * weight, inputs)
    again = window.outputs(weight, inputs)
    for value, copy, repeat in zip(first, copies, again, strict=True):
        assert torch.equal(value, copy)
        assert torch.equal(value, repeat)
    assert inputs.keys() == before.keys()
    for node, value in inputs.items():
        assert torch.equal(value, before[node]) if isinstance(value, Tensor) else value == before[node]
    assert torch.equal(weight, graph.parameters[window.site.name])


def test_a_window_reads_nothing_that_its_weight_changes() -> None:
    _, graph, images = exported("residual")
    window = graph.window(site(graph, "conv2.weight"), ALL)
    weight = torch.ones(4, 4, 3, 3, dtype=torch.float64)
    _, values = graph.run(images, {"conv2.weight": weight}, capture=window.captured)
    # Inputs from a network with any other conv2 serve: the shortcut branch is computed without it.
    outputs = window.outputs(weight, window_inputs(window, images))
    assert len(outputs) > 3
    for node, value in zip(window.captured, outputs, strict=True):
        assert_entries_close(value, values[node])


def test_steps_below_zero_are_refused() -> None:
    _, graph, _ = exported("mlp")
    with pytest.raises(ValueError, match="k_steps must be 0 or more, but is -1"):
        graph.window(graph.sites[0], -1)


# --- what is counted ---


def test_counted_operations_of_a_residual_network() -> None:
    _, graph, _ = exported("residual")
    after_shortcut = ["activation", "fc (linear)"]
    expected = {
        "conv1.weight": [
            "conv1 (convolution)",
            "act1 (activation)",
            "conv2 (convolution)",
            "act2 (activation)",
            "conv3 (convolution)",
            "shortcut (convolution)",  # another branch of the same block depends on conv1 too
            *after_shortcut,
        ],
        "conv2.weight": ["conv2 (convolution)", "act2 (activation)", "conv3 (convolution)", *after_shortcut],
        "conv3.weight": ["conv3 (convolution)", *after_shortcut],
        "shortcut.weight": ["shortcut (convolution)", *after_shortcut],
        "fc.weight": ["fc (linear)"],
    }
    assert {s.name: graph.window(s, ALL).operations for s in graph.sites} == expected
    for k, name in ((0, "conv1.weight"), (2, "conv2.weight"), (4, "conv1.weight")):
        assert graph.window(site(graph, name), k).operations == expected[name][: k + 1]


@pytest.mark.parametrize("form", ["fused", "written"])
def test_counted_operations_of_an_attention_block(form: str) -> None:
    _, graph, _ = exported(form)
    assert graph.window(site(graph, "qkv.weight"), ALL).operations == [
        "qkv (linear)",
        "attention",
        "proj (linear)",
        "norm2 (layer norm)",
        "mlp.0 (linear)",
        "mlp.1 (activation)",
        "mlp.2 (linear)",
        "head (linear)",
    ]


def test_the_fused_weight_of_an_attention_module_is_a_site() -> None:
    _, graph, _ = exported("module")
    assert [(s.name, s.kind, s.shape) for s in graph.sites][1:3] == [
        ("attention.in_proj_weight", "linear", (24, 8)),
        ("attention.out_proj.weight", "linear", (8, 8)),
    ]
    operations = graph.window(site(graph, "attention.in_proj_weight"), 2).operations
    assert operations == ["attention (linear)", "attention (attention)", "attention (linear)"] or operations == [
        "attention (linear)",
        "attention (attention)",
        "attention.out_proj (linear)",
    ]


def test_a_convolution_is_read_before_its_batch_norm() -> None:
    module, graph, images = exported("residual")
    window = graph.window(site(graph, "conv1.weight"), 2)
    first, second, third = window.outputs(module.conv1.weight, window_inputs(window, images))
    with torch.no_grad():
        assert torch.equal(first, module.conv1(images))
        assert_entries_close(second, F.relu(module.bn1(module.conv1(images))))
        assert_entries_close(third, module.conv2(F.relu(module.bn1(module.conv1(images)))))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_affine(affine: bool) -> None:
    torch.manual_seed(0)
    mean, variance, x = torch.randn(4).double(), torch.rand(4).double() + 0.1, torch.randn(2, 4, 3, 3).double()
    weight, bias = (torch.randn(4).double(), torch.randn(4).double()) if affine else (None, None)
    scale, shift = batch_norm_affine((x, weight, bias, mean, variance, 0.1, 1e-3))
    expected = F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)
    assert_entries_close(x * scale[:, None, None] + shift[:, None, None], expected)


# --- what cannot be pruned ---


class Odd(nn.Module):
    """Weights that are used in every way but the usual ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.positions = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.standardized = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.signal = nn.Conv1d(4, 4, 3, padding=1)
        self.unused = nn.Linear(3, 3)
        self.twice = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.twice.weight
        self.table = nn.Parameter(torch.randn(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.depthwise(self.first(x))) + self.positions
        x = F.conv2d(x, self.standardized - self.standardized.mean())
        x = self.signal(x.flatten(2)).mean(-1)
        return self.head(F.linear(self.table, self.tied(self.twice(x))).T)


@pytest.mark.slow
def test_the_reason_for_every_weight_that_is_left_dense() -> None:
    graph = export(Odd().eval(), 2, 1, 8, 8)
    assert [s.name for s in graph.sites] == ["first.weight", "signal.weight", "head.weight"]
    few = "one value per channel (a bias or a scale), too few to be worth pruning"
    reasons = {
        "depthwise.weight": "a grouped convolution (4 groups): each output sees only 1 input channel",
        "grouped.weight": "a grouped convolution (2 groups): each output sees only 2 input channels",
        "positions": "used by add, not as the weight of a linear layer or convolution",
        "unused.weight": "not used when the network runs in eval mode",
        "table": "the input of a linear layer, not its weight",
    }
    assert {n: graph.skipped[n] for n in reasons} == reasons
    assert {r for n, r in graph.skipped.items() if n.endswith("bias")} == {few}
    assert "computed from it" in graph.skipped["standardized"]
    assert "sub" in graph.skipped["standardized"]
    # One tensor under two names, used twice: neither name is a site.
    assert {graph.skipped["twice.weight"], graph.skipped["tied.weight"]} in (
        {"shared by 2 operations, so no single window belongs to it", "the same tensor as twice.weight"},
        {"shared by 2 operations, so no single window belongs to it", "the same tensor as tied.weight"},
    )


# --- what cannot be exported ---


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) > 0 else x


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x - 1


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            Branches(),
            r"This network cannot be exported to a graph \(.+\)\. Networks whose Python code branches",
        ),
        (Pair(), r"The network returns 2 tensors; wrap it in a module that returns the logits alone\."),
    ],
)
def test_a_network_that_cannot_be_followed_gives_a_sentence(module: nn.Module, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence) as caught:
        export(module, 2, 3)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_every_part_keeps_its_mode(works: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2) if works else Branches())
    module.train()
    module[1].eval()  # frozen
    modes = {name: part.training for name, part in module.named_modules()}
    if works:
        export(module, 2, 3)
    else:
        with pytest.raises(ExportError):
            export(module, 2, 3)
    assert {name: part.training for name, part in module.named_modules()} == modes


@pytest.mark.slow
def test_export_sees_the_network_in_eval_mode_and_leaves_its_tensors_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 2)).train()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    images = torch.randn(3, 1, 4, 4)
    output, _ = NetworkGraph.export(module, images).run(images)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    with torch.no_grad():
        assert torch.equal(output, module.eval()(images))


@pytest.mark.slow
def test_one_example_image_is_enough() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    graph = export(module, 1, 1, 2, 2)
    images = torch.randn(5, 1, 2, 2)
    with torch.no_grad():
        assert torch.equal(graph.run(images)[0], module(images))


@pytest.mark.slow
def test_operations_in_place_do_not_touch_the_images_or_each_other() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z = y
            y += 1
            y.relu_()
            z[:, 0] = 0
            return self.second(z).mul_(2).add_(y)

    module = InPlace().double().eval()
    images = torch.randn(3, 4, dtype=torch.float64)
    graph = NetworkGraph.export(module, images)
    copy = images.clone()
    with torch.no_grad():
        assert torch.equal(graph.run(images)[0], module(images))
    assert torch.equal(images, copy)
    window = graph.window(graph.sites[0], ALL)
    values = window.outputs(module.first.weight, window_inputs(window, images))
    _, expected = graph.run(images, capture=window.captured)
    assert all(torch.equal(v, expected[n]) for n, v in zip(window.captured, values, strict=True))
    with torch.no_grad():
        assert torch.equal(expected[window.captured[0]], F.linear(images, module.first.weight, module.first.bias))


@pytest.mark.slow
def test_attention_modules_are_opened_and_the_fast_path_is_put_back() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    graph = export(layer, 2, 5, 8)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert [s.name for s in graph.sites] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]


def test_other_weights_run_through_the_graph_without_changing_it() -> None:
    module, graph, images = exported("mlp")
    other = torch.randn(8, 6, dtype=torch.float64)
    output, _ = graph.run(images, {"0.weight": other})
    with torch.no_grad():
        expected = torch.func.functional_call(module, {"0.weight": other}, (images,))
        assert torch.equal(output, expected)
        assert torch.equal(graph.run(images)[0], module(images))


# --- the frontier ---


def still_needed(graph: NetworkGraph, position: int) -> set[Any]:
    """What nodes from `position` on read of what was computed before, by looking at every one of them."""
    earlier = {graph.input, *graph.nodes[:position]}
    needed = {p for node in graph.nodes[position:] for p in node.all_input_nodes if p in earlier}
    return needed | ({graph.output} & earlier)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "fused", "gates", "resnet20-fashion"])
def test_a_frontier_costs_one_pass_and_holds_one_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, graph, images = exported(name)
    runs: Counter[Any] = Counter()
    plain = graph_module.execute_node
    monkeypatch.setattr(graph_module, "execute_node", lambda node, values: runs.update([node]) or plain(node, values))
    batches = list(images.split(2))
    frontier = Frontier(graph, batches)
    parameters = graph.bind({})
    for stop in [*range(0, len(graph.nodes), 3), len(graph.nodes) // 2, len(graph.nodes)]:
        frontier.advance(stop, parameters, torch.device("cpu"))
        for i in range(len(frontier)):
            assert frontier.values(i).keys() == still_needed(graph, frontier.position)
    assert runs == dict.fromkeys(graph.nodes, len(batches))
    outputs = torch.cat([frontier.values(i)[graph.output] for i in range(len(frontier))])
    with torch.no_grad():
        assert torch.equal(outputs, torch.cat([module(b) for b in batches]))
    assert all(frontier.values(i).keys() == {graph.output} for i in range(len(frontier)))


@pytest.mark.slow
def test_a_frontier_holds_few_values_of_a_deep_network() -> None:
    _, graph, images = exported("timm resnet18")
    frontier = Frontier(graph, [images])
    largest, total = 0, 0
    _, everything = graph.run(images, capture=graph.nodes)
    for value in everything.values():
        total += value.numel() if isinstance(value, Tensor) else 0
    for stop in range(0, len(graph.nodes) + 1, 5):
        frontier.advance(stop, graph.bind({}), torch.device("cpu"))
        live = sum(v.numel() for v in frontier.values(0).values() if isinstance(v, Tensor))
        largest = max(largest, live)
    # At the most one block's input beside the value at hand, of the network's largest values.
    assert largest <= 2 * max(v.numel() for v in everything.values() if isinstance(v, Tensor))
    assert largest < total / 5


def test_what_is_kept_stays_until_it_is_asked_for_no_more() -> None:
    _, graph, images = exported("mlp")
    frontier, parameters = Frontier(graph, [images]), graph.bind({})
    first = graph.nodes[0]
    frontier.advance(3, parameters, torch.device("cpu"), keep=[first])
    _, expected = graph.run(images, capture=[first])
    assert torch.equal(frontier.values(0)[first], expected[first])
    frontier.advance(2, parameters, torch.device("cpu"), keep=[first])  # no step back
    assert frontier.position == 3
    assert first in frontier.values(0)
    frontier.advance(3, parameters, torch.device("cpu"))
    assert first not in frontier.values(0)


def test_a_frontier_carries_other_weights() -> None:
    module, graph, images = exported("mlp")
    other = torch.randn(8, 6, dtype=torch.float64)
    frontier = Frontier(graph, [images[:1], images[1:]])
    frontier.advance(len(graph.nodes), graph.bind({"0.weight": other}), torch.device("cpu"))
    outputs = torch.cat([frontier.values(i)[graph.output] for i in range(2)])
    with torch.no_grad():
        expected = [torch.func.functional_call(module, {"0.weight": other}, (b,)) for b in (images[:1], images[1:])]
        assert torch.equal(outputs, torch.cat(expected))


def test_a_frontier_can_be_stopped_between_batches() -> None:
    _, graph, images = exported("mlp")
    asked = []

    def check() -> None:
        asked.append(None)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Frontier(graph, list(images.split(1))).advance(len(graph.nodes), graph.bind({}), torch.device("cpu"), check=check)
    assert len(asked) == 2


def test_bytes_of_a_value_for_one_image() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table = nn.Conv2d(1, 4, 3, padding=1), nn.Parameter(torch.ones(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)  # (B, 4, 6, 6)
            parts = x.reshape(x.shape[0] * 9, 16)  # as windows of attention are laid out
            return parts.reshape(x.shape[0], -1) @ torch.ones(144, 4) + (2 * self.table).sum(0)

    graph = NetworkGraph.export(Net().eval(), torch.zeros(2, 1, 6, 6))
    sizes = {str(node.target): graph.image_bytes(node) for node in graph.nodes}
    assert sizes["aten.conv2d.default"] == 4 * 6 * 6 * 4
    assert sizes["aten.reshape.default"] == 144 * 4
    assert sizes["aten.mul.Tensor"] == 0  # the same for all images
    window = graph.window(graph.sites[0], 1)
    assert window.image_bytes >= 144 * 4


@pytest.mark.parametrize("name", ["residual", "mlp", "fused", "module", "strided", "gates"])
def test_positions_are_the_samples_of_a_row_that_an_image_gives(name: str) -> None:
    _, graph, images = network(name)
    for site in graph.sites:
        _, values = graph.run(images, capture=[] if site.input is graph.input else [site.input])
        rows = input_rows(site, values.get(site.input, images))
        assert len(rows) == graph.positions(site) * len(images), site.name
