"""Texts are where they are looked up, all are used, and another language says the same things of the same values."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.string_util import clean_text

from app import texts
from app.lessons.catalogue import LESSONS
from tests.app.conftest import ROOT, OpenPage

ENGLISH = texts.read(texts.FOLDER / "en.toml")
# What values are put into: by us, and by Plotly. Braces of LaTeX follow a letter or a sign.
PLACEHOLDER = re.compile(r"%\{[^}]*\}|(?<![\w^}])\{[a-z_]+\}")
LESSON_FILES = sorted((ROOT / "app/lessons").glob("*.py"))


# --- keys ---


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every look-up, after its place."""
    for path in [*(ROOT / "app").glob("**/*.py"), *(ROOT / "pages").glob("*.py")]:
        tree = ast.parse(path.read_text())
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "app.texts"]
        names = {alias.name for node in imported for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def patterns(key: ast.expr) -> list[str]:
    """What a look-up's first argument can be, as regular expressions. A lesson's name stands for each lesson's."""
    match key:
        case ast.Constant(value=str(name)):
            return [re.escape(name)]
        case ast.IfExp():
            return patterns(key.body) + patterns(key.orelse)
        case ast.JoinedStr():
            found = [""]
            for part in key.values:
                more = patterns(part)
                found = [start + end for start in found for end in more]
            return found
        case ast.FormattedValue():
            return list(LESSONS) if ast.unparse(key.value) in ("self.name", "lesson.name") else [r"[\w-]+"]
    raise AssertionError(f"a key that cannot be read: {ast.unparse(key)}")


def looked_up() -> Iterator[tuple[str, ast.Call, list[str]]]:
    """Every look-up after its place, with all keys that it can mean, and a pattern where it means none."""
    for place, call in calls():
        more = r"\.[\w-]+" if isinstance(call.func, ast.Name) and call.func.id == "choices" else ""
        for pattern in patterns(call.args[0]):
            yield place, call, [key for key in ENGLISH if re.fullmatch(pattern + more, key)] or [f"no {pattern}{more}"]


def test_every_key_is_in_english() -> None:
    assert [(place, key) for place, _, keys in looked_up() for key in keys if key not in ENGLISH] == []


def test_every_text_is_used() -> None:
    assert set(ENGLISH) - {key for _, _, keys in looked_up() for key in keys} == set()


def test_every_text_is_given_its_values() -> None:
    for place, call, keys in looked_up():
        given = {f"{{{keyword.arg}}}" for keyword in call.keywords}
        if "{None}" not in given:  # `**values`
            for key in keys:
                wanted = {mark for mark in PLACEHOLDER.findall(ENGLISH[key]) if mark[0] != "%"}
                assert wanted <= given, f"{key} at {place}"


def test_what_is_chosen_from_has_its_texts() -> None:
    from app.lessons import downhill, still_looking, worth
    from app.parts import play

    for lesson in LESSONS.values():
        assert list(lesson.guesses_said()) == list(lesson.guesses)
    for key, names in {
        "worth.rules": worth.RULES,
        "worth.layers": [place for place, _ in worth.LAYERS.values()],
        "downhill.ways": downhill.WAYS,
        "downhill.shapes": downhill.SHAPES,
        "downhill.columns": downhill.COLUMNS,
        "looks.maps": still_looking.METHODS,
        "looks.scales": still_looking.SCALES,
        "play.networks": play.NETWORKS,
        "play.values": play.VALUES,
    }.items():
        assert all(texts.choices(key, names).values())


@pytest.mark.parametrize("path", LESSON_FILES, ids=lambda path: path.stem)
def test_a_lesson_has_no_text_of_its_own(path: Path) -> None:
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in told]
    assert [s for s in literals if isinstance(s, str) and " " in s.strip() and re.search("[A-Za-z]{2}", s)] == []


# --- look-ups ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of texts with English and, of a made-up language, a few."""
    (tmp_path / "en.toml").write_bytes((texts.FOLDER / "en.toml").read_bytes())
    (tmp_path / "xx.toml").write_text(
        '[start]\ntitle = "Qua mul?"\n[play]\nkept = "Tena"\nwhole = "Toti {right} par 100."\n'
        '[worth]\ntitle = "Pesa?"\nguesses.few = "Nul"\n'
    )
    monkeypatch.setattr(texts, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("locale", "title"),
    [
        ("xx", "Pesa?"),
        ("xx-AT", "Pesa?"),
        *((other, ENGLISH["worth.title"]) for other in (None, "", "en-GB", "yy", "../xx", "xxx")),
    ],
)
def test_a_locale_is_read_where_it_has_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, locale: str | None, title: str
) -> None:
    monkeypatch.setattr(texts, "locale", lambda: locale)
    assert texts.text("worth.title") == title
    assert texts.text("worth.idea") == ENGLISH["worth.idea"]
    assert texts.choices("worth.guesses", ("few", "all")) == {
        "few": "Nul" if title == "Pesa?" else "Hardly any",
        "all": "Nearly all of them",
    }


def test_only_what_is_given_values_is_formatted() -> None:
    assert texts.text("class.many", count=2) == "**2 guesses** in this class so far."
    assert r"\overline{x_j^2}" in texts.text("worth.formula")
    with pytest.raises(KeyError, match="count"):
        texts.text("class.many", number=2)
    with pytest.raises(KeyError, match="nothing"):
        texts.text("class.nothing")


def test_a_spinners_text_is_looked_up_when_it_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title = texts.Later("worth.title")
    monkeypatch.setattr(texts, "locale", lambda: "xx")
    assert clean_text(title) == "Pesa?"  # as Streamlit reads it


@pytest.mark.slow
def test_another_language_is_shown_and_alters_no_address(
    folder: Path, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(st.context), "locale", property(lambda self: "xx-YY"))
    app = open_page("overview")
    assert app.title[0].value == "Qua mul?"
    assert "**Toti 94 par 100.**" in [element.value for element in app.markdown]
    assert "Tena" in [slider.label for slider in app.select_slider]
    assert ENGLISH["start.recent"] in [heading.value for heading in app.header]
    app.query_params["lesson"] = "worth"
    app.switch_page("../pages/lessons.py").run(timeout=300)
    assert app.title[0].value == "1. Pesa?"
    assert app.markdown[0].value == ENGLISH["worth.idea"]
    assert list(app.radio[0].options) == ["Nearly all of them", "About half of them", "Nul"]
    app.radio[0].set_value("few").run(timeout=300)
    assert not app.exception, app.exception
    assert app.query_params["guess"] == "few"


# --- other languages ---


def faults(path: Path) -> list[str]:
    """What is wrong with a file of texts: keys that English does not have, values that are others than there, and one text for
    several things to choose from."""
    own = texts.read(path)
    found = [f"{key}: English has no such text" for key in own.keys() - ENGLISH.keys()]
    for key in own.keys() & ENGLISH.keys():
        wanted = set(PLACEHOLDER.findall(ENGLISH[key]))
        if set(PLACEHOLDER.findall(own[key])) != wanted:
            found.append(f"{key}: it says {', '.join(sorted(wanted)) or 'no values'} in English")
        elif wanted and re.search("[{}]", PLACEHOLDER.sub("", own[key])):
            found.append(f"{key}: a brace is not closed")
    for key in own:
        group = key.rpartition(".")[0]
        if "." in group and [other.rpartition(".")[0] for other in own if own[other] == own[key]].count(group) > 1:
            found.append(f"{key}: another of {group} says the same")
    return sorted(found)


@pytest.mark.parametrize("path", sorted(texts.FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_a_language_has_known_texts_with_the_same_values(path: Path) -> None:
    assert faults(path) == []


def test_what_is_wrong_with_a_language_is_found(folder: Path) -> None:
    assert faults(folder / "xx.toml") == []
    (folder / "yy.toml").write_text(
        '[class]\none = "una"\nmany = "{count} multe {x"\n[worth]\nchart_point = "%{x} %{y}"\nmore = ""\nidea = "{alta}"\n'
        'rules.size = "A"\nrules.hand = "A"\nlayers.last = "A"\n'
    )
    assert faults(folder / "yy.toml") == [
        "class.many: a brace is not closed",
        "class.one: it says {count} in English",
        "worth.chart_point: it says %{x:.3g}, %{y} in English",
        "worth.idea: it says no values in English",
        "worth.more: English has no such text",
        "worth.rules.hand: another of worth.rules says the same",
        "worth.rules.size: another of worth.rules says the same",
    ]
