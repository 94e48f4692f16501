"""Many questions answered side by side: what they are about is read once, and their answers are written in step.

Letters: B rows (questions), T tokens, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from encoders.protocol import move
from mm_rwkv7.generate import PIECE, Writer
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Batch, Message
from mm_rwkv7.sampling import Sampler, Sampling
from mm_rwkv7.state import State

TOGETHER = 8  # messages whose pictures are encoded at once


@dataclass(frozen=True)
class Asked:
    """Questions about the same media: parts of a message such as {"type": "image", "image": ...}, in order, or none."""

    media: tuple[Message, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """What was answered, why it ended ("stop" or "length"), and how many tokens were written."""

    text: str
    finish_reason: str
    tokens: int


@torch.no_grad()
def answer_many(
    pipeline: Pipeline,
    asked: Sequence[Asked],
    sampling: Sampling = Sampling(),  # noqa: B008 - a frozen value
) -> list[list[Reply]]:
    """Answer all questions at once; the replies to those of `asked[i]` are the i-th list.

    Each answer is what `pipeline.ask` gives to the question alone, but for rounding, which decides only between tokens
    that are next to equally likely. All questions are held in memory together: hand over as many as fit.
    """
    if pipeline.pad_compat:
        raise ValueError(
            "pad_compat changes what is read with every prompt's length, so no two questions share a state"
        )
    counts = [len(one.questions) for one in asked]
    if not sum(counts):
        return [[] for _ in asked]
    after = read_media(pipeline, [one.media for one in asked])
    rows = [
        pipeline.processor([{"role": "user", "content": question}], open_turn=bool(one.media))
        for one in asked
        for question in one.questions
    ]
    if after is not None:
        owner = torch.arange(len(asked)).repeat_interleave(torch.tensor(counts))
        after = after.rows(owner.to(pipeline.device))
    hidden, state = prefill_rows(pipeline.model, pipeline.processor.collate(rows), after)
    replies = iter(_write(pipeline, hidden, state, sampling))
    return [list(islice(replies, count)) for count in counts]


@torch.no_grad()
def read_media(pipeline: Pipeline, media: Sequence[Sequence[Message]]) -> State | None:
    """The state after each of `media` at the beginning of a user's turn, a row each; None where none has any.

    Pictures are encoded a few at a time. Sounds are read one after another, since a long one is never in memory whole.
    """
    if not any(media):
        return None
    if not all(media):
        raise ValueError("questions with media and questions without were asked together, expected one of the two")
    messages = [[{"role": "user", "content": list(parts)}] for parts in media]
    if any(part["type"] == "audio" for parts in media for part in parts):
        return State.cat([pipeline.prefill(one) for one in messages])
    states = []
    for first in range(0, len(messages), TOGETHER):
        rows = [pipeline.processor(one, generate=False) for one in messages[first : first + TOGETHER]]
        states.append(prefill_rows(pipeline.model, pipeline.processor.collate(rows), None)[1])
    return State.cat(states)


@torch.no_grad()
def prefill_rows(model: MMRWKV7, batch: Batch, state: State | None) -> tuple[Tensor, State]:
    """Read the rows of a batch that may hold pictures and no sounds -> (the last hidden vector of each row (B, D),
    their states)."""
    device = model.lm.emb.weight.device
    ids = batch.ids.to(device)
    B, T = ids.shape
    mask = None if batch.mask is None else batch.mask.to(device)
    features = None if batch.pixels is None else model.encode(move(batch.pixels, device), batch.tiles)
    x = model.embed(ids, features)
    last = torch.full((B,), T - 1, device=device) if mask is None else mask.sum(1) - 1
    found: Tensor | None = None
    for start in range(0, T, PIECE):
        piece = slice(start, start + PIECE)
        hidden, state = model.lm.hidden(x[:, piece], state, None if mask is None else mask[:, piece])
        here = hidden[torch.arange(B, device=device), (last - start).clamp(0, hidden.shape[1] - 1)]
        # A row that ended in an earlier piece has its vector already.
        found = here if found is None else torch.where((last >= start)[:, None], here, found)
    assert found is not None
    assert state is not None
    return found, state


def _write(pipeline: Pipeline, hidden: Tensor, state: State, sampling: Sampling) -> list[Reply]:
    """Answers from the last hidden vectors (B, D) and states of B prompts."""
    tokenizer, template = pipeline.tokenizer, pipeline.model.config.template
    limit = sampling.max_new_tokens or pipeline.model.config.max_new_tokens
    stop = (*template.stop, *sampling.stop)
    writers = [Writer(tokenizer, stop, limit) for _ in hidden]
    pieces: list[list[str]] = [[] for _ in hidden]
    choose = _Chooser(sampling, len(hidden), tokenizer.size, hidden.device)
    unwritable = list(tokenizer.unwritable)
    rows = list(range(len(hidden)))  # those that are still being written
    while True:
        logits = pipeline.step.logits(hidden)
        logits[:, unwritable] = -torch.inf
        tokens = choose(logits, rows)
        for row, token in zip(rows, tokens, strict=True):
            pieces[row].append(writers[row].push(token))
        going_on = [i for i, row in enumerate(rows) if not writers[row].finish_reason]
        if not going_on:
            break
        if len(going_on) < len(rows):
            rows, tokens = [rows[i] for i in going_on], [tokens[i] for i in going_on]
            state = state.rows(torch.tensor(going_on, device=hidden.device))
        hidden, state = pipeline.step(pipeline.model.lm.embed(torch.tensor(tokens, device=hidden.device)), state)
    texts = ["".join(several) for several in pieces]
    if template.turn_end:
        texts = [text.lstrip() for text in texts]
    return [Reply(text, w.finish_reason, len(w.tokens)) for text, w in zip(texts, writers, strict=True)]


class _Chooser:
    """Chooses the next token of every row as `Sampler` would of each alone."""

    def __init__(self, sampling: Sampling, rows: int, vocab_size: int, device: torch.device) -> None:
        self.samplers: list[Sampler] = []
        if sampling.temperature or sampling.presence_penalty or sampling.count_penalty:
            self.samplers = [Sampler(sampling, vocab_size, device) for _ in range(rows)]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> list[int]:
        """logits (B, V) of the answers `rows` -> an id each."""
        if self.samplers:
            return [self.samplers[row](line) for row, line in zip(rows, logits, strict=True)]
        greatest, tokens = logits.max(dim=1)
        if not greatest.isfinite().all():
            raise FloatingPointError(
                "the greatest logit is no number: the weights are broken or the precision is too low"
            )
        found: list[int] = tokens.tolist()
        return found
