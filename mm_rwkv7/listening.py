"""Whatever can name sounds: a tagger by itself, or a whole model with a tagging head."""

import json
import os
from dataclasses import asdict
from functools import cached_property

import torch

from mm_rwkv7 import checkpoint
from mm_rwkv7.interop.files import read
from mm_rwkv7.interop.taggers import OpenedTagger, open_tagger, tagger_format
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sounds import Sound, SoundSource
from mm_rwkv7.sources import locate
from mm_rwkv7.tagger import Tagger, Tags, batches, likeliest
from mm_rwkv7.weights import choose_device, choose_dtype, load_strictly


class Listener:
    """A published tagger (AST, A-RWKV), which has no language model."""

    def __init__(self, tagger: Tagger, name: str, opened: OpenedTagger) -> None:
        self.tagger = tagger
        self.name = name
        self._opened = opened

    @property
    def device(self) -> torch.device:
        return next(self.tagger.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the config and the weights. The first call reads the whole file."""
        config = json.dumps(asdict(self._opened.config), sort_keys=True)
        return checkpoint.fingerprint(config, self._opened.tensors.items())

    @torch.no_grad()
    def tag(self, audio: SoundSource, top: int = 10) -> Tags:
        """The likeliest classes of a sound with their probabilities, which need not add up to one: several may be
        heard. Those of a long sound are the means over its windows."""
        frontend = self.tagger.encoder.frontend
        windows = batches(frontend, Sound.read(audio, frontend.rate), self.device)
        scored = ((self.tagger(pictures, frames), frames) for pictures, frames in windows)
        return likeliest(scored, self.tagger.config.labels, top)


def open_listener(model: str | os.PathLike[str], device: str = "auto", dtype: str = "auto") -> Listener | Pipeline:
    """What `tag` needs, of any checkpoint. Raises ValueError; see `Pipeline.from_pretrained`."""
    stored = read(locate(model))
    format = tagger_format(stored)
    if format is None:
        return Pipeline.from_pretrained(model, device, dtype)
    opened = open_tagger(stored, format)
    return Listener(build(opened, device, dtype), os.fspath(model), opened)


def build(opened: OpenedTagger, device: str = "auto", dtype: str = "auto") -> Tagger:
    """The tagger of an opened checkpoint. Raises ValueError."""
    place = choose_device(device)
    tagger = without_weights(opened)
    load_strictly(tagger, opened.tensors, opened.path, choose_dtype(dtype, place), place, opened.spell)
    return tagger.eval()


def without_weights(opened: OpenedTagger) -> Tagger:
    """The tagger of an opened checkpoint on the meta device. Raises ValueError."""
    with torch.device("meta"):
        return Tagger(opened.config)
