"""States of many texts in memory that stays where it is, so that a GPU's step changes them in place.

Letters: L layers, H heads, N head size, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_rwkv7.ops.decode_cuda import Pool
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.state import LayerState, State


@dataclass(frozen=True)
class Reading:
    """What a slot's state is besides tensors."""

    tokens_seen: int = 0
    model: object = ""


class StatePool:
    """Slots 0 ... `slots` - 1, each with the state of one text. A `State` is copied in and copied out: whoever holds
    one never sees it change.

    `half` stores wkv states in fp16, half the memory traffic of large batches; they are computed with in fp32.
    """

    @torch.inference_mode(False)  # else only that mode could change them
    def __init__(
        self, config: RWKV7Config, slots: int, dtype: torch.dtype, device: torch.device, half: bool = False
    ) -> None:
        if slots < 1:
            raise ValueError(f"a pool of {slots} slots was asked for, expected at least 1")
        L, H, N = config.layers, config.heads, config.head_size
        wkv = torch.zeros(L, slots, H, N, N, dtype=torch.float16 if half else torch.float32, device=device)
        att, ffn = torch.zeros(2, L, slots, config.width, dtype=dtype, device=device)
        self.config, self.slots = config, slots
        self.tensors = Pool(wkv, att, ffn)
        self._readings = [Reading()] * slots

    def put(self, state: State, slot: int) -> None:
        """Copy a state's rows into `slot`, `slot` + 1, ..."""
        rows = self._range(slot, state.batch)
        H, N = self.config.heads, self.config.head_size
        shapes = {tuple(layer.wkv.shape) for layer in state.layers}
        if len(state.layers) != self.config.layers or shapes != {(state.batch, H, N, N)}:
            expected = f"{self.config.layers} of {(state.batch, H, N, N)}"
            raise ValueError(f"state has {len(state.layers)} layers of {sorted(shapes)}, expected {expected}")
        for pooled, given in zip(self._tensors(rows), zip(*state.layers, strict=True), strict=True):
            pooled.copy_(torch.stack(given))
        self._readings[rows] = [Reading(state.tokens_seen, state.model)] * state.batch

    def take(self, slot: int, rows: int = 1) -> State:
        """A copy of the states in `slot`, `slot` + 1, ... as one of `rows` rows, which have read equally much."""
        where = self._range(slot, rows)
        readings = set(self._readings[where])
        if len(readings) > 1:
            raise ValueError(f"the states in slots {slot} to {slot + rows - 1} have not read equally much of one model")
        wkv, att, ffn = self._tensors(where)
        copies = (wkv.to(torch.float32, copy=True), att.clone(), ffn.clone())
        layers = map(LayerState, *(tensor.unbind() for tensor in copies))
        reading = readings.pop()
        return State(tuple(layers), reading.tokens_seen, model=reading.model)

    def clear(self, slot: int) -> None:
        """Begin a new text in `slot`."""
        for pooled in self._tensors(self._range(slot, 1)):
            pooled.zero_()
        self._readings[slot] = Reading()

    def gather(self, slots: Tensor) -> State:
        """Copies of the states in `slots` (B,), a row each, whatever each has read."""
        pool = self.tensors
        copies = (pool.wkv[:, slots].float(), pool.att_shift[:, slots], pool.ffn_shift[:, slots])
        return State(tuple(map(LayerState, *(tensor.unbind() for tensor in copies))))

    def scatter(self, state: State, slots: Tensor) -> None:
        """Copy the rows of a state into `slots` (B,)."""
        pool = self.tensors
        for pooled, given in zip(
            (pool.wkv, pool.att_shift, pool.ffn_shift), zip(*state.layers, strict=True), strict=True
        ):
            pooled.index_copy_(1, slots, torch.stack(given).to(pooled.dtype))

    def read_on(self, slots: Sequence[int]) -> None:
        """Note that one more token was read into each of these slots."""
        for slot in slots:
            reading = self._readings[slot]
            self._readings[slot] = Reading(reading.tokens_seen + 1, reading.model)

    def _range(self, slot: int, rows: int) -> slice:
        if not 0 <= slot <= slot + rows <= self.slots:
            raise ValueError(f"slots {slot} to {slot + rows - 1} were asked for, the pool has {self.slots}")
        return slice(slot, slot + rows)

    def _tensors(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        pool = self.tensors
        return pool.wkv[:, rows], pool.att_shift[:, rows], pool.ffn_shift[:, rows]
