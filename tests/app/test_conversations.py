"""Random conversations side by side: whatever their users do, each goes on as if it were alone."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine import Engine, EngineConfig
from app.requests import Cancelled, Piece, Request, Ticket
from mm_rwkv7.decode import ModuleStepper
from mm_rwkv7.generate import prefill
from mm_rwkv7.pipeline import Answer, Pipeline
from mm_rwkv7.sampler import Sampler
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State
from tests.ears import RATE, noise

QUESTIONS = ("What is in the picture?", "a red square", "Describe the picture.", "What", "a red red red square is in")
TOP = 8


@dataclass
class Conversation:
    """What was said so far and the states after each turn, oldest first; the request on its way, if any."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    said: list[int] = field(default_factory=list)  # how many messages belong to each state
    request: Request | None = None
    ticket: Ticket | None = None


class Alone:
    """One request by itself, by the modules, along the tokens that the engine chose."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.step = pipeline, ModuleStepper(pipeline.model.lm)

    @torch.no_grad()
    def check(self, request: Request, answer: Answer, pieces: list[Piece], where: str) -> None:
        pipeline, lm = self.pipeline, self.pipeline.model.lm
        state = request.state
        batch = pipeline.processor(request.messages, open_turn=state is not None and state.open_turn)
        hidden, state = pipeline._read(batch, state)
        sampler = Sampler(request.sampling, pipeline.tokenizer.size)
        scores = [score for piece in pieces for score in piece.scores]
        for number, score in enumerate(scores):
            logits = self.step.logits(hidden)[0]
            logits[list(pipeline.tokenizer.unwritable)] = -torch.inf
            logprobs = logits.log_softmax(0)
            close = 1e-5 * float(logits[logits > -500].norm())
            expected = logprobs.topk(TOP).values
            found = torch.tensor([value for _, value in score.top])
            assert float((found - expected).abs().max()) < close, f"{where}, token {number}"
            if request.sampling.temperature:
                assert sampler(logits) == score.token, f"{where}, token {number}"
            else:
                assert float(logprobs.max() - logprobs[score.token]) < close, f"{where}, token {number}"
            hidden, state = self.step(lm.embed(torch.tensor([score.token])), state)
        tokens = [score.token for score in scores]
        text = pipeline.tokenizer.decode(tokens)
        if answer.finish_reason != "cancelled":
            assert answer.text == text.split("\n\n")[0].lstrip(), where
        else:
            assert text.lstrip().startswith(answer.text), where
        if "\n\n" not in text:
            state = prefill(pipeline.model, torch.tensor([pipeline.tokenizer.encode("\n\n")]), state)[1]
        assert answer.state.tokens_seen == state.tokens_seen, where
        for ours, theirs in zip(answer.state.layers, state.layers, strict=True):
            assert max(_error(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-4, where


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _poisoned(engine: Engine) -> None:
    """Fill every slot that nobody has with NaN, now and whenever one is given back."""
    pool, remove = engine._step.pool.tensors, engine.scheduler.remove

    def poison(slot: int) -> None:
        for tensor in (pool.wkv, pool.att_shift, pool.ffn_shift):
            tensor[:, slot] = torch.nan

    def remove_and_poison(row: Any) -> None:
        slot = row.slot
        remove(row)
        if slot >= 0:
            poison(slot)

    for slot in range(engine.config.slots):
        poison(slot)
    engine.scheduler.remove = remove_and_poison  # type: ignore[method-assign]


def _question(rng: random.Random, media: list[Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for medium in rng.choices(media, k=rng.choice([0, 0, 1, 2])):
        kind = "audio" if isinstance(medium, tuple) else "image"
        parts.append({"type": kind, kind: medium})
    return {"role": "user", "content": [*parts, {"type": "text", "text": rng.choice(QUESTIONS)}]}


def _start(engine: Engine, rng: random.Random, one: Conversation, media: list[Any]) -> None:
    """A question, after the last state or with all that was said before it."""
    asked = _question(rng, media)
    sampling = Sampling(rng.randint(1, 8), rng.choice([0.0, 0.0, 0.8]), seed=rng.randrange(1000))
    anew = not one.states or rng.random() < 0.3
    messages = [*one.messages, asked] if anew else [asked]
    one.request = Request(messages, None, None if anew else one.states[-1], sampling, logprobs=TOP)
    one.ticket = engine.submit(one.request)
    one.messages.append(asked)


def _finish(rng: random.Random, one: Conversation, alone: Alone, where: str) -> None:
    """Stream it to its end, stop it on the way, or leave."""
    assert one.ticket is not None
    assert one.request is not None
    way, after = rng.choice(["end", "end", "stop", "leave"]), rng.randint(0, 5)
    pieces: list[Piece] = []
    if way == "leave" and after == 0:
        one.ticket.cancel()
    try:
        if way == "stop" and after == 0:
            one.ticket.stop()
        for item in one.ticket:
            if isinstance(item, Piece):
                pieces.append(item)
                if len(pieces) == after:
                    one.ticket.cancel() if way == "leave" else one.ticket.stop() if way == "stop" else None
            else:
                alone.check(one.request, item, pieces, where)
                one.messages.append({"role": "assistant", "content": item.text})
                one.states.append(item.state)
                one.said.append(len(one.messages))
    except Cancelled:
        assert way == "leave", where
        one.messages.pop()
    one.ticket = None


def _fork(one: Conversation) -> Conversation:
    return Conversation(list(one.messages), list(one.states), list(one.said))


def _undo(one: Conversation) -> None:
    one.states.pop()
    one.said.pop()
    del one.messages[one.said[-1] if one.said else 0 :]


def _save_and_restore(one: Conversation, folder: Path) -> None:
    path = folder / "state.safetensors"
    one.states[-1].save(path)
    model = one.states[-1].model
    one.states[-1] = replace(State.load(path, str(model)), model=str(model))


def play(pipeline: Pipeline, pictures: Any, folder: Path, seed: int, acts: int) -> Engine:
    rng = random.Random(seed)
    media = [pictures["red"], pictures["blue"], (noise(1.5, seed % 100).numpy(), RATE)]
    alone = Alone(pipeline)
    config = EngineConfig(slots=3, portion=rng.choice([8, 40]), ram_states=rng.choice([0, 1 << 20, 1 << 28]))
    with Engine(pipeline, config) as engine:
        _poisoned(engine)
        conversations = [Conversation() for _ in range(3)]
        for act in range(acts):
            where = f"seed {seed}, act {act}"
            one = rng.choice(conversations)
            what = rng.choice(["start", "start", "finish", "fork", "undo", "save"])
            if what == "start" and one.ticket is None:
                _start(engine, rng, one, media)
            elif one.ticket is not None:
                if what == "finish":
                    _finish(rng, one, alone, where)
            elif one.states and what == "fork" and len(conversations) < 8:
                conversations.append(_fork(one))
            elif one.states and what == "undo":
                _undo(one)
            elif one.states and what == "save":
                _save_and_restore(one, folder)
        for one in conversations:
            if one.ticket is not None:
                _finish(rng, one, alone, f"seed {seed}, at the end")
        assert engine.scheduler.free == config.slots
        return engine


def test_conversations_go_on_as_if_each_were_alone(
    listening_model: Any, pictures: Any, tmp_path: Path, seed: int
) -> None:
    engine = play(Pipeline(listening_model), pictures, tmp_path, seed, acts=60)
    assert engine.counts.answered > 3


@pytest.mark.slow
def test_many_conversations(listening_model: Any, pictures: Any, tmp_path: Path, seed: int) -> None:
    for number in range(6):
        play(Pipeline(listening_model), pictures, tmp_path, seed + number, acts=150)
