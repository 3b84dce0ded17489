"""Networks that see no images: sound, video, and text whose next token nobody may look ahead to."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snows.config import PruneConfig
from snows.method.coverage import PruneError
from snows.method.graph import NetworkGraph
from snows.method.pruner import prune
from snows.method.rows import input_rows, rows_of_output
from snows.method.sparsity import to_matrix
from tests.snows.helpers import network
from tests.zoo.checks import check_answers, check_curvatures, check_run, check_window, noise

VOCABULARY, LENGTH = 11, 6


class Residual1d(nn.Module):
    """As speech networks have it: dilated convolutions with gates, around a sum."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.both = nn.Conv1d(8, 16, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, 1)
        return x + self.out(torch.tanh(value) * torch.sigmoid(gate))


class Sound(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(1, 8, 5, stride=2),
            nn.BatchNorm1d(8),
            *[Residual1d(2**i) for i in range(3)],
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


class Video(nn.Sequential):
    """A convolution in space, then one in time (R(2+1)D)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(8),
            nn.ReLU(inplace=True),
            nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


class Text(nn.Module):
    """PyTorch's own encoder as a language model: every token answers for the next one, and sees those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, 8), nn.Embedding(LENGTH, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, activation=F.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, VOCABULARY)
        self.register_buffer("later", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.encoder(x, mask=self.later))


def _tokens(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(1))


NETWORKS = {
    "sound": (Sound, noise((12, 1, 40), 1)),
    "video": (Video, noise((12, 3, 4, 8, 8), 1)),
    "text": (Text, _tokens(12)),
}
SITES = {"sound": "2.both.weight", "video": "3.weight", "text": "encoder.layers.0.linear1.weight"}


def _network(name: str) -> tuple[nn.Module, Tensor]:
    build, inputs = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double().eval(), inputs


@pytest.mark.parametrize("name", ["sound", "video"])
def test_an_output_is_the_product_of_its_row_and_the_matrix(name: str) -> None:
    module, graph, inputs = network(name)
    for site in graph.sites:
        if site.kind == "linear":
            continue
        x = graph.run(inputs, capture=[site.input])[1][site.input] if site.input is not graph.input else inputs
        layer = module.get_submodule(site.module)
        rows, outputs = input_rows(site, x), rows_of_output(site, layer(x))
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(rows @ to_matrix(layer.weight).T + bias, outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_followed_exactly(name: str) -> None:
    module, inputs = _network(name)
    graph = NetworkGraph.export(module, inputs[:2])
    check_answers(graph, module, inputs)
    window = graph.window(next(s for s in graph.sites if s.name == SITES[name]), 4)
    check_window(window, inputs)
    check_curvatures(window, inputs)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("joint", ["none", "network"])
def test_it_is_pruned_to_its_end(name: str, joint: str) -> None:
    module, inputs = _network(name)
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    config = PruneConfig(pattern="2:4", k_steps=3, batch_size=6, joint=joint, joint_epochs=2)  # type: ignore[arg-type]
    result = check_run(module.float().train(), inputs, config)
    assert SITES[name] in result.masks
    if name == "text":
        assert not {"tokens.weight", "places.weight"} & result.masks.keys()
        assert "embedding" in result.skipped["tokens.weight"]


def test_what_is_a_part_of_something_larger_is_taken_as_it_is() -> None:
    """The tokens but for the last, as language models are given them; pictures without their fourth channel."""
    module, tokens = _network("text")
    longer = torch.cat([tokens, tokens[:, :1]], 1)
    check_answers(NetworkGraph.export(module, longer[:2, :-1]), module, tokens)
    picture = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)).double()
    images = noise((4, 4, 8, 8), 1)[:, :3]
    check_answers(NetworkGraph.export(picture, images[:2]), picture, images)


def test_numbers_that_are_no_tokens_are_named() -> None:
    module, _ = _network("text")
    with pytest.raises(PruneError, match=r"preprocessed to floating point, but these are torch\.uint8"):
        prune(module, _tokens(4).to(torch.uint8))
    with pytest.raises(PruneError, match=r"torch\.int64"):  # pictures as they are in a file
        prune(module, torch.zeros(4, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(PruneError, match=r"index out of range"):
        prune(module, _tokens(4) + VOCABULARY)
