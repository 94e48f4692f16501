"""Prefill and decode: reading a prompt in pieces, and writing an answer token by token.

Letters: B batch, T time, D width, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.decode import Stepper, stepper
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.sampler import Sampler
from mm_rwkv7.state import State
from mm_rwkv7.tokenizer import Tokenizer

END_OF_TURN = 261  # "\n\n" in the World vocabulary
PIECE = 1024  # tokens read at once: memory does not grow with the text


@torch.no_grad()
def prefill(
    model: MMRWKV7,
    ids: Tensor,
    state: State | None = None,
    features: Tensor | None = None,
    pad_compat: bool = False,
    sounds: Iterable[Tensor] = (),
) -> tuple[Tensor, State]:
    """Read ids (1, T) with the features (..., D) of their pictures, and blocks (..., D) of those of their sounds;
    returns the last hidden vector (1, D) and the state. Any length goes through at constant memory: a block is asked
    for when its placeholders are read.

    `pad_compat` begins a text with as many ends of turn as VisualRWKV's kernel needs to make T a multiple of 16, for
    comparison with it: they change what is read after them a little.
    """
    if ids.shape[1] == 0:
        raise ValueError("there is nothing to read")
    if pad_compat and state is None:
        ids = F.pad(ids, (-ids.shape[1] % 16, 0), value=END_OF_TURN)
    after = state
    seen, heard = Queue([] if features is None else [features]), Queue(sounds)
    for piece in ids.split(PIECE, dim=1):
        pictures = seen.take(int((piece == model.config.image_id).sum()))
        hidden, after = model.lm.hidden(
            model.embed(piece, pictures, heard.take(int((piece == model.config.audio_id).sum()))), after
        )
    for several, kind, queue in (("pictures", "image", seen), ("sounds", "audio", heard)):
        if left := queue.left():
            raise ValueError(f"the {several} have {left} feature tokens more than the text has {kind} placeholders")
    assert after is not None
    return hidden[:, -1], after


def read_rows(
    lm: RWKV7, x: Tensor, lengths: Sequence[int] | None = None, state: State | None = None
) -> tuple[Tensor, State]:
    """Read x (B, T, D), of which row i has lengths[i] steps, all of them if not told -> (what the head reads after each
    row's last step (B, D), the rows' states)."""
    B, T, _ = x.shape
    last = torch.tensor(lengths or [T] * B, device=x.device) - 1
    whole = lengths is None or min(lengths) == T
    found: Tensor | None = None
    for start in range(0, T, PIECE):
        piece = x[:, start : start + PIECE]
        places = torch.arange(start, start + piece.shape[1], device=x.device)
        hidden, state = lm.hidden(piece, state, None if whole else places <= last[:, None])
        here = hidden[torch.arange(B, device=x.device), (last - start).clamp(0, piece.shape[1] - 1)]
        # A row that ended in an earlier piece has its vector already.
        found = here if found is None else torch.where((last >= start)[:, None], here, found)
    assert found is not None
    assert state is not None
    return found, state


class Queue:
    """Feature tokens (..., D) that come in blocks and are taken as they are needed."""

    def __init__(self, blocks: Iterable[Tensor]) -> None:
        self._blocks = iter(blocks)
        self._held: Tensor | None = None

    def take(self, count: int) -> Tensor | None:
        """The next `count` tokens (count, D), fewer where there are no more; None for none."""
        self._fetch(count)
        if not count or self._held is None:
            return None
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def left(self) -> int:
        """How many tokens were not taken, of those that came and of the next block."""
        return self._fetch(1)

    def _fetch(self, count: int) -> int:
        """Hold `count` tokens, or all that there are; how many are held."""
        held = 0 if self._held is None else len(self._held)
        while held < count and (block := next(self._blocks, None)) is not None:
            block = block.flatten(0, -2)
            self._held = block if self._held is None else torch.cat([self._held, block])
            held = len(self._held)
        return held


class Writer:
    """The text of one answer, as its tokens come.

    `finish_reason` is "" while it is being written, then "stop" (an end of text, a stop text) or "length" (`limit`
    tokens). No piece holds half a character, nor the beginning of what may become a stop text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], limit: int) -> None:
        self.tokenizer, self.stop, self.limit = tokenizer, tuple(stop), limit
        self.tokens: list[int] = []
        self.finish_reason = "" if limit else "length"
        self._decoder = tokenizer.stream()
        self._held = ""

    def push(self, token: int) -> str:
        """The piece of text that is certain now."""
        self.tokens.append(token)
        if token == self.tokenizer.end_id:
            self.finish_reason = "stop"
            return self._held + self._decoder.flush()
        held = self._held + self._decoder.push(token)
        cut = min((at for at in map(held.find, self.stop) if at >= 0), default=-1)
        if cut >= 0:
            self.finish_reason = "stop"
            return held[:cut]
        if len(self.tokens) == self.limit:
            self.finish_reason = "length"
            return held + self._decoder.flush()
        ready = len(held) - self._possible_stop(held)
        self._held = held[ready:]
        return held[:ready]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop text."""
        longest = max(map(len, self.stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stop):
                return length
        return 0


class Decoder:
    """Writes one answer: iterate for its pieces of text, then read `tokens`, `state` and `finish_reason`.

    A piece never holds half a character, nor the beginning of what may become a stop text. `state` has read
    every token of the answer, the stop included. `finish_reason` is "stop", "length" or, when the iteration was left
    early, "cancelled".
    """

    def __init__(
        self,
        model: MMRWKV7,
        tokenizer: Tokenizer,
        hidden: Tensor,
        state: State,
        sampler: Sampler,
        stop: Sequence[str],
        limit: int,
        step: Stepper | None = None,
    ) -> None:
        self.model, self.tokenizer, self.sampler = model, tokenizer, sampler
        self.hidden, self.state = hidden, state
        self.step = step or stepper(model.lm)
        self._writer = Writer(tokenizer, stop, limit)

    @property
    def tokens(self) -> list[int]:
        return self._writer.tokens

    @property
    def finish_reason(self) -> str:
        return self._writer.finish_reason or "cancelled"

    def __iter__(self) -> Iterator[str]:
        while not self._writer.finish_reason:
            if piece := self._writer.push(self._step()):
                yield piece

    @torch.no_grad()
    def _step(self) -> int:
        logits = self.step.logits(self.hidden)[0]
        logits[list(self.tokenizer.unwritable)] = -torch.inf
        token = self.sampler(logits)
        x = self.model.lm.embed(torch.tensor([token], device=logits.device))
        self.hidden, self.state = self.step(x, self.state)
        return token
