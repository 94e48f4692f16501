"""Stage 0: the tower learns from picture-caption pairs (SigLIP), and from what is known to lie where.

A contrastive tower learns shape, place and count last, because most captions can be told apart without them. So
each cell of the tower's grid also has to name the object whose middle lies in it, and a picture its class. The
captions' own encoder is a bag of words: what order says is learned from the cells.

Letters: B batch, M cells of the grid, E width of the tower.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from open_clip.loss import SigLipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.protocol import Encoder
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.synthetic import scenes
from mm_rwkv7.tokenizer import Tokenizer
from training.singles.sources import Sample, Source
from training.stage import Stage

TEXTS = tuple(str(number) for number in range(100)) + scenes.WORDS
FIELDS: dict[str, tuple[str, ...]] = {
    "kind": (*scenes.KINDS, "number", "word"),
    "colour": scenes.COLOURS,
    "size": scenes.SIZES,
    "texture": scenes.TEXTURES,
    "text": TEXTS,
}
IGNORED = -100  # F.cross_entropy's own
PAIR_WIDTH = 128


class GroupedSigLip(SigLipLoss):
    """open_clip's SigLIP loss where equal captions are positives of each other, not negatives."""

    def __init__(self, groups: Tensor) -> None:
        super().__init__()
        self.groups = groups  # (B,) pictures with the same caption share a number

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        same = self.groups[:, None] == self.groups[None, :]
        return same.to(dtype) * 2 - 1


class TowerStage(Stage):
    """The tower with everything that trains it and is thrown away afterwards."""

    def __init__(self, model: MMRWKV7, sources: Mapping[str, Source], tokenizer: Tokenizer) -> None:
        super().__init__(model)
        self.rows, self.columns = self.tower.grid
        self.tokenizer = tokenizer
        width = self.tower.width
        self.words = nn.EmbeddingBag(tokenizer.size, PAIR_WIDTH, mode="mean")
        self.caption_to_pair = nn.Sequential(
            nn.LayerNorm(PAIR_WIDTH), nn.Linear(PAIR_WIDTH, 512), nn.GELU(), nn.Linear(512, PAIR_WIDTH)
        )
        self.picture_to_pair = nn.Linear(width, PAIR_WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(-5.0))
        # per cell: is there an object, its offset from the cell's middle, and each field
        self.cells = nn.Linear(width, 3 + sum(map(len, FIELDS.values())))
        self.classes = {name: {label: i for i, label in enumerate(s.labels)} for name, s in sources.items()}
        self.labels = nn.ModuleDict(
            {name: nn.Linear(width, len(labels)) for name, labels in self.classes.items() if labels}
        )

    @property
    def tower(self) -> Encoder:
        assert self.model.tower is not None
        return self.model.tower

    def collate(self, drawn: Sequence[tuple[str, Sample]], rng: random.Random) -> dict[str, Any]:
        captions = [sample.caption for _, sample in drawn]
        ids = [self.tokenizer.encode(caption) for caption in captions]
        seen: dict[str, int] = {}
        return {
            "pixels": self.tower.preprocess.pixels([sample.image for _, sample in drawn]),
            "ids": torch.tensor([token for row in ids for token in row]),
            "starts": torch.tensor([0, *itertools.accumulate(map(len, ids[:-1]))]),
            "groups": torch.tensor([seen.setdefault(caption, len(seen)) for caption in captions]),
            "cells": torch.from_numpy(np.stack([self._cell_targets(sample) for _, sample in drawn])),
            "labels": {
                name: torch.tensor([classes[s.label] if n == name and s.label else IGNORED for n, s in drawn])
                for name, classes in self.classes.items()
                if classes and any(n == name for n, _ in drawn)
            },
        }

    def _cell_targets(self, sample: Sample) -> np.ndarray:
        """(M, 3 + fields) fp32: presence (NaN where nobody knows), offsets, then each field's index."""
        targets = np.full((self.rows * self.columns, 3 + len(FIELDS)), IGNORED, dtype=np.float32)
        targets[:, 0] = 0 if sample.objects else np.nan
        for item in sample.objects:
            row, column = int(item.y * self.rows), int(item.x * self.columns)
            cell = targets[row * self.columns + column]
            cell[0] = 1
            cell[1:3] = item.x * self.columns - column - 0.5, item.y * self.rows - row - 0.5
            for i, (field, values) in enumerate(FIELDS.items()):
                value = getattr(item, field)
                skip = value is None or (item.text is not None and field in ("size", "texture"))
                cell[3 + i] = IGNORED if skip else values.index(value)
        return targets

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """-> (scalar loss, its parts and how often the heads were right)."""
        features = self.tower(batch["pixels"])  # (B, M, E)
        pooled = features.mean(1)
        pair = self._contrastive(pooled, batch)
        cells, report = self._cell_loss(self.cells(features).float(), batch["cells"])
        loss = cells + 0.2 * pair
        report |= {"siglip": float(pair.detach()), "tokens": float(len(features))}
        for name, targets in batch["labels"].items():
            logits = self.labels[name](pooled).float()
            known = targets != IGNORED
            summed = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.05)
            loss = loss + 2 * summed / len(targets)
            report[name] = float((logits.argmax(-1) == targets)[known].float().mean())
        return loss, report

    def _contrastive(self, pooled: Tensor, batch: Mapping[str, Any]) -> Tensor:
        caption = self.caption_to_pair(self.words(batch["ids"], batch["starts"])).float()
        picture = F.normalize(self.picture_to_pair(pooled).float(), dim=-1)
        criterion = GroupedSigLip(batch["groups"])
        return criterion(picture, F.normalize(caption, dim=-1), self.log_scale.exp(), self.bias)

    def _cell_loss(self, predicted: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        presence, offset, *fields = predicted.split([1, 2, *map(len, FIELDS.values())], dim=-1)
        known = ~targets[..., 0].isnan()
        there = targets[..., 0] == 1
        loss = predicted.sum() * 0
        report: dict[str, float] = {}
        if known.any():
            loss = loss + 4 * F.binary_cross_entropy_with_logits(presence[..., 0][known], targets[..., 0][known])
        if there.any():
            off = F.l1_loss(offset[there], targets[..., 1:3][there])
            loss = loss + 4 * off
            report["offset"] = float(off.detach())
        for i, (name, logits) in enumerate(zip(FIELDS, fields, strict=True)):
            wanted = targets[..., 3 + i][there].long()
            asked = wanted != IGNORED
            if asked.any():
                loss = loss + F.cross_entropy(logits[there][asked], wanted[asked])
                report[name] = float((logits[there].argmax(-1) == wanted)[asked].float().mean())
        return loss, report
