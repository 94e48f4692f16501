"""What a checkpoint holds, told from its tensors' names, shapes and types alone."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from mm_rwkv7 import checkpoint
from mm_rwkv7.interop.files import read
from mm_rwkv7.interop.opening import open_stored
from mm_rwkv7.interop.taggers import open_tagger, tagger_format
from mm_rwkv7.listening import without_weights
from mm_rwkv7.sources import locate
from mm_rwkv7.weights import DTYPES


@dataclass(frozen=True)
class Part:
    """One part of a model: how many parameters, and in which precisions they are stored, the commonest first."""

    parameters: int
    dtype: str


@dataclass(frozen=True)
class Inspected:
    """`config` and `template` are those of `MMConfig`; `parts` are the language model, the tower and its projector, and
    what a model hears with: `sound.encoder`, `sound.projector` and `sound.head`. Of a tagger, which has no words, the
    `config` is that of `TaggerConfig`, the template is empty, and the parts are `encoder` and `head`."""

    format: str
    config: dict[str, Any]
    parts: dict[str, Part]
    template: dict[str, Any]

    def table(self) -> str:
        sizes = self.config.get("lm") or self.config["encoder"]
        rows = [
            ("format", self.format),
            ("sizes", _listed(sizes)),
            *((name, f"{part.parameters:,} parameters, {part.dtype}") for name, part in self.parts.items()),
            *(self._model() if "lm" in self.config else [("sound", _sound(self.config))]),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {said}" for name, said in rows)

    def _model(self) -> list[tuple[str, str]]:
        """What is said of a model with words beside its parts."""
        towers = (self.config["tower"] or {}).get("towers", [self.config["tower"]])
        rows = [("tower", tower.get("name") or tower["kind"]) for tower in towers if tower]
        if self.config["sound"]:
            rows.append(("sound", _sound(self.config["sound"])))
        vocabulary = self.config["vocabulary"]
        kept = f", {len(vocabulary)} ids kept" if vocabulary else ""
        rows.append(("tokenizer", f"{self.config['tokenizer'] or 'unknown'}{kept}"))
        rows.append(("template", ", ".join(f"{name} {value!r}" for name, value in self.template.items())))
        return rows


def inspected(model: str) -> Inspected:
    """Open a checkpoint and count. Raises ValueError where it is none."""
    stored = read(locate(model))
    if (format := tagger_format(stored)) is not None:
        tagger = open_tagger(stored, format)
        return Inspected(tagger.format, asdict(tagger.config), _parts(without_weights(tagger), tagger.tensors), {})
    opened = open_stored(stored)
    parts = _parts(checkpoint.without_weights(opened), opened.tensors)
    return Inspected(opened.format, asdict(opened.config), parts, asdict(opened.config.template))


def _parts(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in tensors.items():
        if name in parameters:  # a norm's running statistics are none
            counts[_part(name)][names.get(tensor.dtype, str(tensor.dtype))] += tensor.numel()
    return {
        part: Part(sum(by_type.values()), ", ".join(sorted(by_type, key=by_type.__getitem__, reverse=True)))
        for part, by_type in counts.items()
    }


def _part(name: str) -> str:
    """Of a tensor's name, what says to which part it belongs."""
    return ".".join(name.split(".")[: 2 if name.startswith("sound.") else 1])


def _listed(sizes: Mapping[str, Any]) -> str:
    """The numbers of a config, and not what is a config again."""
    plain = {name: value for name, value in sizes.items() if value is not None and not isinstance(value, Mapping)}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _sound(config: Mapping[str, Any]) -> str:
    return f"{config['encoder']['kind']}, {len(config['labels']) or 'no'} labels"
