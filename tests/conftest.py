"""Fixtures for every test."""

from pathlib import Path

import pytest
from hypothesis import settings

from snows.process import prepare
from snows.runs.store import RunStore

prepare()
# A deadline for an example is a timed assertion, and fails on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# What computes comes first and what needs a browser last: a fault shows where it is made, not where it is seen.
_LAST = ("tests/app", "tests/zoo", "tests/test_tutorial", "tests/e2e")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(config.rootpath).as_posix()
        if path == "tests/test_rooms.py":
            return -1
        return next((i for i, start in enumerate(_LAST, start=1) if path.startswith(start)), 0)

    items.sort(key=place)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """An empty run store that `default_root` points to as well."""
    monkeypatch.setenv("SNOWS_RUNS", str(tmp_path / "runs"))
    return RunStore(tmp_path / "runs")
