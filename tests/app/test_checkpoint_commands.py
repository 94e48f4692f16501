"""`mm-rwkv7 inspect` and `mm-rwkv7 convert`."""

import copy
import json
from pathlib import Path

import pytest
import torch

from app.checkpoints import Format
from app.cli import main
from mm_rwkv7 import checkpoint
from mm_rwkv7.interop.convert import WRITERS
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.sources import BUNDLED

FORMAT = "mm-rwkv7"


def test_inspect_counts_every_part(
    tiny_model: MMRWKV7, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tiny_checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"format", "config", "parts", "template"}
    assert found["format"] == FORMAT
    for name, part in tiny_model.named_children():
        number = sum(parameter.numel() for parameter in part.parameters())
        assert found["parts"].pop(name) == {"parameters": number, "dtype": "fp32"}, name
    assert not found["parts"]
    assert found["config"]["lm"]["width"] == tiny_model.config.lm.width
    assert found["template"]["assistant"] == "Assistant:"
    assert main(["inspect", str(tiny_checkpoint)]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in (FORMAT, "width 128", "test_vit", "projector", "Assistant:"))


def test_inspect_counts_what_a_model_hears_with(
    listening_model: MMRWKV7, listening_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(listening_checkpoint), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    hearing = listening_model.sound
    assert hearing is not None
    assert parts.keys() == {"lm", "tower", "projector", "sound.encoder", "sound.projector", "sound.head"}
    for name, part in hearing.named_children():
        number = sum(parameter.numel() for parameter in part.parameters())
        assert parts[f"sound.{name}"] == {"parameters": number, "dtype": "fp32"}, name
    assert main(["inspect", str(listening_checkpoint)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert "birwkv7, 3 labels" in table[[line.split()[0] for line in table].index("sound")]


def test_inspect_reads_no_weights(tiny_model: MMRWKV7, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copy.deepcopy(tiny_model)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    checkpoint.save(model, tmp_path / "nan", "")
    with pytest.raises(ValueError, match="holds NaN"):
        checkpoint.load(tmp_path / "nan")
    assert main(["inspect", str(tmp_path / "nan")]) == 0


def test_inspect_counts_what_the_model_calls_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "nano", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    model = checkpoint.load(BUNDLED["nano"])
    assert sum(part["parameters"] for part in parts.values()) == sum(p.numel() for p in model.parameters())


def test_convert_there_and_back(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tiny_checkpoint), str(tmp_path / "lm.pth"), "--to", "blinkdl", "--json"]) == 0
    out, said = capsys.readouterr()
    done = json.loads(out)
    assert "cannot say which" in said  # of the World ids a trimmed vocabulary keeps
    assert done.keys() == {"format", "out", "parameters"}
    assert done["out"] == str(tmp_path / "lm.pth")
    held = torch.load(tmp_path / "lm.pth", weights_only=True)
    assert done["parameters"] == sum(tensor.numel() for tensor in held.values())
    assert held["blocks.1.att.x_r"].shape == (1, 1, 128)
    assert main(["convert", str(tmp_path / "lm.pth"), str(tmp_path / "back")]) == 0
    assert main(["inspect", str(tmp_path / "back")]) == 0


@pytest.mark.parametrize("command", [["inspect"], ["convert", "--to", "native"], ["ask", "Hello", "--model"]])
def test_a_bad_file_is_one_line_and_code_2(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"blocks.0.att.time_maa_x": torch.ones(1)}, tmp_path / "v6.pth")
    target = [str(tmp_path / "out")] if command[0] == "convert" else []
    assert main([*command, str(tmp_path / "v6.pth"), *target]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "RWKV-6" in captured.err
    assert "--warm-start" in captured.err


def test_every_format_that_can_be_written_can_be_asked_for() -> None:
    assert set(Format) == WRITERS.keys()


@pytest.mark.parametrize("out", ["/proc/model", "file/model", "file/nowhere/model"])
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.checkpoints.check_source", None)  # nothing is opened
    (tmp_path / "file").write_text("")
    assert main(["convert", "nano", str(tmp_path / out)]) == 2
    assert "error: cannot write to " in capsys.readouterr().err
