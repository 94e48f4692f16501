import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_rwkv7.synthetic import soundscapes
from training.singles.hearing import ESC10, RATE, Recordings, SoundSample, Soundscapes, SpokenDigits
from training.singles.named import SOUND_SOURCES

NOWHERE = Path()


def assert_usable(sounds: list[SoundSample], labels: Any) -> None:
    for sound in sounds:
        assert sound.waveform.dtype == np.float32
        assert sound.waveform.ndim == 1
        assert 0 < np.abs(sound.waveform).max() < 1.5  # what was decoded and resampled may pass 1
        assert sound.caption
        assert sound.qa
        assert all(question and answer for question, answer in sound.qa)
        assert set(sound.labels) <= set(labels)


def test_soundscapes_are_trained_on_even_seeds_and_judged_on_odd_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def spy(seed: int, seconds: float) -> Any:
        seeds.append(seed)
        return scape

    scape = soundscapes.sample(4)
    source, rng = Soundscapes(NOWHERE), random.Random(0)
    monkeypatch.setattr(soundscapes, "sample", spy)
    for _ in range(200):
        source.train(rng)
    assert len(set(seeds)) > 100
    assert not any(seed % 2 for seed in seeds)
    seeds.clear()
    source.held_out(50)
    assert len(set(seeds)) == 50
    assert all(seed % 2 for seed in seeds)


def test_a_soundscape_becomes_a_sound(seed: int) -> None:
    source, rng = Soundscapes(NOWHERE), random.Random(seed)
    sounds = [source.train(rng) for _ in range(30)]
    assert_usable(sounds, source.labels)
    for sound in sounds:
        heard = {event.kind for event in sound.events}
        noise = {f"{sound.noise} noise"} if sound.noise else set()
        assert Counter(sound.labels) == Counter(heard | noise), seed
        assert len(sound.kinds) == len(sound.qa)


def test_the_words_of_soundscapes_are_theirs() -> None:
    texts = set(Soundscapes(NOWHERE).texts())
    for seed in range(0, 100, 2):
        scape = soundscapes.sample(seed)
        assert {scape.caption, *(text for question, answer, _ in scape.qa for text in (question, answer))} <= texts
    assert set(Soundscapes.labels) <= texts


@pytest.mark.slow  # decodes all recordings
@pytest.mark.parametrize(("kind", "kept", "classes"), [(ESC10, 80, 10), (SpokenDigits, 300, 10)])
def test_recordings_kept_out_are_never_trained_on(data_dir: Path, kind: Any, kept: int, classes: int) -> None:
    source: Recordings = kind(data_dir)
    rng = random.Random(0)
    held = source.held_out(10**6)
    assert len(held) == kept
    assert set(Counter(sound.labels for sound in held).values()) == {kept // classes}
    assert len(set(Counter(sound.labels for sound in source.training).values())) == 1
    assert_usable(held, source.labels)
    assert len(source.labels) == len({sound.labels for sound in held}) == classes
    seen = {sound.waveform.tobytes() for sound in source.training}
    assert not [sound.labels for sound in held if sound.waveform.tobytes() in seen]
    for sound in (source.train(rng) for _ in range(20)):
        assert sound.waveform.tobytes() in seen
        assert sound.qa == ((source.question, sound.labels[0]),)
        assert {source.question, sound.labels[0], sound.caption} <= set(source.texts())


def test_a_missing_or_broken_table_of_sounds_is_named(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    for name in ("esc10", "spoken_digits"):
        with pytest.raises(ValueError, match=rf"{name}.*parquet is missing"):
            SOUND_SOURCES[name](tmp_path)
    file = tmp_path / "esc10/folds1-4.parquet"
    file.parent.mkdir()
    row = {"audio": {"bytes": b"no sound", "path": "1-a.ogg"}, "label": "rain", "fold": 1}
    parquet.write_table(pa.Table.from_pylist([row]), file)
    with pytest.raises(ValueError, match=r"folds1-4\.parquet, row 0: no labelled sound .*not a sound"):
        ESC10(tmp_path)


def test_digits_are_split_by_the_number_of_their_recording(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import io

    import pyarrow as pa
    import soundfile

    def row(number: int) -> dict[str, Any]:
        file = io.BytesIO()
        soundfile.write(file, np.full(800, (number + 1) / 100), 8000, format="WAV")
        return {"audio": {"bytes": file.getvalue(), "path": f"{number % 10}_theo_{number}.wav"}, "digit": number % 10}

    (tmp_path / "spoken_digits").mkdir()
    table = pa.Table.from_pylist([row(number) for number in range(50)])
    parquet.write_table(table, tmp_path / "spoken_digits/train.parquet")
    source = SpokenDigits(tmp_path)
    loudness = [sound.waveform[500:1000].mean() for sound in source.held_out(100)]
    assert loudness == pytest.approx([(number + 1) / 100 for number in range(10)], abs=2e-3)
    assert len(source.training) == 40
    assert source.held_out(100)[2].qa == (("Which digit is spoken?", "two"),)
    assert len(source.training[0].waveform) == RATE // 10
