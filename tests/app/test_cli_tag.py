"""`mm-rwkv7 tag` with a tagger that has no language model."""

import json
from pathlib import Path

import pytest
import soundfile

from app.cli import main
from tests.mm_rwkv7.interop import seeded
from tests.mm_rwkv7.interop.peers import saved


def test_a_published_tagger_names_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(seeded.audiorwkv(layers=1, classes=3), tmp_path / "audio_model.pth")
    soundfile.write(tmp_path / "a.wav", seeded.sound(), 16_000)
    assert main(["tag", str(tmp_path / "a.wav"), "--model", str(model), "--top", "2", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["audio"] == str(tmp_path / "a.wav")
    assert {tag["label"] for tag in found["tags"]} < {"class 0", "class 1", "class 2"}
    assert found["tags"][0]["score"] >= found["tags"][1]["score"]


def test_it_is_asked_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(seeded.audiorwkv(layers=1, classes=3), tmp_path / "audio_model.pth")
    for command in (["ask", "What?"], ["inspect"]):
        arguments = [*command, str(model)] if command == ["inspect"] else [*command, "--model", str(model)]
        assert main(arguments) == 2
        assert "is a tagger of sounds (A-RWKV), `mm-rwkv7 tag` is for it" in capsys.readouterr().err
