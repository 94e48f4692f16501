"""Clotho and AudioCaps: references from the official tables, and scores by the captions' metric."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from eval.metrics import captions
from eval.tasks.audiocaps import AudioCaps
from eval.tasks.clotho import Clotho
from tests.eval.clips import write, write_sounds

WORDS = ("rain", "a dog", "two birds", "an engine", "a bell", "a crowd", "wind", "music")
VERBS = ("is heard", "sounds far away", "can be heard near a road", "goes on and on", "stops, then starts again")
GONE = "clip0000003"


def caption(sound: int, number: int) -> str:
    return f"{WORDS[sound % 8]} and {WORDS[(sound + 3) % 8]} {VERBS[number]}."


@pytest.fixture(scope="module")
def clotho(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clotho")
    rows = [
        ",".join([f'"sound {sound}, near.wav"', *(f'"{caption(sound, number)}"' for number in range(5))])
        for sound in range(20)
    ]
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    write(folder / "clotho_captions_evaluation.csv", "\n".join([header, *rows]) + "\n")
    write_sounds(folder / "evaluation", [f"sound {sound}, near.wav" for sound in range(20)])
    return folder


@pytest.fixture(scope="module")
def audiocaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, one of them gone."""
    folder = tmp_path_factory.mktemp("audiocaps")
    rows = [
        f'{100 * sound + number},clip{sound:07},30,"{caption(sound, number)}"\n'
        for number in range(5)
        for sound in range(4)
    ]
    write(folder / "test.csv", "audiocap_id,youtube_id,start_time,caption\n" + "".join(rows))
    write_sounds(folder / "test", ["clip0000000.wav", "Yclip0000001.flac", "clip0000002.mp3"])
    return folder


def test_samples(clotho: Path, audiocaps: Path, tmp_path: Path) -> None:
    samples = Clotho().samples(clotho)
    assert len(samples) == 20
    assert samples[3].expected == caption(3, 0)
    assert all(sample.sounds[0].is_file() for sample in samples)
    found = AudioCaps().samples(audiocaps)
    assert [sample.id for sample in found] == ["clip0000000", "clip0000001", "clip0000002"]
    assert all(sample.sounds[0].is_file() for sample in found)
    # Where nobody has the sounds, predictions of all clips can be scored.
    write(tmp_path / "test.csv", (audiocaps / "test.csv").read_text("utf-8"))
    assert GONE in [sample.id for sample in AudioCaps().samples(tmp_path)]


def test_each_caption_meets_its_own_references(clotho: Path, audiocaps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the metric: how many words of the first reference are in the caption."""

    def evaluate(said: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> captions.CaptionScores:
        assert said.keys() == references.keys()
        assert all(len(known) == 5 for known in references.values())
        each = {name: float(len({*text.split()} & {*references[name][0].split()})) for name, text in said.items()}
        mean = sum(each.values()) / len(each)
        return captions.CaptionScores({"CIDEr-D": mean, "SPICE": 1.0}, each, {"METEOR": "it is asleep"})

    monkeypatch.setattr(captions, "evaluate", evaluate)
    for task, data in ((Clotho(), clotho), (AudioCaps(), audiocaps)):
        samples = task.samples(data)[:3]
        told = task.score(data, {sample.id: sample.expected for sample in samples})
        assert told.per_sample == {s.id: float(len({*s.expected.split()})) for s in samples}
        assert told.metrics["SPIDEr"] == pytest.approx((told.metrics["CIDEr-D"] + 1) / 2)
        assert told.corpus["CIDEr-D"]([samples[0].id] * 2) == told.per_sample[samples[0].id]
        assert told.notes[0] == "METEOR is left out: it is asleep."
        assert f"{len(samples)} of {len(task.samples(data)) + (data == audiocaps)} were captioned" in told.notes[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="the captions' metrics need Java")
def test_from_captions_to_scores(clotho: Path) -> None:
    samples = Clotho().samples(clotho)
    told = Clotho().score(clotho, {sample.id: sample.expected for sample in samples})
    assert told.metrics["BLEU-4"] == pytest.approx(100)
    assert told.metrics["CIDEr-D"] > 0
    assert told.corpus["CIDEr-D"](list(told.per_sample)) == pytest.approx(told.metrics["CIDEr-D"])
    assert ("SPIDEr" in told.metrics) == ("SPICE" in told.metrics)


def test_hostile_tables_are_refused(clotho: Path, audiocaps: Path, tmp_path: Path) -> None:
    for data, name, task, old, new, expected in (
        (clotho, "clotho_captions_evaluation.csv", Clotho(), "sound 1,", "sound 0,", "line 3: .* was there before"),
        (
            clotho,
            "clotho_captions_evaluation.csv",
            Clotho(),
            "caption_5",
            "caption_6",
            "line 2: .* no 'caption_5'",
        ),
        (clotho, "clotho_captions_evaluation.csv", Clotho(), "file_name", "<html>", "is a web page"),
        (audiocaps, "test.csv", AudioCaps(), "\n100,", "\n0,", "line 3: '0' was there before"),
        (audiocaps, "test.csv", AudioCaps(), ",30,", ",", "line 2: there are 3 fields, expected 4"),
    ):
        text = (data / name).read_text("utf-8")
        assert old in text
        write(tmp_path / name, text.replace(old, new, 1))
        with pytest.raises(ValueError, match=expected):
            task.samples(tmp_path)
    with pytest.raises(ValueError, match=r"test.csv is missing; it comes from https://github.com/cdjkim/audiocaps"):
        AudioCaps().samples(clotho)
