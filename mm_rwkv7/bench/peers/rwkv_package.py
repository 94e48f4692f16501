"""The pip package `rwkv`, BlinkDL's own inference code, without its CUDA extension: on the CPU that is how it runs."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mm_rwkv7.bench.peers import WrongPeerError
from mm_rwkv7.interop.blinkdl import theirs
from mm_rwkv7.rwkv7 import RWKV7

NAME = "pip rwkv"
TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.06}  # of logits over a few tokens, `||theirs - ours|| / ||ours||`
COMPARED = 24  # tokens
SETTINGS = {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}  # read when it is imported


def write_blinkdl(model: RWKV7, path: Path) -> None:
    """The weights as they are, under BlinkDL's names."""
    torch.save({name: tensor.cpu().clone() for name, tensor in theirs(model.state_dict()).items()}, path)


class RWKVPackage:
    """One precision of a model's file. Raises WrongPeerError where the package cannot be imported."""

    def __init__(self, path: Path, dtype: str, device: torch.device) -> None:
        self.name, self.dtype = f"{NAME} {dtype}", dtype
        with _quiet():
            self.model: Any = _package().RWKV(str(path.with_suffix("")), strategy=f"{device.type} {dtype}")
            self.empty = self.model.generate_zero_state()  # of the dtype of the model opened last, says the package
        self.generator = torch.Generator().manual_seed(0)

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.model.z.values())

    def decode(self, tokens: int) -> float:
        """Milliseconds a token, batch 1."""
        ids, state = self._ids(tokens), list(self.empty)
        began = time.perf_counter()
        for token in ids:
            logits, state = self.model.forward([token], state)
        float(logits[0])  # waits for the device
        return (time.perf_counter() - began) * 1000 / tokens

    def prefill(self, tokens: int) -> float:
        """Milliseconds for a text of so many tokens."""
        ids = self._ids(tokens)
        began = time.perf_counter()
        logits, _ = self.model.forward(ids, list(self.empty))
        float(logits[0])
        return (time.perf_counter() - began) * 1000

    def check(self, ours: RWKV7) -> None:
        """Compare the logits after a few tokens, read at once and one by one, with those of our model."""
        ids = self._ids(COMPARED)
        with torch.no_grad():
            expected = ours(torch.tensor([ids], device=ours.emb.weight.device))[0][0, -1].float().cpu()
        at_once, _ = self.model.forward(ids, list(self.empty))
        state = list(self.empty)
        for token in ids:
            one_by_one, state = self.model.forward([token], state)
        for how, found in (("at once", at_once), ("one by one", one_by_one)):
            off = distance(found.float().cpu(), expected)
            if not off <= TOLERANCE[self.dtype]:
                raise WrongPeerError(f"its logits over {COMPARED} tokens read {how} differ from ours by {off:.2g}")

    def _ids(self, tokens: int) -> list[int]:
        rows = len(self.model.z["emb.weight"])
        found: list[int] = torch.randint(rows, (tokens,), generator=self.generator).tolist()
        return found


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _package() -> ModuleType:
    """The package, which reads the environment when it is imported, and sets how torch computes for everybody."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    ours: list[tuple[object, str]] = [(cudnn, "benchmark"), (cudnn, "allow_tf32"), (cublas, "allow_tf32")]
    before = [getattr(where, name) for where, name in ours]
    environment = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        package = import_module("rwkv.model")
    except ImportError as error:
        raise WrongPeerError(f"the package rwkv cannot be imported: {error}") from error
    finally:
        for (where, name), value in zip(ours, before, strict=True):
            setattr(where, name, value)
        for variable, was in environment.items():
            if was is None:
                del os.environ[variable]
            else:
                os.environ[variable] = was
    if not hasattr(package, "RWKV_x070"):
        raise WrongPeerError("the package rwkv was imported before, for models older than RWKV-7")
    return package


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Stdout belongs to the results; the package speaks there."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
