"""Texts that a person reads, in the reader's language: `assets/texts/en.toml`, and beside it one file a language.

A key is a table and a name in it, `worth.title`. A text is formatted only where values are given: elsewhere the braces of LaTeX
and of Plotly's `%{x}` stay as they are. Numbers come formatted. Files are read once a process.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from snows.bundled import ASSETS

FOLDER = ASSETS / "texts"
_ENGLISH = "en"


def _nobody() -> None:
    return None


# The reader's locale, such as `de-AT`. The app's script puts the browser's here: figures and tables have texts too, and know no
# Streamlit.
locale: Callable[[], str | None] = _nobody


class Later(str):
    """A text for what is told its texts at import, such as a cache with a spinner: made of a key, its `str` is the text."""

    def __str__(self) -> str:
        return text(super().__str__())


def text(key: str, /, **values: object) -> str:
    """The text of that key with its `values`, in English where the reader's language lacks it.

    Raises `KeyError` for a key that English lacks, or a value that is missing.
    """
    own, english = (read(FOLDER / f"{name}.toml") for name in (_language(), _ENGLISH))
    found = own[key] if key in own else english[key]
    return found.format(**values) if values else found


def choices(key: str, names: Iterable[str]) -> dict[str, str]:
    """The texts `key.name` by their names, which may stand in an address: no language changes them. Raises `KeyError`."""
    return {name: text(f"{key}.{name}") for name in names}


@cache
def read(path: Path) -> dict[str, str]:
    """A file's texts by their keys. Raises `OSError` and `tomllib.TOMLDecodeError`."""
    return dict(_flat(tomllib.loads(path.read_text(encoding="utf-8"))))


def _flat(table: dict, start: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _language() -> str:
    asked = locale() or _ENGLISH
    return next((name for name in (asked, asked.partition("-")[0]) if name in _languages(FOLDER)), _ENGLISH)


@cache
def _languages(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.toml")}
