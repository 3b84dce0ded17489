"""A comparison: what it is made of, what came of it, and which differences mean something."""

import re

import pytest
from pydantic import ValidationError

from snows.config import InputError, PruneConfig, RunConfig
from snows.method import cards
from snows.plans import comparisons
from snows.plans.comparisons import METHODS, Method, Spread
from snows.plans.words import labels
from snows.runs.store import RunStore, StoreError

SNOWS, WANDA = METHODS["SNOWS, dense targets"], METHODS["Wanda"]


def pruned(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"prune": changes})


class TestExpand:
    def test_every_combination_and_k_only_for_what_looks_ahead(self) -> None:
        configs = comparisons.expand(RunConfig(num_calibration=64), [WANDA, SNOWS], ["2:4", "1:8"], [1, 3], [0, 1])
        found = [(c.prune.seed, str(c.prune.pattern), c.prune.update, c.prune.k_steps) for c in configs]
        once = [(p, u, k) for p in ("2:4", "1:8") for u, k in (("none", 3), ("snows", 1), ("snows", 3))]
        assert found == [(seed, *rest) for seed in (0, 1) for rest in once]
        assert {config.num_calibration for config in configs} == {64}

    def test_numbers_of_images_are_an_axis(self) -> None:
        configs = comparisons.expand(RunConfig(), [WANDA, SNOWS], ["2:4"], [3], [0, 1], ["64", "256"])  # type: ignore[list-item]
        assert [(c.prune.seed, c.num_calibration, c.prune.update) for c in configs] == [
            (seed, n, update) for seed in (0, 1) for n in (64, 256) for update in ("none", "snows")
        ]

    def test_a_combination_given_twice_is_one_run(self) -> None:
        assert len(comparisons.expand(RunConfig(), [SNOWS, Method("magnitude", "snows")], ["2:4", "2:4"], [3, 3], [0])) == 1

    def test_two_sweeps_are_for_what_gains_by_them(self) -> None:
        base = RunConfig(prune=PruneConfig(sweeps=2))
        assert [config.prune.sweeps for config in comparisons.expand(base, [WANDA, SNOWS], ["2:4"], [1], [0])] == [1, 2]

    def test_batch_norms_are_measured_again_where_the_method_or_the_base_asks(self) -> None:
        methods = [METHODS["Magnitude only"], METHODS["Batch-norm recalibration"]]
        assert [
            [config.prune.batch_norm_reestimate for config in comparisons.expand(base, methods, ["2:4"], [], [0])]
            for base in (RunConfig(), RunConfig(prune=PruneConfig(batch_norm_reestimate=True)))
        ] == [[False, True], [True]]

    @pytest.mark.parametrize("missing", [0, 1, 2, 3])
    def test_nothing_to_combine_is_said(self, missing: int) -> None:
        parts: list = [[SNOWS], ["2:4"], [1], [0]]
        parts[missing] = []
        with pytest.raises(InputError, match=["method", "pattern", "needs a K", "seed"][missing]):
            comparisons.expand(RunConfig(), *parts)

    def test_wrong_values_and_too_many_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="Unknown pattern"):
            comparisons.expand(RunConfig(), [WANDA], ["2by4"], [], [0])
        with pytest.raises(InputError, match="201 runs"):
            comparisons.expand(RunConfig(), [WANDA], ["2:4"], [], list(range(201)))


def test_every_method_has_its_card() -> None:
    for name, method in METHODS.items():
        card = comparisons.describe(method)
        assert card.idea.endswith("."), name
        assert card.cost.endswith("."), name
        assert all(reference == "A control" or re.search(r"\b(19|20)\d\d, ", reference) for reference in card.references)
        assert cards.MASKS[method.mask].idea in card.idea


def test_a_card_says_each_part_once() -> None:
    sparsegpt = comparisons.describe(METHODS["SparseGPT"])
    assert len(sparsegpt.references) == 1
    assert sparsegpt.cost == cards.MASKS["sparsegpt"].cost
    assert sparsegpt.touches == "mask and values"
    refined = comparisons.describe(METHODS["SNOWS, refined mask"])
    assert refined.idea.count("untouched network's values") == refined.idea.count(cards.REFINEMENT.idea) == 1
    assert "2411.18376" in refined.references[1]
    again = comparisons.describe(METHODS["Batch-norm recalibration"])
    assert again.touches == "mask and statistics"
    assert again.cost == cards.BATCH_NORM.cost
    assert comparisons.describe(METHODS["Random"]).cost == cards.NO_COST


def test_rows_of_all_methods_have_names_of_their_own() -> None:
    configs = comparisons.expand(RunConfig(), list(METHODS.values()), ["2:4"], [3], [0])
    assert [label.removesuffix(", K = 3") for label in labels(configs)] == list(METHODS)
    rows = comparisons.summarize([(config, measured(0.5, 3)) for config in configs])
    assert len(rows) == len(METHODS)


def test_what_is_as_published_has_no_ridge() -> None:
    """The ridge is none of theirs: with one, OBC ends at 52 % on the bundled vision transformer where it reaches 68 without."""
    published = [name for name, method in METHODS.items() if method.targets == "propagated"]
    assert {"SparseGPT", "Least squares (OBS)", "SNOWS, as published", "ALPS", "OBC"} == set(published)
    configs = comparisons.expand(RunConfig(), list(METHODS.values()), ["2:4"], [3], [0])
    ridges = dict(zip(METHODS, (config.prune.ridge for config in configs), strict=True))
    assert {name for name, ridge in ridges.items() if ridge == 0} == set(published)
    assert {ridge for ridge in ridges.values() if ridge} == {RunConfig().prune.ridge}
    assert "Nothing pulls" in comparisons.describe(METHODS["OBC"]).idea


def test_combinations_are_each_made_once() -> None:
    found = comparisons.combinations(["magnitude"], ["none", "sparsegpt", "snows"], ["dense", "propagated"], ["none", "window"])
    assert found == [
        Method("magnitude", "none"),
        *(Method("magnitude", "sparsegpt", targets) for targets in ("dense", "propagated")),
        *(Method("magnitude", "snows", t, r) for t in ("dense", "propagated") for r in ("none", "window")),
    ]


def measured(accuracy: float | None, seconds: float, agreement: float = 0.9) -> dict[str, float | None]:
    return {
        "accuracy_dense": None if accuracy is None else 0.94,
        "accuracy": accuracy,
        "agreement": agreement,
        "density": 0.25,
        "seconds": seconds,
        "num_evaluation": 1000,
    }


class TestSummarize:
    def test_seeds_are_one_row_with_their_spread(self) -> None:
        rows = comparisons.summarize(
            [
                (pruned(seed=0), measured(0.90, 10)),
                (pruned(update="none", seed=0), measured(0.50, 1)),
                (pruned(seed=1), measured(0.92, 14)),
            ]
        )
        assert [row.runs for row in rows] == [[0, 2], [1]]
        assert rows[0].values["accuracy"] == Spread(pytest.approx(0.91), pytest.approx(0.02 / 2**0.5), 2)
        assert rows[0].values["change"].mean == pytest.approx(-0.03)
        assert rows[1].values["seconds"] == Spread(1, None, 1)

    def test_the_best_of_each_column_is_marked(self) -> None:
        best, worse = comparisons.summarize([(pruned(), measured(0.9, 10)), (pruned(update="none"), measured(0.5, 1))])
        assert best.best == {"accuracy"}
        assert worse.best == {"seconds"}  # agreement and density are alike, and no news
        assert (best.level, worse.level) == (set(), set())

    def test_what_images_alone_may_have_made_is_no_lead(self) -> None:
        rows = comparisons.summarize([(pruned(), measured(0.900, 10)), (pruned(update="none"), measured(0.890, 10.01))])
        assert (rows[0].best, rows[1].level) == ({"accuracy"}, {"accuracy"})  # both are said to take 10 s

    def test_what_is_of_no_use_is_the_best_of_nothing(self) -> None:
        cut = (pruned(update="none"), measured(0.11, 1) | {"packed_bytes": 100, "dense_bytes": 800})
        good = (pruned(), measured(0.9, 10) | {"packed_bytes": 101, "dense_bytes": 800})
        rows = comparisons.summarize([cut, good])
        assert [row.is_of_use for row in rows] == [False, True]
        assert (rows[0].best, rows[0].level) == (set(), set())
        assert rows[1].best == {"accuracy", "packed_bytes", "seconds"}
        assert [row.best for row in comparisons.summarize([cut, (pruned(k_steps=1), measured(0.1, 2))])] == [set(), set()]

    @pytest.mark.parametrize(
        ("metrics", "is_of_use"),
        [
            ({"accuracy": 0.48, "accuracy_dense": 0.94}, True),
            ({"accuracy": 0.46, "accuracy_dense": 0.94}, False),
            ({"accuracy": 0.55, "accuracy_dense": 0.95, "chance": 0.5}, False),  # of two classes, guessing has 50 %
            ({"accuracy": 0.73, "accuracy_dense": 0.95, "chance": 0.5}, True),
            ({"accuracy": None, "agreement": 0.4}, False),
            ({"agreement": 0.6}, True),
            ({}, True),
        ],
    )
    def test_of_use_is_what_keeps_half_of_what_there_is_over_chance(self, metrics: dict, is_of_use: bool) -> None:
        (row,) = comparisons.summarize([(pruned(), metrics)])
        assert row.is_of_use is is_of_use

    def test_the_best_is_that_of_its_network_and_pattern(self) -> None:
        pairs = [
            (pruned(pattern=pattern, update=update), measured(accuracy, 10))
            for pattern, update, accuracy in (
                ("2:4", "snows", 0.93),
                ("2:4", "none", 0.8),
                ("1:8", "snows", 0.9),
                ("1:8", "none", 0.6),
            )
        ]
        assert [row.best for row in comparisons.summarize(pairs)] == [{"accuracy"}, set(), {"accuracy"}, set()]
        other = pruned(update="none").model_copy(update={"model": "vit-fashion"})
        assert [row.best for row in comparisons.summarize([pairs[0], (other, measured(0.8, 10))])] == [set(), set()]

    def test_a_time_that_is_on_record_stands_for_the_others(self) -> None:
        untimed = {name: value for name, value in measured(0.9, 0).items() if name != "seconds"}
        (row,) = comparisons.summarize([(pruned(seed=0), untimed), (pruned(seed=1), measured(0.9, 12))])
        assert row.values["seconds"] == Spread(12, None, 1)

    def test_a_difference_is_taken_seed_by_seed(self) -> None:
        # Seeds move both methods alike, by far more than what lies between them: 0.01, 0.02 and 0.03.
        pairs = [(pruned(seed=s), measured(a, 10)) for s, a in ((0, 0.91), (1, 0.62), (2, 0.83))]
        pairs += [(pruned(seed=s, update="none"), measured(a, 10)) for s, a in ((2, 0.80), (0, 0.90), (1, 0.60))]
        one, other = comparisons.summarize(pairs)
        assert comparisons.difference(one, other, "accuracy") == Spread(pytest.approx(0.02), pytest.approx(0.01), 3)
        assert comparisons.difference(other, one, "accuracy").mean == pytest.approx(-0.02)
        # Not the same seeds: two spreads of their own, 0.1 sqrt(2) and 0.3 sqrt(2) by hand.
        pairs = [(pruned(seed=s), measured(a, 10)) for s, a in ((0, 0.9), (1, 0.7))]
        pairs += [(pruned(seed=s, update="none"), measured(a, 10)) for s, a in ((1, 0.8), (2, 0.2))]
        one, other = comparisons.summarize(pairs)
        apart = comparisons.difference(one, other, "accuracy")
        assert (apart.mean, apart.deviation) == (pytest.approx(0.3), pytest.approx((0.02 + 0.18) ** 0.5))
        (single,) = comparisons.summarize(pairs[:1])
        assert comparisons.difference(single, other, "accuracy").deviation is None

    def test_size_by_the_bit_and_the_dense_network_beside(self) -> None:
        rows = comparisons.summarize([(pruned(), measured(0.9, 3) | {"packed_bytes": 100, "dense_bytes": 800})])
        assert rows[0].values["bits"].mean == 4
        dense = comparisons.dense_row(rows)
        assert dense is not None
        values = {name: spread.mean for name, spread in dense.values.items()}
        assert values == {"accuracy": 0.94, "agreement": 1, "density": 1, "packed_bytes": 800, "bits": 32}
        assert (dense.runs, dense.best, dense.level) == ([], set(), set())

    def test_networks_that_hardly_left_the_dense_one_differ_by_little_chance(self) -> None:
        # 1.5 points on 1,000 images: two standard errors are 2.8 points of independent samples, but only 0.9 where each network
        # changed 10 answers, since no more than 20 images can be unequal then.
        for agreement, level in ((0.9, {"accuracy"}), (0.99, set())):
            pairs = [(pruned(), measured(0.90, 10, agreement)), (pruned(update="none"), measured(0.885, 1, agreement))]
            assert comparisons.summarize(pairs)[1].level == level

    def test_level_is_two_standard_errors(self) -> None:
        one = Spread(0.90, None, 1)
        assert comparisons.is_level(one, Spread(0.881, None, 1), 0.01**2)
        assert not comparisons.is_level(one, Spread(0.879, None, 1), 0.01**2)
        assert not comparisons.is_level(one, Spread(0.881, None, 1))
        # Seeds: the standard error of the difference is sqrt(0.03² / 3 + 0.04² / 4) = 0.02646.
        assert comparisons.is_level(Spread(1.0, 0.03, 3), Spread(1.05, 0.04, 4))
        assert not comparisons.is_level(Spread(1.0, 0.03, 3), Spread(1.06, 0.04, 4))

    def test_wilsons_interval(self) -> None:
        # By hand: 81 of 263 (Newcombe, 1998, table I), and the ends.
        assert comparisons.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
        assert comparisons.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)
        assert comparisons.wilson(0.0, 10)[0] == pytest.approx(0)

    def test_without_labels_there_is_no_accuracy(self) -> None:
        (row,) = comparisons.summarize([(pruned(), measured(None, 3))])
        assert set(row.values) == {"agreement", "density", "seconds"}

    def test_one_row_has_no_best(self) -> None:
        (row,) = comparisons.summarize([(pruned(), measured(0.9, 3))])
        assert row.best == set()


def test_a_row_bears_a_name_that_all_its_runs_bear() -> None:
    rows = comparisons.summarize(
        [(pruned(seed=i).model_copy(update={"name": name}), measured(0.9, 3)) for i, name in enumerate("aa")]
    )
    assert [row.config.name for row in rows] == ["a"]
    rows = comparisons.summarize(
        [(pruned(seed=i).model_copy(update={"name": name}), measured(0.9, 3)) for i, name in enumerate("ab")]
    )
    assert [row.config.name for row in rows] == [""]


def test_pareto_front_is_what_no_other_beats() -> None:
    costs, values = [1, 2, 2, 3, 1, 4], [5, 7, 6, 7, 5, 9]
    expected = [
        not any(c <= cost and v >= value and (c < cost or v > value) for c, v in zip(costs, values, strict=True))
        for cost, value in zip(costs, values, strict=True)
    ]
    assert comparisons.pareto(costs, values) == expected == [True, True, False, False, True, True]


class TestStore:
    def test_a_comparison_is_its_runs_in_order_and_lives_on_without_one(self, store: RunStore) -> None:
        configs = comparisons.expand(RunConfig(), list(METHODS.values()), ["2:4"], [3], [0])
        made = store.create_comparison(configs)
        assert [run.config() for run in made.runs()] == configs
        assert store.comparison(made.id).runs() == made.runs()
        gone, *rest = made.runs()
        trashed = store.trash(gone.id)
        assert made.runs() == rest
        store.restore(trashed)
        assert made.runs() == [gone, *rest]
        assert {run.id for run in store.list()} == {run.id for run in made.runs()}  # its file is no run

    def test_newest_first_and_none_whose_runs_are_gone(self, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
        assert store.comparisons() == []
        first = store.create_comparison([RunConfig()])
        monkeypatch.setattr("snows.runs.store.time.strftime", lambda form, at=None: "29991231-235959")
        second = store.create_comparison([RunConfig()])
        assert store.comparisons() == [second, first]
        store.delete(second.runs()[0].id)
        assert store.comparisons() == [first]
        with pytest.raises(KeyError, match="may have been deleted"):
            store.comparison(second.id)

    def test_all_of_it_or_none(self, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
        real, made = RunStore.create, []

        def create(self: RunStore, config: RunConfig) -> object:
            if len(made) == 2:
                raise StoreError("The disk is full.")
            made.append(real(self, config))
            return made[-1]

        monkeypatch.setattr(RunStore, "create", create)
        with pytest.raises(StoreError, match="full"):
            store.create_comparison([RunConfig()] * 3)
        assert store.list() == store.comparisons() == []
