"""`python -m training.score` refuses what it cannot ask before it asks anything."""

from pathlib import Path

import pytest

from tests.training.packed_run import make_start
from training import score


def test_a_model_is_not_asked_about_what_it_cannot_hear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(make_start(tmp_path / "model"))
    assert score.main([model, "--sources", "scenes,soundscapes"]) == 2
    assert "cannot hear ['soundscapes']; --sources names what it is asked about" in capsys.readouterr().err
    assert score.main([model, "--sources", "scenes", "--limit", "0"]) == 2
    assert "--limit is 0, expected at least 1" in capsys.readouterr().err
