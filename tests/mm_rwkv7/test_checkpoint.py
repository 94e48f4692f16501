import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_rwkv7 import checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline


def assert_equal(found: MMRWKV7, expected: MMRWKV7) -> None:
    assert found.config == expected.config
    tensors = found.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensors.pop(name), tensor), name
    assert not tensors


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def fingerprint_of(model: MMRWKV7) -> str:
    return checkpoint.fingerprint(model.config.to_json(), model.state_dict().items())


def test_a_saved_model_comes_back_exactly(tiny_model: MMRWKV7, tiny_checkpoint: Path) -> None:
    loaded = checkpoint.load(tiny_checkpoint)
    assert_equal(loaded, tiny_model)
    assert fingerprint_of(loaded) == fingerprint_of(tiny_model)
    assert not loaded.training
    files = {path.name for path in tiny_checkpoint.iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md"}


@torch.no_grad()
def test_a_loaded_model_sees_like_the_saved_one(tiny_model: MMRWKV7, tiny_checkpoint: Path) -> None:
    side = tiny_model.tower.preprocess.size
    pixels = torch.arange(3 * side * side).view(1, 3, side, side).to(torch.uint8)
    assert torch.equal(checkpoint.load(tiny_checkpoint).encode(pixels), tiny_model.encode(pixels))


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_model_loads_in_another_precision(tiny_model: MMRWKV7, tiny_checkpoint: Path, dtype: str) -> None:
    model = Pipeline.from_pretrained(tiny_checkpoint, "cpu", dtype).model
    side = tiny_model.tower.preprocess.size
    pixels = torch.arange(3 * side * side).view(1, 3, side, side).to(torch.uint8)
    found, expected = model.encode(pixels).float(), tiny_model.encode(pixels)
    assert (found - expected).norm() / expected.norm() < 3e-2


def test_stored_in_half_precision_matrices_are_rounded_and_vectors_are_not(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    checkpoint.save(tiny_model, tmp_path / "half", "card", torch.float16)
    stored = load_file(tmp_path / "half/model.safetensors")
    for name, tensor in tiny_model.state_dict().items():
        wanted = torch.float16 if tensor.ndim >= 2 and tensor.is_floating_point() else tensor.dtype
        assert stored[name].dtype == wanted, name
        assert torch.equal(stored[name], tensor.to(wanted)), name
    loaded = checkpoint.load(tmp_path / "half")
    assert {t.dtype for t in loaded.parameters()} == {torch.float32}


def test_everything_that_does_not_fit_is_listed_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm.ln0.weight"], tensors["projector.up.bias"]
    tensors["lm.head.weight"] = tensors["lm.head.weight"][:-1].clone()
    tensors["lm.extra"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit") as raised:
        checkpoint.load(folder)
    for part in (
        "missing lm.ln0.weight",
        "missing projector.up.bias",
        "unexpected lm.extra",
        "lm.head.weight has shape",
    ):
        assert part in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("lm", "layers", 3000, "holds 2 blocks, its config 3000"),
        ("tower", "options", {"detph": 3}, "timm tower cannot be built.*detph"),
        ("projector", "input_width", 65, "reads width 65"),
    ],
)
def test_a_config_of_another_model_is_refused_with_its_file(
    tiny_checkpoint: Path, tmp_path: Path, part: str, field: str, value: object, message: str
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config[part][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as raised:
        checkpoint.load(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_truncated_file_is_refused(tiny_checkpoint: Path, tmp_path: Path, keep: int) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors is (empty|not a safetensors file)"):
        checkpoint.load(folder)


def test_a_folder_without_weights_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        checkpoint.load(folder)
    with pytest.raises(ValueError, match="nowhere"):
        Pipeline.from_pretrained(tmp_path / "nowhere")


def test_an_interrupted_save_leaves_the_old_folder(
    tiny_model: MMRWKV7, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tensors: Any, folder: Path, **options: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    folder = tmp_path / "model"
    checkpoint.save(tiny_model, folder, "the old one")
    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tiny_model, folder, "the new one")
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "README.md").read_text() == "the old one"
    assert_equal(checkpoint.load(folder), tiny_model)


def test_saving_again_replaces_the_folder(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    folder = tmp_path / "deep/er/model"
    checkpoint.save(tiny_model, folder, "one")
    (folder / "left over").touch()
    checkpoint.save(tiny_model, folder, "two")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert (folder / "README.md").read_text() == "two"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_link_and_a_dot_name_the_folder_itself(
    tiny_model: MMRWKV7, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "there/model"
    checkpoint.save(tiny_model, folder, "one")
    (tmp_path / "link").symlink_to(folder)
    checkpoint.save(tiny_model, tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (folder / "README.md").read_text() == "two"
    monkeypatch.chdir(folder)
    checkpoint.save(tiny_model, ".", "three")
    assert (folder / "README.md").read_text() == "three"


def test_a_split_model_comes_back(tiny_model: MMRWKV7, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD", 2_000_000)
    folder = tmp_path / "model"
    checkpoint.save(tiny_model, folder, "card")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert_equal(checkpoint.load(folder), tiny_model)


def test_one_bit_and_one_setting_change_the_fingerprint(tiny_model: MMRWKV7) -> None:
    before = fingerprint_of(tiny_model)
    changed = copy.deepcopy(tiny_model)
    assert fingerprint_of(changed) == before
    changed.lm.blocks[1].time_mix.w0.detach().view(torch.int32)[3] ^= 1
    assert fingerprint_of(changed) != before
    other = copy.deepcopy(tiny_model)
    other.config = dataclasses.replace(other.config, max_new_tokens=9)
    assert fingerprint_of(other) != before
