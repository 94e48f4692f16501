"""Official files as the tests write them, and what is asked of every reader of such files."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval import files
from eval.task import Sample, Task


def write(path: Path, value: Any) -> None:
    """`value` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """`rows` as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def draw(samples: Sequence[Sample]) -> None:
    """Tiny pictures where `samples` expect them."""
    for path in {path for sample in samples for path in sample.images}:
        assert isinstance(path, Path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "white").save(path)


def check_samples(task: Task, data: Path, count: int) -> dict[str, Sample]:
    """The samples by id, after what holds for all tasks was checked: number, ids, fixed order, pictures named."""
    samples = task.samples(data)
    found = {sample.id: sample for sample in samples}
    assert len(samples) == len(found) == count
    assert list(task.samples(data)) == list(samples)
    with pytest.raises(ValueError, match="missing"):
        files.check_media(samples)
    draw(samples)
    files.check_media(samples)
    clusters = [sample.cluster for sample in samples if sample.cluster]
    changes = sum(a != b for a, b in pairwise(clusters))
    assert changes == max(len(set(clusters)) - 1, 0), "questions on one picture stand apart"
    return found


def check_scores(task: Task, data: Path, predictions: Mapping[str, str], expected: Mapping[str, float]) -> None:
    """`task` gives the predictions these metrics, and the mean over samples is the headline."""
    scores = task.score(data, predictions)
    for name, value in expected.items():
        assert scores.metrics[name] == pytest.approx(value, abs=1e-9), name
    if scores.main not in scores.corpus:
        mean = sum(scores.per_sample.values()) / len(scores.per_sample)
        assert scores.metrics[scores.main] == pytest.approx(mean, abs=0.005001)  # some official means are rounded


def check_refusals(task: Task, data: Path, file: str) -> None:
    """A file that is a web page, no JSON or not there is refused by name; for a missing one its origin is told."""
    path = data / file
    for content, message in (("<!DOCTYPE html><p>Sign in", "web page"), ('{"data": [', "not JSON")):
        path.write_text(content, "utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            task.samples(data)
        assert path.name in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing; it comes from .*https://"):
        task.samples(data)


def check_record_refusal(task: Task, data: Path, message: str) -> None:
    """A record is refused with these words by whatever reads it first."""
    with pytest.raises(ValueError, match=message):
        task.score(data, {sample.id: "yes" for sample in task.samples(data)})
