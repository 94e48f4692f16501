"""Reading sounds: every format and shape, wherever the blocks are cut, and what cannot be read.

n samples.
"""

import random
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from mm_rwkv7 import sounds
from mm_rwkv7.sounds import load_sound, read_sound


def tone(seconds: float, rate: int, pitch: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    file = BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "bound"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.05)])
@pytest.mark.parametrize("how", ["path", "bytes"])
def test_formats(kind: str, bound: float, how: str, tmp_path: Path) -> None:
    data = encoded(tone(1.5, 16_000), 16_000, kind)
    path = tmp_path / "sound"
    path.write_bytes(data)
    found = load_sound(path if how == "path" else data)
    assert found.shape == (24_000,)
    assert found.dtype == torch.float32
    middle = slice(4000, 20_000)
    assert np.abs(found.numpy() - tone(1.5, 16_000))[middle].max() < bound


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("samples", [1, 1000, 70_001])
def test_resampling_is_that_of_the_whole(rate: int, samples: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    expected = torchaudio.functional.resample(waveform, rate, 16_000)
    for block in (1 << 16, 997):
        monkeypatch.setattr(sounds, "BLOCK", block)
        found = load_sound((waveform.numpy(), rate))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=f"seed {seed}, blocks of {block}")


def test_a_rate_that_shares_nothing_with_ours() -> None:
    found = load_sound((tone(1, 44_101), 44_101)).numpy()
    assert len(found) == 16_001
    assert np.abs(found - tone(16_001 / 16_000, 16_000))[1000:-1000].max() < 0.05  # 440 Hz runs ahead by 1 in 44,101


def test_channels_are_averaged(seed: int) -> None:
    channels = np.random.default_rng(seed).normal(size=(5000, 8)).astype(np.float32)
    assert np.allclose(load_sound((channels, 16_000)), channels.mean(axis=1), atol=1e-6)
    data = encoded(channels, 16_000, "WAV", "FLOAT")
    assert np.allclose(load_sound(data), channels.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8", "float64"])
def test_numbers_are_scaled_by_their_type(dtype: str) -> None:
    wanted = tone(0.1, 16_000)
    if dtype.startswith("f"):
        samples = wanted.astype(dtype)
    else:
        info = np.iinfo(dtype)
        half = (int(info.max) - int(info.min) + 1) / 2
        middle = half if info.min == 0 else 0
        samples = np.clip(wanted.astype(np.float64) * half + middle, info.min, info.max).astype(dtype)
    assert np.abs(load_sound((samples, 16_000)).numpy() - wanted).max() < (0.01 if dtype == "uint8" else 1e-4)


def test_a_tensor_is_a_waveform() -> None:
    samples = torch.linspace(-1, 1, 100)
    for tensor in (samples.bfloat16(), samples.half(), samples.double(), samples.clone().requires_grad_()):
        torch.testing.assert_close(load_sound((tensor, 16_000)), tensor.detach().float())


def test_what_is_louder_than_any_sound_is_refused() -> None:
    loud = np.full((1000, 2), 32_768.0, np.float32)  # of integers, not scaled
    assert load_sound((loud, 16_000)).max() == 32_768
    loud[160, 1] = 3e38
    assert "has a sample of 3e+38 at 0.010 s" in refusal((loud, 16_000))


def test_no_error_names_python_objects() -> None:
    for kind in ("FLAC", "OGG", "WAV"):
        said = refusal(encoded(tone(0.5, 16_000), 16_000, kind)[:30])
        assert "broken or cut short" in said
        assert "object at" not in said
        assert "BytesIO" not in said


def test_one_sample_is_a_sound() -> None:
    assert load_sound((np.float32([0.25]), 16_000)).tolist() == [0.25]


def refusal(source: sounds.SoundSource) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load_sound(source)
    return str(caught.value)


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    wav, flac = (encoded(tone(1, 16_000), 16_000, kind) for kind in ("WAV", "FLAC"))
    files = {
        "empty.wav": b"",
        "text.wav": b"no sound at all " * 50,
        "header.wav": wav[:30],
        "cut.flac": flac[: len(flac) // 2],
        "none.wav": encoded(np.zeros(0, np.float32), 16_000, "WAV"),
    }
    said = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        said[name] = refusal(tmp_path / name)
        assert name in said[name]
        assert "\n" not in said[name]
    assert "is empty" in said["empty.wav"]
    assert "is not a sound" in said["text.wav"]
    assert "broken or cut short" in said["header.wav"]
    assert "broken or cut short" in said["cut.flac"]
    assert "has no samples" in said["none.wav"]
    assert "there is no such file" in refusal(tmp_path / "missing.ogg")
    assert "is a folder" in refusal(tmp_path)
    assert "got int" in refusal(3)  # type: ignore[arg-type]


def test_waveforms_that_make_no_sense_are_refused() -> None:
    assert "is empty" in refusal((np.zeros(0, np.float32), 16_000))
    assert "expected numbers (n,) or (n, channels)" in refusal((np.zeros((2, 2, 2), np.float32), 16_000))
    assert "expected 1,000 to 768,000" in refusal((np.zeros(10, np.float32), 0))
    assert "samples per second" in refusal((np.zeros(10, np.float32), "fast"))  # type: ignore[arg-type]
    assert "has 4096 channels" in refusal((np.zeros((4, 4096), np.float32), 16_000))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_named_with_its_time(value: float) -> None:
    samples = np.zeros(200_000, np.float32)
    samples[150_000] = value
    assert "no number at 9.375 s" in refusal((samples, 16_000))
    assert "no number at 9.375 s" in refusal(encoded(samples, 16_000, "WAV", "FLOAT"))


def test_a_wav_that_was_cut_short_gives_what_is_there() -> None:
    data = encoded(tone(1, 16_000), 16_000, "WAV")
    found = load_sound(data[: 44 + 2 * 4000])
    assert np.abs(found.numpy() - tone(1, 16_000)[: len(found)]).max() < 1e-4
    assert 3990 < len(found) <= 4000


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.wav"
        soundfile.write(path, np.tile(tone(60, 8000), minutes), 8000, subtype="PCM_16")
        tracemalloc.start()
        samples = sum(len(block) for block in read_sound(path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert samples == minutes * 60 * 16_000
    assert peaks[1] < 1.2 * peaks[0]


def test_real_clips_are_read(data_dir: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(data_dir / "esc10" / "folds1-4.parquet")
    for clip in random.SystemRandom().sample(table["audio"].to_pylist(), 8):
        waveform = load_sound(clip["bytes"])
        samples, rate = soundfile.read(BytesIO(clip["bytes"]), always_2d=True)
        assert len(waveform) == pytest.approx(len(samples) * 16_000 / rate, abs=1)
        whole = np.sqrt((samples.mean(1) ** 2).mean())  # less only by what lies above the 8 kHz that are left
        assert 0.5 * whole < waveform.square().mean().sqrt() < 1.001 * whole
