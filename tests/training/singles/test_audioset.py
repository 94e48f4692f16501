"""AudioSet's official layout, made up: tables, clips that are there or not, how often each is drawn, and whole runs."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from mm_rwkv7.listening import open_listener
from mm_rwkv7.pipeline import Pipeline
from training import score
from training.config import RECIPES, load_recipe
from training.run import train
from training.singles.audioset import AudioSet, Segment, read_segments
from training.singles.hearing import RATE

# Not in the order of the alphabet, and with what a table has to quote.
CLASSES = (
    ("/m/09x0r", "Speech"),
    ("/m/05zppz", "Male speech, man speaking"),
    ("/m/0jbk", "Animal"),
    ("/m/04rlf", "Music"),
)
COMMENTS = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=20, num_segs=20, num_unique_labels=4, num_positive_labels=30
# YTID, start_seconds, end_seconds, positive_labels
"""
PITCHES = (200, 500, 1500, 4000)  # of the classes
KINDS = ("wav", "flac", "ogg", "mp3")


def name(number: int) -> str:
    return f"-_{number:09}"  # as long as a video's, and beginning as some do


def heard(number: int) -> tuple[int, ...]:
    return (0, 1) if number % 5 == 1 else (number % 4,)


def play(file: Path, number: int, seconds: float = 1.0) -> None:
    rng, time = np.random.default_rng(number), np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * PITCHES[i] * time) for i in heard(number))
    soundfile.write(file, 0.2 * tones + rng.normal(0, 0.01, time.shape), RATE)


def write(folder: Path, split: str, numbers: range, there: int) -> None:
    rows = [
        f'{name(n)}, {10 * n:.3f}, {10 * n + 10:.3f}, "{",".join(CLASSES[i][0] for i in heard(n))}"' for n in numbers
    ]
    (folder / f"{split}_segments.csv").write_text(COMMENTS + "\n".join(rows) + "\n")
    (folder / split / "part 1").mkdir(parents=True)
    for n in numbers[:there]:
        place = folder / split / ("part 1" if n % 2 else "")
        play(place / f"{'Y' if n % 3 == 2 else ''}{name(n)}.{KINDS[n % 4]}", n)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "audioset"
    folder.mkdir()
    lines = [f'{i},{mid},"{said}"' for i, (mid, said) in enumerate(CLASSES)]
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n" + "\n".join(lines) + "\n")
    write(folder, "balanced_train", range(20), there=20)
    write(folder, "eval", range(20, 24), there=3)
    return tmp_path


def test_every_segment_finds_its_clip_and_its_classes(data: Path) -> None:
    source = AudioSet(data, ("balanced_train",))
    assert source.labels == tuple(said for _, said in CLASSES)
    assert [segment.classes for segment in source.segments] == [heard(n) for n in range(20)]
    for n, segment in enumerate(source.segments):
        assert Path(segment.file).stem.removeprefix("Y") == name(n)
        assert segment.seconds == 10
        sample = source._sample(segment)
        assert sample.labels == tuple(CLASSES[i][1] for i in heard(n))
        assert sample.fresh
        spectrum = np.abs(np.fft.rfft(sample.waveform[2000:14_000]))
        for i in heard(n):
            assert spectrum[round(PITCHES[i] * 12_000 / RATE)] > 20 * np.median(spectrum)


def test_what_is_missing_is_counted_and_named(data: Path) -> None:
    with pytest.warns(
        UserWarning, match=rf"lacks 1 of the 4 clips of eval_segments.csv: {name(23)}; they are left out"
    ):
        held = AudioSet(data, ("balanced_train",)).held_out(10)
    assert [sample.labels for sample in held] == [tuple(CLASSES[i][1] for i in heard(n)) for n in range(20, 23)]
    clip = data / "audioset/eval" / f"{name(22)}.ogg"
    assert clip.is_file()
    clip.write_bytes(b"")  # what a broken download leaves
    with pytest.raises(ValueError, match=r"lacks 2 of the 4 clips .*take them out of the table"):
        AudioSet(data, ("balanced_train",)).held_out(10)
    clip.unlink()
    clip.symlink_to(data / "nowhere.ogg")
    with pytest.raises(ValueError, match=r"lacks 2 of the 4 clips"):
        AudioSet(data, ("balanced_train",)).held_out(10)


def test_a_folder_without_a_clip_is_refused(data: Path) -> None:
    write(data / "audioset", "unbalanced_train", range(30, 34), there=0)
    with pytest.raises(ValueError, match=r"unbalanced_train has none of the 4 clips"):
        AudioSet(data, ("balanced_train", "unbalanced_train"))


def test_two_clips_of_one_name_are_refused(data: Path) -> None:
    play(data / "audioset/balanced_train" / f"{name(0)}.flac", 1)
    with pytest.raises(ValueError, match="are the same clip"):
        AudioSet(data, ("balanced_train",))


def test_a_whole_video_is_no_segment(data: Path) -> None:
    play(data / "audioset/balanced_train" / f"{name(0)}.wav", 0, seconds=11.5)
    source = AudioSet(data, ("balanced_train",))
    with pytest.raises(ValueError, match=r"has 11.5 s, the table's segment 10.0 s"):
        source._sample(source.segments[0])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('-_000000000, 0.0, 10.0, "/m/09x0r,/m/none"', "line 2: .*no class '/m/none'"),
        ("-_000000000, 0.0, 10.0", "line 2: .*expected YTID, start, end, mids"),
        ("-_000000000, zero, 10.0, /m/09x0r", "line 2: .*expected YTID, start, end, mids"),
        ("-_000000000, 10.0, 0.0, /m/09x0r", "line 2: .*expected YTID, start, end, mids"),
        ('-_000000000, 0.0, 10.0, "/m/09x0r', "no CSV table"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "segments.csv"
    path.write_text(f'# a comment with a quote: "\n{row}\n')
    with pytest.raises(ValueError, match=said):
        list(read_segments(path, {mid: i for i, (mid, _) in enumerate(CLASSES)}))


@pytest.mark.parametrize(
    "table",
    [
        "",
        "mid,index\n",
        "index,mid,display_name\n",
        "index,mid,display_name\n1,/m/09x0r,Speech\n",
        "index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/0jbk,Speech\n",
    ],
)
def test_a_table_of_classes_that_is_none_is_refused(data: Path, table: str) -> None:
    (data / "audioset/class_labels_indices.csv").write_text(table)
    with pytest.raises(ValueError, match=r"class_labels_indices.csv"):
        AudioSet(data, ("balanced_train",))


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class_labels_indices.csv is missing"):
        AudioSet(tmp_path, ("balanced_train",))


def test_rare_classes_are_drawn_more_often(data: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """As often as the published weights say, worked out class by class."""
    source, rng, draws = AudioSet(data, ("balanced_train",)), random.Random(seed), 20_000
    drawn: list[Segment] = []
    monkeypatch.setattr(source, "_sample", drawn.append)
    for _ in range(draws):
        source.train(rng)
    found = Counter(Path(segment.file).stem.removeprefix("Y") for segment in drawn)
    counts = Counter(i for n in range(20) for i in heard(n))
    weights = {name(n): sum(1000 / (counts[i] + 0.01) for i in heard(n)) for n in range(20)}
    for clip, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(found[clip] / draws - share) < 5 * (share / draws) ** 0.5, f"{clip}, seed {seed}"
    assert max(weights.values()) > 1.5 * min(weights.values())  # so that an even draw would be seen


SMALL = (
    "sound.encoder.layers=1",
    "sound.encoder.width=64",
    "sound.encoder.spectrogram={frames: 128}",
    "sound.pool=[8,1]",
    "stages.tagging.data={audioset_balanced: 1}",
    "stages.tagging.batch=10",
    "stages.tagging.warmup=2",
    "workers=0",
    "precision=fp32",
)


def losses(folder: Path, stage: str) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["stage"] == stage]


def test_the_recipe_makes_a_tagger_of_made_up_clips(data: Path, tmp_path: Path) -> None:
    run = load_recipe(
        "audioset_tagging", [f"data={data}", f"run={tmp_path / 'run'}", "stages.tagging.steps=16", *SMALL]
    )
    folder = train(run, torch.device("cpu"))
    found = losses(tmp_path / "run", "tagging")
    assert len(found) == 16
    assert sum(found[-4:]) < 0.8 * sum(found[:4])
    listener = open_listener(folder)
    assert isinstance(listener, Pipeline)
    assert listener.model.tower is None
    assert listener.model.config.sound is not None
    assert listener.model.config.sound.labels == tuple(said for _, said in CLASSES)
    tags = listener.tag(data / "audioset/balanced_train" / f"{name(0)}.wav")
    assert {label for label, _ in tags} == {said for _, said in CLASSES}


def test_a_model_that_only_hears_goes_on_to_answer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = yaml.safe_load((RECIPES / "audioset_tagging.yaml").read_text())
    answer = {"name": "answer", "kind": "answer", "train": ["sound_projector", "lm"], "data": {"audioset_balanced": 1}}
    fields["stages"].append(answer | {"steps": 2, "batch": 2, "learning_rate": 1e-3})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(fields))
    run = load_recipe(
        str(recipe), [f"data={data}", f"run={tmp_path / 'run'}", "stages.tagging.steps=1", "max_new_tokens=4", *SMALL]
    )
    with pytest.warns(UserWarning, match="left out"):
        folder = train(run, torch.device("cpu"))
    monkeypatch.setattr(score, "TRAINED", 3)
    with pytest.warns(UserWarning, match="left out"):
        code = score.main([str(folder), "--data", str(data), "--sources", "audioset_balanced"])
    assert code == 0
    assert "| audioset_balanced | " in capsys.readouterr().out
    assert score.main([str(folder), "--data", str(data)]) == 2
    assert "cannot see" in capsys.readouterr().err
    pipeline = Pipeline.from_pretrained(folder)
    assert len(losses(tmp_path / "run", "answer")) == 2
    assert len((tmp_path / "run/samples/step-3.jsonl").read_text().splitlines()) == 3
    assert pipeline.ask("What do you hear?", audio=[data / "audioset/balanced_train" / f"{name(0)}.wav"]).text
    with pytest.raises(ValueError, match="no vision tower"):
        pipeline.ask("What is it?", [b""])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stages.tagging.train=[tower]", "kind 'tagging'"),
        ("projector={hidden_width: 8}", "a projector needs a tower"),
        ("sound=null", "no sound"),
    ],
)
def test_recipes_that_fit_no_model_are_refused(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_recipe("audioset_tagging", [change])


@pytest.mark.parametrize("source", ["scenes", "audiocaps"])
def test_a_source_that_teaches_no_tags_is_refused(source: str, tmp_path: Path) -> None:
    run = load_recipe("audioset_tagging", [f"run={tmp_path / 'run'}", f"stages.tagging.data={{{source}: 1}}"])
    with pytest.raises(ValueError, match=f"cannot learn from .*{source}"):
        train(run, torch.device("cpu"))


def test_a_recipe_without_senses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks \['tower', 'projector'\]"):
        load_recipe("audioset_tagging", ["stages.tagging.kind=answer", "stages.tagging.train=[lm]", "sound=null"])
    with pytest.raises(ValueError, match="no stages"):
        load_recipe("audioset_tagging", ["stages=[]"])
    with pytest.raises(ValueError, match=r"trains \['projector'\], but the recipe has no tower"):
        load_recipe("audioset_tagging", ["stages.tagging.kind=answer", "stages.tagging.train=[projector]"])
