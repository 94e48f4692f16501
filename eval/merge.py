"""`merge`: joins the predictions of several runs into the file that one run would have written."""

import re
from pathlib import Path

from eval import manifest, plan, predictions
from eval.files import read_jsonl, unique
from eval.task import Task
from mm_rwkv7.whole import write_text

SHARD = re.compile(r"predictions\.(\d+)-of-(\d+)\.jsonl")


def merge(task: Task, data: Path, out: Path) -> Path:
    """Join OUT/<task>/predictions.<i>-of-<n>.jsonl to predictions.jsonl, in the task's order. What was to be answered
    is told by the runs' manifests, or is everything. A ValueError names files and ids that are missing, come twice or
    do not belong, and manifests that differ."""
    folder = out / task.name
    files = _shards(folder)
    known = manifest.common(folder)
    samples = task.samples(data / task.folder)
    asked = samples if known is None else plan.subset(samples, known["limit"], known["seed"])
    records = unique(
        (record for path in files for record in read_jsonl(path, predictions.ORIGIN)),
        lambda record: record["id"].name(),
    )
    predictions.check_ids(folder, records, [sample.id for sample in asked], partial=False)
    target = folder / predictions.NAME
    write_text(target, "".join(predictions.line(records[sample.id].value) for sample in asked))
    if known is not None:
        manifest.agree(folder / manifest.NAME, known)
    return target


def _shards(folder: Path) -> list[Path]:
    """The files of all the runs that shared the work."""
    found = {
        path: match for path in sorted(folder.glob("predictions.*.jsonl")) if (match := SHARD.fullmatch(path.name))
    }
    if not found:
        raise ValueError(f"{folder}: there are no files predictions.<i>-of-<n>.jsonl to merge")
    counts = {int(match[2]) for match in found.values()}
    if len(counts) > 1:
        raise ValueError(
            f"{folder}: there are files of {' and of '.join(map(str, sorted(counts)))} runs; keep one of them"
        )
    (count,) = counts
    missing = [predictions.shard_name(predictions.NAME, (i, count)) for i in range(count)]
    missing = [name for name in missing if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: {len(missing)} of {count} files are missing: {', '.join(missing[:5])}")
    return list(found)
