"""The stages that read packs: several conversations or texts one after another, each from a state of its own.

Letters: T tokens of a pack, S sequences in it, D width, n trained positions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.state import State
from training import context_parallel
from training.cross_entropy import cross_entropy
from training.data.feature_cache import FeatureCache
from training.settings import StageConfig
from training.stage import Stage

IGNORED = -100


class PackedStage(Stage):
    """Next-token prediction on a pack, as `Mixture.batches` gives it: `ids` (1, T), `targets` (1, T), the token to say
    after each of them or -100, `cu_seqlens` (S + 1,), `pixels` and `tiles` of pictures, `windows` and `frames` of
    sounds."""

    cache: FeatureCache | None = None  # of what frozen encoders tell

    def __init__(self, model: MMRWKV7, config: StageConfig) -> None:
        super().__init__(model)
        self.average, self.l2wrap = config.average, config.l2wrap

    def weight(self, batch: Mapping[str, Any]) -> float:
        """Trained tokens, or samples with some."""
        asked = batch["targets"][0] != IGNORED
        if self.average == "token":
            return float(asked.sum())
        return float(len(torch.unique(_sequences(batch)[asked])))

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        hidden = self._read(batch)[0]  # (T, D)
        targets = batch["targets"][0]
        asked = targets != IGNORED
        share = self._shares(batch, asked)
        loss, right = cross_entropy(hidden[asked], self.model.lm.head.weight, targets[asked], share, self.l2wrap)
        count = max(1, len(right))
        report = {"token_accuracy": float(right.sum()) / count, "tokens": float(batch["tokens"])}
        return loss + self._unused(batch), report

    def _shares(self, batch: Mapping[str, Any], asked: Tensor) -> Tensor:
        """Of every trained position (n,) in the pack's mean."""
        if self.average == "token":
            return torch.full((int(asked.sum()),), 1 / max(1, int(asked.sum())), device=asked.device)
        _, owner, counts = torch.unique(_sequences(batch)[asked], return_inverse=True, return_counts=True)
        return 1 / (counts[owner] * max(1, len(counts))).float()

    def _read(self, batch: Mapping[str, Any]) -> Tensor:
        """-> what the head reads (1, T, D)."""
        model = self.model
        x = model.embed(batch["ids"], self._pictures(batch), self._sounds(batch))
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # left to itself, autocast casts for every product
            x = x.to(torch.get_autocast_dtype(kind))
        return self._hidden(x, batch)

    def _hidden(self, x: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The sequences in x (1, T, D), each from a state of its own."""
        cu_seqlens = batch["cu_seqlens"]
        hidden, _ = self.model.lm.hidden(x, self._start(len(cu_seqlens) - 1), cu_seqlens=cu_seqlens)
        return hidden

    def _pictures(self, batch: Mapping[str, Any]) -> Tensor | None:
        """-> features of all pictures in the embedding space (..., D)."""
        if not batch.get("tiles"):
            return None
        if self.cache is None or self.cache.pictures is None:
            return self.model.encode(batch["pixels"], batch["tiles"])
        features = self.cache.see(self.model, batch)
        assert features is not None
        return self.model.project(features, batch["tiles"])

    def _sounds(self, batch: Mapping[str, Any]) -> Tensor | None:
        """-> features of all sounds in the embedding space (..., D)."""
        if batch.get("frames") is None:
            return None
        if self.cache is None or self.cache.sounds is None:
            return self.model.hear(batch["windows"], batch["frames"])
        features = self.cache.hear(self.model, batch)
        assert features is not None
        assert self.model.sound is not None
        return self.model.sound.project(features, batch["frames"])

    def _start(self, sequences: int) -> State | None:
        """The state from which every sequence is read."""
        return None

    def _unused(self, batch: Mapping[str, Any]) -> Tensor:
        """Zero, by way of every trained parameter that this pack does not use: processes and packs must agree on which
        parameters have gradients."""
        idle = [p.sum() for part in self._idle(batch) for p in part.parameters() if p.requires_grad]
        return 0 * torch.stack(idle).sum() if idle else torch.zeros((), device=batch["ids"].device)

    def _idle(self, batch: Mapping[str, Any]) -> Iterator[nn.Module]:
        model = self.model
        if not batch.get("tiles"):
            yield from (part for part in (model.tower, model.projector, model.compressor) if part is not None)
        if batch.get("frames") is None and model.sound is not None:
            yield model.sound


class SpannedStage(PackedStage):
    """The same where the processes of `group` share every pack: `cu_seqlens` and "continued" are of this one's span, as
    `context_parallel.cut` makes it."""

    def __init__(self, model: MMRWKV7, config: StageConfig, group: ProcessGroup) -> None:
        super().__init__(model, config)
        self.group = group

    def _hidden(self, x: Tensor, batch: Mapping[str, Any]) -> Tensor:
        lm, ends = self.model.lm, batch["cu_seqlens"]
        hidden, _ = context_parallel.hidden(lm, x, None, self.group, ends, batch["continued"])
        return hidden


class StateStage(PackedStage):
    """State tuning: the language model stays as it is and learns from which state to begin. Only the matrix-valued
    states are trained, as in RWKV-PEFT; the token shifts begin at zero."""

    def __init__(self, model: MMRWKV7, config: StageConfig) -> None:
        super().__init__(model, config)
        sizes = model.config.lm
        shape = (sizes.heads, sizes.head_size, sizes.head_size)
        self.wkv = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(sizes.layers))

    def _start(self, sequences: int) -> State:
        zeros = self.model.lm.initial_state(sequences)
        layers = (
            layer._replace(wkv=wkv.expand(sequences, -1, -1, -1))
            for layer, wkv in zip(zeros.layers, self.wkv, strict=True)
        )
        return State(tuple(layers))

    def state(self) -> State:
        """The learned state, of one sequence."""
        return self._start(1).map(lambda tensor: tensor.detach().clone())


def _sequences(batch: Mapping[str, Any]) -> Tensor:
    """(T,) the number of the sequence that each position belongs to."""
    ends = batch["cu_seqlens"]
    positions = torch.arange(batch["ids"].shape[1], device=ends.device, dtype=ends.dtype)
    return torch.bucketize(positions, ends[1:], right=True)
