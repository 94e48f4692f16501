"""Decoding on a CPU: the modules' weights, as the compiled step wants them.

B rows, D width.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mm_rwkv7.int8 import Int8Linear
from mm_rwkv7.linear import Linear
from mm_rwkv7.ops.compiler import NoKernelError
from mm_rwkv7.ops.decode import AROUND_TENSORS, LAYER_TENSORS, ROWS, CompiledStep, Weight
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import LayerState, State
from mm_rwkv7.state_pool import StatePool

VALUE_RESIDUAL = ("time_mix.v0", "time_mix.v1", "time_mix.v2")  # the first layer has none


class CpuStepper:
    """The compiled step of one model, valid for as long as its weights stay where they are."""

    rows = ROWS

    def __init__(self, lm: RWKV7, step: CompiledStep) -> None:
        self._lm, self._step = lm, step

    @classmethod
    def of(cls, lm: RWKV7) -> "CpuStepper | None":
        """None where the kernel cannot read this model (on another device, in fp64, with adapters, hooks or tensors of
        other sizes), or where there is no compiler, which a warning says."""
        with torch.device("meta"):
            like = RWKV7(lm.config)
        weights: list[Weight | None] = []
        for layer, (block, expected) in enumerate(zip(lm.blocks, like.blocks, strict=True)):
            for name in LAYER_TENSORS:
                absent = layer == 0 and name in VALUE_RESIDUAL
                weights.append(None if absent else _weight(block, expected, name))
        weights += [_weight(lm, like, name) for name in AROUND_TENSORS]
        head = _weight(lm, like, "head")
        if not all(weight is None or weight.is_readable for weight in (*weights, head)) or _has_hooks(lm):
            return None
        config = lm.config
        sizes = {name: getattr(config, name) for name in ("layers", "width", "heads", "hidden")}
        sizes |= {f"{name}_rank": getattr(config, f"{name}_rank") for name in ("decay", "iclr", "value", "gate")}
        try:
            return cls(lm, CompiledStep(sizes, config.iclr_multiplier, lm.ln0.eps, weights, head))
        except NoKernelError as error:
            warnings.warn(f"decoding takes the portable path: {error}", stacklevel=2)
            return None

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        self._lm.check_state(state, len(x))
        hidden, wkv, shifts = self._step(x, state.layers)
        att, ffn = shifts.unbind(1)
        layers = map(LayerState, wkv.unbind(), att.unbind(), ffn.unbind())
        return hidden.to(x.dtype), State(tuple(layers), state.tokens_seen + 1, model=state.model)

    def in_pool(self, x: Tensor, pool: StatePool, slots: Sequence[int], lengths: Sequence[int] | None = None) -> Tensor:
        """x (B, D), the next lengths[i] rows (one if not told) for the text in slot slots[i] of a pool in fp32, whose
        states change in place -> what the head reads (B, D)."""
        tensors = pool.tensors
        return self._step.in_slots(x, tensors.wkv, tensors.att_shift, tensors.ffn_shift, slots, lengths).to(x.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._step.logits(hidden)


def _weight(module: nn.Module, like: nn.Module, path: str) -> Weight:
    """The parameter or the linear map of that name; anything else, and what has not the size of its like, comes out
    unreadable."""
    found, expected = module, like
    for name in path.split("."):
        found, expected = getattr(found, name), getattr(expected, name)
    if type(found) is Linear and found.weight.shape == expected.weight.shape:
        return Weight(found.weight)
    if isinstance(found, Int8Linear) and (found.out_features, found.in_features) == expected.weight.shape:
        return Weight(found.weight, found.scales)
    if isinstance(found, nn.Parameter) and found.shape == expected.shape:
        return Weight(found)
    return Weight(torch.empty(0, dtype=torch.float64))


def _has_hooks(lm: RWKV7) -> bool:
    """Whether somebody wants to see or change what goes through a module."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in lm.modules())
