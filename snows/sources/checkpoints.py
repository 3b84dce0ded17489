"""State dicts of one's own: read without running anything in them, compared with the network, and refused with the reason.

A checkpoint is untrusted: only tensors are read from it, its size and every shape are compared with the network before a value
is loaded, and a NaN is refused. People keep much beside the network: the optimizer, settings, averaged copies. So all tensors
in a file are named by the way to them, and the network is where its own names are found (`read`).
"""

import pickletools
import re
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from snows.config import InputError
from snows.packed import PackedError, is_packed, read_packed
from snows.process import is_out_of_memory
from snows.sources.unpack import not_weights

# Counts of training steps; evaluation never reads them and exporters drop them.
_COUNTERS = ("num_batches_tracked", "n_averaged")
# What compilers, parallel training and training frameworks wrap around a network or a part of it.
_WRAPPERS = frozenset({"module", "model", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
# What a file's own entry for the network is called, and words for a copy that is averaged over training steps.
_PLAIN = frozenset({"", "state", "dict", "params", "weights", "net", "network", "model", "module"})
_AVERAGED = frozenset({"ema", "average", "averaged", "avg", "shadow", "teacher", "momentum", "swa", "target", "polyak"})
EXPORTED = "model.safetensors"  # what the weights are called in a folder for the hub
_MOST_LEVELS = 64
_MOST_PICKLE_BYTES = 64 * 2**20  # of names and settings, tensors aside
_reading = threading.Lock()


class CheckpointError(InputError):
    """A checkpoint file that cannot be used, and why.

    `mismatches`: where it does not fit the network, each tensor's name, what the file has and what the network has ("-": none);
    `reason`: why that is likely so, the end of the message.
    """

    def __init__(self, message: str, mismatches: Sequence[tuple[str, str, str]] = (), reason: str = "") -> None:
        super().__init__(f"{message} {reason}".rstrip())
        self.mismatches, self.reason = tuple(mismatches), reason


def read(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint (a file, or a folder for the hub) by the network's names, memory-mapped where the file allows
    it, so that shapes can be compared before a value is read.

    Of several copies of the network the bare one is taken before an averaged one. Weights that are kept as parts (`weight_orig`
    with `weight_mask`, `weight_g` with `weight_v`) are put together. Raises `CheckpointError`.
    """
    if path.is_dir():  # as `snows.plans.exports` writes them, and the hub
        path /= EXPORTED
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {path}.")
    # A training checkpoint holds optimizer moments and averages too: several times the network, never a hundred times.
    own = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    size, limit = path.stat().st_size, 8 * own + 2**26
    if size > limit:
        raise CheckpointError(
            f"{path} has {size / 1e6:,.0f} MB, far more than this network's {own / 1e6:,.0f} MB, so it was made for "
            "another network."
        )
    try:
        return _network(_content(path, own), module, path)
    except CheckpointError:
        raise
    except PackedError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # a damaged file makes the readers raise anything at all
        if is_out_of_memory(error):
            remedy = "Close other programs, or try it where there is more"
            raise CheckpointError(f"{path} cannot be read: the computer ran out of memory. {remedy}.") from error
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint; it is damaged or not one at all ({type(error).__name__})."
        ) from error


# --- what a file holds ---


def _content(path: Path, most_values: int) -> object:
    with path.open("rb") as file:
        start = file.read(64)
        if reason := not_weights(start):
            raise CheckpointError(f"{path} {reason}.")
        # Safetensors begin with the length of their header, whose lowest byte may be that of a pickle.
        if start[8:9] == b"{" and start[4:8] == bytes(4):
            # A value for each of the network's bytes: four times what it has.
            return read_packed(path, most_values + 2**20) if is_packed(path) else load_file(path)
        if start.startswith(b"PK"):
            names = _names_in_zip(path)
        else:
            file.seek(0)
            names = _names_in_pickles(file)
    for kinds in (_as_mapping, _as_list):
        stand_ins: list[Any] = [(kinds(name), name) for name in names]
        # The names are known to the whole process while a file is read, so one is read at a time.
        with _reading, torch.serialization.safe_globals(stand_ins):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                fault = error
    raise CheckpointError(
        f"{path} is damaged or holds more than tensors and settings, which is not safe to load ({type(fault).__name__}). "
        "Save the state dict alone: torch.save(model.state_dict(), FILE)."
    ) from fault


def _names_in_zip(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise CheckpointError(
                f"{path} is a program of TorchScript, not a state dict. Save its weights: torch.save(torch.jit.load(FILE)."
                "state_dict(), OTHER)."
            )
        # torch never compresses; a compressed entry could grow without bound.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path} is compressed, which torch.save never does. Save it with torch.save.")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if not pickles:
            raise CheckpointError(f"{path} is a zip archive that torch.save did not write. Save it with torch.save.")
        if max(entry.file_size for entry in pickles) > _MOST_PICKLE_BYTES:
            raise CheckpointError(f"{path} holds far more than tensors. Save the state dict alone: torch.save(state, FILE).")
        with archive.open(pickles[0]) as file:
            return set(_globals(file))


def _names_in_pickles(file: BinaryIO) -> set[str]:
    """Of the form before zip archives: a number, a version, the machine, and the content, a pickle each."""
    return {name for _ in range(4) for name in _globals(file)}


def _globals(file: Any) -> Iterator[str]:
    """Every class and function that a pickle names, in the form that `torch.serialization.safe_globals` takes."""
    for code, argument, _ in pickletools.genops(file):
        if code.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            # Old pickles, and all of torch.save, write names as Python 2 had them.
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"


def _as_mapping(name: str) -> Callable[..., Any]:
    listed = name.startswith("numpy") or re.search(r"(?i)list|deque|dtype", name)
    return _ListStandIn if listed else _MappingStandIn


def _as_list(name: str) -> Callable[..., Any]:
    return _ListStandIn


class _MappingStandIn:
    """In place of any class or function that a file names, so that none is imported and nothing is run: an empty mapping, which
    takes in the items and attributes that the file gives it."""

    def __new__(cls, *arguments: object, **settings: object) -> Any:
        return OrderedDict()


class _ListStandIn(list[Any]):
    """The same for what is like a list, or has a state of its own form, as numbers of NumPy do."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *arguments: object, **settings: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


# --- which of it is the network ---


def _network(content: object, module: nn.Module, path: Path) -> dict[str, Tensor]:
    tensors, groups = _tensors(content)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict (names with tensors). Save one with torch.save(model.state_dict(), FILE)."
        )
    own = module.state_dict()
    tensors, groups = _unwrapped(tensors, groups, own)
    tensors, groups = _composed(tensors, groups, own)
    fits = _fits(tensors, own)
    prefix = _chosen_prefix(tensors, fits, own, path)
    copies = tuple(other for other, count in fits.items() if other and other != prefix and 2 * count >= max(fits.values()))
    kept_aside = {
        name for name, _ in module.named_buffers()
    } - own.keys()  # tables that older files hold and newer ones compute
    near = {groups[name] for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) in own}
    state: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for name, value in tensors.items():
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and inner in own:
            state[inner] = value
        elif name.startswith(copies):
            continue
        elif not name.startswith(prefix) or (near and groups[name] not in near):
            beside[name] = value
        elif inner not in kept_aside and not name.endswith(_COUNTERS):
            state[inner] = value
    # Frameworks keep the backbone and the head apart; each part keeps the names within it.
    missing = [name for name in own if name not in state and not name.endswith(_COUNTERS)]
    for name in missing:
        same = [other for other in beside if ("." + other).endswith("." + name) and beside[other].ndim == own[name].ndim]
        nearest = [other for other in same if groups[other] in near] or same
        if len(nearest) == 1:
            state[name] = beside.pop(nearest[0])
    if any(name not in state for name in missing):  # what they may be called in the file
        state |= {name: value for name, value in beside.items() if not near or groups[name] in near}
    return state


def _tensors(content: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor by the names on the way to it, joined with dots; and the way to the mapping that holds it."""
    tensors: dict[str, Tensor] = {}
    groups: dict[str, str] = {}

    seen: set[int] = set()

    def walk(value: object, way: str, group: str, levels: int) -> None:
        if levels > _MOST_LEVELS or not isinstance(value, Mapping) or id(value) in seen:
            return
        seen.add(id(value))
        attributes = getattr(value, "__dict__", {})
        items: list[tuple[object, object]] = list(value.items())
        if isinstance(attributes.get("_modules"), Mapping):  # a whole network that was pickled
            for kind in ("_parameters", "_buffers", "_modules"):
                if isinstance(attributes.get(kind), Mapping):
                    items += attributes[kind].items()
        else:
            group = way
        for key, item in items:
            if not isinstance(key, str):
                continue
            if isinstance(item, Tensor):
                if item.layout is torch.strided and not item.is_quantized and not item.is_meta:
                    tensors[way + key], groups[way + key] = item.detach(), group
            else:
                walk(item, f"{way}{key}.", group, levels + 1)

    walk(content, "", "", 0)
    return tensors, groups


def _unwrapped(
    tensors: dict[str, Tensor], groups: dict[str, str], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Names without the wrappers in them, at the beginning or in the middle, unless the network has such a part itself."""
    wrappers = _WRAPPERS - {part for name in own for part in name.split(".")}
    bare = {name: ".".join(part for part in name.split(".") if part not in wrappers) for name in tensors}
    shared = Counter(bare.values())
    names = {name: inner if shared[inner] == 1 and inner else name for name, inner in bare.items()}
    return {names[name]: value for name, value in tensors.items()}, {names[name]: group for name, group in groups.items()}


def _composed(
    tensors: dict[str, Tensor], groups: dict[str, str], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights in place of the parts that pruning and weight normalization keep them as (`torch.nn.utils`)."""
    result, groups = dict(tensors), dict(groups)
    for first, second, whole, compose in _PARTS:
        for name in tensors:
            if not name.endswith(first) or any(other.endswith(first) for other in own):
                continue
            stem = name.removesuffix(first)
            match = (tensors[name], tensors.get(stem + second))
            # A tensor can claim more values than it has.
            if match[1] is not None and all(_is_whole(part) for part in match if part is not None):
                composed = compose(match[0], match[1])
                if composed is not None:
                    del result[stem + first], result[stem + second]
                    result[stem + whole], groups[stem + whole] = composed, groups[name]
    return result, groups


def _is_whole(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _masked(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask.to(weight.dtype) if weight.shape == mask.shape else None


def _normalized(length: Tensor, direction: Tensor) -> Tensor | None:
    """Salimans & Kingma (2016), equation 2: w = g v / |v|, |v| over the dimensions that g has not."""
    if length.ndim not in (0, direction.ndim) or direction.ndim == 0:
        return None
    over = [dim for dim in range(direction.ndim) if length.ndim == 0 or length.shape[dim] == 1]
    norms = torch.linalg.vector_norm(direction, dim=over, keepdim=True)
    return direction * (length / norms) if length.ndim == 0 or length.shape == norms.shape else None


_PARTS: tuple[tuple[str, str, str, Callable[[Tensor, Tensor], Tensor | None]], ...] = (
    ("_orig", "_mask", "", _masked),
    ("weight_g", "weight_v", "weight", _normalized),
    ("parametrizations.weight.original0", "parametrizations.weight.original1", "weight", _normalized),
)


def _fits(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Counter[str]:
    """How many of the network's tensors the file has under each prefix, those of the right shape counted twice."""
    fits: Counter[str] = Counter()
    for name, value in tensors.items():
        for start in accumulate((len(part) + 1 for part in name.split(".")[:-1]), initial=0):
            inner = name[start:]
            if inner in own and not inner.endswith(_COUNTERS):
                fits[name[:start]] += 1 + (_kind(own[inner]) == _kind(value))
    return fits


def _chosen_prefix(tensors: Mapping[str, Tensor], fits: Counter[str], own: Mapping[str, Tensor], path: Path) -> str:
    if not fits:
        return ""

    def distance(prefix: str) -> int:
        words = set(re.split(r"[._]", prefix.lower()))
        return 3 if words & _AVERAGED else 0 if not prefix else 1 if words <= _PLAIN else 2

    most = max(fits.values())
    best = [prefix for prefix, count in fits.items() if count == most]
    nearest = [prefix for prefix in best if distance(prefix) == min(map(distance, best))]
    first = nearest[0]
    for other in nearest[1:]:
        for name in own:
            mine, its = tensors.get(first + name), tensors.get(other + name)
            if mine is not None and its is not None and not torch.equal(mine, its):
                raise CheckpointError(
                    f"{path} holds this network {len(nearest)} times, as {_first([p.rstrip('.') for p in nearest])}, and "
                    "nothing says which one is meant. Save that one alone: torch.save(state_dict, FILE)."
                )
    return first


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Whether `state` lacks a tensor of the network, has one too many, or one of another shape."""
    needed = {name for name in own if not name.endswith(_COUNTERS)}
    return any(name not in state or _kind(state[name]) != _kind(own[name]) for name in needed) or any(
        name not in own for name in state if not name.endswith(_COUNTERS)
    )


def size_in(
    state: Mapping[str, Tensor], first: tuple[float, Mapping[str, Tensor]], second: tuple[float, Mapping[str, Tensor]]
) -> float | None:
    """The value of a setting with which `state` was made, from the shapes of two networks that differ in it alone, each given
    with its value. None where the file does not say, or says two things."""
    (low, small), (high, large) = first, second
    values = set()
    for name in small.keys() & large.keys() & state.keys():
        shapes = small[name].shape, large[name].shape, state[name].shape
        if len({len(shape) for shape in shapes}) > 1:
            continue
        for one, two, given in zip(*shapes, strict=True):
            if one != two:
                values.add(low + (given - one) / (two - one) * (high - low))
    return values.pop() if len(values) == 1 else None


# --- comparing and loading ---


def load_into(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give `module` the values of `state`, read from `path`. Raises `CheckpointError` where they do not fit."""
    compare(module.state_dict(), state, path)
    module.load_state_dict(state, strict=False)
    refuse_nonfinite(module, str(path))


def compare(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError`, with what differs and the likely reason, unless `state` has every tensor in its shape."""
    missing = [name for name in own if name not in state and not name.endswith(_COUNTERS)]
    unexpected = [name for name in state if name not in own and not name.endswith(_COUNTERS)]
    wrong = [name for name in own if name in state and _kind(state[name]) != _kind(own[name])]
    shapes = [f"{name} is {_kind(state[name])} instead of {_kind(own[name])}" for name in wrong]
    problems = [
        f"{len(names)} {label} ({_first(names)})"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
        if names
    ]
    if problems:
        rows = [(name, "-", _kind(own[name])) for name in missing]
        rows += [(name, _kind(state[name]), "-") for name in unexpected]
        rows += [(name, _kind(state[name]), _kind(own[name])) for name in wrong]
        raise CheckpointError(
            f"{path} does not fit this network of {len(own)} tensors: {'; '.join(problems)}.",
            rows,
            _likely_reason(own, state, missing, unexpected, wrong),
        )


def _likely_reason(
    own: dict[str, Tensor], state: dict[str, Tensor], missing: list[str], unexpected: list[str], wrong: list[str]
) -> str:
    if not own.keys() & state.keys():
        return (
            "They have no name in common: it is another kind of network, or comes from another library; timm and torchvision "
            "name the same layers differently, so try the other one's."
        )
    head = _head(own) if len(own) > 1 else ""
    if not unexpected and not wrong and len(missing) <= 2 and all(_is_of(name, head) for name in missing):
        return "All the rest fits: it seems to be saved without its last part, such as the classifier. Save the whole network."
    if (
        head
        and all(_is_of(name, head) for name in (*missing, *wrong))
        and (missing or wrong)
        and len(missing) + len(wrong) < len(own)
    ):
        needed = [f"{name} {_kind(own[name])}" for name in own if _is_of(name, head)]
        brought = [f"{name} {_kind(state[name])}" for name in (*wrong, *unexpected)]
        return (
            f"Only the head differs: this network's is {_first(needed)}, the file's {_first(brought) or 'missing'}. All the "
            "rest fits. Give the file's head the network's names and shapes, or choose the model that has such a head."
        )
    if any("parametrizations." in name or name.endswith(("weight_orig", "weight_u")) for name in unexpected):
        return (
            "It holds parts from which weights are computed as the network runs. Make them plain weights before saving: "
            "torch.nn.utils.parametrize.remove_parametrizations, or what undoes the method that was used."
        )
    if not missing and not wrong:
        return "All of the network is in it, with more besides: a network with additional parts. Save only this one's."
    if not missing and wrong and all("pos_embed" in name or "position" in name for name in wrong):
        return "Only the positions differ: it was made for another image size. Choose the model of that size."
    if not missing and len(wrong) == 1 and (given := state[wrong[0]]).ndim == 4 and given.shape[1] != own[wrong[0]].shape[1]:
        return f"It takes images of {given.shape[1]} channels. Choose the model that does."
    return "Choose the model that the checkpoint was made for."


def _head(own: Mapping[str, Tensor]) -> str:
    """The part of the network in which its last weight lies."""
    last = [name for name, value in own.items() if value.ndim >= 2][-1]
    parts = last.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((part for part in around if not all(_is_of(name, part) for name in own)), last)


def _is_of(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" + ("" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", ""))


def _first(items: Sequence[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (", …" if len(items) > count else "")


def refuse_nonfinite(module: nn.Module, origin: str) -> None:
    """Raise `CheckpointError` where a weight is not a number. `origin`: where the weights come from, in words."""
    for name, value in module.state_dict().items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            kind = "NaN" if bool(torch.isnan(value).any()) else "an infinite value"
            raise CheckpointError(
                f"{origin}: the weight {name} holds {kind} ({bad:,} of {value.numel():,} values), so every output would be "
                "invalid. Use a checkpoint from before the training diverged."
            )
