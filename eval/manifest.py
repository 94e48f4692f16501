"""What predictions were made with, written beside them, so that a run goes on only as it began."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import prompts
from eval.files import read_json
from eval.task import Sample, Task
from mm_rwkv7 import __version__

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampling

NAME = "manifest.json"
FORMAT = "mm-rwkv7-eval/1"
RECORDED_ONLY = ("versions", "model.name")  # may differ between runs that make one file


def describe(
    task: Task,
    pipeline: "Pipeline",
    sampling: "Sampling",
    asked: Sequence[Sample],
    total: int,
    batch: int,
    limit: int | None,
    seed: int,
) -> dict[str, Any]:
    """Everything that decides what the predictions of `asked`, of `total` samples, are."""
    return {
        "format": FORMAT,
        "task": task.name,
        "variant": task.variant,
        "mode": str(task.mode),
        "model": {"name": pipeline.name, "fingerprint": pipeline.fingerprint},
        "device": pipeline.device.type,
        "dtype": str(pipeline.model.lm.emb.weight.dtype).removeprefix("torch."),
        "prompt": {"name": task.prompt, "sha256": prompts.digest(task.prompt)},
        "decoding": {
            "max_new_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        },
        "batch": batch,
        "samples": len(asked),
        "questions": questions_digest(asked),
        "limit": limit,
        "seed": seed,
        "partial": len(asked) < total,
        "versions": {
            "mm-rwkv7": __version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }


def questions_digest(asked: Sequence[Sample]) -> str:
    """sha256 over the ids and what is asked."""
    lines = (json.dumps([sample.id, sample.question, *sample.choices]) for sample in asked)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def agree(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, or make sure that the one that is there says the same."""
    known = read(path)
    if known is None:
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, path)
        return
    there, here = dict(_flat(known)), dict(_flat(manifest))
    differing = [
        name for name in {**there, **here} if not name.startswith(RECORDED_ONLY) and there.get(name) != here.get(name)
    ]
    if differing:
        shown = "; ".join(f"{name} {there.get(name)!r:.40}, now {here.get(name)!r:.40}" for name in differing[:4])
        raise ValueError(f"{path} is of another run ({shown}); take another --out, or delete {path.parent}")


def read(path: Path) -> dict[str, Any] | None:
    """The manifest in a file; None where there is none."""
    if not path.exists():
        return None
    record = read_json(path, "`eval run`")
    if record["format"].text() != FORMAT:
        raise record.error(f"expected a manifest of format {FORMAT!r}")
    found: dict[str, Any] = record.value
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
