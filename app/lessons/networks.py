"""What lessons work on: a bundled network, opened once for everybody, its images, and a layer's problem on few of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
import torch
from torch import Tensor

from app.texts import Later
from snows.config import Budget, PruneConfig
from snows.method.cascade import Cascade
from snows.method.coverage import Coverage
from snows.method.graph import NetworkGraph, Site
from snows.method.problem import SiteProblem
from snows.sources import data, models

CALIBRATION, EVALUATION = 128, 500


@dataclass(frozen=True, eq=False)
class Opened:
    """A bundled network as a graph, with calibration and evaluation images. Nobody may change it."""

    model: models.LoadedModel
    graph: NetworkGraph
    images: data.Data

    @classmethod
    def open(cls, name: str) -> "Opened":
        model = models.load(name)
        images = data.load("fashion-mnist", model, CALIBRATION, EVALUATION, seed=0)
        return cls(model, NetworkGraph.export(model.module, torch.zeros(2, *model.input_size)), images)

    @property
    def labels(self) -> Tensor:
        """(N,) of the evaluation images."""
        assert self.images.labels is not None  # Fashion-MNIST has them
        return self.images.labels

    def site(self, module: str) -> Site:
        """The prunable weight of the layer `module`."""
        return next(site for site in self.graph.sites if site.module == module)

    def one_of_each(self) -> list[int]:
        """The first evaluation image of each class, in the order of the classes."""
        labels = self.labels.tolist()
        return [labels.index(label) for label in sorted(set(labels))]


@st.cache_resource(max_entries=2, show_spinner=Later("lessons.opening"))
def opened(name: str) -> Opened:
    """`resnet20-fashion` or `vit-fashion`. Takes seconds the first time."""
    return Opened.open(name)


def problem(network: Opened, site: Site, config: PruneConfig, images: Tensor, mask: Tensor | None = None) -> SiteProblem:
    """One layer's problem on `images` (N, C, H, W), with every other layer dense. `mask` (R, P): instead of the config's."""
    return problems(network, site, config, [config.k_steps], images, mask)[0]


def problems(
    network: Opened, site: Site, config: PruneConfig, k_steps: Sequence[int], images: Tensor, mask: Tensor | None = None
) -> list[SiteProblem]:
    """The same for several K, ascending; the images pass through the network once for each."""
    assert not isinstance(config.pattern, Budget)  # a lesson has one layer
    covered = Coverage([site], {site.name: config.pattern})
    given = None if mask is None else {site.name: mask}
    found = []
    for k in k_steps:
        cascade = Cascade(
            network.graph,
            covered,
            config.model_copy(update={"k_steps": k}),
            list(images.split(config.batch_size)),
            torch.device("cpu"),
            lambda event: None,
            lambda: False,
            given_masks=given,
        )
        found.append(cascade.problem(0, network.graph.window(site, k)))
    return found
