"""Fixtures for every test."""

from pathlib import Path

import pytest

from snows.process import prepare
from snows.store import RunStore

prepare()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """An empty run store that `default_root` points to as well."""
    monkeypatch.setenv("SNOWS_RUNS", str(tmp_path / "runs"))
    return RunStore(tmp_path / "runs")
