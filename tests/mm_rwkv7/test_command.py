"""Bad usage and bad input of the commands: one line, exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mm_rwkv7.bench import __main__ as bench
from training import __main__ as train
from training import bundle, score


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (train.main, [], "the following arguments are required: recipe"),
        (train.main, ["no-such-recipe"], "no recipe 'no-such-recipe'"),
        (train.main, ["smoke", "--set", "stages.tower.steps=0", "--dry-run"], "has steps 0"),
        (score.main, ["nano", "--sources", "dreams"], "unknown data ['dreams']"),
        (score.main, ["/no/such/model"], "model '/no/such/model' does not exist"),
        (bench.main, [], "the following arguments are required: bench"),
        (bench.main, ["wkv", "--T", "many"], "invalid int value: 'many'"),
        (bench.main, ["dreams"], "invalid choice: 'dreams'"),
        (bundle.main, ["run", "--limit", "many"], "invalid int value: 'many'"),
        (bundle.main, ["/no/such/run"], "no recipe '/no/such/run/config.yaml'"),
    ],
)
def test_it_is_one_line(
    main: Callable[[list[str]], int], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_interrupted_training_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        (tmp_path / "checkpoints/step-40").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("training.run.train", interrupted)
    with pytest.raises(SystemExit) as ended:
        train.main(["smoke", "--device", "cpu", "--set", f"run={tmp_path}"])
    assert ended.value.code == 130
    told = f"interrupted: {tmp_path} keeps step 40; the same command goes on from there\n"
    assert capsys.readouterr().err == told
