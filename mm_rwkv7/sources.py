"""Where a model's files are, whatever it is called. Nothing heavy is imported: what is not there is said at once."""

import os
from pathlib import Path

from mm_rwkv7.hub import PREFIX, fetch

BUNDLED = {"nano": Path(__file__).parent / "nano"}


def locate(model: str | os.PathLike[str]) -> Path:
    """A checkpoint's file or folder: "nano" is the bundled one, "hf:owner/repo" and "hf:owner/repo/file" are downloaded
    (once) from the Hugging Face hub, anything else is a path."""
    name = os.fspath(model)
    path = fetch(name) if name.startswith(PREFIX) else BUNDLED.get(name, Path(name))
    if not path.exists():
        raise ValueError(
            f"model {name!r} does not exist; expected 'nano', 'hf:owner/repo', 'hf:owner/repo/file', "
            "a checkpoint's folder or file"
        )
    return path


def check_source(model: str) -> None:
    """A ValueError where nothing is on this machine's disk; a download can wait until it is needed."""
    if not model.startswith(PREFIX):
        locate(model)
