import json
from pathlib import Path

import pytest

from training.logs import Log


def test_numbers_go_to_the_board_and_everything_to_the_file(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Log(tmp_path, ["tensorboard"], {}) as log:
        log.write({"step": 1, "stage": "align", "loss": 0.12345678, "tokens": 5})
        log.write({"step": 2, "stage": "align", "loss": float("nan"), "tokens": 7, "samples": ["a"]})
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert first == {"step": 1, "stage": "align", "loss": 0.123457, "tokens": 5}
    assert second == {"step": 2, "stage": "align", "loss": None, "tokens": 7, "samples": ["a"]}
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"loss", "tokens"}
    assert [(event.step, event.value) for event in board.Scalars("tokens")] == [(1, 5.0), (2, 7.0)]
    assert [event.step for event in board.Scalars("loss")] == [1]


@pytest.mark.parametrize("place", ["wandb", "trackio"])
def test_a_place_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, place, None)
    with pytest.raises(ValueError, match=f"engine.log names {place}, which is not installed"):
        Log(tmp_path, [place], {})
