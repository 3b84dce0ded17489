"""The files that benchmarks write a line a measurement into, so that one that was ended goes on where it stopped."""

import json
from pathlib import Path


def read(path: Path) -> list[dict]:
    """Every measurement on file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, record: dict) -> None:
    """Write down a measurement."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
