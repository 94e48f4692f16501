"""The doctor says what it finds, a broken torch included."""

import builtins
import json
import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.cli import main
from app.doctor import examine
from mm_rwkv7.ops import driver


def test_json_has_the_agreed_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert list(diagnosis) == ["python", "torch", "device", "wkv_path", "reasons"]
    assert diagnosis["python"] == platform.python_version()
    assert diagnosis["torch"] == torch.__version__
    assert diagnosis["device"] in ("cpu", "cuda")
    assert diagnosis["reasons"]


def test_the_table_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    diagnosis = examine()
    for value in (diagnosis.python, diagnosis.torch, diagnosis.device, diagnosis.wkv_path, *diagnosis.reasons):
        assert str(value) in table


def test_a_missing_gpu_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    diagnosis = examine()
    assert diagnosis.device == "cpu"
    assert any("torch.cuda.is_available() is False" in reason for reason in diagnosis.reasons)


@pytest.mark.parametrize("compiler", [True, False])
def test_the_path_has_a_reason(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    against = None if compiler else "no C compiler (cc, gcc or clang) was found"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("mm_rwkv7.ops.wkv_path", lambda device: f"some-path ({device})")
    monkeypatch.setattr("mm_rwkv7.ops.wkv_reason", lambda device: against)
    expected = f"plain PyTorch: {against}" if against else "a kernel compiled for this machine"
    assert f"WKV-7: some-path (cpu), {expected}" in examine().reasons


def test_a_gpu_whose_kernels_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA T4", total_memory=16 << 30, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr("mm_rwkv7.ops.wkv_path", lambda device: f"some-path ({device})")
    monkeypatch.setattr("mm_rwkv7.ops.wkv_reason", lambda device: None)
    for against, expected in ((None, "; kernels compiled by NVRTC "), ("no driver", "; no kernels: no driver")):
        monkeypatch.setattr(driver, "unavailable", lambda index, answer=against: answer)
        (line,) = [reason for reason in examine().reasons if reason.startswith("CUDA device: NVIDIA T4")]
        assert expected in line


def test_a_broken_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file\nmore")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    diagnosis = examine()
    assert (diagnosis.torch, diagnosis.device, diagnosis.wkv_path) == (None, None, None)
    assert diagnosis.reasons[0] == "torch cannot be imported: libtorch.so: cannot open shared object file"
    assert main(["doctor"]) == 1
    assert "torch cannot be imported" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["torchaudio", "soundfile"])
def test_sound_is_a_reason(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = [reason for reason in examine().reasons if "sound" in reason]
    assert line.startswith("sound: torchaudio 2.")
    load = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == module:
            raise OSError(f"{module}.so: built for another torch\nmore")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    (line,) = [reason for reason in examine().reasons if "sound" in reason]
    assert line == f"no sound: soundfile or torchaudio cannot be imported: {module}.so: built for another torch"


def test_a_missing_bundled_model_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("mm_rwkv7.__file__", str(tmp_path / "__init__.py"))
    assert any("missing in" in reason for reason in examine().reasons)
