"""How much JSON a body holds, told before it is parsed: parsing has the whole process wait, and a key takes far longer
than the bytes that it is written in."""

import json

from app.api.config import ServerConfig
from app.api.errors import Refused

BINARY = "application/octet-stream"  # what nobody parses


def check_structure(body: bytes, config: ServerConfig) -> None:
    """`Refused` where a body would be more than `json_keys` keys or `json_values` values, or is not in UTF-8, which
    parsers would take all the same."""
    if not (encoding := json.detect_encoding(body)).startswith("utf-8"):
        raise Refused(400, f"the body seems to be in {encoding}, expected UTF-8", code="wrong_encoding")
    if _within(body, config):  # nearly always: what stands in texts is counted as well
        return
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * (config.json_keys + config.json_values) or not _within(
        b"".join(plain.split(b'"')[::2]), config
    ):
        most = f"at most {config.json_keys} keys and {config.json_values} values"
        raise Refused(413, f"the body holds too much JSON, expected {most}", code="too_large")


def _within(text: bytes, config: ServerConfig) -> bool:
    values = sum(map(text.count, (b",", b"[", b"{")))
    return values <= config.json_values and text.count(b":") <= config.json_keys


def is_binary(headers: dict[bytes, bytes]) -> bool:
    """Whether a request says that its body is a file."""
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower() == BINARY
