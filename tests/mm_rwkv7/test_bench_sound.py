"""What `bench sound` measures and draws; how long it took is not a test's business."""

import json
from pathlib import Path

import pytest
from PIL import Image

from encoders.birwkv7 import BiRWKV7Config
from mm_rwkv7.bench import long_sound, sound
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


@pytest.mark.parametrize("power", [1, 2])
def test_a_run_is_expected_to_cost_what_the_growth_says(power: int) -> None:
    known = [(length, length**power / 100) for length in (10, 30, 60)]
    assert sound.expected(known, 180) == pytest.approx(180**power / 100)
    assert sound.expected([], 10) == 0
    assert sound.expected([(10, 4.0)], 30) == sound.expected([(5, 8.0), (10, 4.0)], 30) == 12  # never less


def test_a_long_file_is_read_and_tagged(
    listening_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_sound, "RATE", 8_000)
    assert main(["sound", "--minutes", "2", "--model", str(listening_checkpoint), "--device", "cpu", "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert (one["minutes"], two["minutes"]) == (1, 2)
    assert two["tokens"] == pytest.approx(2 * one["tokens"], abs=1)
    assert two["file_mb"] == pytest.approx(2 * one["file_mb"], rel=0.1)
    for row in (one, two):
        assert min(row["reading_s"], row["tagging_s"]) > 0
        assert all(row[f"{what}_peak_mb"] is None or row[f"{what}_peak_mb"] > 100 for what in ("reading", "tagging"))
    assert main(["sound", "--minutes", "0"]) == 2
    assert "--minutes is 0" in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sound", "--plot", str(tmp_path / "nowhere/a.png")]) == 2
    assert "whose folder does not exist" in capsys.readouterr().err
