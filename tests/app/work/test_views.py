"""Saved views of the table of runs."""

from pathlib import Path

from app.work import views


def test_a_view_is_kept_replaced_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "runs"  # which nobody has made yet
    assert views.read(root) == {}
    views.save(root, "Best", {"find": ["1:8"]})
    views.save(root, "Failed", {"state": ["failed", "cancelled"]})
    views.save(root, "Best", {"find": ["1:4"], "group": ["network"]})
    assert views.read(root) == {
        "Failed": {"state": ["failed", "cancelled"]},
        "Best": {"find": ["1:4"], "group": ["network"]},
    }
    views.remove(root, "Failed")
    assert list(views.read(root)) == ["Best"]
    assert [path.name for path in root.iterdir()] == [".views.json"]


def test_only_so_many_are_kept_the_oldest_goes(tmp_path: Path) -> None:
    for number in range(views.MOST + 2):
        views.save(tmp_path, str(number), {})
    assert list(views.read(tmp_path)) == [str(number) for number in range(2, views.MOST + 2)]


def test_what_somebody_else_wrote_is_no_view(tmp_path: Path) -> None:
    for text in ("{", "[1]", '{"a": 1}', '{"a": {"find": 3}}'):
        (tmp_path / ".views.json").write_text(text)
        assert views.read(tmp_path) == {}
