"""`mm-rwkv7 tag` with a tagger that has no language model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import soundfile

from app.cli import main
from mm_rwkv7.listening import Listener, open_listener
from tests.mm_rwkv7.interop import seeded, speech_models
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


def test_it_is_asked_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(seeded.audiorwkv(layers=1, classes=3), tmp_path / "audio_model.pth")
    assert main(["ask", "What?", "--model", str(model)]) == 2
    assert "is a tagger of sounds (A-RWKV), `mm-rwkv7 tag` is for it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["A-RWKV", "AST"])
def test_it_is_inspected(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "AST":
        model = tmp_path / "ast"
        speech_models.ast(0).save_pretrained(model)
    else:
        model = saved(seeded.audiorwkv(layers=1, classes=3), tmp_path / "audio_model.pth")
    assert main(["inspect", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    listener = open_listener(model, "cpu")
    assert isinstance(listener, Listener)
    assert found["format"] == kind
    assert found["config"] == json.loads(json.dumps(asdict(listener.tagger.config)))
    for name, part in listener.tagger.named_children():
        number = sum(parameter.numel() for parameter in part.parameters())
        assert found["parts"].pop(name) == {"parameters": number, "dtype": "fp32" if kind == "AST" else "bf16"}
    assert found["parts"] == {}
    assert main(["inspect", str(model)]) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table.keys() == {"format", "sizes", "encoder", "head", "sound"}
    assert f"width {listener.tagger.encoder.width}" in table["sizes"]
    assert table["sound"] == f"{'ast' if kind == 'AST' else 'birwkv7'}, {len(listener.tagger.config.labels)} labels"
