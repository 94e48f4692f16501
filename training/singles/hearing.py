"""Where training sounds come from: generated soundscapes, and the parquet tables of a data folder.

The sources keep to the protocol of `training.singles.sources`: each splits itself into what is trained on and what is
kept out.

Letters: n samples, F frames, M mel bins.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.sound import Frontend
from encoders.spectrogram import Spectrogram
from mm_rwkv7.config import PromptTemplate
from mm_rwkv7.sounds import load_sound
from mm_rwkv7.synthetic import events, hearing, soundscapes
from mm_rwkv7.synthetic.dice import Dice
from training.singles.sources import QA, SourceOf, draw, read_rows

RATE = 16_000
DESCRIBE = PromptTemplate.sound_caption


@dataclass(frozen=True)
class SoundSample:
    """A sound and what is true of it.

    `waveform` is (n,) fp32 within about -1 ... 1 at `RATE`, `labels` are all classes that are heard in it. Generated
    soundscapes also tell what happens when (`events`), the colour of the noise behind it (`noise`) and what each
    question is about (`kinds`). `fresh` sounds are made or read for one use, others come again.
    """

    waveform: np.ndarray
    caption: str
    qa: tuple[QA, ...]
    labels: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    events: tuple[soundscapes.Event, ...] = ()
    noise: str | None = None
    fresh: bool = False

    @property
    def generated(self) -> bool:
        """Whether it is known what happens when."""
        return bool(self.kinds)


SoundSource = SourceOf[SoundSample]


class Soundscapes:
    """Generated soundscapes: even seeds to train on, odd seeds kept out. Labelled by the kinds of their events and by
    the noise."""

    SECONDS = 5.0
    labels: Sequence[str] = (*soundscapes.KINDS, "beep", "note", *(f"{colour} noise" for colour in soundscapes.NOISES))

    def __init__(self, folder: Path) -> None:
        pass

    def count(self) -> None:
        return None

    def texts(self) -> list[str]:
        return [DESCRIBE, *(text for seed in range(0, 6000, 2) for text in self._words(seed)), *self.labels]

    def _words(self, seed: int) -> list[str]:
        """What `soundscapes.sample` says of a seed, without the sound."""
        dice = Dice(seed)
        scape = events.lay_out(dice, self.SECONDS)
        return [hearing.caption(scape), *(text for asked in hearing.ask(scape, dice) for text in asked[:2])]

    def train(self, rng: random.Random) -> SoundSample:
        return self._sound(2 * rng.getrandbits(30))

    def held_out(self, limit: int) -> list[SoundSample]:
        return [self._sound(2 * i + 1) for i in range(limit)]

    def _sound(self, seed: int) -> SoundSample:
        scape = soundscapes.sample(seed, self.SECONDS)
        noise = [] if scape.noise is None else [f"{scape.noise} noise"]
        return SoundSample(
            waveform=(scape.waveform / 32768).astype(np.float32),
            caption=scape.caption,
            qa=tuple((question, answer) for question, answer, _ in scape.qa),
            labels=tuple(dict.fromkeys([*(event.kind for event in scape.events), *noise])),
            kinds=tuple(kind for _, _, kind in scape.qa),
            events=scape.events,
            noise=scape.noise,
            fresh=True,
        )


class Recordings:
    """Real sounds of a parquet table, each of one class, asked one question."""

    question: str
    labels: Sequence[str]

    def __init__(self, path: Path, label: Callable[[dict[str, Any]], str], keeps_out: Callable[[Any], bool]) -> None:
        self.training: list[SoundSample] = []
        self.kept: list[SoundSample] = []
        for number, row in enumerate(read_rows(path)):
            try:
                waveform = load_sound(row["audio"]["bytes"], RATE).numpy()
                sound = self._sound(waveform, label(row))
                (self.kept if keeps_out(row) else self.training).append(sound)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, row {number}: no labelled sound in column audio: {error!r}") from error

    def caption(self, label: str) -> str:
        raise NotImplementedError

    def count(self) -> int:
        return len(self.training)

    def texts(self) -> list[str]:
        return [DESCRIBE, self.question, *self.labels, *map(self.caption, self.labels)]

    def train(self, rng: random.Random) -> SoundSample:
        return rng.choice(self.training)

    def held_out(self, limit: int) -> list[SoundSample]:
        return draw(self.kept, limit)

    def _sound(self, waveform: np.ndarray, label: str) -> SoundSample:
        return SoundSample(waveform, self.caption(label), ((self.question, label),), (label,))


class ESC10(Recordings):
    """Ten kinds of sounds around us, 5 s each; fold 4 is kept out."""

    question = "What do you hear?"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "esc10/folds1-4.parquet", lambda row: row["label"], lambda row: row["fold"] == 4)
        self.labels = sorted({label for sound in (*self.training, *self.kept) for label in sound.labels})

    def caption(self, label: str) -> str:
        return f"the sound of {label}"


class SpokenDigits(Recordings):
    """Spoken digits. Of every speaker and digit the recordings numbered below 10 are kept out: 0 to 4 are the data's
    own test set, which the table does not hold, and 5 to 9 stand in for it."""

    question = "Which digit is spoken?"
    labels = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def __init__(self, folder: Path) -> None:
        def keeps_out(row: dict[str, Any]) -> bool:
            return int(Path(row["audio"]["path"]).stem.split("_")[-1]) < 10  # <digit>_<speaker>_<number>.wav

        super().__init__(folder / "spoken_digits/train.parquet", lambda row: self.labels[row["digit"]], keeps_out)

    def caption(self, label: str) -> str:
        return f"a voice says {label}"


class Features:
    """Spectrograms of sounds, (F, M); those of sounds that come again are kept."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self._known: dict[int, tuple[SoundSample, Tensor]] = {}

    def __call__(self, sound: SoundSample) -> Tensor:
        if id(sound) in self._known:
            return self._known[id(sound)][1]
        if not isinstance(self.frontend, Spectrogram):
            kind = type(self.frontend).__name__
            raise ValueError(f"training changes sounds as a Spectrogram, the encoder reads a {kind}")
        features = torch.cat(list(self.frontend.features(iter([torch.from_numpy(sound.waveform)]))))
        if not sound.fresh:
            self._known[id(sound)] = sound, features
        return features
