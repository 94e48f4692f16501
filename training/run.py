"""A run from its recipe: build the model from what the data says, train the stages in order, keep the result."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from encoders.timm_tower import TimmTower
from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Processor
from mm_rwkv7.tokenizer import Tokenizer
from training.answer import AnswerStage, turns
from training.config import RunConfig, StageConfig
from training.data import SOUND_SOURCES, UNLABELLED, AnySource, open_sources
from training.hearing import SoundSource
from training.loop import kept_steps, train_stage, write_config
from training.plot import plot_loss
from training.samples import write_samples
from training.sources import SOURCES, Source
from training.tagging import TaggingStage
from training.tower import TowerStage


def train(run: RunConfig, device: torch.device) -> Path:
    """Train every stage of `run`, going on where an earlier call stopped; returns the folder of the model."""
    folder = Path(run.run)
    write_config(folder, run)
    # The CPU's matrix library prepares a product for each shape it meets; batches have more shapes than it keeps.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")
    sources = data_of(run)
    torch.manual_seed(run.seed)
    if run.start is None:
        model, processor = build_model(run, sources)
    else:
        model, processor = continued_model(run)
    model.to(device)
    offset = 0
    done = max(kept_steps(folder), default=0)
    for config in run.stages:
        if offset + config.steps < done:  # a later stage's checkpoint holds all that this one left
            offset += config.steps
            continue
        module = _stage(config, model, processor, sources).to(device)
        drawn = {name: sources[name] for name in config.data}
        train_stage(module, config, run, drawn, folder, offset)
        offset += config.steps
        checkpoint.save(model, folder / "model", card=f"Trained by the recipe in ../config.yaml, {offset} steps.\n")
        plot_loss(folder)
        if config.kind == "answer":
            write_samples(model, drawn.items(), folder, offset)
    return folder / "model"


def data_of(run: RunConfig) -> dict[str, AnySource]:
    """Every source that some stage of `run` draws from. A ValueError names one that a stage or the model cannot use."""
    for stage in run.stages:
        wrong = {"tower": set(SOUND_SOURCES), "tagging": {*SOURCES, *UNLABELLED}}.get(stage.kind, set())
        for sources, sense in ((SOURCES, run.tower), (SOUND_SOURCES, run.sound)):
            if sense is None:
                wrong = {*wrong, *sources}
        if wrong := wrong.intersection(stage.data):
            raise ValueError(f"stage {stage.name!r} of kind {stage.kind!r} cannot learn from {sorted(wrong)}")
    size = 0 if run.tower is None else run.tower.image_size
    return open_sources((name for stage in run.stages for name in stage.data), Path(run.data), size)


def build_model(run: RunConfig, sources: Mapping[str, AnySource]) -> tuple[MMRWKV7, Processor]:
    """A fresh model whose vocabulary is what the sources can say, and its processor."""
    with torch.device("meta"):
        width = 0 if run.tower is None else TimmTower(run.tower).width
        full = MMConfig(
            lm=run.lm_config(65536),
            tower=run.tower,
            projector=run.projector_config(width),
            sound=run.sound_config(labels(run, sources)),
            **run.prompt,
        )
        unbuilt = MMRWKV7(full)
    spelling = Pipeline(unbuilt).processor
    texts = {text for source in sources.values() for text in source.texts()}
    pieces = (piece for text in texts for piece in (text, *turns(spelling, text, text)))
    vocabulary = Tokenizer.trim(pieces)
    model = MMRWKV7(dataclasses.replace(full, lm=run.lm_config(len(vocabulary)), vocabulary=vocabulary))
    initialise(model.lm)
    return model, Pipeline(model).processor


def labels(run: RunConfig, sources: Mapping[str, AnySource]) -> list[str]:
    """What the tagging stages teach the sound encoder to name, in the order of their sources."""
    names = (name for stage in run.stages if stage.kind == "tagging" for name in stage.data)
    return list(dict.fromkeys(label for name in names for label in sources[name].labels))


def continued_model(run: RunConfig) -> tuple[MMRWKV7, Processor]:
    """The model that `run.start` names, which must have the sizes of the recipe, and its processor. It is asked as the
    recipe says, where that says anything."""
    assert run.start is not None
    pipeline = Pipeline.from_pretrained(run.start, device="cpu", dtype="fp32")
    config = pipeline.model.config
    width = 0 if config.projector is None else config.projector.input_width
    heard = () if config.sound is None else config.sound.labels
    expected = {
        "tower": run.tower,
        "projector": run.projector_config(width),
        "lm": run.lm_config(config.lm.vocab_size),
        "sound": run.sound_config(heard),
    }
    for name, wants in expected.items():
        has = getattr(config, name)
        if has != wants:
            raise ValueError(f"{run.start} has the {name} {has}, the recipe wants {wants}")
    pipeline.model.config = dataclasses.replace(config, **run.prompt)
    return pipeline.model, Pipeline(pipeline.model).processor


def _stage(
    config: StageConfig, model: MMRWKV7, processor: Processor, sources: Mapping[str, AnySource]
) -> TowerStage | TaggingStage | AnswerStage:
    model.requires_grad_(False).eval()
    trained = _parts(model)
    for name in config.train:
        for part in trained[name]:
            part.requires_grad_(True).train()
    drawn = {name: sources[name] for name in config.data}
    match config.kind:
        case "tower":
            return TowerStage(model, cast("dict[str, Source]", drawn), processor.tokenizer)
        case "tagging":
            return TaggingStage(model, cast("dict[str, SoundSource]", drawn))
        case _:
            return AnswerStage(model, processor, config.questions, config.blind)


def _parts(model: MMRWKV7) -> dict[str, list[nn.Module]]:
    """The modules that each name of `config.PARTS` stands for."""
    parts: dict[str, list[nn.Module]] = {"lm": [model.lm]}
    if model.tower is not None and model.projector is not None:
        parts |= {"tower": [model.tower], "projector": [model.projector]}
    if (hearing := model.sound) is not None:
        assert hearing.head is not None
        parts |= {"sound_encoder": [hearing.encoder, hearing.head], "sound_projector": [hearing.projector]}
    return parts
