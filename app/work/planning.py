"""What a run would do and take, worked out in a process of its own.

A plan exports the network, and `torch.export` (2.14) is no neighbor for other threads: a run that computes meanwhile comes out
different in its last digits, so that a seed no longer fixes the result, and two exports at once leave the exporter broken until
the process ends. So pages ask another process. It is kept, since torch takes seconds to start, and ends with the app's.
"""

import multiprocessing
import subprocess
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from snows.bundled import HOME
from snows.config import InputError, RunConfig

if TYPE_CHECKING:
    from snows.runs.estimate import Plan


class Planner:
    """Answers one question at a time. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process if there is none, so that the first question need not wait for it."""
        with self._lock:
            self._alive()

    def plan(self, config: RunConfig) -> "Plan":
        """`snows.runs.estimate.plan(config)`. Raises `InputError` for a bad config, `RuntimeError` if planning itself fails."""
        with self._lock:
            connection = self._alive()
            try:
                connection.send(config.model_dump_json())
                kind, answer = connection.recv()
            except (EOFError, OSError):
                raise RuntimeError(
                    "The planning process ended, perhaps for lack of memory. Try again, or a smaller network."
                ) from None
        if kind == "plan":
            return answer
        raise InputError(answer) if kind == "input" else RuntimeError(answer)

    def _alive(self) -> Connection:
        if self._connection is None or self._process is None or self._process.poll() is not None:
            ours, theirs = multiprocessing.Pipe()
            command = [sys.executable, "-m", "app.work.planning", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=HOME, stdin=subprocess.DEVNULL)
            theirs.close()  # so that its end shows here as the end of the pipe
            self._connection = ours
        return self._connection


def _answer(config_json: str) -> tuple[str, object]:
    from snows.runs import estimate

    try:
        return "plan", estimate.plan(RunConfig.model_validate_json(config_json))
    except InputError as error:
        return "input", str(error)
    except Exception:
        return (
            "failed",
            f"The network could not be looked at, for a reason nobody foresaw. Please report it:\n\n{traceback.format_exc()}",
        )


def serve(connection: Connection) -> None:
    """Answer until the other end is closed."""
    import snows.runs.runner  # noqa: F401  # the first answer need not wait for torch

    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        connection.send(_answer(question))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
