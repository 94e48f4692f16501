import dataclasses
import multiprocessing
from pathlib import Path

import pytest
import torch
from PIL import Image

from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.config import MMConfig
from mm_rwkv7.model import MMRWKV7
from training.data import bench_cache
from training.data.feature_cache import FeatureCache
from training.data.readers import open_reader


def some_features(seed: int) -> torch.Tensor:
    return torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(seed))


def changed(model: MMRWKV7, **config: object) -> MMRWKV7:
    """Another model with the same weights, as far as they fit."""
    other = MMRWKV7(dataclasses.replace(model.config, **config)).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_what_goes_in_comes_out(tiny_model: MMRWKV7, tmp_path: Path, seed: int) -> None:
    cache = FeatureCache(tmp_path, tiny_model)
    key = cache.key(b"a picture")
    assert cache.get(key) is None
    cache.put(key, some_features(seed))
    assert torch.equal(FeatureCache(tmp_path, tiny_model).get(key), some_features(seed)), f"seed {seed}"
    count, size = cache.size()
    assert count == 1
    assert 0 <= size - some_features(seed).nbytes < 200
    half = FeatureCache(tmp_path, tiny_model, torch.bfloat16)
    assert half.get(key) is None
    half.put(key, some_features(seed))
    assert torch.equal(half.get(key), some_features(seed).bfloat16()), f"seed {seed}"


def test_a_key_is_the_content(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, tiny_model)
    assert cache.key(b"a") == cache.key(b"a") != cache.key(b"b")
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert cache.key(wide) == cache.key(wide.copy()) != cache.key(high)


def test_another_tower_or_transform_has_features_of_its_own(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    config: MMConfig = tiny_model.config
    towers = [tiny_model, changed(tiny_model, pool=(1, 1))]
    towers.append(changed(tiny_model))
    with torch.no_grad():
        next(towers[-1].tower.parameters()).view(-1)[0] += 1e-3
    interpolated = dataclasses.replace(tiny_model.tower.preprocess, interpolation="bilinear")
    towers.append(changed(tiny_model, tower=dataclasses.replace(config.tower, preprocess=interpolated)))
    folders = {FeatureCache(tmp_path, model).folder for model in towers}
    assert len(folders) == len(towers)
    same = changed(tiny_model)
    with torch.no_grad():
        same.lm.emb.weight.zero_()  # which the tower does not see with
    assert FeatureCache(tmp_path, same).folder == FeatureCache(tmp_path, tiny_model).folder


def test_a_torn_file_is_computed_anew(tiny_model: MMRWKV7, tmp_path: Path, seed: int) -> None:
    cache = FeatureCache(tmp_path, tiny_model)
    key = cache.key(b"a picture")
    cache.put(key, some_features(seed))
    (file,) = cache.folder.glob("*/*.safetensors")
    whole = file.read_bytes()
    for torn in (b"", whole[:9], whole[:-3]):
        file.write_bytes(torn)
        assert cache.get(key) is None
    cache.put(key, some_features(seed))
    assert torch.equal(cache.get(key), some_features(seed)), f"seed {seed}"


def _put_often(cache: FeatureCache, key: str, seed: int) -> None:
    for _ in range(100):
        cache.put(key, some_features(seed))


def test_several_processes_may_write_the_same_picture(tiny_model: MMRWKV7, tmp_path: Path, seed: int) -> None:
    """Once it is there, a reader finds all of it, whoever is writing."""
    cache = FeatureCache(tmp_path, tiny_model)
    key = cache.key(b"a picture")
    cache.put(key, some_features(seed))
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_put_often, args=(cache, key, seed)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = cache.get(key)
        assert found is not None, f"seed {seed}"
        assert torch.equal(found, some_features(seed)), f"seed {seed}"
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [path.name for path in cache.folder.glob("*/*")] == [f"{key[2:]}.safetensors"]


def test_a_model_that_does_not_see_has_no_features(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    blind = MMRWKV7(dataclasses.replace(tiny_model.config, tower=None, projector=None))
    with pytest.raises(ValueError, match="has no tower"):
        FeatureCache(tmp_path, blind)


def test_the_measurement_runs(tmp_path: Path) -> None:
    """Each way reads the same pictures; how fast is not for a test to say."""
    for number in range(6):
        Image.new("RGB", (40, 30), (number * 40, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("A red square.")
    model = bench_cache.model_like_nano(TimmTowerConfig("test_vit", 32), 64)
    before = model.projector.down.weight.detach().clone()
    found = bench_cache.measure(model, open_reader(tmp_path), 2, 64, tmp_path / "cache")
    assert found["cache"]["pictures"] == 2 * found["pictures_per_pack"] > 0
    assert min(found["encoded_s"], found["cached_s"], found["times_faster"]) > 0
    assert not torch.equal(model.projector.down.weight, before)
    assert all(parameter.grad is None for parameter in model.lm.parameters())
