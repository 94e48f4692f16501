"""Texts read piece by piece on the engine's thread, between its turns: a long one holds up nobody.

Letters: T time, D width, V vocabulary.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from app.engine import Engine
from app.requests import TokenScore
from mm_rwkv7.decode import ModuleStepper
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.state import State
from mm_rwkv7.tokenizer import Tokenizer

Seen = TypeVar("Seen")
PIECE = 256


class Reader:
    """Used on one event loop. One piece at a time is handed to the engine, whoever asks: so much is read between two
    turns, and no more."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()

    async def embed(self, ids: Sequence[int]) -> Tensor:
        """What the head would read after the last of `ids` (D,), as `Pipeline.embed` gives it."""
        seen, _ = await self._read(ids, lambda hidden, _: hidden[-1].float().cpu())
        return seen[-1]

    async def score(self, ids: Sequence[int], count: int, state: State | None = None) -> tuple[list[TokenScore], State]:
        """How likely every one of `ids` but the first is after those before it, with the `count` likeliest in its
        place, and the state after all of them but the last. Like the tokens of an answer: over everything that may be
        written."""
        pipeline = self._engine.pipeline
        unwritable = torch.tensor(list(pipeline.tokenizer.unwritable), dtype=torch.long, device=pipeline.device)

        def look(hidden: Tensor, start: int) -> list[TokenScore]:
            logits = ModuleStepper(pipeline.model.lm).logits(hidden)
            logprobs = logits.index_fill(1, unwritable, -torch.inf).log_softmax(1)
            return scores_of(logprobs, ids[start + 1 : start + 1 + len(hidden)], count, pipeline.tokenizer)

        seen, after = await self._read(ids[:-1], look, state)
        return [found for piece in seen for found in piece], after

    async def _read(
        self, ids: Sequence[int], look: Callable[[Tensor, int], Seen], state: State | None = None
    ) -> tuple[list[Seen], State]:
        """What `look` makes of every piece's hidden vectors (T, D), the first of which is that of the id at the given
        place, and the state after them all."""
        state = self._engine.pipeline.own(state)
        seen = []
        for start in range(0, len(ids), PIECE):
            piece = ids[start : start + PIECE]

            def work(
                pipeline: Pipeline, piece: Sequence[int] = piece, start: int = start, before: State | None = state
            ) -> tuple[Seen, State]:
                lm = pipeline.model.lm
                hidden, after = lm.hidden(lm.embed(torch.tensor([piece], device=pipeline.device)), before)
                return look(hidden[0], start), after

            async with self._turn:
                found, state = await asyncio.wrap_future(self._engine.call(work))
            seen.append(found)
        assert state is not None
        return seen, self._engine.pipeline.sign(state)


def scores_of(logprobs: Tensor, ids: Sequence[int], count: int, tokenizer: Tokenizer) -> list[TokenScore]:
    """logprobs (T, V) -> how likely ids[t] was, and the `count` likeliest there."""
    taken = logprobs.gather(1, torch.tensor(ids, device=logprobs.device)[:, None])[:, 0].tolist()
    values, likeliest = (found.tolist() for found in logprobs.topk(min(count, logprobs.shape[1]), 1))
    return [
        TokenScore(
            token,
            tokenizer.token_bytes(token),
            logprob,
            tuple((tokenizer.token_bytes(i), value) for i, value in zip(row, several, strict=True)),
        )
        for token, logprob, row, several in zip(ids, taken, likeliest, values, strict=True)
    ]
