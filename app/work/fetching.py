"""Downloads in the background, one thread each, which any page can watch and stop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.work import engine
from snows.config import InputError

if TYPE_CHECKING:
    from snows.sources.downloads import Report


class _StoppedError(Exception):
    """Somebody asked for it."""


@dataclass(frozen=True)
class Download:
    """How far a download is. `what` is fetched now; `error` says why it ended before it was whole."""

    what: str = ""
    done: int = 0
    total: int | None = None
    active: bool = True
    error: str = ""


class Downloads:
    """The process's downloads by name. Safe to call from any thread. `fetch(name, report)` does one."""

    def __init__(self, fetch: "Callable[[str, Report], None]") -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._known: dict[str, Download] = {}
        self._stopping: set[str] = set()

    def start(self, name: str) -> None:
        """Begin, unless it is being downloaded already."""
        with self._lock:
            if (known := self._known.get(name)) is not None and known.active:
                return
            self._known[name] = Download()
            self._stopping.discard(name)
        threading.Thread(target=self._work, args=(name,), name=f"download-{name}", daemon=True).start()

    def stop(self, name: str) -> None:
        """Ask a download to end; what it has fetched is dropped."""
        with self._lock:
            self._stopping.add(name)

    def look(self, name: str) -> Download | None:
        """How far it is, or how it ended; None if it was never begun."""
        with self._lock:
            return self._known.get(name)

    def _work(self, name: str) -> None:
        def report(what: str, done: int, total: int | None) -> None:
            with self._lock:
                if name in self._stopping:
                    raise _StoppedError
                self._known[name] = Download(what, done, total)

        error = ""
        try:
            self._fetch(name, report)
        except _StoppedError:
            pass
        except InputError as refused:
            error = str(refused)
        except Exception as unforeseen:
            error = f"The download stopped with an error nobody foresaw: {type(unforeseen).__name__}: {unforeseen}. Try again."
        with self._lock:
            self._known[name] = replace(self._known[name], active=False, error=error)


def fetch(name: str, report: "Report") -> None:
    """A data set or a network's weights, by the name that a config gives it."""
    engine.load()
    from snows.sources import models, named_sets

    fetch_it = named_sets.fetch if name in named_sets.SETS else models.fetch
    fetch_it(name, report)
