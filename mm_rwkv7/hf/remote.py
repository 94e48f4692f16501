"""How a saved folder names its classes, so that a fresh process can load it with `trust_remote_code=True`."""

import os
import shutil
from pathlib import Path

FILE = Path(__file__).resolve().parent / "remote_code.py"


def reference(name: str) -> str:
    """A class of `mm_rwkv7.hf` as an `auto_map` names it."""
    return f"{FILE.stem}.{name}"


def add_code(folder: str | os.PathLike[str]) -> None:
    """Put the file that `reference` points to into a saved folder."""
    shutil.copyfile(FILE, Path(folder) / FILE.name)


class Remote:
    """For classes whose saved folders bring their own file: transformers would copy the source of a class that it
    found by remote code, and with it half of this package."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing: the `auto_map` is always written."""
