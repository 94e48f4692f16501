"""How likely the token that was chosen was, and those that might have been.

Letters: V vocabulary.
"""

from torch import Tensor

from app.requests import TokenScore
from mm_rwkv7.tokenizer import Tokenizer


def score(logits: Tensor, token: int, count: int, tokenizer: Tokenizer) -> TokenScore:
    """How likely a token was, logits (V,), and the `count` likeliest."""
    logprobs = logits.log_softmax(0)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    top = tuple((tokenizer.token_bytes(i), value) for i, value in zip(ids.tolist(), values.tolist(), strict=True))
    return TokenScore(token, tokenizer.token_bytes(token), float(logprobs[token]), top)
