"""What the commands say: tables, lines of JSON, one sentence for what is wrong; and the exit codes."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from snows.measures.names import MEASURES

if TYPE_CHECKING:
    from snows.runs.latency import Timing

FINISHED, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
POLL_SECONDS = 0.2


def fail(sentence: str, code: int) -> int:
    sys.stderr.write(sentence + "\n")
    return code


def with_flags(error: Exception) -> str:
    """What is wrong, and what to type here for it."""
    remedy = getattr(error, "in_shell", "")
    return f"{error} In the shell: {remedy}." if remedy else str(error)


def heads(measures: Sequence[str]) -> list[str]:
    return [MEASURES[name].title.upper() for name in measures]


def json_line(record: Mapping[str, Any]) -> str:
    """In JSON, which has no NaN and no infinity: they are null."""
    return to_json(record, inf_nan_mode="null").decode()


def say(measure: str, value: float | None) -> str:
    return "-" if value is None else MEASURES[measure].say(value)


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def timed(timings: "Iterable[Timing]") -> str:
    """Timings of `runs.latency` as a table, and why a program is not among them."""
    from snows.runs.latency import onnx_runtime_obstacle

    said = [timing.said() for timing in timings]
    missing = onnx_runtime_obstacle()
    return table([[head.upper() for head in said[0]], *(list(row.values()) for row in said)]) + (
        f"{missing}\n" if missing else ""
    )
