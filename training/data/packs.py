"""From a recipe's `sources` to the stream of packs that a stage reads."""

from pathlib import Path

from mm_rwkv7.processor import Processor
from mm_rwkv7.tokenizer import WORLD_SIZE, Tokenizer
from training.config import RunConfig
from training.data.conversations import Reader
from training.data.feature_cache import FeatureCache
from training.data.indexed import IndexedTokens
from training.data.mixture import Mixture
from training.data.readers import STREAM, open_reader
from training.data.text import TextData, open_text
from training.feed import Stream
from training.settings import StageConfig


def open_stream(config: StageConfig, run: RunConfig, processor: Processor, cache: FeatureCache | None = None) -> Stream:
    """The mixture of the stage's sources, or its text. A ValueError names the one that cannot be opened."""
    if config.kind == "text":
        return open_plain(config, run, processor)
    return Mixture(
        open_readers(config, run),
        config.data,
        processor,
        config.context,
        run.seed,
        broken_share=run.engine.broken_share,
        cache=cache,
    )


def open_readers(config: StageConfig, run: RunConfig) -> dict[str, Reader]:
    """A reader of each source that the stage draws from. Paths begin at the run's `data`."""
    readers = {}
    for name in config.data:
        source = run.sources[name]
        readers[name] = open_reader(
            _place(source.path, run), None if source.folder is None else Path(run.data) / source.folder
        )
    return readers


def open_plain(config: StageConfig, run: RunConfig, processor: Processor) -> TextData:
    """The one source of a text stage, its path as `open_text` takes it, beginning at the run's `data`."""
    if len(config.data) != 1:
        raise ValueError(f"stage {config.name!r} of kind 'text' reads {sorted(config.data)}, expected one source")
    (name,) = config.data
    source, tokenizer = run.sources[name], processor.tokenizer
    place = _place(source.path, run)
    documents = open_text(place, tokenizer.encode, source.column)
    if isinstance(documents, IndexedTokens) and isinstance(tokenizer, Tokenizer) and tokenizer.size != WORLD_SIZE:
        raise ValueError(f"{place} holds World ids, the model has a vocabulary of its own of {tokenizer.size}")
    return TextData(documents, config.context, run.seed, config.carried, tokenizer.size)


def _place(path: str, run: RunConfig) -> str | Path:
    return path if path.startswith(STREAM) else Path(run.data) / path
