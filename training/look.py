"""What a run would read, looked at before it runs: every source opened, its records counted, some of them read."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mm_rwkv7.processor import Processor
from training.config import RunConfig
from training.data.conversations import Indexed
from training.data.mixture import Mixture
from training.data.packs import open_plain, open_readers
from training.data.readers import STREAM
from training.settings import StageConfig
from training.singles.named import AnySource, open_sources
from training.singles.sources import Sample

Told = tuple[str, bool]  # of a source, in one line; whether a run could read it


def look_at_singles(run: RunConfig, names: list[str], size: int) -> tuple[dict[str, AnySource], dict[str, Told]]:
    """The sources of single pictures and sounds that can be opened, and what is told of all, by name."""
    found: dict[str, AnySource] = {}
    told: dict[str, Told] = {}
    for name in names:
        try:
            source = open_sources([name], Path(run.data), size)[name]
            sample = source.train(random.Random(run.seed))
        except ValueError as error:
            told[name] = str(error), False
            continue
        found[name] = source
        count = source.count()
        what = (
            f"a picture of {sample.image.width} x {sample.image.height}"
            if isinstance(sample, Sample)
            else f"a sound of {len(sample.waveform):,} samples"
        )
        told[name] = f"{'generated' if count is None else f'{count:,} to train on'}; one: {what}", True
    return found, told


def look_at_packs(stage: StageConfig, run: RunConfig, processor: Processor) -> Iterator[tuple[str, Told]]:
    """What is told of every source of a stage that reads packs: the first pack of each alone is read."""
    for name in stage.data:
        try:
            if stage.kind == "text":
                yield name, _text(name, stage, run, processor)
            else:
                yield name, _talk(replace(stage, data={name: 1.0}), run, processor)
        except (ValueError, OSError) as error:
            yield name, (" ".join(str(error).split()), False)


def _text(name: str, stage: StageConfig, run: RunConfig, processor: Processor) -> Told:
    if run.sources[name].path.startswith(STREAM):
        return "on the hub, not looked at: a run downloads all of it", True
    text = open_plain(stage, run, processor)
    next(text.batches())
    return f"{run.sources[name].path}: {len(text.documents):,} documents, the first pack can be read", True


def _talk(stage: StageConfig, run: RunConfig, processor: Processor) -> Told:
    (reader,) = open_readers(stage, run).values()
    count = f"{len(reader):,} records" if isinstance(reader, Indexed) else "a stream of records"
    mixture = Mixture({"": reader}, {"": 1.0}, processor, stage.context, run.seed, window=1, broken_share=1.0)
    batch = next(mixture.batches())
    faults, samples = batch["faults"], len(batch["samples"])
    if not samples:
        return f"{reader.name}: nothing in the first pack can be read: {faults[-1]}", False
    media = len(batch["tiles"]), len(batch["spans"])
    told = f"{reader.name}: {count}; the first pack: {_several(samples, 'sample')}, "
    told += f"{_several(media[0], 'picture')}, {_several(media[1], 'sound')}"
    told += f", {batch['tokens']:,} of {stage.context:,} tokens"
    return told + (f"; left out {len(faults)}, as {faults[0]}" if faults else ""), True


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
