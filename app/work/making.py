"""What takes a while and comes piece by piece, made in a thread of its own, which a page can watch and stop."""

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from app.work.jobs import CPU_NICENESS
from snows.config import Cancelled, InputError

Piece = TypeVar("Piece")


class Making(Generic[Piece]):
    """Begun when it is made. Safe to call from any thread. `make` is given what to call between two steps, and gives pieces."""

    def __init__(self, make: Callable[[Callable[[], None]], Iterable[Piece]]) -> None:
        self._make, self._made, self._lock = make, list[Piece](), threading.Lock()
        self._stopping, self._ended, self._error = threading.Event(), threading.Event(), ""
        threading.Thread(target=self._work, name="making", daemon=True).start()

    def stop(self) -> None:
        """Ask it to end; the pieces so far stay."""
        self._stopping.set()

    @property
    def active(self) -> bool:
        return not self._ended.is_set()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked it to end."""
        return self._stopping.is_set()

    @property
    def error(self) -> str:
        """Why it ended before it was done, in a sentence."""
        return self._error

    def pieces(self) -> list[Piece]:
        """Those there are."""
        with self._lock:
            return list(self._made)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Cancelled

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), CPU_NICENESS)
        try:
            for piece in self._make(self._check):
                with self._lock:
                    self._made.append(piece)
        except Cancelled:
            pass
        except InputError as refused:
            self._error = str(refused)
        except Exception as unforeseen:
            self._error = f"It stopped with an error nobody foresaw: {type(unforeseen).__name__}: {unforeseen}. Try again."
        finally:
            self._ended.set()
