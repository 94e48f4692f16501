"""Where the page's uploads lie: in a folder of the server's own, which goes when it ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

VARIABLE = "GRADIO_TEMP_DIR"
STALE_S = 600.0  # an upload that nobody has added to for so long was broken off


@contextmanager
def own_folder() -> Iterator[None]:
    """Have Gradio use a folder that no other program shares: in the one that it was told, or among temporary files. A
    ValueError where none can be made."""
    told = os.environ.get(VARIABLE)
    try:
        if told:
            Path(told).mkdir(parents=True, exist_ok=True)
        own = TemporaryDirectory(prefix="mm-rwkv7-", dir=told or None, ignore_cleanup_errors=True)
    except OSError as error:
        raise ValueError(f"uploads cannot be kept in {told or 'the temporary folder'}: {error.strerror}") from error
    with own as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            if told:
                os.environ[VARIABLE] = told
            else:
                del os.environ[VARIABLE]


def bytes_lying(folder: Path) -> int:
    """What lies in Gradio's folder. What is left there of uploads that were broken off, which Gradio forgets, goes."""
    oldest = time.time() - STALE_S
    size = 0
    for place, _, names in os.walk(folder):  # passes over folders that are taken away meanwhile
        for path in (Path(place, name) for name in names):
            with suppress(FileNotFoundError):
                found = path.stat()
                if path.parent == folder and path.name.startswith("tmp") and found.st_mtime < oldest:
                    path.unlink()
                else:
                    size += found.st_size
    return size
