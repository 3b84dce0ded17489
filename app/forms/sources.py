"""The form's choice of network and images: by name, from a preset, or brought along; with all that can be known beforehand.

What is brought goes to the runs' folder (`snows.sources.uploads`) and into the form as its path, so that a run's config says
it all. What cannot work is returned as a sentence, for the bar that would start it.
"""

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import visitor, words
from app.charts import attention as attention_charts
from app.forms.settings import LABELS
from app.parts.finder import Option, finder
from app.work import engine, fetching, public
from snows.config import InputError, RunConfig, as_path
from snows.measures.names import size
from snows.plans.presets import PRESETS, wanted
from snows.sources.pictures import DataError, left_out_words

MODELS = {
    "resnet20-fashion": "ResNet-20, trained on Fashion-MNIST",
    "vit-fashion": "Vision transformer, trained on Fashion-MNIST",
    "resnet20-cifar10": "ResNet-20, trained on CIFAR-10",
    "resnet50-cifar100": "ResNet-50, trained on CIFAR-100",
}
DATA = {
    "fashion-mnist": "Fashion-MNIST",
    "cifar-10": "CIFAR-10",
    "cifar-100": "CIFAR-100",
    "imagenette": "Imagenette",
    "oxford-pets": "Oxford-IIIT Pets",
    "flowers-102": "Oxford Flowers-102",
}
# Where others lie that a newcomer may have heard of, before anything is typed.
_WELL_KNOWN = (
    *("torchvision:resnet50", "torchvision:vit_b_16", "timm:mobilenetv3_large_100"),
    *("timm:efficientnet_lite0", "timm:convnext_tiny", "timm:deit_small_patch16_224"),
)
_FOUND = 30  # names; who needs more types another word
_THUMBNAILS = 8
_POLL_SECONDS = 0.5
_NO_PRESET = "My own choice"


@st.cache_resource
def _downloads() -> fetching.Downloads:
    return fetching.Downloads(fetching.fetch)


def _known_models() -> tuple[str, ...]:
    return public.NETWORKS if public.is_public() else tuple(MODELS)


def model_names() -> tuple[str, ...]:
    """Every network there is, once the catalogue is imported; for a visitor, those that need nothing more."""
    if not engine.ready() or public.is_public():
        return _known_models()
    from snows.sources import models

    return (*MODELS, *(name for name in models.every_name() if name not in MODELS))


def model_words(name: str) -> str:
    """A network as a person knows it."""
    return MODELS.get(name, name)


def data_words(name: str) -> str:
    """A set of images as a person knows it."""
    path = Path(name)
    if ".uploads" in path.parts:
        return f"{path.name}, brought by you"
    return DATA.get(name, path.name or name)


def in_browser(sentence: str, config: RunConfig) -> str:
    """A sentence of the engine without the folders of the machine that it runs on."""
    return words.without_paths(sentence, [config.data, config.checkpoint or "", config.prune.mask])


# --- the network's name ---


def data_names() -> tuple[str, ...]:
    """The sets of images that are offered by name."""
    return (public.IMAGES,) if public.is_public() else tuple(DATA)


def find(text: str) -> tuple[list[Option], str]:
    """The networks that have all the words of `text`, and what there is beyond those that are shown."""
    if not engine.ready():
        options = [
            name for name in _known_models() if all(word in f"{name} {MODELS[name]}".lower() for word in text.lower().split())
        ]
        return [_option(name) for name in options], "All others can be searched in a few seconds, once the engine is loaded."
    from snows.sources import models

    every = models.every_name()
    if not text.split():
        if public.is_public():
            return [_option(name) for name in public.NETWORKS], "Any other one can be found here too, if you bring its weights."
        options = [*MODELS, *(name for name in _WELL_KNOWN if name in set(every))]
        return [_option(name) for name in options], f"Type to search all {len(every):,} networks."
    options = models.search(text, len(every), MODELS)
    if not options:
        return [], "No network has all of these words. Try fewer, or a part of one."
    rest = len(options) - _FOUND
    return [_option(name) for name in options[:_FOUND]], f"… and {rest:,} more. Type another word." if rest > 0 else ""


def _option(name: str) -> Option:
    return Option(name, MODELS.get(name, name), name if name in MODELS else "")


def network_choice() -> None:
    """The field that finds a network."""

    def chosen(name: str) -> None:
        st.session_state["form.model"] = name
        st.session_state["found a network"] = True

    def drawn() -> None:
        if st.session_state.pop("found a network", False):
            st.rerun()  # all that follows from it
        finder(
            LABELS["model"],
            _option(st.session_state["form.model"]),
            find,
            key="network",
            on_pick=chosen,
            placeholder="vit base 224",
            help="Any words of its name, in any order.",
        )

    st.fragment(drawn)()


# --- presets ---


def presets(fill: Callable[[RunConfig], None]) -> None:
    """Begin with one of the paper's settings. `fill(config)` puts it into the form."""

    def chosen() -> None:
        if (name := st.session_state["preset"]) in PRESETS:
            fill(PRESETS[name].config)

    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox(
            "Begin with",
            [_NO_PRESET, *PRESETS],
            format_func=lambda name: PRESETS[name].title if name in PRESETS else name,
            key="preset",
            persist_state="session",
            on_change=chosen,
            help="The settings of the paper that introduced SNOWS. Each fills the form; change what you like.",
        )
    if name in PRESETS:
        st.caption(f":material/info: {PRESETS[name].needs}")


# --- the network ---


@dataclass(frozen=True)
class _Outline:
    parameters: int
    input_size: tuple[int, int, int]
    class_names: tuple[str, ...]
    preprocessing: str
    reason: str = ""
    mismatches: tuple[tuple[str, str, str], ...] = ()


@st.cache_data(max_entries=64, show_spinner="Looking up the network…")
def _outline(model: str, checkpoint: str | None, class_names: tuple[str, ...], changed: float) -> _Outline:
    from snows.sources import models
    from snows.sources.checkpoints import CheckpointError

    def known(checkpoint: str | None, names: tuple[str, ...]) -> tuple[int, tuple[int, int, int], tuple[str, ...], str]:
        outline = models.outline(model, checkpoint, class_names=names)
        return (
            sum(p.numel() for p in outline.module.parameters()),
            outline.input_size,
            outline.class_names,
            outline.preprocessing,
        )

    try:
        return _Outline(*known(checkpoint, class_names))
    except CheckpointError as error:
        return _Outline(*known(None, ()), error.reason, error.mismatches)


def network(config: RunConfig) -> str:
    """What is known of the network before it is loaded: its size, its input, and whether the checkpoint fits. Returns why it
    cannot be pruned, or nothing."""
    if not engine.ready():
        st.caption("The network's size and input are shown once the engine is loaded, in a few seconds.")
        return ""
    try:
        outline = _outline(config.model, config.checkpoint, config.class_names, _changed(config.checkpoint))
    except InputError as error:
        return refused(str(error), config)
    shape = " x ".join(map(str, outline.input_size))
    st.caption(f"**{outline.parameters:,} parameters** · images of {shape} · {len(outline.class_names):,} classes")
    if outline.mismatches or outline.reason:
        reason = in_browser(outline.reason, config)
        problem = (
            f"The checkpoint does not fit in {words.counted(len(outline.mismatches), 'tensor')}. {reason}"
            if outline.mismatches
            else reason
        )
        st.warning(words.plain(problem), icon=":material/rule:")
        if outline.mismatches:
            rows = pd.DataFrame(outline.mismatches[:500], columns=["tensor", "in your file", "in the network"])
            height = min(36 * (len(rows) + 1), 220)
            st.dataframe(rows, hide_index=True, height=height, alt="Each tensor in which the checkpoint and the network differ")
        return problem
    return ""


def refused(sentence: str, config: RunConfig) -> str:
    """Show a sentence of the engine on what cannot work, as a browser's user reads it, and return it."""
    problem = in_browser(sentence, config)
    st.error(words.plain(problem), icon=":material/error:")
    return problem


def preparation(config: RunConfig) -> None:
    """How the network prepares an image, and what it knows."""
    if not engine.ready():
        return
    try:
        outline = _outline(config.model, config.checkpoint, config.class_names, _changed(config.checkpoint))
    except InputError:
        return
    st.markdown("**How it prepares an image, and its classes**")
    class_names = ", ".join(outline.class_names[:40]) + (", …" if len(outline.class_names) > 40 else "")
    st.caption(f"{outline.preprocessing}. {words.plain(class_names) or 'It has no classes'}.")


def _changed(path: str | None) -> float:
    try:
        return as_path(path).stat().st_mtime if path else 0.0
    except (OSError, InputError):
        return 0.0


def own_weights() -> None:
    """Bring a checkpoint, and say what its outputs mean."""

    with st.popover("Your own weights", icon=":material/upload_file:"):
        st.markdown(
            "Weights of the network chosen above: safetensors, packed or not, or what `torch.save` wrote, with all that a "
            "training keeps beside them. Only tensors are read from it; nothing in it is run."
        )
        st.file_uploader(
            "Checkpoint",
            key="checkpoint-upload",
            on_change=_brought,
            args=("checkpoint", "checkpoint"),
            max_upload_size=public.Limits.read().uploads if public.is_public() else 2000,
        )
        _tell("checkpoint-told")
        if public.is_public():
            if path := st.session_state["form.checkpoint"]:
                st.button(f"Without {words.plain(Path(path).name)}", icon=":material/close:", on_click=_drop_weights)
        else:
            st.text_input(
                "Or its path, where it lies on the machine that runs this app",
                placeholder="The published weights",
                key="form.checkpoint",
                persist_state="session",
            )
        st.text_area(
            "Class names, one a line",
            key="form.class_names",
            persist_state="session",
            height=100,
            help="What the outputs mean, in order. Leave it empty where the network knows its classes.",
        )


def _drop_weights() -> None:
    st.session_state["form.checkpoint"] = None


# --- the images ---


def own_images() -> None:
    """Bring pictures: dropped, in an archive, or a folder with all that is in it."""

    def brought(key: str) -> None:
        from snows.sources import uploads

        files = st.session_state[key]
        if not files:
            return
        with _told("images-told"):
            archives = [file for file in files if uploads.is_archive(file.name)]
            if archives and len(files) > 1:
                raise InputError("Bring one archive, or pictures, not both. Take the others out of the list.")
            pictures = (
                uploads.keep_archive(visitor.home(), files[0], files[0].name, **_room())
                if archives
                else uploads.keep_pictures(visitor.home(), [(file.name, file) for file in files], **_room())
            )
            _use(pictures)

    def _use(pictures: Any) -> None:
        st.session_state["form.data"] = str(pictures.path)
        summary = words.counted(pictures.count, "picture")
        if len(pictures.classes) > 1:
            summary += f" in {len(pictures.classes)} folders"
        if pictures.left_out:
            summary += f"; {left_out_words(pictures.left_out)}"
        # The sentence below the pictures says which of them calibrate.
        if st.session_state["form.num_calibration"] > pictures.count // 2:
            st.session_state["form.num_calibration"] = max(1, pictures.count // 2)
        st.session_state["images-told"] = ("info", f"Took in {summary}.")

    from snows.sources import uploads

    limits = uploads.LIMITS
    most = public.Limits.read().uploads if public.is_public() else None  # MB; else the server's
    if most is not None:
        limits = f"Up to {most} MB, of all that you bring."
    st.file_uploader(
        "Your own: drop pictures here, or one archive of them",
        type=["image", *(suffix.rpartition(".")[2] for suffix in uploads.ARCHIVE_SUFFIXES)],
        accept_multiple_files=True,
        key="images-upload",
        on_change=brought,
        args=("images-upload",),
        help=f"Labels are not needed. An archive (zip or tar) with one folder a class gives them. {limits}",
        max_upload_size=most,
    )
    with st.popover("A whole folder", icon=":material/folder:"):
        st.file_uploader(
            "A folder of pictures, or of one folder a class",
            accept_multiple_files="directory",
            key="folder-upload",
            on_change=brought,
            args=("folder-upload",),
            max_upload_size=most,
        )
        st.caption(limits)
    _tell("images-told")
    if public.is_public():
        return

    def typed() -> None:
        if path := st.session_state["images-path"].strip():
            st.session_state["form.data"] = path

    st.text_input(
        "Or a folder's path, where it lies on the machine that runs this app",
        key="images-path",
        on_change=typed,
        placeholder="~/pictures",
    )


def mask_file() -> None:
    """Bring a mask: what is zero in it is removed."""

    st.file_uploader(
        "A mask of your own",
        type=["safetensors"],
        key="mask-upload",
        on_change=_brought,
        args=("mask", "prune.mask"),
        help="A saved mask of this network, or weights of it that are pruned: what is zero in them is removed.",
    )
    _tell("mask-told")


def _brought(what: str, setting: str) -> None:
    """Take in the file of weights that was dropped as `what`, and let the form name it."""
    from snows.sources import uploads

    file = st.session_state[f"{what}-upload"]
    if file is None:
        return
    with _told(f"{what}-told"):
        if what == "mask" and not file.name.endswith(".safetensors"):
            raise InputError(f"{file.name} is not a safetensors file. Save the mask, or the pruned weights, as one.")
        st.session_state[f"form.{setting}"] = str(uploads.keep_checkpoint(visitor.home(), file, file.name, **_room()))


def _room() -> dict[str, int]:
    """How much may be brought, where that is less than anybody may bring."""
    return {"most_bytes": public.room_for_uploads(visitor.home())} if public.is_public() else {}


@contextmanager
def _told(key: str) -> Iterator[None]:
    """What is refused inside the block is kept, to be shown where the form says `_tell`."""
    st.session_state[key] = None
    try:
        yield
    except InputError as error:
        st.session_state[key] = ("error", str(error))


def _tell(key: str) -> None:
    match st.session_state.get(key):
        case ("error", sentence):
            st.error(words.plain(words.without_paths(sentence)), icon=":material/error:")
        case ("info", sentence):
            st.caption(f":material/check: {words.plain(sentence)}")


@dataclass(frozen=True)
class _Looked:
    """At the images: addresses of the first ones with what is in them, and what is to be said of them all."""

    pictures: list[tuple[str, str]]
    summary: str
    notes: list[str]


@st.cache_data(max_entries=16, show_spinner="Looking at the images…")
def _look(config_json: str, changed: float) -> _Looked:
    from snows.sources import data, models

    config = RunConfig.model_validate_json(config_json)
    model = models.outline(config.model, config.checkpoint, class_names=config.class_names)
    preview = data.preview(
        config.data, model, config.num_calibration, config.num_evaluation, config.prune.seed, count=_THUMBNAILS
    )
    measured = (
        "Labels give an accuracy."
        if preview.labelled
        else "Without labels there is no accuracy, only agreement with the dense network."
    )
    addresses = [attention_charts.picture_address(data.as_pixels(image), longest_edge=96) for image in preview.images]
    return _Looked(list(zip(addresses, preview.words, strict=True)), f"{preview.division} {measured}", preview.notes)


def images(config: RunConfig) -> str:
    """The first images as the network will get them, and which calibrate and which measure. Returns why they do not do, or
    nothing."""
    if not engine.ready():
        return ""
    from snows.sources import data, models
    from snows.sources.downloads import DownloadError

    try:
        if not _here(config.data):
            data.check_count(config.data, models.outline(config.model), config.num_calibration)
            return ""
        # What does not bear on the images must not have them read again.
        relevant = config.model_copy(update={"prune": RunConfig().prune.model_copy(update={"seed": config.prune.seed})})
        looked = _look(relevant.model_dump_json(), _changed(config.data))
    except (DataError, DownloadError) as error:
        return refused(str(error), config)
    except InputError:
        return ""  # the network is at fault, and says so itself
    cells = "".join(
        f'<img src="{address}" alt="{html.escape(word)}" title="{html.escape(word)}" '
        'style="width: 40px; height: 40px; object-fit: cover; border-radius: 5px; image-rendering: pixelated">'
        for address, word in looked.pictures
    )
    st.html(f'<div style="display: flex; flex-wrap: wrap; gap: 5px">{cells}</div>')
    st.caption(words.plain(looked.summary))
    for note in looked.notes:
        st.caption(f":material/info: {words.plain(in_browser(note, config))}")
    return ""


def _here(name: str) -> bool:
    from snows.sources import named_sets

    return name not in named_sets.SETS or named_sets.is_here(name)


# --- downloads ---


def downloads(config: RunConfig) -> None:
    """What the run would have to fetch first, each with its size, a button to fetch it now, and how far that is."""
    if not engine.ready():
        return
    try:
        items = [item for item in wanted(config) if not item.here]
    except InputError:
        return
    for item in items:
        _download(item.name, f"{item.what}, {size(item.num_bytes)}")


def _download(name: str, what: str) -> None:
    seen = _downloads().look(name)
    active = seen is not None and seen.active
    if not active:
        if seen is not None and seen.error:
            st.error(words.plain(words.without_paths(seen.error)), icon=":material/cloud_off:")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Download now",
                icon=":material/download:",
                key=f"fetch-{name}",
                on_click=_downloads().start,
                args=(name,),
                help="A run fetches it by itself when it starts; this lets you see it before.",
            )
            st.caption(f"{what}, not on this machine yet", width="content")
        return

    def follow() -> None:
        now = _downloads().look(name)
        if now is None or not now.active:
            st.rerun()
        share = min(now.done / now.total, 1.0) if now.total else 0.0
        so_far = f"{size(now.done)}" + (f" of {size(now.total)}" if now.total else "")
        text = f"Downloading {now.what or what}: {so_far}" if not now.total or now.done < now.total else f"Unpacking {now.what}"
        bar, button = st.columns([5, 1], vertical_alignment="bottom")
        bar.progress(share, text=text)
        button.button("Stop", icon=":material/close:", key=f"stop-{name}", on_click=_downloads().stop, args=(name,))

    st.fragment(run_every=_POLL_SECONDS)(follow)()
