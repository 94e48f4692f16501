"""Every source of training samples by its name: pictures and sounds."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mm_rwkv7.processor import Message
from training.singles.audioset import AudioSet
from training.singles.captioned import AudioCaps, Clotho
from training.singles.hearing import ESC10, RATE, SoundSample, Soundscapes, SoundSource, SpokenDigits
from training.singles.sources import SOURCES, Sample, Source

SOUND_SOURCES: dict[str, Callable[[Path], SoundSource]] = {
    "soundscapes": Soundscapes,
    "esc10": ESC10,
    "spoken_digits": SpokenDigits,
    "audiocaps": AudioCaps,
    "clotho": Clotho,
    "audioset": lambda folder: AudioSet(folder, ("balanced_train", "unbalanced_train")),
    "audioset_balanced": lambda folder: AudioSet(folder, ("balanced_train",)),
}
UNLABELLED = ("audiocaps", "clotho")  # sounds of no classes
AnySample = Sample | SoundSample
AnySource = Source | SoundSource
NAMES = (*SOURCES, *SOUND_SOURCES)


def open_sources(names: Iterable[str], folder: Path, size: int) -> dict[str, AnySource]:
    """The sources of these names: tables of `folder`, pictures drawn at `size` pixels. A ValueError says which name is
    unknown, or which file is missing."""
    names = sorted(set(names))
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"unknown data {unknown}, expected some of {sorted(NAMES)}")
    return {name: SOURCES[name](folder, size) if name in SOURCES else SOUND_SOURCES[name](folder) for name in names}


def open_turn(sample: AnySample) -> list[Message]:
    """The message that shows a picture or plays a sound and leaves the question to come."""
    if isinstance(sample, Sample):
        part = {"type": "image", "image": sample.image}
    else:
        part = {"type": "audio", "audio": (sample.waveform, RATE)}
    return [{"role": "user", "content": [part]}]
