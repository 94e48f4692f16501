"""What a checkpoint holds, told from its tensors' names, shapes and types alone."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from mm_rwkv7 import checkpoint
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.weights import DTYPES, locate


@dataclass(frozen=True)
class Part:
    """One part of a model: how many parameters, and in which precisions they are stored, the commonest first."""

    parameters: int
    dtype: str


@dataclass(frozen=True)
class Inspected:
    """`config` and `template` are those of `MMConfig`; `parts` are the language model, the tower and its projector, and
    what a model hears with: `sound.encoder`, `sound.projector` and `sound.head`."""

    format: str
    config: dict[str, Any]
    parts: dict[str, Part]
    template: dict[str, Any]

    def table(self) -> str:
        lm, sound = self.config["lm"], self.config["sound"]
        rows = [
            ("format", self.format),
            ("sizes", ", ".join(f"{name} {value}" for name, value in lm.items() if value is not None)),
            *((name, f"{part.parameters:,} parameters, {part.dtype}") for name, part in self.parts.items()),
        ]
        towers = (self.config["tower"] or {}).get("towers", [self.config["tower"]])
        rows += [("tower", tower.get("name") or tower["kind"]) for tower in towers if tower]
        if sound:
            rows.append(("sound", f"{sound['encoder']['kind']}, {len(sound['labels']) or 'no'} labels"))
        vocabulary = self.config["vocabulary"]
        kept = f", {len(vocabulary)} ids kept" if vocabulary else ""
        rows.append(("tokenizer", f"{self.config['tokenizer'] or 'unknown'}{kept}"))
        rows.append(("template", ", ".join(f"{name} {value!r}" for name, value in self.template.items())))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {said}" for name, said in rows)


def inspected(model: str) -> Inspected:
    """Open a checkpoint and count. Raises ValueError where it is none."""
    opened = open_checkpoint(locate(model))
    names = {dtype: name for name, dtype in DTYPES.items()}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    parameters = {name for name, _ in checkpoint.without_weights(opened).named_parameters()}
    for name, tensor in opened.tensors.items():
        if name in parameters:  # a norm's running statistics are none
            counts[_part(name)][names.get(tensor.dtype, str(tensor.dtype))] += tensor.numel()
    parts = {
        part: Part(sum(by_type.values()), ", ".join(sorted(by_type, key=by_type.__getitem__, reverse=True)))
        for part, by_type in counts.items()
    }
    return Inspected(opened.format, asdict(opened.config), parts, asdict(opened.config.template))


def _part(name: str) -> str:
    """Of a tensor's name, what says to which part it belongs."""
    return ".".join(name.split(".")[: 2 if name.startswith("sound.") else 1])
