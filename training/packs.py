"""From a recipe's `sources` to the stream of packs that a stage reads."""

from pathlib import Path

from mm_rwkv7.processor import Processor
from training.config import RunConfig
from training.conversations import Reader
from training.feature_cache import FeatureCache
from training.feed import Stream
from training.mixture import Mixture
from training.readers import STREAM, open_reader
from training.settings import StageConfig


def open_stream(config: StageConfig, run: RunConfig, processor: Processor, cache: FeatureCache | None = None) -> Stream:
    """The mixture of the stage's sources. A ValueError names the one that cannot be opened."""
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
        path = source.path if source.path.startswith(STREAM) else Path(run.data) / source.path
        readers[name] = open_reader(path, None if source.folder is None else Path(run.data) / source.folder)
    return readers
