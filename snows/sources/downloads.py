"""What other libraries fetch from the network, each into its own cache, with progress and a way to stop.

timm's weights come through `huggingface_hub`, torchvision's and PyTorch's through `torch.hub`, data sets through
`torchvision.datasets`. All of them show a `tqdm` bar; here that bar calls a function instead.
"""

import os
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from snows.config import InputError, first_line

# What is fetched, bytes so far, bytes in all if known. May raise, which stops the download: what is whole by then stays.
Report = Callable[[str, int, int | None], None]

_patched = threading.Lock()


class DownloadError(InputError):
    """What is not on this machine could not be fetched; the message says from where, why, and how to bring it."""


def bar(what: str, report: Report) -> type[tqdm]:
    """A class to use in place of `tqdm`, which tells `report` and draws nothing."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            keywords.pop("name", None)  # huggingface_hub's own
            super().__init__(*arguments, **keywords | {"disable": True})
            self.total = keywords.get("total")
            self.n = keywords.get("initial") or 0
            report(what, int(self.n), self.total)

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            report(what, int(self.n), self.total)
            return None

    return Bar


@contextmanager
def reported(what: str, report: Report) -> Iterator[None]:
    """What `torch.hub` and `torchvision.datasets` download inside the block is reported.

    Neither takes a progress function, so the name they know `tqdm` by stands for another class meanwhile; one block at a time.
    """
    import torchvision.datasets.utils as datasets

    with _patched:
        before = torch.hub.tqdm, datasets.tqdm
        torch.hub.tqdm = datasets.tqdm = bar(what, report)
        try:
            yield
        finally:
            torch.hub.tqdm, datasets.tqdm = before


def no_route(address: str) -> str | None:
    """Why the host of `address` cannot be reached, within five seconds; None if it can, or if a proxy is to be asked."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    parts = urllib.parse.urlsplit(address)
    try:
        socket.create_connection((parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


# --- published weights ---


def hub_path(address: str) -> Path:
    """Where `torch.hub` keeps what it downloads from `address`."""
    return Path(torch.hub.get_dir(), "checkpoints", address.rpartition("/")[2])


def hub_address(repository: str, file: str) -> str:
    """Where the hub keeps a file. `repository`: its name, perhaps with `@REVISION`."""
    from huggingface_hub import hf_hub_url

    repository, _, revision = repository.partition("@")
    return hf_hub_url(repository, file, revision=revision or None)


def in_hub_cache(repository: str, file: str) -> Path | None:
    """The hub's file on this machine, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    cached = try_to_load_from_cache(repository, file, revision=revision or None)
    return Path(cached) if isinstance(cached, str) else None


def from_hub(repository: str, file: str, name: str, report: Report | None) -> Path:
    """The hub's file, from its cache or downloaded. Raises `DownloadError`, and `EntryNotFoundError` for a file it has not."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if cached := in_hub_cache(repository, file):
        return cached
    address = hub_address(repository, file)
    # The hub's client tries for 45 seconds before it says that there is no network.
    if reason := no_route(address):
        raise _unreachable(name, address, reason)
    repository, _, revision = repository.partition("@")
    listener = None if report is None else bar(f"the weights of {name}", report)
    try:
        return Path(hf_hub_download(repository, file, revision=revision or None, tqdm_class=listener))
    except LocalEntryNotFoundError as error:  # what the hub's client calls a lost connection
        raise _unreachable(name, address, "the connection was lost") from error
    except EntryNotFoundError:
        raise
    except Exception as error:
        if is_of_connection(error):
            raise _unreachable(name, address, first_line(error)) from error
        raise


def is_of_connection(error: Exception) -> bool:
    """Whether what the hub's client raised says that it could not reach the hub, or not to the end."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


def from_address(address: str, sha256: str, name: str, report: Report | None) -> Path:
    """The file at `address`, from `torch.hub`'s cache or downloaded. `sha256`: how its hash begins. Raises `DownloadError`."""
    path = hub_path(address)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with fetching(name, address, report):
            torch.hub.download_url_to_file(address, str(path), sha256)
    return path


@contextmanager
def fetching(name: str, address: str, report: Report | None) -> Iterator[None]:
    """What is downloaded from `address` inside the block is reported, and what prevents it raised as `DownloadError`."""
    if not hub_path(address).exists() and "/resolve/" not in address and (reason := no_route(address)):
        raise _unreachable(name, address, reason)
    try:
        if report is None:
            yield
        else:
            with reported(f"the weights of {name}", report):
                yield
    except OSError as error:
        raise _unreachable(name, address, first_line(error)) from error
    except RuntimeError as error:
        if "invalid hash value" not in str(error):
            raise
        raise DownloadError(f"The weights of {name} arrived damaged from {address}. Try again.") from error


def _unreachable(name: str, address: str, reason: str) -> DownloadError:
    return DownloadError(
        f"The published weights of {name} could not be fetched from {address}: {reason}. Download that file on a machine with "
        "a connection, and bring it here as your own weights.",
        in_shell=f"--model {name} --checkpoint FILE",
    )
