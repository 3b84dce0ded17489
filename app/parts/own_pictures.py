"""Pictures that a session has brought along, and which images are looked at."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from app import state
from app.charts import attention as attention_charts
from snows.config import InputError
from snows.measures.names import size

if TYPE_CHECKING:
    from PIL.Image import Image


MOST_IMAGES = 4
MOST_OWN = 12
LARGEST_UPLOAD = 20  # MB
OWN = "own:"
FIRST = ["0"]  # what is looked at until something is chosen


# --- images ---


@dataclass(frozen=True)
class OwnPicture:
    """A picture that somebody brought along; `mark` tells it from others of its name, `address` shows it small."""

    picture: "Image"
    mark: str
    address: str


def own_pictures() -> dict[str, OwnPicture]:
    """The pictures this session has brought along, by name. They outlive a change of page."""
    return st.session_state.setdefault("own pictures", {})


def keep_picture(name: str, picture: "Image") -> None:
    import numpy as np

    mark = hashlib.sha256(repr((picture.mode, picture.size)).encode() + picture.tobytes()).hexdigest()
    own_pictures()[name] = OwnPicture(
        picture, mark, attention_charts.picture_address(np.asarray(picture.convert("RGB")), longest_edge=112)
    )
    for oldest in list(own_pictures())[:-MOST_OWN]:
        del own_pictures()[oldest]


def chosen_images() -> list[str]:
    """The images that the address names."""
    return list(dict.fromkeys(state.asked_all("image")))[-MOST_IMAGES:] or FIRST


def choose_images(images: list[str]) -> None:
    state.say("image", list(dict.fromkeys(images))[-MOST_IMAGES:], FIRST)


def pick_image(image: str) -> None:
    st.session_state["upload problems"] = []
    chosen = chosen_images()
    if not st.session_state.get("several"):
        choose_images([image])
    elif image not in chosen:
        choose_images([*chosen, image])
    elif len(chosen) > 1:
        choose_images([other for other in chosen if other != image])


def upload_pictures() -> None:
    from snows.sources.data import read_picture

    st.session_state["upload problems"] = problems = []
    st.session_state["uploads"] = st.session_state.get("uploads", 0) + 1  # the next uploader is empty
    added = []
    for file in st.session_state[f"upload-{st.session_state['uploads'] - 1}"]:
        name = file.name.replace("\n", " ")
        try:
            if file.size > LARGEST_UPLOAD * 1_000_000:
                raise InputError(f"{name} has {size(file.size)}; at most {LARGEST_UPLOAD} MB are taken. Make it smaller.")
            keep_picture(name, read_picture(file.getvalue(), name))
            added.append(OWN + name)
        except InputError as error:
            problems.append(str(error))
    if added:
        choose_images(added if st.session_state.get("several") else added[-1:])
