"""Decoding on a GPU: the modules' weights as the kernels want them, and a CUDA graph for each number of rows.

Letters: B rows, D width, H heads, N head size, F hidden width, V vocabulary.
"""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_rwkv7.int8 import Int8Linear
from mm_rwkv7.linear import Linear
from mm_rwkv7.ops import decode_cuda as kernels
from mm_rwkv7.ops.cuda_inputs import aligned
from mm_rwkv7.ops.decode_cuda import GROUP, HEAD_SIZES, LOWEST_CAPABILITY, NUMBERS, Layer, Matrix, Norm, Weights
from mm_rwkv7.ops.kernel import Launcher
from mm_rwkv7.rwkv7 import RWKV7, Block, TimeMix
from mm_rwkv7.state import State
from mm_rwkv7.state_pool import StatePool

Run = Callable[[], Tensor]  # does the same with the same memory every time
Capture = Callable[[Run], Run]
LOW_RANK = "wagv"  # decay, iclr, gate, value residual, as their parameters are called
LINEARS = (
    *(f"time_mix.{name}" for name in ("receptance", "key", "value", "output")),
    *(f"channel_mix.{name}" for name in ("key", "value")),
)
MIXES = ("x_r", "x_k", "x_v", "x_w", "x_a", "x_g")


def pack(lm: RWKV7) -> Weights | None:
    """A model's weights for the kernels: matrices where they lie, but low-rank ones and the channel mix's values
    transposed, vectors as fp32. None where the kernels cannot read this model (sizes, fp64, adapters in it)."""
    config, dtype = lm.config, lm.emb.weight.dtype
    fits = config.head_size in HEAD_SIZES and config.hidden % GROUP == 0 and dtype in NUMBERS
    if not fits or not all(_is_readable(linear, dtype) for linear in _linears(lm)):
        return None
    if len({tensor.device for tensor in (*lm.parameters(), *lm.buffers())}) > 1:
        return None
    layers = tuple(_layer(block) for block in lm.blocks if isinstance(block, Block))
    norms = _norm(lm.ln0), _norm(lm.ln_out)
    return Weights(dtype, config.head_size, config.iclr_multiplier, norms[0], layers, norms[1], _matrix(lm.head))


def cuda_graph(run: Run) -> Run:
    """`run` as a CUDA graph: it is run once, so that kernels are compiled and loaded, and captured the second time, on
    the device that it runs on, which need not be the current one."""
    device = run().device
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), _capture_stream(device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # waits for the device first
            result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device; torch's own belongs to the device that first captured anything."""
    return torch.cuda.Stream(device)


@dataclass
class _Bucket:
    """The memory of a step of so many rows, and the step."""

    x: Tensor  # (B, D) fp32
    slots: Tensor  # (B,) int32
    filled: tuple[int, ...]  # what `slots` holds
    run: Run


class PooledStepper:
    """Steps of rows whose states lie in a pool: for batches that texts join and leave. Not for several threads.

    Rows are filled up to 1, 2, 4, 8, ... with rows of no text, and each of these numbers has a CUDA graph of its own,
    captured when it is first needed.
    """

    def __init__(self, weights: Weights, pool: StatePool, launcher: Launcher, capture: Capture = cuda_graph) -> None:
        self.weights, self.pool = weights, pool
        self._launcher, self._capture = launcher, capture
        self._buckets: dict[int, _Bucket] = {}

    @torch.inference_mode(False)  # what is kept here changes in place, which inference tensors allow only in that mode
    @torch.no_grad()
    def __call__(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        """x (B, D) as `RWKV7.embed` gives it, row i for the text in slot slots[i] -> what the head reads (B, D)."""
        if len(slots) != len(x) or len(set(slots)) != len(slots) or not len(x):
            raise ValueError(f"got {len(x)} rows for slots {list(slots)}, expected a slot of its own for each")
        if min(slots) < 0 or max(slots) >= self.pool.slots:
            raise ValueError(f"slots {min(slots)} to {max(slots)} were asked for, the pool has {self.pool.slots}")
        bucket = self._bucket(_filled_up(len(slots)))
        bucket.x[: len(x)].copy_(x)
        filled = (*slots, *[-1] * (len(bucket.x) - len(slots)))
        if filled != bucket.filled:
            bucket.slots.copy_(torch.tensor(filled, dtype=torch.int32))
            bucket.filled = filled
        hidden = bucket.run()[: len(x)].clone()
        self.pool.read_on(slots)
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, D) as a step gives it -> (B, V) fp32."""
        return kernels.head(self._launcher, self.weights, hidden)

    def _bucket(self, rows: int) -> _Bucket:
        if rows not in self._buckets:
            pool = self.pool
            x = torch.zeros(rows, pool.config.width, device=pool.tensors.wkv.device)
            slots = torch.full((rows,), -1, dtype=torch.int32, device=x.device)  # a trial run changes no state

            def run() -> Tensor:
                return kernels.step(self._launcher, self.weights, pool.tensors, x, slots)

            self._buckets[rows] = _Bucket(x, slots, (-1,) * rows, self._capture(run))
        return self._buckets[rows]


class CudaStepper:
    """The step of one model as `decode.Stepper` has it, valid for as long as its weights are what they were.

    The states are values: the last one is also kept in a pool, and one that comes back at the next step, as it does
    while a text is written, is not copied in again.
    """

    rows = 64  # more states are better held in a `PooledStepper` than copied at every step

    def __init__(self, lm: RWKV7, weights: Weights, launcher: Launcher, capture: Capture = cuda_graph) -> None:
        self._lm, self._weights = lm, weights
        self._launcher, self._capture = launcher, capture
        self._pooled: dict[int, PooledStepper] = {}
        self._last: State | None = None  # lies in the pool that takes its number of rows
        self._lock = threading.Lock()

    @classmethod
    def of(cls, lm: RWKV7) -> "CudaStepper | None":
        """None where the kernels cannot read this model; where they cannot be had at all, a warning says why."""
        from mm_rwkv7.ops import driver

        device = lm.emb.weight.device
        reason = driver.unavailable(device.index or 0)
        if reason is None and torch.cuda.get_device_capability(device) < LOWEST_CAPABILITY:
            reason = "the kernels of decoding need a GPU of compute capability 8.0 or more"
        if reason:
            warnings.warn(f"decoding takes the portable path: {reason}", stacklevel=2)
            return None
        weights = pack(lm)
        return None if weights is None else cls(lm, weights, driver.launcher(device))

    def pooled(self, slots: int) -> PooledStepper:
        """Steps over a pool of its own with so many slots."""
        pool = StatePool(self._lm.config, slots, self._weights.dtype, self._lm.emb.weight.device)
        return PooledStepper(self._weights, pool, self._launcher, self._capture)

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        rows = len(x)
        self._lm.check_state(state, rows)
        with self._lock:
            size = _filled_up(rows)
            if size not in self._pooled:
                pool = StatePool(self._lm.config, size, self._weights.dtype, x.device)
                self._pooled[size] = PooledStepper(self._weights, pool, self._launcher, self._capture)
            pooled = self._pooled[size]
            if state is not self._last:
                pooled.pool.put(state, 0)
            self._last = None
            hidden = pooled(x, range(rows))
            after = pooled.pool.take(0, rows)
            self._last = replace(after, tokens_seen=state.tokens_seen + 1, model=state.model)
            return hidden, self._last

    def logits(self, hidden: Tensor) -> Tensor:
        return kernels.head(self._launcher, self._weights, hidden.detach())


def _filled_up(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _linears(lm: RWKV7) -> list[nn.Module]:
    return [block.get_submodule(name) for block in lm.blocks for name in LINEARS] + [lm.head]


def _is_readable(linear: nn.Module, dtype: torch.dtype) -> bool:
    if isinstance(linear, Int8Linear):
        fits = dtype != torch.float32
    else:
        fits = type(linear) is Linear and linear.weight.dtype == dtype
    weight = linear.weight if fits else None
    return isinstance(weight, Tensor) and weight.is_contiguous() and weight.data_ptr() % 16 == 0


def _layer(block: Block) -> Layer:
    time, channel = block.time_mix, block.channel_mix
    names = LOW_RANK[: 4 if hasattr(time, "v1") else 3]
    down = [_fill(getattr(time, f"{name}1").detach().T) for name in names]
    up = [_fill(getattr(time, f"{name}2").detach()).T.contiguous() for name in names]
    return Layer(
        _norm(block.ln1),
        _stack([getattr(time, name) for name in MIXES]),
        (_matrix(time.receptance), _matrix(time.key), _matrix(time.value)),
        tuple(map(Matrix, down)),
        tuple(map(Matrix, up)),
        _vectors(time),
        _matrix(time.output),
        _norm(block.ln2),
        _stack([channel.x_k]),
        _matrix(channel.key),
        _transposed(_matrix(channel.value)),
    )


def _vectors(time: TimeMix) -> Tensor:
    v0 = time.v0 if hasattr(time, "v0") else torch.zeros_like(time.a0)
    return _stack([time.w0, time.a0, v0, time.k_k, time.k_a, time.r_k, time.ln_x.weight, time.ln_x.bias])


def _stack(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack([vector.detach().float().flatten() for vector in vectors])


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(aligned(norm.weight.detach().float()), aligned(norm.bias.detach().float()))


def _matrix(linear: nn.Module) -> Matrix:
    if isinstance(linear, Int8Linear):
        return Matrix(linear.weight, linear.scales)
    assert isinstance(linear, Linear)
    return Matrix(linear.weight.detach())


def _transposed(matrix: Matrix) -> Matrix:
    if matrix.scales is None:
        return Matrix(matrix.weight.T.contiguous())
    in_order = matrix.weight.unflatten(1, (-1, GROUP // 4, 4)).transpose(2, 3).flatten(1)  # see Int8Linear
    return Matrix(in_order.T.contiguous(), matrix.scales.T.contiguous())


def _fill(rows: Tensor) -> Tensor:
    """Zero rows up to a multiple of 8."""
    return F.pad(rows, (0, 0, 0, -len(rows) % 8)).contiguous()
