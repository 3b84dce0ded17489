"""A pretend accelerator: tensors on the host that claim a CUDA device, so that the engine's paths for one are walked without.

Inside `accelerator()` PyTorch finds CUDA devices. A tensor that is made there or moved there says `is_cuda`, what is computed
from it lies there too, and an operation whose tensors lie on different devices raises as a real device does. The numbers are
the host's.

Every tensor stays an ordinary one: what claims a device is its storage, so that views, autograd and forward mode are PyTorch's
own. A `TorchDispatchMode` looks at each operation below autograd, where mixing is seen whoever asked for it, and a
`TorchFunctionMode` answers what Python asks of a tensor: its device, and to be moved. Not pretended: streams and copies that do
not block, kernels, and what a traced network's own code says of devices. A mode belongs to its thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
HOST = torch.device("cpu")
# What an operation's own code makes without being told where, such as the tangent of what does not move: it goes with anything.
_ANYWHERE = torch.device("meta")
# These take tensors from anywhere: what is written stays where it is, and an accelerator's tensor may be indexed from the host.
_CROSSING = {aten.copy_.default, aten._to_copy.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# Elsewhere a number on the host (a tensor without axes) goes with anything.
_JOINING = {aten.cat.default, aten.stack.default}


class MixedDevicesError(RuntimeError):
    """An operation was given tensors on different devices."""


class _Places:
    """Where storages claim to lie."""

    def __init__(self) -> None:
        # While its weak reference lives, a storage's address is not given to another.
        self._claims: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def of(self, tensor: Tensor) -> torch.device:
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        claim = self._claims.get(tensor.untyped_storage()._cdata) if _stored(tensor) else None
        return claim[1] if claim else HOST

    def put(self, tensor: Tensor, device: torch.device) -> None:
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        if _stored(tensor):
            storage = tensor.untyped_storage()
            if device != HOST:
                self._claims[storage._cdata] = StorageWeakRef(storage), device
            else:
                self._claims.pop(storage._cdata, None)


def _stored(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided


def _named(device: Any) -> torch.device:
    device = torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


class _Computing(TorchDispatchMode):
    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places
        self.tracing = False
        self.asked = True  # whether it is Python's call that makes a tensor, not an operation's code

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tracing:
            return func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = {t.untyped_storage()._cdata for t in tensors if _stored(t)}
        device = self._device(func, args, tensors)
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            # What lies here claims nothing: a deep copy looks at its source's storage through a tensor of its own.
            if isinstance(made, Tensor) and device != HOST and _stored(made) and made.untyped_storage()._cdata not in before:
                self.places.put(made, device)
        return result

    def _device(self, func: Any, args: Any, tensors: list[Tensor]) -> torch.device:
        if func in _CROSSING:
            return self.places.of(args[0])
        if func in _INDEXING:
            tensors = [t for t in tensors if self.places.of(t) != HOST or t is args[0] or t.is_floating_point()]
        numbers = [] if func in _JOINING else [t for t in tensors if t.ndim == 0 and self.places.of(t) == HOST]
        devices = {self.places.of(t) for t in tensors if not any(t is number for number in numbers)}
        if not tensors:
            return HOST if self.asked else _ANYWHERE
        if devices > {_ANYWHERE}:
            devices.remove(_ANYWHERE)
        if len(devices) > 1:
            places = " and ".join(sorted(map(str, devices)))
            raise MixedDevicesError(f"Expected all tensors to be on the same device, but {func} was given some on {places}.")
        return devices.pop() if devices else HOST


class _Asking(TorchFunctionMode):
    def __init__(self, computing: _Computing) -> None:
        super().__init__()
        self.computing, self.places = computing, computing.places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.computing.tracing or func is torch._C._nn._parse_to:  # which only reads what it is given
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:
            device = self.places.of(args[0])
            return HOST if device == _ANYWHERE else device
        if func == Tensor.is_cuda.__get__:
            return self.places.of(args[0]).type == "cuda"
        if func == Tensor.is_cpu.__get__:
            return self.places.of(args[0]) == HOST
        if func is Tensor.get_device:
            return self.places.of(args[0]).index if self.places.of(args[0]) != HOST else -1
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, *args, **kwargs)
        if func is Tensor.numpy and self.places.of(args[0]) != HOST:
            raise TypeError("can't convert a CUDA tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        if func is Tensor.__deepcopy__:  # it copies bytes, past every operation
            copied = func(*args, **kwargs)
            self.places.put(copied, self.places.of(args[0]))
            return copied
        if kwargs.get("device") is None:
            self.computing.asked = not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
            try:
                return func(*args, **kwargs)
            finally:
                self.computing.asked = True
        device = _named(kwargs["device"])
        result = func(*args, **kwargs | {"device": HOST if device.type == "cuda" else device})
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self.places.put(made, device)
        return result

    def _moved(self, func: Any, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        here = self.places.of(tensor)
        if func is Tensor.cpu:
            device, dtype, options = HOST, None, kwargs
        elif func is Tensor.cuda:
            device, dtype, options = torch.device("cuda:0"), None, {}
        elif args and isinstance(args[0], Tensor):
            device, dtype, options = self.places.of(args[0]), args[0].dtype, kwargs
        else:
            asked, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
            device = here if asked is None else _named(asked)
            options = {} if layout is None else {"memory_format": layout}
        options.pop("non_blocking", None)
        if tensor.device.type == "meta" or device.type == "meta":
            return func(tensor, *args, **kwargs)
        moved = tensor.to(dtype or tensor.dtype, copy=copy or device != here, **options)
        if device != here:
            self.places.put(moved, device)
        return moved


@contextmanager
def accelerator(count: int = 1) -> Iterator[None]:
    """`count` pretend CUDA devices inside the block, in this thread."""
    computing = _Computing(_Places())
    asking = _Asking(computing)
    export, decompose = torch.export.export, torch.export.ExportedProgram.run_decompositions
    examples: list[torch.device] = []

    def exported(module: torch.nn.Module, args: tuple[Tensor], **options: Any) -> Any:
        # Tracing makes up tensors of its own, which say where the host's lie.
        examples.append(computing.places.of(args[0]))
        computing.tracing = True
        try:
            return export(module, args, **options)
        finally:
            computing.tracing = False

    def decomposed(program: Any, *args: Any) -> Any:
        computing.tracing = True
        try:
            program = decompose(program, *args)
        finally:
            computing.tracing = False
        for node in program.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": examples[-1]}
        return program

    with (
        mock.patch.multiple(
            torch.cuda,
            is_available=lambda: not computing.tracing,
            device_count=lambda: count,
            get_device_name=lambda device=None: f"Pretend {torch.device(device or 'cuda').index or 0}",
            get_device_capability=lambda device=None: (9, 0),
            reset_peak_memory_stats=lambda device=None: None,
            max_memory_allocated=lambda device=None: 1,
            synchronize=lambda device=None: None,
        ),
        mock.patch.object(torch.export, "export", exported),
        mock.patch.object(torch.export.ExportedProgram, "run_decompositions", decomposed),
        computing,
        asking,
    ):
        yield
