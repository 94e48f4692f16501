"""Ears for small models: a sound encoder with random weights, and sounds for it."""

import dataclasses

import torch
from torch import Tensor

from encoders.birwkv7 import BiRWKV7Config
from encoders.spectrogram import Spectrogram
from mm_rwkv7.hearing import Hearing, SoundConfig
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.projector import ProjectorConfig

RATE = 16_000
LABELS = ("bark", "bell", "rain")
SPECTROGRAM = Spectrogram(frames=128)  # windows of 1.28 s
ENCODER = BiRWKV7Config(width=64, layers=2, spectrogram=SPECTROGRAM)
SOUND = SoundConfig(ENCODER, ProjectorConfig(64, 64), pool=(8, 1), labels=LABELS)


def noise(seconds: float, seed: int = 0) -> Tensor:
    return torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed)) / 10


def make(config: SoundConfig, width: int = 128) -> Hearing:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hearing = Hearing(config, width).eval()
        for parameter in hearing.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return hearing


def give_ears(model: MMRWKV7) -> MMRWKV7:
    """The model, with what it had unchanged, and ears."""
    hearing = MMRWKV7(dataclasses.replace(model.config, sound=SOUND)).eval()
    hearing.load_state_dict(model.state_dict(), strict=False)
    hearing.sound = make(SOUND)
    return hearing


def without_words(model: MMRWKV7) -> MMRWKV7:
    """The same model, but a sound alone is a question to it, as to WorldRWKV's models of speech."""
    template = dataclasses.replace(model.config.template, images_first=True, wordless=True)
    listening = MMRWKV7(dataclasses.replace(model.config, template=template)).eval()
    listening.load_state_dict(model.state_dict())
    return listening
