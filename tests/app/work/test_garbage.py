"""When garbage is looked for."""

import gc
import threading
import time
import tomllib
import weakref

import pytest
from streamlit import config

from app.work.garbage import Collector
from snows.bundled import HOME


class Loop:
    """Points at itself, so that nothing but the collector ends it."""

    def __init__(self) -> None:
        self.itself = self


def test_streamlit_does_not_look_after_every_run() -> None:
    said = tomllib.loads((HOME / "app/.streamlit/config.toml").read_text())
    assert said["runner"] == {"postScriptGC": False}
    assert isinstance(config.get_option("runner.postScriptGC"), bool), "there is no such option any more"


def test_what_was_left_behind_goes_a_while_after_the_last_click(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    collect = gc.collect
    monkeypatch.setattr(gc, "freeze", lambda: None)  # or all that the tests have made stays for good
    gc.disable()
    try:
        collector = Collector(0.2)
        collector.start()
        monkeypatch.setattr(gc, "collect", lambda: looked.append(time.monotonic()) or collect())
        left = weakref.ref(Loop())
        time.sleep(0.5)
        assert left() is not None, "nobody did anything"
        began = time.monotonic()
        for _ in range(5):
            collector.stir()
        until = began + 10
        while left() is not None and time.monotonic() < until:
            time.sleep(0.01)
        assert left() is None
        time.sleep(0.5)
        assert len(looked) == 1, "once for all five"
        assert looked[0] >= began + 0.2
    finally:
        gc.enable()
    assert "garbage" in {thread.name for thread in threading.enumerate() if thread.daemon}
