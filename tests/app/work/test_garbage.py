"""When garbage is looked for."""

import threading
import time
import tomllib
from types import SimpleNamespace

import pytest
from streamlit import config

from app.work import garbage
from app.work.garbage import Collector
from snows.bundled import HOME


def test_streamlit_does_not_look_after_every_run() -> None:
    said = tomllib.loads((HOME / "app/.streamlit/config.toml").read_text())
    assert said["runner"] == {"postScriptGC": False}
    assert isinstance(config.get_option("runner.postScriptGC"), bool), "there is no such option any more"


def test_garbage_is_looked_for_a_while_after_somebody_did_something(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[tuple[threading.Thread, float]]()
    looked = threading.Event()

    def look() -> None:
        looks.append((threading.current_thread(), time.monotonic()))
        looked.set()

    before = set(threading.enumerate())
    monkeypatch.setattr(garbage, "gc", SimpleNamespace(collect=look, freeze=lambda: None))
    collector = Collector(0.2)
    collector.start()
    (thread,) = {one for one in threading.enumerate() if one.name == "garbage"} - before
    time.sleep(0.5)
    assert thread not in dict(looks), "nobody did anything"
    began = time.monotonic()
    for _ in range(5):
        collector.stir()
    while thread not in dict(looks):
        looked.clear()
        assert looked.wait(10)
    time.sleep(0.5)
    (at,) = [at for one, at in looks if one is thread]  # once for all five; another app's collector may be at work as well
    assert at >= began + 0.2
    assert thread.daemon
