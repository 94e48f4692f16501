"""The recurrence alone, as others compute it on CUDA: RWKV-LM's trainer, wind_rwkv, flash-linear-attention.

B batch, T time, H heads, N head size. All of them read bf16 and want T to be a multiple of 16.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.bench.peers import Unmeasured, WrongPeerError, checkout
from mm_rwkv7.ops import wkv7_reference
from mm_rwkv7.ops.sequences import Inputs

DECAY_SCALE = math.exp(-0.5)
CHUNK = 16  # steps between the states that RWKV-LM's kernels keep
# ||theirs - ours|| / ||ours||: all their inputs are bf16, the decay among them, and it is what gradients feel most.
TOLERANCE = {"y": 0.02, "r": 0.03, "log_w": 0.1, "k": 0.03, "v": 0.03, "a": 0.03, "b": 0.03}


@dataclass(frozen=True)
class OperatorPeer:
    """`own` turns (r, log_w, k, v, a, b), each (B, T, H, N) as in `wkv7`, into what it reads, differentiably; `run`
    computes y (B, T, H, N) from that. Only `run` and its backward are timed."""

    name: str
    own: Callable[[Inputs], Inputs]
    run: Callable[..., Tensor]

    def check(self, device: torch.device, N: int) -> None:
        """Compare y and every gradient with the reference loop's; WrongPeerError says what is off."""
        inputs = random_inputs(2, 4 * CHUNK, 2, N, device)
        d_y = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])
        y = self.run(*self.own(inputs))
        expected, _ = wkv7_reference(*inputs)
        pairs = [("y", y, expected)]
        gradients = torch.autograd.grad(y, inputs, d_y.to(y.dtype)), torch.autograd.grad(expected, inputs, d_y)
        pairs += zip(list(TOLERANCE)[1:], *gradients, strict=True)
        for name, found, wanted in pairs:
            off = float((found.detach().float() - wanted.detach()).norm() / wanted.detach().norm())
            if not off <= TOLERANCE[name]:
                what = "y" if name == "y" else f"its gradient of {name}"
                raise WrongPeerError(f"{what} differs from the reference by {off:.2g}")


def random_inputs(B: int, T: int, H: int, N: int, device: torch.device, seed: int = 0) -> Inputs:
    """r, log_w, k, v, a, b as a model might give them, fp32 leaves that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    r, k, v, direction, w_raw, iclr_raw = torch.randn(6, B, T, H, N, generator=generator).to(device)
    kappa = F.normalize(direction, dim=-1)
    log_w = -DECAY_SCALE * torch.sigmoid(w_raw)
    r, log_w, k, v, a, b = (x.requires_grad_() for x in (r, log_w, k, v, -kappa, kappa * torch.sigmoid(iclr_raw)))
    return r, log_w, k, v, a, b


def operator_peers(folder: Path | None, device: torch.device, N: int) -> tuple[list[OperatorPeer], list[Unmeasured]]:
    """The peers that run on a device and agree with the reference there, and why the others do not.

    `folder` is `--peers`; wind_rwkv and fla are found where they are installed, too.
    """
    found: list[OperatorPeer] = []
    missing: list[Unmeasured] = []
    for name, open_peer in PEERS.items():
        try:
            if device.type != "cuda":
                raise WrongPeerError("no CUDA device")
            peer = open_peer(folder, N)
            peer.check(device, N)
        except (WrongPeerError, ImportError, OSError, RuntimeError, AssertionError, TypeError) as error:
            missing.append(Unmeasured(name, " ".join(f"{error}".split())[:300] or type(error).__name__))
        else:
            found.append(peer)
    return found, missing


def rwkv_lm(name: str, kernels: Any) -> OperatorPeer:
    """The reference trainer's kernels, which read the decay before its sigmoid and keep a state every 16 steps."""

    def own(inputs: Inputs) -> Inputs:
        r, log_w, k, v, a, b = inputs
        return _bf16((r, torch.logit(-log_w / DECAY_SCALE, eps=1e-6), k, v, a, b))

    return OperatorPeer(name, own, partial(_Clamped.apply, kernels))


class _Clamped(torch.autograd.Function):
    """The calls of RWKV7_CLAMPW_CUDA_OP (RWKV-LM, RWKV-v7/train_temp/src/model.py), which cannot be imported alone."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, *inputs: Tensor) -> Tensor:
        B, T, H, N = inputs[0].shape
        if T % CHUNK:
            raise WrongPeerError(f"it wants T to be a multiple of {CHUNK}, got {T}")
        y = torch.empty_like(inputs[3])
        states = y.new_empty(B, H, T // CHUNK, N, N, dtype=torch.float32)
        removed = y.new_empty(B, T, H, N, dtype=torch.float32)
        kernels.forward(*inputs, y, states, removed)
        ctx.kernels = kernels
        ctx.save_for_backward(*inputs, states, removed)
        return y

    @staticmethod
    def backward(ctx: Any, *d_y: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states, removed = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in inputs]
        ctx.kernels.backward(*inputs, d_y[0].contiguous(), states, removed, *gradients)
        return None, *gradients


def wind(attention: Callable[..., tuple[Tensor, Tensor]]) -> OperatorPeer:
    """wind_rwkv's chunked kernel, whose w gives the decay exp(-exp(w)); inputs and state in bf16."""

    def own(inputs: Inputs) -> Inputs:
        r, log_w, k, v, a, b = inputs
        return _bf16((r, torch.log(-log_w), k, v, a, b))

    return OperatorPeer(WIND, own, lambda *inputs: attention(*inputs)[0])


def fla(chunk_rwkv7: Callable[..., tuple[Tensor, Tensor | None]]) -> OperatorPeer:
    """flash-linear-attention's kernel with the options that its own layer sets (fla/layers/rwkv7.py)."""
    options = {"scale": 1.0, "safe_gate": True, "lower_bound": -DECAY_SCALE, "chunk_size": 64}
    return OperatorPeer(FLA, _bf16, lambda *inputs: chunk_rwkv7(*inputs, **options)[0])


def _open_rwkv_lm(name: str, source: str, folder: Path | None, N: int) -> OperatorPeer:
    if folder is None:
        raise WrongPeerError("it comes from a checkout: --peers names a folder with one")
    cuda = Path("RWKV-v7/train_temp/cuda")
    home = checkout(folder, str(cuda / f"{name}.cpp")) / cuda
    if N != 64:
        raise WrongPeerError(f"it is for head size 64, got {N}")
    from torch.utils.cpp_extension import load

    # Flags of its own model.py.
    optimise = ["--use_fast_math", "-O3", "-Xptxas -O3", "--extra-device-vectorization"]
    flags = [f"-D_N_={N}", f"-D_CHUNK_LEN_={CHUNK}", *optimise]
    load(name, [str(home / source), str(home / f"{name}.cpp")], extra_cuda_cflags=flags, is_python_module=False)
    return rwkv_lm(f"RWKV-LM {name}", getattr(torch.ops, name))


def _open_wind(folder: Path | None, N: int) -> OperatorPeer:
    with _importable(folder, "wind_rwkv/rwkv7/__init__.py"):
        kernels = import_module("wind_rwkv.rwkv7")
    kernels.load_chunked_cuda(N)
    return wind(kernels.attn_chunked_cuda)


def _open_fla(folder: Path | None, N: int) -> OperatorPeer:
    with _importable(folder, "fla/ops/rwkv7/__init__.py"):
        return fla(import_module("fla.ops.rwkv7").chunk_rwkv7)


@contextmanager
def _importable(folder: Path | None, marker: str) -> Iterator[None]:
    """With a checkout that has this file first among the places that modules come from; else what is installed."""
    before = list(sys.path)
    try:
        if folder is not None:
            sys.path.insert(0, str(checkout(folder, marker)))
    except WrongPeerError:
        pass  # then the installed one, whose absence is an ImportError
    try:
        yield
    finally:
        sys.path[:] = before


def _bf16(inputs: Inputs) -> Inputs:
    r, log_w, k, v, a, b = (x.to(torch.bfloat16).contiguous() for x in inputs)
    return r, log_w, k, v, a, b


WIND, FLA = "wind_rwkv chunked", "fla chunk_rwkv7"
PEERS: dict[str, Callable[[Path | None, int], OperatorPeer]] = {
    "RWKV-LM rwkv7_clampw": partial(_open_rwkv_lm, "rwkv7_clampw", "rwkv7_clampw.cu"),
    "RWKV-LM rwkv7_clampw_v3": partial(_open_rwkv_lm, "rwkv7_clampw_v3", "rwkv7_clampw_v3_for_h100.cu"),
    WIND: _open_wind,
    FLA: _open_fla,
}
