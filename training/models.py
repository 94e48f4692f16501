"""The model that a run begins with: random weights and the words of its data, or a checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from encoders.build import build_tower
from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.config import MMConfig
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Processor
from mm_rwkv7.tokenizer import Tokenizer
from training.answer import turns
from training.config import RunConfig
from training.singles.named import AnySource

WORLD = 65536  # rows of the World vocabulary


def build_model(run: RunConfig, sources: Mapping[str, AnySource]) -> tuple[MMRWKV7, Processor]:
    """A fresh model and its processor."""
    model = MMRWKV7(fresh_config(run, sources))
    initialise(model.lm)
    return model, Pipeline(model).processor


def fresh_config(run: RunConfig, sources: Mapping[str, AnySource]) -> MMConfig:
    """Of a model that begins with random weights. Its vocabulary is what the sources can say, or the whole one where
    some stage reads packs, of which nobody knows beforehand what they say."""
    with torch.device("meta"):
        width = 0 if run.tower is None else build_tower(run.tower).width
        full = MMConfig(
            run.lm_config(WORLD),
            tower=run.tower,
            projector=run.projector_config(width),
            sound=run.sound_config(labels(run, sources)),
            **run.prompt,
        )
        if any(stage.packed for stage in run.stages):
            return full
        spelling = Pipeline(MMRWKV7(full)).processor
    texts = {text for source in sources.values() for text in source.texts()}
    vocabulary = Tokenizer.trim(piece for text in texts for piece in (text, *turns(spelling, text, text)))
    return dataclasses.replace(full, lm=run.lm_config(len(vocabulary)), vocabulary=vocabulary)


def labels(run: RunConfig, sources: Mapping[str, AnySource]) -> list[str]:
    """What the tagging stages teach the sound encoder to name, in the order of their sources."""
    names = (name for stage in run.stages if stage.kind == "tagging" for name in stage.data)
    return list(dict.fromkeys(label for name in names for label in sources[name].labels))


def continued_model(run: RunConfig) -> tuple[MMRWKV7, Processor]:
    """The model that `run.start` names, with what the recipe adds to it, and its processor."""
    assert run.start is not None
    model = Pipeline.from_pretrained(run.start, device="cpu", dtype="fp32").model
    config = continued_config(run, model.config)
    if model.config.tower is None and config.tower is not None:
        seeing = MMRWKV7(config)
        seeing.lm, seeing.sound = model.lm, model.sound
        seeing.tower = build_tower(config.tower, pretrained=run.published_tower)
        model = seeing
    model.config = config
    return model, Pipeline(model).processor


def continued_config(run: RunConfig, config: MMConfig) -> MMConfig:
    """Of the model that `run.start` names, which has `config`. Its parts must have the sizes that the recipe names; a
    tower and a projector that it lacks are put before it. It is asked as the recipe says, where that says anything."""
    heard = () if config.sound is None else config.sound.labels
    width = 0 if config.projector is None else config.projector.input_width
    blind = run.tower is not None and config.tower is None
    expected: dict[str, Any] = {}
    if run.lm is not None:
        expected["lm"] = run.lm_config(config.lm.vocab_size)
    if run.tower is not None and not blind:
        expected |= {"tower": run.tower, "projector": run.projector_config(width)}
    if run.sound is not None or (run.tower is not None and not blind):
        expected["sound"] = run.sound_config(heard)
    for name, wants in expected.items():
        if (has := getattr(config, name)) != wants:
            raise ValueError(f"{run.start} has the {name} {has}, the recipe wants {wants}")
    if blind and run.tower is not None:
        with torch.device("meta"):
            width = build_tower(run.tower).width
        config = dataclasses.replace(config, tower=run.tower, projector=run.projector_config(width))
    return dataclasses.replace(config, **run.prompt)


def picture_side(run: RunConfig) -> int:
    """Pixels of the pictures that are drawn for the tower."""
    if not isinstance(run.tower, TimmTowerConfig):
        raise ValueError(f"pictures are drawn for a timm tower, the recipe has {run.tower}")
    return run.tower.image_size
