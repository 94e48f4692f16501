"""One token through RWKV-7 in eight launches a layer, of kernels/decode_*.cu, matvec.cu and value_product.cu.

Letters: B rows (sequences), D width, H heads, N head size, F hidden width of the channel mix, V vocabulary.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernel import Argument, Kernel, Launcher

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
HEAD_SIZES = (64, 128)
LOWEST_CAPABILITY = (8, 0)
ROWS = 8  # with more, torch's matrix products are as good
GROUP = 64  # inputs that share a scale
TILE = 16  # rows of a matrix that a block of `matvec` takes
SPAN = 64  # outputs that a block of `value_product` takes
PRODUCT, SQUARE_POSITIVE, PLAIN, TANH, SIGMOID = range(5)  # what `matvec` does with a sum


@dataclass(frozen=True)
class Matrix:
    """(outputs, inputs) in the model's type, or int8 with a scale (bf16's bits as int16) for every 64 inputs,
    (outputs, inputs / 64), and of each 64, weight 16 j + i at place 4 i + j. Rows begin at multiples of 16 bytes."""

    weight: Tensor
    scales: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    weight: Tensor  # (D,) fp32
    bias: Tensor


@dataclass(frozen=True)
class Layer:
    """A block's weights. Low-rank projections come in the order decay, iclr, gate, value residual; the first block has
    no value residual. Ranks are filled up with zeros to multiples of 8."""

    ln1: Norm
    mixes: Tensor  # (6, D) fp32: of r, k, v, decay, iclr, gate
    rkv: tuple[Matrix, Matrix, Matrix]
    down: tuple[Matrix, ...]  # (rank, D)
    up: tuple[Matrix, ...]  # (D, rank)
    vectors: Tensor  # (8, D) fp32: w0, a0, v0, k_k, k_a, r_k, weight and bias of ln_x
    output: Matrix
    ln2: Norm
    ffn_mix: Tensor  # (1, D) fp32
    key: Matrix
    value: Matrix  # transposed: (F, D), int8 in its natural order, scales (F / 64, D)


@dataclass(frozen=True)
class Weights:
    dtype: torch.dtype  # of the model
    head_size: int
    iclr_multiplier: float
    ln0: Norm
    layers: tuple[Layer, ...]
    ln_out: Norm
    head: Matrix


@dataclass(frozen=True)
class Pool:
    """States of as many sequences as there are slots, changed in place. L layers."""

    wkv: Tensor  # (L, slots, H, N, N) fp32 or fp16
    att_shift: Tensor  # (L, slots, D) in the model's type
    ffn_shift: Tensor


@dataclass(frozen=True)
class _Stream:
    """The residual stream (B, D) fp32, of which the last matrix product (parts, B, D) is not yet part."""

    x: Tensor
    parts: Tensor | None = None


def step(launcher: Launcher, weights: Weights, pool: Pool, x: Tensor, slots: Tensor) -> Tensor:
    """x (B, D) fp32 as `RWKV7.embed` gives it, slots (B,) int32 without repetitions, a negative one for a row that is
    not there -> what the head reads, (B, D); rows that are not there hold anything."""
    batch = len(x)
    by_kernel = batch <= ROWS or weights.head.scales is not None
    stream = _Stream(_normalise(launcher, weights, _Stream(x), weights.ln0, torch.float32))
    v_first = None
    for i, layer in enumerate(weights.layers):
        mixed, stream = _mix(launcher, weights, stream, layer.ln1, layer.mixes, pool.att_shift[i], slots)
        project = _project if by_kernel else _project_wide
        products, low_rank = project(launcher, weights, layer, mixed)
        y = torch.empty(x.shape, dtype=weights.dtype, device=x.device)
        kernel = _wkv(weights.dtype, products.dtype, pool.wkv.dtype, weights.head_size)
        grid = (x.shape[1] // weights.head_size, batch, 1)
        state = pool.wkv[i]
        multiplier = float(weights.iclr_multiplier)
        launcher(kernel, grid, (state, slots, products, low_rank, v_first, layer.vectors, multiplier, batch, y))
        v_first = products[2] if v_first is None else v_first
        stream = _Stream(stream.x, _output(launcher, weights, layer, y, by_kernel))
        mixed, stream = _mix(launcher, weights, stream, layer.ln2, layer.ffn_mix, pool.ffn_shift[i], slots)
        channel_mix = _channel_mix if by_kernel else _channel_mix_wide
        stream = _Stream(stream.x, channel_mix(launcher, weights, layer, mixed))
    return _normalise(launcher, weights, stream, weights.ln_out, weights.dtype)


def head(launcher: Launcher, weights: Weights, hidden: Tensor) -> Tensor:
    """hidden (B, D) -> logits (B, V) fp32."""
    hidden = hidden.to(weights.dtype).contiguous()
    if len(hidden) > ROWS and weights.head.scales is None:
        return (hidden @ weights.head.weight.T).float()
    logits = hidden.new_empty(len(hidden), len(weights.head.weight), dtype=torch.float32)
    _matvec(launcher, hidden[None], [(weights.head, 0, PRODUCT)], logits)
    return logits


def _normalise(launcher: Launcher, weights: Weights, stream: _Stream, norm: Norm, dtype: torch.dtype) -> Tensor:
    x, parts = stream.x, stream.parts
    y = torch.empty_like(x, dtype=dtype)
    fp32, vectors = (y, None) if dtype == torch.float32 else (None, y)
    count = 0 if parts is None else len(parts)
    kernel = _norm("normalise", x.shape[1], weights.dtype, torch.float32 if parts is None else parts.dtype)
    launcher(kernel, (1, len(x), 1), (x, parts, count, len(x), norm.weight, norm.bias, fp32, vectors))
    return y


def _mix(
    launcher: Launcher, weights: Weights, stream: _Stream, norm: Norm, mixes: Tensor, shift: Tensor, slots: Tensor
) -> tuple[Tensor, _Stream]:
    """-> (the normalised, shifted and interpolated rows (mixes, B, D), the stream with its parts summed)"""
    (batch, width), parts = stream.x.shape, stream.parts
    mixed = torch.empty(len(mixes), batch, width, dtype=weights.dtype, device=stream.x.device)
    summed = torch.empty_like(stream.x)
    sharing = next((n for n in (8, 4, 2) if n * batch <= launcher.processors), 1)
    kind = torch.float32 if parts is None else parts.dtype
    kernel = _norm("mix", width, weights.dtype, kind, (("MIXES", len(mixes)), ("PARTS", sharing)))
    count = 0 if parts is None else len(parts)
    arguments = (stream.x, parts, count, batch, summed, norm.weight, norm.bias, mixes, shift, slots, mixed)
    launcher(kernel, (sharing, batch, 1), arguments)
    return mixed, _Stream(summed)


def _project(launcher: Launcher, weights: Weights, layer: Layer, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """mixed (6, B, D) -> (r, k, v (3, B, D), the low-rank projections (3 or 4, B, D))"""
    _, batch, width = mixed.shape
    products = mixed.new_empty(3, batch, width, dtype=torch.float32)
    middle = mixed.new_empty(batch * sum(len(matrix.weight) for matrix in layer.down))
    low_rank = mixed.new_empty(len(layer.up), batch, width, dtype=torch.float32)
    down = zip(layer.down, (3, 4, 5, 2), (TANH, PLAIN, SIGMOID, PLAIN), strict=False)
    first = [(matrix, i, PRODUCT) for i, matrix in enumerate(layer.rkv)]
    _matvec(launcher, mixed, [*first, *down], products, middle)
    _matvec(launcher, middle, [(matrix, i, PRODUCT) for i, matrix in enumerate(layer.up)], low_rank, batch=batch)
    return products, low_rank


def _project_wide(launcher: Launcher, weights: Weights, layer: Layer, mixed: Tensor) -> tuple[Tensor, Tensor]:
    _, batch, width = mixed.shape
    products = mixed.new_empty(3, batch, width)
    low_rank = mixed.new_empty(len(layer.up), batch, width)
    ranks = [len(matrix.weight) for matrix in layer.down]
    middle = mixed.new_empty(batch * sum(ranks))
    parts = [part.view(batch, -1) for part in middle.split([batch * rank for rank in ranks])]
    for i, matrix in enumerate(layer.rkv):
        torch.mm(mixed[i], matrix.weight.T, out=products[i])
    for i, matrix, part in zip((3, 4, 5, 2), layer.down, parts, strict=False):
        torch.mm(mixed[i], matrix.weight.T, out=part)
    sigmoid_begin, sigmoid_end = batch * sum(ranks[:2]), batch * sum(ranks[:3])
    kernel = _activation("activate", weights.dtype)
    launcher(kernel, (-(-sigmoid_end // 256), 1, 1), (middle, batch * ranks[0], sigmoid_begin, sigmoid_end))
    for part, matrix, out in zip(parts, layer.up, low_rank, strict=True):
        torch.mm(part, matrix.weight.T, out=out)
    return products, low_rank


def _output(launcher: Launcher, weights: Weights, layer: Layer, y: Tensor, by_kernel: bool) -> Tensor:
    """y (B, D) -> (1, B, D)"""
    if not by_kernel:
        return (y @ layer.output.weight.T)[None]
    out = y.new_empty(1, *y.shape, dtype=torch.float32)
    _matvec(launcher, y[None], [(layer.output, 0, PRODUCT)], out)
    return out


def _channel_mix(launcher: Launcher, weights: Weights, layer: Layer, mixed: Tensor) -> Tensor:
    """mixed (1, B, D) -> (slices, B, D)"""
    _, batch, width = mixed.shape
    hidden_width = len(layer.key.weight)
    hidden = mixed.new_empty(batch, hidden_width, dtype=torch.float32)
    _matvec(launcher, mixed, [(layer.key, 0, SQUARE_POSITIVE)], hidden)
    spans, groups = width // SPAN, -(-batch // ROWS)
    slices = max(1, launcher.processors // (spans * groups))
    length = min(-(-hidden_width // (1024 * slices)) * 1024, 8192)
    out = mixed.new_empty(-(-hidden_width // length), batch, width, dtype=torch.float32)
    kernel = _value(weights.dtype, layer.value.scales is not None, width, hidden_width, length, min(batch, ROWS))
    launcher(kernel, (spans, len(out), groups), (hidden, layer.value.weight, layer.value.scales, out, batch))
    return out


def _channel_mix_wide(launcher: Launcher, weights: Weights, layer: Layer, mixed: Tensor) -> Tensor:
    hidden = mixed[0] @ layer.key.weight.T
    count = hidden.numel()
    launcher(_activation("square_positive", weights.dtype), (-(-count // 1024), 1, 1), (hidden, count))
    return (hidden @ layer.value.weight)[None]


def _matvec(
    launcher: Launcher,
    x: Tensor,
    work: Sequence[tuple[Matrix, int, int]],
    products: Tensor,
    vectors: Tensor | None = None,
    batch: int | None = None,
) -> None:
    """Multiply matrices with rows of x, one launch. work: (matrix, the place of its rows, what to do with the sums).

    x is (places, B, inputs), or flat with `batch` given, and then it holds the matrices' (B, inputs) one after another.
    products and vectors take the results of matrices one after another, (B, outputs) each, fp32 and in x's type.
    """
    table, inputs_before = [], 0
    outputs_before = {True: 0, False: 0}
    for matrix, place, kind in work:
        outputs, inputs = matrix.weight.shape
        is_product = kind <= SQUARE_POSITIVE
        table.append((outputs, inputs, inputs_before if batch else place * inputs, outputs_before[is_product], kind))
        outputs_before[is_product] += outputs
        inputs_before += inputs
    is_int8 = any(matrix.scales is not None for matrix, _, _ in work)
    matrices: list[Tensor | None] = [matrix.weight for matrix, _, _ in work]
    scales = [matrix.scales for matrix, _, _ in work[:3]]
    matrices += [None] * (7 - len(matrices))
    scales += [None] * (3 - len(scales))
    rows = batch or x.shape[1]
    grid = (sum(-(-outputs // TILE) for outputs, *_ in table), -(-rows // ROWS), 1)
    launcher(_products(x.dtype, is_int8, tuple(table)), grid, (x, products, vectors, rows, *matrices, *scales))


@functools.cache
def _norm(
    name: str,
    width: int,
    dtype: torch.dtype,
    parts: torch.dtype,
    more: tuple[tuple[str, int], ...] = (("MIXES", 1), ("PARTS", 1)),
) -> Kernel:
    threads = min(512, -(-width // 128) * 32)  # a thread takes 4 neighbouring numbers at a time
    numbers = (("NUMBER", NUMBERS[dtype]), ("PRODUCT", NUMBERS[parts]))
    return Kernel("decode_mix.cu", name, (*numbers, ("WIDTH", width), ("THREADS", threads), *more), threads)


@functools.cache
def _wkv(dtype: torch.dtype, products: torch.dtype, state: torch.dtype, head_size: int) -> Kernel:
    numbers = (("NUMBER", NUMBERS[dtype]), ("PRODUCT", NUMBERS[products]), ("STATE", NUMBERS[state]))
    return Kernel("decode_wkv.cu", "wkv", (*numbers, ("HEAD", head_size)), 256)


@functools.cache
def _activation(name: str, dtype: torch.dtype) -> Kernel:
    return Kernel("decode_activate.cu", name, (("NUMBER", NUMBERS[dtype]),), 256)


@functools.cache
def _products(dtype: torch.dtype, is_int8: bool, table: tuple[tuple[int, ...], ...]) -> Kernel:
    bytes_of_a_row = max(inputs for _, inputs, *_ in table) * (1 if is_int8 else dtype.itemsize)
    share = 128 if is_int8 else 256  # of a row's bytes, that a warp loads at once
    warps = next((n for n in (2, 4) if n * share >= bytes_of_a_row), 8)
    segments = "{" + ",".join("{" + ",".join(map(str, row)) + "}" for row in table) + "}"
    defines = (("NUMBER", NUMBERS[dtype]), ("INT8", int(is_int8)), ("SEGMENTS", segments), ("WARPS", warps))
    return Kernel("matvec.cu", "matvec", defines, 32 * warps)


@functools.cache
def _value(dtype: torch.dtype, is_int8: bool, width: int, hidden: int, length: int, batch: int) -> Kernel:
    rows = next(n for n in (1, 2, 4, 8) if n >= batch)
    sizes = (("WIDTH", width), ("HIDDEN", hidden), ("SLICE", length), ("BATCH", rows))
    return Kernel(
        "value_product.cu", "value_product", (("NUMBER", NUMBERS[dtype]), ("INT8", int(is_int8)), *sizes), 256
    )


class _Recorder:
    """A launcher that launches nothing, and notes what it is given."""

    processors = 132
    capability = (9, 0)

    def __init__(self) -> None:
        self.device = torch.device("meta")
        self.kernels: set[Kernel] = set()

    def __call__(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        self.kernels.add(kernel)


def all_kernels() -> list[Kernel]:
    """What models as wide as 1.5B launch, each kernel in each of its forms, for tests that compile them."""
    recorder = _Recorder()
    for batch in (1, 2, 4, 8, 16):
        _launch_shapes(recorder, torch.float16, batch)
    for batch in (1, 16):
        _launch_shapes(recorder, torch.float32, batch)
    for batch in (1, 8):
        _launch_shapes(recorder, torch.bfloat16, batch, is_int8=True)
    for state in (torch.float16, torch.float32):
        _launch_shapes(recorder, torch.bfloat16, 1, state=state, head_size=128)
        _launch_shapes(recorder, torch.float16, 1, state=state)
    return sorted(recorder.kernels, key=repr)


def _launch_shapes(
    launcher: Launcher,
    dtype: torch.dtype,
    batch: int,
    is_int8: bool = False,
    head_size: int = 64,
    state: torch.dtype = torch.float32,
) -> None:
    """A step of a model without numbers: two layers, 2048 wide."""

    def empty(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=kind, device=launcher.device)

    def matrix(outputs: int, inputs: int) -> Matrix:
        if is_int8:
            return Matrix(empty(outputs, inputs, kind=torch.int8), empty(outputs, inputs // GROUP, kind=torch.int16))
        return Matrix(empty(outputs, inputs, kind=dtype))

    width, hidden, ranks = 2048, 8192, (96, 96, 256, 64)
    square, norm = matrix(width, width), Norm(empty(width), empty(width))
    value = matrix(width, hidden)
    value = Matrix(value.weight.T, None if value.scales is None else value.scales.T)
    layers = tuple(
        Layer(
            norm,
            empty(6, width),
            (square, square, square),
            tuple(Matrix(empty(rank, width, kind=dtype)) for rank in ranks[:count]),
            tuple(Matrix(empty(width, rank, kind=dtype)) for rank in ranks[:count]),
            empty(8, width),
            square,
            norm,
            empty(1, width),
            matrix(hidden, width),
            value,
        )
        for count in (3, 4)
    )
    weights = Weights(dtype, head_size, 1.0, norm, layers, norm, matrix(65536, width))
    heads = width // head_size
    shifts = empty(2, 2, batch, width, kind=dtype)
    pool = Pool(empty(2, batch, heads, head_size, head_size, kind=state), *shifts)
    hidden_rows = step(launcher, weights, pool, empty(batch, width), empty(batch, kind=torch.int32))
    head(launcher, weights, hidden_rows)
