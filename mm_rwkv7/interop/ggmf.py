"""ggmf version 101, the files of rwkv.cpp (FILE_FORMAT.md there): a header of six int32, then tensor after tensor.

rwkv.cpp keeps BlinkDL's names, but joins the six token-shift mixes into `att.x_rwkvag` and transposes the low-rank
matrices; `read` undoes both.
"""

import math
import mmap
import re
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAGIC = b"fmgg"
VERSION = 101
HEADER = 24  # bytes
TYPES = (
    *("FP32", "FP16", "Q4_0", "Q4_1", "Q4_1_O", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"),
)
NUMBERS = ("<f4", "<f2")  # of the first two; the others are quantised
LOW_RANK = re.compile(r"\.att\.[wavg][12]$")
MIXES = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")
MOST_DIMENSIONS, LONGEST_NAME = 4, 256


def read(path: Path) -> dict[str, Tensor]:
    """The tensors under BlinkDL's names and in his layout, memory-mapped where the file's alignment allows.
    Quantised files are refused by the name of their type."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if len(data) < HEADER:
        raise ValueError(f"{path} is a truncated ggmf file: its header is not whole")
    _, version, _, _, _, kind = struct.unpack_from("<6i", data)
    if version != VERSION:
        raise ValueError(f"{path} is a ggmf file of version {version}, expected {VERSION}")
    _check_type(path, "the file", kind)
    tensors: dict[str, Tensor] = {}
    at = HEADER
    while at < len(data):
        name, tensor, at = _tensor(path, data, at)
        if name.endswith(".x_rwkvag") and tensor.shape[0] == len(MIXES):
            before = name.removesuffix("x_rwkvag")
            tensors |= {before + mix: row[None].clone() for mix, row in zip(MIXES, tensor, strict=True)}
        else:
            tensors[name] = tensor.t() if LOW_RANK.search(name) and tensor.ndim == 2 else tensor
    return tensors


def _tensor(path: Path, data: mmap.mmap, at: int) -> tuple[str, Tensor, int]:
    """The name, the tensor at byte `at`, and where the next one begins."""
    try:
        dimensions, length, kind = struct.unpack_from("<3i", data, at)
        if not (0 < dimensions <= MOST_DIMENSIONS and 0 < length <= LONGEST_NAME):
            raise ValueError(f"{path} is not a whole ggmf file: no tensor begins at byte {at}")
        shape = struct.unpack_from(f"<{dimensions}i", data, at + 12)[::-1]
        begin = at + 12 + 4 * dimensions
        name = data[begin : begin + length].decode("utf-8", errors="replace")
        _check_type(path, name, kind)
    except struct.error as error:
        raise ValueError(f"{path} is a truncated ggmf file: it ends inside a tensor's header") from error
    number, begin, count = np.dtype(NUMBERS[kind]), begin + length, math.prod(shape)
    end = begin + count * number.itemsize
    if min(shape) < 1 or end > len(data):
        raise ValueError(f"{path} is a truncated ggmf file: {name} with shape {shape} does not fit")
    values = np.frombuffer(data, number, count, begin).reshape(shape)
    return name, torch.from_numpy(values if values.flags.aligned else values.copy()), end


def _check_type(path: Path, what: str, kind: int) -> None:
    if not 0 <= kind < len(NUMBERS):
        name = TYPES[kind] if 0 <= kind < len(TYPES) else f"type {kind}"
        raise ValueError(f"{path}: {what} is stored as {name}, expected FP32 or FP16: quantised files are not read")
