"""What a run says while it trains: a line of JSON a step, and the same numbers wherever else the recipe names."""

import json
import math
import signal
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mm_rwkv7.bench.memory import process_peak
from mm_rwkv7.whole import write_text
from training.boards import Answered, Board, open_board


class Log:
    """`log.jsonl` in a run's folder, beside the boards that `places` names. Numbers that are none become null."""

    def __init__(self, folder: Path, places: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.folder, self.places, self.settings = folder, places, settings
        self.file: TextIOWrapper | None = None
        self.boards: list[Board] = []

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
        for board in self.boards:
            board.close(_exit_code(error))

    def begin(self, step: int) -> None:
        """Go on after `step`, at a stage's beginning: lines of later steps, which a kill may have left, are dropped."""
        path = self.folder / "log.jsonl"
        if self.file is not None:
            self.file.close()
        cut_log(path, step)
        self.file = path.open("a", encoding="utf-8", buffering=1)
        for place in self.places[len(self.boards) :]:
            self.boards.append(open_board(place, self.folder, self.settings, step))

    def write(self, record: Mapping[str, Any]) -> None:
        """`record` has a step; of the rest, the boards take the numbers."""
        assert self.file is not None
        line = {name: _rounded(value) for name, value in record.items()}
        self.file.write(json.dumps(line) + "\n")
        numbers = {n: v for n, v in record.items() if isinstance(v, int | float) and n != "step" and math.isfinite(v)}
        for board in self.boards:
            board.write(record["step"], numbers)

    def show(self, step: int, answers: Sequence[Answered]) -> None:
        """Answers of the model after `step` go to the boards."""
        for board in self.boards:
            board.show(step, answers)


class Silent(Log):
    """The log of a process that does not speak."""

    def __init__(self) -> None:
        super().__init__(Path(), (), {})

    def begin(self, step: int) -> None: ...

    def write(self, record: Mapping[str, Any]) -> None: ...


def cut_log(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a kill may have left later ones, the last of them torn."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("}\n")]
    write_text(path, "".join(line for line in whole if json.loads(line)["step"] <= step))


def summary(folder: Path) -> str:
    """What a run came to, in one line: its steps, and every stage's loss at the first and the last of them."""
    steps, losses = 0, dict[str, list[float]]()
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        steps = record["step"]
        if record["loss"] is not None:  # it is None for a step that was skipped because of it
            losses.setdefault(record["stage"], []).append(record["loss"])
    told = (f"{name} {found[0]:.3f} -> {found[-1]:.3f}" for name, found in losses.items())
    return f"{steps} steps; loss: {', '.join(told)}; see {folder / 'loss.png'}"


def peak_memory(device: torch.device) -> float:
    """The most memory used so far, in MB: of the GPU by tensors, or of the process."""
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak()) / 1e6


def _exit_code(error: BaseException | None) -> int:
    """What the process ends with when `error` leaves it."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 0 if error is None else 1


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else None
