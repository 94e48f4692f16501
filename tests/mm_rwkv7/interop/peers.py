"""What the tests of the peers' formats share: a seeded checkpoint through the product's loader, and how far its outputs
lie from those of the peers' own code (see docs/benchmarks.md)."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mm_rwkv7.pipeline import Pipeline, question_about
from mm_rwkv7.processor import Batch
from tests.mm_rwkv7.interop import seeded

QUESTION = "What is in this picture?"
GOLDEN = Path(__file__).parent / "golden"


def saved(shapes: seeded.Shapes, path: Path) -> Path:
    torch.save(seeded.checkpoint(shapes), path)
    return path


def opened(path: Path) -> Pipeline:
    return Pipeline.from_pretrained(path, "cpu", "fp32")


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def distance(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def differences(
    pipeline: Pipeline, expected: dict[str, Tensor], size: tuple[int, int] = (500, 333), question: str = QUESTION
) -> dict[str, float]:
    """Relative differences of the tower's features, of the tokens that the language model reads for the picture, and of
    the logits at the last four places of the prompt."""
    model = pipeline.model
    batch = pipeline.processor(question_about(question, [seeded.picture(*size)]))
    assert model.tower is not None
    assert batch.pixels is not None
    features = model.tower(batch.pixels).flatten(0, 1)
    tokens = model.encode(batch.pixels, batch.tiles).flatten(0, -2)
    logits, _ = model(batch.ids, pixels=batch.pixels, tiles=batch.tiles)
    return {
        "features": distance(features[::41, ::29], expected["features"]),
        "features_norm": distance(features.norm()[None], expected["features_norm"]),
        "tokens": distance(tokens[::61, :: step(tokens)], expected["tokens"]),
        "tokens_norm": distance(tokens.norm()[None], expected["tokens_norm"]),
        "logits": distance(logits[0, -4:, ::256], expected["logits"]),
    }


def step(tokens: Tensor) -> int:
    return 3 if tokens.shape[1] < 512 else 13


def prompt(pipeline: Pipeline, question: str = QUESTION, size: tuple[int, int] = (500, 333)) -> Batch:
    return pipeline.processor(question_about(question, [seeded.picture(*size)]))
