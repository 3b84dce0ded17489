"""The engine is imported by one thread at a time, whoever asks first."""

import threading
from collections.abc import Callable

import pytest

from app.work import engine, fetching, jobs
from snows.config import InputError


def refused() -> None:
    with pytest.raises(InputError, match="There is no model 'torchvision:nothing'"):
        fetching.fetch("torchvision:nothing", lambda what, done, total: None)


def worked() -> None:
    with pytest.raises(AttributeError):
        jobs._execute(None, "cpu")  # type: ignore[arg-type]  # far enough to see that it waited


@pytest.mark.parametrize("ask", [engine.load, refused, worked])
def test_whoever_needs_it_waits_for_the_thread_that_imports_it(ask: Callable[[], object]) -> None:
    done = threading.Event()

    def need() -> None:
        ask()
        done.set()

    with engine._importing:
        needing = threading.Thread(target=need)
        needing.start()
        assert not done.wait(0.3)
    needing.join(60)
    assert done.is_set()
    assert engine.ready()
