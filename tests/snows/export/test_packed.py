"""A packed file gives back every value, is of the size that is said of it, and nothing that it claims is believed unseen."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from snows.config import NM, Dense, Unstructured
from snows.export.files import ArtifactError, load_weights
from snows.export.packed import LOADER, pack, save_packed
from snows.measures.metrics import size_bytes
from snows.method.sparsity import from_matrix, keep_mask, to_matrix
from snows.packed import PackedError, is_packed, read_packed
from snows.plans.exports import DTYPES
from snows.sources import checkpoints, models
from snows.sources.checkpoints import CheckpointError

PATTERNS = (NM(n=1, m=4), NM(n=2, m=4), NM(n=1, m=8), NM(n=4, m=8), NM(n=1, m=3), NM(n=3, m=7), Unstructured(sparsity=0.7))


def pruned(shape: tuple[int, ...], pattern: NM | Unstructured, seed: int = 0) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return weight * from_matrix(keep_mask(to_matrix(weight).abs(), pattern), shape)


def loader() -> Callable[[Path], dict[str, Tensor]]:
    """The loader as it is printed, with nothing of ours in reach."""
    names: dict[str, Any] = {}
    exec(LOADER, names)
    return names["load_packed"]


def both(path: Path) -> dict[str, Tensor]:
    """What the file holds, which both readers agree on."""
    read, printed = read_packed(path), loader()(path)
    assert read.keys() == printed.keys()
    for name, tensor in read.items():
        assert tensor.dtype == printed[name].dtype
        assert torch.equal(tensor, printed[name]) or bool(tensor.isnan().any()), name
    return read


# --- there and back ---


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kernel", [(), (3, 5)], ids=["linear", "convolution"])
def test_a_weight_comes_back(kernel: tuple[int, ...], pattern: NM | Unstructured, dtype: str | None, tmp_path: Path) -> None:
    weight, bias = pruned((10, 168, *kernel), pattern), torch.randn(10)
    hints = [pattern] if isinstance(pattern, NM) else []
    save_packed(path := tmp_path / "packed.safetensors", {"w": weight, "b": bias}, hints, dtype, {"pattern": str(pattern)})
    read = both(path)
    assert torch.equal(read["w"], weight if dtype is None else weight.to(getattr(torch, dtype)))
    assert read["w"].is_contiguous()
    assert torch.equal(read["b"], bias)
    assert load_weights(path)[1]["pattern"] == str(pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_size_that_is_said_is_the_files(pattern: NM | Unstructured) -> None:
    state = {"w": pruned((10, 168, 3, 3), pattern), "dense": torch.randn(7, 5), "b": torch.randn(10), "n": torch.tensor(3)}
    said = size_bytes(state, {"w": pattern})
    hints = [pattern] if isinstance(pattern, NM) else []
    for dtype, expected in (("float32", said.packed), ("bfloat16", said.half)):
        tensors, _ = pack(state, hints, dtype)
        assert sum(t.numel() * t.element_size() for t in tensors.values()) == expected


def test_one_of_four_in_half_precision_is_seven_times_smaller() -> None:
    weight = pruned((64, 256), NM(n=1, m=4))
    tensors, _ = pack({"w": weight}, [NM(n=1, m=4)], "float16")
    # 16 bits of value and 2 of position for four times 32; with a bit a weight it would be 20, 6.4 times.
    assert 4 * weight.numel() / sum(t.numel() * t.element_size() for t in tensors.values()) == pytest.approx(128 / 18)
    tensors, _ = pack({"w": weight}, [], "float16")
    assert 4 * weight.numel() / sum(t.numel() * t.element_size() for t in tensors.values()) == pytest.approx(6.4)


@given(st.data())
def test_any_zeros_come_back(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(1, 1), (3, 8), (5, 12), (2, 8, 1, 1), (3, 4, 3, 2), (2, 8, 3), (2, 4, 2, 2, 3)]))
    values = st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.0, -2.5, math.inf, math.nan, 1e-30])
    weight = torch.tensor(data.draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))).view(shape)
    tensors, metadata = pack({"w": weight}, [NM(n=1, m=4), NM(n=1, m=2), NM(n=2, m=8)])
    with TemporaryDirectory() as folder:
        save_file(tensors, Path(folder, "w"), metadata)
        for read in (read_packed(Path(folder, "w")), loader()(Path(folder, "w"))):
            torch.testing.assert_close(read["w"], weight, rtol=0, atol=0, equal_nan=True)


def test_a_group_with_more_zeros_than_its_pattern_comes_back(tmp_path: Path) -> None:
    weight = pruned((8, 64), NM(n=1, m=8))
    weight[0] = 0
    save_packed(path := tmp_path / "w", {"w": weight}, [NM(n=1, m=8)])
    assert json.loads(load_weights(path)[1]["packed"])["w"]["form"] == "1:8"
    assert torch.equal(both(path)["w"], weight)


def test_a_weight_that_does_not_obey_the_pattern_or_has_no_zeros_is_stored_otherwise(tmp_path: Path) -> None:
    full, other = torch.randn(8, 8), pruned((8, 8), Unstructured(sparsity=0.5))
    save_packed(path := tmp_path / "w", {"full": full, "other": other}, [NM(n=1, m=4), NM(n=1, m=1024)])
    packed = json.loads(load_weights(path)[1]["packed"])
    assert packed == {"other": {"shape": [8, 8], "form": "bits"}}
    read = both(path)
    assert torch.equal(read["full"], full)
    assert torch.equal(read["other"], other)


# --- what nobody here made ---


def test_what_other_people_keep_in_a_state_dict_comes_back(tmp_path: Path) -> None:
    weight = pruned((8, 16), NM(n=1, m=4))
    state = {
        "tied": weight,
        "also tied": weight,
        "a slice": torch.randn(16, 16).mul(torch.arange(16) % 3 == 0)[::2, 1:9],
        "transposed": weight.T,
        "channels last": pruned((8, 4, 3, 3), NM(n=1, m=4)).contiguous(memory_format=torch.channels_last),
        "module.ünïcode/weird name:0": weight * 2,
        "half": weight.half(),
        "brain": weight.bfloat16(),
        "double": weight.double(),
        "an index": torch.arange(12).view(3, 4),
        "flags": torch.tensor([[True, False], [False, False]]),
        "a number": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
        "zeros alone": torch.zeros(4, 8),
        "complex": torch.zeros(2, 2, dtype=torch.complex64),
        "needs a gradient": torch.nn.Parameter(weight),
    }
    save_packed(path := tmp_path / "packed.safetensors", state, [NM(n=1, m=4)])
    read = both(path)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype, name
        assert torch.equal(read[name], tensor), name


def test_values_that_half_precision_cannot_hold_are_named() -> None:
    with pytest.raises(ArtifactError, match=r"fc has values up to 1e\+05, which float16 cannot hold. Choose bfloat16"):
        pack({"fc": torch.full((2, 2), 1e5)}, dtype="float16")
    vector = torch.full((2,), 1e5)
    assert torch.equal(pack({"variance": vector}, dtype="float16")[0]["variance"], vector)


@pytest.mark.parametrize("order", [1, -1])
def test_names_that_would_meet_are_refused(order: int) -> None:
    state = {"w": pruned((8, 8), NM(n=1, m=4)), "w/values": torch.ones(2)}
    with pytest.raises(ArtifactError, match="Two tensors would be called w/values"):
        pack(dict(list(state.items())[::order]), [NM(n=1, m=4)])


# --- as a checkpoint ---


@pytest.mark.parametrize("name", sorted(models.BUNDLED))
def test_a_packed_checkpoint_is_the_network(name: str, tmp_path: Path) -> None:
    module = models.load(name).module
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(parameter.abs() > parameter.abs().median())
    save_packed(path := tmp_path / "packed.safetensors", module.state_dict(), dtype="float16")
    assert is_packed(path)
    loaded = models.load(name, path)
    images = torch.randn(4, *loaded.input_size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), module(images), rtol=0.05, atol=0.05)
    assert all(
        torch.equal(t, (m.half().float() if m.ndim >= 2 else m))
        for t, m in zip(loaded.module.state_dict().values(), module.state_dict().values(), strict=True)
    )
    assert models.outline(name, path).input_size == loaded.input_size
    other = next(other for other in models.BUNDLED if other != name)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        models.load(other, path)


# --- hostile files ---

Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def _packed(**entry: object) -> Change:
    return lambda tensors, metadata: metadata.update(packed={"w": {"shape": [6, 8], "form": "1:4"} | entry})


HOSTILE: Mapping[str, tuple[Change, str]] = {
    "no layout": (lambda t, m: m.pop("packed"), "does not say which weights are packed"),
    "a list": (lambda t, m: m.update(packed=[1]), "does not say which weights are packed"),
    "a later form": (lambda t, m: m.update(packed_version="2"), "packed in form '2', and this version reads 1"),
    "nested": (lambda t, m: m.update(packed="RAW" + "[" * 100_000), "does not say which weights are packed"),
    "an entry that is text": (lambda t, m: m.update(packed={"w": "x"}), "no shape that a weight can have"),
    "a shape of numbers with a point": (_packed(shape=[6.0, 8]), "no shape"),
    "a shape of flags": (_packed(shape=[True, 8]), "no shape"),
    "a negative shape": (_packed(shape=[-6, -8]), "no shape"),
    "an empty shape": (_packed(shape=[]), "no shape"),
    "a huge edge": (_packed(shape=[6, 2**63]), "no shape"),
    "a huge shape": (_packed(shape=[2**30, 2**30]), "claims weights of .* or more, far more than such a file"),
    "another shape": (_packed(shape=[12, 8]), "not of the size that its shape asks for"),
    "a form that is none": (_packed(form="2 of 4"), "in a form that does not fit its shape: '2 of 4'"),
    "a percentage": (_packed(form="70%"), "in a form that does not fit"),
    "a group that does not divide": (_packed(form="1:5"), "in a form that does not fit"),
    "a group of millions": (_packed(form="1:4000000"), "in a form that does not fit"),
    "another group": (_packed(form="1:8"), "not of the size"),
    "positions read as bits": (_packed(form="bits"), "not of the size"),
    "no values": (lambda t, m: t.pop("w/values"), "lacks a part of 'w'"),
    "no places": (lambda t, m: t.pop("w/places"), "lacks a part of 'w'"),
    "twice": (lambda t, m: t.update(w=torch.zeros(6, 8)), "holds it twice"),
    "one value less": (lambda t, m: t.update({"w/values": t["w/values"][1:].clone()}), "not of the size"),
    "one place less": (lambda t, m: t.update({"w/places": t["w/places"][1:].clone()}), "not of the size"),
    "whole numbers": (lambda t, m: t.update({"w/values": torch.ones(12, dtype=torch.int32)}), "not of the size"),
    "places with a sign": (lambda t, m: t.update({"w/places": t["w/places"].to(torch.int8)}), "not of the size"),
    "values in rows": (lambda t, m: t.update({"w/values": t["w/values"].view(3, 4)}), "not of the size"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_what_a_file_claims_is_compared_with_what_it_holds(fault: str, tmp_path: Path) -> None:
    change, sentence = HOSTILE[fault]
    tensors, layout = pack({"w": pruned((6, 8), NM(n=1, m=4)), "b": torch.ones(6)}, [NM(n=1, m=4)])
    metadata: dict[str, Any] = {**layout, "packed": json.loads(layout["packed"])}
    change(tensors, metadata)
    if not isinstance(said := metadata.get("packed"), str) and said is not None:
        metadata["packed"] = json.dumps(said)
    metadata = {key: value.removeprefix("RAW") for key, value in metadata.items()}
    save_file(tensors, path := tmp_path / "hostile.safetensors", metadata)
    with pytest.raises(PackedError, match=sentence):
        read_packed(path)
    module = torch.nn.Linear(8, 6)
    with pytest.raises(CheckpointError, match=sentence):
        checkpoints.read(path, module)


def test_positions_out_of_range_or_twice_are_refused(tmp_path: Path) -> None:
    tensors, metadata = pack({"w": pruned((4, 15), NM(n=2, m=5))}, [NM(n=2, m=5)])
    packed = json.loads(metadata["packed"])
    assert packed["w"]["form"] == "bits"  # two positions of 3 bits are more than five bits
    tensors, metadata = pack({"w": pruned((4, 14), NM(n=2, m=7))}, [NM(n=2, m=7)])
    assert json.loads(metadata["packed"])["w"]["form"] == "2:7"
    for places in (torch.full_like(tensors["w/places"], 0xFF), torch.zeros_like(tensors["w/places"])):
        save_file({**tensors, "w/places": places}, path := tmp_path / "w", metadata)
        with pytest.raises(PackedError, match="lie outside their groups, or come twice"):
            read_packed(path)


def test_bits_that_do_not_count_the_values_are_refused(tmp_path: Path) -> None:
    tensors, metadata = pack({"w": pruned((4, 8), Unstructured(sparsity=0.5))})
    save_file({**tensors, "w/places": torch.full_like(tensors["w/places"], 0xFF)}, path := tmp_path / "w", metadata)
    with pytest.raises(PackedError, match="holds 16 values of 'w' for 32 places"):
        read_packed(path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    save_packed(whole := tmp_path / "whole", {"w": pruned((6, 8), NM(n=1, m=4)), "b": torch.ones(6)}, [NM(n=1, m=4)])
    content, torn = whole.read_bytes(), tmp_path / "torn"
    for length in range(0, len(content), 7):
        torn.write_bytes(content[:length])
        with pytest.raises(PackedError, match="cannot be read as a safetensors file"):
            read_packed(torn)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    # One value and ten bits of a position for each group of 1,024: all in accord, and still more than the network has.
    groups = 40_000
    tensors = {
        "w/values": torch.zeros(groups, dtype=torch.float16),
        "w/places": torch.zeros(groups * 10 // 8, dtype=torch.uint8),
    }
    layout = {"packed_version": "1", "packed": json.dumps({"w": {"shape": [groups, 1024], "form": "1:1024"}})}
    save_file(tensors, path := tmp_path / "w", layout)
    with pytest.raises(PackedError, match="claims weights of 40,960,000 values or more"):
        read_packed(path)
    with pytest.raises(CheckpointError, match="claims weights of 40,960,000 values or more"):
        checkpoints.read(path, torch.nn.Linear(8, 6))


def test_a_dense_pattern_is_of_no_size_of_its_own() -> None:
    state = {"w": torch.randn(4, 4)}
    assert size_bytes(state, {"w": Dense()}) == (64, 64, 32)
