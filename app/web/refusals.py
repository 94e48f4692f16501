"""What the page says when it cannot do what was asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from app.requests import Busy, Cancelled, Expired

SHOWN_S = 5.0
REFUSED = (ValueError, Busy, Expired, Cancelled, FloatingPointError)  # bad input, no time, and broken weights


def without_folder(message: str, paths: Sequence[str]) -> str:
    """A message about uploads, without the folders that they lie in."""
    for path in paths:
        message = message.replace(path, Path(path).name)
    return message


@contextmanager
def refusals_as_messages(paths: Sequence[str] = ()) -> Iterator[None]:
    """What is `REFUSED` is shown to the visitor."""
    try:
        yield
    except REFUSED as error:
        broken = isinstance(error, FloatingPointError)
        told = "the model gave what is no number; begin anew" if broken else without_folder(str(error), paths)
        raise refusal(told) from error


def refusal(told: str) -> gr.Error:
    """What the visitor is told, for as long as it takes to read: it lies over other things."""
    return gr.Error(told, duration=SHOWN_S, print_exception=False)
