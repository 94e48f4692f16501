"""What predictions were made with, written beside them, so that a run goes on only as it began."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import prompts
from eval.files import read_json
from eval.task import Sample, Task
from mm_rwkv7 import __version__
from mm_rwkv7.whole import write_text

if TYPE_CHECKING:
    from eval.run import Settings
    from mm_rwkv7.listening import Listener
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampling

NAME = "manifest.json"
SEVERAL = "manifest*.json"  # runs that share the work write one each
FORMAT = "mm-rwkv7-eval/1"
RECORDED_ONLY = ("versions", "model.name")  # may differ between runs that make one file
FOLLOWING = ("samples", "questions", "partial")  # from the other settings and from the task's files
LONGEST = 40  # characters of a value that is shown whole


def planned(
    task: Task, settings: "Settings", sampling: "Sampling", asked: Sequence[Sample], total: int
) -> dict[str, Any]:
    """What decides the predictions of `asked`, of `total` samples, but for the model."""
    return {
        "format": FORMAT,
        "task": task.name,
        "variant": task.variant,
        "mode": str(task.mode),
        "prompt": {"name": task.prompt, "sha256": prompts.digest(task.prompt)},
        "decoding": {
            "max_new_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        },
        "batch": settings.batch,
        "samples": len(asked),
        "questions": questions_digest(asked),
        "limit": settings.limit,
        "seed": settings.seed,
        "partial": len(asked) < total,
        "versions": {
            "mm-rwkv7": __version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }


def of_model(model: "Pipeline | Listener") -> dict[str, Any]:
    """What the model adds to that. It reads the whole model."""
    return {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "device": model.device.type,
        "dtype": _precision(model),
    }


def _precision(model: "Pipeline | Listener") -> str:
    """Of the weights; int8 keeps some in another."""
    import torch

    from mm_rwkv7.listening import Listener
    from mm_rwkv7.weights import INT8

    module = model.tagger if isinstance(model, Listener) else model.model.lm
    if any(tensor.dtype is torch.int8 for tensor in module.buffers()):
        return INT8
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def questions_digest(asked: Sequence[Sample]) -> str:
    """sha256 over the ids and what is asked."""
    lines = (json.dumps([sample.id, sample.question, *sample.choices]) for sample in asked)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check(folder: Path, fields: Mapping[str, Any]) -> None:
    """ValueError unless every manifest in `folder` says of `fields` the same."""
    for path in sorted(folder.glob(SEVERAL)):
        there, here = dict(_flat(read(path) or {})), dict(_flat(fields))
        differing = [
            name for name, value in here.items() if not name.startswith(RECORDED_ONLY) and there.get(name) != value
        ]
        if differing:
            causes = [name for name in differing if name not in FOLLOWING]
            shown = (f"{name} {_shown(there.get(name))}, now {_shown(here[name])}" for name in causes or differing)
            why = "" if causes else " (the task's files have changed)"
            raise ValueError(
                f"{path} is of another run: {'; '.join(shown)}{why}; to go on with that one, ask as it did; "
                f"for a new one, take another --out or delete {folder}"
            )


def _shown(value: object) -> str:
    """A value in an error; of a long one, such as a hash, the beginning."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return repr(f"{text[:12]}...") if len(text) > LONGEST else repr(value)


def agree(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a manifest, or make sure that it is there, beside others that say the same."""
    check(path.parent, fields)
    if not path.exists():
        write_text(path, json.dumps(fields, indent=1, ensure_ascii=False) + "\n")


def common(folder: Path) -> dict[str, Any] | None:
    """What all manifests in `folder` say; None where there is none. ValueError where they differ."""
    found = next((read(path) for path in sorted(folder.glob(SEVERAL))), None)
    check(folder, found or {})
    return found


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
