"""Other people's code for the same computation, measured beside ours in the same run.

A peer is looked for, opened on the same weights or inputs, and compared with ours before it is timed. Where it cannot
be had, or computes something else, `Unmeasured` says why: a row of the table without figures.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Unmeasured:
    """A peer that was asked for and not timed."""

    name: str
    reason: str

    def row(self) -> dict[str, object]:
        return {"path": self.name, "not_measured": self.reason}


class WrongPeerError(Exception):
    """A peer that was found does not compute what we compute, or cannot be run; says in which way."""


def checkout(folder: Path, marker: str) -> Path:
    """The checkout in `folder` (or `folder` itself) that has a file of this name, whatever it is called itself."""
    for home in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (home / marker).exists():
            return home
    raise WrongPeerError(f"no folder in {folder} has a {marker}")
