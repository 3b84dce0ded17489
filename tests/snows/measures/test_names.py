"""What a measure is called, means and how its numbers are said: once, and so that nobody is misled."""

import ast
import json
import math
from pathlib import Path

import pytest

from snows.measures.names import MEASURES, duration, duration_range, number, percent, said, size
from snows.plans import comparisons, study
from snows.plans import words as plan_words

ROOT = Path(__file__).parents[3]
MINUS = "\N{MINUS SIGN}"


def test_numbers_have_three_digits_and_units() -> None:
    assert [percent(v) for v in (0.9331, 0.94, 1.0, 0.0512, 0.0)] == ["93.3 %", "94.0 %", "100 %", "5.12 %", "0.00 %"]
    assert [number(v) for v in (0.0123456, 1e-7, 12345.0)] == ["0.0123", "1e-07", "1.23e+04"]
    times = [0.01, 0.42, 28.1, 59.7, 65, 3600 * 2 + 180]
    assert [duration(t) for t in times] == ["under 0.1 s", "0.42 s", "28 s", "1 min 00 s", "1 min 05 s", "2 h 03 min"]
    spans = [(0.1, 0.3), (1, 3), (19, 31), (28, 28.4), (34, 170), (70, 130), (400, 900), (5000, 20_000)]
    assert [duration_range(*span).replace("\N{EN DASH}", "-") for span in spans] == [
        "under 1 s",
        "1-3 s",
        "20-30 s",
        "30 s",
        "35 s-2 min 50 s",
        "1 min 10 s-2 min 10 s",
        "7-15 min",
        "1 h 25 min-5 h 30 min",
    ]
    assert [size(b) for b in (12, 410_000_000, 2.5e13)] == ["12 bytes", "410 MB", "25 TB"]


@pytest.mark.parametrize(
    ("name", "value", "deviation", "sentence"),
    [
        ("accuracy", 0.9331, None, "93.31 %"),
        ("accuracy", 0.9997, None, "99.97 %"),  # three images of ten thousand are not none
        ("accuracy", 0.9331, 0.0012, "93.31 ± 0.12 %"),
        ("accuracy", 0.9331, 0.0, "93.31 %"),
        ("agreement", 1.0, None, "100.00 %"),
        ("change", -0.0064, None, f"{MINUS}0.64 points"),
        ("change", 0.0064, 0.002, "+0.64 ± 0.20 points"),
        ("divergence", 0.0123456, None, "0.0123 nats"),
        ("divergence", 1.5e-7, 2e-8, "1.5e-07 ± 2e-08 nats"),  # the dash of an exponent is not a minus
        ("seconds", 65.0, None, "1 min 05 s"),
        ("seconds", 65.0, 3.25, "65.0 ± 3.2 s"),
        ("packed_bytes", 271_000, None, "271 kB"),
        ("packed_bytes", 1_230_000, 10_000, "1.23 ± 0.01 MB"),
        ("num_products", 1140, None, "1,140"),
        ("cka", 0.98765, None, "0.988"),
        ("preserved", 0.9771, None, "97.7 %"),
        ("accuracy", math.nan, None, "not a number"),
        ("loss", math.inf, 1.0, "infinite"),
    ],
)
def test_a_value_is_said_in_its_unit(name: str, value: float, deviation: float | None, sentence: str) -> None:
    assert MEASURES[name].say(value, deviation) == sentence


def test_axes_name_the_unit() -> None:
    assert [MEASURES[name].axis for name in ("accuracy", "seconds", "loss", "cka")] == [
        "Accuracy (%)",
        "Time (s)",
        "Loss (mean squared error)",
        "Linear CKA (1 = alike)",
    ]


def test_whatever_is_measured_has_a_name() -> None:
    (metrics, *others) = [json.loads(path.read_text()) for path in sorted(ROOT.glob("assets/runs/*/metrics.json"))]
    assert all(other.keys() == metrics.keys() for other in others)
    counts = {"num_evaluation", "dense_bytes", "chance"}  # what they were measured on, and against
    compared = {*comparisons.COMPARED, *plan_words.COLUMNS, *study.OF_LAYERS}
    assert {*metrics} - counts | compared <= MEASURES.keys()
    titles = [measure.title for measure in MEASURES.values()]
    assert len(set(titles)) == len(titles)  # tables have them as the names of their columns


def test_more_is_better_of_what_a_network_keeps_and_less_of_what_it_costs() -> None:
    better = {name for name in comparisons.COMPARED if MEASURES[name].more_is_better}
    assert better == {"accuracy", "agreement"}
    shares = {"accuracy", "accuracy_dense", "accuracy_masked", "agreement", "agreement_masked"}
    assert {name for name, measure in MEASURES.items() if measure.of_images} == shares


@pytest.mark.slow
def test_what_a_measure_means_stands_nowhere_else() -> None:
    meanings = [measure.meaning[:30] for measure in MEASURES.values()]
    for path in (path for room in ("snows", "app", "pages") for path in (ROOT / room).glob("**/*.py")):
        if path.name != "names.py":
            texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            again = [text for text in texts if isinstance(text, str) and any(meaning in text for meaning in meanings)]
            assert again == [], path


def test_a_missing_value_has_a_reason() -> None:
    measured = {"accuracy": None, "accuracy_dense": None, "divergence": None, "agreement": 0.5}
    reasons = {name: said(name, measured) for name in (*measured, "seconds")}
    assert reasons == {
        "accuracy": "no labels",
        "accuracy_dense": "no labels",
        "divergence": "not a number",
        "agreement": "50.00 %",
        "seconds": "-",  # nothing has measured it yet
    }
