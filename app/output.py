"""What commands write to stdout."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Stream


def print_stream(stream: "Stream") -> None:
    """An answer, piece by piece as it comes."""
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)


def print_json(value: Any) -> None:
    """One line of JSON."""
    print(json.dumps(value, ensure_ascii=False), flush=True)
