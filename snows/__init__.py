"""SNOWS: one-shot pruning that reconstructs what later layers see.

    import snows
    result = snows.prune(model, images, snows.PruneConfig(pattern="2:4"))

The names below are what later versions keep (README, Versions); every example takes `import snows` and `import torch` for
granted. The method is that of Lucas and Mazumder (ICLR 2025, arXiv 2411.18376). Whatever cannot be used raises a `ValueError`,
mostly an `InputError`, whose message says what happened, why, and what to do.

Names are loaded when first used, so that `import snows` is instant and reading a run never needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"

if TYPE_CHECKING:
    from snows.config import (
        NM,
        Dense,
        InputError,
        PruneConfig,
        RunConfig,
        SolverConfig,
        Structured,
        Unstructured,
        parse_pattern,
    )
    from snows.measures.attention import attention_maps
    from snows.method.graph import NetworkGraph
    from snows.method.pruner import PruneResult, prune
    from snows.method.units import shrink
    from snows.runs.store import RunStore
    from snows.sources.data import load as load_data
    from snows.sources.models import load as load_model

_HOMES = {
    "NM": "config.NM",
    "Dense": "config.Dense",
    "InputError": "config.InputError",
    "NetworkGraph": "method.graph.NetworkGraph",
    "PruneConfig": "config.PruneConfig",
    "PruneResult": "method.pruner.PruneResult",
    "RunConfig": "config.RunConfig",
    "RunStore": "runs.store.RunStore",
    "SolverConfig": "config.SolverConfig",
    "Structured": "config.Structured",
    "Unstructured": "config.Unstructured",
    "attention_maps": "measures.attention.attention_maps",
    "load_data": "sources.data.load",
    "load_model": "sources.models.load",
    "parse_pattern": "config.parse_pattern",
    "prune": "method.pruner.prune",
    "shrink": "method.units.shrink",
}

__all__ = [
    "NM",
    "Dense",
    "InputError",
    "NetworkGraph",
    "PruneConfig",
    "PruneResult",
    "RunConfig",
    "RunStore",
    "SolverConfig",
    "Structured",
    "Unstructured",
    "attention_maps",
    "load_data",
    "load_model",
    "parse_pattern",
    "prune",
    "shrink",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'snows' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(import_module(f"snows.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
