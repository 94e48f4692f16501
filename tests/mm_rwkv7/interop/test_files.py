"""Files that are broken or hostile are refused in one clear line, and nothing in them is executed."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mm_rwkv7.interop.files import read

Maker = Callable[..., dict[str, Tensor]]
ROOT = Path(__file__).resolve().parents[3]


class Touch:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as raised:
        read(path)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "it ran"
    torch.save({"emb.weight": Touch(mark)}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    assert "it wants to run posix.system, and nothing was run" in refusal(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Touch(mark)))
    refusal(tmp_path / "plain.pth")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"\x80", b"\x80\x02.", b"\x80\x04N.", b"\x80\x02}q\x00.", b"PK\x03\x04", bytes(range(7, 99))]
)
def test_no_garbage_gets_through(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "garbage.pth").write_bytes(content)
    refusal(tmp_path / "garbage.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_refused(make_blinkdl: Maker, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(make_blinkdl(), path)
    else:
        save_file(make_blinkdl(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refusal(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git-lfs pointer"),
        (b"<!DOCTYPE html>\n<html><head>", "web page"),
        (b"\n  <html lang='en'>", "web page"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
    ],
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert reason in refusal(tmp_path / name)


def test_an_unknown_beginning_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"RIFF....")
    assert "no checkpoint: it begins with b'RIFF....'" in refusal(tmp_path / "model.pth")


def test_one_buffer_under_many_names_is_refused(tmp_path: Path) -> None:
    buffer = torch.zeros(10_000)
    torch.save({f"blocks.{i}.ln1.weight": buffer for i in range(100)}, tmp_path / "many.pth")
    assert "more than twice the file's" in refusal(tmp_path / "many.pth")


def test_a_tensor_without_numbers_is_refused(tmp_path: Path) -> None:
    torch.save({"emb.weight": torch.empty(3, 4, device="meta")}, tmp_path / "meta.pth")
    assert "emb.weight has a shape but no numbers" in refusal(tmp_path / "meta.pth")


def test_a_header_that_claims_20_gb_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "claims.safetensors"
    path.write_bytes((20 * 10**9).to_bytes(8, "little") + b"{" * 100)
    assert "claims 20000000000 bytes, the file has 108" in refusal(path)


def test_a_tensor_that_claims_20_gb_is_not_believed(tmp_path: Path) -> None:
    header = json.dumps({"emb.weight": {"dtype": "F32", "shape": [10**5, 5 * 10**4], "data_offsets": [0, 2 * 10**10]}})
    path = tmp_path / "claims.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 64)
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_view_larger_than_its_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "wide.pth"
    torch.save({"emb.weight": torch.ones(1).expand(10**6, 10**6)}, path, _use_new_zipfile_serialization=zipped)
    assert "emb.weight claims shape (1000000, 1000000)" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_storage_larger_than_its_file_is_refused_at_little_memory(tmp_path: Path, zipped: bool) -> None:
    """The pickle's 1,000,003 numbers become 5,000,000,003, and the file stays as it was."""
    path = tmp_path / "claims.pth"
    torch.save({"emb.weight": torch.ones(1_000_003)}, path, _use_new_zipfile_serialization=zipped)
    old, new = (b"J" + (1_000_003).to_bytes(4, "little")), (b"\x8a\x05" + (5_000_000_003).to_bytes(5, "little"))
    if zipped:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)
    else:
        path.write_bytes(path.read_bytes().replace(old, new))
    code = f"""
        from pathlib import Path
        from mm_rwkv7.bench.memory import process_peak
        from mm_rwkv7.interop.files import read
        try:
            read(Path({str(path)!r}))
        except ValueError as error:
            print(error)
        print(process_peak())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    message, peak = done.stdout.rsplit("\n", 2)[:2]
    assert "claims.pth" in message
    assert int(peak) < 2e9  # of 20 GB claimed


@pytest.mark.parametrize(
    ("content", "reason"),
    [([torch.ones(2)], "holds list"), ({"epoch": 3}, "holds int under 'epoch'"), ({3: torch.ones(1)}, "under 3")],
)
def test_only_dictionaries_of_tensors_are_read(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "m.pth")
    assert reason in refusal(tmp_path / "m.pth")


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"emb.weight": torch.eye(3).to_sparse()}, tmp_path / "m.pth")
    assert "emb.weight is sparse" in refusal(tmp_path / "m.pth")


def test_the_name_does_not_decide(make_blinkdl: Maker, tmp_path: Path) -> None:
    save_file(make_blinkdl(), tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(tmp_path / "m.pth")
    assert read(tmp_path / "m.pth").container == "safetensors"


def test_a_folder_holds_one_model(make_blinkdl: Maker, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model"):
        read(tmp_path)
    torch.save(make_blinkdl(), tmp_path / "a.pth")
    (tmp_path / "runs.pth").mkdir()
    assert read(tmp_path).tensors.keys() == make_blinkdl().keys()
    torch.save(make_blinkdl(), tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"holds 2 models, name one of them: \S+/a\.pth, \S+/b\.pth$"):
        read(tmp_path)


def test_shards_are_read_and_none_may_lie_elsewhere(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    names = list(tensors)
    index = tmp_path / "model.safetensors.index.json"
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in halves.items() for name in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert read(tmp_path).tensors.keys() == tensors.keys()
    index.write_text(json.dumps({"weight_map": weight_map | {"emb.weight": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./secret\.safetensors', expected files beside it"):
        read(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {"emb.weight": "model-3.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-3\.safetensors is missing"):
        read(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"holds 2 models, name one of them: {index}, \S+other\.pth$"):
        read(tmp_path)
    assert read(index).tensors.keys() == tensors.keys()
    (tmp_path / "other.pth").unlink()
    index.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        read(tmp_path)


def test_one_shard_is_no_model(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    names, files = list(tensors), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, held in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    assert "its index, model.safetensors.index.json, is not beside it" in refusal(tmp_path / files[0])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}))
    for file in files:
        assert f"is one of 2 shards of a model: name its index, {index}" in refusal(tmp_path / file)
    save_file(tensors, tmp_path / "all.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "all.safetensors")}))
    assert read(tmp_path / "all.safetensors").tensors.keys() == tensors.keys()
