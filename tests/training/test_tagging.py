import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.birwkv7 import BiRWKV7Config
from encoders.spectrogram import Spectrogram
from mm_rwkv7.config import MMConfig
from mm_rwkv7.hearing import SoundConfig
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.synthetic.soundscapes import Event
from training import tagging
from training.config import StageConfig, load_recipe
from training.distributed import World
from training.feed import Drawn
from training.logs import Silent
from training.loop import train_stage
from training.singles.augment import Augmentation
from training.singles.hearing import RATE, SoundSample, Soundscapes
from training.tagging import EVENTS, TaggingStage

MOMENT = 0.08  # seconds
ENCODER = BiRWKV7Config(64, layers=1, patch=(8, 64), stem=(8,), spectrogram=Spectrogram(frames=512))


class Named:
    """A source of which only the classes are looked at."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels


SOURCES: dict[str, Any] = {
    "soundscapes": Soundscapes(Path()),
    "esc10": Named("rain", "rooster"),
    "spoken_digits": Named("zero", "one"),
}
LABELS = tuple(label for source in SOURCES.values() for label in source.labels)


def make(tiny_model: MMRWKV7) -> TaggingStage:
    config = tiny_model.config
    torch.manual_seed(0)
    sound = SoundConfig(ENCODER, ProjectorConfig(64, 64), labels=LABELS)
    model = MMRWKV7(MMConfig(config.lm, vocabulary=config.vocabulary, sound=sound))
    model.lm.requires_grad_(False)
    return TaggingStage(model, SOURCES).train()


@pytest.fixture
def stage(tiny_model: MMRWKV7) -> TaggingStage:
    return make(tiny_model)


def recording(label: str, seconds: float, seed: int = 0) -> SoundSample:
    waveform = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    return SoundSample(waveform, "a sound", (("What?", label),), (label,))


def draw(seed: int, *names: str) -> list[tuple[str, SoundSample]]:
    rng = random.Random(seed)
    given = {"esc10": ("rain", 5.0), "spoken_digits": ("one", 0.4)}
    return [(n, recording(*given[n], rng.randrange(9)) if n in given else SOURCES[n].train(rng)) for n in names]


MIXED = ("soundscapes", "esc10", "spoken_digits", "soundscapes", "esc10", "spoken_digits")


def rows(batch: dict[str, Any], key: str) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for group in batch["groups"]:
        for name, row in zip(group["sources"], group[key], strict=True):
            found.setdefault(name, []).append(row)
    return found


def test_a_batch_is_the_generators(stage: TaggingStage, seed: int) -> None:
    first, again = (stage.collate(draw(seed, *MIXED), random.Random(seed)) for _ in range(2))
    for one, other in zip(first["groups"], again["groups"], strict=True):
        for key in ("windows", "frames", "labels"):
            assert torch.equal(one[key], other[key]), f"{key}, seed {seed}"


def test_every_sound_is_in_a_window_that_it_nearly_fills(stage: TaggingStage, seed: int) -> None:
    batch = stage.collate(draw(seed, *MIXED), random.Random(seed))
    assert sum(len(group["sources"]) for group in batch["groups"]) == len(MIXED)
    for group in batch["groups"]:
        size = group["windows"].shape[1]
        assert size % tagging.SHORT == 0
        assert ((group["frames"] > size - tagging.SHORT) & (group["frames"] <= size)).all(), seed
        assert group["moments"].shape[1] == size // 8
        for window, frames in zip(group["windows"], group["frames"], strict=True):
            assert not window[frames:].any()


def test_labels_are_those_of_the_sounds(stage: TaggingStage, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(tagging, "AUGMENTATIONS", dict.fromkeys(SOURCES, Augmentation()))
    drawn = draw(seed, *MIXED)
    found = rows(stage.collate(drawn, random.Random(seed)), "labels")
    for name in SOURCES:
        expected = [{*sound.labels} for source, sound in drawn if source == name]
        assert [{LABELS[i] for i in row.nonzero().flatten().tolist()} for row in found[name]] == expected, seed


def test_mixed_sounds_share_their_labels(stage: TaggingStage, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(tagging, "AUGMENTATIONS", {"esc10": Augmentation(mix=1)})
    drawn = [("esc10", recording("rain", 5)), ("esc10", recording("rooster", 5, 1))]
    one, other = rows(stage.collate(drawn, random.Random(seed)), "labels")["esc10"]
    for row, label in ((one, "rain"), (other, "rooster")):
        assert float(row.sum()) == pytest.approx(1)
        assert 0.5 <= float(row[LABELS.index(label)]) < 1, seed


def test_moments_say_what_sounds_in_them(stage: TaggingStage, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        sound = SOURCES["soundscapes"].train(rng)
        targets = stage._targets(sound)
        assert targets.shape == (64, 6 + len(EVENTS))
        begins = [i for i in range(64) if targets[i, 0] == 1]
        assert begins == [int(event.start / MOMENT) for event in sound.events], seed
        for event, moment in zip(sound.events, begins, strict=True):
            assert (moment + 0.5 + float(targets[moment, 1])) * MOMENT == pytest.approx(event.start, abs=1e-6)
        for moment in range(64):
            begin, end = moment * MOMENT, (moment + 1) * MOMENT
            heard = [e for e in sound.events if min(end, e.start + e.duration) - max(begin, e.start) >= 0.02 + 1e-9]
            said = {EVENTS[i] for i in targets[moment, 6:].nonzero().flatten().tolist()}
            if {e.kind for e in heard} != said:  # the overlap may be the least to the last bit
                assert said - {e.kind for e in heard} <= {e.kind for e in sound.events}, seed
                continue
            assert bool(targets[moment, 2]) == any(e.pitch == "low" for e in heard), seed
            assert bool(targets[moment, 3]) == any(e.pitch == "high" for e in heard), seed
            steady = [e for e in heard if e.hertz and not e.kind.endswith("sweep")]
            if steady:
                assert 500 * 2 ** float(targets[moment, 4]) == pytest.approx(steady[0].hertz, rel=1e-4), seed


@pytest.mark.parametrize(("kind", "octaves"), [("rising sweep", (0, 2)), ("falling sweep", (2, 0))])
def test_a_sweep_passes_two_octaves(stage: TaggingStage, kind: str, octaves: tuple[int, int]) -> None:
    event = Event(kind, 0.8, 0.8, 0.2, 500)
    octave = stage._targets(SoundSample(np.zeros(80000, np.float32), "", (), (), ("sweep",), (event,)))[:, 4]
    assert octave[:10].isnan().all()
    assert octave[20:].isnan().all()
    ideal = torch.linspace(*octaves, 11)
    assert torch.allclose(octave[10:20], (ideal[1:] + ideal[:-1]) / 2, atol=1e-4)


def test_of_a_recording_only_the_loudness_is_known(stage: TaggingStage) -> None:
    batch = stage.collate(draw(0, "esc10", "spoken_digits"), random.Random(0))
    for group in batch["groups"]:
        assert group["moments"].isnan().all()
        assert not group["loudness"][:, 0].isnan().any()


@pytest.mark.parametrize("names", [MIXED, ("esc10",), ("soundscapes",), ("spoken_digits", "spoken_digits")])
def test_gradients_reach_the_encoder_and_the_heads(stage: TaggingStage, names: tuple[str, ...], seed: int) -> None:
    loss, report = stage.loss(stage.collate(draw(seed, *names), random.Random(seed)))
    loss.backward()
    for part in (stage.hearing.encoder, stage.hearing.head, stage.moments):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), f"{name}, seed {seed}"
    assert {"tokens", "tagging", "loudness"} <= report.keys()
    assert ("events" in report) == ("soundscapes" in names)
    assert all(math.isfinite(value) for value in report.values())


def test_a_perfect_answer_costs_little_and_a_wrong_one_much(stage: TaggingStage, seed: int) -> None:
    """The loss of the moments falls when the head says the targets."""
    rng = random.Random(seed)
    sounds = [SOURCES["soundscapes"].train(rng) for _ in range(20)]
    sounds = [sound for sound in sounds if any(event.hertz for event in sound.events)]
    batch = stage.collate([("soundscapes", sound) for sound in sounds], rng)
    (group,) = batch["groups"]
    wanted = group["moments"].nan_to_num(0.0)
    noise = torch.nn.functional.one_hot(wanted[..., 5].long(), 4) * 20 - 10.0
    said = torch.cat(
        [
            group["loudness"].nan_to_num(0.0)[..., None],
            wanted[..., :1] * 20 - 10,
            wanted[..., 1:2],
            wanted[..., 2:4] * 20 - 10,
            wanted[..., 4:5],
            noise,
            wanted[..., 6:] * 20 - 10,
        ],
        -1,
    )
    assert float(stage._moment_loss(said, group, {})) < 0.01, seed
    for column in range(said.shape[-1]):
        wrong = said.clone()
        wrong[..., column] = -wrong[..., column] + (column in (0, 2, 5))
        assert float(stage._moment_loss(wrong, group, {})) > 0.05, f"{column}, seed {seed}"


def test_the_average_follows_and_takes_the_place_of_the_weights(stage: TaggingStage) -> None:
    batch = stage.collate(draw(0, "spoken_digits"), random.Random(0))
    weight = stage.hearing.encoder.patches.weight
    start, steps = weight.detach().clone(), 40
    for step in range(1, steps + 1):
        with torch.no_grad():
            weight.copy_(start + step)
        stage.loss(batch)
    mean = float((stage.average[0].patches.weight - start).mean())
    assert steps / 2 < mean < steps
    stage.finish()
    stage.finish()
    assert torch.allclose(weight, start + mean, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in stage.average.parameters())


def test_judging_moves_no_average(stage: TaggingStage) -> None:
    batch = stage.collate(draw(0, "spoken_digits"), random.Random(0))
    stage.eval()
    before = {name: value.clone() for name, value in stage.average.state_dict().items()}
    stage.loss(batch)
    assert stage.averaged_steps == 0
    assert all(torch.equal(before[name], value) for name, value in stage.average.state_dict().items())


def test_classes_that_the_head_lacks_are_named(stage: TaggingStage) -> None:
    with pytest.raises(ValueError, match=r"no classes \['wind'\]"):
        TaggingStage(stage.model, {**SOURCES, "esc10": Named("rain", "wind")})


class Recorded:
    """A source that stops giving after `budget`."""

    budget = 10**9

    def __init__(self, label: str, seconds: float) -> None:
        self.sounds = [recording(label, seconds, seed) for seed in range(4)]

    def train(self, rng: random.Random) -> SoundSample:
        if Recorded.budget == 0:
            raise KeyboardInterrupt
        Recorded.budget -= 1
        return rng.choice(self.sounds)


def test_a_killed_stage_goes_on_as_if_nothing_had_been(
    tiny_model: MMRWKV7, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: Any = {"esc10": Recorded("rain", 3), "spoken_digits": Recorded("one", 0.5)}
    config = StageConfig("tagging", "tower", ("tower",), dict.fromkeys(sources, 1.0), 4, 2, 1e-3, warmup=1)

    def result(folder: Path) -> dict[str, Tensor]:
        run = load_recipe("smoke", [f"run={folder}", "workers=0", "precision=fp32", "checkpoint_every=2"])
        folder.mkdir(exist_ok=True)
        stage = make(tiny_model)
        feed = Drawn(stage, config, sources, run.seed, run.workers)
        train_stage(stage, config, run, feed, folder, 0, World(torch.device("cpu")), Silent(), lambda _: stage)
        for now, mean in zip(stage._averaged().parameters(), stage.average.parameters(), strict=True):
            assert torch.equal(now, mean)
        return stage.hearing.state_dict()

    expected = result(tmp_path / "straight")
    monkeypatch.setattr(Recorded, "budget", 7)  # killed while it draws the sounds of the last step
    with pytest.raises(KeyboardInterrupt):
        result(tmp_path / "killed")
    monkeypatch.setattr(Recorded, "budget", 10**9)
    for _ in range(2):  # and again, when there is nothing left to do
        found = result(tmp_path / "killed")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if "projector" not in name)
