"""What `State.save` leaves behind in a folder where its process is killed before it has written a state in full."""

import time
from contextlib import suppress
from pathlib import Path

from mm_rwkv7.whole import DRAFT

OLD_S = 3600.0


def remove_drafts(folder: Path) -> None:
    """Remove the drafts of states that nobody has written to for an hour: a state takes a moment, so their processes,
    which may have run on other machines, are gone. Those of processes beside this one are younger."""
    before = time.time() - OLD_S
    for path in folder.glob(".*.tmp"):
        if DRAFT.fullmatch(path.name) and path.is_file():
            with suppress(OSError):  # another process was quicker, or it is another user's
                if path.stat().st_mtime < before:
                    path.unlink()
