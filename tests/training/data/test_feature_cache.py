import dataclasses
import multiprocessing
import os
from itertools import islice
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.config import MMConfig
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from tests.ears import RATE, noise
from tests.training.data.conversing import write_llava
from training.data import bench_cache
from training.data.feature_cache import FeatureCache, Store
from training.data.llava import Llava
from training.data.mixture import Mixture
from training.data.readers import open_reader
from training.packed import PackedStage
from training.settings import StageConfig


def some_features(seed: int) -> torch.Tensor:
    return torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(seed))


def changed(model: MMRWKV7, **config: object) -> MMRWKV7:
    """Another model with the same weights, as far as they fit."""
    other = MMRWKV7(dataclasses.replace(model.config, **config)).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_what_goes_in_comes_out(tiny_model: MMRWKV7, tmp_path: Path, seed: int) -> None:
    cache = FeatureCache(tmp_path, tiny_model)
    pictures = cache.pictures
    assert pictures is not None
    key = pictures.key(b"a picture")
    assert pictures.get(key) is None
    pictures.put(key, some_features(seed))
    assert torch.equal(FeatureCache(tmp_path, tiny_model).pictures.get(key), some_features(seed)), f"seed {seed}"
    count, size = cache.size()
    assert count == 1
    assert 0 <= size - some_features(seed).nbytes < 200
    half = FeatureCache(tmp_path, tiny_model, torch.bfloat16).pictures
    assert half.get(key) is None
    half.put(key, some_features(seed))
    assert torch.equal(half.get(key), some_features(seed).bfloat16()), f"seed {seed}"


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_what_one_keeps_others_may_read(tiny_model: MMRWKV7, tmp_path: Path, seed: int) -> None:
    before = os.umask(0o027)
    try:
        FeatureCache(tmp_path, tiny_model).pictures.put("key", some_features(seed))
    finally:
        os.umask(before)
    found = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {0o640}


def test_a_key_is_the_content(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, tiny_model).pictures
    assert cache.key(b"a") == cache.key(b"a") != cache.key(b"b")
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert cache.key(wide) == cache.key(wide.copy()) != cache.key(high)
    waveform = noise(0.1).numpy()
    keys = {cache.key(sound) for sound in ((waveform, 8000), (waveform, RATE), (waveform[1:], RATE), (-waveform, RATE))}
    assert len(keys) == 4
    assert cache.key((waveform.copy(), RATE)) == cache.key((waveform, RATE))


def test_another_tower_or_transform_has_features_of_its_own(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    config: MMConfig = tiny_model.config
    towers = [tiny_model, changed(tiny_model, pool=(1, 1))]
    towers.append(changed(tiny_model))
    with torch.no_grad():
        next(towers[-1].tower.parameters()).view(-1)[0] += 1e-3
    interpolated = dataclasses.replace(tiny_model.tower.preprocess, interpolation="bilinear")
    towers.append(changed(tiny_model, tower=dataclasses.replace(config.tower, preprocess=interpolated)))
    folders = {FeatureCache(tmp_path, model).pictures.folder for model in towers}
    folders.add(FeatureCache(tmp_path, tiny_model, half=True).pictures.folder)
    assert len(folders) == len(towers) + 1
    same = changed(tiny_model)
    with torch.no_grad():
        same.lm.emb.weight.zero_()  # which the tower does not see with
    assert FeatureCache(tmp_path, same).pictures.folder == FeatureCache(tmp_path, tiny_model).pictures.folder


def test_another_sound_encoder_or_pool_has_features_of_its_own(listening_model: MMRWKV7, tmp_path: Path) -> None:
    sound = listening_model.config.sound
    ears = [listening_model, changed(listening_model, sound=dataclasses.replace(sound, pool=(4, 1)))]
    ears.append(changed(listening_model))
    with torch.no_grad():
        next(ears[-1].sound.encoder.parameters()).view(-1)[0] += 1e-3
    folders = {FeatureCache(tmp_path, model).sounds.folder for model in ears}
    assert len(folders) == len(ears)
    same = changed(listening_model)
    with torch.no_grad():  # none of which hears
        same.sound.projector.down.weight.zero_()
        next(same.tower.parameters()).zero_()
    caches = [FeatureCache(tmp_path, model) for model in (same, listening_model)]
    assert caches[0].sounds.folder == caches[1].sounds.folder not in folders - {caches[1].sounds.folder}
    assert caches[0].pictures.folder != caches[1].pictures.folder
    assert FeatureCache(tmp_path, same, pictures=False).pictures is None


def test_a_torn_file_is_computed_anew(tiny_model: MMRWKV7, tmp_path: Path, seed: int) -> None:
    cache = FeatureCache(tmp_path, tiny_model).pictures
    key = cache.key(b"a picture")
    cache.put(key, some_features(seed))
    (file,) = cache.folder.glob("*/*.safetensors")
    whole = file.read_bytes()
    for torn in (b"", whole[:9], whole[:-3]):
        file.write_bytes(torn)
        assert cache.get(key) is None
    cache.put(key, some_features(seed))
    assert torch.equal(cache.get(key), some_features(seed)), f"seed {seed}"


def _put_often(cache: Store, key: str, seed: int) -> None:
    for _ in range(100):
        cache.put(key, some_features(seed))


def test_several_processes_may_write_the_same_picture(tiny_model: MMRWKV7, tmp_path: Path, seed: int) -> None:
    """Once it is there, a reader finds all of it, whoever is writing."""
    cache = FeatureCache(tmp_path, tiny_model).pictures
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


def test_a_model_that_neither_sees_nor_hears_has_no_features(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    blind = MMRWKV7(dataclasses.replace(tiny_model.config, tower=None, projector=None))
    with pytest.raises(ValueError, match="has no tower"):
        FeatureCache(tmp_path, blind)
    with pytest.raises(ValueError, match="has no tower that is frozen"):
        FeatureCache(tmp_path, tiny_model, pictures=False)


def test_a_stage_learns_the_same_from_the_cache(listening_model: MMRWKV7, tmp_path: Path) -> None:
    """Twice from the cache: what it is filled with, and what it gives back."""
    seed = 0  # whose first packs hold pictures and sounds
    model = changed(listening_model).requires_grad_(False)
    stage = PackedStage(model, StageConfig("align", "align", ("projector", "sound_projector"), {"a": 1.0}, 1, 1, 1.0))
    parts = [model.projector, model.sound.projector]
    for part in parts:
        part.requires_grad_(True)
    reader = Llava(write_llava(tmp_path / "data", seed, 8, sounds=True)[0])
    learned = []
    for cache in (None, FeatureCache(tmp_path / "cache", model), FeatureCache(tmp_path / "cache", model)):
        stage.cache = cache
        mixture = Mixture({"a": reader}, {"a": 1.0}, Pipeline(model).processor, 600, seed, cache=cache)
        losses = [stage(batch)[0] for batch in islice(mixture.batches(), 4)]
        stage.zero_grad()
        sum(losses).backward()
        gradients = [p.grad.clone() for part in parts for p in part.parameters()]
        learned.append((losses, gradients))
    assert all(gradient.any() for gradient in learned[0][1])
    for losses, gradients in learned[1:]:
        torch.testing.assert_close(losses, learned[0][0])
        torch.testing.assert_close(gradients, learned[0][1])


@pytest.mark.parametrize("sense", ["pictures", "sounds"])
def test_the_measurement_runs(tmp_path: Path, sense: str) -> None:
    """Each way reads the same pictures or sounds; how fast is not for a test to say."""
    for number in range(6):
        if sense == "pictures":
            Image.new("RGB", (40, 30), (number * 40, 0, 0)).save(tmp_path / f"{number}.png")
        else:
            soundfile.write(tmp_path / f"{number}.wav", noise(0.5, number).numpy(), RATE)
        (tmp_path / f"{number}.txt").write_text("A red square.")
    model = bench_cache.model_like_nano(TimmTowerConfig("test_vit", 32), 64)
    before = [part.down.weight.detach().clone() for part in bench_cache.projectors(model)]
    found = bench_cache.measure(model, open_reader(tmp_path), 2, 64, tmp_path / "cache")
    assert found["cache"]["files"] == 2 * found[f"{sense}_per_pack"] > 0
    assert min(found["encoded_s"], found["cached_s"], found["times_faster"]) > 0
    learned = [
        not torch.equal(part.down.weight, was) for part, was in zip(bench_cache.projectors(model), before, strict=True)
    ]
    assert learned == [sense == "pictures", sense == "sounds"]
    assert all(parameter.grad is None for parameter in model.lm.parameters())
