"""`python held_run.py STEP RECIPE ...` trains as `python -m training RECIPE ...` does, but once the log has that step's
line it waits for the end of its input: what is done to it then is done at that step, however late it comes."""

import sys
from collections.abc import Mapping
from typing import Any

from training.__main__ import main
from training.logs import Log


def hold(step: int) -> None:
    write = Log.write

    def held(log: Log, record: Mapping[str, Any]) -> None:
        write(log, record)
        if record["step"] == step:
            sys.stdin.read()

    Log.write = held  # type: ignore[method-assign]


if __name__ == "__main__":
    hold(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
