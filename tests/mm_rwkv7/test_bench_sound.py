"""What `bench sound` measures and draws; how long it took is not a test's business."""

import json
from pathlib import Path

import pytest
from PIL import Image

from encoders.birwkv7 import BiRWKV7Config
from mm_rwkv7.bench import sound
from mm_rwkv7.bench.__main__ import main


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sound.SIZES, "tiny", BiRWKV7Config(64, 1))


def test_both_encoders_read_the_same_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "sound.png"
    assert main(["sound", "--size", "tiny", "--longest", "10", "--json", "--plot", str(plot)]) == 0
    ours, theirs = json.loads(capsys.readouterr().out)
    assert (ours["encoder"], theirs["encoder"]) == ("RWKV-7", "AST")
    assert ours["tokens"] == theirs["tokens"] == 62 * 8
    assert ours["parameters"] == pytest.approx(theirs["parameters"], rel=0.5)
    assert min(ours["seconds"], theirs["seconds"]) > 0
    with Image.open(plot) as image:
        assert sum(count > 0 for count in image.convert("L").histogram()) > 20


def test_what_takes_too_long_is_not_tried_longer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sound", "--size", "tiny", "--longest", "30", "--limit", "0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("length_s") for row in rows] == [10, 10, None, None]
    assert all("10 s of sound took" in row["not_measured"] for row in rows[2:])


def test_a_plot_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sound", "--plot", str(tmp_path / "nowhere/a.png")]) == 2
    assert "whose folder does not exist" in capsys.readouterr().err
