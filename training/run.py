"""A run from its recipe: build the model, train the stages in order, keep what each leaves."""

import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from torch import nn

from mm_rwkv7 import checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Processor
from training.adapters import LoRAStage
from training.answer import AnswerStage
from training.boards import Answered
from training.checkpoints import kept_steps
from training.config import RunConfig, plain
from training.data.feature_cache import FeatureCache
from training.data.packs import open_readers, open_stream
from training.distributed import World, joined
from training.feed import Drawn, Feed, Packs
from training.logs import Log, Silent
from training.loop import autocast_wanted, check_config, train_stage, write_config
from training.models import build_model, continued_model, picture_side
from training.packed import PackedStage, SpannedStage, StateStage
from training.plot import plot_loss
from training.samples import write_conversations, write_samples
from training.settings import StageConfig
from training.singles.hearing import SoundSource
from training.singles.named import SOUND_SOURCES, UNLABELLED, AnySource, open_sources
from training.singles.sources import SOURCES, Source
from training.stage import Stage
from training.streamed import StreamedStage
from training.tagging import TaggingStage
from training.tower import TowerStage


def train(run: RunConfig, device: torch.device) -> Path:
    """Train every stage of `run`, going on where an earlier call stopped; returns the folder of the model. Under
    torchrun all processes train together."""
    with joined(device) as world:
        return train_in(world, run)


def train_in(world: World, run: RunConfig) -> Path:
    """The same as one of the processes of a `world`, which all come here."""
    folder = Path(run.run)
    check_config(folder, run)
    check_processes(run, world.size)
    world = world.sharing(run.engine.context_parallel)
    # The CPU's matrix library prepares a product for each shape it meets; batches have more shapes than it keeps.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")
    sources = data_of(run)
    torch.manual_seed(run.seed)
    if run.start is None:
        model, processor = build_model(run, sources)
    else:
        model, processor = continued_model(run)
    offset = 0
    world.barrier()
    done = max(kept_steps(folder), default=0)
    with Log(folder, run.engine.log, plain(run)) if world.first else Silent() as log:
        for config in run.stages:
            if offset + config.steps < done:  # a later stage's checkpoint holds all that this one left
                offset += config.steps
                continue
            make = partial(make_stage, config, processor, sources, world=world)
            # What is begun here does not know what ran before.
            torch.manual_seed(zlib.crc32(f"{run.seed} {config.name}".encode()))
            stage = make(model).to(world.device)
            feed = feed_of(config, run, stage, processor, sources)
            if world.first:
                write_config(folder, run)
            world.barrier()
            stage = train_stage(stage, config, run, feed, folder, offset, world, log, make)
            model, offset = stage.model, offset + config.steps
            if world.first:
                log.show(offset, _keep(stage, config, run, sources, folder, offset))
            world.barrier()
    return folder / ("state.safetensors" if _tunes_start(run) else "model")


def check_processes(run: RunConfig, processes: int) -> None:
    """ValueError for a stage that so many processes cannot share, and for a board that is not installed, before the
    first of them begins."""
    context = run.engine.context_parallel
    if processes % context:
        raise ValueError(
            f"engine.context_parallel is {context}: {processes} processes cannot be divided into groups of as many"
        )
    for name in run.engine.log:
        if name not in sys.modules and find_spec(name) is None:
            raise ValueError(f"engine.log names {name}, which is not installed here")
    readers = processes // context
    for stage in run.stages:
        if not stage.packed and processes > 1:
            raise ValueError(
                f"stage {stage.name!r} of kind {stage.kind!r} draws single pictures and sounds and trains on "
                f"one process, there are {processes}: start it without torchrun"
            )
        if stage.packed and stage.batch % readers:
            who = f"{readers} processes" if readers == processes else f"{readers} groups of processes"
            raise ValueError(f"stage {stage.name!r}: {stage.batch} packs a step cannot be shared evenly by {who}")


def data_of(run: RunConfig) -> dict[str, AnySource]:
    """Every source of samples that some stage of `run` draws from."""
    names, size = drawn_of(run)
    return open_sources(names, Path(run.data), size)


def drawn_of(run: RunConfig) -> tuple[list[str], int]:
    """The names of those sources, and the side of the pictures that are drawn. A ValueError names one that a stage or
    the model cannot use."""
    drawing = [stage for stage in run.stages if not stage.packed]
    for stage in drawing:
        wrong = {"tower": set(SOUND_SOURCES), "tagging": {*SOURCES, *UNLABELLED}}.get(stage.kind, set())
        for sources, sense in ((SOURCES, run.tower), (SOUND_SOURCES, run.sound)):
            if sense is None:
                wrong = {*wrong, *sources}
        if wrong := wrong.intersection(stage.data):
            raise ValueError(f"stage {stage.name!r} of kind {stage.kind!r} cannot learn from {sorted(wrong)}")
    size = 0 if run.tower is None or not drawing else picture_side(run)
    return sorted({name for stage in drawing for name in stage.data}), size


def feed_of(
    config: StageConfig, run: RunConfig, stage: Stage, processor: Processor, sources: Mapping[str, AnySource]
) -> Feed:
    """Where the stage's batches come from."""
    if config.packed:
        cache = None
        seen = "tower" not in config.train and stage.model.tower is not None  # by a frozen tower
        if run.feature_cache is not None and isinstance(stage, PackedStage) and (seen or stage.model.sound is not None):
            half = autocast_wanted(run.precision, next(stage.parameters()).device)
            cache = stage.cache = FeatureCache(run.feature_cache, stage.model, pictures=seen, half=half)
        return Packs(open_stream(config, run, processor, cache), config.batch, run.workers)
    drawn = {name: sources[name] for name in config.data}
    return Drawn(stage, config, drawn, run.seed, run.workers)


def make_stage(
    config: StageConfig,
    processor: Processor,
    sources: Mapping[str, AnySource],
    model: MMRWKV7,
    world: World | None = None,
) -> Stage:
    """The stage around `model`, of which exactly what it trains takes gradients; in a `world` of one unless given."""
    model.requires_grad_(False).eval()
    parts = _parts(model)
    for name in config.train:
        if name != "state" and name not in parts:
            raise ValueError(f"stage {config.name!r} trains {name!r}, which the model does not have")
        for part in parts.get(name, ()):
            part.requires_grad_(True).train()
    if config.freeze_embedding:
        model.lm.emb.requires_grad_(False)
    drawn = {name: sources[name] for name in config.data if name in sources}
    match config.kind:
        case "tower":
            return TowerStage(model, cast("dict[str, Source]", drawn), processor.tokenizer)
        case "tagging":
            return TaggingStage(model, cast("dict[str, SoundSource]", drawn))
        case "answer":
            return AnswerStage(model, processor, config.questions, config.blind)
        case "lora":
            return LoRAStage(model, config)
        case "state":
            return StateStage(model, config)
        case "text" if config.carried:
            return StreamedStage(model, config, world or World(torch.device("cpu")))
        case "text" if world is not None and world.group is not None:
            return SpannedStage(model, config, world.group)
        case _:
            return PackedStage(model, config)


def _parts(model: MMRWKV7) -> dict[str, list[nn.Module]]:
    """The modules that each name of `settings.PARTS` stands for."""
    parts: dict[str, list[nn.Module]] = {"lm": [model.lm]}
    if model.tower is not None and model.projector is not None:
        compressor = [] if model.compressor is None else [model.compressor]
        parts |= {"tower": [model.tower], "projector": [model.projector, *compressor]}
    if (hearing := model.sound) is not None:
        head = [] if hearing.head is None else [hearing.head]
        parts |= {"sound_encoder": [hearing.encoder, *head], "sound_projector": [hearing.projector]}
    return parts


def _keep(
    stage: Stage, config: StageConfig, run: RunConfig, sources: Mapping[str, AnySource], folder: Path, step: int
) -> list[Answered]:
    """What a finished stage leaves: the model, what belongs beside it, the loss as a picture, a few answers."""
    model, state = stage.model, None
    if not _tunes_start(run):
        checkpoint.save(model, folder / "model", card=f"Trained by the recipe in ../config.yaml, {step} steps.\n")
    stage.export(folder)
    if isinstance(stage, StateStage):
        owner = run.start if _tunes_start(run) and run.start else folder / "model"
        state = replace(stage.state(), model=Pipeline.from_pretrained(owner, device="cpu").fingerprint)
        state.save(folder / "state.safetensors")
    plot_loss(folder)
    if config.kind == "answer":
        return write_samples(model, ((name, sources[name]) for name in config.data), folder, step)
    if config.packed and config.kind != "text":
        return write_conversations(
            model, open_readers(config, run), folder, step, None if state is None else replace(state, model="")
        )
    return []


def _tunes_start(run: RunConfig) -> bool:
    """Whether all that the run learns is a state for the very checkpoint that it starts with."""
    return run.start is not None and not run.prompt and [stage.kind for stage in run.stages] == ["state"]
