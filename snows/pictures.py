"""Picture files from anybody, opened within limits."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps

from snows.config import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# What Pillow may be asked to open: no format that hands the file to another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PICTURE_BYTES = 50 * 1000**2
MAX_PICTURE_PIXELS = 50 * 1000**2


class DataError(InputError):
    """The images asked for cannot be had: which, why, and what to do."""


def read_picture(source: Path | bytes, name: str) -> Image.Image:
    """A picture from a file or its content, upright. Raises `DataError` naming `name` where it cannot be read."""
    with _opened_picture(source, name) as opened:
        return ImageOps.exif_transpose(opened)


def check_picture(source: Path | bytes, name: str) -> None:
    """Raise `DataError` unless it is a picture within the limits, by its size and its head alone."""
    with _opened_picture(source, name):
        pass


@contextmanager
def _opened_picture(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > MAX_PICTURE_BYTES:
        raise DataError(
            f"{name} has {size / 1e6:,.0f} MB; a picture may have {MAX_PICTURE_BYTES / 1e6:,.0f} MB. Make it smaller."
        )
    try:
        with Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes()), formats=_FORMATS) as opened:
            if opened.width * opened.height > MAX_PICTURE_PIXELS:
                raise DataError(
                    f"{name} is too large an image: {opened.width:,} x {opened.height:,} pixels, where "
                    f"{MAX_PICTURE_PIXELS / 1e6:,.0f} million are the limit. Make it smaller."
                )
            yield opened
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is too large an image to be opened safely ({error}). Make it smaller.") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise DataError(
            f"{name} is not an image that can be read; it is damaged or of another kind. Remove or replace it."
        ) from error
