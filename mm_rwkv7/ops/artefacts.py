"""Where the kernels' sources lie, and where what is compiled from them is kept."""

import hashlib
import os
import stat
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
    """`$XDG_CACHE_HOME/mm-rwkv7`, by default `~/.cache/mm-rwkv7`. OSError when it is not known where home is."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "mm-rwkv7"
    except RuntimeError as error:
        raise FileNotFoundError(f"nowhere to keep compiled kernels: {error}") from error


def _check_owner(folder: Path) -> None:
    """PermissionError where somebody else could put files, since what lies there is run."""
    if os.name != "posix":
        return
    status, user = folder.stat(), os.geteuid()
    if status.st_mode & stat.S_IWOTH or (user not in (0, status.st_uid) and status.st_uid != 0):
        raise PermissionError(f"compiled kernels are not kept in {folder}, where others can write")


def compiled(name: str, made_of: Iterable[str | bytes], make: Callable[[Path], None]) -> Path:
    """The file that `make(path)` writes, kept under `name` and a hash of everything it is made of.

    Made once: a later call finds it, also from another process. Processes that make it at the same time each write a
    draft of their own, and the last to finish moves it in place whole. OSError when no file can be kept, or not safely.
    """
    digest = hashlib.sha256()
    for part in made_of:
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    stem, suffix = os.path.splitext(name)
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder)
    path = folder / f"{stem}-{digest.hexdigest()[:32]}{suffix}"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder, prefix=stem) as drafts:
            draft = Path(drafts) / name
            make(draft)
            with draft.open("rb") as written:
                os.fsync(written.fileno())  # or a crash of the machine may leave the name without the content
            os.replace(draft, path)
    return path
