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
from training.data import AnySource

WORLD = 65536  # rows of the World vocabulary


def begin(run: RunConfig, sources: Mapping[str, AnySource]) -> tuple[MMRWKV7, Processor]:
    """The model, the same on every process, and its processor."""
    torch.manual_seed(run.seed)
    return build_model(run, sources) if run.start is None else continued_model(run)


def build_model(run: RunConfig, sources: Mapping[str, AnySource]) -> tuple[MMRWKV7, Processor]:
    """A fresh model and its processor. Its vocabulary is what the sources can say, or the whole one where some stage
    reads packs, of which nobody knows beforehand what they say."""
    assert run.tower is not None
    tower = build_tower(run.tower)
    parts: dict[str, Any] = {"tower": run.tower, "projector": run.projector_config(tower.width), **run.prompt}
    full = MMConfig(run.lm_config(WORLD), **parts)
    if any(stage.packed for stage in run.stages):
        config = dataclasses.replace(full, sound=run.sound_config(labels(run, sources)))
    else:
        spelling = Processor(full, Tokenizer(), tower.preprocess, image_tokens=1)
        texts = {text for source in sources.values() for text in source.texts()}
        pieces = (piece for text in texts for piece in (text, *turns(spelling, text, text)))
        vocabulary = Tokenizer.trim(pieces)
        config = MMConfig(
            lm=run.lm_config(len(vocabulary)),
            vocabulary=vocabulary,
            sound=run.sound_config(labels(run, sources)),
            **parts,
        )
    model = MMRWKV7(config)
    initialise(model.lm)
    return model, Pipeline(model).processor


def labels(run: RunConfig, sources: Mapping[str, AnySource]) -> list[str]:
    """What the tagging stages teach the sound encoder to name, in the order of their sources."""
    names = (name for stage in run.stages if stage.kind == "tagging" for name in stage.data)
    return list(dict.fromkeys(label for name in names for label in sources[name].labels))


def continued_model(run: RunConfig) -> tuple[MMRWKV7, Processor]:
    """The model that `run.start` names and its processor. Its parts must have the sizes that the recipe names; a tower
    and a projector that it lacks are put before it. It is asked as the recipe says, where that says anything."""
    assert run.start is not None
    pipeline = Pipeline.from_pretrained(run.start, device="cpu", dtype="fp32")
    model, config = pipeline.model, pipeline.model.config
    heard = () if config.sound is None else config.sound.labels
    width = 0 if config.projector is None else config.projector.input_width
    blind = run.tower is not None and config.tower is None
    expected: dict[str, Any] = {}
    if run.lm is not None:
        expected["lm"] = run.lm_config(config.lm.vocab_size)
    if run.tower is not None and not blind:
        expected |= {"tower": run.tower, "projector": run.projector_config(width)}
    if run.sound is not None or run.tower is not None:
        expected["sound"] = run.sound_config(heard)
    for name, wants in expected.items():
        if (has := getattr(config, name)) != wants:
            raise ValueError(f"{run.start} has the {name} {has}, the recipe wants {wants}")
    if blind:
        model = _given_sight(model, run)
    model.config = dataclasses.replace(model.config, **run.prompt)
    return model, Pipeline(model).processor


def _given_sight(model: MMRWKV7, run: RunConfig) -> MMRWKV7:
    """The same language model behind the recipe's tower and a fresh projector."""
    assert run.tower is not None
    tower = build_tower(run.tower, pretrained=run.published_tower)
    config = dataclasses.replace(model.config, tower=run.tower, projector=run.projector_config(tower.width))
    seeing = MMRWKV7(config)
    seeing.lm, seeing.sound, seeing.tower = model.lm, model.sound, tower
    return seeing


def picture_side(run: RunConfig) -> int:
    """Pixels of the pictures that are drawn for the tower."""
    if not isinstance(run.tower, TimmTowerConfig):
        raise ValueError(f"pictures are drawn for a timm tower, the recipe has {run.tower}")
    return run.tower.image_size
