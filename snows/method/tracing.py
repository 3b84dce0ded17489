"""Exports that leave other threads alone, and what a module has to be in meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, _ops, nn
from torch.export import _trace
from torch.fx import _symbolic_trace
from torch.nn.modules import transformer

# Two exports at once leave torch.export (2.14) broken until the process ends.
_EXPORTING = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode inside the block; afterwards each part is in its own mode again, for a part may be frozen."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


class _InThisThread:
    """True in the thread that made it, false in any other."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self._thread


class _ModesOfEachThread(threading.local, _ops._ModeStackStateForPreDispatch):
    """The tracer's modes, for each thread its own: `__init__` is called in each."""


@contextmanager
def exporting() -> Iterator[None]:
    """One export at a time, by torch.export or what builds on it, which leaves all other threads alone.

    While it traces, torch.export (2.14) changes the whole process, and what other threads compute meanwhile:

    * mkldnn, nnpack and cudnn are off, so that no operation is decomposed into one of theirs. Nothing is decomposed here, and
      the graph is the same with the switches left alone.
    * `torch.compiler.is_compiling` and `is_exporting` say yes: `nn.MultiheadAttention` then leaves its own kernel.
    * Its modes lie where every thread finds them: printing a tensor puts them aside meanwhile, and the export breaks off.
    * `__call__` and `__getattr__` of `nn.Module` belong to the tracer, and modules that another thread calls end there.

    And `nn.TransformerEncoder` looks into a mask for whether it is the causal one, which has no values meanwhile: for the
    export it is a mask like any other, which the attention applies in either case.

    Only the exported module itself must not be used elsewhere: its tensors are fakes until the export is done.
    """
    here = _InThisThread()
    patch_method = _symbolic_trace._Patcher.patch_method

    def patch_method_here(patcher: Any, owner: type, name: str, traced: Callable[..., Any], deduplicate: bool = True) -> None:
        plain = getattr(owner, name)

        @wraps(traced)
        def method(*args: Any, **kwargs: Any) -> Any:
            return (traced if here else plain)(*args, **kwargs)

        patch_method(patcher, owner, name, method, deduplicate)

    is_causal_mask = transformer._detect_is_causal_mask

    def is_causal_mask_here(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return is_causal is True if here else is_causal_mask(mask, is_causal, size)

    with (
        _EXPORTING,
        patch.object(_trace, "_ignore_backend_decomps", nullcontext),
        patch.object(_trace, "_compiling_state_context", nullcontext),
        patch.multiple(torch.compiler, _is_compiling_flag=here, _is_exporting_flag=here),
        patch.object(_ops, "_mode_stack_state_for_pre_dispatch", _ModesOfEachThread()),
        patch.object(_symbolic_trace._Patcher, "patch_method", patch_method_here),
        patch.object(transformer, "_detect_is_causal_mask", is_causal_mask_here),
    ):
        yield
