"""Curves of K and which K is enough, by hand-checked numbers."""

from pathlib import Path

import pytest

from snows.config import InputError, PruneConfig, RunConfig
from snows.events import RunFinished, RunStarted, SiteFinished
from snows.plans.study import Outcome, curves, expand, names, recommend, swept, usual_axis
from snows.runs.store import RunStore

ONE_SEED = " All of one seed: another draw of calibration images may order them otherwise."


def config(k: int, seed: int = 0, **more: object) -> RunConfig:
    return RunConfig.model_validate({"prune": {"k_steps": k, "seed": seed, "pattern": "1:8"}} | more)


def bits(right: int, images: int, skipped: int = 0) -> str:
    """So many images right, after the first `skipped`; packed to bytes, the first image the highest bit."""
    text = ("0" * skipped + "1" * right).ljust(images, "0").ljust(-(-images // 8) * 8, "0")
    return int(text, 2).to_bytes(len(text) // 8, "big").hex()


def outcome(
    k: int,
    right: int,
    images: int = 1000,
    *,
    skipped: int = 0,
    seed: int = 0,
    seconds: float = 1.0,
    recorded: bool = True,
    **more: object,
) -> Outcome:
    metrics = {"accuracy": right / images, "agreement": 0.5, "seconds": seconds, "num_evaluation": images}
    return Outcome(config(k, seed, **more), metrics, bits(right, images, skipped) if recorded else "", 40)


class TestExpand:
    def test_every_k_of_every_network_small_k_first(self) -> None:
        bases = [RunConfig(model="resnet20-fashion"), RunConfig(model="vit-fashion")]
        made = expand(bases, [10, 1], [64, 128])
        assert [(c.num_calibration, c.prune.k_steps, c.model) for c in made] == [
            (images, k, model) for images in (64, 128) for k in (1, 10) for model in ("resnet20-fashion", "vit-fashion")
        ]

    def test_one_k_on_several_numbers_of_images(self) -> None:
        made = expand([RunConfig()], [3], [128, 64, 128])
        assert [(c.num_calibration, c.prune.k_steps) for c in made] == [(128, 3), (64, 3)]

    def test_only_what_is_studied_differs(self) -> None:
        base = RunConfig.model_validate(
            {
                "num_calibration": 33,
                "prune": {"pattern": "70%", "mask": "wanda", "update": "none", "seed": 7, "targets": "propagated"},
            }
        )
        made = expand([base], [0, 2])
        assert [c.prune for c in made] == [base.prune.model_copy(update={"update": "snows", "k_steps": k}) for k in (0, 2)]
        assert {c.num_calibration for c in made} == {33}

    @pytest.mark.parametrize(
        ("bases", "ks", "sentence"),
        [
            ([], [1, 2], "no network"),
            ([RunConfig()], [3, 3], "several K"),
            ([RunConfig()], range(201), "at most 200"),
            ([RunConfig()], ["soon", 1], "k_steps"),
        ],
    )
    def test_says_what_is_wrong(self, bases: list, ks: list, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            expand(bases, ks)

    def test_a_bad_request_is_the_askers(self) -> None:
        with pytest.raises(InputError):
            expand([RunConfig()], [1])


class TestCurves:
    def test_one_a_network_and_setting_by_ascending_k(self) -> None:
        other = {"model": "vit-fashion"}
        found = curves([outcome(3, 900), outcome(1, 800, **other), outcome(0, 700), outcome(3, 850, **other)])
        assert [(curve.config.model, curve.values) for curve in found] == [
            ("resnet20-fashion", [0, 3]),
            ("vit-fashion", [1, 3]),
        ]
        assert [row.runs for row in found[0].rows] == [[2], [0]]  # places in what was given
        assert names(found) == ["resnet20-fashion", "vit-fashion"]
        assert found[0].operations == 40

    def test_seeds_are_one_point(self) -> None:
        (curve,) = curves([outcome(1, 800), outcome(1, 820, seed=1), outcome(3, 900)])
        spread = curve.rows[0].values["accuracy"]
        assert (spread.mean, spread.count) == (pytest.approx(0.81), 2)
        assert spread.deviation == pytest.approx(0.01 * 2**0.5)

    def test_numbers_of_images_are_curves_of_their_own(self) -> None:
        found = curves([outcome(k, 800, num_calibration=n) for n in (64, 128) for k in (0, 1)])
        assert names(found) == ["resnet20-fashion · 64 images", "resnet20-fashion · 128 images"]

    def test_what_looks_at_no_later_operation_has_no_place(self) -> None:
        plain = Outcome(RunConfig(prune=PruneConfig(update="least-squares")), {"accuracy": 0.9})
        assert curves([plain]) == []

    def test_without_labels_agreement_tells_them_apart(self) -> None:
        unlabelled = [Outcome(config(k), {"accuracy": None, "agreement": 0.5 + k / 10}) for k in (0, 1)]
        assert curves(unlabelled)[0].measure == "agreement"
        assert recommend(curves(unlabelled)[0], unlabelled).row.config.prune.k_steps == 1


class TestImages:
    def test_fewest_within_the_noise(self) -> None:
        measured = [outcome(3, right, num_calibration=n, seconds=n / 10) for n, right in ((512, 950), (64, 800), (256, 947))]
        assert (swept([m.config for m in measured]), usual_axis([m.config for m in measured])) == (["images"], "images")
        (curve,) = curves(measured, "images")
        assert curve.values == [64, 256, 512]
        assert [row.runs for row in curve.rows] == [[1], [2], [0]]
        assert recommend(curve, measured).reason == (
            "256 images are the fewest whose accuracy, 94.70 % (95 % interval 93.1 to 95.9 %), is within the noise of the "
            f"best, 95.00 % (93.5 to 96.2 %) at 512 images.{ONE_SEED}"
        )
        alike = [outcome(3, 950, num_calibration=n) for n in (1, 64)]
        assert recommend(curves(alike, "images")[0], alike).reason.startswith("No number that was tried can be told")

    def test_methods_and_k_are_curves_of_their_own(self) -> None:
        measured = [outcome(k, 800, num_calibration=n) for k in (1, 3) for n in (64, 128)]
        plain = [
            Outcome(RunConfig(num_calibration=n, prune=PruneConfig(update=update)), {"accuracy": 0.9})
            for update in ("least-squares", "none")
            for n in (64, 128)
        ]
        found = curves([*measured, *plain], "images")
        assert [curve.values for curve in found] == [[64, 128]] * 3
        # The methods are of another pattern than the study's runs.
        assert names(found) == [
            "SNOWS, refined mask, K = 1 · 1:8",
            "SNOWS, refined mask, K = 3 · 1:8",
            "Least squares, magnitude mask, refined by layer · 2:4",
        ]
        assert swept([m.config for m in [*measured, *plain]]) == ["k", "images"]
        assert swept([p.config for p in plain[2:]]) == []

    def test_evaluation_images_of_a_folder_are_not_taken_for_the_same(self, tmp_path: Path) -> None:
        # Nested as in the K study above, where 8 of 1,000 are no noise; but in a folder each run has images of its own.
        for data, chosen in (("fashion-mnist", 512), (str(tmp_path), 64)):
            measured = [outcome(3, 942, num_calibration=64, data=data), outcome(3, 950, num_calibration=512, data=data)]
            (curve,) = curves(measured, "images")
            assert curve.value(recommend(curve, measured).row) == chosen

    def test_how_many_were_held_back_sets_no_run_apart(self) -> None:
        assert len(curves([outcome(k, 800, num_held_back=k) for k in (0, 3)])) == 1


class TestOutcome:
    def test_reads_a_run(self, tmp_path: Path) -> None:
        def site(index: int, own: float, later: float, held: int, **more: object) -> SiteFinished:
            return SiteFinished(
                site=f"layer{index}.weight",
                index=index,
                losses={"final": own + later},
                by_k={"final": [own, later]},
                scale=[1.0, 3.0],
                density=0.5,
                status="",
                message="",
                seconds=1.0,
                num_products=1,
                held_memory=held,
                **more,
            )

        run = RunStore(tmp_path).create(config(1))
        run.append(RunStarted(device="cpu", sites=["layer0.weight"], skipped={}, operations=41))
        run.append(site(0, 9.0, 9.0, 50), site(1, 0.5, 0.7, 70), site(2, 0.1, 0.1, 60))
        run.append(site(0, 0.2, 0.2, 40, sweep=1))  # solved again
        run.append(RunFinished(metrics={"accuracy": 0.5}, right="80"))
        run.save_metrics({"accuracy": 0.5})
        found = Outcome.of(run)
        assert (found.config, found.metrics, found.right, found.operations) == (config(1), {"accuracy": 0.5}, "80", 41)
        # Own errors 0.2, 0.5, 0.1; windows 0.4 / 4, 1.2 / 4, 0.2 / 4.
        assert found.measures == {"own_error": 0.2, "window_error": pytest.approx(0.1), "memory": 70}

    def test_a_device_that_measures_its_memory_is_believed(self, tmp_path: Path) -> None:
        run = RunStore(tmp_path).create(config(1))
        measured = {"losses": {}, "by_k": {}, "scale": [], "density": 0.5, "status": "", "message": "", "seconds": 1.0}
        run.append(SiteFinished(site="a", index=0, num_products=0, held_memory=5, peak_memory=900, **measured))
        assert Outcome.of(run).measures == {"memory": 900}
        run.append(SiteFinished(site="b", index=1, num_products=0, **measured))  # by an older version
        assert Outcome.of(run).measures == {}


class TestRecommendation:
    def test_smallest_within_the_noise_image_by_image(self) -> None:
        # Nested: K = 1 errs on 8 images more than K = 10 and on no others: 0.008 against 2 sqrt(0.008 / 1000) = 0.0057. K = 3
        # errs on 3 more: 0.003 against 2 sqrt(0.003 / 1000) = 0.0035.
        measured = [outcome(1, 942), outcome(3, 947, seconds=20), outcome(10, 950, seconds=60)]
        found = recommend(curves(measured)[0], measured)
        assert found.row.config.prune.k_steps == 3
        assert [row.config.prune.k_steps for row in found.level] == [3, 10]
        assert found.best.config.prune.k_steps == 10
        assert found.reason == (
            "K = 3 is the smallest whose accuracy, 94.70 % (95 % interval 93.1 to 95.9 %), is within the noise of the best, "
            f"95.00 % (93.5 to 96.2 %) at K = 10.{ONE_SEED}"
        )
        assert not found.settled  # by one seed

    def test_other_images_wrong_is_more_noise(self) -> None:
        # As far behind as K = 1 above, but right on 20 images that the best gets wrong: 0.008 against 2 sqrt(0.048 / 1000).
        measured = [outcome(1, 942), outcome(10, 950, skipped=20)]
        assert recommend(curves(measured)[0], measured).row.config.prune.k_steps == 1

    def test_without_a_record_of_images_samples_are_taken_as_independent(self) -> None:
        # 0.008 against 2 sqrt(0.942 * 0.058 / 1000 + 0.95 * 0.05 / 1000) = 0.0202.
        measured = [outcome(1, 942, recorded=False), outcome(10, 950, recorded=False)]
        assert recommend(curves(measured)[0], measured).row.config.prune.k_steps == 1

    def test_seeds_that_disagree_are_noise(self) -> None:
        # Nested, 10 and 50 images behind: on average 0.03, images alone 2 sqrt(0.03 / 1000) = 0.011; over seeds the variance of
        # the differences is 0.0008, halved for two of them, which makes 2 sqrt(0.0004 + 0.00003) = 0.041.
        measured = [outcome(1, 940), outcome(1, 900, seed=1), outcome(10, 950), outcome(10, 950, seed=1)]
        found = recommend(curves(measured)[0], measured)
        assert (found.row.config.prune.k_steps, found.settled) == (1, False)  # all alike
        alike = [outcome(1, 920), outcome(1, 921, seed=1), outcome(10, 950), outcome(10, 950, seed=1)]
        found = recommend(curves(alike)[0], alike)
        assert (found.row.config.prune.k_steps, found.settled) == (10, True)
        assert ONE_SEED not in found.reason

    def test_all_alike(self) -> None:
        measured = [outcome(k, 950) for k in (0, 1, 3)]
        found = recommend(curves(measured)[0], measured)
        assert (found.row.config.prune.k_steps, found.settled) == (0, False)
        assert found.reason == (
            "No K that was tried can be told from another beyond the noise: the accuracy is 95.00 % (95 % interval 93.5 to "
            f"96.2 %) at each. More evaluation images, more seeds, or fewer weights kept may tell them apart.{ONE_SEED}"
        )

    def test_what_images_cannot_tell_apart_is_said_as_an_interval(self) -> None:
        # As found with one seed and 1,000 images, where K = 0 was once said to be enough.
        measured = [outcome(k, right, recorded=False) for k, right in ((0, 879), (1, 885), (3, 893))]
        reason = recommend(curves(measured)[0], measured).reason
        assert (
            "the accuracy goes from 87.90 % (95 % interval 85.7 to 89.8 %) at K = 0 to 89.30 % (87.2 to 91.1 %) at K = 3"
            in reason
        )
        assert "enough" not in reason

    def test_the_largest_is_best(self) -> None:
        measured = [outcome(0, 500), outcome(5, 900)]
        reason = recommend(curves(measured)[0], measured).reason
        assert reason == (
            "K = 5 has the best accuracy, 90.00 % (95 % interval 88.0 to 91.7 %), and no smaller K is within the noise of it. "
            f"It is the largest that was tried, so try larger ones too.{ONE_SEED}"
        )

    def test_one_in_the_middle_is_best(self) -> None:
        measured = [outcome(0, 500), outcome(5, 900), outcome(9, 880)]
        assert recommend(curves(measured)[0], measured).reason.endswith(f"of it.{ONE_SEED}")

    def test_one_k_is_no_choice(self) -> None:
        measured = [outcome(3, 900)]
        assert recommend(curves(measured)[0], measured) is None
