"""The table of runs, what can be had of one, and the page in every state."""

import io
import json
import math
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from streamlit.testing.v1 import AppTest

from app import state, take_along
from app.tables import runs
from app.work import views
from snows.config import NM, RunConfig
from snows.events import Phase
from snows.packed import read_packed
from snows.runs import archive, formats
from snows.runs.store import Labels, Run, RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage
from tests.app.test_pages import button, labelled, labels, text_of, until_ended


@pytest.fixture
def recorded(tmp_path: Path) -> Run:
    return helpers.write_run(RunStore(tmp_path / "recorded"), "finished", config=RunConfig(name="Recorded example"))


def config(pattern: str = "2:4", **prune: object) -> RunConfig:
    return RunConfig.model_validate({"prune": {"pattern": pattern, **prune}})


class TestTable:
    def test_a_finished_run(self, store: RunStore) -> None:
        run = helpers.write_run(store, "finished", config=config("1:8", k_steps=5))
        run.save_labels(Labels(name="best", tags=("talk", "june"), compare=True))
        (row,) = runs.table([run]).to_dict("records")
        assert row["made"] == pd.Timestamp.fromtimestamp(int(run.events()[0][0].time))
        del row["made"]
        assert row == {
            "id": run.id,
            "compare": True,
            "name": "best",
            "network": "resnet20-fashion",
            "pattern": "1:8",
            "method": "SNOWS, refined mask, K = 5",
            "state": "finished",
            "accuracy": pytest.approx(0.9331),
            "accuracy_masked": pytest.approx(0.1124),
            "change": pytest.approx(-0.0064),
            "agreement": pytest.approx(0.9702),
            "density": pytest.approx(0.2521),
            "seconds": 28.1,
            "divergence": pytest.approx(math.nan, nan_ok=True),
            "packed_bytes": pytest.approx(math.nan, nan_ok=True),
            "num_products": 1140,
            "k": 5,
            "images": 512,
            "seed": 0,
            "tags": ["talk", "june"],
            "recorded": False,
        }

    def test_order_states_and_what_is_not_measured(self, store: RunStore, recorded: Run, hold: ExitStack) -> None:
        given = [helpers.write_run(store, name, hold) for name in ("running", "failed", "queued", "interrupted", "cancelled")]
        given[0].save_site(0, torch.ones(2), torch.ones(2, dtype=torch.bool))
        table = runs.table(given, [recorded])
        assert table["id"].tolist() == [run.id for run in (*given, recorded)]
        assert table["state"].tolist() == ["running, 1 done", "failed", "queued", "interrupted", "cancelled", "finished"]
        assert table["recorded"].tolist() == [False] * 5 + [True]
        assert table["accuracy"].isna().tolist() == [True] * 5 + [False]
        assert table["name"].tolist() == [""] * 5 + ["Recorded example"]
        assert list(runs.table([]).columns) == list(table.columns)

    def test_no_labels_no_accuracy(self, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        run.save_metrics(helpers.METRICS | {"accuracy": None, "accuracy_dense": None, "accuracy_masked": None})
        (row,) = runs.table([run]).to_dict("records")
        assert math.isnan(row["accuracy"])
        assert math.isnan(row["change"])
        assert math.isnan(row["accuracy_masked"])
        assert row["agreement"] == pytest.approx(0.9702)

    @pytest.mark.parametrize(
        ("name", "content"),
        [("config.json", '{"unheard_of": 1}'), ("label.json", "{"), ("metrics.json", "{")],
    )
    def test_what_cannot_be_read_is_a_row(self, store: RunStore, name: str, content: str) -> None:
        run = helpers.write_run(store, "finished")
        (run.path / name).write_text(content)
        (row,) = runs.table([run]).to_dict("records")
        assert (row["id"], row["state"], row["network"]) == (run.id, runs.UNREADABLE, "")

    @pytest.mark.parametrize("content", ["{\n", '{"kind": "Phase"}\n'])
    def test_a_damaged_log_leaves_the_rest_of_the_row(self, store: RunStore, content: str) -> None:
        run = helpers.write_run(store, "finished")
        (run.path / "events.jsonl").write_text(content)
        (row,) = runs.table([run]).to_dict("records")
        assert (row["id"], row["state"], row["network"]) == (run.id, "interrupted", "resnet20-fashion")

    @pytest.mark.parametrize(
        ("given", "found"),
        [
            ({}, "abcd"),
            ({"words": "1:8"}, "b"),
            ({"words": "VIT least"}, "c"),
            ({"words": "talk"}, "ab"),
            ({"words": "best talk"}, "a"),
            ({"words": "(["}, ""),  # words, not a pattern
            ({"states": ["failed", "cancelled"]}, "cd"),
            ({"tags": ["talk"]}, "ab"),
            ({"tags": ["talk", "june"]}, "a"),
            ({"marked": True}, "b"),
            ({"words": "resnet20", "states": ["finished"], "tags": ["talk"], "marked": True}, "b"),
            ({"marked": True, "states": ["failed"]}, ""),
        ],
    )
    def test_filters(self, store: RunStore, given: dict, found: str) -> None:
        made = {
            "a": helpers.write_run(store, "finished"),
            "b": helpers.write_run(store, "finished", config=config("1:8")),
            "c": helpers.write_run(
                store, "failed", config=RunConfig.model_validate({"model": "vit-fashion", "prune": {"update": "least-squares"}})
            ),
            "d": helpers.write_run(store, "cancelled"),
        }
        made["a"].save_labels(Labels(name="Best", tags=("talk", "june")))
        made["b"].save_labels(Labels(tags=("talk",), compare=True))
        names = {run.id: name for name, run in made.items()}
        shown = runs.filtered(runs.table(made.values()), **given)
        assert "".join(names[run_id] for run_id in shown["id"]) == found
        assert shown.index.tolist() == list(range(len(found)))

    def test_runs_are_put_together_in_the_order_of_their_newest(self, store: RunStore) -> None:
        for pattern in ("1:8", "1:4", "1:8"):
            helpers.write_run(store, "finished", config=config(pattern))
        table = runs.table(store.list())
        groups = runs.grouped(table, "pattern")
        assert [(common, rows["pattern"].tolist(), rows.index.tolist()) for common, rows in groups] == [
            ("1:8", ["1:8", "1:8"], [0, 1]),
            ("1:4", ["1:4"], [0]),
        ]
        (whole,) = runs.grouped(table)
        assert whole[0] == ""
        assert whole[1] is table
        assert [common for common, _ in runs.grouped(table, "state")] == ["finished"]

    def test_a_row_that_was_read_before_follows_its_run(self, store: RunStore, hold: ExitStack) -> None:
        run = helpers.write_run(store, "interrupted")

        def row() -> dict:
            (row,) = runs.table([run]).to_dict("records")
            return row

        assert (row()["state"], row()["name"]) == ("interrupted", "")
        run.save_labels(Labels(name="tried again", tags=("late",)))
        assert (row()["name"], row()["tags"]) == ("tried again", ["late"])
        held = hold.enter_context(run.queue())
        assert row()["state"] == "queued"
        run.append(Phase(name="prune"))
        assert row()["state"] == "running, 0 done"
        run.save_site(0, torch.ones(2), torch.ones(2, dtype=torch.bool))
        assert row()["state"] == "running, 1 done"
        run.save_metrics(helpers.METRICS)
        assert row()["accuracy"] == pytest.approx(helpers.METRICS["accuracy"])
        held.cancel()
        assert row()["state"] == "cancelled"

    def test_no_runs_can_be_filtered(self) -> None:
        assert runs.filtered(runs.table([]), "x", ["failed"], ["y"], True).empty


class TestDownloads:
    def test_all_there_is_of_a_finished_run(self, store: RunStore, tmp_path: Path) -> None:
        run = helpers.write_run(store, "finished", config=config("1:4"))
        weights = {site: torch.tensor([[0.0, 1.0]]) for site in helpers.SITES}
        run.save_weights(weights)
        files = {file.label: file for file in take_along.downloads(run)}
        assert [file.obstacle for file in files.values()] == [""] * 10
        assert {label: file.file_name for label, file in files.items()} == {
            "Weights": f"{run.id}.safetensors",
            "Packed": f"{run.id}-packed.safetensors",
            "Packed, float16": f"{run.id}-float16.safetensors",
            "ONNX": f"{run.id}.onnx",
            "For the hub": f"{run.id}-hub.zip",
            "Masks": f"{run.id}-masks.safetensors",
            "Config": f"{run.id}-config.json",
            "Events": f"{run.id}-events.jsonl",
            "Report": f"{run.id}.html",
            "Whole run": f"{run.id}.zip",
        }
        assert load(files["Weights"].content()).keys() == weights.keys()
        packed = tmp_path / "packed.safetensors"
        packed.write_bytes(files["Packed, float16"].content())
        assert torch.equal(read_packed(packed)["fc.weight"], weights["fc.weight"].half())
        assert formats.read(files["Config"].content()) == run.config()
        assert files["Events"].content() == (run.path / "events.jsonl").read_bytes()
        assert b"1:4" in files["Report"].content()
        with_masks = load(files["Masks"].content())
        assert with_masks.keys() == set(helpers.PRUNED)
        assert with_masks["fc.weight"].tolist() == [[False, True]]
        elsewhere = RunStore(store.root.parent / "elsewhere")
        assert archive.import_run(elsewhere, io.BytesIO(files["Whole run"].content())).config() == run.config()

    def test_a_folder_for_the_hub_comes_as_a_zip(self) -> None:
        recorded = RunStore(Path(__file__).parents[3] / "assets" / "runs")
        (run,) = (run for run in recorded.list() if run.config().model == "vit-fashion")
        (file,) = (file for file in take_along.downloads(run) if file.label == "For the hub")
        with zipfile.ZipFile(io.BytesIO(file.content())) as folder:
            assert {name for name in folder.namelist() if not name.endswith("/")} == {
                f"{run.id}/{name}" for name in ("README.md", "config.json", "model.safetensors", "packed.safetensors")
            }
            assert "python -m snows prune --model vit-fashion" in folder.read(f"{run.id}/README.md").decode()

    def test_masks_can_be_the_mask_of_a_new_run(self, store: RunStore, tmp_path: Path) -> None:
        from snows.method.sparsity import read_mask_file

        run = helpers.write_run(store, "finished")
        run.save_weights({site: torch.tensor([[0.0, 1.0]]) for site in helpers.SITES})
        path = tmp_path / "masks.safetensors"
        path.write_bytes(take_along.masks_file(run))
        assert read_mask_file(path)["fc.weight"].tolist() == [[False, True]]

    def test_what_is_not_there_yet_has_a_reason(self, store: RunStore) -> None:
        run = store.create(RunConfig())
        obstacles = {file.label: file.obstacle for file in take_along.downloads(run)}
        exports = ["Packed", "Packed, float16", "ONNX", "For the hub"]
        assert [label for label, why in obstacles.items() if why] == ["Weights", *exports, "Masks", "Events"]
        run.save_site(0, torch.ones(2), torch.ones(2, dtype=torch.bool))
        assert {file.label: file.obstacle for file in take_along.downloads(run)}["Masks"] == ""


class TestOneChange:
    def test_only_that_changes(self) -> None:
        before = RunConfig.model_validate({"name": "mine", "prune": {"pattern": "1:8", "overrides": {"fc": "dense"}}})
        after = runs.with_change(before, "prune.solver.rtol", "0.01")
        assert after.prune.solver.rtol == 0.01
        assert runs.with_change(after, "prune.solver.rtol", 0.1) == before.model_copy(update={"name": ""})
        assert runs.with_change(before, "prune.pattern", "2:4").prune.pattern == NM(n=2, m=4)
        assert runs.setting(before, "prune.solver.rtol") == 0.1

    @pytest.mark.parametrize(("path", "value"), [("prune.k_steps", "many"), ("prune.pattern", "4:4"), ("prune.seed", "-1")])
    def test_the_whole_is_checked(self, path: str, value: str) -> None:
        with pytest.raises(ValidationError):
            runs.with_change(RunConfig(), path, value)


def ids(app: AppTest, place: int = 0) -> list[str]:
    return app.dataframe[place].value["id"].tolist()


def text_input(app: AppTest, label: str):
    return next(t for t in app.text_input if t.label == label)


@pytest.mark.slow
class TestPage:
    def test_empty_shows_the_recorded_run(self, open_page: OpenPage, recorded: Run) -> None:
        app = open_page("runs")
        assert ids(app) == [recorded.id]
        assert "Tick the box" in text_of(app)

    def test_nothing_at_all(self, open_page: OpenPage) -> None:
        assert "There is no run yet" in text_of(open_page("runs"))

    def test_of_many_the_newest_are_shown_and_all_where_asked_for(
        self, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = [helpers.write_run(store, name) for name in ("finished", "failed", "finished", "cancelled")]
        app = open_page("runs")
        assert len(ids(app)) == 4
        assert "Show all" not in labels(app)
        monkeypatch.setattr(runs, "MOST", 2)
        app = open_page("runs", run=made[0].id)
        assert ids(app) == [made[3].id, made[2].id]
        assert "The newest 2 of 4 runs are shown" in text_of(app)
        assert button(app, "Set it up")  # what the address names is looked into, shown or not
        labelled(app.selectbox, "Group by").set_value("state").run()
        assert [ids(app, place) for place in range(len(app.dataframe))] == [[made[3].id], [made[2].id]]
        assert "**finished** · 2 runs" in text_of(app)
        labelled(app.selectbox, "Group by").set_value("").run()
        labelled(app.text_input, "Find").set_value("resnet20").run()  # all of them, still
        labelled(app.toggle, "Show all").set_value(True).run()
        assert set(ids(app)) == {run.id for run in made}
        assert "All 4 runs are shown." in text_of(app)
        labelled(app.pills, "State").set_value(["failed"]).run()
        assert ids(app) == [made[1].id]
        assert "Show all" not in labels(app)

    def test_a_table_of_all_runs_may_be_large(self, open_page: OpenPage) -> None:
        open_page("runs")
        assert pd.options.styler.render.max_elements > 50_000 * len(runs.COLUMNS)  # pandas styles 262,144 cells unasked

    def test_lists_all_states_and_survives_what_cannot_be_read(
        self, open_page: OpenPage, store: RunStore, hold: ExitStack
    ) -> None:
        states = ["finished", "failed", "cancelled", "interrupted", "running", "queued"]
        for name in states:
            helpers.write_run(store, name, hold)
        foreign = store.create(RunConfig())
        (foreign.path / "config.json").write_text('{"unheard_of": 1}')
        table = open_page("runs").dataframe[0].value
        assert set(table["state"].str.partition(",")[0]) == {*states, "unreadable"}
        app = open_page("runs", run=foreign.id)
        assert "another version" in text_of(app)
        assert "Yes, delete" in labels(app)

    @pytest.mark.slow
    @pytest.mark.parametrize("page", ["runs", "prune", "layers", "convergence", "attention", "compare", "study"])
    def test_a_run_of_a_newer_version_is_a_sentence_on_each_page(self, open_page: OpenPage, store: RunStore, page: str) -> None:
        helpers.write_run(store, "finished")
        run = helpers.write_run(store, "finished")
        path = run.path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "unheard_of": 1}))
        app = open_page(page, run=run.id)
        assert not app.exception
        if page not in ("compare", "study"):  # which show what can be read
            assert "newer version of this program: its folder has form 99" in text_of(app)

    def test_filters_by_words_state_tag_and_mark(self, open_page: OpenPage, store: RunStore) -> None:
        best, other = helpers.write_run(store, "finished", config=config("1:8")), helpers.write_run(store, "failed")
        best.save_labels(Labels(name="best", tags=("talk",), compare=True))
        app = open_page("runs")
        assert set(ids(app)) == {best.id, other.id}
        labelled(app.text_input, "Find").set_value("1:8").run()
        assert ids(app) == [best.id]
        labelled(app.text_input, "Find").set_value("nothing like that").run()
        assert "No run is like that" in text_of(app)
        labelled(app.text_input, "Find").set_value("")
        labelled(app.multiselect, "Tags").set_value(["talk"])
        labelled(app.toggle, "Marked only").set_value(True).run()
        assert ids(app) == [best.id]
        assert app.query_params == {"tag": "talk", "marked": "true"}
        labelled(app.toggle, "Marked only").set_value(False)
        labelled(app.button_group, "State").set_value(["finished", "failed"]).run()
        assert app.query_params == {"tag": "talk", "state": ["finished", "failed"]}

    def test_runs_are_put_together_and_ticked_across_tables(self, open_page: OpenPage, store: RunStore) -> None:
        first, second = (helpers.write_run(store, "finished", config=config(pattern)) for pattern in ("1:4", "1:8"))
        app = open_page("runs")
        labelled(app.selectbox, "Group by").set_value("pattern").run()
        assert app.query_params["group"] in ("pattern", ["pattern"])
        assert [frame.value["id"].tolist() for frame in app.dataframe[:2]] == [[second.id], [first.id]]
        assert "**1:8** · 1 run · best accuracy 93.31 %" in text_of(app)
        app.query_params["run"] = [first.id, second.id]
        app.run()
        assert "2 runs ticked" in text_of(app)

    def test_columns_of_ones_choice(self, open_page: OpenPage, store: RunStore) -> None:
        helpers.write_run(store, "finished", config=config(k_steps=5))
        app = open_page("runs")
        assert "k" not in app.dataframe[0].proto.column_order
        labelled(app.button_group, "Columns of the table").set_value(["method", "k", "accuracy"]).run()
        assert list(app.dataframe[0].proto.column_order) == ["method", "k", "accuracy"]
        assert app.query_params["column"] == ["method", "k", "accuracy"]
        assert app.dataframe[0].value["k"].tolist() == [5]

    def test_a_view_is_saved_and_found_again(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished", config=config("1:8"))
        app = open_page("runs")
        assert "None yet. A view is" in text_of(app)
        labelled(app.text_input, "Find").set_value("1:8").run()
        labelled(app.selectbox, "Group by").set_value("network").run()
        labelled(app.text_input, "Name of what is shown now").set_value("Best *ones*").run()
        button(app, "Save this view").click().run()
        assert views.read(store.root) == {"Best *ones*": {"find": ["1:8"], "group": ["network"]}}
        other = open_page("runs", run=run.id)  # another session has it too
        (link,) = [link.proto for link in other.get("page_link") if "Best" in link.proto.label]
        assert link.label == r"Best \*ones\*"
        assert link.query_string == "find=1%3A8&group=network"
        button(other, "Remove").click().run()
        assert views.read(store.root) == {}

    def test_a_link_names_the_filters(self, open_page: OpenPage, store: RunStore) -> None:
        failed, cancelled, _ = (helpers.write_run(store, name) for name in ("failed", "cancelled", "finished"))
        app = open_page("overview")
        app.query_params.update({"find": "resnet20", "state": ["failed", "cancelled"], "tag": "unheard of", "marked": "maybe"})
        app.switch_page("../pages/runs.py").run()
        assert set(ids(app)) == {failed.id, cancelled.id}
        assert labelled(app.text_input, "Find").value == "resnet20"

    def test_name_tags_and_mark_are_kept(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished", config=RunConfig(name="from the shell"))
        app = open_page("runs", run=run.id)
        assert text_input(app, "Name").value == "from the shell"
        text_input(app, "Name").set_value("The best").run()
        assert run.labels() == Labels(name="The best")
        next(t for t in app.toggle if t.label == "Mark to compare").set_value(True).run()
        assert run.labels() == Labels(name="The best", compare=True)
        assert app.dataframe[0].value[["name", "compare"]].values.tolist() == [["The best", True]]
        assert "The best · resnet20-fashion" in text_of(app)
        run.save_labels(Labels(name="Named in another tab", tags=("x",), compare=True))
        app.run()
        assert text_input(app, "Name").value == "Named in another tab"
        next(t for t in app.toggle if t.label == "Mark to compare").set_value(False).run()
        assert run.labels() == Labels(name="Named in another tab", tags=("x",))

    def test_delete_asks_first_and_can_be_undone(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        app = open_page("runs", run=run.id)
        assert store.list() == [run]
        app.button("delete").click().run()
        assert store.list() == []
        assert f"Deleted {run.id}" in text_of(app)
        assert "run" not in app.query_params
        button(app, "Undo").click().run()
        assert store.list() == [run]
        assert ids(app) == [run.id]
        assert "Undo" not in labels(app)

    def test_a_deleted_run_can_be_restored_later(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        store.trash(run.id)
        app = open_page("runs", run=run.id)
        assert f"There is no run '{run.id}'" in text_of(app)
        button(app, "Restore").click().run()
        assert store.list() == [run]

    def test_an_active_run_must_be_cancelled_first(self, open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
        run = helpers.write_run(store, "running", hold)
        app = open_page("runs", run=run.id)
        assert "Cancel it before you delete it" in text_of(app)
        assert "Yes, delete" not in labels(app)
        button(app, "Cancel").click().run()
        assert run.cancel_requested()
        assert "Cancelling…" in labels(app)

    def test_a_run_that_came_with_the_app_cannot_be_changed(self, open_page: OpenPage, recorded: Run) -> None:
        app = open_page("runs", run=recorded.id)
        assert "It came with the app" in text_of(app)
        assert "Yes, delete" not in labels(app)
        assert text_input(app, "Name").disabled
        assert next(t for t in app.toggle if t.label == "Mark to compare").disabled
        assert len(app.get("download_button")) == 10

    def test_several_at_once(self, open_page: OpenPage, store: RunStore, recorded: Run, hold: ExitStack) -> None:
        first, second = helpers.write_run(store, "finished"), helpers.write_run(store, "failed")
        active = helpers.write_run(store, "running", hold)
        app = open_page("runs")
        app.query_params["run"] = [run.id for run in (first, second, active, recorded)]
        app.run()
        assert "4 runs ticked" in text_of(app)
        button(app, "Mark to compare").click().run()
        assert [run.labels().compare for run in (first, second, active, recorded)] == [True, True, True, False]
        assert "1 run in work: cancel before deleting" in text_of(app)
        app.button("delete").click().run()
        assert store.list() == [active]
        button(app, "Undo").click().run()
        assert set(store.list()) == {first, second, active}

    def test_again_with_one_change(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished", config=config("1:8", seed=5))
        app = open_page("runs", run=run.id)
        assert button(app, "Set it up").disabled
        app.selectbox(f"change-{run.id}").set_value("prune.k_steps").run()
        app.selectbox(f"value-{run.id}-prune.k_steps").set_value("10").run()
        button(app, "Set it up").click().run()
        assert "How few weights" in app.title[0].value
        assert "run" not in app.query_params
        app.switch_page("../pages/prune.py").run()  # AppTest has not noticed that the app went there
        button(app, "Start").click().run()
        (new,) = set(store.list()) - {run}
        assert new.config() == config("1:8", seed=5, k_steps=10)
        assert until_ended(new) == "finished"

    def test_a_change_that_cannot_be_is_a_sentence(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        app = open_page("runs")
        app.session_state[f"value-{run.id}-prune.pattern"] = "4:4"  # AppTest cannot type an option that is not there
        app.query_params["run"] = run.id
        app.run()
        assert "would keep every weight" in text_of(app)
        assert button(app, "Set it up").disabled

    def test_import_a_folder(self, open_page: OpenPage, store: RunStore, tmp_path: Path) -> None:
        made = helpers.write_run(RunStore(tmp_path / "elsewhere"), "finished")
        app = open_page("runs")
        path = next(t for t in app.text_input if "path" in t.label)
        path.set_value(str(tmp_path)).run()
        button(app, "Import").click().run()
        assert "is no run: it has no config.json" in text_of(app)
        next(t for t in app.text_input if "path" in t.label).set_value(f" {made.path} ").run()
        button(app, "Import").click().run()
        assert [run.id for run in store.list()] == [made.id]
        assert made.id in text_of(app)

    def test_the_id_of_a_recorded_run_is_taken(self, open_page: OpenPage, store: RunStore, recorded: Run) -> None:
        app = open_page("runs")
        next(t for t in app.text_input if "path" in t.label).set_value(str(recorded.path)).run()
        button(app, "Import").click().run()
        assert f"There is a run {recorded.id} already" in text_of(app)
        next(t for t in app.toggle if t.label == "Import as a copy").set_value(True).run()
        button(app, "Import").click().run()
        (copy,) = store.list()
        assert copy.id != recorded.id
        assert not state.is_recorded(copy)

    def test_a_run_under_the_id_of_a_deleted_one_is_shown_as_it_is(
        self, open_page: OpenPage, store: RunStore, tmp_path: Path
    ) -> None:
        run = helpers.write_run(store, "failed")
        app = open_page("prune", run=run.id)
        assert "was given a NaN" in text_of(app)
        store.trash(run.id)
        other = helpers.write_run(RunStore(tmp_path / "elsewhere"), "finished")
        archive.import_run(store, other.path.rename(other.path.with_name(run.id)))
        app.run()
        assert "Accuracy: 93.31 %" in text_of(app)
