"""ESC-50 and ESC-10: labels from answers, and the mean over five folds."""

import json
import random
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.tasks.esc import Esc10, Esc10Head, Esc10Likelihood, Esc50, Esc50Head, Esc50Likelihood, parse
from eval.tasks.esc_in_audioset import AUDIOSET
from mm_rwkv7.audioset import labels
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from tests.eval.clips import write, write_sounds
from tests.mm_rwkv7.interop import seeded
from tests.mm_rwkv7.interop.peers import saved

CATEGORIES = ("dog", "chirping_birds", "vacuum_cleaner", "thunderstorm")
HEADER = "filename,fold,target,category,esc10,src_file,take\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty clips of four classes, four a fold; dogs belong to ESC-10."""
    folder = tmp_path_factory.mktemp("esc50")
    rows = [
        f"{fold}-{100 + target}-A-{target}.wav,{fold},{target},{category},{category == 'dog'},{100 + target},A\n"
        for fold in range(1, 6)
        for target, category in enumerate(CATEGORIES)
    ]
    write(folder / "meta" / "esc50.csv", HEADER + "".join(rows))
    write_sounds(folder / "audio", [row.partition(",")[0] for row in rows])
    return folder


def test_samples_are_the_official_rows(data: Path) -> None:
    samples = Esc50().samples(data)
    assert len(samples) == 20
    assert samples[1].id == "1-101-A-1.wav"
    assert samples[1].expected == "chirping birds"
    assert samples[1].choices == ("chirping birds", "dog", "thunderstorm", "vacuum cleaner")
    assert all(sample.sounds[0].is_file() for sample in samples)
    assert {(sample.expected, sample.choices) for sample in Esc10().samples(data)} == {("dog bark", ("dog bark",))}


def test_the_mean_over_folds(data: Path, seed: int) -> None:
    """Also of some of the clips, so that folds weigh alike whatever their size."""
    rng = random.Random(seed)
    samples = Esc50().samples(data)
    kept = [sample for sample in samples if sample.id.startswith("1") or rng.random() < 0.7]
    predictions = {s.id: f"It is a {s.expected}." if rng.random() < 0.5 else "no idea" for s in kept}
    scores = Esc50().score(data, predictions)
    folds: dict[str, list[bool]] = {}
    for sample in kept:
        folds.setdefault(sample.id[0], []).append(predictions[sample.id] != "no idea")
    expected = sum(100 * sum(rows) / len(rows) for rows in folds.values()) / len(folds)
    assert scores.metrics == pytest.approx({"accuracy": expected, "folds": len(folds)}), seed
    assert sum(scores.per_sample.values()) / len(kept) == pytest.approx(expected), seed
    assert scores.breakdown["fold"]["1"] == pytest.approx(100 * sum(folds["1"]) / 4), seed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Dog", "dog"),
        (" chirping_birds.", "chirping birds"),
        ("I hear a vacuum cleaner running", "vacuum cleaner"),
        ("A dog bark", "dog"),  # as ESC-10 names it
        ("a dog and a thunderstorm", None),
        ("hotdogs", None),
        ("", None),
    ],
)
def test_an_answer_names_one_label(answer: str, expected: str | None) -> None:
    assert parse(answer, ["chirping birds", "dog", "thunderstorm", "vacuum cleaner"]) == expected


def test_esc10_goes_by_either_name(data: Path) -> None:
    answers = {s.id: ("dog", "Dog bark.", "a dog barks", "cat", "rain")[n] for n, s in enumerate(Esc10().samples(data))}
    assert Esc10().score(data, answers).metrics["accuracy"] == pytest.approx(60)


def test_the_likeliest_label(data: Path, listening_model: MMRWKV7) -> None:
    pipe = Pipeline(listening_model, "ears")
    samples = Esc50Likelihood().samples(data)[:6]
    predictions = {s.id: row for s, row in zip(samples, Esc50Likelihood().predict(pipe, samples), strict=True)}
    for sample in samples:
        sound, question = {"type": "audio", "audio": sample.sounds[0]}, {"type": "text", "text": sample.question}
        expected = pipe.likelihood([{"role": "user", "content": [sound, question]}], sample.choices)
        assert predictions[sample.id] == pytest.approx([one.total for one in expected], rel=1e-4)
    scores = Esc50Likelihood().score(data, predictions)
    right = [s.choices[predictions[s.id].index(max(predictions[s.id]))] == s.expected for s in samples]
    folds = [right[:4], right[4:]]
    assert scores.metrics["accuracy"] == pytest.approx(50 * sum(sum(rows) / len(rows) for rows in folds))
    with pytest.raises(ValueError, match="a prediction has 2 numbers, expected 1"):
        Esc10Likelihood().score(data, {Esc10Likelihood().samples(data)[0].id: [0.5, 0.5]})


class Ears:
    """Hears the same in every sound."""

    def __init__(self, tags: dict[str, float]) -> None:
        self.tags = tags

    def tag(self, audio: Path, top: int) -> list[tuple[str, float]]:
        return list(self.tags.items())[:top]


def test_a_head_names_labels_by_any_of_their_classes(data: Path) -> None:
    samples = Esc50Head().samples(data)[:2]
    heard = Ears({"Bark": 0.3, "Dog": 0.2, "Chirp, tweet": 0.5, "Vacuum cleaner": 0.1, "Speech": 0.9})
    assert list(Esc50Head().predict(heard, samples)) == [[0.5, 0.3, 0.0, 0.1]] * 2  # type: ignore[arg-type]
    (dog, *_) = Esc10Head().samples(data)
    for own in ("dog", "dog_bark"):  # a head that was trained on these very labels
        assert list(Esc10Head().predict(Ears({own: 0.7}), [dog])) == [[0.7]]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="knows no class of esc50_head"):
        list(Esc50Head().predict(Ears({"Speech": 1.0}), samples))  # type: ignore[arg-type]


def test_classes_of_labels_are_audiosets() -> None:
    named = [name for several in AUDIOSET.values() for name in several]
    assert set(named) <= set(labels(527))
    assert len(set(named)) == len(named)
    assert len(AUDIOSET) == 47


def test_a_published_tagger_is_evaluated(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(seeded.audiorwkv(layers=1, classes=527), tmp_path / "audio_model.pth")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "esc50").symlink_to(data)
    ask = ["--data", str(folder), "--out", str(tmp_path), "--model", str(model), "--device", "cpu"]
    assert main(["--tasks", "esc50_head", *ask, "--limit", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["partial"], found["mode"]) == (3, True, "head")
    assert main(["run", "--tasks", "esc50_head", *ask, "--limit", "3"]) == 0
    assert main(["run", "--tasks", "esc50_head,esc50", *ask]) == 2
    assert main(["run", "--tasks", "esc50", *ask]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert ["limit 3, now none" in errors[0], "is a tagger of sounds" in errors[1]] == [True, True]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("2-100-A-0.wav,2", "2-100-A-0.wav,9", "line 6: the fold is '9', expected 1 to 5"),
        ("2-100-A-0.wav", "1-100-A-0.wav", "line 6: '1-100-A-0.wav' was there before, at .*line 2"),
        ("dog,True", "dog,yes", "line 2: esc10 is 'yes', expected True or False"),
        ("category", "kind", "line 2: there is no 'category'"),
    ],
)
def test_hostile_tables_are_refused(data: Path, tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = (data / "meta" / "esc50.csv").read_text("utf-8")
    assert old in text
    write(tmp_path / "meta" / "esc50.csv", text.replace(old, new, 1))
    with pytest.raises(ValueError, match=expected):
        Esc50().samples(tmp_path)
