"""`score`: judges predictions by a task's rules. It needs the predictions and the official files, and no model."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import manifest, predictions, statistics
from eval.task import Sample, Scores, Task
from mm_rwkv7.whole import write_text

NAME = "scores.json"
JUDGED = "judged.jsonl"


def score(task: Task, data: Path, out: Path, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """Score OUT/<task>/predictions.jsonl into scores.json and, sample by sample, judged.jsonl beside it; returns what
    scores.json holds. For a task whose answers are not public, write the file for its server instead.

    Missing predictions are an error unless `partial`, or the run was limited, as its manifest says.
    """
    folder, source = out / task.name, data / task.folder
    path = folder / predictions.NAME
    predicted = predictions.read(path, task.mode)
    all_samples = task.samples(source)
    known = manifest.read(folder / manifest.NAME)
    partial = partial or bool(known and known["partial"])
    predictions.check_ids(path, predicted, [sample.id for sample in all_samples], partial)
    samples = [sample for sample in all_samples if sample.id in predicted]
    judged = task.score(source, predicted) if task.scored_here else None
    per_sample = {} if judged is None else judged.per_sample
    counted = [sample for sample in samples if sample.id in per_sample] if per_sample else samples
    described: dict[str, Any] = {
        "task": task.name,
        "variant": task.variant,
        "mode": str(task.mode),
        "main": None if judged is None else judged.main,
        "metrics": {} if judged is None else dict(judged.metrics),
        "stderr": {} if judged is None else errors(judged, counted, seed),
        "n": len(counted),
        "partial": len(samples) < len(all_samples),
        "ids": ids_digest(counted),
        "model": known and known["model"],
        "breakdown": {} if judged is None else {name: dict(rows) for name, rows in judged.breakdown.items()},
        "notes": [] if judged is None else list(judged.notes),
    }
    submission = task.submission(source, predicted) if not described["partial"] else None
    if submission is not None:
        name, text = submission
        write_text(folder / name, text)
        described["submission"] = name
        described["notes"].append(f"{name} is for the official server")
    elif not task.scored_here:
        described["notes"].append("the answers are not public, and the official server wants every question answered")
    write_text(folder / JUDGED, "".join(_judged_line(sample, per_sample) for sample in samples))
    write_text(folder / NAME, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    return described


def errors(judged: Scores, samples: Sequence[Sample], seed: int) -> dict[str, float]:
    """Standard errors by name, over the `samples` that count: of the main metric `plain` and `clustered`, where it is a
    mean; of metrics of a whole corpus `<metric>_bootstrap`."""
    clusters = clusters_of(samples)
    found: dict[str, float] = {}
    if judged.per_sample and judged.main not in judged.corpus:
        found["plain"] = statistics.standard_error(list(judged.per_sample.values()))
        found["clustered"] = statistics.clustered_error(judged.per_sample, clusters)
    for name, metric in judged.corpus.items():
        found[f"{name}_bootstrap"] = statistics.bootstrap_error(metric, clusters, seed)
    return found


def clusters_of(samples: Sequence[Sample]) -> dict[str, str]:
    """id -> cluster; a sample without one is a cluster of its own."""
    return {sample.id: f"c{sample.cluster}" if sample.cluster else f"s{sample.id}" for sample in samples}


def ids_digest(samples: Sequence[Sample]) -> str:
    """sha256 over the sorted ids: equal where equal questions were scored."""
    return hashlib.sha256("\n".join(sorted(sample.id for sample in samples)).encode()).hexdigest()


def _judged_line(sample: Sample, per_sample: Mapping[str, float]) -> str:
    return predictions.line({"id": sample.id, "score": per_sample.get(sample.id), "cluster": sample.cluster})
