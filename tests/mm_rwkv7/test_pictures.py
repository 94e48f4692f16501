import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mm_rwkv7 import pictures
from mm_rwkv7.pictures import load_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str = "RGB", side: int = 48, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (side, side), random.bytes(side * side * channels))


def animation(kind: str) -> bytes:
    frames = [noise(seed=seed) for seed in range(4)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and which holds no pixel data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def pixels(source: pictures.PictureSource) -> np.ndarray:
    picture = load_picture(source)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_rgb_comes_back_as_it_is_from_every_kind_of_source(tmp_path: Path) -> None:
    image = noise()
    data = encoded(image, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for source in (image, data, path, str(path)):
        assert np.array_equal(pixels(source), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    upright = noise().crop((0, 0, 48, 32))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the camera's undoing of the turn that the tag asks for
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn[orientation]) if orientation in turn else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encoded(stored, "PNG", exif=exif)), np.asarray(upright))


def test_transparency_lies_on_white() -> None:
    assert pixels(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))[0, 0].tolist() == [255, 255, 255]
    assert pixels(Image.new("RGBA", (2, 2), (0, 100, 255, 51)))[0, 0].tolist() == [204, 224, 255]
    assert pixels(encoded(Image.new("LA", (2, 2), (0, 102)), "PNG"))[0, 0].tolist() == [153, 153, 153]
    assert pixels(Image.new("RGBA", (2, 2), (9, 8, 7, 0)).convert("PA"))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_lies_on_white(mode: str) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    image = image.convert(mode)
    found = pixels(encoded(image, "PNG", transparency=image.getpixel((1, 0))))[0].tolist()
    red = list(RED) if mode != "L" else [76, 76, 76]
    assert found == [red, [255, 255, 255]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette(kind: str) -> None:
    image = noise().quantize(16)
    assert np.array_equal(pixels(encoded(image, kind)), np.asarray(image.convert("RGB")))


def test_grey_and_one_bit() -> None:
    grey = noise("L")
    assert np.array_equal(pixels(encoded(grey, "PNG"))[..., 1], np.asarray(grey))
    one_bit = grey.convert("1")
    assert np.array_equal(pixels(encoded(one_bit, "PNG"))[..., 2], np.asarray(one_bit) * np.uint8(255))


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16B", None), ("I", "TIFF")]
)
def test_sixteen_bits_are_scaled(mode: str, kind: str | None) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]])
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "=i4"}[mode]
    image = Image.frombytes(mode, (6, 1), values.astype(dtype).tobytes())
    found = pixels(encoded(image, kind) if kind else image)
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 3.0, 255.0], [0, 3, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-5.0, 5e6, 1e7], [0, 128, 255]),
        ([float("nan"), float("inf"), 1.0], [0, 0, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_floats_are_scaled(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])  # Pillow writes a CMYK JPEG inverted, as Adobe does
def test_cmyk(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    assert np.abs(pixels(encoded(image, kind)).astype(int) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    data = animation(kind)
    assert np.array_equal(pixels(data), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def test_an_open_animation_keeps_its_place() -> None:
    image = Image.open(BytesIO(animation("PNG")))
    image.seek(2)
    assert np.array_equal(pixels(image), np.asarray(noise(seed=2)))
    assert image.tell() == 2


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_cut_file_is_refused(kind: str, part: float) -> None:
    data = encoded(noise(), kind)
    with pytest.raises(ValueError, match=r"^the picture is (broken or cut short|not a picture)"):
        load_picture(data[: int(len(data) * part)])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_cut_anywhere_is_never_silently_grey(options: dict[str, bool]) -> None:
    data = encoded(noise(), "JPEG", **options)
    for end in [*range(1, len(data), 23), len(data) - 1]:
        with pytest.raises(ValueError, match=r"^the picture is (broken or cut short|not a picture)"):
            load_picture(data[:end])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.4, 0.6, 0.95])
def test_an_animation_cut_in_a_later_frame_is_refused(kind: str, part: float) -> None:
    data = animation(kind)
    with pytest.raises(ValueError, match=r"broken or cut short|not a picture") as error:
        load_picture(data[: int(len(data) * part)])
    assert "\n" not in str(error.value)


def test_a_broken_frame_is_named() -> None:
    data = bytearray(animation("GIF"))
    middle = len(data) * 5 // 8  # in the third of four frames
    data[middle : middle + 600] = b"\xff" * 600
    with pytest.raises(ValueError, match=r"^the picture: frame 3 is broken or cut short: "):
        load_picture(bytes(data))


def test_frames_beyond_the_bound_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = animation("GIF")[:-2000]
    with pytest.raises(ValueError, match=r"frame 4"):
        load_picture(cut)
    monkeypatch.setattr(pictures, "MAX_FRAMES", 3)
    assert load_picture(cut).size == (48, 48)
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "MAX_ANIMATION_PIXELS", 3 * 48 * 48)
    assert load_picture(cut).size == (48, 48)


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (8001, 8000), (64_000_001, 1)])
def test_a_huge_picture_is_refused_before_decoding(size: tuple[int, int]) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"^the picture is too large: "):
            load_picture(png_of_size(*size))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_largest_picture_is_decoded() -> None:
    with pytest.raises(ValueError, match=r"^the picture is broken or cut short"):  # it has no data
        load_picture(png_of_size(8000, 8000))


def test_a_frame_larger_than_the_first_is_measured() -> None:
    data = animation("GIF")
    image = Image.open(BytesIO(data))
    image.seek(2)
    extent = b"," + struct.pack("<HHHH", *image.dispose_extent[:2], 48, 48)
    at = data.index(b",\0\0\0\0", data.index(extent, data.index(extent) + 1) + 1)
    data = data[:at] + b"," + struct.pack("<HHHH", 0, 0, 9000, 9000) + data[at + 9 :]
    with pytest.raises(ValueError, match=r"too large: 9000 x 9000 pixels, expected at most 64,000,000"):
        load_picture(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.png", b"", "{} is empty"),
        ("notes.png", b"These are notes.\n" * 50, "{} is not a picture, or not of a known format"),
        ("cut.jpg", encoded(noise(), "JPEG")[:900], "{} is broken or cut short: image file is truncated"),
        ("huge.png", png_of_size(30_000, 30_000), "{} is too large: "),
        ("page.eps", encoded(noise(), "EPS"), "{} is PostScript"),
    ],
)
def test_the_message_names_the_file(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^") as error:
        load_picture(path)
    assert str(error.value).startswith(message.format(path))
    assert "\n" not in str(error.value)


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.png: there is no such file$"):
        load_picture(tmp_path / "missing.png")
    with pytest.raises(ValueError, match=r"is a folder, expected a picture file$"):
        load_picture(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be read: File name too long$"):
        load_picture("x" * 5000)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(noise(), "PNG"))
    secret.chmod(0)
    if not os.access(secret, os.R_OK):
        with pytest.raises(ValueError, match=r"cannot be read: Permission denied$"):
            load_picture(secret)


def test_sources_that_are_no_picture() -> None:
    with pytest.raises(ValueError, match=r"^the picture is empty$"):
        load_picture(b"")
    with pytest.raises(ValueError, match=r"^the picture has no pixels: 0 x 5$"):
        load_picture(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match=r"got ndarray$"):
        load_picture(np.zeros((4, 4, 3), np.uint8))  # type: ignore[arg-type]
