"""Garbage that only Python's collector finds: networks and graphs that point at themselves, which may hold much memory.

Streamlit would look for it after every run of every page, which walks all that the process holds: with thirty visitors four
fifths of the server's time. It is told not to (`postScriptGC`), and all garbage is looked for here, now and then.
"""

import gc
import threading
import time

SECONDS = 10.0


class Collector:
    """Looks for garbage so many seconds after somebody did something, once for all that was done meanwhile."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._stirred = threading.Event()

    def stir(self) -> None:
        """Something was done that may have left garbage behind."""
        self._stirred.set()

    def start(self) -> None:
        """What there is by now stays for good, and need not be walked again."""
        gc.collect()
        gc.freeze()
        threading.Thread(target=self._work, name="garbage", daemon=True).start()

    def _work(self) -> None:
        while self._stirred.wait():
            time.sleep(self._seconds)
            self._stirred.clear()
            gc.collect()
