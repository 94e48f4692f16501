"""What is written whole or not at all has the permissions that the umask gives, whoever writes it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mm_rwkv7 import checkpoint
from mm_rwkv7.interop.convert import convert
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.state import State
from mm_rwkv7.whole import replacing_file, write_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def by_safetensors(path: Path) -> None:
    with replacing_file(path) as draft:
        save_file({"x": torch.zeros(2)}, draft)


@pytest.mark.parametrize("write", [by_safetensors, lambda path: write_text(path, "text")])
def test_a_file_follows_the_umask(tmp_path: Path, umask: int, write: Callable[[Path], None]) -> None:
    for _ in range(2):  # also where one is there already
        write(tmp_path / "file")
        assert mode(tmp_path / "file") == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_models_and_states_follow_the_umask(tiny_model: MMRWKV7, tmp_path: Path, umask: int) -> None:
    checkpoint.save(tiny_model, tmp_path / "model", "card")
    assert mode(tmp_path / "model") == 0o777 & ~umask
    assert {mode(file) for file in (tmp_path / "model").iterdir()} == {0o666 & ~umask}
    convert(tmp_path / "model", tmp_path / "lm.pth", "blinkdl")
    assert mode(tmp_path / "lm.pth") == 0o666 & ~umask
    State.zeros(1, 1, 1, 4, torch.float32, torch.device("cpu")).save(tmp_path / "state")
    assert mode(tmp_path / "state") == 0o666 & ~umask


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def torn() -> None:
        with replacing_file(tmp_path / "file") as draft:
            draft.write_text("ne")
            raise OSError("full")

    write_text(tmp_path / "file", "old")
    with pytest.raises(OSError, match="full"):
        torn()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
