"""Events: a JSON line each, both ways, and tolerance for what other versions write."""

import json
import math
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snows.events import KINDS, CGIteration, Event, RunFinished, RunStarted, SiteFinished, from_json, to_json

ROOT = Path(__file__).parents[2]
everything = st.one_of(
    *[st.builds(cls, **{f.name: st.from_type(get_type_hints(cls)[f.name]) for f in fields(cls)}) for cls in KINDS.values()]
)


def same(a: object, b: object) -> bool:
    """Equality with NaN equal to itself."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a) and type(a) is type(b):
        return same(vars(a), vars(b))
    return type(a) is type(b) and a == b


@given(everything)
def test_json_round_trip(event: Event) -> None:
    line = to_json(event)
    back = from_json(line)
    assert type(back) is type(event)
    assert same(vars(back), vars(event))


@given(everything)
def test_a_line_is_one_line_of_strict_json(event: Event) -> None:
    line = to_json(event)
    assert len(line.splitlines()) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse)["kind"] == type(event).__name__


def test_every_event_is_known() -> None:
    assert {cls.__name__: cls for cls in Event.__subclasses__()} == KINDS


@given(everything)
def test_a_reader_survives_a_newer_writer(event: Event) -> None:
    record = json.loads(to_json(event))
    assert same(vars(from_json(json.dumps(record | {"added_later": 1}))), vars(event))
    assert from_json(json.dumps(record | {"kind": "AddedLater"})) is None


@pytest.mark.parametrize("cls", KINDS.values())
def test_a_field_with_a_default_may_be_absent(cls: type[Event]) -> None:
    hints = get_type_hints(cls)
    required = {}
    for f in fields(cls):
        if f.default is MISSING and f.default_factory is MISSING:
            hint = hints[f.name]
            required[f.name] = (get_args(hint)[0] if get_origin(hint) is UnionType else get_origin(hint) or hint)()
    assert isinstance(from_json(json.dumps({"kind": cls.__name__} | required)), cls)


def test_a_dictionary_may_hold_any_key() -> None:
    for skipped in ({"float": "shared by 2 operations"}, {"kind": "a"}, {"": ""}):
        event = RunStarted(device="cpu", sites=[], skipped=skipped)
        assert from_json(to_json(event)) == event
    event = RunFinished(metrics={"float": math.inf})
    assert from_json(to_json(event)) == event


def test_a_diverged_loss_survives() -> None:
    event = CGIteration(site="fc", step=0, iteration=3, residual=math.nan, curvature=-math.inf)
    back = from_json(to_json(event))
    assert isinstance(back, CGIteration)
    assert math.isnan(back.residual)
    assert back.curvature == -math.inf


def old_json(event: Event) -> str:
    """A line as it was written until November 2026."""

    def finite(value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if isinstance(value, dict):
            return {k: finite(v) for k, v in value.items()}
        if is_dataclass(value):
            return finite(vars(value))
        return [finite(v) for v in value] if isinstance(value, list | tuple) else value

    return json.dumps({"kind": type(event).__name__} | {k: finite(v) for k, v in vars(event).items()}, allow_nan=False)


@pytest.mark.slow
def test_a_log_of_before_is_read_as_it_was_written() -> None:
    @given(everything)
    def check(event: Event) -> None:
        assert same(vars(from_json(old_json(event))), vars(event))
        assert same(vars(from_json(old_json(event).encode())), vars(event))

    check()


@pytest.mark.parametrize("log", sorted(ROOT.glob("assets/*/*/events.jsonl")), ids=lambda path: path.parent.name)
def test_recorded_logs_are_read_to_the_last_field(log: Path) -> None:
    lines = log.read_bytes().splitlines()
    for line in lines:
        record = json.loads(line)
        event = from_json(line)
        assert event is not None
        assert type(event).__name__ == record.pop("kind")
        assert vars(event) == vars(event) | record  # nothing of the line is left out
    assert len(lines) > 50


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "Phase", "time": 1.0}',
        '{"kind": "Phase", "time": "late", "name": "load"}',
        '{"kind": "Phase", "name": 3}',
        "[]",
    ],
)
def test_what_is_no_event_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(line)


@given(everything, st.data())
def test_a_torn_line_is_malformed_not_misread(event: Event, data: st.DataObject) -> None:
    line = to_json(event)
    with pytest.raises(ValueError, match=r"."):
        from_json(line[: data.draw(st.integers(0, len(line) - 1))])


def test_a_record_from_before_images_were_held_back_has_none() -> None:
    line = (
        '{"kind":"SiteFinished","time":1.0,"site":"a","index":0,"losses":{"final":1.0},"by_k":{"final":[1.0]},"scale":[2.0],'
        '"density":0.5,"status":"","message":"","seconds":1.0,"num_products":0}'
    )
    event = from_json(line)
    assert isinstance(event, SiteFinished)
    assert (event.held_back, event.held_back_scale) == ({}, [])
    assert from_json(to_json(replace(event, held_back={"final": [math.inf]}, held_back_scale=[1.0]))).held_back == {
        "final": [math.inf]
    }
