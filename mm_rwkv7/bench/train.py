"""One training step of a language model: forward, backward, AdamW. What the kernels change in it, and in its memory.

B batch, T time, H heads, N head size.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7 import rwkv7
from mm_rwkv7.bench.memory import peak_of, saved_for_backward
from mm_rwkv7.bench.peers import Unmeasured
from mm_rwkv7.bench.peers.operators import operator_peers, random_inputs
from mm_rwkv7.bench.roofline import device_peak, matrix_rate
from mm_rwkv7.bench.shapes import add_shape, parameters, random_model, shape
from mm_rwkv7.bench.timing import time_in_turns
from mm_rwkv7.ops import wkv7, wkv7_reference, wkv_path
from mm_rwkv7.ops.chunked import wkv7_chunked
from mm_rwkv7.ops.sequences import Inputs
from mm_rwkv7.weights import choose_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # of gradients, ||theirs - ours|| / ||ours||

Operator = Callable[..., tuple[Tensor, Tensor]]


def add_arguments(parser: ArgumentParser) -> None:
    add_shape(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--dtype", default="fp32", help="of the products: fp32 or bf16, by autocast (default fp32)")
    sizes = (("B", 1, "batch"), ("T", 512, "tokens"), ("rounds", 3, "measurements of each path, at least 2"))
    for name, default, meaning in sizes:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default {default})")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row per path. `step_ms` is the whole step, of our paths; `op_ms` the recurrence of one layer alone, forward
    and backward, of peers too. `share_of_products` is the time of the step's matrix products at the speed of one large
    product in the same run, over the time of the step; `mfu` the same at the speed that a GPU is made for. On a CPU the
    loop over time trains too, and `step_ratio_to_loop` tells how much faster a path is. `saved_mb` is what the forward
    keeps for the backward, `peak_mb` what the step reaches: of the process on a CPU, of torch's allocations on a GPU.
    """
    for name, least in (("B", 1), ("T", 2), ("rounds", 2)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}, expected {least} or more")
    if arguments.dtype not in DTYPES:
        raise ValueError(f"--dtype is {arguments.dtype!r}, expected one of {', '.join(DTYPES)}")
    config, device = shape(arguments.shape), choose_device(arguments.device)
    B, T, dtype = arguments.B, arguments.T, DTYPES[arguments.dtype]
    model = random_model(config, torch.float32, device).train()
    training = _Training(model, torch.randint(config.vocab_size, (B, T + 1), device=device), dtype)
    portable, loop = f"torch-chunked ({device.type})", f"reference loop ({device.type})"
    ours: dict[str, Operator] = {wkv_path(device): wkv7, portable: _portable}
    if device.type == "cpu":  # a GPU would wait for thousands of launches a layer
        ours[loop] = wkv7_reference
    paths, wrong = training.agreeing(ours, portable)
    peers, missing = operator_peers(arguments.peers, device, config.head_size)

    memory = {path: training.memory(operator) for path, operator in paths.items()}
    steps = {path: partial(training.step, operator) for path, operator in paths.items()}
    taken = time_in_turns(steps, arguments.rounds, device)
    inputs = random_inputs(B, T, config.heads, config.head_size, device)
    alone = {path: _alone(operator, _ours(inputs, dtype)) for path, operator in paths.items()}
    alone |= {peer.name: _alone(peer.run, peer.own(inputs)) for peer in peers}
    alone_taken = time_in_turns(alone, arguments.rounds, device)

    flops = 6 * (parameters(model) - model.emb.weight.numel()) * B * T
    rate, peak = matrix_rate(dtype, device), device_peak(device)
    found: list[dict[str, object]] = []
    for path, op in alone_taken.items():
        row: dict[str, object] = {
            "path": path,
            **{name: getattr(arguments, name) for name in ("shape", "B", "T", "dtype")},
            "parameters": parameters(model),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "op_ms": op.as_dict(),
            "op_ratio": round(alone_taken[portable].median / op.median, 2),
        }
        if (step := taken.get(path)) is not None:
            row |= {
                "step_ms": step.as_dict(),
                "step_ratio": round(taken[portable].median / step.median, 2),
                "tokens_per_s": step.rate(B * T).as_dict(),
                "products_gflop": round(flops / 1e9, 3),
                "share_of_products": round(flops / rate / (step.median / 1000), 3),
                **memory[path],
            }
            if loop in taken:
                row["step_ratio_to_loop"] = round(taken[loop].median / step.median, 2)
            if peak is not None:
                row["mfu"] = round(flops / peak / (step.median / 1000), 3)
        found.append(row)
    return [*found, *(absent.row() for absent in (*wrong, *missing))]


class _Training:
    """A model, what it reads (B, T + 1), and its optimizer, which keeps its two moments in fp32."""

    def __init__(self, model: rwkv7.RWKV7, ids: Tensor, dtype: torch.dtype) -> None:
        self.model, self.ids, self.dtype = model, ids, dtype
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss(self) -> Tensor:
        before, after = self.ids[:, :-1], self.ids[:, 1:]
        with torch.autocast(self.ids.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            hidden, _ = self.model.hidden(self.model.embed(before).to(self.dtype))
            logits: Tensor = self.model.head(hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), after.flatten())

    def step(self, operator: Operator) -> None:
        with _using(operator):
            self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def agreeing(self, paths: dict[str, Operator], right: str) -> tuple[dict[str, Operator], list[Unmeasured]]:
        """The paths whose gradients are those of the right one, and how far off the others are."""
        gradients = {path: self._gradient(operator) for path, operator in paths.items()}
        wanted = gradients[right]
        off = {path: float((found - wanted).norm() / wanted.norm()) for path, found in gradients.items()}
        agreeing = {path: operator for path, operator in paths.items() if off[path] <= TOLERANCE[self.dtype]}
        reason = "its gradient differs from that of {} by {:.2g}"
        return agreeing, [Unmeasured(path, reason.format(right, off[path])) for path in paths if path not in agreeing]

    def _gradient(self, operator: Operator) -> Tensor:
        """Of the first block, to which everything above it contributes."""
        with _using(operator):
            found = torch.autograd.grad(self.loss(), list(self.model.blocks[0].parameters()))
        return torch.cat([gradient.flatten() for gradient in found])

    def memory(self, operator: Operator) -> dict[str, float | None]:
        with _using(operator):
            saved = saved_for_backward(self.loss, self.model)
        peak = peak_of(partial(self.step, operator), self.ids.device)
        return {"saved_mb": round(saved / 1e6, 2), "peak_mb": None if peak is None else round(peak / 1e6, 1)}


def _portable(*inputs: Any) -> tuple[Tensor, Tensor]:
    return wkv7_chunked(inputs[:6], inputs[6])


def _ours(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    r, log_w, k, v, a, b = inputs
    r, k, v, a, b = (x.to(dtype) for x in (r, k, v, a, b))
    B, _, H, N = r.shape
    return r, log_w, k, v, a, b, log_w.new_zeros(B, H, N, N)


def _alone(operator: Callable[..., Tensor | tuple[Tensor, Tensor]], inputs: Inputs) -> Callable[[], object]:
    """Forward and backward of an operator on inputs of its own."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    d_y = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(0)).to(leaves[3])

    def run() -> object:
        y = operator(*leaves)
        y = y[0] if isinstance(y, tuple) else y
        return torch.autograd.grad(y, leaves[:6], d_y)

    return run


@contextmanager
def _using(operator: Operator) -> Iterator[None]:
    """Every time mix computes its recurrence with `operator`."""
    before = rwkv7.wkv7
    rwkv7.wkv7 = operator
    try:
        yield
    finally:
        rwkv7.wkv7 = before
