"""The app with `SNOWS_PUBLIC=1`: what visitors are offered, and that none sees or reads what is another's or the machine's."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import streamlit as st
from safetensors.torch import save
from streamlit.testing.v1 import AppTest

from app import visitor
from app.work import public
from snows.config import InputError, RunConfig
from snows.runs.latency import Timing
from snows.runs.store import RunStore
from snows.sources import models, uploads
from tests.app import helpers
from tests.app.conftest import ROOT, OpenPage
from tests.app.tables import test_solver
from tests.app.tables.test_speed import MEASURED, until
from tests.app.test_pages import button, labelled, labels, text_of

pytestmark = pytest.mark.slow
ANNA, BERT = "A" * 43, "B" * 43


@pytest.fixture(autouse=True)
def is_public(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SNOWS_PUBLIC", "1")
    monkeypatch.setenv("SNOWS_WORKERS", "0")  # what is started waits, to be looked at
    monkeypatch.setattr(type(st.context), "cookies", {})  # there is no browser
    yield
    st.set_option("client.showErrorDetails", "full")  # the process's


def visit(open_page: OpenPage, who: str, page: str, **address: str) -> AppTest:
    """A page, as a visitor with that key opens it."""
    app = open_page("overview")
    app.session_state["visitor"] = who
    for name, value in address.items():
        app.query_params[name] = value
    return app.switch_page(f"../pages/{page}.py").run()


def inputs(app: AppTest) -> set[str]:
    return {element.label for element in (*app.text_input, *app.text_area, *app.selectbox, *app.get("file_uploader"))}


def test_a_visitor_is_offered_what_is_here_and_told_the_limits(open_page: OpenPage) -> None:
    app = visit(open_page, ANNA, "prune")
    assert "A run may take 12,000 images, a network of 5,000,000 parameters, 4 GB of memory and 5 minutes" in text_of(app)
    assert labelled(app.selectbox, "Images").options == ["Fashion-MNIST"]
    fields = inputs(app)
    assert not {field for field in fields if "path" in field or field in ("Device", "Begin with")}
    assert {field for field in fields if field.startswith(("Checkpoint", "Your own: drop pictures", "A mask of your own"))}
    assert "A run may take" in text_of(visit(open_page, ANNA, "compare", batch="new"))
    runs = visit(open_page, ANNA, "runs")
    assert "A run may take" in text_of(runs)
    assert "Import" not in labels(runs)
    assert not {field for field in inputs(runs) if "path" in field or "Archive" in field}


def test_without_it_the_fields_are_there(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the test above looks for must be what the app has.
    monkeypatch.setenv("SNOWS_PUBLIC", "0")
    app = open_page("prune")
    assert "A run may take" not in text_of(app)
    assert len([field for field in inputs(app) if "path" in field or field in ("Device", "Begin with")]) == 4
    assert "Import" in labels(open_page("runs"))


def test_nobody_sees_anothers_run(open_page: OpenPage, store: RunStore) -> None:
    app = visit(open_page, ANNA, "prune")
    button(app, "Start").click().run()
    (run,) = store.list()
    assert run.state() == "queued"
    assert run.owner() not in ("", ANNA)  # the key itself is on no disk
    helpers.finish(run)
    labels_of_run = run.labels().model_copy(update={"name": "a secret plan", "tags": ("hush",), "compare": True})
    run.save_labels(labels_of_run)

    def shown(app: AppTest) -> str:
        texts = [text_of(app), str([box.options for box in (*app.selectbox, *app.multiselect)])]
        return "\n".join(texts + [frame.value.to_csv() for frame in app.dataframe])

    looks = [(page, {"run": run.id}) for page in ("runs", "prune", "layers", "convergence", "attention", "study", "overview")]
    for page, address in [*looks, ("compare", {"runs": run.id}), ("compare", {"batch": "marked"})]:
        others = shown(visit(open_page, BERT, page, **address))
        assert "secret plan" not in others, (page, address)
        assert "hush" not in others, (page, address)
    assert "a secret plan" in shown(visit(open_page, ANNA, "runs"))
    assert "a secret plan" in shown(visit(open_page, ANNA, "prune", run=run.id))
    assert "There is no run" in text_of(visit(open_page, BERT, "prune", run=run.id))


def test_an_address_opens_no_file(
    open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others = public.home(store.root, "another")
    weights = uploads.keep_checkpoint(
        others, io.BytesIO(save(models.load("resnet20-fashion").module.state_dict())), "a.safetensors"
    )
    opened: list[Any] = []
    outline = models.outline
    monkeypatch.setattr(models, "outline", lambda *args, **more: opened.append(args) or outline(*args, **more))
    for address, sentence in (
        ({"checkpoint": "/etc/passwd"}, "drop it under “Your own weights”"),
        ({"checkpoint": str(weights)}, "drop it under “Your own weights”"),
        ({"checkpoint": f"brought:{weights.parent.name}/{weights.name}"}, "drop it under “Your own weights”"),
        ({"data": "/etc"}, "pictures that you bring"),
        ({"data": "cifar-10"}, "pictures that you bring"),
        ({"mask": "/root/x.safetensors"}, "A mask is read only"),
        ({"model": "timm:vit_giant_patch14_224"}, "Nothing is downloaded here"),
        ({"model": "../../README", "pattern": "budget 10%"}, "Nothing is downloaded here"),
        ({"device": "cuda:5"}, "must be auto"),
        ({"num_evaluation": "50000"}, "a run may take 12,000"),
    ):
        st.cache_data.clear()
        app = visit(open_page, ANNA, "prune", **address)
        assert sentence in text_of(app), address
        assert button(app, "Start").disabled, address
    assert not opened
    assert not store.list()


def test_what_is_brought_is_its_visitors(open_page: OpenPage, store: RunStore) -> None:
    content = save(models.load("resnet20-fashion").module.state_dict())
    app = visit(open_page, ANNA, "prune")
    uploader = next(one for one in app.get("file_uploader") if one.label == "Checkpoint")
    uploader.set_value(("mine.safetensors", content, "application/octet-stream")).run()
    path = Path(app.session_state["form.checkpoint"])
    assert path.is_relative_to(store.root / ".visitors")
    assert not button(app, "Start").disabled
    button(app, "Start").click().run()
    (run,) = store.list()
    assert run.config().checkpoint == str(path)
    assert path.parents[2].name == run.owner()
    assert not (store.root / ".uploads").exists()


def test_uploads_have_their_room(open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "room_for_uploads", lambda of: 1000)
    app = visit(open_page, ANNA, "prune")
    uploader = next(one for one in app.get("file_uploader") if one.label == "Checkpoint")
    content = save(models.load("resnet20-fashion").module.state_dict())
    uploader.set_value(("mine.safetensors", content, "application/octet-stream")).run()
    assert "a checkpoint may have 0.001 MB" in text_of(app)
    assert not app.session_state["form.checkpoint"]


def test_a_start_over_the_limit_is_a_sentence(open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWS_PUBLIC_RUNS", "1")
    for _ in range(2):
        app = visit(open_page, ANNA, "prune")
        button(app, "Start").click().run()
    assert "a visitor may have 1" in text_of(app)
    button(visit(open_page, BERT, "prune"), "Start").click().run()
    assert len(store.list()) == 2


class TestWhatIsComputedOnAClick:
    """Each takes 45 s, by a clock of the test's; a visitor has one minute in an hour, so the third is refused."""

    @pytest.fixture(autouse=True)
    def turns(self, monkeypatch: pytest.MonkeyPatch) -> public.Turns:
        monkeypatch.setenv("SNOWS_PUBLIC_COMPUTING", "1")
        self.seconds, self.computed = 0.0, list[object]()
        turns = public.Turns(lambda: self.seconds)
        monkeypatch.setattr(visitor, "_turns", lambda: turns)
        return turns

    def compute(self, *what: object) -> Any:
        self.computed.append(what)
        self.seconds += 45
        return test_solver.TestChecks.PROBLEM

    REFUSAL = "took 1 min of the last hour, which is what a visitor may have"

    @pytest.fixture
    def recorded(self, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> str:
        """A run that everybody sees."""
        run = helpers.write_run(store, "finished")
        monkeypatch.setattr("app.state.recorded_runs", lambda: store)
        return run.id

    def test_checks_and_descents(self, open_page: OpenPage, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.state.inspection", lambda run: SimpleNamespace(problem=self.compute))
        app = visit(open_page, ANNA, "convergence", run=recorded)
        assert "may take 1 min of an hour: 1 min 00 s left" in text_of(app)
        app.button("check-products").click().run()
        assert "15 s left" in text_of(app.run())
        app.button("check-valley").click().run()
        assert len(self.computed) == 2
        assert not app.error
        app.button("check-solves").click().run()
        assert self.REFUSAL in app.error[0].value
        assert "none left" in text_of(app.run())

        def descents(inspection: object, *what: object) -> Iterator[Any]:
            self.compute(*what)
            yield from test_solver.TestDescents.POINTS

        monkeypatch.setattr("snows.measures.descents.descents", descents)
        app.button("descent-begin").click().run()
        until(app, lambda app: any(self.REFUSAL in error.value for error in app.error))
        assert len(self.computed) == 2
        # Another visitor has minutes of their own.
        other = visit(open_page, BERT, "convergence", run=recorded)
        other.button("check-solves").click().run()
        assert not other.error
        assert len(self.computed) == 3
        # And after an hour there are new ones.
        self.seconds += 3601
        app.button("check-solves").click().run()
        assert len(self.computed) == 4

    def test_timings(self, open_page: OpenPage, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def timed(what: object, check: Callable[[], None]) -> Iterator[Timing]:
            self.compute(what)
            yield from MEASURED

        monkeypatch.setattr("snows.runs.latency.of_run", timed)
        monkeypatch.setattr("snows.runs.latency.expected", timed)
        app = visit(open_page, ANNA, "prune", run=recorded)
        app.session_state[f"speed-{recorded}"] = True
        app.run()
        for label in ("Time it", "Time it again"):
            button(app, label).click().run()
            until(app, lambda app: "Cancel" not in labels(app))
        assert len(self.computed) == 2
        form = visit(open_page, ANNA, "prune", pattern="width 50%")
        assert "none left" in text_of(form)
        button(form, "How much faster here?").click().run()
        until(form, lambda app: any(self.REFUSAL in error.value for error in app.error))
        assert len(self.computed) == 2

    def test_files(self, open_page: OpenPage, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.take_along.exported", self.compute)
        made: dict[str, Callable[[], object]] = {}
        offer = st.download_button

        def download_button(label: str, data: Any, *args: Any, **more: Any) -> bool:
            made[label] = data
            return offer(label, data, *args, **more)

        monkeypatch.setattr(st, "download_button", download_button)

        def downloads(app: AppTest) -> dict[str, bool]:
            return {one.proto.label: one.proto.disabled for one in app.get("download_button")}

        app = visit(open_page, ANNA, "runs", run=recorded)
        assert not downloads(app)["Masks"]
        made["Config"]()
        made["ONNX"]()
        made["For the hub"]()
        with pytest.raises(InputError, match=self.REFUSAL):
            made["Packed"]()
        assert len(self.computed) == 2
        again = visit(open_page, ANNA, "runs", run=recorded)
        assert all(downloads(again).values())
        assert self.REFUSAL in next(one.proto.help for one in again.get("download_button") if one.proto.label == "Masks")

    def test_without_it_there_is_no_limit(
        self, open_page: OpenPage, recorded: str, monkeypatch: pytest.MonkeyPatch, turns: public.Turns
    ) -> None:
        monkeypatch.setenv("SNOWS_PUBLIC", "0")
        monkeypatch.setattr("app.state.inspection", lambda run: SimpleNamespace(problem=self.compute))
        app = open_page("convergence", run=recorded)
        app.button("check-all").click().run()
        assert len(self.computed) == 4
        assert not app.error
        assert "min of an hour" not in text_of(app)
        assert not turns._spent


def test_saved_views_are_their_visitors(open_page: OpenPage) -> None:
    app = visit(open_page, ANNA, "runs")
    labelled(app.text_input, "Name of what is shown now").input("mine alone").run()
    button(app, "Save this view").click().run()
    assert any(app.get("page_link") and "mine alone" in link.proto.label for link in app.get("page_link"))
    others = visit(open_page, BERT, "runs")
    assert not any("mine alone" in link.proto.label for link in others.get("page_link"))


def test_a_key_that_is_none_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for brought in ("", "short", "../" * 20, "a" * 44):
        monkeypatch.setattr(type(st.context), "cookies", {visitor._COOKIE: brought})
        st.session_state.clear()
        assert len(visitor._key()) == 43
        assert visitor._key() != brought
        st.session_state.clear()
    monkeypatch.setattr(type(st.context), "cookies", {visitor._COOKIE: ANNA})
    assert visitor._key() == ANNA
    st.session_state.clear()


def test_a_fault_of_the_program_tells_nothing_of_the_machine(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault() -> None:
        raise RuntimeError("/home/operator/secret")

    monkeypatch.setattr("app.visitor.limits", fault)
    app = visit(open_page, ANNA, "prune")
    assert app.exception
    assert "secret" not in str(app.exception[0].value) + str(app.exception[0].stack_trace)


def test_a_word_that_may_have_meant_public_shows_nothing(
    open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNOWS_PUBLIC", "yes")
    store.create(RunConfig())
    app = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60).run()
    assert "SNOWS_PUBLIC is 1" in app.exception[0].value
    assert not app.title
