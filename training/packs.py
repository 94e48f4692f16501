"""From a recipe's `sources` to the stream of packs that a stage reads."""

from pathlib import Path
from typing import Any

from mm_rwkv7.processor import Processor
from training.config import RunConfig
from training.feed import Stream
from training.settings import StageConfig


def open_stream(config: StageConfig, run: RunConfig, processor: Processor) -> Stream:
    """The mixture of the stage's sources. A ValueError names the one that cannot be opened."""
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
