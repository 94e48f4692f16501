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
    """Have Gradio, where nobody has named it a folder, use one that no other program shares."""
    if os.environ.get(VARIABLE):
        yield
        return
    with TemporaryDirectory(prefix="mm-rwkv7-", ignore_cleanup_errors=True) as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def bytes_lying(folder: Path) -> int:
    """What lies in Gradio's folder. What is left there of uploads that were broken off, which Gradio forgets, goes."""
    oldest = time.time() - STALE_S
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it was taken away meanwhile
            found = path.stat()
            if path.parent == folder and path.name.startswith("tmp") and found.st_mtime < oldest and path.is_file():
                path.unlink()
            elif path.is_file():
                size += found.st_size
    return size
