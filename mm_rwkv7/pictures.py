"""Any picture file, bytes or PIL image as the RGB picture that a person would see, or one line why not."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PictureSource = str | os.PathLike[str] | bytes | Image.Image

MAX_PIXELS = 64_000_000

# An animation is read through, so that a broken one is refused, but no further than this.
MAX_FRAMES = 1000
MAX_ANIMATION_PIXELS = 4 * MAX_PIXELS


def load_picture(source: PictureSource) -> Image.Image:
    """The first frame as RGB: upright by its EXIF tag, transparency on white, 16 bits scaled to 8.

    A ValueError names the file when it is missing, empty, no picture, broken or cut short in any frame, or
    larger than MAX_PIXELS; the size is checked before anything is decoded.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the picture")
    if isinstance(source, bytes):
        return _read(BytesIO(source), "the picture")
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"a picture is a path, bytes or a PIL image, got {type(source).__name__}")
    name = os.fspath(source)
    try:
        with open(source, "rb") as file:
            return _read(file, name)
    except FileNotFoundError as error:
        if "://" in name:
            raise ValueError(
                f"{name} is an address, expected a path, bytes or a PIL image: download it first"
            ) from error
        raise ValueError(f"{name}: there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"{name} is a folder, expected a picture file") from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error


def _read(file: BinaryIO, name: str) -> Image.Image:
    if not file.read(1):
        raise ValueError(f"{name} is empty")
    file.seek(0)
    with _refusing_broken(name), warnings.catch_warnings():
        # Pillow warns about some of the sizes that are refused below.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    if image.format == "EPS":
        raise ValueError(f"{name} is PostScript, which is a program; expected a picture")
    picture = _rgb(image, name)
    if image.format != "MPO":  # the second image of a phone's photo is no frame of an animation
        _check_frames(image, name)
    return picture


@contextmanager
def _refusing_broken(name: str) -> Iterator[None]:
    """Pillow's readers raise errors of nearly any kind on a malformed file; all become one ValueError."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture, or not of a known format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except Exception as error:
        raise ValueError(f"{name} is broken or cut short: {error}") from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} is too large: {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all")
    if width * height == 0:
        raise ValueError(f"{name} has no pixels: {width} x {height}")


def _check_frames(image: Image.Image, name: str) -> None:
    with _refusing_broken(name):
        frames = getattr(image, "n_frames", 1)
    bound = min(MAX_FRAMES, MAX_ANIMATION_PIXELS // (image.width * image.height))
    for frame in range(1, min(frames, bound)):
        with _refusing_broken(f"{name}: frame {frame + 1}"):
            image.seek(frame)
        _check_size(image, name)
        with _refusing_broken(f"{name}: frame {frame + 1}"):
            image.load()


def _rgb(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    with _refusing_broken(name):
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Greys of more than 8 bits as uint8: 0 ... 65535 for integers, 0 ... 1 or 0 ... 255 for floats.

    Values beyond the expected range make the greatest one white.
    """
    greys = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0).clip(min=0)
    expected = (1, 255, 65535) if values.dtype.kind == "f" else (65535,)
    greatest = greys.max()
    white = next((top for top in expected if greatest <= top), greatest)
    return np.rint(greys * (255 / white)).astype(np.uint8)
