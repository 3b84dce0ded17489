"""Eight pictures with the answers of a run's network as it is pruned so far, and how many more it gets right.

The network is the run's, loaded once beside the run and never traced: `torch.export` in this process would change the run's
numbers. Its finished layers are read from the run's folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from app.charts import attention as attention_charts
from app.parts import pictures
from app.tables import play as play_tables
from app.work import engine
from snows.config import InputError, RunConfig
from snows.runs.store import Run

if TYPE_CHECKING:
    from torch import Tensor

    from snows.sources.models import LoadedModel

_COUNT = 8
_JUDGED = 300  # labelled test pictures, where the set brings them along: a quarter of a second beside a run
# What a run leaves of a processor is enough to put eight pictures through a network of this size within a second or so.
_MOST_PARAMETERS = 30_000_000


@dataclass(frozen=True)
class _Looked:
    """A network and what it is shown, with what is to be said of where the first few are from. Nobody may change it.

    `images`: (N, C, H, W), those that are drawn and then those that are only counted; `labels`: of the latter.
    """

    model: "LoadedModel"
    images: "Tensor"
    labels: np.ndarray
    addresses: list[str]
    words: list[str]
    whose: str


@st.cache_resource(max_entries=2, show_spinner=False)
def _look(config_json: str) -> _Looked | None:
    from snows.plans import levels
    from snows.sources import data, models

    config = RunConfig.model_validate_json(config_json)
    model = models.outline(config.model, config.checkpoint, class_names=config.class_names)
    if sum(p.numel() for p in model.module.parameters()) > _MOST_PARAMETERS or not model.class_names:
        return None
    model = models.load_configured(config)
    if config.data == "fashion-mnist":
        import torch

        pixels, numbers = levels.pictures(0, _COUNT)
        others, labels = levels.labelled_pictures(_JUDGED)
        images = model.preprocess(torch.from_numpy(np.concatenate([pixels, others]))[:, None])
        words = [f"Test picture {number}" for number in numbers]
        return _Looked(model, images, labels, [attention_charts.picture_address(p) for p in pixels], words, "Test pictures")
    preview = data.preview(config.data, model, config.num_calibration, config.num_evaluation, config.prune.seed, _COUNT)
    addresses = [attention_charts.picture_address(data.as_pixels(image), longest_edge=112) for image in preview.images]
    none = np.empty(0, dtype=np.int64)
    return _Looked(model, preview.images, none, addresses, preview.words, "Pictures that it is fitted on")


@st.cache_data(max_entries=64, show_spinner=False)
def _probabilities(config_json: str, path: Path, done: int) -> np.ndarray:
    import torch
    from torch.func import functional_call

    looked = _look(config_json)
    assert looked is not None
    weights = {name: weight for name, (weight, _) in Run(path).layers().items()} if done else {}
    with torch.no_grad():
        return functional_call(looked.model.module, weights, (looked.images,)).softmax(1).float().numpy()


def answers_so_far(run: Run, config: RunConfig, done: int, *, all_pruned: bool) -> None:
    """The pictures, and under each what the network takes it for with its first `done` layers pruned; its accuracy so far.
    `all_pruned`: that no layer is dense any more, as while all move together. Nothing where the engine is not there yet, or the
    network is too large to be run beside the run."""
    if not engine.ready():
        return
    asked = config.model_dump_json()
    try:
        looked = _look(asked)
        if looked is None:
            return
        dense, now = (_probabilities(asked, run.path, layers) for layers in (0, done))
    except (InputError, RuntimeError, OSError):
        return  # the run itself says what is wrong with its network or its images
    count = len(looked.addresses)
    answers = play_tables.answers(now[:count], dense[:count], looked.model.class_names)
    same = sum(answer.was is None for answer in answers)
    right = play_tables.right_so_far(now[count:], dense[count:], looked.labels)
    st.markdown(f"**What it answers so far**: {same} of {count} as the dense network does{right}")
    shown = [
        pictures.Shown(
            address,
            words,
            answer.name.partition(",")[0],
            f"{100 * answer.probability:.0f} % sure",
            f"was {answer.was.partition(',')[0]}" if answer.was else "",
        )
        for address, words, answer in zip(looked.addresses, looked.words, answers, strict=True)
    ]
    pictures.strip(shown, key="answers so far")
    which = "all layers pruned, one by one" if all_pruned else "the layers pruned that are done; the others are still dense"
    st.caption(f"{looked.whose}, with {which}.")
