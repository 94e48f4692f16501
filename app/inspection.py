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
    """`config` and `template` are those of `MMConfig`; `parts` are the language model, towers and projectors."""

    format: str
    config: dict[str, Any]
    parts: dict[str, Part]
    template: dict[str, Any]

    def table(self) -> str:
        lm = self.config["lm"]
        sizes = ", ".join(f"{name} {value}" for name, value in lm.items() if value is not None)
        lines = [f"format     {self.format}", f"sizes      {sizes}"]
        for name, part in self.parts.items():
            lines.append(f"{name:10} {part.parameters:,} parameters, {part.dtype}")
        towers = (self.config["tower"] or {}).get("towers", [self.config["tower"]])
        lines += [f"tower      {tower.get('name') or tower['kind']}" for tower in towers if tower]
        vocabulary = self.config["vocabulary"]
        kept = f", {len(vocabulary)} ids kept" if vocabulary else ""
        lines.append(f"tokenizer  {self.config['tokenizer'] or 'unknown'}{kept}")
        lines.append("template   " + ", ".join(f"{name} {value!r}" for name, value in self.template.items()))
        return "\n".join(lines)


def inspected(model: str) -> Inspected:
    """Open a checkpoint and count. Raises ValueError where it is none."""
    opened = open_checkpoint(locate(model))
    names = {dtype: name for name, dtype in DTYPES.items()}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    parameters = {name for name, _ in checkpoint.without_weights(opened).named_parameters()}
    for name, tensor in opened.tensors.items():
        if name in parameters:  # a norm's running statistics are none
            counts[name.partition(".")[0]][names.get(tensor.dtype, str(tensor.dtype))] += tensor.numel()
    parts = {
        part: Part(sum(by_type.values()), ", ".join(sorted(by_type, key=by_type.__getitem__, reverse=True)))
        for part, by_type in counts.items()
    }
    return Inspected(opened.format, asdict(opened.config), parts, asdict(opened.config.template))
