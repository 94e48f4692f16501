"""AudioSet's task: the official tables, clips that are gone, and three ways to score the classes."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from eval.__main__ import main
from eval.metrics.audioset import metrics
from eval.run import Settings, prepare, run
from eval.tasks.audioset import AudioSet, Embedding, Head, Likelihood
from mm_rwkv7.audioset import labels
from mm_rwkv7.listening import open_listener
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from tests import ears
from tests.eval.clips import write, write_sounds
from tests.mm_rwkv7.interop import seeded
from tests.mm_rwkv7.interop.peers import saved

NAMES = labels(527)
HEADER = (
    "# Segments csv created Sun Mar  5 10:54:25 2017\n"
    "# num_ytids=20, num_segs=20, num_unique_labels=527, num_positive_labels=40\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
CLIPS = [f"{'-' if n % 3 else 'Y'}clip{n:05}_" for n in range(20)]  # eleven characters, as YTIDs are
GONE = CLIPS[4:7]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout: twenty clips of two or three classes, three of them gone, in four formats."""
    folder = tmp_path_factory.mktemp("audioset")
    rng = random.Random(7)
    quoted = [f'{number},/m/{number:03x},"{name}"\n' for number, name in enumerate(NAMES)]
    write(folder / "class_labels_indices.csv", "index,mid,display_name\n" + "".join(quoted))
    rows = []
    for clip in CLIPS:
        mids = ",".join(f"/m/{number:03x}" for number in rng.sample(range(527), rng.choice((2, 3))))
        rows.append(f'{clip}, 30.000, 40.000, "{mids}"\n')
    write(folder / "eval_segments.csv", HEADER + "".join(rows))
    alive = [clip for clip in CLIPS if clip not in GONE]
    formats = (".wav", ".flac", ".ogg", ".mp3")
    write_sounds(folder / "eval_segments", [("Y" if n % 2 else "") + c + formats[n % 4] for n, c in enumerate(alive)])
    return folder


@pytest.fixture(scope="module")
def pipe(tiny_model: MMRWKV7) -> Pipeline:
    """A model with random weights whose tagging head has AudioSet's classes."""
    config = dataclasses.replace(ears.SOUND, labels=NAMES)
    model = MMRWKV7(dataclasses.replace(tiny_model.config, sound=config)).eval()
    model.load_state_dict(tiny_model.state_dict(), strict=False)
    model.sound = ears.make(config)
    return Pipeline(model, "ears")


def test_samples_are_the_official_rows(data: Path) -> None:
    samples = Head().samples(data)
    assert [sample.id for sample in samples] == CLIPS
    assert [sample.id for sample in samples if not sample.sounds] == GONE
    for sample in samples:
        assert all(path.is_file() and sample.id in path.stem for path in sample.sounds)
        assert sample.choices == NAMES
        assert sum(name in sample.expected for name in NAMES) >= 2


@pytest.mark.parametrize("task", [Head(), Likelihood(), Embedding()], ids=lambda task: task.name)
def test_from_sounds_to_scores(task: AudioSet, data: Path, pipe: Pipeline) -> None:
    # Two clips that are there and one that is gone: the random language model reads 527 names for each.
    samples = [sample for sample in task.samples(data) if sample.id in CLIPS[3:6]]
    predictions = {sample.id: row for sample, row in zip(samples, task.predict(pipe, samples), strict=True)}
    assert [len(row) for row in predictions.values()] == [527, 0, 0]
    scores = task.score(data, predictions)
    assert scores.metrics["clips"] == 1
    assert scores.metrics["clips_gone"] == 2
    assert 0 < scores.metrics["mAP"] <= 1


def test_the_head_is_the_pipelines(data: Path, pipe: Pipeline) -> None:
    (sample,) = [sample for sample in Head().samples(data) if sample.id == CLIPS[0]]
    (row,) = Head().predict(pipe, [sample])
    tags = dict(pipe.tag(sample.sounds[0], top=527))
    assert row == [tags[name] for name in NAMES]


def test_a_published_tagger_has_a_head_too(data: Path, tmp_path: Path) -> None:
    listener = open_listener(saved(seeded.audiorwkv(layers=1, classes=527), tmp_path / "audio_model.pth"), "cpu")
    task, settings = Head(), Settings(limit=2)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "audioset").symlink_to(data)
    path = run(prepare(task, folder, tmp_path, settings), listener)
    for line in map(json.loads, path.read_text().splitlines()):
        (sample,) = [sample for sample in task.samples(data) if sample.id == line["id"]]
        tags = dict(listener.tag(sample.sounds[0], top=527))
        assert line["prediction"] == [tags[name] for name in NAMES]
    known = json.loads((path.parent / "manifest.json").read_text())
    assert len(known["model"]["fingerprint"]) == 64
    assert (known["device"], known["dtype"]) == ("cpu", "float32")


def test_the_likelihood_is_that_of_the_names_less_that_without_a_sound(data: Path, pipe: Pipeline) -> None:
    sample = dataclasses.replace(Likelihood().samples(data)[0], choices=NAMES[:5])
    (row,) = Likelihood().predict(pipe, [sample])
    question = {"type": "text", "text": sample.question}
    sound = {"type": "audio", "audio": sample.sounds[0]}
    heard = pipe.likelihood([{"role": "user", "content": [sound, question]}], NAMES[:5])
    silent = pipe.likelihood([{"role": "user", "content": [question]}], NAMES[:5])
    expected = [
        one.total / len(one.tokens) - two.total / len(two.tokens) for one, two in zip(heard, silent, strict=True)
    ]
    assert row == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_embedding_is_a_cosine(data: Path, pipe: Pipeline) -> None:
    sample = dataclasses.replace(Embedding().samples(data)[0], choices=NAMES[:5])
    (row,) = Embedding().predict(pipe, [sample])
    names = torch.stack([pipe.embed([{"role": "user", "content": name}]) for name in NAMES[:5]])
    content = [{"type": "audio", "audio": sample.sounds[0]}, {"type": "text", "text": sample.question}]
    heard = pipe.embed([{"role": "user", "content": content}])
    expected = torch.cosine_similarity(names - names.mean(0), (heard - names.mean(0))[None])
    assert row == pytest.approx(expected.tolist(), abs=1e-5)


def test_score_needs_no_sounds_and_counts_what_is_gone(data: Path, tmp_path: Path, seed: int) -> None:
    for name in ("class_labels_indices.csv", "eval_segments.csv"):
        write(tmp_path / name, (data / name).read_text("utf-8"))
    rng = random.Random(seed)
    rows = {clip: [rng.random() for _ in NAMES] for clip in CLIPS}
    scores = Head().score(tmp_path, {**rows, **{clip: [] for clip in GONE}})
    alive = [clip for clip in CLIPS if clip not in GONE]
    expected = {sample.id: sample.expected for sample in Head().samples(tmp_path)}
    wanted = [[int(f", {name}, " in f", {expected[clip]}, ") for name in NAMES] for clip in alive]
    found = metrics([rows[clip] for clip in alive], wanted)
    assert {name: scores.metrics[name] for name in found} == found, seed
    assert (scores.metrics["clips"], scores.metrics["clips_gone"]) == (17, 3)
    assert hashlib.sha256("".join(f"{clip}\n" for clip in sorted(alive)).encode()).hexdigest() in scores.notes[1]
    table = scores.breakdown["average precision"]
    assert len(table) == found["classes"]
    assert sum(table.values()) / len(table) == pytest.approx(found["mAP"]), seed
    assert set(scores.per_sample) == set(alive)
    assert scores.corpus["mAP"](alive) == pytest.approx(found["mAP"]), seed


def test_runs_are_judged_and_compared_on_the_clips_that_they_heard(
    data: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/audioset").symlink_to(data)
    rng = random.Random(seed)
    for name, gone in (("old", GONE), ("same", GONE), ("fewer", CLIPS[3:7])):
        rows = {clip: [] if clip in gone else [rng.random() for _ in NAMES] for clip in CLIPS}
        lines = (json.dumps({"id": clip, "prediction": row}) + "\n" for clip, row in rows.items())
        write(tmp_path / name / "audioset/predictions.jsonl", "".join(lines))
        where = ["--tasks", "audioset", "--data", str(tmp_path / "data"), "--out", str(tmp_path / name)]
        assert main(["score", *where]) == 0
        scores = json.loads((tmp_path / name / "audioset/scores.json").read_text())
        assert scores["n"] == len(CLIPS) - len(gone)
        assert 0 < scores["stderr"]["mAP_bootstrap"] < scores["metrics"]["mAP"], f"seed {seed}"
        compared = main(["report", *where, "--compare", str(tmp_path / "old")])
        assert compared == (2 if name == "fewer" else 0)
    assert "audioset was scored on other questions there" in capsys.readouterr().err


def test_a_perfect_model_scores_one(data: Path) -> None:
    samples = Head().samples(data)
    wanted = {s.id: [float(f", {name}, " in f", {s.expected}, ") for name in NAMES] for s in samples}
    scores = Head().score(data, wanted)
    assert scores.metrics["mAP"] == scores.metrics["mAUC"] == 1
    assert "d_prime" not in scores.metrics
    assert scores.notes[-1] == "d_prime is left out: it is not finite."
    assert set(scores.per_sample.values()) == {1.0}


def test_another_models_head_is_refused(data: Path, listening_model: MMRWKV7) -> None:
    sample = Head().samples(data)[0]
    with pytest.raises(ValueError, match="does not know 527 of AudioSet's 527 classes, 'Speech' among them"):
        list(Head().predict(Pipeline(listening_model, "ears"), [sample]))


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("eval_segments.csv", CLIPS[2], CLIPS[1], "eval_segments.csv, line 6: .* was there before, at .* line 5"),
        ("eval_segments.csv", '"/m/', '"/x/', "line 4: the label '/x/.* is not in class_labels_indices.csv"),
        ("eval_segments.csv", "40.000, ", "", "line 4: there are 3 fields, expected 4"),
        ("class_labels_indices.csv", "1,/m/001", "7,/m/001", "line 3: the index is '7', expected 1"),
        ("class_labels_indices.csv", '526,/m/20e,"Field recording"\n', "", "has 526 classes, expected 527"),
        ("class_labels_indices.csv", "index,", "<html>", "is a web page"),
    ],
)
def test_hostile_tables_are_refused(data: Path, tmp_path: Path, file: str, old: str, new: str, expected: str) -> None:
    for name in ("class_labels_indices.csv", "eval_segments.csv"):
        text = (data / name).read_text("utf-8")
        assert name != file or old in text
        write(tmp_path / name, text.replace(old, new, 1) if name == file else text)
    with pytest.raises(ValueError, match=expected):
        Head().samples(tmp_path)


def test_missing_and_foreign_files_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class_labels_indices.csv is missing; it comes from https://research.google"):
        Head().samples(tmp_path)
    for name in ("class_labels_indices.csv", "eval_segments.csv"):
        write(tmp_path / name, (data / name).read_text("utf-8"))
    write_sounds(tmp_path / "eval_segments", ["one.wav", "two.wav"])
    with pytest.raises(ValueError, match="none of the 2 sounds is named by a YTID"):
        Head().samples(tmp_path)
    with pytest.raises(ValueError, match=f"the prediction of '{CLIPS[0]}' has 3 numbers, expected 527"):
        Head().score(data, {CLIPS[0]: [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="all of the 2 clips are predicted as gone"):
        Head().score(data, {CLIPS[0]: [], CLIPS[1]: []})
