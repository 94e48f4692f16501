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
    whole = [file for file in files if _is_whole(check, file)]
    done = 0
    if whole:
        model = open_model()
        for file in whole:
            done += _is_answered(check, lambda name: answer(model, name), file)
    return 0 if done == len(files) else 1 if done else 2


def _is_whole(check: Callable[[str], object], file: str) -> bool:
    try:
        check(file)
    except ValueError as error:
        print_error(str(error))
        return False
    return True


def _is_answered(check: Callable[[str], object], answer: Callable[[str], None], file: str) -> bool:
    """What goes wrong with a file that is still whole is about the model, and so about every file: it is raised."""
    try:
        answer(file)
    except ValueError:
        if _is_whole(check, file):
            raise
        return False
    except FloatingPointError as error:
        print_error(f"{file}: {error}")
        return False
    return True
