"""Ways down one layer's loss (`snows.measures.descents`) in a thread of their own, which a page can watch and stop."""

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from app.work.jobs import CPU_NICENESS
from snows.config import Cancelled, InputError

if TYPE_CHECKING:
    from snows.measures.descents import Point

# What makes the points, given what to call between two pieces of work.
Points = Callable[[Callable[[], None]], "Iterable[Point]"]


class Descending:
    """Begun when it is made. Safe to call from any thread."""

    def __init__(self, points: Points) -> None:
        self._points, self._made, self._lock = points, list["Point"](), threading.Lock()
        self._stopping, self._ended, self._error = threading.Event(), threading.Event(), ""
        threading.Thread(target=self._work, name="descents", daemon=True).start()

    def stop(self) -> None:
        """Ask it to end; the points so far stay."""
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

    def points(self) -> "list[Point]":
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
            for point in self._points(self._check):
                with self._lock:
                    self._made.append(point)
        except Cancelled:
            pass
        except InputError as refused:
            self._error = str(refused)
        except Exception as unforeseen:
            self._error = f"It stopped with an error nobody foresaw: {type(unforeseen).__name__}: {unforeseen}. Try again."
        finally:
            self._ended.set()
