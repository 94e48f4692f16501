"""How every `python -m` command ends: bad usage or bad input is one line on stderr and exit code 2."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises a ValueError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ({self.prog} --help says more)")


def run_command(parser: Parser, arguments: Sequence[str] | None, action: Callable[[argparse.Namespace], None]) -> int:
    """Parse and act; returns the exit code."""
    try:
        action(parser.parse_args(arguments))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_writable(folder: Path) -> None:
    """A ValueError unless files can be made in a folder, or in the nearest one above it that is there. It costs
    nothing and leaves nothing: ask before hours are spent on what is to be written."""
    folder = folder.resolve()
    place = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(f"cannot write to {place}: {error.strerror}") from error
