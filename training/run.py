"""A run from its recipe: build the model from what the data says, train the stages in order, keep the result."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import torch

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
from training.loop import kept_steps, train_stage, write_config
from training.plot import plot_loss
from training.samples import write_samples
from training.sources import SOURCES, Source
from training.tower import TowerStage


def train(run: RunConfig, device: torch.device) -> Path:
    """Train every stage of `run`, going on where an earlier call stopped; returns the folder of the model."""
    folder = Path(run.run)
    write_config(folder, run)
    # The CPU's matrix library prepares a product for each shape it meets; batches have more shapes than it keeps.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")
    sources = open_sources(run)
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


def open_sources(run: RunConfig) -> dict[str, Source]:
    """Every source that some stage draws from. A ValueError says which file is missing."""
    names = sorted({name for stage in run.stages for name in stage.data})
    if unknown := [name for name in names if name not in SOURCES]:
        raise ValueError(f"unknown data {unknown}, expected some of {sorted(SOURCES)}")
    data = Path(run.data)
    return {name: SOURCES[name](data, run.tower.image_size) for name in names}


def build_model(run: RunConfig, sources: Mapping[str, Source]) -> tuple[MMRWKV7, Processor]:
    """A fresh model whose vocabulary is what the sources can say, and its processor."""
    tower = TimmTower(run.tower)
    full = MMConfig(run.lm_config(65536), run.tower, run.projector_config(tower.width), **run.prompt)
    spelling = Processor(full, Tokenizer(), tower.preprocess, image_tokens=1)
    texts = {text for source in sources.values() for text in source.texts()}
    pieces = (piece for text in texts for piece in (text, *turns(spelling, text, text)))
    vocabulary = Tokenizer.trim(pieces)
    config = MMConfig(
        lm=run.lm_config(len(vocabulary)),
        tower=run.tower,
        projector=run.projector_config(tower.width),
        vocabulary=vocabulary,
        **run.prompt,
    )
    model = MMRWKV7(config)
    initialise(model.lm)
    return model, Processor(config, Tokenizer(vocabulary), tower.preprocess, model.image_tokens)


def continued_model(run: RunConfig) -> tuple[MMRWKV7, Processor]:
    """The model that `run.start` names, which must have the sizes of the recipe, and its processor. It is asked as the
    recipe says, where that says anything."""
    assert run.start is not None
    pipeline = Pipeline.from_pretrained(run.start, device="cpu", dtype="fp32")
    config = pipeline.model.config
    width = 0 if config.projector is None else config.projector.input_width
    expected = (run.tower, run.projector_config(width), run.lm_config(config.lm.vocab_size))
    for name, has, wants in zip(
        ("tower", "projector", "lm"), (config.tower, config.projector, config.lm), expected, strict=True
    ):
        if has != wants:
            raise ValueError(f"{run.start} has the {name} {has}, the recipe wants {wants}")
    pipeline.model.config = dataclasses.replace(config, **run.prompt)
    given = pipeline.processor
    processor = Processor(pipeline.model.config, pipeline.tokenizer, given.preprocess, given.image_tokens)
    return pipeline.model, processor


def _stage(
    config: StageConfig, model: MMRWKV7, processor: Processor, sources: Mapping[str, Source]
) -> TowerStage | AnswerStage:
    for name, part in model.named_children():
        part.requires_grad_(name in config.train)
        part.train(name in config.train)
    if config.kind == "tower":
        return TowerStage(model, {name: sources[name] for name in config.data}, processor.tokenizer)
    return AnswerStage(model, processor, config.questions, config.blind)
