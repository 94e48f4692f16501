"""Decoding on a CPU: the modules' weights, as the compiled step wants them.

B rows, D width.
"""

import warnings

import torch
from torch import Tensor, nn

from mm_rwkv7.int8 import Int8Linear
from mm_rwkv7.linear import Linear
from mm_rwkv7.ops.compiler import NoKernelError
from mm_rwkv7.ops.decode import AROUND_TENSORS, LAYER_TENSORS, ROWS, CompiledStep, Weight
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import LayerState, State

VALUE_RESIDUAL = ("time_mix.v0", "time_mix.v1", "time_mix.v2")  # the first layer has none


class CpuStepper:
    """The compiled step of one model, valid for as long as its weights stay where they are."""

    rows = ROWS

    def __init__(self, lm: RWKV7, step: CompiledStep) -> None:
        self._lm, self._step = lm, step

    @classmethod
    def of(cls, lm: RWKV7) -> "CpuStepper | None":
        """None where the kernel cannot read this model (on another device, in fp64, with adapters among its modules),
        or where there is no compiler, which a warning says."""
        weights: list[Weight | None] = []
        for layer, block in enumerate(lm.blocks):
            for name in LAYER_TENSORS:
                absent = layer == 0 and name in VALUE_RESIDUAL
                weights.append(None if absent else _weight(block, name))
        weights += [_weight(lm, name) for name in AROUND_TENSORS]
        head = _weight(lm, "head")
        if not all(weight is None or weight.is_readable for weight in (*weights, head)):
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

    def logits(self, hidden: Tensor) -> Tensor:
        return self._step.logits(hidden)


def _weight(module: nn.Module, path: str) -> Weight:
    """The parameter or the linear map of that name; anything else comes out unreadable."""
    found = module
    for name in path.split("."):
        found = getattr(found, name)
    if type(found) is Linear:
        return Weight(found.weight)
    if isinstance(found, Int8Linear):
        return Weight(found.weight, found.scales)
    return Weight(found if isinstance(found, Tensor) else torch.empty(0, dtype=torch.float64))
