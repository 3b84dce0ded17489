"""What is said of a network's speed, and the button for it: on a finished run, and in the form before there is one."""

import time
from collections.abc import Callable, Iterator

import pytest
from streamlit.testing.v1 import AppTest

from app.tables import speed
from snows.config import InputError, RunConfig
from snows.runs.latency import Timing
from snows.runs.store import Run, RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage
from tests.app.test_pages import button, labels, text_of

MEASURED = [
    Timing("PyTorch", 1, [0.010] * 9, [0.010] * 9),
    Timing("PyTorch", 32, [0.2] * 9, [0.1] * 9),
    Timing("ONNX Runtime", 1, [0.003, 0.003, 0.001, 0.003, 0.003], [0.002] * 5),
    Timing("ONNX Runtime", 32, [0.15] * 5, [0.1] * 5),
]


def test_the_sentence_is_of_the_program_that_was_timed_last() -> None:
    assert speed.sentence([]) == ""
    assert speed.sentence(MEASURED[:2]) == (
        "In PyTorch it is no faster one image at a time beyond the noise, and **2.00 times** as fast on 32 images at once "
        "(2.00 to 2.00)."
    )
    assert speed.sentence(MEASURED, before=True) == (
        "In ONNX Runtime it will be no faster one image at a time beyond the noise, and **1.50 times** as fast on 32 images at "
        "once (1.50 to 1.50)."
    )


def test_the_table_has_a_row_for_each_program_and_batch() -> None:
    table = speed.timings(MEASURED)
    assert len(table) == speed.STEPS
    assert list(table["Images at once"]) == ["1", "32", "1", "32"]
    assert list(table["Dense"]) == ["10 ms", "200 ms", "3 ms", "150 ms"]
    assert list(table["Pruned"]) == ["10 ms", "100 ms", "2 ms", "100 ms"]


def until(app: AppTest, reached: Callable[[AppTest], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached(app.run()):
        assert time.monotonic() < deadline, text_of(app)
        time.sleep(0.05)


def table_of(app: AppTest) -> list[str]:
    return next((list(frame.value["Program"]) for frame in app.dataframe if "Times as fast" in frame.value), [])


@pytest.mark.slow
class TestOnThePage:
    def test_a_finished_run_is_timed_on_a_click_and_not_before(
        self, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def of_run(run: Run, check: Callable[[], None]) -> Iterator[Timing]:
            asked.append(run.id)
            yield from MEASURED

        monkeypatch.setattr("snows.runs.latency.of_run", of_run)
        run = helpers.write_run(store, "finished")
        app = open_page("prune", run=run.id)
        assert "Time it" not in labels(app)
        app.session_state[f"speed-{run.id}"] = True
        app.run()
        assert "Its zeros are multiplied like any other number" in text_of(app)
        assert asked == []
        button(app, "Time it").click().run()
        until(app, lambda app: "Time it again" in labels(app))
        assert asked == [run.id]
        assert table_of(app) == ["PyTorch", "PyTorch", "ONNX Runtime", "ONNX Runtime"]
        assert speed.sentence(MEASURED) in text_of(app)

    def test_the_form_says_beforehand_what_cutting_units_will_bring(
        self, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def expected(config: RunConfig, check: Callable[[], None]) -> Iterator[Timing]:
            asked.append(str(config.prune.pattern))
            yield from MEASURED
            if len(asked) == 2:
                raise InputError("The network is gone. Choose another.")

        monkeypatch.setattr("snows.runs.latency.expected", expected)
        app = open_page("prune")
        assert "How much faster here?" not in labels(app)
        app.selectbox("form.prune.pattern").set_value("width 50%").run()
        button(app, "How much faster here?").click().run()
        until(app, lambda app: "Time it again" in labels(app))
        assert asked == ["width 50%"]
        assert speed.sentence(MEASURED, before=True) in text_of(app)
        assert "chosen by chance" in text_of(app)
        # Another mask leaves the same sizes; another pattern does not.
        app.selectbox("form.prune.mask").set_value("random").run()
        assert table_of(app)
        app.selectbox("form.prune.pattern").set_value("2:4").run()
        assert table_of(app) == []
        app.selectbox("form.prune.pattern").set_value("width 50%")
        app.checkbox("form.prune.prune_classifier").check().run()
        button(app, "How much faster here?").click().run()
        until(app, lambda app: "The network is gone. Choose another." in text_of(app))
        app.checkbox("form.prune.prune_classifier").uncheck().run()
        assert table_of(app)
        assert "You cancelled" not in text_of(app)

    def test_it_can_be_cancelled_and_keeps_what_there_was(
        self, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def of_run(run: Run, check: Callable[[], None]) -> Iterator[Timing]:
            yield MEASURED[0]
            while True:
                check()
                time.sleep(0.001)

        monkeypatch.setattr("snows.runs.latency.of_run", of_run)
        run = helpers.write_run(store, "finished")
        app = open_page("prune", run=run.id)
        app.session_state[f"speed-{run.id}"] = True
        app.run()
        button(app, "Time it").click().run()
        until(app, lambda app: len(table_of(app)) == 1)
        assert "Time it again" not in labels(app)
        button(app, "Cancel").click().run()
        until(app, lambda app: "You cancelled this. What there was by then is shown." in text_of(app))
        assert table_of(app) == ["PyTorch"]
