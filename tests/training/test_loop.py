import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mm_rwkv7 import checkpoint
from mm_rwkv7.config import PromptTemplate
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.synthetic import soundscapes
from training import run as module
from training.answer import turns
from training.config import RunConfig, load_recipe
from training.run import continued_model, data_of, train
from training.singles.hearing import Soundscapes
from training.singles.named import SOUND_SOURCES
from training.singles.sources import SOURCES, Sample, Scenes
from training.tower import TowerStage

BATCH = 2
STEPS = {"tower": 3, "align": 2, "finetune": 4}
SMALL = ["seed=7", "workers=0", "precision=fp32", "checkpoint_every=2", "max_new_tokens=2"]
SMALL += [f"stages.{name}.steps={steps}" for name, steps in STEPS.items()]
SMALL += [f"stages.{name}.batch={BATCH}" for name in STEPS]
CPU = torch.device("cpu")


class FewScenes(Scenes):
    """Scenes whose vocabulary is gathered from a few, and that stop coming after `budget`."""

    budget = 10**9

    def texts(self) -> list[str]:
        return [sample.caption for sample in self.held_out(3)]

    def train(self, rng: random.Random) -> Sample:
        if FewScenes.budget == 0:
            raise KeyboardInterrupt
        FewScenes.budget -= 1
        return super().train(rng)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "scenes", FewScenes)
    monkeypatch.setattr(FewScenes, "budget", 10**9)


def recipe(folder: Path, *changes: str) -> RunConfig:
    return load_recipe("smoke", [*SMALL, f"run={folder}", *changes])


def log(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("time", "tokens_per_s", "waited_s", "memory_mb")
    return [{key: value for key, value in record.items() if key not in timed} for record in records]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "scenes", FewScenes)
        train(recipe(folder), CPU)
    return folder


def test_a_run_leaves_what_it_promises(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert {"config.yaml", "log.jsonl", "checkpoints", "model", "loss.png"} <= names
    assert len(list((straight / "checkpoints").iterdir())) == 2
    records = log(straight)
    assert [record["step"] for record in records] == list(range(1, sum(STEPS.values()) + 1))
    assert Counter(record["stage"] for record in records) == STEPS
    for record in records:
        assert record["loss"] > 0
        assert record["lr"] > 0
        assert record["grad_norm"] >= 0
        assert record["tokens"] > 0
    assert checkpoint.load(straight / "model").config.tower.name == "test_resnet"


TRAINED = {
    "tower": ("tower.",),
    "align": ("projector.",),
    "finetune": ("projector.", "lm."),
    "tagging": ("sound.encoder.", "sound.head."),
    "mixed": ("sound.projector.", "projector.", "lm."),
}


@pytest.mark.usefixtures("few_soundscapes")
@pytest.mark.parametrize("stage", list(TRAINED))
def test_every_parameter_of_the_named_parts_changes_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    saved: list[dict[str, torch.Tensor]] = []
    original = module.build_model

    def build(*arguments: Any) -> Any:
        model, processor = original(*arguments)
        with torch.no_grad():
            for parameter in model.parameters():  # what begins at zero keeps gradients from what it is multiplied with
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        saved.append({name: tensor.clone() for name, tensor in model.named_parameters()})
        return model, processor

    monkeypatch.setattr(module, "build_model", build)
    make = recipe if stage in STEPS else hearing_recipe
    config = make(tmp_path / "run", f"stages.{stage}.steps=2", f"stages.{stage}.batch=4")
    config = dataclasses.replace(config, stages=tuple(one for one in config.stages if one.name == stage))
    after = load_file(train(config, CPU) / "model.safetensors")
    (before,) = saved
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    expected = {name for name in before if name.startswith(TRAINED[stage])}
    assert changed == expected, sorted(changed ^ expected)


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_been(straight: Path, tmp_path: Path, steps: int) -> None:
    """Killed while it draws the pictures of the step after `steps`."""
    folder = tmp_path / "run"
    FewScenes.budget = steps * BATCH + 1
    with pytest.raises(KeyboardInterrupt):
        train(recipe(folder), CPU)
    FewScenes.budget = 10**9
    train(recipe(folder), CPU)
    assert log(folder) == log(straight)
    expected = load_file(straight / "model/model.safetensors")
    found = load_file(folder / "model/model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_stages_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    FewScenes.budget = 7 * BATCH  # killed in the last stage, whose checkpoint is at step 7
    with pytest.raises(KeyboardInterrupt):
        train(recipe(folder), CPU)
    FewScenes.budget = 2 * BATCH
    train(recipe(folder), CPU)
    before = log(folder)
    FewScenes.budget = 0
    train(recipe(folder), CPU)
    assert log(folder) == before


def test_the_folder_of_another_run_is_refused(straight: Path) -> None:
    with pytest.raises(
        ValueError, match=r"config.yaml is of a run with other settings \(the first: seed: \d there, seed: 8 here\)"
    ):
        train(recipe(straight, "seed=8"), CPU)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TowerStage, "loss", lambda *_: (torch.tensor(float("nan"), requires_grad=True), {}))
    with pytest.raises(RuntimeError, match="stage tower, step 1: the loss is nan"):
        train(recipe(tmp_path / "run"), CPU)
    assert not (tmp_path / "run/model").exists()


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"flowers.*missing"):
        data_of(recipe(tmp_path, "stages.tower.data={flowers: 1}", f"data={tmp_path}"))
    with pytest.raises(ValueError, match=r"unknown data.*'dreams'"):
        data_of(recipe(tmp_path, "stages.tower.data={dreams: 1}"))


def test_a_run_begins_with_the_weights_it_is_given(straight: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path / "more", f"start={straight / 'model'}", "stages.align.steps=1")
    config = dataclasses.replace(config, stages=tuple(stage for stage in config.stages if stage.name == "align"))
    before = load_file(straight / "model/model.safetensors")
    after = load_file(train(config, CPU) / "model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != name.startswith("projector."), name


def test_a_start_is_asked_as_the_recipe_says_or_as_before(straight: Path) -> None:
    start = f"start={straight / 'model'}"
    config = checkpoint.load(straight / "model").config
    model, _ = continued_model(load_recipe("smoke", [start]))
    assert model.config == config
    assert config.max_new_tokens == 2
    model, processor = continued_model(load_recipe("smoke", [start, "template.user='Q: '", "max_new_tokens=5"]))
    template = PromptTemplate(user="Q: ")
    assert model.config == dataclasses.replace(config, template=template, max_new_tokens=5)
    assert turns(processor, "What?", "This.")[0].startswith("Q: ")


def test_a_start_of_other_sizes_is_refused(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the lm .*layers=2.*, the recipe wants .*layers=3"):
        train(recipe(tmp_path / "run", f"start={straight / 'model'}", "lm.layers=3"), CPU)


HEARING = [
    "sound={encoder: {kind: birwkv7, width: 64, layers: 1, spectrogram: {frames: 128}}, projector: {hidden_width: 8}}",
    'stages=[{"name": "tagging", "kind": "tagging", "train": ["sound_encoder"], "data": {"soundscapes": 1},'
    ' "steps": 4, "batch": 2, "learning_rate": 1e-3},'
    ' {"name": "mixed", "kind": "answer", "train": ["projector", "sound_projector", "lm"],'
    ' "data": {"soundscapes": 1, "scenes": 1}, "steps": 3, "batch": 4, "learning_rate": 1e-3}]',
]


class FewSoundscapes(Soundscapes):
    def texts(self) -> list[str]:
        return [sound.caption for sound in self.held_out(3)]


@pytest.fixture
def few_soundscapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOUND_SOURCES, "soundscapes", FewSoundscapes)


def hearing_recipe(folder: Path, *changes: str) -> RunConfig:
    small = [change for change in SMALL if not change.startswith("stages.")]
    return load_recipe("smoke", [*small, *HEARING, f"run={folder}", *changes])


@pytest.mark.usefixtures("few_soundscapes")
def test_a_model_learns_to_hear_beside_seeing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hearing_recipe(tmp_path / "run")
    folder = train(run, CPU)
    pipeline = Pipeline.from_pretrained(folder)
    scape = soundscapes.sample(1)
    clip = (scape.waveform, scape.rate)
    assert {label for label, _ in pipeline.tag(clip, top=100)} == set(Soundscapes.labels)
    assert pipeline.ask("How many?", audio=[clip]).usage.media_tokens > 0
    files = {path.suffix for path in (tmp_path / "run/samples").iterdir()}
    assert files == {".png", ".flac", ".jsonl"}
    expected = load_file(folder / "model.safetensors")

    killed = hearing_recipe(tmp_path / "killed")
    FewScenes.budget = 1  # in the second stage
    with pytest.raises(KeyboardInterrupt):
        train(killed, CPU)
    FewScenes.budget = 10**9
    found = load_file(train(killed, CPU) / "model.safetensors")
    assert log(tmp_path / "killed") == log(tmp_path / "run")
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sound=null", r"stage 'tagging' trains \['sound_encoder'\], but the recipe has no sound"),
        ("stages.tagging.data={scenes: 1}", r"stage 'tagging' of kind 'tagging' cannot learn from \['scenes'\]"),
        ("stages.tagging.train=[lm]", r"is of kind 'tagging' and trains \['lm'\], expected \['sound_encoder'\]"),
        ("stages.mixed.train=[ears]", r"trains \['ears'\], expected some of tower"),
    ],
)
def test_a_recipe_that_cannot_hear_is_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(hearing_recipe(tmp_path / "run", change), CPU)


def test_a_recipe_without_ears_draws_no_sounds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage 'align' of kind 'answer' cannot learn from \['soundscapes'\]"):
        data_of(recipe(tmp_path, "stages.align.data={soundscapes: 1}"))
