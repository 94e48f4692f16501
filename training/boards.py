"""Where a run's numbers and answers may be looked at while it trains: TensorBoard, Weights & Biases, trackio."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
from PIL import Image

PROJECT = "mm-rwkv7"


@dataclass(frozen=True)
class Answered:
    """What a model said to a question about pictures (.png) and sounds (.flac), and what was expected."""

    question: str
    expected: str
    said: str
    media: tuple[Path, ...]


class Board(Protocol):
    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def show(self, step: int, answers: Sequence[Answered]) -> None: ...

    def close(self, code: int) -> None:
        """The run's process ends, with this exit code."""
        ...


def open_board(name: str, folder: Path, settings: Mapping[str, Any], step: int) -> Board:
    """The board of that name for the run in `folder`, which has taken `step` steps. A ValueError says that it is not
    installed."""
    try:
        match name:
            case "tensorboard":
                return TensorBoard(folder, step)
            case "wandb":
                return WandB(folder, settings)
            case _:
                return Trackio(folder, settings)
    except ImportError as error:
        raise ValueError(f"engine.log names {name}, which is not installed here: {error}") from error


class TensorBoard:
    """In the run's folder. What a stopped run wrote of steps that are taken again is not shown."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)

    def show(self, step: int, answers: Sequence[Answered]) -> None:
        for i, answer in enumerate(answers):
            lines = (f"**{name}:** {getattr(answer, name)}" for name in ("question", "expected", "said"))
            self.board.add_text(f"samples/{i}", "\n\n".join(lines), step)
            for j, path in enumerate(answer.media):
                if path.suffix == ".png":
                    self.board.add_image(f"samples/{i}/{j}", _pixels(path), step, dataformats="HWC")
                else:
                    waveform, rate = soundfile.read(path, dtype="float32")
                    self.board.add_audio(f"samples/{i}/{j}", waveform[None], step, rate)

    def close(self, code: int) -> None:
        self.board.close()


class WandB:
    """A run that goes on is the same run there; what it had of steps that are taken again stays."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.wandb: Any = import_module("wandb")
        self.run = self.wandb.init(
            project=PROJECT,
            name=folder.name,
            id=_identity(folder),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def show(self, step: int, answers: Sequence[Answered]) -> None:
        columns, rows = _table(answers, self.wandb.Image, self.wandb.Audio)
        self.run.log({"samples": self.wandb.Table(columns=columns, data=rows)}, step=step)

    def close(self, code: int) -> None:
        self.run.finish(exit_code=code)  # a run of any other than 0 is shown as failed


class Trackio:
    """A run that goes on is the same run there; what it had of steps that are taken again stays."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.trackio: Any = import_module("trackio")
        name = f"{folder.name}-{_identity(folder)}"
        self.trackio.init(project=PROJECT, name=name, config=dict(settings), resume="allow")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.trackio.log(dict(numbers), step=step)

    def show(self, step: int, answers: Sequence[Answered]) -> None:
        columns, rows = _table(answers, self.trackio.Image, self.trackio.Audio)
        self.trackio.log({"samples": self.trackio.Table(columns=columns, data=rows)}, step=step)

    def close(self, code: int) -> None:
        self.trackio.finish()


def _identity(folder: Path) -> str:
    """What tells the run in this folder from others of its name, kept in `board.id`."""
    path = folder / "board.id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _table(
    answers: Sequence[Answered], picture: Callable[..., Any], sound: Callable[..., Any]
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: the texts, then as many pictures and as many sounds as the answer with most of them has (a
    column of W&B is of one kind)."""
    pictures = [[picture(_pixels(path)) for path in answer.media if path.suffix == ".png"] for answer in answers]
    sounds = [[_heard(path, sound) for path in answer.media if path.suffix != ".png"] for answer in answers]
    columns = ["question", "expected", "said"]
    rows: list[list[Any]] = [[one.question, one.expected, one.said] for one in answers]
    for name, media in (("picture", pictures), ("sound", sounds)):
        most = max(map(len, media), default=0)
        columns += [f"{name} {j + 1}" for j in range(most)]
        for row, shown in zip(rows, media, strict=True):
            row += [*shown, *[None] * (most - len(shown))]
    return columns, rows


def _heard(path: Path, sound: Callable[..., Any]) -> Any:
    waveform, rate = soundfile.read(path, dtype="int16")
    return sound(waveform, sample_rate=rate)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
