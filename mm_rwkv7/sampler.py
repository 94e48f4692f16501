"""Chooses the next token from logits, the way RWKV's own demos do.

Letters: B rows, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mm_rwkv7.sampling import Sampling


class Sampler:
    """Samples one sequence, `sampler(logits) -> id`, and holds its random numbers and token counts."""

    def __init__(self, sampling: Sampling, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.counts = torch.zeros(vocab_size, device=device)

    def __call__(self, logits: Tensor) -> int:
        """logits (V,) -> the chosen id, which is counted.

        A FloatingPointError when a logit is NaN or +inf, or all are -inf.
        """
        if logits.shape != self.counts.shape:
            raise ValueError(f"logits have shape {tuple(logits.shape)}, expected {tuple(self.counts.shape)}")
        if not (greatest := logits.max()).isfinite():  # NaN wins over every number
            raise FloatingPointError(
                f"the greatest logit is {greatest.item()}: the weights are broken or the precision is too low"
            )
        token = self._choose(self._penalise(logits.float()))
        self.counts *= self.sampling.penalty_decay
        self.counts[token] += 1
        return token

    def _penalise(self, logits: Tensor) -> Tensor:
        options = self.sampling
        return logits - options.presence_penalty * (self.counts > 0) - options.count_penalty * self.counts

    def _choose(self, logits: Tensor) -> int:
        options = self.sampling
        if options.temperature < torch.finfo(logits.dtype).tiny:
            return int(logits.argmax())
        # Sinking the greatest logit to 0 first keeps a tiny temperature from overflowing.
        logits = (logits - logits.max()) / options.temperature
        if 0 < options.top_k < len(logits):
            logits = _keep(logits, logits.topk(options.top_k).indices)
        if options.top_p < 1:
            logits = _keep(logits, nucleus(logits.softmax(0), options.top_p))
        return int(torch.multinomial(logits.softmax(0), 1, generator=self.generator))


def choose(logits: Tensor, samplers: Sequence[Sampler | None]) -> list[int | None]:
    """logits (B, V) -> an id for each row, as its sampler gives it to the row alone, the likeliest where there is no
    sampler; None for a row whose logits are no numbers."""
    greatest, likeliest = logits.max(dim=1)  # NaN wins over every number
    found: list[int | None] = likeliest.tolist()
    for row, (top, sampler) in enumerate(zip(greatest.tolist(), samplers, strict=True)):
        if not math.isfinite(top):
            found[row] = None
        elif sampler is not None:
            found[row] = sampler(logits[row])
    return found


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Indices of the smallest set of likeliest entries of (V,) whose mass is at least `top_p`; never none."""
    ordered, order = probabilities.double().sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered  # mass of the likelier ones
    size = int((before < top_p).sum())
    return order[: max(size, 1)]


def _keep(logits: Tensor, indices: Tensor) -> Tensor:
    return torch.full_like(logits, -math.inf).scatter(0, indices, logits[indices])
