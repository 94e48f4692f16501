"""Tensors out of any file, safely: nothing in the file is executed, nothing is believed that its size contradicts, and
weights stay in the file (memory-mapped) until they are used."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_rwkv7.interop import ggmf
from mm_rwkv7.interop.naming import CONFIG, HALVES, INDEX, SHARD, one_model, other_half, read_object, shards

MODEL_TYPE = "mm_rwkv7"
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
FOREIGN = {
    b"version https://git-lfs": "a git-lfs pointer, not the weights it points to: fetch them with `git lfs pull`",
    b"GGUF": "a GGUF file of llama.cpp, which is not supported",
    b"lmgg": "an old ggml file, expected ggmf of version 101 in FP32 or FP16",
    b"tjgg": "a ggjt file of llama.cpp, which is not supported",
}
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)


@dataclass(frozen=True)
class Stored:
    """What a file or folder holds, under its own names: `tensors` (memory-mapped), the kind of file that they lie in
    (torch, safetensors or ggmf), and what the `config.json` beside safetensors says (empty where there is none)."""

    path: Path
    tensors: Mapping[str, Tensor]
    container: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_native(self) -> bool:
        """Whether it is a checkpoint of this project."""
        return str(self.config.get("format")).startswith("mm-rwkv7/")

    @property
    def is_exported(self) -> bool:
        """Whether `mm_rwkv7.hf` wrote it for transformers."""
        return self.config.get("model_type") == MODEL_TYPE


def read(path: Path, joined: bool = True) -> Stored:
    """The tensors of a file (torch, safetensors, ggmf), or of all the files of a model that is named by its folder, its
    index or, unless they are not to be `joined`, either half of an export. Raises ValueError."""
    if path.is_dir():
        names = {file.name for file in path.iterdir() if not file.is_dir()}
        held = one_model(path, names - set(shards(path / INDEX)) if INDEX in names else names)[-1]
        stored = read(path / held)
        return replace(stored, path=path) if stored.container == "safetensors" else stored
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.name == INDEX:
        return _read_shards(path)
    if joined and (pair := _pair(path)) is not None:
        return _joined(*pair)
    _refuse_shard(path)
    container, tensors = _read_file(path)
    return Stored(path, tensors, container, _config(path.parent) if container == "safetensors" else {})


def _read_shards(index: Path) -> Stored:
    folder = index.parent
    tensors: dict[str, Tensor] = {}
    for name in shards(index):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a whole checkpoint: {name} is missing")
        tensors |= _read_file(folder / name)[1]
    return Stored(folder, tensors, "safetensors", _config(folder))


def _refuse_shard(path: Path) -> None:
    index = path.with_name(INDEX)
    if index.is_file() and len(listed := shards(index)) > 1 and path.name in listed:
        raise ValueError(f"{path} is one of {len(listed)} shards of a model: name its index, {index}, or the folder")
    if SHARD.fullmatch(path.name) and not index.is_file():
        raise ValueError(f"{path} is one shard of a model, and its index, {INDEX}, is not beside it")


def _pair(path: Path) -> tuple[Path, Path] | None:
    """Both files of an export, given one of them; None where it is not half of one. A file that is named like the
    language model of one may be alone."""
    if (other := other_half(path.name)) is None:
        return None
    beside = path.with_name(other)
    if path.name.endswith(HALVES[0]):
        return (path, beside) if beside.is_file() else None
    if not beside.is_file():
        raise ValueError(f"{path} is half of an export: {other} is missing beside it")
    return beside, path


def _joined(language: Path, visual: Path) -> Stored:
    """As one file would hold it, with the language model behind `rwkv.`."""
    container, seen = _read_file(visual)
    text = {f"rwkv.{name}": tensor for name, tensor in _read_file(language)[1].items()}
    return Stored(visual, {**text, **seen}, container)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_object(path) if path.is_file() else {}


def _read_file(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind of file, and its tensors."""
    container, tensors = _parsed(path)
    _check(path, tensors)
    return container, tensors


def _parsed(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind of file, which its first bytes tell, and the tensors that it claims to hold."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        raise ValueError(f"{path} is empty")
    if WEB_PAGE.match(head):
        raise ValueError(f"{path} is a web page, not a checkpoint: the download went to a page about the file")
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is {what}")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return "safetensors", _read_safetensors(path, head)
    if head.startswith((ZIP, PICKLE)):
        return "torch", _read_torch(path, mapped=head.startswith(ZIP))
    if head.startswith(ggmf.MAGIC):
        return "ggmf", ggmf.read(path)
    raise ValueError(f"{path} is no checkpoint: it begins with {head[:8]!r}, expected torch, safetensors or ggmf")


def _read_safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    size, header = path.stat().st_size, int.from_bytes(head[:8], "little")
    if size < 8 or header > size - 8:
        raise ValueError(f"{path} is not a safetensors file: its header claims {header} bytes, the file has {size}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _read_torch(path: Path, mapped: bool) -> dict[str, Tensor]:
    """What `torch.save` wrote. Files from before torch 1.6 (`mapped` is False) cannot be memory-mapped."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a hostile pickle can fail in any way
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it wants to run {named[1]}, and nothing was run" if named else str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is not a torch checkpoint of tensors: {reason}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, expected a dictionary of tensors")
    if others := [name for name, value in found.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        what = type(found[others[0]]).__name__
        raise ValueError(f"{path} holds {what} under {others[0]!r:.80}, expected tensors only")
    return found


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors that are larger than their file, as views of stride 0 can be, would fill the memory when they are copied.
    A file may hold one tensor under two names, so together they may have twice its size."""
    size = os.path.getsize(path)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is sparse or quantised, expected a plain tensor")
        if tensor.is_meta:
            raise ValueError(f"{path}: {name} has a shape but no numbers")
        if tensor.numel() * tensor.element_size() > size:
            raise ValueError(f"{path}: {name} claims shape {tuple(tensor.shape)}, more than the file's {size} bytes")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * size:
        raise ValueError(f"{path}: its tensors claim more than twice the file's {size} bytes")
