"""A run's settings as fields and as an address."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.forms import settings
from snows.config import RunConfig, explain

HOME = Path("/somewhere/runs")
OTHER = RunConfig.model_validate(
    {
        "model": "vit-fashion",
        "class_names": ["a b", "c"],
        "num_calibration": 33,
        "prune": {
            "pattern": "70% global",
            "overrides": {"fc": "dense"},
            "k_steps": 0,
            "ridge": 0,
            "prune_classifier": True,
            "solver": {"rtol": 0.05},
        },
    }
)


def test_fields_and_config_say_the_same() -> None:
    for config in (RunConfig(), OTHER):
        assert settings.config(settings.values(config)) == config


def test_an_address_says_what_differs_and_brings_it_back() -> None:
    fields, default = settings.values(OTHER), settings.values(RunConfig())
    said = settings.to_address(fields, default)
    assert said == {
        "model": "vit-fashion",
        "class_names": "a b\nc",
        "num_calibration": "33",
        "pattern": "70% global",
        "overrides": "fc = dense",
        "k_steps": "0",
        "ridge": "0",
        "prune_classifier": "true",
        "solver.rtol": "0.05",
    }
    assert settings.from_address(said, default, HOME) == fields
    assert settings.to_address(default, default) == {}
    assert settings.to_address(default, fields)["model"] == "resnet20-fashion"


@pytest.mark.parametrize(
    "said",
    [
        {"k_steps": "many"},
        {"k_steps": "9" * 40},
        {"ridge": "nan"},
        {"prune_classifier": "perhaps"},
        {"unheard_of": "1"},
        {"data": "brought:../../etc"},
        {"data": "brought:/etc"},
    ],
)
def test_what_an_address_says_amiss_is_not_said(said: dict[str, str]) -> None:
    default = settings.values(RunConfig())
    assert settings.from_address(said, default, HOME) == default


def test_an_address_does_not_say_where_this_machine_keeps_what_was_brought() -> None:
    default = settings.values(RunConfig())
    fields: dict[str, Any] = default | {"form.data": str(HOME / ".uploads" / "0123" / "my pictures")}
    said = settings.to_address(fields, default)
    assert said == {"data": "brought:0123/my pictures"}
    assert settings.from_address(said, default, HOME) == fields


def test_every_field_has_a_name_that_is_not_its_own() -> None:
    assert {f"form.{path}" for path in settings.LABELS} == set(settings.DEFAULTS)
    with pytest.raises(ValidationError) as refused:
        settings.config(settings.DEFAULTS | {"form.prune.solver.max_iters": 0})
    assert explain(refused.value, settings.LABELS) == "Conjugate-gradient iterations must be at least 1, but is 0."
