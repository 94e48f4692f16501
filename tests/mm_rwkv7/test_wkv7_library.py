"""What torch asks of the operators behind `wkv7`: its own checks, tracing, compilation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mm_rwkv7.ops import library, wkv7, wkv_reason
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from tests.mm_rwkv7.test_wkv7 import error, random_inputs


@pytest.fixture(autouse=True)
def kernel() -> None:
    """Skips where there is no C compiler."""
    if reason := wkv_reason("cpu"):
        pytest.skip(reason)


@pytest.mark.parametrize("packed", [False, True])
def test_the_operators_pass_torchs_own_checks(packed: bool, seed: int) -> None:
    *inputs, state = (x.float() for x in random_inputs(seed, B=1 if packed else 2, T=70, H=2, N=16))
    ends = torch.tensor([0, 30, 30, 70], dtype=torch.int32) if packed else None
    if packed:
        state = state.expand(3, 2, 16, 16).contiguous()
    leaves = [x.clone().requires_grad_() for x in (*inputs, state)]
    torch.library.opcheck(library.wkv7_kernel, (*inputs, None, ends, False))
    _, _, entries = library.wkv7_kernel(*inputs, state, ends, True)
    d_y = torch.randn(inputs[3].shape)
    for d_last in (state, None):
        torch.library.opcheck(library.wkv7_kernel_backward, (*inputs, entries, ends, d_y, d_last))
    if not packed:  # of sequences, entries lie idle, and what nobody wrote differs from call to call
        torch.library.opcheck(library.wkv7_kernel, (*leaves, ends, True))


def test_a_gradient_that_nothing_was_kept_for_is_refused() -> None:
    inputs = [torch.zeros(1, 3, 1, 8, requires_grad=True) for _ in range(6)]
    with pytest.raises(RuntimeError, match="without keep=True"):
        library.wkv7_kernel(*inputs, None, None, False)


def test_one_who_watches_operators_sees_it(seed: int) -> None:
    class Watch(TorchDispatchMode):
        seen: list[str]

        def __torch_dispatch__(
            self, op: Callable, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            self.seen.append(str(op))
            return op(*args, **(kwargs or {}))

    inputs = [x.float() for x in random_inputs(seed, B=1, T=3, H=1, N=8)]
    watch = Watch()
    watch.seen = []
    with torch.no_grad(), watch:
        wkv7(*inputs)
    assert "mm_rwkv7.wkv7.default" in watch.seen


def test_a_time_mix_compiles_into_one_graph(seed: int) -> None:
    torch.manual_seed(seed)
    ranks = {"decay_rank": 8, "iclr_rank": 8, "value_rank": 8, "gate_rank": 8}
    model = RWKV7(RWKV7Config(vocab_size=16, width=32, layers=1, head_size=16, **ranks))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    mix = model.blocks[0].time_mix
    (state,) = model.initial_state(2).layers
    x = torch.randn(2, 20, 32)

    def run(mix: Callable) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), *model.blocks[0].time_mix.parameters()]
        out, wkv, *_ = mix(leaves[0], state, None, None)
        return [out, wkv, *torch.autograd.grad(out.square().sum() + wkv.sum(), leaves)]

    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(run(compiled), run(mix), strict=True):
        assert error(found, wanted) < 1e-5, f"seed {seed}"


def test_sequences_in_one_row_compile_into_one_graph(seed: int) -> None:
    inputs = [x.float() for x in random_inputs(seed, B=1, T=70, H=2, N=16)[:6]]
    ends = torch.tensor([0, 30, 30, 70], dtype=torch.int32)
    compiled = torch.compile(wkv7, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(compiled(*inputs, cu_seqlens=ends), wkv7(*inputs, cu_seqlens=ends), strict=True):
        assert torch.equal(found, wanted), f"seed {seed}"


def test_an_exported_program_holds_the_operator(seed: int) -> None:
    class Scan(nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            return wkv7(*inputs)

    inputs = tuple(x.float() for x in random_inputs(seed, B=1, T=20, H=1, N=8))
    program = torch.export.export(Scan(), inputs)
    assert "mm_rwkv7.wkv7" in str(program.graph)
    for found, wanted in zip(program.module()(*inputs), wkv7(*inputs), strict=True):
        assert torch.equal(found, wanted), f"seed {seed}"
