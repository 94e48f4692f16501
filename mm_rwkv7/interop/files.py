"""Tensors out of any file, safely: nothing in the file is executed, nothing is believed that its size contradicts, and
weights stay in the file (memory-mapped) until they are used."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_rwkv7.interop import ggmf

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


def read(path: Path) -> Stored:
    """The tensors of a file (torch, safetensors, ggmf) or of a folder that holds one model. Raises ValueError."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    container, tensors = _read_file(path)
    _check(path, tensors)
    return Stored(path, tensors, container, _config(path.parent) if container == "safetensors" else {})


def _read_folder(folder: Path) -> Stored:
    tensors: dict[str, Tensor] = {}
    container = ""
    for path in _files(folder):
        if not path.is_file():
            raise ValueError(f"{folder} is not a whole checkpoint: {path.name} is missing")
        container, part = _read_file(path)
        _check(path, part)
        tensors |= part
    return Stored(folder, tensors, container, _config(folder))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return _json(path) if path.is_file() else {}


def _files(folder: Path) -> list[Path]:
    """The files that hold a folder's model."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise ValueError(f"{index} has no weight_map from names to files")
        if outside := sorted({name for name in named.values() if Path(name).name != name}):
            raise ValueError(f"{index} names {outside[0]!r}, expected files beside it")
        return [folder / name for name in sorted(set(named.values()))]
    if (folder / "config.json").is_file() and not list(folder.glob("*.pth")) + list(folder.glob("*.bin")):
        return [folder / "model.safetensors"]
    for pattern in ("*.safetensors", "*.pth", "*.bin"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{folder} holds {len(found)} checkpoints ({found[0].name}, ...): name one of them")
        if found:
            return found
    raise ValueError(f"{folder} holds no model: expected model.safetensors with config.json, or one .pth file")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _read_file(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind of file, which its first bytes tell, and its tensors."""
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
        named = re.search(r"(?:GLOBAL|Trying to load) ([\w.]+)", str(error))
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
