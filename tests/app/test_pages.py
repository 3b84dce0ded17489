"""Every page in every state a run can be in, without a browser."""

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import state
from snows.config import NM, Dense, RunConfig
from snows.events import JointStarted, RunFailed
from snows.runs.store import Run, RunStore
from tests.app import helpers
from tests.app.conftest import ROOT, OpenPage

pytestmark = pytest.mark.slow


def text_of(app: AppTest) -> str:
    """All that can be read on the page."""
    assert not app.exception, app.exception
    elements = [*app.title, *app.header, *app.subheader, *app.markdown, *app.caption, *app.error, *app.warning, *app.info]
    words = [str(e.value) for e in elements]
    return "\n".join(words + [f"{m.label}: {m.value} ({m.delta})" for m in app.metric])


def button(app: AppTest, label: str):
    return next(b for b in app.button if b.label == label)


def labelled(elements: Any, label: str) -> Any:
    """The one element with that label."""
    (found,) = [element for element in elements if element.label == label]
    return found


def labels(app: AppTest) -> list[str]:
    return [b.label for b in app.button]


def until_ended(run: Run) -> str:
    deadline = time.monotonic() + 60
    while (found := run.state()) in ("queued", "running"):
        assert time.monotonic() < deadline, "the run does not end"
        time.sleep(0.02)
    return found


WORKER = """
import sys
from snows.runs.store import Run
from tests.app import helpers
run = Run(sys.argv[1])
with run.queue() as hold:
    print("queued", flush=True)
    sys.stdin.readline()
    hold.work(lambda run: helpers.slow_execute(run, pause=0.0005))
"""


def test_pages_look_on_at_a_run_of_another_process_and_change_nothing(open_page: OpenPage, store: RunStore) -> None:
    run = store.create(RunConfig())
    command = [sys.executable, "-c", WORKER, str(run.path)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "queued\n"
        pages = [open_page(name, run=run.id) for name in ("prune", "convergence")]
        assert f"Process {worker.pid} on {socket.gethostname()} keeps it" in text_of(pages[0])
        worker.stdin.write("go\n")
        worker.stdin.flush()
        states = []
        while worker.poll() is None:
            for page in pages:
                assert not page.run().exception
            states.append(run.state())
    assert set(states) <= {"queued", "running", "finished"}
    assert worker.returncode == 0
    assert pages[0].run().metric[0].label == "Accuracy"
    written = [type(event) for event in run.events()[0]]
    other = store.create(RunConfig())
    helpers.finish(other)
    assert written == [type(event) for event in other.events()[0]]


class TestOverview:
    def test_empty(self, open_page: OpenPage) -> None:
        app = open_page("overview")
        assert "?" in app.title[0].value
        assert "None yet" in text_of(app)
        assert "processor cores" in text_of(app) or "of memory" in text_of(app)

    def test_demonstration_starts_a_run_and_shows_it(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_page("overview")
        button(app, "Run the demonstration").click().run()
        (run,) = store.list()
        config = run.config()
        assert config.prune.pattern == NM(n=1, m=4)
        assert (config.model, config.prune.k_steps, config.num_calibration) == ("resnet20-fashion", 3, 512)
        assert until_ended(run) == "finished"
        assert run.id in text_of(app.run())

    def test_lists_runs_with_their_states(self, open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
        states = ["finished", "failed", "cancelled", "interrupted", "running", "queued"]
        for name in states:
            helpers.write_run(store, name, hold)
        text = text_of(open_page("overview"))
        for name in states:
            assert re.search(rf"badge\[.*{name}\]", text), name
        assert "accuracy 93.31 %" in text
        assert "your newest finished run" in text

    def test_run_of_another_version_hides_no_other(self, open_page: OpenPage, store: RunStore) -> None:
        foreign = store.create(RunConfig())
        (foreign.path / "config.json").write_text('{"model": "x", "unheard_of": 1}')
        helpers.write_run(store, "finished")
        text = text_of(open_page("overview"))
        assert "accuracy 93.31 %" in text
        assert "another version" in text_of(open_page("prune", run=foreign.id))


class TestRunStates:
    @pytest.mark.parametrize(
        ("name", "words", "offered"),
        [
            ("running", ["Layer 8 of 21: layer2.0.conv2", "Conjugate gradient in", "layer2.0.conv2"], "Cancel"),
            ("queued", ["keeps it, and starts it when the runs before it have ended"], "Cancel"),
            ("failed", ["Layer layer2.0.conv1 was given a NaN", "7 of 21 layers are finished and kept"], "Resume"),
            ("cancelled", ["You cancelled this run", "7 of 21 layers are finished and kept"], "Resume"),
            ("interrupted", ["its worker is gone", "7 of 21 layers are finished and kept"], "Resume"),
            (
                "finished",
                [
                    "Of 100 pictures it gets 94 right while it is dense, 11 when just cut and 93 refitted",
                    "Accuracy: 93.31 % (\N{MINUS SIGN}0.64 points from 93.95 %)",
                    "Agreement: 97.02 %",
                    "Time: 28 s",
                ],
                None,
            ),
        ],
    )
    def test_says_what_happened_and_what_to_do(
        self, name: str, words: list[str], offered: str | None, open_page: OpenPage, store: RunStore, hold: ExitStack
    ) -> None:
        run = helpers.write_run(store, name, hold)
        app = open_page("prune", run=run.id)
        shown = text_of(app) + "".join(p.proto.text for p in app.get("progress"))
        assert [w for w in words if w not in shown] == []
        assert {"Cancel", "Resume"} & set(labels(app)) == ({offered} if offered else set())
        assert "Start" in labels(app)  # a next run can be set up meanwhile
        downloads = app.get("download_button")
        assert len(downloads) == (name == "finished")

    def test_a_run_at_work_shows_its_layers_and_what_it_answers(
        self, open_page: OpenPage, store: RunStore, hold: ExitStack
    ) -> None:
        run = helpers.write_run(store, "running", hold)
        app = open_page("prune", run=run.id)
        parts = [part.proto.json for part in app.get("bidi_component")]
        assert any("The network's layers: 7 of 21 are done" in part for part in parts)
        assert "**What it answers so far**: 8 of 8 as the dense network does" in text_of(app)
        assert "the others are still dense" in text_of(app)
        assert sum("% sure" in part for part in parts) == 1

    def test_while_all_layers_move_together_none_is_said_to_be_dense(
        self, open_page: OpenPage, store: RunStore, hold: ExitStack
    ) -> None:
        run = helpers.write_run(store, "running", hold)
        for index in range(7, len(helpers.PRUNED)):
            run.append(*helpers.site_events(index))
        run.append(JointStarted(captured=["fc"], count=1000, epochs=4, losses=[0.04], scale=[1.0]))
        shown = text_of(open_page("prune", run=run.id))
        assert "Test pictures, with all layers pruned, one by one." in shown

    def test_waiting_run_shows_its_place(self, open_page: OpenPage, store: RunStore, engine: ModuleType) -> None:
        release = threading.Event()
        engine.execute = lambda run, device: (release.wait(60), helpers.slow_execute(run, pause=0))[1]
        open_page("overview")
        first, second, third = (state.jobs().submit(RunConfig()) for _ in range(3))
        try:
            assert "It is number 2 in line" in text_of(open_page("prune", run=third))
        finally:
            release.set()
        assert [until_ended(store.get(run)) for run in (first, second, third)] == ["finished"] * 3

    def test_cancel_then_resume(self, open_page: OpenPage, store: RunStore, engine: ModuleType) -> None:
        engine.execute = lambda run, device: helpers.slow_execute(run, pause=0.02)
        open_page("overview")
        run = store.get(state.jobs().submit(RunConfig()))
        app = open_page("prune", run=run.id)
        button(app, "Cancel").click().run()
        assert until_ended(run) == "cancelled"
        engine.execute = lambda run, device: helpers.slow_execute(run, pause=0)
        app.run()
        button(app, "Resume").click().run()
        assert until_ended(run) == "finished"
        assert not run.cancel_requested()

    def test_unknown_run_leaves_the_form(self, open_page: OpenPage) -> None:
        app = open_page("prune", run="nonsense")
        assert "There is no run 'nonsense'" in text_of(app)
        assert "Start" in labels(app)

    def test_crash_of_the_engine_is_shown(self, open_page: OpenPage, store: RunStore, engine: ModuleType) -> None:
        def crash(run: Run, device: str) -> None:
            raise RuntimeError("the sky fell")

        engine.execute = crash
        app = open_page("prune")
        button(app, "Start").click().run()
        (run,) = store.list()
        assert until_ended(run) == "failed"
        assert isinstance(run.events()[0][-1], RunFailed)
        app.run()
        assert "the sky fell" in text_of(app)
        assert "Resume" in labels(app)

    def test_recorded_run_when_there_is_none(
        self, open_page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        helpers.write_run(RunStore(tmp_path / "recorded"), "finished")
        app = open_page("prune")
        assert "A recorded run" in text_of(app)
        assert "Accuracy: 93.31 %" in text_of(app)
        assert "a recorded run" in text_of(open_page("overview"))


class TestForm:
    def test_start_carries_every_setting(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_page("prune")
        app.selectbox("form.prune.pattern").set_value("1:8")
        app.selectbox("form.prune.mask").set_value("wanda")
        app.number_input("form.prune.k_steps").set_value(5)
        app.number_input("form.prune.ridge").set_value(2.5)
        app.number_input("form.num_calibration").set_value(64)
        app.number_input("form.num_held_back").set_value(16)
        app.number_input("form.prune.solver.rtol").set_value(0.05)
        app.text_input("form.prune.device").set_value("cpu")
        app.text_area("form.prune.overrides").set_value("layer1.0.conv1 = dense\n\nfc=2:4")
        app.run()
        assert "5. `operation5` activation" in text_of(app)
        button(app, "Start").click().run()
        config = store.list()[0].config()
        assert config.prune.pattern == NM(n=1, m=8)
        assert (config.prune.mask, config.prune.k_steps, config.num_calibration) == ("wanda", 5, 64)
        assert (config.prune.ridge, config.num_held_back) == (2.5, 16)
        assert config.prune.overrides == {"layer1.0.conv1": Dense(), "fc": NM(n=2, m=4)}
        assert (config.prune.solver.rtol, config.prune.device, config.checkpoint) == (0.05, "cpu", None)

    def test_images_that_are_too_few_for_a_layer_are_warned_of(self, open_page: OpenPage) -> None:
        app = open_page("prune")
        assert not app.warning
        app.number_input("form.num_calibration").set_value(9).run()
        assert [w.value for w in app.warning] == [
            r"A row of layer\_1\* has 72 weights to fit, but so few images give only 9 samples of its input."
        ]
        assert "Start" in labels(app)
        for page in ("compare", "study"):
            app = open_page("overview")
            app.session_state["batch.images" if page == "compare" else "study.images"] = ["9"]
            app.query_params["batch"] = "new"
            app.switch_page(f"../pages/{page}.py").run()
            assert "only 9 samples" in text_of(app)

    def test_default_form_is_the_default_config(self, open_page: OpenPage, store: RunStore) -> None:
        button(open_page("prune"), "Start").click().run()
        assert store.list()[0].config() == RunConfig()

    @pytest.mark.parametrize(
        ("widget", "key", "value", "sentence"),
        [
            ("number_input", "prune.k_steps", -1, "K must be at least 0"),
            ("number_input", "num_calibration", 0, "Calibration images must be at least 1"),
            ("number_input", "prune.solver.rtol", 2.0, "Residual to stop at must be below 1"),
            ("text_input", "prune.device", "tpu", "Unknown device 'tpu'"),
            ("text_area", "prune.overrides", "fc 2:4", "'fc 2:4' is not of the form SITE=PATTERN"),
        ],
    )
    def test_bad_input_gives_a_sentence_and_no_start(
        self, open_page: OpenPage, widget: str, key: str, value: object, sentence: str
    ) -> None:
        app = open_page("prune")
        getattr(app, widget)(f"form.{key}").set_value(value)
        app.run()
        assert sentence in app.error[0].value.replace("\\", "")
        assert button(app, "Start").disabled
        assert "It cannot start" in text_of(app)

    @pytest.mark.parametrize(
        ("key", "typed", "sentence"),
        [
            ("prune.pattern", "4:4", "would keep every weight"),
            ("prune.pattern", "lots", "Unknown pattern 'lots'"),
            ("prune.mask", "guess", "Unknown mask method 'guess'"),
            ("model", "timm:nonsense", "There is no model"),
        ],
    )
    def test_bad_typed_option_gives_a_sentence(self, open_page: OpenPage, key: str, typed: str, sentence: str) -> None:
        app = open_page("overview")
        app.session_state[f"form.{key}"] = typed  # AppTest cannot type an option that is not there
        app.switch_page("../pages/prune.py").run()
        assert sentence in app.error[0].value.replace("\\", "")
        assert button(app, "Start").disabled
        assert app.session_state[f"form.{key}"] == typed

    def test_what_was_typed_outlives_a_change_of_page(self, open_page: OpenPage) -> None:
        app = open_page("prune")
        app.number_input("form.prune.k_steps").set_value(7).run()
        app.switch_page("../pages/overview.py").run()
        app.switch_page("../pages/prune.py").run()
        assert app.number_input("form.prune.k_steps").value == 7

    def test_settings_of_a_run_can_be_used_again(self, open_page: OpenPage, store: RunStore) -> None:
        config = RunConfig.model_validate({"num_calibration": 33, "prune": {"pattern": "3:8", "update": "none"}})
        run = helpers.write_run(store, "failed", config=config)
        app = open_page("prune", run=run.id)
        app.number_input("form.num_calibration").set_value(99).run()
        button(app, "Use these settings for a new run").click().run()
        assert app.number_input("form.num_calibration").value == 33
        assert app.selectbox("form.prune.pattern").value == "3:8"
        assert "run" not in app.query_params
