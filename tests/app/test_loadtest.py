"""That the load runs and tells what it says; never how fast."""

import json
from pathlib import Path

import pytest

from app.loadtest import main


@pytest.mark.parametrize(
    ("arguments", "rows", "name"),
    [
        (["ramp", "--users", "1,3", "--seconds", "0.2", "--tokens", "4"], 2, "times_one_user"),
        (["soak", "--conversations", "10", "--users", "3"], 11, "answers"),
        (["picture", "--pictures", "2", "--side", "64"], 3, "times_sooner"),
    ],
)
def test_loads(
    arguments: list[str], rows: int, name: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--model", str(tiny_checkpoint), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == rows
    assert name in found[-1]


def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> None:
    assert main(["ramp", "--users", "many", "--model", str(tiny_checkpoint)]) == 2
    assert capsys.readouterr().err.startswith("error: --users is 'many'")
