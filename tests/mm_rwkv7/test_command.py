"""Bad usage and bad input of the commands: one line, exit code 2."""

from collections.abc import Callable

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
