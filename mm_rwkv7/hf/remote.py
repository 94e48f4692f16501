"""How a saved folder names its classes, so that a fresh process can load it with `trust_remote_code=True`."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

FILE = Path(__file__).resolve().parent / "remote_code.py"


def reference(name: str) -> str:
    """A class of `mm_rwkv7.hf` as an `auto_map` names it."""
    return f"{FILE.stem}.{name}"


def add_code(folder: str | os.PathLike[str]) -> None:
    """Put the file that `reference` points to into a saved folder."""
    shutil.copyfile(FILE, Path(folder) / FILE.name)


class Remote:
    """For classes whose saved folders bring their own file: transformers would copy the source of a class that it
    found by remote code, and with it half of this package. Stands before transformers' class among the bases."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        written = cast(Any, super()).save_pretrained(save_directory, *args, **kwargs)
        add_code(save_directory)
        return written

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing: the `auto_map` is always written."""
