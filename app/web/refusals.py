"""What the page says when it cannot do what was asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from app.requests import Busy, Cancelled, Expired


def without_folder(message: str, paths: Sequence[str]) -> str:
    """A message about uploads, without the folders that they lie in."""
    for path in paths:
        message = message.replace(path, Path(path).name)
    return message


@contextmanager
def refusals_as_messages(paths: Sequence[str] = ()) -> Iterator[None]:
    """Bad input, and an engine that has no time, are shown to the visitor."""
    try:
        yield
    except (ValueError, Busy, Expired, Cancelled) as error:
        raise gr.Error(without_folder(str(error), paths), print_exception=False) from error
    except FloatingPointError as error:
        raise gr.Error("the model gave what is no number; begin anew", print_exception=False) from error
