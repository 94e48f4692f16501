"""Many files in one command: each gets its answer, or one line that says why not."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from app.output import print_error

Model = TypeVar("Model")


def answer_each(
    files: Sequence[str],
    check: Callable[[str], object],
    open_model: Callable[[], Model],
    answer: Callable[[Model, str], None],
) -> int:
    """Check all files, open the model if one is whole, and answer for those. Returns the exit code: 0, 1 where some
    files failed, 2 where all did."""
    whole = [file for file in files if _passes(check, file)]
    done = 0
    if whole:
        model = open_model()
        for file in whole:
            done += _passes(lambda name: answer(model, name), file)
    return 0 if done == len(files) else 1 if done else 2


def _passes(act: Callable[[str], object], file: str) -> bool:
    """A ValueError that does not name the file is about the model, and so about every file: it is raised."""
    try:
        act(file)
    except ValueError as error:
        if file not in str(error):
            raise
        print_error(str(error))
        return False
    except FloatingPointError as error:
        print_error(f"{file}: {error}")
        return False
    return True
