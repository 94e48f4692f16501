"""Bad usage and bad input of the commands: one line, exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from eval import __main__ as evaluation
from mm_rwkv7.bench import __main__ as bench
from mm_rwkv7.command import check_writable
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
        (evaluation.main, [], "the following arguments are required: --tasks, --out"),
        (evaluation.main, ["rum", "--tasks", "scenes"], "invalid choice: 'rum'"),
        (evaluation.main, ["--tasks", "scenes", "--out", "o", "--device", "tpu"], "invalid choice: 'tpu'"),
        (evaluation.main, ["--tasks", "scenes", "--out", "o", "--dtype", "int3"], "invalid choice: 'int3'"),
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


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (train.main, ["smoke", "--set", "run={}"]),
        (train.main, ["state_tracking", "--set", "run={}"]),
        (evaluation.main, ["--tasks", "scenes", "--out", "{}"]),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    main: Callable[[list[str]], int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for work in ("training.run.train", "training.state_tracking.run_study", "eval.__main__._run"):
        monkeypatch.setattr(work, None)
    (tmp_path / "file").write_text("")
    for folder in (Path("/proc/x/y"), tmp_path / "file", tmp_path / "file" / "x"):
        assert main([argument.format(folder) for argument in arguments]) == 2
        assert capsys.readouterr().err.startswith("error: cannot write to ")


def test_writing_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_an_evaluation_refuses_what_is_not_there_before_a_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eval.__main__._open_model", None)
    ask = ["--tasks", "scenes", "--limit", "1", "--out", str(tmp_path / "out")]
    assert evaluation.main([*ask, "--compare", str(tmp_path / "other")]) == 2
    assert f"--compare {tmp_path / 'other'}: there is no {tmp_path / 'other' / 'scenes'}" in capsys.readouterr().err
    monkeypatch.setattr("eval.__main__.prepare", None)
    assert evaluation.main([*ask, "--model", str(tmp_path / "model")]) == 2
    assert f"model '{tmp_path / 'model'}' does not exist" in capsys.readouterr().err


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
