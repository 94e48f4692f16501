"""How answers are sampled, as values that are checked before anything heavy is imported; `sampler` does it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled and where it ends.

    Temperature 0 takes the likeliest token; `top_k` 0 and `top_p` 1 leave the distribution whole. A token
    that has come up loses `presence_penalty` from its logit, and `count_penalty` for each time it did; the
    counts are multiplied by `penalty_decay` at every step. `max_new_tokens` None leaves the bound to the
    model's config; `stop` adds to its stop texts.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    count_penalty: float = 0.0
    penalty_decay: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected 0 to 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, expected 0 (off) or more")
        for name in ("presence_penalty", "count_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a finite number")
        if not 0 <= self.penalty_decay <= 1:
            raise ValueError(f"penalty_decay is {self.penalty_decay}, expected 0 to 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, expected 0 to 2^63 - 1")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}, expected a tuple of texts that are not empty")
