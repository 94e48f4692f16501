"""Files and folders that are there whole or not at all, with the permissions that the process's umask gives."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE

DRAFT = re.compile(r"\.[0-9a-f]{16}\.tmp")  # the name of a file that is not whole yet


@contextmanager
def replacing_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty file beside `target` to write to, which takes its place when the block ends well. Processes and
    threads that write one file at the same time each have a draft of their own: the last to finish wins."""
    target = Path(target)
    draft = target.with_name(f".{secrets.token_hex(8)}.tmp")
    handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = S_IMODE(os.fstat(handle).st_mode)  # the umask's, or what the folder's default access list makes of it
    os.close(handle)
    try:
        yield draft
        draft.chmod(mode)  # safetensors makes its files private
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """A text in UTF-8 that one process at a time writes: a draft that a kill left is written over."""
    target = Path(target)
    draft = target.with_name(f".{target.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, target)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to write to, which takes its place when the block ends well."""
    target = target.resolve()  # the folder itself where a link or "." names it
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}-old")
    if old.exists() and not target.exists():  # a kill came between the two renames below
        old.rename(target)
    draft = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    draft.mkdir()
    try:
        yield draft
        for file in draft.iterdir():
            if file.is_file():
                file.chmod(S_IMODE(draft.stat().st_mode) & 0o666)  # safetensors makes its files private
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        draft.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
