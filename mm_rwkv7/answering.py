"""Many questions answered side by side: what they are about is read once, and their answers are written in step.

Letters: B rows (questions), T tokens, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from encoders.protocol import move
from mm_rwkv7.generate import Writer, read_rows
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Batch, Message
from mm_rwkv7.sampler import Sampler, choose
from mm_rwkv7.sampling import Sampling
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
    features = None if batch.pixels is None else model.encode(move(batch.pixels, device), batch.tiles)
    lengths = None if batch.mask is None else batch.mask.sum(1).tolist()
    return read_rows(model.lm, model.embed(batch.ids.to(device), features), lengths, state)


def _write(pipeline: Pipeline, hidden: Tensor, state: State, sampling: Sampling) -> list[Reply]:
    """Answers from the last hidden vectors (B, D) and states of B prompts."""
    tokenizer, template = pipeline.tokenizer, pipeline.model.config.template
    limit = sampling.max_new_tokens or pipeline.model.config.max_new_tokens
    stop = (*template.stop, *sampling.stop)
    writers = [Writer(tokenizer, stop, limit) for _ in hidden]
    pieces: list[list[str]] = [[] for _ in hidden]
    greedy = not (sampling.temperature or sampling.presence_penalty or sampling.count_penalty)
    samplers = [None if greedy else Sampler(sampling, tokenizer.size, hidden.device) for _ in hidden]
    unwritable = list(tokenizer.unwritable)
    rows = list(range(len(hidden)))  # those that are still being written
    while True:
        logits = pipeline.step.logits(hidden)
        logits[:, unwritable] = -torch.inf
        tokens = _numbers(choose(logits, [samplers[row] for row in rows]))
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


def _numbers(tokens: Sequence[int | None]) -> list[int]:
    found = [token for token in tokens if token is not None]
    if len(found) < len(tokens):
        raise FloatingPointError("the greatest logit is no number: the weights are broken or the precision is too low")
    return found
