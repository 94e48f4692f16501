"""What a run says while it trains: a line of JSON a step, and the same numbers wherever else the recipe names."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mm_rwkv7.bench.memory import process_peak

Writer = Callable[[int, Mapping[str, Any]], None]


class Log:
    """`log.jsonl` in a run's folder, beside whatever `places` names. Numbers that are none become null."""

    def __init__(self, folder: Path, places: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.file = (folder / "log.jsonl").open("a", encoding="utf-8", buffering=1)
        self.closing: list[Callable[[], Any]] = [self.file.close]
        self.writers = [self._open(place, folder, settings) for place in places]

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for close in self.closing:
            close()

    def write(self, record: Mapping[str, Any]) -> None:
        """`record` has a step; of the rest, other places than the file take the numbers."""
        line = {name: _rounded(value) for name, value in record.items()}
        self.file.write(json.dumps(line) + "\n")
        numbers = {n: v for n, v in record.items() if isinstance(v, int | float) and n != "step" and math.isfinite(v)}
        for write in self.writers:
            write(record["step"], numbers)

    def _open(self, place: str, folder: Path, settings: Mapping[str, Any]) -> Writer:
        try:
            match place:
                case "tensorboard":
                    return self._tensorboard(folder)
                case "wandb":
                    wandb: Any = import_module("wandb")
                    run = wandb.init(project="mm-rwkv7", name=folder.name, dir=str(folder), config=dict(settings))
                    self.closing.append(run.finish)
                    return lambda step, numbers: run.log(dict(numbers), step=step)
                case _:
                    trackio: Any = import_module("trackio")
                    trackio.init(project="mm-rwkv7", name=folder.name, config=dict(settings), resume="allow")
                    self.closing.append(trackio.finish)
                    return lambda step, numbers: trackio.log(dict(numbers), step=step)
        except ImportError as error:
            raise ValueError(f"engine.log names {place}, which is not installed here: {error}") from error

    def _tensorboard(self, folder: Path) -> Writer:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(folder / "tensorboard"))
        self.closing.append(board.close)

        def write(step: int, numbers: Mapping[str, Any]) -> None:
            for name, value in numbers.items():
                board.add_scalar(name, value, step)

        return write


class Silent(Log):
    """The log of a process that does not speak."""

    def __init__(self) -> None:
        self.closing = []

    def write(self, record: Mapping[str, Any]) -> None: ...


def peak_memory(device: torch.device) -> float:
    """The most memory used so far, in MB: of the GPU by tensors, or of the process."""
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak()) / 1e6


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else None
