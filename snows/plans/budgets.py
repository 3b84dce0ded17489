"""What a budget goes by, recorded of the bundled networks (`events.BudgetLayer`), so that what it gives each layer is there at
once, and `record`, which measures it as a run would."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from snows.bundled import ASSETS
from snows.config import Budget, Dense, InputError, RunConfig
from snows.events import BudgetLayer

FOLDER = ASSETS / "budgets"


def is_recorded(config: RunConfig, folder: Path = FOLDER) -> bool:
    """Whether the network and images of a config are those that something was recorded of."""
    # A name that anybody typed is no path.
    bundled = config.checkpoint is None and config.data == RunConfig().data and "/" not in config.model
    return bundled and (folder / f"{config.model}.json").exists()


def layers(config: RunConfig, folder: Path = FOLDER) -> list[BudgetLayer]:
    """Those that the config's budget is of, in network order: what it may prune, and what has a pattern of its own. Raises
    `InputError` where nothing is recorded."""
    from snows.method.budget import options

    budget = config.prune.pattern
    assert isinstance(budget, Budget)
    card = _read(config.model, folder)
    left = [] if config.prune.prune_classifier else card["classifiers"]
    own = fixed(config, folder)
    return [
        layer
        for layer in map(_layer, card["layers"])
        if layer.name in own
        or (layer.name not in left and any(not isinstance(p, Dense) for p in options(layer.kind, layer.shape, budget)))
    ]


def fixed(config: RunConfig, folder: Path = FOLDER) -> dict:
    """The patterns that overrides give the layers, by weight, `dense` too: those that fit."""
    from snows.method.sparsity import obstacle

    overrides, own = config.prune.overrides, {}
    for layer in map(_layer, _read(config.model, folder)["layers"]):
        pattern = overrides.get(layer.name, overrides.get(layer.name.removesuffix(".weight")))
        if pattern is not None and obstacle(layer.shape, layer.kind, pattern) is None:
            own[layer.name] = pattern
    return own


def _layer(content: dict) -> BudgetLayer:
    return BudgetLayer(**content | {"shape": tuple(content["shape"])})


def _read(model: str, folder: Path) -> dict:
    try:
        return json.loads((folder / f"{model}.json").read_text())
    except FileNotFoundError:
        raise InputError(
            f"What a budget goes by is not recorded of {model} in {folder}. Restore it from the repository, or measure it with "
            "`python -m snows bundle-budgets`."
        ) from None


def record(config: RunConfig, folder: Path = FOLDER) -> Path:
    """Measure the curves, outliers and tails of `config`'s network, at the default patterns and for shares, and write them;
    returns the file's path."""
    import torch

    from snows.method import curves
    from snows.method.budget import NEEDS
    from snows.method.coverage import batches_of, coverage
    from snows.method.graph import NetworkGraph
    from snows.sources import data, models

    model = models.load_configured(config)
    batches = batches_of(data.load_configured(config, model).calibration, config.prune.batch_size)
    graph = NetworkGraph.export(model.module.eval(), batches[0][:2])
    found: dict[str, BudgetLayer] = {}
    for patterns in (Budget(share=0.5).patterns, ()):
        prune = config.prune.model_copy(
            update={"pattern": Budget(share=0.5, patterns=patterns), "prune_classifier": True, "overrides": {}}
        )
        for layer in curves.layers(graph, coverage(graph, prune), prune, batches, torch.device("cpu"), {*NEEDS.values()}):
            known = found.get(layer.name, layer).curve
            rounded = {text: float(f"{loss:.6g}") for text, loss in layer.curve.items()}
            found[layer.name] = BudgetLayer(**vars(layer) | {"curve": {**known, **rounded}})
    classifiers = [site.name for site in graph.classifiers]
    card = {
        "model": config.model,
        "classifiers": classifiers,
        "layers": [asdict(found[site.name]) for site in graph.sites if site.name in found],
        "data": config.data,
        "num_calibration": config.num_calibration,
        "seed": config.prune.seed,
        "ridge": config.prune.ridge,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m snows bundle-budgets --model {config.model}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config.model}.json"
    path.write_text(json.dumps(card, indent=1) + "\n")
    return path
