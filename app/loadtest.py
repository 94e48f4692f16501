"""`python -m app.loadtest LOAD`: users in this process who ask an engine as fast as it answers."""

import asyncio
import io
import json
import random
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from app.document import PORTION, portions, read_in
from app.engine import Engine, EngineConfig
from app.requests import Piece, Request
from mm_rwkv7.bench.memory import resident
from mm_rwkv7.command import Parser, run_command
from mm_rwkv7.pipeline import Answer, Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.synthetic import scenes

Row = dict[str, object]


@dataclass
class Seen:
    """What the users saw: seconds to the first token of each answer, and tokens written."""

    first: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one load and prints its rows; returns the exit code (2: bad usage)."""
    parser = Parser(prog="python -m app.loadtest", description=__doc__)
    loads = parser.add_subparsers(dest="load", required=True)
    ramp = loads.add_parser("ramp", help="requests and tokens a second against the number of users")
    ramp.add_argument("--users", default="1,2,4,8,16,32", help="how many, step by step (default 1,2,4,8,16,32)")
    ramp.add_argument("--seconds", type=float, default=5.0, help="of each step (default 5)")
    ramp.add_argument("--tokens", type=int, default=64, help="at most, in an answer (default 64)")
    soak = loads.add_parser("soak", help="memory over many conversations of three turns, some of them left early")
    soak.add_argument("--conversations", type=int, default=1000)
    soak.add_argument("--users", type=int, default=16)
    soak.add_argument("--states-mb", type=int, default=64, help="of known states (default 64): a bound soon reached")
    picture = loads.add_parser("picture", help="time to the first token, of the first and second question on a picture")
    picture.add_argument("--pictures", type=int, default=30)
    picture.add_argument("--side", type=int, default=640, help="pixels of each (default 640)")
    document = loads.add_parser("document", help="a long text read once: seconds, memory, then time to first tokens")
    document.add_argument("--tokens", type=int, default=100_000, help="of the text (default 100000)")
    document.add_argument("--questions", type=int, default=10)
    for load in (ramp, soak, picture, document):
        load.add_argument("--model", default="nano")
        load.add_argument("--device", default="auto")
        load.add_argument("--slots", type=int, default=EngineConfig().slots)
        load.add_argument("--seed", type=int, default=0)
        load.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    return run_command(parser, argv, _run)


def _run(options: Namespace) -> None:
    pipeline = Pipeline.from_pretrained(options.model, options.device)
    config = EngineConfig(slots=options.slots)
    if options.load == "soak":
        config = replace(config, ram_states=options.states_mb << 20, device_states=options.states_mb << 20)
    with Engine(pipeline, config) as engine:
        rows = {"ramp": _ramp, "soak": _soak, "picture": _picture, "document": _document}[options.load](engine, options)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


def _ramp(engine: Engine, options: Namespace) -> list[Row]:
    try:
        steps = [int(users) for users in options.users.split(",")]
    except ValueError as error:
        raise ValueError(f"--users is {options.users!r}, expected numbers with commas between") from error
    if min(steps) < 1 or options.tokens < 1:
        raise ValueError("expected at least one user and one token")
    asyncio.run(_crowd(engine, options, 2, 1.0, Seen()))  # compiles, and fills memory
    rows: list[Row] = []
    alone: float | None = None
    for users in steps:
        seen = Seen()
        began, worked = time.perf_counter(), time.process_time()
        asyncio.run(_crowd(engine, options, users, options.seconds, seen))
        took, worked = time.perf_counter() - began, time.process_time() - worked
        rate = seen.tokens / took
        row: Row = {
            "users": users,
            "requests_per_s": round(seen.answers / took, 1),
            "tokens_per_s": round(rate),
            "cpu_ms_per_token": round(1000 * worked / max(seen.tokens, 1), 3),
            **_percentiles(seen.first),
        }
        if users == 1:
            alone = rate
        if alone:
            row["times_one_user"] = round(rate / alone, 2)
        rows.append(row)
    return rows


async def _crowd(engine: Engine, options: Namespace, users: int, seconds: float, seen: Seen) -> None:
    """Each user asks, waits for the whole answer and asks again; no two ask the same."""
    end = time.perf_counter() + seconds

    async def user(number: int) -> None:
        rng = random.Random(f"{options.seed} {number} {users}")
        while time.perf_counter() < end:
            words = " ".join(rng.choice(WORDS) for _ in range(12))
            await _ask(engine, Request(text=f"User: {words}?\n\nAssistant:", sampling=Sampling(options.tokens)), seen)

    await asyncio.gather(*map(user, range(users)))


async def _ask(engine: Engine, request: Request, seen: Seen, leave_after: int | None = None) -> Answer | None:
    """The answer, None where its user left after so many pieces."""
    asked, first, pieces = time.perf_counter(), None, 0
    with await asyncio.to_thread(engine.submit, request) as ticket:
        async for item in ticket:
            first = first or time.perf_counter()
            if isinstance(item, Answer):
                seen.first.append(first - asked)
                seen.tokens += item.usage.completion_tokens
                seen.answers += 1
                return item
            pieces += isinstance(item, Piece)
            if pieces == leave_after:
                return None
    return None


def _soak(engine: Engine, options: Namespace) -> list[Row]:
    """Memory after every tenth of the conversations; the first fills caches and allocators."""
    rows: list[Row] = []
    seen, left, began = Seen(), iter(range(options.conversations)), time.perf_counter()
    tenth = max(options.conversations // 10, 1)

    async def user() -> None:
        for number in left:
            await _converse(engine, random.Random(f"{options.seed} {number}"), seen)
            if (number + 1) % tenth == 0:
                rows.append(
                    {
                        "conversations": number + 1,
                        "rss_mb": None if (held := resident()) is None else round(held / 1e6),
                        **_held(engine),
                    }
                )

    async def everybody() -> None:
        await asyncio.gather(*(user() for _ in range(options.users)))

    asyncio.run(everybody())
    took = time.perf_counter() - began
    return [
        *rows,
        {"answers": seen.answers, "answers_per_s": round(seen.answers / took, 1), **_percentiles(seen.first)},
    ]


async def _converse(engine: Engine, rng: random.Random, seen: Seen) -> None:
    scene = await asyncio.to_thread(scenes.sample, 2 * rng.randrange(10_000) + 1)
    state = None
    for turn in range(3):
        parts: list[dict[str, Any]] = [{"type": "image", "image": scene.image}] if turn == 0 else []
        parts.append({"type": "text", "text": rng.choice(scene.qa)[0]})
        leave = 1 if rng.random() < 0.1 else None
        request = Request([{"role": "user", "content": parts}], state=state)
        answer = await _ask(engine, request, seen, leave)
        if answer is None:
            return
        state = answer.state


def _held(engine: Engine) -> Row:
    return {"states_mb": round(sum(engine.states.held) / 1e6), "features_mb": round(engine.media.held / 1e6, 1)}


def _picture(engine: Engine, options: Namespace) -> list[Row]:
    """Pictures as files, so that reading them is part of it, as it is for whoever sends one."""
    first, second = Seen(), Seen()

    async def ask(number: int, into: tuple[Seen, Seen]) -> None:
        scene = scenes.sample(2 * (options.seed + number) + 1)
        file = io.BytesIO()
        scene.image.resize((options.side, options.side)).save(file, "PNG")
        for (question, *_), seen in zip(scene.qa[:2], into, strict=False):
            parts = [{"type": "image", "image": file.getvalue()}, {"type": "text", "text": question}]
            await _ask(engine, Request([{"role": "user", "content": parts}]), seen)

    async def everything() -> None:
        await ask(options.pictures, (Seen(), Seen()))
        for number in range(options.pictures):
            await ask(number, (first, second))

    asyncio.run(everything())
    ratios = [a / b for a, b in zip(first.first, second.first, strict=True)]
    return [
        {"question": "first", **_percentiles(first.first)},
        {"question": "second", **_percentiles(second.first)},
        {"times_sooner": round(statistics.median(ratios), 1)},
    ]


def _document(engine: Engine, options: Namespace) -> list[Row]:
    """Read as the page reads it, and asked from the state after it."""
    rng = random.Random(options.seed)
    text = " ".join(rng.choice(WORDS) for _ in range(options.tokens))  # each word is at least a token
    ids = [i for piece in portions(engine.pipeline, text) for i in piece][: options.tokens]
    pieces = [ids[start : start + PORTION] for start in range(0, len(ids), PORTION)]
    rows: list[Row] = []
    state, began = None, time.perf_counter()
    for number, state in enumerate(read_in(engine, pieces), 1):
        if number % max(len(pieces) // 10, 1) == 0 or number == len(pieces):
            held = resident()
            took = round(time.perf_counter() - began, 2)
            rows.append({"read": state.tokens_seen, "seconds": took, "rss_mb": held and round(held / 1e6)})
    seen = Seen()

    async def ask() -> None:
        for number in range(options.questions):
            question = f"How many {WORDS[number % len(WORDS)]}?"
            await _ask(engine, Request([{"role": "user", "content": question}], state=state), seen)

    asyncio.run(ask())
    return [*rows, {"questions": len(seen.first), **_percentiles(seen.first)}]


def _percentiles(seconds: Sequence[float]) -> Row:
    if not seconds:
        return {}
    found = torch.tensor(seconds).quantile(torch.tensor([0.5, 0.99])) * 1000
    return {"first_token_p50_ms": round(float(found[0]), 1), "first_token_p99_ms": round(float(found[1]), 1)}


WORDS = (
    *("what", "which", "colour", "is", "the", "red", "blue", "square", "circle", "left", "of", "how", "many", "small"),
    *("large", "striped", "triangle", "star", "above", "below", "there", "picture", "dotted", "green", "a", "and"),
)

if __name__ == "__main__":
    sys.exit(main())
