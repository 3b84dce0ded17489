"""The engine and its libraries, imported once for all threads; it takes seconds, which a first page does not wait for."""

import sys
import threading

_importing = threading.Lock()


def load() -> None:
    """Import them, or wait until another thread has.

    Two threads that import torch's libraries from different ends at once can each be given a module that is half imported, so
    whoever may come first asks here.
    """
    with _importing:
        import snows.runs.runner  # noqa: F401
        from snows.sources import models

        models.every_name()  # imports timm and torchvision


def ready() -> bool:
    """Whether they are imported."""
    known = getattr(sys.modules.get("snows.sources.models"), "every_name", None)
    return known is not None and known.cache_info().currsize > 0
