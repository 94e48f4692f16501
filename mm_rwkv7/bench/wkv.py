"""The recurrence alone on the CPU in fp32: the C kernel, chunks in torch, and the reference loop.

B batch, T time, H heads, N head size, C steps in a chunk or a piece.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mm_rwkv7.bench.timing import time_in_turns
from mm_rwkv7.ops import wkv7, wkv7_reference
from mm_rwkv7.ops.backends import reason_against
from mm_rwkv7.ops.chunked import CHUNK, wkv7_chunked

HELP = "the WKV-7 recurrence: forward, and forward with backward, of each path"
PIECE = 16  # steps that kernels/wkv7.c takes together
Path = Callable[..., tuple[Tensor, Tensor]]


def add_arguments(parser: ArgumentParser) -> None:
    for name, default, meaning in (
        ("T", 1024, "steps"),
        ("H", 12, "heads"),
        ("N", 64, "head size"),
        ("B", 1, "batch"),
        ("rounds", 7, "measurements of each path, at least 2"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default {default})")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row per path: times with spread, how many times faster than the reference, and what had to be done. Without
    a C compiler, or at a head size that the kernel does not know, there is no row for it."""
    sizes = {name: getattr(arguments, name) for name in ("B", "T", "H", "N")}
    for name, least in (*((name, 1) for name in sizes), ("rounds", 2)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}, expected {least} or more")
    inputs = _inputs(**sizes)
    d_y = torch.randn_like(inputs[0])
    paths = _paths(arguments.N)

    def forward(path: str) -> None:
        with torch.no_grad():
            paths[path](*inputs)

    def forward_backward(path: str) -> None:
        y, _ = paths[path](*inputs)
        torch.autograd.grad(y, inputs, d_y)

    forwards = time_in_turns({path: partial(forward, path) for path in paths}, arguments.rounds)
    both = time_in_turns({path: partial(forward_backward, path) for path in paths}, arguments.rounds)
    count = {"reference": _loop_flops, "torch-chunked": _chunked_flops, "native": _native_flops}
    work = {path: count[path](**sizes) for path in paths}
    return [
        {
            "path": path,
            **sizes,
            "threads": torch.get_num_threads(),
            "forward_ms": forwards[path].as_dict(),
            "forward_backward_ms": both[path].as_dict(),
            "forward_ratio": round(forwards["reference"].median / forwards[path].median, 2),
            "forward_backward_ratio": round(both["reference"].median / both[path].median, 2),
            **_floor(work[path], **sizes),
        }
        for path in paths
    ]


def _paths(N: int) -> dict[str, Path]:
    paths: dict[str, Path] = {"reference": wkv7_reference, "torch-chunked": lambda *inputs: wkv7_chunked(inputs)}
    if reason_against(torch.device("cpu"), torch.float32, N) is None:
        paths["native"] = wkv7
    return paths


def _inputs(B: int, T: int, H: int, N: int) -> list[Tensor]:
    r, k, v, direction, w_raw, iclr_raw = torch.randn(6, B, T, H, N)
    kappa = torch.nn.functional.normalize(direction, dim=-1)
    log_w = -torch.tensor(-0.5).exp() * torch.sigmoid(w_raw)
    return [x.requires_grad_() for x in (r, log_w, k, v, -kappa, kappa * torch.sigmoid(iclr_raw))]


def _loop_flops(B: int, T: int, H: int, N: int) -> tuple[int, int]:
    """Forward, and forward with backward: two operations for each product that is added up.

    A step is S a, the decay, two outer products and S r; the backward is twice the forward.
    """
    forward = B * T * H * 9 * N * N
    return forward, 3 * forward


def _chunked_flops(B: int, T: int, H: int, N: int) -> tuple[int, int]:
    """Forward, and forward with backward: the matrix products of `mm_rwkv7.ops.chunk`.

    They are counted in products within the chunk (C, C, N) and products with its state (C, N, N).
    """
    C = min(T, CHUNK)
    within, state = 2 * C * C * N, 2 * C * N * N
    opened = 7 * within + state + C**3
    forward = opened + 2 * within + 3 * state
    backward = opened + 19 * within + 8 * state
    chunks = B * H * T / C
    return round(chunks * forward), round(chunks * (forward + backward))


def _native_flops(B: int, T: int, H: int, N: int) -> tuple[int, int]:
    """Forward, and forward with backward, of `kernels/wkv7.c`.

    Forward: u, two outer products and y, and once a piece the decay and the first u. The backward goes there without y,
    and takes each piece through four products with states and some within the piece.
    """
    C, square = PIECE, N * N
    once = 3 * square / C
    within = 2 * C * C * N
    pieces = (8 * 2 * C * square + 19.5 * within) / C
    forward = 8 * square + once
    steps = B * T * H
    return round(steps * forward), round(steps * (2 * forward - 2 * square + pieces))


def _floor(flops: tuple[int, int], B: int, T: int, H: int, N: int) -> dict[str, float]:
    """The arithmetic of a path, and the bytes that any path moves at least: inputs and results, once, in fp32."""
    sequence, state = 4 * B * T * H * N, 4 * B * H * N * N
    forward_bytes = 7 * sequence + state
    backward_bytes = 13 * sequence
    return {
        "forward_gflop": round(flops[0] / 1e9, 4),
        "forward_backward_gflop": round(flops[1] / 1e9, 4),
        "forward_mbytes": round(forward_bytes / 1e6, 3),
        "forward_backward_mbytes": round((forward_bytes + backward_bytes) / 1e6, 3),
    }
