"""What a run says, to the file and to the boards; boards that are not installed are stood in for."""

import json
import math
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from training.__main__ import main
from training.boards import Answered
from training.logs import Log, _exit_code, summary


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "log.jsonl").read_text().splitlines()))


def board_of(folder: Path) -> Any:
    accumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


@pytest.fixture
def answers(tmp_path: Path) -> list[Answered]:
    """About a picture, about two sounds, and about nothing."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for name in ("b.flac", "c.flac"):
        soundfile.write(tmp_path / name, rng.uniform(-0.5, 0.5, 800), 8000)
    media = [("a.png",), ("b.flac", "c.flac"), ()]
    return [
        Answered(f"what {i}?", f"expected {i}", f"said {i}", tuple(tmp_path / file for file in files))
        for i, files in enumerate(media)
    ]


def test_numbers_go_to_the_board_and_everything_to_the_file(tmp_path: Path) -> None:
    with Log(tmp_path, ["tensorboard"], {}) as log:
        log.begin(0)
        log.write({"step": 1, "stage": "align", "loss": 0.12345678, "tokens": 5})
        log.write({"step": 2, "stage": "align", "loss": float("nan"), "tokens": 7, "samples": ["a"]})
    first, second = lines(tmp_path)
    assert first == {"step": 1, "stage": "align", "loss": 0.123457, "tokens": 5}
    assert second == {"step": 2, "stage": "align", "loss": None, "tokens": 7, "samples": ["a"]}
    board = board_of(tmp_path)
    assert set(board.Tags()["scalars"]) == {"loss", "tokens"}
    assert [(event.step, event.value) for event in board.Scalars("tokens")] == [(1, 5.0), (2, 7.0)]
    assert [event.step for event in board.Scalars("loss")] == [1]


def test_a_run_ends_with_what_it_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    steps: list[tuple[str, float]] = [("align", 7.25), ("align", 6.0), ("align", 6.5), ("finetune", math.nan)]
    with Log(folder, [], {}) as log:
        log.begin(0)
        for step, (stage, loss) in enumerate([*steps, ("finetune", 4.0)], start=1):
            log.write({"step": step, "stage": stage, "loss": loss})
    told = f"5 steps; loss: align 7.250 -> 6.500, finetune 4.000 -> 4.000; see {folder / 'loss.png'}"
    assert summary(folder) == told
    monkeypatch.setattr("training.run.train", lambda run, device: Path(run.run) / "model")
    assert main(["smoke", "--set", f"run={folder}"]) == 0
    assert capsys.readouterr() == (f"{folder / 'model'}\n", f"{told}\n")


def test_a_log_that_goes_on_forgets_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    for begun, value in ((0, 1.0), (2, 2.0)):
        with Log(tmp_path, ["tensorboard"], {}) as log:
            log.begin(begun)
            for step in range(begun + 1, begun + 4):
                log.write({"step": step, "loss": value})
            log.begin(begun + 3)  # the next stage
            log.write({"step": begun + 4, "loss": value})
    wanted = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == wanted
    assert [(event.step, event.value) for event in board_of(tmp_path).Scalars("loss")] == wanted


def test_a_line_that_a_kill_tore_anywhere_is_dropped(tmp_path: Path) -> None:
    last = json.dumps({"step": 2, "left_out": ["a name with } in it"]}) + "\n"
    for end in range(len(last)):
        (tmp_path / "log.jsonl").write_text('{"step": 1}\n' + last[:end])
        with Log(tmp_path, [], {}) as log:
            log.begin(2)
        assert lines(tmp_path) == [{"step": 1}], last[:end]


def test_the_board_shows_answers_with_what_they_are_about(tmp_path: Path, answers: list[Answered]) -> None:
    with Log(tmp_path, ["tensorboard"], {}) as log:
        log.begin(0)
        log.show(7, answers)
    board = board_of(tmp_path)
    (image,) = board.Images("samples/0/0")
    assert (image.step, image.width, image.height) == (7, 9, 6)
    assert {"samples/1/0", "samples/1/1"} == set(board.Tags()["audio"])
    assert board.Audio("samples/1/0")[0].sample_rate == 8000
    (text,) = board.Tensors("samples/1/text_summary")
    told = text.tensor_proto.string_val[0].decode()
    assert all(part in told for part in ("what 1?", "expected 1", "said 1"))


class Recorder:
    """Stands in for the module of either board and for what it makes."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[int] = []

    def init(self, **settings: Any) -> "Recorder":
        self.begun.append(settings)
        return self

    def log(self, numbers: dict[str, Any], step: int) -> None:
        self.told.append((step, numbers))

    def finish(self, exit_code: int = 0) -> None:
        self.ended.append(exit_code)

    def Image(self, value: Any) -> Any:  # noqa: N802
        return ("image", value.shape)

    def Audio(self, value: Any, sample_rate: int) -> Any:  # noqa: N802
        return ("audio", value.shape, sample_rate)

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:  # noqa: N802
        return SimpleNamespace(columns=columns, data=data)


@pytest.mark.parametrize("place", ["wandb", "trackio"])
def test_a_board_elsewhere_is_one_run_with_numbers_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, answers: list[Answered]
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, place, recorder)
    for _ in range(2):
        with Log(tmp_path, [place], {"seed": 3}) as log:
            log.begin(0)
            log.write({"step": 1, "stage": "align", "loss": 0.5, "grad_norm": float("inf")})
            log.begin(1)
            log.show(1, answers)
    first, second = recorder.begun
    assert first == second, "the run that goes on is the same"
    assert first["config"] == {"seed": 3}
    assert first["resume"] == "allow"
    assert recorder.ended == [0, 0]
    (step, numbers), (_, shown), *_ = recorder.told
    assert (step, numbers) == (1, {"loss": 0.5})
    table = shown["samples"]
    assert table.columns == ["question", "expected", "said", "picture 1", "sound 1", "sound 2"]
    assert table.data[0] == ["what 0?", "expected 0", "said 0", ("image", (6, 9, 3)), None, None]
    assert table.data[1][3:] == [None, *[("audio", (800,), 8000)] * 2]
    assert table.data[2][3:] == [None] * 3


@pytest.mark.parametrize(
    ("error", "code"), [(SystemExit(143), 143), (ValueError("a broken file"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_run_that_fails_is_not_shown_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    with suppress(type(error)), Log(tmp_path, ["wandb"], {}) as log:
        log.begin(0)
        raise error
    assert recorder.ended == [code]


@pytest.mark.parametrize("place", ["wandb", "trackio"])
def test_a_place_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setitem(sys.modules, place, None)
    with pytest.raises(ValueError, match=f"engine.log names {place}, which is not installed"):
        Log(tmp_path, [place], {}).begin(0)


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (KeyboardInterrupt(), 130), (SystemExit(3), 3), (SystemExit(130), 130), (ValueError("wrong"), 1)],
)
def test_a_board_is_told_how_the_process_ends(error: BaseException | None, code: int) -> None:
    assert _exit_code(error) == code
