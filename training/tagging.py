"""Stage 0 for sound: the encoder learns what is heard (tagging), and of generated sounds what happens when.

Tagging alone needs no order in time. So each moment of the encoder's grid also has to say which events of a soundscape
sound in it, where one begins, how high it is and which noise lies behind it; of every sound, how loud it is.

Letters: W windows, F frames of a window, M mel bins, T moments, E width of the encoder, C classes.
"""

import copy
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_rwkv7.hearing import Hearing
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.synthetic.soundscapes import KINDS, NOISES
from training.singles.augment import AUGMENTATIONS, changed, masked, mixed
from training.singles.hearing import Features, SoundSample, SoundSource
from training.stage import Stage

EVENTS = (*KINDS, "beep", "note")
SWEPT_OCTAVES = {"rising sweep": (0.0, 2.0), "falling sweep": (2.0, 0.0)}
MIDDLE_HERTZ = 500.0
EXCLUSIVE = {"esc10", "spoken_digits"}  # sources whose sounds have one label each
SHORT = 128  # frames; windows are as long as the longest sound in them needs, in such steps
HAPPENING = 3.0  # weight of what is said of the moments, beside that of the tags
LEAST_OVERLAP = 0.02  # seconds of an event in a moment that can be heard


@dataclass(frozen=True)
class Row:
    """One sound of a batch: picture (F, M), labels (C,), loudness (T,), targets of its moments."""

    source: str
    picture: Tensor
    labels: Tensor
    loudness: Tensor
    moments: Tensor

    @property
    def frames(self) -> int:
        """Of the window that it needs."""
        return -(-len(self.picture) // SHORT) * SHORT


class TaggingStage(Stage):
    """`model.sound` with the heads that train it and are thrown away afterwards, and the running average of its
    weights, which takes their place at the end."""

    AVERAGED_STEPS = 300
    averaged_steps: Tensor

    def __init__(self, model: MMRWKV7, sources: Mapping[str, SoundSource]) -> None:
        super().__init__(model)
        self.hearing.projector.requires_grad_(False)  # resuming expects that every part with a gradient has had one
        encoder, labels = self.hearing.encoder, model.config.sound.labels if model.config.sound else ()
        self.number = {label: i for i, label in enumerate(labels)}
        if missing := sorted({label for source in sources.values() for label in source.labels} - self.number.keys()):
            raise ValueError(f"the tagging head has no classes {missing}, which the sources hold")
        self.classes = {name: [self.number[label] for label in source.labels] for name, source in sources.items()}
        self.seconds = encoder.frontend.frames / 100 / encoder.grid[0]  # of a moment
        # per moment: loudness, begin, its place, low, high, octave, noise, events
        self.moments = nn.Linear(encoder.width, 6 + 1 + len(NOISES) + len(EVENTS))
        self.average = copy.deepcopy(self._averaged()).requires_grad_(False)
        self.register_buffer("averaged_steps", torch.zeros(()))
        self.features = Features(encoder.frontend)

    @property
    def hearing(self) -> Hearing:
        assert self.model.sound is not None
        return self.model.sound

    def _averaged(self) -> nn.ModuleList:
        assert self.hearing.head is not None
        return nn.ModuleList([self.hearing.encoder, self.hearing.head])

    def collate(self, drawn: Sequence[tuple[str, SoundSample]], rng: random.Random) -> dict[str, Any]:
        """-> `groups` of windows of one length; the stage's `loss` says what is in them."""
        pictures = [changed(self.features(sound), AUGMENTATIONS[name], rng) for name, sound in drawn]
        labels = [self._labels(sound) for _, sound in drawn]
        rows = []
        for i, (name, sound) in enumerate(drawn):
            way, picture, wanted = AUGMENTATIONS[name], pictures[i], labels[i]
            others = [j for j, (other, _) in enumerate(drawn) if other == name and j != i]
            if others and rng.random() < way.mix:
                j, share = rng.choice(others), way.share(rng)
                picture = mixed(picture, pictures[j], share)
                wanted = torch.lerp(wanted, labels[j], share)
            picture = picture[: self.hearing.encoder.frontend.frames]
            loudness = self._loudness(picture)  # as it is heard: the masks hide some of it
            rows.append(Row(name, masked(picture, way, rng), wanted, loudness, self._targets(sound)))
        sizes = sorted({row.frames for row in rows})
        return {
            "groups": [self._group([row for row in rows if row.frames == size]) for size in sizes],
            "tokens": sum(row.frames for row in rows) / 100,
        }

    def _group(self, rows: Sequence[Row]) -> dict[str, Any]:
        size = min(rows[0].frames, self.hearing.encoder.frontend.frames)
        moments = math.ceil(size / 100 / self.seconds - 1e-9)
        return {
            "windows": _padded([row.picture for row in rows], size, 0.0),
            "frames": torch.tensor([len(row.picture) for row in rows]),
            "labels": torch.stack([row.labels for row in rows]),
            "loudness": _padded([row.loudness for row in rows], moments, math.nan),
            "moments": _padded([row.moments for row in rows], moments, math.nan),
            "sources": [row.source for row in rows],
        }

    def _labels(self, sound: SoundSample) -> Tensor:
        """(C,) one for every class that is heard."""
        labels = torch.zeros(len(self.number))
        labels[[self.number[label] for label in sound.labels]] = 1
        return labels

    def _loudness(self, picture: Tensor) -> Tensor:
        """(F, M) -> (T,) the logarithm of the mean power of each moment, about -1 ... 1."""
        step = round(self.seconds * 100)
        sums = picture.logsumexp(1).split(step)
        return torch.stack([(part.logsumexp(0) - math.log(len(part))) for part in sums]) / 10

    def _targets(self, sound: SoundSample) -> Tensor:
        """(T, 5 + 1 + events): begin, its place, low, high, octave, noise, events; NaN where nobody knows or nothing
        is to be said."""
        grid = self.hearing.encoder.grid[0]
        if not sound.generated:
            return torch.full((grid, 6 + len(EVENTS)), math.nan)
        targets = torch.zeros(grid, 6 + len(EVENTS))
        targets[:, [1, 4]] = math.nan
        targets[:, 5] = 0 if sound.noise is None else 1 + NOISES.index(sound.noise)
        for event in sound.events:
            first = event.start / self.seconds
            if first < grid:
                targets[int(first), 0] = 1
                targets[int(first), 1] = first - int(first) - 0.5
            for moment in range(int(first), min(grid, math.ceil((event.start + event.duration) / self.seconds))):
                begin = max(event.start, moment * self.seconds)
                end = min(event.start + event.duration, (moment + 1) * self.seconds)
                if end - begin < LEAST_OVERLAP:
                    continue
                targets[moment, 6 + EVENTS.index(event.kind)] = 1
                targets[moment, 2] = event.pitch == "low"
                targets[moment, 3] = event.pitch == "high"
                if event.hertz:
                    low, high = SWEPT_OCTAVES.get(event.kind, (0.0, 0.0))
                    done = ((begin + end) / 2 - event.start) / event.duration
                    targets[moment, 4] = math.log2(event.hertz / MIDDLE_HERTZ) + low + (high - low) * done
        return targets

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """-> (scalar loss, its parts and how often the heads were right).

        A group holds windows (W, F, M), frames (W,), labels (W, C), loudness (W, T), moments (W, T, targets) and the
        names of the windows' sources.
        """
        if self.training:
            self._average()
        groups = batch["groups"]
        count = sum(len(group["labels"]) for group in groups)
        loss = torch.zeros(())
        parts: dict[str, list[float]] = {}
        for group in groups:
            tags, moments = self._heads(group)
            found, wanted = tags.float(), group["labels"]
            tagging = F.binary_cross_entropy_with_logits(found, wanted, reduction="sum") / count
            tagging = tagging + self._choice_loss(found, group, parts) / count
            happening = self._moment_loss(moments.float(), group, parts) * len(wanted) / count
            loss = loss.to(tagging.device) + tagging + HAPPENING * happening
            parts.setdefault("tagging", []).append(float(tagging.detach()) * count / len(wanted))
        report = {name: sum(values) / len(values) for name, values in parts.items()}
        return loss, {"tokens": batch["tokens"], **report}

    def _heads(self, group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """-> logits of the classes (W, C), what is said of the moments (W, T, ...)."""
        assert self.hearing.head is not None
        encoder = self.hearing.encoder
        features = encoder(group["windows"], group["frames"])
        pooled = encoder.mean(features, group["frames"])
        return self.hearing.head(pooled), self.moments(features.unflatten(1, (-1, encoder.grid[1])).mean(2))

    def _choice_loss(self, tags: Tensor, group: Mapping[str, Any], parts: dict[str, list[float]]) -> Tensor:
        """Of recordings, which of its own source's classes it is: the summed cross entropy."""
        loss = tags.sum() * 0
        for name in set(group["sources"]) & EXCLUSIVE:
            rows = [i for i, source in enumerate(group["sources"]) if source == name]
            found, wanted = tags[rows][:, self.classes[name]], group["labels"][rows][:, self.classes[name]]
            loss = loss + F.cross_entropy(found, wanted, reduction="sum")
            parts.setdefault(name, []).extend((found.argmax(1) == wanted.argmax(1)).float().tolist())
        return loss

    def _moment_loss(self, found: Tensor, group: Mapping[str, Any], parts: dict[str, list[float]]) -> Tensor:
        loudness, begin, place, pitch, octave, noise, events = found.split(
            [1, 1, 1, 2, 1, 1 + len(NOISES), len(EVENTS)], dim=-1
        )
        wanted = group["moments"]
        heard = ~group["loudness"].isnan()
        loss = (loudness[..., 0] - group["loudness"])[heard].abs().mean()
        parts.setdefault("loudness", []).append(float(loss.detach()))
        known = heard & ~wanted[..., 0].isnan()
        if not known.any():
            return loss
        share = known.any(1).float().mean()
        wanted = wanted[known]
        begin, place, octave = (x[known][:, 0] for x in (begin, place, octave))
        begins, pitched = ~wanted[:, 1].isnan(), ~wanted[:, 4].isnan()
        bce = F.binary_cross_entropy_with_logits
        losses = {
            "begin": 2 * bce(begin, wanted[:, 0]),
            "pitch": 2 * bce(pitch[known], wanted[:, 2:4]),
            "noise": F.cross_entropy(noise[known], wanted[:, 5].long()),
            "events": 4 * bce(events[known], wanted[:, 6:]),
        }
        if begins.any():
            losses["place"] = (place - wanted[:, 1])[begins].abs().mean()
        if pitched.any():
            losses["octave"] = (octave - wanted[:, 4])[pitched].abs().mean()
        for name, value in losses.items():
            parts.setdefault(name, []).append(float(value.detach()))
        return loss + share * torch.stack(list(losses.values())).sum()

    @torch.no_grad()
    def _average(self) -> None:
        """Take the weights that the last step left into the average, over a tenth of all steps in the beginning."""
        self.averaged_steps += 1
        share = 1 / min(self.AVERAGED_STEPS, 1 + float(self.averaged_steps) / 10)
        for mean, now in zip(self.average.parameters(), self._averaged().parameters(), strict=True):
            mean.lerp_(now, share)

    @torch.no_grad()
    def finish(self) -> None:
        for now, mean in zip(self._averaged().parameters(), self.average.parameters(), strict=True):
            now.copy_(mean)


def _padded(tensors: Sequence[Tensor], length: int, value: float) -> Tensor:
    """Tensors (n, ...) -> (W, length, ...), cut or filled up."""
    blank = tensors[0].new_full((len(tensors), length, *tensors[0].shape[1:]), value)
    for row, tensor in zip(blank, tensors, strict=True):
        row[: len(tensor)] = tensor[:length]
    return blank
