"""The page of the lessons: each under its address, with a guess before its numbers, and a number that changes as one moves."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.lessons.catalogue import LESSONS
from tests.app.conftest import ROOT, OpenPage

pytestmark = pytest.mark.slow


@pytest.fixture
def open_lesson(open_page: OpenPage) -> OpenPage:
    """`open_lesson("worth", guess="all")`: a lesson by its address."""

    def visit(name: str, **says: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=300)
        app.run()
        for key, value in {"lesson": name, **says}.items():
            app.query_params[key] = value
        app.switch_page("../pages/lessons.py").run()
        assert not app.exception, app.exception
        return app

    return visit


def labelled(elements, label: str):
    (element,) = [element for element in elements if element.label == label]
    return element


def tiles(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def move(app: AppTest, label: str, value: float) -> None:
    labelled(app.select_slider, label).set_value(value).run()
    assert not app.exception, app.exception


def test_without_a_lesson_the_page_lists_all(open_page: OpenPage) -> None:
    app = open_page("lessons")
    assert not app.exception
    shown = "\n".join(str(element.value) for element in app.markdown)
    assert all(lesson.idea in shown for lesson in LESSONS.values())


@pytest.mark.parametrize("name", LESSONS)
def test_a_guess_comes_before_the_answer(open_lesson: OpenPage, name: str) -> None:
    app = open_lesson(name)
    assert not app.select_slider
    assert "A question" not in [heading.value for heading in app.subheader]
    assert [expander.label for expander in app.expander] == ["The formula", "For the teacher"]
    (guess,) = app.radio
    assert guess.value is None


def test_more_weights_removed_leave_fewer_right_answers(open_lesson: OpenPage) -> None:
    app = open_lesson("worth")
    app.radio[0].set_value("few").run()
    assert app.query_params["guess"] == "few"
    assert tiles(app)["Weights removed"] == "9,216 of 18,432"
    half = int(tiles(app)["Right answers"].split()[0])
    move(app, "Share removed", 95)
    assert int(tiles(app)["Right answers"].split()[0]) < half
    assert app.query_params["removed"] == "95"


def test_alike_inputs_make_up_for_more(open_lesson: OpenPage) -> None:
    app = open_lesson("others", guess="alike", alike="0")
    assert tiles(app)["Error, just cut"] == tiles(app)["Refitted"]
    move(app, "How alike the inputs are", 0.9)
    assert float(tiles(app)["Refitted"].split()[0]) < 0.5 * float(tiles(app)["Error, just cut"].split()[0])


def test_looking_further_ahead_lights_more_operations(open_lesson: OpenPage) -> None:
    app = open_lesson("ahead", guess="later", k="1")
    listed = next(str(element.value) for element in app.markdown if "conv1` convolution" in str(element.value))
    move(app, "How many operations ahead (K)", 5)
    longer = next(str(element.value) for element in app.markdown if "conv1` convolution" in str(element.value))
    assert (len(listed.splitlines()), len(longer.splitlines())) == (2, 6)
    assert any("As you expected" in str(element.value) for element in app.markdown)


def test_a_round_valley_takes_one_step(open_lesson: OpenPage) -> None:
    app = open_lesson("downhill", guess="many")
    before = app.dataframe[0].value["Steps"].tolist()
    move(app, "How narrow the valley is", 1)
    assert app.dataframe[0].value["Steps"].tolist() == [1, 1, 1, 1] != before


def test_a_choice_of_three_says_so_and_the_answer_is_the_best(open_lesson: OpenPage) -> None:
    app = open_lesson("which", guess="seldom", keep1a=["A1", "A2", "A3"])  # type: ignore[arg-type]
    assert "Keep two in every group of four." in [info.value for info in app.info]
    move(app, "Neuron", 2)
    assert "Keep two in every group of four." not in [info.value for info in app.info]
    given_up = [element.value for element in app.markdown if ": an error of " in str(element.value)]
    assert len(given_up) == 1
    best = given_up[0].partition(":")[0].split(", ")
    app = open_lesson(
        "which", guess="seldom", neuron="2", **{f"keep2{g.lower()}": [b for b in best if b[0] == g] for g in "ABC"}
    )  # type: ignore[arg-type]
    assert any("The best of all 216" in str(element.value) for element in app.markdown)


def test_what_looks_everywhere_alike_is_the_floor(open_lesson: OpenPage) -> None:
    app = open_lesson("looks", guess="low", scale="rescaled")
    assert any("Even maps score 0.8" in str(element.value) for element in app.markdown)
    labelled(app.select_slider, "Weights kept").set_value("2:4").run()
    assert not app.exception
    assert app.query_params["kept"] == "2:4"


def test_a_class_guesses_together(open_lesson: OpenPage) -> None:
    first = open_lesson("worth")
    labelled(first.button, "Make a link").click().run()
    (code,) = first.query_params["class"] if isinstance(first.query_params["class"], list) else [first.query_params["class"]]
    assert any(f"?lesson=worth&class={code}" in element.value for element in first.code)
    assert any("**0 guesses**" in str(element.value) for element in first.markdown)
    second = open_lesson("worth", **{"class": code, "guess": "few"})
    assert any("**1 guess**" in str(element.value) for element in second.markdown)
    first.radio[0].set_value("all").run()
    assert any("**2 guesses**" in str(element.value) for element in first.markdown)
    first.radio[0].set_value("half").run()  # a change of mind is no further guess
    assert any("**2 guesses**" in str(element.value) for element in first.markdown)


def test_every_lessons_file_is_in_the_catalogue() -> None:
    others = {"__init__", "catalogue", "classroom", "lesson", "networks"}
    assert len({path.stem for path in Path(ROOT / "app/lessons").glob("*.py")} - others) == len(LESSONS)
