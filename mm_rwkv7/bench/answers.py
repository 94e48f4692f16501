"""Questions about pictures answered one by one and side by side: work of VQAv2's shape."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch

from mm_rwkv7.answering import Asked, answer_many
from mm_rwkv7.bench.timing import milliseconds, sample_in_turns
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.synthetic import scenes


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", help="a model that sees (default nano)")
    parser.add_argument("--pictures", type=int, default=16, help="how many (default 16)")
    parser.add_argument("--questions", type=int, default=5, help="about each, up to 5; VQAv2 has 5.4 (default 5)")
    parser.add_argument("--batch", type=int, default=64, help="questions answered at once (default 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16 or int8 (default auto)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row per way. `equal_answers` is the share of answers that are those given one by one."""
    if not 1 <= arguments.questions <= 5 or arguments.pictures < 1 or arguments.rounds < 2:
        raise ValueError("expected 1 to 5 --questions about at least 1 of --pictures, and at least 2 --rounds")
    pipeline = Pipeline.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    drawn = [scenes.sample(seed) for seed in _seeds(arguments.pictures, arguments.questions)]
    asked = [
        Asked(({"type": "image", "image": scene.image},), tuple(q for q, _, _ in scene.qa[: arguments.questions]))
        for scene in drawn
    ]
    step = max(arguments.batch // arguments.questions, 1)

    def one_by_one() -> list[str]:
        return [
            pipeline.ask(question, [part["image"] for part in one.media]).text
            for one in asked
            for question in one.questions
        ]

    def side_by_side() -> list[str]:
        parts = [asked[first : first + step] for first in range(0, len(asked), step)]
        return [reply.text for part in parts for replies in answer_many(pipeline, part) for reply in replies]

    ways: dict[str, Callable[[], list[str]]] = {"one by one": one_by_one, "side by side": side_by_side}
    count = arguments.pictures * arguments.questions
    timings = sample_in_turns(
        {name: lambda way=way: milliseconds(way, pipeline.device) for name, way in ways.items()},  # type: ignore[misc]
        arguments.rounds,
    )
    alone = one_by_one()
    return [
        {
            "way": name,
            "model": pipeline.name,
            "device": pipeline.device.type,
            "threads": torch.get_num_threads(),
            "questions": count,
            "questions_per_s": timings[name].rate(count).as_dict(),
            "times_faster": float(f"{timings['one by one'].median / timings[name].median:.3g}"),
            "equal_answers": sum(a == b for a, b in zip(alone, way(), strict=True)) / count,
        }
        for name, way in ways.items()
    ]


def _seeds(pictures: int, questions: int) -> list[int]:
    """Odd seeds of scenes about which there are so many questions."""
    found: list[int] = []
    seed = 1
    while len(found) < pictures:
        if len(scenes.questions(seed)) >= questions:
            found.append(seed)
        seed += 2
    return found
