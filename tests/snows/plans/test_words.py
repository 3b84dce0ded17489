"""What a run is called, alone and beside others."""

import pytest

from snows.config import PruneConfig, RunConfig
from snows.plans import words as plan_words
from snows.plans.comparisons import METHODS, expand, summarize
from snows.plans.words import BEST, LEVEL, cells, labels, method_name, run_name
from snows.runs.store import Labels, RunStore


def pruned(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"prune": changes})


def measured(accuracy: float, seconds: float) -> dict[str, float | None]:
    common = {"accuracy_dense": 0.94, "agreement": 0.9, "density": 0.25, "num_evaluation": 1000}
    return {"accuracy": accuracy, "seconds": seconds, **common}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mask": "wanda", "update": "none", "targets": "propagated"}, "Wanda"),  # without a fit a target says nothing
        ({"k_steps": 5}, "SNOWS, refined mask, K = 5"),
        ({"refine": "none"}, "SNOWS, dense targets, K = 3"),
        ({"sweeps": 2}, "SNOWS, refined mask, K = 3, 2 sweeps"),
        ({"joint": "network"}, "SNOWS, joint fit, K = 3"),
        ({"joint": "answers"}, "SNOWS, refined mask, K = 3, joint fit to answers"),
        ({"joint": "network", "update": "none"}, "Block reconstruction"),
        ({"joint": "answers", "update": "none"}, "Short distillation"),
        (
            {"joint": "answers", "update": "none", "batch_norm_reestimate": True},
            "Short distillation, batch norms measured again",
        ),
        ({"joint": "network", "mask": "wanda", "update": "none"}, "Wanda, joint fit"),
        ({"mask": "wanda"}, "SNOWS, Wanda mask, refined, K = 3"),
        ({"mask": "random", "update": "sparsegpt", "targets": "propagated"}, "SparseGPT, random mask, propagated targets"),
        ({"update": "least-squares"}, "Least squares, magnitude mask, refined by layer"),
        ({"mask": "random", "update": "none"}, "Random"),
        ({"mask": "random", "update": "least-squares", "refine": "none"}, "Least squares, random mask"),
        ({"mask": "alps", "update": "least-squares", "refine": "none", "targets": "propagated"}, "ALPS"),
        ({"mask": "obc"}, "SNOWS, OBC mask, refined, K = 3"),
        ({"update": "none", "batch_norm_reestimate": True}, "Batch-norm recalibration"),
        ({"mask": "wanda", "update": "none", "batch_norm_reestimate": True}, "Wanda, batch norms measured again"),
        ({"update": "none", "repair": True}, "Variance repair"),
        (
            {"update": "none", "repair": True, "batch_norm_reestimate": True, "joint": "network"},
            "Block reconstruction, repaired, batch norms measured again",
        ),
        ({"batch_norm_reestimate": True}, "SNOWS, refined mask, K = 3, batch norms measured again"),
        ({"mask": "/home/x/runs/mine.safetensors"}, "SNOWS, mask from mine.safetensors, K = 3"),
    ],
)
def test_a_known_method_has_its_name_and_any_other_its_parts(changes: dict, name: str) -> None:
    assert method_name(PruneConfig.model_validate(changes)) == name


def test_every_known_method_is_called_by_its_name() -> None:
    for name, config in zip(METHODS, expand(RunConfig(), list(METHODS.values()), ["2:4"], [3], [0]), strict=True):
        assert method_name(config.prune).removesuffix(", K = 3") == name


class TestRun:
    def test_its_parts_in_their_order(self) -> None:
        assert run_name(pruned(pattern="1:4")) == "resnet20-fashion · 1:4 · SNOWS, refined mask, K = 3"
        own = RunConfig(model="timm:resnet18", checkpoint="/home/x/.snows/runs/.uploads/3f/own.pt", name="Best")
        assert run_name(own) == "Best · timm:resnet18 from own.pt · 2:4 · SNOWS, refined mask, K = 3"

    def test_a_budget_is_told_from_a_pattern_and_from_another_budget(self) -> None:
        texts = ["1:16", "budget 6.25%", "budget 6.25%, owl", "budget 6.25% of bytes", "budget 6.25%, from any"]
        configs = [pruned(pattern=text) for text in texts]
        assert run_name(configs[1]) == "resnet20-fashion · budget 6.25% · SNOWS, refined mask, K = 3"
        assert labels(configs) == [f"{text} · SNOWS, refined mask, K = 3" for text in texts]

    def test_what_a_person_called_it_last_counts(self, store: RunStore) -> None:
        run = store.create(RunConfig(name="from the shell"))
        assert plan_words.name_of(run).startswith("from the shell · resnet20-fashion")
        run.save_labels(Labels(name="renamed"))
        assert plan_words.name_of(run).startswith("renamed · resnet20-fashion")
        assert plan_words.as_called(run) == run.config().model_copy(update={"name": "renamed"})
        run.save_labels(Labels(tags=("x",)))
        assert plan_words.name_of(run).startswith("from the shell · ")

    def test_what_cannot_be_read_is_called_by_its_id(self, store: RunStore) -> None:
        run = store.create(RunConfig(name="mine"))
        (run.path / "label.json").write_text('{"unheard_of": 1}')
        assert plan_words.name_of(run).startswith("mine · ")
        for damaged in ('{"unheard_of": 1}', '{"model": ', ""):
            (run.path / "config.json").write_text(damaged)
            assert plan_words.name_of(run) == run.id


def test_methods_are_the_same_at_every_pattern() -> None:
    pairs = [
        (pruned(pattern=p, update=u, seed=s), measured(0.9, 3))
        for p in ("2:4", "1:8")
        for u in ("none", "snows")
        for s in (0, 1)
    ]
    rows = summarize(pairs)
    found = plan_words.by_method(rows)
    assert list(found) == ["Magnitude only", "SNOWS, refined mask, K = 3"]
    assert [list(of_method) for of_method in found.values()] == [["2:4", "1:8"]] * 2
    assert found["Magnitude only"]["1:8"] is rows[2]


class TestBesideOthers:
    def test_what_differs_and_nothing_else(self) -> None:
        assert labels([pruned(k_steps=1), pruned(k_steps=3)]) == ["SNOWS, refined mask, K = 1", "SNOWS, refined mask, K = 3"]
        one, other = pruned(pattern="1:8", seed=1), pruned(pattern="2:4", seed=2)
        assert labels([one, other])[0] == "1:8 · SNOWS, refined mask, K = 3 · seed 1"
        assert labels([one, one])[1] == "SNOWS, refined mask, K = 3 (2)"
        assert labels([one]) == ["SNOWS, refined mask, K = 3"]

    def test_what_a_person_called_it_is_told(self) -> None:
        named = pruned().model_copy(update={"name": "Best"})
        assert labels([named, pruned(k_steps=1)]) == ["Best · SNOWS, refined mask, K = 3", "SNOWS, refined mask, K = 1"]

    def test_files_of_one_name_are_not_one(self) -> None:
        configs = [RunConfig(checkpoint=f"/{folder}/own.pt", data=f"/{folder}/photographs") for folder in "ab"]
        assert labels(configs) == ["SNOWS, refined mask, K = 3 (1)", "SNOWS, refined mask, K = 3 (2)"]
        assert labels([*configs, RunConfig()])[2] == "resnet20-fashion · SNOWS, refined mask, K = 3 · fashion-mnist"

    def test_a_label_is_the_name_without_what_all_share(self) -> None:
        configs = [
            RunConfig.model_validate({"name": name, "model": model, "prune": {"pattern": pattern, "update": update}})
            for name, model, pattern, update in [
                ("", "resnet20-fashion", "1:4", "snows"),
                ("Best", "resnet20-fashion", "70%", "none"),
                ("Best", "vit-fashion", "1:4", "sparsegpt"),
            ]
        ]
        for together in (configs, configs[1:], configs[::2]):
            for config, label in zip(together, labels(together), strict=True):
                parts = run_name(config).split(" · ")
                assert label.split(" · ") == [part for part in parts if part in label.split(" · ")]

    def test_rows_are_told_by_all_but_the_seed(self) -> None:
        rows = summarize([(pruned(seed=seed, k_steps=k), measured(0.9, 3)) for k in (1, 3) for seed in (0, 1)])
        assert plan_words.row_names(rows) == ["SNOWS, refined mask, K = 1", "SNOWS, refined mask, K = 3"]

    def test_a_table_marks_the_best(self) -> None:
        table = plan_words.cells(
            summarize(
                [
                    (pruned(), measured(0.90, 10)),
                    (pruned(seed=1), measured(0.91, 12)),
                    (pruned(update="none"), measured(0.895, 1)),
                ]
            )
        )
        assert table == {
            "Method": ["Dense network", "SNOWS, refined mask, K = 3", "Magnitude only"],
            "Accuracy": ["94.00 %", f"90.50 ± 0.71 % {BEST}", f"89.50 % {LEVEL}"],
            "Change": ["", f"\N{MINUS SIGN}3.50 ± 0.71 points {BEST}", f"\N{MINUS SIGN}4.50 points {LEVEL}"],
            "Agreement": ["100.00 %", "90.00 %", "90.00 %"],
            "Weights kept": ["100.00 %", "25.00 %", "25.00 %"],
            "Time": ["", "11.0 ± 1.4 s", f"1 s {BEST}"],
            "Seeds": ["", "2", "1"],
        }

    def test_no_column_for_what_was_not_measured(self) -> None:
        (row,) = summarize([(pruned(), measured(0.9, 3) | {"accuracy": None})])
        assert list(plan_words.cells([row])) == ["Method", "Agreement", "Weights kept", "Time"]


def test_what_a_run_has_no_value_of_says_why_in_the_table() -> None:
    whole = measured(0.9, 10) | {"divergence": 0.25}
    broken = measured(0.1, 12) | {"agreement": 0.0, "divergence": None}
    unlabelled = measured(0.0, 11) | {"accuracy": None, "accuracy_dense": None, "divergence": 0.5}
    rows = summarize([(pruned(k_steps=k), metrics) for k, metrics in enumerate((whole, broken, unlabelled))])
    table = cells(rows)
    assert [cell.split(BEST)[0].strip() for cell in table["Divergence"]] == ["0 nats", "0.25 nats", "not a number", "0.5 nats"]
    assert [table[title][3] for title in ("Accuracy", "Change")] == ["no labels"] * 2
    # An older run, which knew no such measure, lacks it without a reason.
    older = summarize([(pruned(k_steps=1), whole), (pruned(k_steps=2), measured(0.8, 10))])
    assert cells(older)["Divergence"][2] == ""
