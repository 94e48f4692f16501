"""From a recipe's `sources` to the stream of packs that a stage reads."""

from pathlib import Path
from typing import Any

from mm_rwkv7.processor import Processor
from mm_rwkv7.tokenizer import WORLD_SIZE, Tokenizer
from training.config import RunConfig
from training.feed import Stream
from training.settings import StageConfig


def open_stream(config: StageConfig, run: RunConfig, processor: Processor) -> Stream:
    """The mixture of the stage's sources, or its text. A ValueError names the one that cannot be opened."""
    if config.kind == "text":
        return open_plain(config, run, processor)
    from training.mixture import Mixture

    return Mixture(
        {name: open_reader(name, run) for name in config.data},
        config.data,
        processor,
        config.context,
        run.seed,
        broken_share=run.engine.broken_share,
    )


def open_reader(name: str, run: RunConfig) -> Any:
    """One of the recipe's sources: `{kind: llava, path, folder}`; paths begin at the run's `data`."""
    from training.llava import Llava

    settings = dict(run.sources[name])
    kind = settings.pop("kind", "llava")
    if kind != "llava":
        raise ValueError(f"source {name!r} has kind {kind!r}, expected llava")
    places = {key: Path(run.data) / value for key, value in settings.items()}
    return Llava(**places)


def open_plain(config: StageConfig, run: RunConfig, processor: Processor) -> Stream:
    """The one source of a text stage: `{path, column}`, path as `open_text` takes it, beginning at the run's `data`."""
    from training.indexed import IndexedTokens
    from training.text import TextData, open_text

    if len(config.data) != 1:
        raise ValueError(f"stage {config.name!r} of kind 'text' reads {sorted(config.data)}, expected one source")
    (name,) = config.data
    settings = dict(run.sources[name])
    if unknown := sorted(settings.keys() - {"path", "column"}):
        raise ValueError(f"source {name!r} has {unknown}, a text has path and column")
    if "path" not in settings:
        raise ValueError(f"source {name!r} lacks its path")
    tokenizer, path = processor.tokenizer, str(settings.pop("path"))
    place = path if path.startswith("hf:") else Path(run.data) / path
    documents = open_text(place, tokenizer.encode, **settings)
    if isinstance(documents, IndexedTokens) and isinstance(tokenizer, Tokenizer) and tokenizer.size != WORLD_SIZE:
        raise ValueError(f"{place} holds World ids, the model has a vocabulary of its own of {tokenizer.size}")
    return TextData(documents, config.context, run.seed, config.carried, tokenizer.size)
