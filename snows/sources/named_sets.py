"""torchvision's data sets by name: what they are, fetching them with progress, and their pictures by number.

They are kept in torchvision's own layout under `~/.snows/data`, so that a copy made elsewhere can be put there by hand.
"""

import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snows.config import first_line
from snows.sources.downloads import DownloadError, Report, no_route, reported

ROOT = Path("~/.snows/data")


@dataclass(frozen=True)
class NamedSet:
    """A data set as torchvision offers it.

    `num_bytes`: about what is downloaded; `folder`: where torchvision unpacks it, under the root; `num_training`: the images
    that there are to calibrate with, as its makers say; `open(root, train, download)`: torchvision's data set, its items a
    picture and a class index; `names(dataset)`: its classes, as a network would know them.
    """

    title: str
    num_bytes: int
    folder: str
    num_training: int
    addresses: tuple[str, ...]
    open: Callable[[Path, bool, bool], Any]
    names: Callable[[Any], list[str]]


def _classes(dataset: Any) -> list[str]:
    return list(dataset.classes)


def _cifar(name: str) -> Callable[[Path, bool, bool], Any]:
    def open_set(root: Path, train: bool, download: bool) -> Any:
        from torchvision import datasets

        return getattr(datasets, name)(root, train=train, download=download)

    return open_set


def _split(name: str, train_split: str, test_split: str, **settings: str) -> Callable[[Path, bool, bool], Any]:
    def open_set(root: Path, train: bool, download: bool) -> Any:
        from torchvision import datasets

        return getattr(datasets, name)(root, split=train_split if train else test_split, download=download, **settings)

    return open_set


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
SETS: dict[str, NamedSet] = {
    "cifar-10": NamedSet(
        "CIFAR-10",
        170_500_000,
        "cifar-10-batches-py",
        50_000,
        ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        _cifar("CIFAR10"),
        _classes,
    ),
    "cifar-100": NamedSet(
        "CIFAR-100",
        169_000_000,
        "cifar-100-python",
        50_000,
        ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
        _cifar("CIFAR100"),
        _classes,
    ),
    "imagenette": NamedSet(
        "Imagenette, ten classes of ImageNet, 320 pixels",
        341_700_000,
        "imagenette2-320",
        9_469,
        ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",),
        _split("Imagenette", "train", "val", size="320px"),
        lambda dataset: list(dataset.wnids),
    ),
    "oxford-pets": NamedSet(
        "Oxford-IIIT Pets",
        811_100_000,
        "oxford-iiit-pet",
        3_680,
        (f"{_OXFORD}/pets/data/images.tar.gz", f"{_OXFORD}/pets/data/annotations.tar.gz"),
        _split("OxfordIIITPet", "trainval", "test"),
        _classes,
    ),
    "flowers-102": NamedSet(
        "Oxford Flowers-102",
        345_000_000,
        "flowers-102",
        1_020,
        tuple(f"{_OXFORD}/flowers/102/{file}" for file in ("102flowers.tgz", "imagelabels.mat", "setid.mat")),
        _split("Flowers102", "train", "test"),
        _classes,
    ),
}


def is_here(name: str) -> bool:
    """Whether the set is on this machine."""
    return (ROOT.expanduser() / SETS[name].folder).exists()


def fetch(name: str, report: Report | None = None) -> None:
    """Have torchvision download and unpack the set, unless it is here. Raises `DownloadError`."""
    if is_here(name):
        return
    spec, root = SETS[name], ROOT.expanduser()
    place = root / spec.folder
    if reason := no_route(spec.addresses[0]):
        raise _unreachable(spec, reason)
    # To a folder of its own, which gets its place when it is whole: torchvision takes any folder of that name for the set.
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".fetching-*"):
        if time.time() - left.stat().st_mtime > 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    if (free := shutil.disk_usage(root).free) < 3 * spec.num_bytes:  # packed, unpacked, and room to go on living
        raise DownloadError(
            f"{spec.title} needs about {3 * spec.num_bytes / 1e9:.1f} GB in {root} while it is unpacked, but "
            f"{free / 1e9:.1f} GB are free there. Make room, and try again."
        )
    scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=root))
    try:
        with nullcontext() if report is None else reported(spec.title, report):
            spec.open(scratch, True, True)
        if not place.exists():
            (scratch / spec.folder).rename(place)
    except OSError as error:
        raise _unreachable(spec, first_line(error)) from error
    except RuntimeError as error:
        if "corrupted" not in str(error):
            raise
        raise DownloadError(f"{spec.title} arrived damaged: its checksum is not torchvision's. Try again.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def open_sets(name: str) -> tuple[Any, Any]:
    """torchvision's training and test set, which must be here. Raises `DownloadError` where they are not whole."""
    spec, root = SETS[name], ROOT.expanduser()
    try:
        return spec.open(root, True, False), spec.open(root, False, False)
    except Exception as error:  # torchvision's readers raise anything at all over a damaged folder
        raise DownloadError(
            f"{spec.title} is not whole on this machine ({str(error) or type(error).__name__}). Have its folder {spec.folder} "
            "deleted, and it will be downloaded again.",
            in_shell=f"rm -r {root / spec.folder}",
        ) from error


def _unreachable(spec: NamedSet, reason: str) -> DownloadError:
    host = urllib.parse.urlsplit(spec.addresses[0]).hostname
    files = " and ".join(spec.addresses)
    return DownloadError(
        f"{spec.title} could not be fetched from {host}: {reason}. Download {files} on a machine with a connection, and bring "
        "the pictures in it as an archive.",
        in_shell=f"unpack it in {ROOT.expanduser()} so that the folder {spec.folder} is there, as torchvision would",
    )
