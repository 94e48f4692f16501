"""How likely each choice of a sample is as its answer, pictures and sounds read once for all that ask about them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eval.plan import same_media
from eval.run import open_source
from eval.task import Sample

if TYPE_CHECKING:
    from mm_rwkv7.likelihood import Likelihood
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.state import State


def choose(pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
    """The logarithm of each choice's probability as the whole answer, the end of its turn included."""
    for sample, state in with_state(pipeline, samples):
        yield [one.total for one in choices(pipeline, sample, state)]


def choices(pipeline: "Pipeline", sample: Sample, state: "State | None") -> "list[Likelihood]":
    """The choices of a sample, asked from `state`."""
    return pipeline.likelihood([{"role": "user", "content": sample.question}], sample.choices, state)


def with_state(pipeline: "Pipeline", samples: Sequence[Sample]) -> "Iterator[tuple[Sample, State | None]]":
    """Each sample with the state after its pictures and sounds, which neighbours with equal ones share; None where it
    has neither."""
    for group in same_media(samples):
        parts = [{"type": "image", "image": open_source(image)} for image in group[0].images]
        parts += [{"type": "audio", "audio": open_source(sound)} for sound in group[0].sounds]
        state = pipeline.prefill([{"role": "user", "content": parts}]) if parts else None
        for sample in group:
            yield sample, state


def best(prediction: Sequence[float]) -> int:
    """The place of the greatest number; of equal ones the first."""
    return max(range(len(prediction)), key=prediction.__getitem__)
