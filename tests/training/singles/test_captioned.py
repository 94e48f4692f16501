import csv
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.singles.captioned import AudioCaps, Captioned, Clotho
from training.singles.hearing import DESCRIBE, RATE

SPLITS = {AudioCaps: ("train", "test"), Clotho: ("development", "evaluation")}


def write_table(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_sound(path: Path, seconds: float, rate: int = 44_100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * rate)), rate)


@pytest.fixture
def audiocaps(tmp_path: Path) -> Path:
    folder = tmp_path / "audiocaps"
    for split, number in (("train", 10), ("test", 20)):
        write_sound(folder / split / f"{number}.wav", 1)
        write_sound(folder / split / f"Yvideo{number}.flac", 2)
        rows = [
            [str(number), "elsewhere", "30", f"A dog barks, {split}"],
            [str(number + 1), f"video{number}", "0", f"Rain falls, {split}"],
            [str(number + 2), f"video{number}", "0", f'It rains on a "tin" roof, {split}'],
        ]
        write_table(folder / f"{split}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)
    return tmp_path


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    for split in SPLITS[Clotho]:
        write_sound(tmp_path / "clotho" / split / "Rain, heavy.wav", 15)
        captions = [f"Rain {i}, {split}" for i in range(1, 6)]
        columns = ["file_name", *(f"caption_{i}" for i in range(1, 6))]
        write_table(tmp_path / f"clotho/clotho_captions_{split}.csv", columns, [["Rain, heavy.wav", *captions]])
    return tmp_path


def test_audiocaps_are_found_by_caption_or_video(audiocaps: Path) -> None:
    source = AudioCaps(audiocaps)
    kept = source.held_out(10)
    assert [(sound.caption, len(sound.waveform)) for sound in kept] == [
        ("A dog barks, test", RATE),
        ("Rain falls, test", 2 * RATE),
    ]
    drawn = {source.train(random.Random(seed)).caption for seed in range(50)}
    assert drawn == {"A dog barks, train", "Rain falls, train", 'It rains on a "tin" roof, train'}
    assert drawn < set(source.texts())


def test_clotho_has_five_captions_a_sound(clotho: Path) -> None:
    source = Clotho(clotho)
    (kept,) = source.held_out(10)
    assert (kept.caption, len(kept.waveform)) == ("Rain 1, evaluation", 15 * RATE)
    assert kept.qa == ((DESCRIBE, kept.caption),)
    drawn = {source.train(random.Random(seed)).caption for seed in range(80)}
    assert drawn == {f"Rain {i}, development" for i in range(1, 6)}


@pytest.mark.parametrize(("source", "fixture"), [(AudioCaps, "audiocaps"), (Clotho, "clotho")])
def test_missing_sounds_are_counted_and_missing_tables_named(
    source: type[Captioned], fixture: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    first, _ = SPLITS[source]
    sounds = sorted((folder / fixture / first).iterdir())
    if len(sounds) > 1:
        sounds[-1].unlink()
        with pytest.warns(UserWarning, match=r"train: 2 rows of its table have no sound"):
            source(folder)
    sounds[0].unlink()
    with pytest.raises(ValueError, match=r"has none of the \d sounds"):
        source(folder)
    next((folder / fixture).glob(f"*{first}.csv")).unlink()
    with pytest.raises(ValueError, match=rf"{first}\.csv is missing"):
        source(folder)


def test_a_table_of_something_else_is_refused(audiocaps: Path) -> None:
    table = audiocaps / "audiocaps/train.csv"
    write_table(table, ["audiocap_id", "youtube_id", "caption"], [["1", "a", ""]])
    with pytest.raises(ValueError, match=r"train\.csv, line 2: nothing in caption"):
        AudioCaps(audiocaps)
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no CSV table"):
        AudioCaps(audiocaps)
