"""Where the kernels' sources lie, and where what is compiled from them is kept."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def source(name: str) -> Path:
    """A file of `kernels/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no {name} in {package / 'kernels'} nor in {package.parent / 'kernels'}")


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mm-rwkv7`, by default `~/.cache/mm-rwkv7`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mm-rwkv7"


def compiled(name: str, made_of: Iterable[str | bytes], make: Callable[[Path], None]) -> Path:
    """The file that `make(path)` writes, kept under `name` and a hash of everything it is made of.

    Made once: a later call finds it, also from another process. Processes that make it at the same time each write a
    draft of their own, and the last to finish moves it in place whole. OSError when no file can be kept.
    """
    digest = hashlib.sha256()
    for part in made_of:
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    stem, suffix = os.path.splitext(name)
    path = cache_folder() / f"{stem}-{digest.hexdigest()[:32]}{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=stem) as folder:
            draft = Path(folder) / name
            make(draft)
            os.replace(draft, path)
    return path
