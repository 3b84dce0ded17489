"""A pruned network for Core ML, its weights stored sparse.

The package `coremltools` is not among the requirements: it is there for whoever has a Mac to run the result on. It converts and
writes on any system, and computes on macOS alone.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snows.config import AnyPath, as_path, first_line
from snows.export.files import ArtifactError
from snows.method.tracing import evaluating, exporting


def save_coreml(path: AnyPath, module: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Write `module` in eval mode as an ML package (a folder, `path`) for images like one of `example` (B, C, H, W), in float32
    from iOS 17 and macOS 14 on. Returns the weights that are stored sparse as the package has them, by its names for them.

    A weight is stored sparse where at least half of it is zero, as a bit a weight and its other values. Raises `ArtifactError`
    where the package is missing or the network cannot be translated.
    """
    path = as_path(path)
    try:
        import coremltools as ct
        import coremltools.optimize.coreml as compress
    except ImportError as error:
        raise ArtifactError(
            f"Core ML export needs the package {error.name}, which is not installed. Run: pip install coremltools"
        ) from error
    try:
        with exporting(), torch.no_grad(), evaluating(module):
            program = torch.export.export(module, (example[:1],)).run_decompositions({})
        dense = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
        )
        # What is zero is found by a threshold below every other number.
        zeros = compress.OpThresholdPrunerConfig(
            threshold=float(np.finfo(np.float32).tiny), minimum_sparsity_percentile=0.5, weight_threshold=0
        )
        sparse = compress.prune_weights(dense, compress.OptimizationConfig(global_config=zeros))
    except Exception as error:  # the converter raises dozens of unrelated types, from any layer
        raise ArtifactError(
            f"The network cannot be translated to Core ML ({first_line(error)}). Save its weights as safetensors instead."
        ) from error
    _save(sparse, path)
    return {name: torch.from_numpy(np.array(value)) for name, value in _sparse_weights(sparse).items()}


def _save(package: Any, path: Path) -> None:
    scratch = path.with_name(f".{path.stem}.part.mlpackage")
    try:
        package.save(str(scratch))
        if path.exists():
            shutil.rmtree(path)
        scratch.rename(path)
    except OSError as error:
        raise ArtifactError(
            f"Could not write {path}: {error.strerror}. Choose a folder that exists and can be written, with space left."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sparse_weights(package: Any) -> Mapping[str, np.ndarray]:
    weights = {}
    for function in package._mil_program.functions.values():  # there is no public way to the program's weights
        for operation in function.operations:
            if operation.op_type == "constexpr_sparse_to_dense":
                weights[operation.name] = operation.materialized_val_inference()
    return weights
