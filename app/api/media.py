"""Messages as clients send them -> messages as the processor reads them, pictures and sounds checked on the way.

A client never names a file: a picture is a data URI, or an address whose origin the server's list has.
"""

import base64
import binascii
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from app.api import schema
from app.api.config import ServerConfig
from app.api.errors import Refused

# What a picture may say it is, and the reader that must agree: a file that is two things at once is neither.
PICTURES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
}
SOUNDS = {"wav": ("WAV", "WAVEX", "RF64"), "mp3": ("MP3", "MPEG"), "flac": ("FLAC",), "ogg": ("OGG",)}
FETCH_S = 15.0


def read_messages(messages: Sequence[schema.Message], config: ServerConfig) -> list[dict[str, Any]]:
    """May decode and fetch: not for an event loop. `Refused` for what may not come in."""
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    media = sum(not isinstance(part, schema.Text) for part in parts)
    if media > config.media:
        told = f"there are {media} pictures and sounds, expected at most {config.media}"
        raise Refused(400, told, "messages")
    return [
        {"role": _role(message.role), "content": list(_parts(message, f"messages[{i}].content", config))}
        for i, message in enumerate(messages)
    ]


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _parts(message: schema.Message, place: str, config: ServerConfig) -> Iterator[dict[str, Any]]:
    content = message.content
    if not isinstance(content, list):
        content = [schema.Text(type="text", text=content or "")]
    for number, part in enumerate(content):
        if isinstance(part, schema.Text):
            yield {"type": "text", "text": part.text}
        elif isinstance(part, schema.Image):
            with _named(f"{place}[{number}].image_url.url"):
                yield {"type": "image", "image": picture(part.image_url.url, config)}
        else:
            with _named(f"{place}[{number}].input_audio.data"):
                yield {"type": "audio", "audio": sound(part.input_audio.data, part.input_audio.format, config)}


@contextmanager
def _named(place: str) -> Iterator[None]:
    """What is wrong in here is wrong with that field."""
    try:
        yield
    except ValueError as error:
        raise Refused(400, f"{place}: {error}", place) from error


def picture(url: str, config: ServerConfig) -> bytes:
    """The bytes of a picture whose kind and size were checked; nothing is decoded yet."""
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        kind, data = _data(url)
    elif scheme in ("http", "https"):
        kind, data = _fetch(url, config)
    else:
        raise ValueError("a picture is a data URI: data:image/png;base64,...")
    if kind not in PICTURES:
        raise ValueError(f"a picture is {kind[:40]!r}, expected one of {', '.join(PICTURES)}")
    try:
        with Image.open(BytesIO(data), formats=[PICTURES[kind]]) as opened:
            width, height = opened.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"a picture is larger than {config.pixels:,} pixels") from error
    except Exception as error:  # Pillow's readers raise errors of nearly any kind on a malformed file
        raise ValueError(f"a picture is said to be {kind} and is not") from error
    if width * height > config.pixels:
        raise ValueError(f"a picture has {width} x {height} pixels, expected at most {config.pixels:,} in all")
    return data


def sound(data: str, kind: str, config: ServerConfig) -> bytes:
    """The bytes of a sound whose kind and length were checked; no sample is decoded yet."""
    import soundfile

    decoded = _decode(data, "a sound")
    try:
        with soundfile.SoundFile(BytesIO(decoded)) as opened:
            found, seconds = opened.format, opened.frames / opened.samplerate
    except (soundfile.SoundFileError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"a sound is said to be {kind} and cannot be read") from error
    if found not in SOUNDS[kind]:
        raise ValueError(f"a sound is said to be {kind} and is {found}")
    if seconds > config.sound_s:  # no more samples are read than the header announces
        raise ValueError(f"a sound is longer than {config.sound_s:g} s, or of unknown length")
    return decoded


def _data(url: str) -> tuple[str, bytes]:
    head, comma, body = url.partition(",")
    kind, *options = head[len("data:") :].lower().split(";")
    if not comma or not options or options[-1].strip() != "base64":
        raise ValueError("a picture's data URI is not in base64: data:image/png;base64,...")
    return kind.strip(), _decode(body, "a picture")


def _decode(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{what} is not in base64") from error
    if not data:
        raise ValueError(f"{what} is empty")
    return data


def _fetch(url: str, config: ServerConfig) -> tuple[str, bytes]:
    """From an origin that is on the list, and from nowhere that it may point to."""
    try:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}".lower()
    except ValueError as error:
        raise ValueError("a picture's address is no address") from error
    if origin not in config.fetch_from:
        raise ValueError("a picture's address is not one that this server fetches from; send it as a data URI")
    import httpx

    data = bytearray()
    began = time.monotonic()
    try:
        with httpx.stream("GET", url, timeout=FETCH_S, follow_redirects=False, trust_env=False) as response:
            if response.status_code != 200:
                raise ValueError(f"a picture's address answered {response.status_code}")
            for block in response.iter_bytes():
                data += block
                if len(data) > config.body_bytes:
                    raise ValueError(f"a picture is larger than {config.body_bytes} bytes")
                if time.monotonic() - began > FETCH_S:
                    raise ValueError("a picture comes too slowly from its address")
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError("a picture could not be fetched") from error
    return kind, bytes(data)
