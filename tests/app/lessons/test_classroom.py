"""What a class guessed."""

import pytest

from app.lessons import classroom
from app.lessons.classroom import Classes, is_code


def test_each_visitor_has_one_guess_a_lesson() -> None:
    classes = Classes()
    for visitor, guess in (("a", "all"), ("b", "few"), ("a", "few")):
        classes.guess("0a1b2c", "worth", visitor, guess)
    classes.guess("0a1b2c", "others", "a", "alike")
    classes.guess("ffffff", "worth", "a", "all")
    assert classes.counts("0a1b2c", "worth") == {"few": 2}
    assert classes.counts("0a1b2c", "others") == {"alike": 1}
    assert classes.counts("ffffff", "worth") == {"all": 1}
    assert classes.counts("000000", "worth") == {}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classroom, "MOST_CLASSES", 2)
    monkeypatch.setattr(classroom, "MOST_GUESSES", 3)
    classes = Classes()
    for visitor in "abcde":
        classes.guess("000001", "worth", visitor, "all")
    classes.guess("000001", "worth", "a", "few")
    assert classes.counts("000001", "worth") == {"all": 2, "few": 1}
    classes.guess("000002", "worth", "a", "all")
    classes.guess("000001", "worth", "a", "all")  # it is in use
    classes.guess("000003", "worth", "a", "all")
    assert [classes.counts(code, "worth").total() for code in ("000001", "000002", "000003")] == [3, 0, 1]


@pytest.mark.parametrize(
    ("text", "good"), [("0a1b2c", True), (None, False), ("", False), ("0A1B2C", False), ("0a1b2c\n", False)]
)
def test_codes(text: str | None, good: bool) -> None:
    assert is_code(text) == good
