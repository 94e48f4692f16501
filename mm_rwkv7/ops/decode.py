"""`kernels/decode.c` from Python: a whole model's step, and one product, on the CPU.

B rows, S texts, D width, L layers, H heads, N head size, V vocabulary. A row is a token; the texts lie one after
another, each with one row in decoding and several where a prompt is read.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .compiler import load

ROWS = 64  # at most, in one call
GROUP = 64  # weights of an int8 row that share a scale
_TIME_MIX = (
    *("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "receptance", "key", "value", "output"),
    *(
        "w0",
        "w1",
        "w2",
        "a0",
        "a1",
        "a2",
        "v0",
        "v1",
        "v2",
        "g1",
        "g2",
        "k_k",
        "k_a",
        "r_k",
        "ln_x.weight",
        "ln_x.bias",
    ),
)
LAYER_TENSORS = (
    *("ln1.weight", "ln1.bias", *(f"time_mix.{name}" for name in _TIME_MIX)),
    *("ln2.weight", "ln2.bias", "channel_mix.x_k", "channel_mix.key", "channel_mix.value"),
)
AROUND_TENSORS = ("ln0.weight", "ln0.bias", "ln_out.weight", "ln_out.bias")
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


@dataclass(frozen=True)
class Weight:
    """A contiguous CPU tensor in fp32, bf16 or fp16; or int8 (rows, columns filled up with zeros to a multiple of 64)
    with the bits of bf16 scales (rows, columns / 64)."""

    data: Tensor
    scales: Tensor | None = None

    @property
    def is_readable(self) -> bool:
        tensors = [self.data] if self.scales is None else [self.data, self.scales]
        return self.data.dtype in _TYPES and all(
            type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.is_contiguous() for t in tensors
        )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )

    @classmethod
    def of(cls, weight: Weight | None) -> "_Tensor":
        if weight is None:
            return cls()
        scales = None if weight.scales is None else weight.scales.data_ptr()
        return cls(weight.data.data_ptr(), scales, _TYPES[weight.data.dtype])


_SIZES = ("layers", "width", "heads", "hidden", "decay_rank", "iclr_rank", "value_rank", "gate_rank")


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in _SIZES),
        ("iclr_multiplier", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("tensors", ctypes.c_void_p),
    )


class CompiledStep:
    """One step of one model, over weights that must stay where they are. NoKernelError where nothing can be compiled.

    `sizes` has the layers, width, heads, hidden and ranks by name; `weights` are those of LAYER_TENSORS for each layer
    (None for the value residual that the first has not) and of AROUND_TENSORS; `head` is (V, D).
    """

    def __init__(
        self,
        sizes: dict[str, int],
        iclr_multiplier: float,
        eps: float,
        weights: Sequence[Weight | None],
        head: Weight,
    ) -> None:
        self._library = load("decode")
        self._width, self._layers = sizes["width"], sizes["layers"]
        self._heads = (sizes["heads"], self._width // sizes["heads"], self._width // sizes["heads"])
        self._head = _Tensor.of(head)
        self._rows = len(head.data)
        tensors = (_Tensor * len(weights))(*map(_Tensor.of, weights))
        numbers = (*(sizes[name] for name in _SIZES), iclr_multiplier, eps)
        self._model = _Model(*numbers, ctypes.addressof(tensors))
        self._kept = (weights, head, tensors)  # what the pointers lead to

    def __call__(self, x: Tensor, layers: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B <= 64, D); each layer's wkv (B, H, N, N) and shifts (B, D). -> hidden (B, D), wkv (L, B, H, N, N) and
        shifts (L, 2, B, D) after the step, all new and fp32. ValueError on other sizes and on tensors elsewhere."""
        x = self._read(x, "x")
        rows, row, state = range(len(x)), x.shape, (len(x), *self._heads)
        if len(layers) != self._layers:
            raise ValueError(f"decode: a state of {len(layers)} layers, expected {self._layers}")
        before = [
            _plain(tensor, shape, "a layer's state")
            for layer in layers
            for tensor, shape in zip(layer, (state, row, row), strict=True)
        ]
        wkv = torch.empty(self._layers, *state, dtype=torch.float32)
        hidden, shifts = self._run(x, [tensor.data_ptr() for tensor in before], rows, len(x), len(x), wkv)
        return hidden, wkv, shifts

    def in_slots(
        self,
        x: Tensor,
        wkv: Tensor,
        att_shift: Tensor,
        ffn_shift: Tensor,
        slots: Sequence[int],
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """x (B <= 64, D): text after text, lengths[i] tokens (one if not told) of the one whose state is in slot
        slots[i] of a pool. wkv (L, C, H, N, N) and shifts (L, C, D), all fp32, of C slots, change in place. -> hidden
        (B, D). ValueError on other sizes and on tensors elsewhere."""
        x = self._read(x, "x")
        count = wkv.shape[1]
        if lengths is None:
            lengths = [1] * len(x)
        if min(lengths, default=0) < 1 or sum(lengths) != len(x):
            raise ValueError(
                f"decode: texts of {list(lengths)} tokens, expected {len(x)} together, and of each one or more"
            )
        if len(slots) != len(lengths) or len(set(slots)) != len(slots) or not 0 <= min(slots) <= max(slots) < count:
            raise ValueError(f"decode: slots {list(slots)}, expected one of {count} for each of {len(lengths)} texts")
        square, row = (self._layers, count, *self._heads), (self._layers, count, self._width)
        for tensor, shape in ((wkv, square), (att_shift, row), (ffn_shift, row)):
            if (
                tensor.shape != shape
                or tensor.dtype != torch.float32
                or not tensor.is_contiguous()
                or not tensor.is_cpu
            ):
                raise ValueError(
                    f"decode: a pool's tensor is {tensor.dtype} {tuple(tensor.shape)}, expected fp32 {shape}"
                )
        pool = [(tensor.data_ptr(), 4 * tensor.stride(0)) for tensor in (wkv, att_shift, ffn_shift)]
        places = [first + layer * bytes_ for layer in range(self._layers) for first, bytes_ in pool]
        rows = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
        hidden, shifts = self._run(x, places, rows, len(slots), count, wkv)
        for shift, after in zip((att_shift, ffn_shift), shifts.unbind(1), strict=True):
            shift.index_copy_(1, torch.tensor(slots), after)
        return hidden

    def _run(
        self, x: Tensor, before: Sequence[int], slots: Sequence[int], texts: int, count: int, wkv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`slots` (B,) of the `count` that there are, those of `texts` different ones. -> hidden (B, D) and shifts
        (L, 2, S, D)."""
        shifts = torch.empty(self._layers, 2, texts, self._width, dtype=torch.float32)
        hidden = torch.empty(x.shape, dtype=torch.float32)
        failed = self._library.decode_step(
            ctypes.byref(self._model),
            len(x),
            torch.get_num_threads(),
            ctypes.c_void_p(x.data_ptr()),
            (ctypes.c_void_p * len(before))(*before),
            (ctypes.c_int32 * len(x))(*slots),
            count,
            ctypes.c_void_p(wkv.data_ptr()),
            ctypes.c_void_p(shifts.data_ptr()),
            ctypes.c_void_p(hidden.data_ptr()),
        )
        if failed:
            raise MemoryError(f"no memory for a step of {len(x)} rows of width {self._width}")
        return hidden, shifts

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B <= 64, D) -> (B, V) fp32."""
        hidden = self._read(hidden, "hidden")
        out = torch.empty(len(hidden), self._rows, dtype=torch.float32)
        failed = self._library.decode_product(
            ctypes.byref(self._head),
            self._rows,
            self._width,
            len(hidden),
            torch.get_num_threads(),
            ctypes.c_void_p(hidden.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
        )
        if failed:
            raise MemoryError(f"no memory for the head's product of {len(hidden)} rows")
        return out

    def _read(self, x: Tensor, name: str) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self._width:
            raise ValueError(f"decode: {name} has shape {tuple(x.shape)}, expected (B, {self._width})")
        if not 1 <= len(x) <= ROWS:
            raise ValueError(f"decode: {name} has {len(x)} rows, expected 1 to {ROWS}")
        return _plain(x, x.shape, name)


def _plain(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """As the kernel reads it."""
    if tensor.shape != shape or not tensor.is_cpu:
        found = f"shape {tuple(tensor.shape)} on {tensor.device}"
        raise ValueError(f"decode: {name} has {found}, expected {tuple(shape)} on the CPU")
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(torch.float32).contiguous()
