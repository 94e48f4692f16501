"""The recurrence alone: our kernel for the device, chunks in torch, the reference loop, and others' CUDA kernels.

B batch, T time, H heads, N head size, C steps in a chunk or a piece.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from torch import Tensor

from mm_rwkv7.bench.peers.operators import operator_peers, random_inputs
from mm_rwkv7.bench.roofline import large_buffer, reading_rate
from mm_rwkv7.bench.timing import time_in_turns
from mm_rwkv7.ops import wkv7, wkv7_reference
from mm_rwkv7.ops.backends import backend, reason_against
from mm_rwkv7.ops.chunked import CHUNK, wkv7_chunked
from mm_rwkv7.ops.sequences import Inputs
from mm_rwkv7.weights import choose_device

PIECE = 16  # steps that kernels/wkv7.c takes together
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
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
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--dtype", default="fp32", help="of all but the decay: fp32 or bf16 (default fp32)")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row per path: times with spread, how many times faster than the first path, what had to be done, and how much
    of the time moving the bytes once would take, at the rate at which this device reads. Without a compiler, or at a
    head size that the kernel does not know, there is no row for it. On a GPU the reference loop is left out: its
    backward would keep every state."""
    sizes = {name: getattr(arguments, name) for name in ("B", "T", "H", "N")}
    for name, least in (*((name, 1) for name in sizes), ("rounds", 2)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}, expected {least} or more")
    if arguments.dtype not in DTYPES:
        raise ValueError(f"--dtype is {arguments.dtype!r}, expected one of {', '.join(DTYPES)}")
    device, dtype = choose_device(arguments.device), DTYPES[arguments.dtype]
    inputs = random_inputs(**sizes, device=device)
    r, log_w, k, v, a, b = inputs
    ours = (r.to(dtype), log_w, *(x.to(dtype) for x in (k, v, a, b)))
    paths = _paths(arguments.N, device, dtype)
    peers, missing = operator_peers(arguments.peers, device, arguments.N)
    calls = {path: _Call(run, ours) for path, run in paths.items()}
    calls |= {peer.name: _Call(peer.run, peer.own(inputs)) for peer in peers}

    forwards = time_in_turns({path: call.forward for path, call in calls.items()}, arguments.rounds, device)
    both = time_in_turns({path: call.forward_backward for path, call in calls.items()}, arguments.rounds, device)
    count = {"reference": _loop_flops, "torch-chunked": _chunked_flops, "native": _native_flops, "cuda": _chunked_flops}
    bandwidth, first = reading_rate(large_buffer(device)), next(iter(paths))
    found: list[dict[str, object]] = []
    for path in calls:
        row: dict[str, object] = {
            "path": path,
            **sizes,
            "dtype": arguments.dtype if path in paths else "bf16",
            "device": device.type,
            "threads": torch.get_num_threads(),
            "forward_ms": forwards[path].as_dict(),
            "forward_backward_ms": both[path].as_dict(),
            "forward_ratio": round(forwards[first].median / forwards[path].median, 2),
            "forward_backward_ratio": round(both[first].median / both[path].median, 2),
        }
        if path in count:
            flops = count[path](**sizes)
            row |= {"forward_gflop": round(flops[0] / 1e9, 4), "forward_backward_gflop": round(flops[1] / 1e9, 4)}
        moved = _bytes(**sizes, element=dtype.itemsize if path in paths else 2)
        for name, amount, timing in zip(("forward", "forward_backward"), moved, (forwards, both), strict=True):
            row[f"{name}_mbytes"] = round(amount / 1e6, 3)
            row[f"{name}_share_of_bandwidth"] = round(amount / bandwidth / timing[path].median * 1000, 4)
        found.append(row)
    return [*found, *(absent.row() for absent in missing)]


class _Call:
    """A path and inputs of its own that want gradients."""

    def __init__(self, run: Callable[..., Tensor | tuple[Tensor, Tensor]], inputs: Inputs) -> None:
        self.run, self.inputs = run, [x.detach().requires_grad_() for x in inputs]
        self.d_y = torch.randn_like(self.inputs[3])

    def y(self) -> Tensor:
        found = self.run(*self.inputs)
        return found[0] if isinstance(found, tuple) else found

    def forward(self) -> None:
        with torch.no_grad():
            self.y()

    def forward_backward(self) -> None:
        torch.autograd.grad(self.y(), self.inputs, self.d_y)


def _paths(N: int, device: torch.device, dtype: torch.dtype) -> dict[str, Path]:
    paths: dict[str, Path] = {"reference": wkv7_reference} if device.type == "cpu" else {}
    paths["torch-chunked"] = lambda *inputs: wkv7_chunked(inputs)
    if reason_against(device, dtype, N) is None:
        paths[backend(device).name] = wkv7
    return paths


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


def _bytes(B: int, T: int, H: int, N: int, element: int) -> tuple[int, int]:
    """What any path moves at least, forward and forward with backward: inputs and results once, of which the decay and
    its gradient are fp32, and the last state."""
    steps, state = B * T * H * N, 4 * B * H * N * N
    forward = steps * (6 * element + 4) + state
    return forward, forward + steps * (6 * element + 4) + steps * (5 * element + 4)
