import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mm_rwkv7 import generate
from mm_rwkv7.answering import Asked, answer_many, prefill_rows
from mm_rwkv7.generate import prefill
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Batch
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.synthetic import scenes

WORDS = ["what", "is", "the", "colour", "of", "a", "small", "striped", "thing", "in", "this", "picture"]


def questions(rng: random.Random, count: int) -> tuple[str, ...]:
    return tuple(" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) + "?" for _ in range(count))


def picture(rng: random.Random) -> dict[str, object]:
    pixels = np.random.default_rng(rng.randrange(2**31)).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def sound(rng: random.Random) -> dict[str, object]:
    waveform = np.random.default_rng(rng.randrange(2**31)).normal(0, 0.1, rng.randint(4000, 40000))
    return {"type": "audio", "audio": (waveform.astype(np.float32), 16000)}


def one_by_one(pipeline: Pipeline, asked: list[Asked], sampling: Sampling) -> list[list[tuple[str, str, int]]]:
    def answer(one: Asked, question: str) -> tuple[str, str, int]:
        content = [*one.media, {"type": "text", "text": question}]
        found = pipeline.chat([{"role": "user", "content": content}], sampling)
        return found.text, found.finish_reason, found.usage.completion_tokens

    return [[answer(one, question) for question in one.questions] for one in asked]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(5, temperature=1.0, seed=3, count_penalty=0.5)])
def test_pictures_are_answered_as_one_by_one(tiny_model: MMRWKV7, seed: int, sampling: Sampling) -> None:
    rng, pipeline = random.Random(seed), Pipeline(tiny_model)
    counts = [(1, 3), (2, 1), (1, 0), (3, 5), *[(1, 1)] * 9]  # pictures, questions
    asked = [Asked(tuple(picture(rng) for _ in range(n)), questions(rng, m)) for n, m in counts]
    found = answer_many(pipeline, asked, sampling)
    assert [[(r.text, r.finish_reason, r.tokens) for r in row] for row in found] == one_by_one(
        pipeline, asked, sampling
    ), f"seed {seed}"


def test_sounds_and_pictures_are_answered_as_one_by_one(listening_model: MMRWKV7, seed: int) -> None:
    rng, pipeline = random.Random(seed), Pipeline(listening_model)
    asked = [Asked((sound(rng),), questions(rng, 2)), Asked((picture(rng), sound(rng)), questions(rng, 3))]
    found = answer_many(pipeline, asked)
    assert [[r.text for r in row] for row in found] == [
        [text for text, _, _ in row] for row in one_by_one(pipeline, asked, Sampling())
    ], f"seed {seed}"


def test_text_alone_is_answered_as_one_by_one(tiny_model: MMRWKV7, seed: int) -> None:
    pipeline, asked = Pipeline(tiny_model), [Asked((), questions(random.Random(seed), 5))]
    (found,), (expected,) = answer_many(pipeline, asked), one_by_one(pipeline, asked, Sampling())
    assert [r.text for r in found] == [text for text, _, _ in expected], f"seed {seed}"


def test_answers_of_unequal_length_end_apart() -> None:
    pipeline = Pipeline.from_pretrained("nano", "cpu")
    drawn = [scenes.sample(seed) for seed in (35, 37, 39)]
    asked = [
        Asked(({"type": "image", "image": s.image},), (*(q for q, _, _ in s.qa[:3]), "Describe the picture."))
        for s in drawn
    ]
    found = answer_many(pipeline, asked)
    assert len({reply.tokens for row in found for reply in row}) > 2
    assert [[(r.text, r.finish_reason, r.tokens) for r in row] for row in found] == one_by_one(
        pipeline, asked, Sampling()
    )


def test_a_row_of_a_batch_reads_as_the_row_alone(
    tiny_model: MMRWKV7, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "PIECE", 7)
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, 7, 8, 14, 30]
    ids = torch.randint(1, 200, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    hidden, state = prefill_rows(tiny_model, Batch(ids, mask), None)
    for row, length in enumerate(lengths):
        alone, after = prefill(tiny_model, ids[row : row + 1, :length])
        torch.testing.assert_close(hidden[row : row + 1], alone, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(state.layers, after.layers, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert (a[row] - b[0]).norm() <= 1e-5 * b.norm() + 1e-6, f"seed {seed}, row {row}"


def test_what_does_not_go_together_is_refused(tiny_checkpoint: Path, seed: int) -> None:
    pipeline, rng = Pipeline.from_pretrained(tiny_checkpoint, "cpu"), random.Random(seed)
    with pytest.raises(ValueError, match="together"):
        answer_many(pipeline, [Asked((picture(rng),), ("a",)), Asked((), ("b",))])
    with pytest.raises(ValueError, match="empty"):
        answer_many(pipeline, [Asked((), (" ",))])
    assert answer_many(pipeline, []) == []
