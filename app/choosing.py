"""The next token of many answers at once, each sampled as if it were alone.

Letters: B rows, V vocabulary.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from app.requests import TokenScore
from mm_rwkv7.sampling import Sampler
from mm_rwkv7.tokenizer import Tokenizer


def choose(logits: Tensor, samplers: Sequence[Sampler | None]) -> list[int | None]:
    """logits (B, V) -> an id for each row, the likeliest where there is no sampler; None for a row whose logits are no
    numbers."""
    greatest, likeliest = logits.max(dim=1)  # NaN wins over every number
    found: list[int | None] = likeliest.tolist()
    for row, (top, sampler) in enumerate(zip(greatest.tolist(), samplers, strict=True)):
        if not math.isfinite(top):
            found[row] = None
        elif sampler is not None:
            found[row] = sampler(logits[row])
    return found


def score(logits: Tensor, token: int, count: int, tokenizer: Tokenizer) -> TokenScore:
    """How likely a token was, logits (V,), and the `count` likeliest."""
    logprobs = logits.log_softmax(0)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    top = tuple((tokenizer.token_bytes(i), value) for i, value in zip(ids.tolist(), values.tolist(), strict=True))
    return TokenScore(token, tokenizer.token_bytes(token), float(logprobs[token]), top)
