"""Views of the table of runs that somebody saved: a name, and what the page's address says. One file beside the runs."""

import json
from pathlib import Path

from snows.runs.store import write_whole

Said = dict[str, list[str]]
MOST = 30


def read(root: Path) -> dict[str, Said]:
    """The saved views in the order they were saved; none where the file is not there, or somebody else wrote it."""
    try:
        saved = json.loads((root / ".views.json").read_text())
        return {str(name): {str(key): list(map(str, texts)) for key, texts in said.items()} for name, said in saved.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def save(root: Path, name: str, said: Said) -> None:
    """Keep a view under `name`, in place of one that was called so. Raises `OSError`."""
    others = {other: view for other, view in read(root).items() if other != name}
    _write(root, dict([*others.items(), (name, said)][-MOST:]))


def remove(root: Path, name: str) -> None:
    """Raises `OSError`."""
    _write(root, {other: view for other, view in read(root).items() if other != name})


def _write(root: Path, saved: dict[str, Said]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_whole(root / ".views.json", json.dumps(saved, indent=2).encode())
