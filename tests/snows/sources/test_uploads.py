"""What people bring: kept once under the hash of its content; if hostile or useless, refused with a sentence and no trace."""

import bz2
import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import threading
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from snows.config import InputError, RunConfig
from snows.runs.store import RunStore
from snows.sources import pictures, unpack, uploads
from snows.sources.data import load, preview
from snows.sources.models import LoadedModel, outline
from snows.sources.pictures import DataError
from snows.sources.unpack import ArchiveError
from snows.sources.uploads import Kept, keep_archive, keep_checkpoint, keep_pictures, purge
from tests.snows.helpers import zipped


def png(level: int = 0, size: tuple[int, int] = (28, 28)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, level).save(file, "PNG")
    return file.getvalue()


def tarred(files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return file


def kept(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def refused(root: Path, file: io.BytesIO, said: str, name: str = "holiday.zip") -> None:
    """Bringing the archive raises a sentence, and leaves nothing behind, here or anywhere else."""
    around = kept(root.parent)
    with pytest.raises(InputError, match=said) as error:
        keep_archive(root, file, name)
    assert str(error.value).endswith(".")
    assert kept(root.parent) == around
    assert not [path for path in root.rglob("*") if path.name not in (".uploads", ".import")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def grey() -> LoadedModel:
    return outline("resnet20-fashion")


# --- archives that are taken in ---

CLASSES = {f"{name}/{i}.png": png(20 * k + i) for k, name in enumerate(("bag", "coat")) for i in range(4)}


@pytest.mark.parametrize("around", ["", "photos/", "a/b/photos/"])
@pytest.mark.parametrize(
    "pack",
    [
        zipped,
        tarred,
        lambda files: io.BytesIO(gzip.compress(tarred(files).getvalue())),
        lambda files: io.BytesIO(bz2.compress(tarred(files).getvalue())),
    ],
    ids=["zip", "tar", "tar.gz", "tar.bz2"],
)
def test_one_folder_a_class_gives_labels(
    pack: Callable[[dict[str, bytes]], io.BytesIO], around: str, root: Path, grey: LoadedModel
) -> None:
    found = keep_archive(root, pack({around + name: content for name, content in CLASSES.items()}), "My holiday!.tar.gz")
    assert (found.count, found.classes, found.left_out) == (8, ("bag", "coat"), ())
    assert found.path.name == "My-holiday"
    assert kept(found.path) == CLASSES
    loaded = load(str(found.path), grey, 4, 4, 0)
    assert loaded.labels is not None
    assert set(loaded.labels.tolist()) <= {8, 4}  # Bag and Coat of Fashion-MNIST


def test_the_same_content_is_the_same_place(root: Path) -> None:
    first, again = (keep_archive(root, pack(CLASSES), name) for pack, name in ((zipped, "a.zip"), (tarred, "b.tar")))
    assert first.path == again.path
    other = keep_archive(root, zipped(CLASSES | {"bag/0.png": png(99)}), "a.zip")
    assert other.path != first.path
    assert not list((root / ".import").iterdir())


def test_unlabelled_is_enough_and_the_rest_is_named(root: Path, grey: LoadedModel) -> None:
    files = {f"{i}.png": png(i) for i in range(20)}
    extra = {"notes.txt": b"x", ".DS_Store": b"x", "__MACOSX/._1.png": b"x", "Thumbs.db": b"x"}
    found = keep_archive(root, zipped(files | extra), "p.zip")
    assert (found.count, found.classes, found.left_out) == (20, (), ("notes.txt",))
    shown = preview(str(found.path), grey, 4, 16, 0, count=3)
    assert (shown.num_calibration, shown.num_evaluation, shown.labelled, shown.notes) == (20, 16, False, [])
    assert shown.images.shape == (3, 1, 32, 32)
    assert all(word.endswith(".png") for word in shown.words)


def test_a_single_folder_is_no_class_unless_the_network_knows_it(root: Path, grey: LoadedModel) -> None:
    unknown, known = (
        keep_archive(root, zipped({f"{name}/{i}.png": png(i) for i in range(20)}), "p.zip").path for name in ("photos", "bag")
    )
    assert load(str(unknown), grey, 4, 16, 0).notes == []
    assert load(str(unknown), grey, 4, 16, 0).labels is None
    labels = load(str(known), grey, 4, 16, 0).labels
    assert labels is not None
    assert set(labels.tolist()) == {8}


def test_dropped_files_and_folders(root: Path) -> None:
    loose = keep_pictures(root, [(f"{i}.png", io.BytesIO(png(i))) for i in range(3)])
    assert (loose.count, loose.path.name) == (3, "3-pictures")
    folder = keep_pictures(root, [(f"album/{name}", io.BytesIO(content)) for name, content in CLASSES.items()])
    assert (folder.count, folder.classes) == (8, ("bag", "coat"))


@pytest.mark.slow
@settings(max_examples=25)
@given(levels=st.lists(st.integers(0, 255), min_size=1, max_size=6), order=st.randoms())
def test_the_place_does_not_depend_on_the_order(
    levels: list[int], order: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("runs")
    files = [(f"{i}.png", png(level)) for i, level in enumerate(levels)]
    shuffled = files.copy()
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    found = [keep_pictures(root, [(name, io.BytesIO(content)) for name, content in some]) for some in (files, shuffled)]
    assert found[0] == found[1]


# --- what nobody needs any more ---

DAY = 24 * 3600


def aged(path: Path, days: float) -> Path:
    """The place, as if it had been brought `days` ago."""
    then = time.time() - days * DAY
    os.utime(path.parent, (then, then))
    return path


def picture(root: Path, number: int) -> Path:
    return keep_pictures(root, [(f"{number}.png", io.BytesIO(png(number)))]).path


def test_what_no_run_names_goes_after_a_while(root: Path) -> None:
    unnamed, recent = aged(picture(root, 1), 31), aged(picture(root, 2), 29)
    checkpoint = aged(keep_checkpoint(root, io.BytesIO(b"\x80x"), "my.pt"), 31)
    purge(str(root))
    assert not unnamed.parent.exists()
    assert not checkpoint.parent.exists()
    assert recent.exists()
    assert not list((root / ".import").iterdir())
    purge(root / "nothing" / "here")


@pytest.mark.parametrize("setting", ["data", "checkpoint", "mask"])
def test_what_a_run_names_stays_until_it_is_gone_for_good(setting: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(root)
    place = aged(keep_checkpoint(root, io.BytesIO(b"\x80x"), "my.safetensors"), 400)
    named = {"prune": {"mask": str(place)}} if setting == "mask" else {setting: str(place)}
    run = store.create(RunConfig.model_validate(named))
    purge(root)
    store.trash(run.id)
    purge(root)
    assert place.exists()  # it can be restored
    store.purge(seconds=0)
    purge(root)
    assert not place.exists()


def test_what_a_run_of_another_version_names_stays(root: Path) -> None:
    place = aged(picture(root, 1), 400)
    run = RunStore(root).create(RunConfig())
    (run.path / "config.json").write_text(json.dumps({"unheard_of": [str(place)]}))
    purge(root)
    assert place.exists()


def test_what_is_brought_again_is_as_new(root: Path) -> None:
    place = aged(picture(root, 1), 31)
    assert picture(root, 1) == place
    purge(root)
    assert place.exists()


@pytest.mark.parametrize("how", ["a run", "brought again"])
def test_what_is_named_while_it_is_being_purged_stays(how: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = aged(picture(root, 1), 31)
    rename = Path.rename

    def then(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        if how == "a run":
            RunStore(root).create(RunConfig(data=str(place)))
        else:
            os.utime(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", then)
    purge(root)
    assert place.exists()


def test_what_is_being_emptied_while_it_is_looked_at_is_brought_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = picture(root, 1).parent
    iterdir = Path.iterdir

    def then(path: Path) -> Iterator[Path]:
        if path != place:
            return iterdir(path)
        monkeypatch.undo()
        purge(root, seconds=-1)
        return iter(())  # opened before it was moved aside, and read after it was emptied

    monkeypatch.setattr(Path, "iterdir", then)
    assert picture(root, 1).exists()


def test_many_may_bring_and_purge_at_once(root: Path) -> None:
    problems: list[Exception] = []

    def bring() -> None:
        try:
            for _ in range(20):
                picture(root, 1)
        except Exception as error:
            problems.append(error)

    def clean() -> None:
        try:
            for _ in range(20):
                purge(root, seconds=-1)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for work in (bring, bring, clean, clean)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# --- as other tools write them ---


def on_disk(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu"])
@pytest.mark.parametrize("what", [".", "*"])
def test_a_folder_packed_by_tar(form: str, what: str, root: Path, tmp_path: Path) -> None:
    on_disk(tmp_path / "pack", CLASSES)
    command = f"tar --format={form} -C {tmp_path}/pack -czf {tmp_path}/x.tgz " + ("." if what == "." else "bag coat")
    subprocess.run(command.split(), check=True)
    found = keep_archive(root, tmp_path / "x.tgz", "x.tgz")
    assert (found.count, found.classes, found.left_out) == (8, ("bag", "coat"), ())
    assert kept(found.path) == CLASSES


def test_a_tar_of_files_with_holes_long_names_and_absolute_ones(root: Path, tmp_path: Path) -> None:
    long = "a very long name of a folder " * 6
    files = {f"{long}/{i}.pgm": b"P5 100 100 255\n" + bytes(9_000) + bytes([i] * 1_000) for i in range(3)}
    on_disk(tmp_path / "pack", files)
    subprocess.run(["tar", "-S", "-P", "-cf", tmp_path / "x.tar", tmp_path / "pack"], check=True)
    assert kept(keep_archive(root, tmp_path / "x.tar", "x.tar").path) == files


@pytest.mark.parametrize(
    "names",
    [lambda name: "./" + name, lambda name: "/home/me/" + name, lambda name: "C:\\Users\\me\\" + name.replace("/", "\\")],
)
def test_names_that_other_systems_write(names: Callable[[str], str], root: Path) -> None:
    for pack in (zipped, tarred):
        found = keep_archive(root, pack({names(name): content for name, content in CLASSES.items()}), "x.zip")
        assert kept(found.path) == CLASSES
        assert found.classes == ("bag", "coat")


def test_what_macs_write(root: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "épée")
    files = {f"Épées/{decomposed}/{i}.png": png(i) for i in range(4)} | {f"Épées/bag/{i}.png": png(i) for i in range(4)}
    junk = {f"__MACOSX/Épées/bag/._{i}.png": b"AppleDouble" for i in range(4)} | {"Épées/.DS_Store": b"x"}

    def without_the_flag(file: io.BytesIO) -> io.BytesIO:
        content = file.getvalue()
        for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = 0
            while (start := content.find(mark, start)) >= 0:
                content = content[: start + at + 1] + bytes([content[start + at + 1] & ~8]) + content[start + at + 2 :]
                start += 4
        return io.BytesIO(content)

    for file in (zipped(files | junk), without_the_flag(zipped(files | junk)), tarred(files | junk)):
        found = keep_archive(root, file, "x.zip")
        assert (found.classes, found.left_out) == (("bag", decomposed), ())


def test_names_in_an_old_encoding_stay_apart(root: Path) -> None:
    file = tarred(
        {f"{c}/{i}.png".encode("latin-1").decode("utf-8", "surrogateescape"): png(i) for c in ("épée", "être") for i in (1, 2)}
    )
    assert keep_archive(root, file, "x.tar").classes == ("épée", "être")


def test_links_within_an_archive_are_their_files(root: Path, tmp_path: Path) -> None:
    pack = on_disk(tmp_path / "pack", {"bag/1.png": png(1), "coat/2.png": png(2)})
    (pack / "coat" / "1.png").symlink_to("../bag/1.png")
    (pack / "coat" / "again.png").symlink_to("1.png")
    (pack / "bag" / "3.png").hardlink_to(pack / "coat" / "2.png")
    (pack / "bag" / "dead.png").symlink_to("../nowhere.png")
    (pack / "bag" / "out.png").symlink_to("/etc/passwd")
    os.mkfifo(pack / "bag" / "pipe.png")
    subprocess.run(["tar", "-C", pack, "-czf", tmp_path / "x.tgz", "."], check=True)
    (pack / "bag" / "pipe.png").unlink()
    subprocess.run(["zip", "-qry", tmp_path / "x.zip", "."], cwd=pack, check=True)
    for name, faults in (("x.tgz", 3), ("x.zip", 2)):
        found = keep_archive(root, tmp_path / name, name)
        assert kept(found.path) == {
            **{"bag/1.png": png(1), "bag/3.png": png(2)},
            **{"coat/1.png": png(1), "coat/2.png": png(2), "coat/again.png": png(1)},
        }
        assert len(found.left_out) == faults
        assert any("bag/dead.png is a link to what is not in the archive" in said for said in found.left_out)


def test_links_in_circles_are_left_out(root: Path) -> None:
    def circle(info: tarfile.TarInfo) -> None:
        if info.name in ("a.png", "b.png"):
            info.type, info.size = tarfile.SYMTYPE, 0
            info.linkname = "b.png" if info.name == "a.png" else "a.png"

    found = keep_archive(root, tarred({"a.png": b"", "b.png": b"", "c.png": png()}, circle), "x.tar")
    assert (found.count, len(found.left_out)) == (1, 2)


# Pictures in each folder; then the classes, how many pictures there are, how many files are left out.
LAYOUTS = {
    "chest": (
        {"chest/train/NORMAL": 3, "chest/train/SICK": 3, "chest/val/NORMAL": 1, "chest/val/SICK": 1},
        (("NORMAL", "SICK"), 8, 0),
    ),
    "twice": (
        {
            **{"seg_train/seg_train/sea": 3, "seg_train/seg_train/wood": 3, "seg_pred/seg_pred": 3},
            **{"seg_test/seg_test/sea": 2, "seg_test/seg_test/wood": 2},
        },
        (("sea", "wood"), 10, 3),
    ),
    "tiny": (
        {"t/train/n01/images": 2, "t/train/n02/images": 2, "t/val/images": 2, "t/test/images": 2},
        (("images", "n01", "n02"), 8, 0),
    ),
    "flat parts": ({"train": 4, "test": 2}, ((), 6, 0)),
    "one loose": ({"": 1, "bag": 9, "coat": 9}, (("bag", "coat"), 18, 1)),
    "a cover": ({"album": 1, "album/bag": 9, "album/coat": 9}, (("bag", "coat"), 18, 1)),
    "hidden": (
        {"bag": 2, "coat": 2, ".ipynb_checkpoints": 2, "bag/.thumbs": 1, "@eaDir/bag": 2},
        (("bag", "coat"), 4, 0),
    ),
    "a class called train": ({"train": 2, "bus": 2, "plane": 2}, (("bus", "plane", "train"), 6, 0)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_people_publish(layout: str, root: Path) -> None:
    folders, (classes, count, left_out) = LAYOUTS[layout]
    files = {f"{folder}/{i}.png".lstrip("/"): png(i) for folder, number in folders.items() for i in range(number)}
    found = keep_archive(root, zipped(files), "x.zip")
    assert (found.classes, found.count, len(found.left_out)) == (classes, count, left_out)
    again = keep_pictures(root, [(name, io.BytesIO(content)) for name, content in kept(found.path).items()])
    assert (again.count, again.classes, again.left_out) == (count, classes, ())


def test_what_is_no_picture_is_left_out_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", 2_000)
    files = {f"{i}.png": png(i) for i in range(3)}
    bad = {"torn.png": png()[:20], "empty.jpg": b"", "text.gif": b"I am text", "large.png": bytes(3_000), "notes.md": b"x"}
    found = keep_archive(root, zipped(files | bad), "x.zip")
    assert kept(found.path) == files
    assert sorted(said.split()[0] for said in found.left_out) == sorted(bad)
    shutil.rmtree(root)
    refused(root, zipped(bad), r"(torn\.png|empty\.jpg|text\.gif|large\.png) (is not an image|has)")


def test_a_compressed_tar_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).permutation(40)
    file = io.BytesIO(gzip.compress(tarred({f"{i:02d}.png": png(int(i)) for i in numbers}).getvalue()))
    rewinds = []
    rewind = gzip._GzipReader._rewind  # type: ignore[attr-defined]
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda reader: (rewinds.append(1), rewind(reader))[1])  # type: ignore[attr-defined]
    keep_archive(root, file, "x.tgz")
    assert len(rewinds) <= 1  # once for the list, once for the content


# --- hostile ones ---


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/../evil.png", "a\\..\\..\\evil.png", "C:..\\evil.png"])
def test_a_path_that_leads_outside(pack: Callable[..., io.BytesIO], name: str, root: Path) -> None:
    refused(root, pack(CLASSES | {name: png()}), "would lie outside the folder of the pictures")


def test_links_and_devices(root: Path) -> None:
    def zip_link(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    refused(root, zipped({"a.png": b"/etc/passwd"}, zip_link), r"a\.png is a link")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):

        def tar_link(info: tarfile.TarInfo, kind: bytes = kind) -> None:
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

        refused(root, tarred({"a.png": b""}, tar_link), r"a\.png is a (link|device)")


@pytest.mark.slow
def test_archives_that_grow_to_fill_the_disk(root: Path) -> None:
    bomb = {"a.png": bytes(300 * 1000**2)}
    refused(root, zipped(bomb), "made to fill the disk")
    refused(root, io.BytesIO(gzip.compress(tarred(bomb).getvalue(), 1)), "made to fill the disk")


def test_a_tar_whose_header_has_no_end_is_not_read_into_memory(root: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 10**9
    endless = info.tobuf(tarfile.USTAR_FORMAT) + bytes(8 * 10**6)
    refused(root, io.BytesIO(gzip.compress(endless)), "holds more than 20,000 files")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_too_many_entries(pack: Callable[..., io.BytesIO], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_IMAGES", 10)
    refused(root, pack({f"{i}.png": b"" for i in range(11)}), "more than 10 files. Take a part of the pictures")


def test_sizes_are_limited_by_picture_in_all_and_by_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_PICTURE_BYTES", 50)
    refused(root, zipped(CLASSES), "a picture may have")
    monkeypatch.undo()
    monkeypatch.setattr(uploads, "MAX_BYTES", 100)
    refused(root, zipped(CLASSES), "can be taken in. Take a part")
    monkeypatch.undo()
    free = shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    refused(root, zipped(CLASSES), "are free in .* Make room there")


def test_a_picture_of_too_many_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_PIXELS", 1_000_000)
    refused(root, zipped({"big.png": png(size=(2_000, 1_000))}), r"big\.png is too large an image: 2,000 x 1,000 pixels")
    monkeypatch.undo()
    huge = bytearray(png())
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # the size in the head alone
    refused(root, zipped({"big.png": bytes(huge)}), "big.png is ")


def test_a_picture_that_another_program_would_open(root: Path) -> None:
    refused(root, zipped({"a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}), "not an image that can be read")


def test_archives_that_are_none(root: Path) -> None:
    refused(root, io.BytesIO(b"I am no archive"), "is not a whole zip or tar archive")
    refused(root, io.BytesIO(b""), "is not a whole zip or tar archive")
    refused(root, io.BytesIO(b"7z\xbc\xaf"), "rare method")
    whole = zipped(CLASSES).getvalue()
    refused(root, io.BytesIO(whole[:-30]), "is not a whole")
    packed = gzip.compress(tarred(CLASSES).getvalue())
    refused(root, io.BytesIO(packed[: len(packed) // 2]), "is not a whole")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "There are no pictures in it"),
        (("a.txt", "b.txt"), r"no pictures in it; it holds a\.txt and more"),
        (("a/1.png", "2.png"), r"Some pictures in it lie in folders and some beside them \(\S+\.png\)"),
        (("2023/a/1.png", "2024/b/1.png"), r"folders within folders \(2023, 2024\)"),
        (
            ("train/a/1.png", "val/a/1/x/1.png", "val/b/2/y/2.png"),
            r"pictures in val of it lie in folders within folders \(a, b\)",
        ),
        (("images.zip", "labels.csv"), r"it holds images\.zip and more\. Unpack what is packed in it first"),
    ],
)
def test_arrangements_without_a_meaning(names: tuple[str, ...], said: str, root: Path) -> None:
    refused(root, zipped({name: png() for name in names}), said)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice(root: Path) -> None:
    file = zipped({"a.png": png()})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("a.png", png(1))
    refused(root, file, r"two files a\.png")


def test_a_size_that_lies(root: Path) -> None:
    whole = bytearray(zipped({"a.png": png(size=(300, 300))}).getvalue())
    directory = whole.index(b"PK\x01\x02")
    whole[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    refused(root, io.BytesIO(bytes(whole)), "not a whole|not of the size")


def test_any_bytes_are_a_sentence(root: Path) -> None:
    random = np.random.default_rng(0)
    for start in (b"PK\x03\x04", b"\x1f\x8b", b"BZh9", b""):
        refused(root, io.BytesIO(start + random.bytes(2_000)), r"\.$")


# --- checkpoints ---


def test_a_checkpoint_is_kept_as_it_is(root: Path) -> None:
    content = b"PK\3\4weights"
    first, again = (keep_checkpoint(root, io.BytesIO(content), name) for name in ("my net.pth.tar", "other"))
    assert (first.name, first.read_bytes(), first) == ("my-net.pth.tar", content, again)
    assert keep_checkpoint(root, io.BytesIO(b"\x80others"), "../../etc/x.pt").is_relative_to(root)


def test_what_is_no_checkpoint_by_content_or_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"my\.pt is neither of safetensors nor of torch\.save"):
        keep_checkpoint(root, io.BytesIO(b"import os"), "my.pt")
    monkeypatch.setattr(uploads, "MAX_CHECKPOINT_BYTES", 3)
    with pytest.raises(DataError, match="a checkpoint may have"):
        keep_checkpoint(root, io.BytesIO(b"\x80four"), "a.pt")
    assert not list((root / ".uploads").glob("*"))


def test_one_function_unpacks_runs_and_pictures() -> None:
    from snows.runs import archive

    assert archive.zip_entries is unpack.zip_entries
    assert archive.ArchiveError is ArchiveError
    assert Kept.__module__ == "snows.sources.uploads"
