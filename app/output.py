"""What commands write: results to stdout, errors to stderr."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Stream


BAR = 20  # characters of a score of 1


def print_stream(stream: "Stream") -> None:
    """An answer, piece by piece as it comes."""
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)


def print_json(value: Any) -> None:
    """One line of JSON."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_error(message: str) -> None:
    """One line, whatever the message has."""
    print("error:", " ".join(message.split()), file=sys.stderr, flush=True)


def print_tags(tags: Sequence[tuple[str, float]], name: str | None) -> None:
    """Labels with their scores, each with a bar; below the sound's name, if it has one to be told from others."""
    if name is not None:
        print(f"{name}:")
    width = max(len(label) for label, _ in tags)
    for label, score in tags:
        print(f"{label:{width}}  {score:.2f}  {_bar(score)}".rstrip())
    sys.stdout.flush()


def _bar(score: float) -> str:
    """In eighths of a character."""
    whole, eighths = divmod(round(score * BAR * 8), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()
