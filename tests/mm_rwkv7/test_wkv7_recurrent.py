"""The recurrence as a CUDA kernel against its definition in fp64.

B batch, T time, H heads, N head size, S sequences. Inputs are new in every run; a failure names their seed.
"""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mm_rwkv7.ops import cuda_recurrent, wkv7_reference
from mm_rwkv7.ops.kernel import Launcher
from tests.mm_rwkv7.emulation import EmulatedLauncher
from tests.mm_rwkv7.test_wkv7 import error
from tests.mm_rwkv7.test_wkv7 import random_inputs as ordinary_inputs

pytestmark = pytest.mark.usefixtures("poisoned_memory")

NAMES = ("y", "last", "d_r", "d_log_w", "d_k", "d_v", "d_a", "d_b", "d_state")
KINDS = ("random", "repeated keys", "strongest decay", "zero keys", "padded")


def make_inputs(
    launcher: Launcher, seed: int, B: int, T: int, H: int, N: int, kind: str = "random", S: int | None = None
) -> list[Tensor]:
    """The six inputs and the states, in fp64; S states for sequences in one row."""
    *inputs, state = ordinary_inputs(seed, B, T, H, N, kind)
    generator = torch.Generator().manual_seed(seed + 1)
    if S is not None:
        state = torch.randn(S, H, N, N, generator=generator, dtype=torch.float64)
    if kind in ("zero keys", "padded"):
        chosen = torch.rand(B, T, 1, 1, generator=generator) < 0.5
        emptied = (2, 4, 5) if kind == "zero keys" else (1, 2, 5)  # k, a, b; log_w, k, b
        inputs = [x * ~chosen if i in emptied else x for i, x in enumerate(inputs)]
    return [x.to(launcher.device) for x in (*inputs, state)]


def lowered(given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """As a model hands them over: log_w and the states in fp32."""
    return [x.to(torch.float32 if i in (1, 6) else dtype) for i, x in enumerate(given)]


def run_both(
    launcher: Launcher, given: list[Tensor], cu_seqlens: Tensor | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Output, last states and all gradients of a random weighting of both: of the kernels, and of the definition."""
    *inputs, state = given
    leaves = [x.double().requires_grad_() for x in given]
    results = wkv7_reference(*leaves, cu_seqlens=cu_seqlens)
    weights = [torch.randn(x.shape, dtype=x.dtype, device=x.device) for x in results]
    weights[0] = weights[0].to(inputs[3].dtype)
    weights[1] = weights[1].float()
    loss = sum((x * weight).sum() for x, weight in zip(results, weights, strict=True))
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
    y, last, entries = cuda_recurrent.forward(launcher, tuple(inputs), state, cu_seqlens, True)
    found = cuda_recurrent.backward(launcher, tuple(inputs), entries, cu_seqlens, *weights)
    expected = dict(zip(NAMES, [x.detach() for x in (*results, *gradients)], strict=True))
    return dict(zip(NAMES, (y, last, *found), strict=True)), expected


def assert_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], seed: int, y: float = 1e-5, d: float = 2e-5
) -> None:
    for name, value in expected.items():
        wrong = error(found[name], value)
        bound = d if name.startswith("d_") else y
        assert wrong < bound, f"{name} is off by {wrong:.1e}, expected below {bound:.0e} (seed {seed})"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 70])
@pytest.mark.parametrize("processors", [1, 64])  # many heads for them: 8 rows in a thread; few: 2, and 4 backward
def test_agrees_with_the_reference(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, processors: int, T: int, kind: str, seed: int
) -> None:
    monkeypatch.setattr(launcher, "processors", processors)
    given = lowered(make_inputs(launcher, seed, 2, T, 2, 64, kind), torch.float32)
    assert_close(*run_both(launcher, given), seed)


@pytest.mark.parametrize(("N", "T"), [(16, 33), (24, 17), (128, 140)])
def test_head_sizes(launcher: Launcher, N: int, T: int, seed: int) -> None:
    given = lowered(make_inputs(launcher, seed, 1, T, 3, N), torch.float32)
    assert_close(*run_both(launcher, given), seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(launcher: Launcher, dtype: torch.dtype, seed: int) -> None:
    given = lowered(make_inputs(launcher, seed, 1, 70, 2, 64), dtype)
    found, expected = run_both(launcher, given)
    kept = ("last", "d_log_w", "d_state")
    assert all(x.dtype == (torch.float32 if name in kept else dtype) for name, x in found.items())
    assert_close(found, expected, seed, y=5e-3, d=1e-2)
    assert_close({name: found[name] for name in kept}, {name: expected[name] for name in kept}, seed)


def test_chips_without_bf16_conversions() -> None:
    launcher = EmulatedLauncher(capability=(7, 5))
    given = lowered(make_inputs(launcher, 1, 1, 9, 1, 16), torch.bfloat16)
    assert_close(*run_both(launcher, given), 1, y=5e-3, d=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_in_one_row(launcher: Launcher, kind: str, seed: int) -> None:
    ends = torch.tensor([0, 0, 67, 67, 68, 131, 131], dtype=torch.int32, device=launcher.device)
    given = lowered(make_inputs(launcher, seed, 1, 131, 2, 64, kind, S=6), torch.float32)
    assert_close(*run_both(launcher, given, ends), seed)


def test_any_shape(launcher: Launcher, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(8):
        N, T, H = draw.choice([16, 64]), draw.randint(1, 100), draw.randint(1, 5)
        if draw.random() < 0.5:
            ends = [0, *sorted(draw.randint(0, T) for _ in range(draw.randint(0, 4))), T]
            shape, cu_seqlens = (1, T, H, N), torch.tensor(ends, dtype=torch.int32, device=launcher.device)
            given = make_inputs(launcher, seed, *shape, draw.choice(KINDS), S=len(ends) - 1)
        else:
            shape, cu_seqlens = (draw.randint(1, 3), T, H, N), None
            given = make_inputs(launcher, seed, *shape, draw.choice(KINDS))
        found, expected = run_both(launcher, lowered(given, torch.float32), cu_seqlens)
        assert_close(found, expected, f"{seed}, {shape}, {cu_seqlens}")


def test_entries_are_the_states_before_the_spans(launcher: Launcher, seed: int) -> None:
    *inputs, state = make_inputs(launcher, seed, 2, 150, 2, 64)
    given = lowered([*inputs, state], torch.float32)
    _, _, entries = cuda_recurrent.forward(launcher, tuple(given[:6]), given[6], None, True)
    assert entries.shape == (6, 2, 64, 64)
    for b in range(2):
        for i, steps in enumerate((0, 64, 128)):
            before = wkv7_reference(*(x[b : b + 1, :steps] for x in inputs), state[b : b + 1])[1][0]
            assert error(entries[3 * b + i], before) < 1e-5, f"row {b}, span {i} (seed {seed})"

    ends = torch.tensor([0, 70, 70, 150], dtype=torch.int32, device=launcher.device)
    *inputs, state = make_inputs(launcher, seed, 1, 150, 2, 64, S=3)
    given = lowered([*inputs, state], torch.float32)
    _, _, entries = cuda_recurrent.forward(launcher, tuple(given[:6]), given[6], ends, True)
    assert len(entries) == 150 // 64 + 3
    for s, (start, end) in enumerate(pairwise(ends.tolist())):
        for i, step in enumerate(range(start, end, 64)):
            before = wkv7_reference(*(x[:, start:step] for x in inputs), state[s : s + 1])[1][0]
            assert error(entries[start // 64 + s + i], before) < 1e-5, f"sequence {s}, span {i} (seed {seed})"


def test_nothing_given_is_zeros(launcher: Launcher, seed: int) -> None:
    """No state, no gradient of the last one, a gradient of y without memory of its own, an unaligned input."""
    *inputs, state = lowered(make_inputs(launcher, seed, 2, 70, 2, 64), torch.float32)
    shifted = torch.cat([inputs[0].new_zeros(1), inputs[0].flatten()])[1:].view_as(inputs[0])
    assert shifted.data_ptr() % 16
    zeros = torch.zeros_like(state)
    expected, expected_entries = [], []
    for given, first, last in ((tuple(inputs), zeros, zeros), ((shifted, *inputs[1:]), None, None)):
        d_y = torch.ones_like(inputs[3][:1, :1]).expand_as(inputs[3])
        y, final, entries = cuda_recurrent.forward(launcher, given, first, None, True)
        expected.append((y, final, *cuda_recurrent.backward(launcher, given, entries, None, d_y, last)))
        expected_entries.append(entries)
        y, _, none = cuda_recurrent.forward(launcher, given, first, None, False)
        assert torch.equal(y, expected[-1][0])
        assert none.numel() == 0
    assert torch.equal(*expected_entries)
    assert all(torch.equal(*pair) for pair in zip(*expected, strict=True)), f"seed {seed}"


def test_what_is_supported() -> None:
    def inputs(N: int, dtype: torch.dtype, log_w: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        x, w = torch.zeros(1, 1, 1, N, dtype=dtype), torch.zeros(1, 1, 1, N, dtype=log_w)
        return x, w, x, x, x, x

    assert all(cuda_recurrent.supports(inputs(N, torch.float16)) for N in (8, 16, 32, 64, 72, 128))
    assert not any(cuda_recurrent.supports(inputs(N, torch.float32)) for N in (4, 20, 136))
    assert not cuda_recurrent.supports(inputs(64, torch.float64))
    assert not cuda_recurrent.supports(inputs(64, torch.float32, torch.float64))
    assert not cuda_recurrent.supports((*inputs(64, torch.float32)[:5], inputs(64, torch.float16)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["thread", "address"])
@pytest.mark.parametrize(("N", "dtype"), [(64, torch.bfloat16), (24, torch.float32), (128, torch.float16)])
def test_under_sanitizers(N: int, dtype: torch.dtype, sanitize: str, seed: int) -> None:
    launcher = EmulatedLauncher(sanitize=sanitize)
    ends = torch.tensor([0, 17, 17, 90], dtype=torch.int32)
    given = lowered(make_inputs(launcher, seed, 1, 90, 2, N, S=3), dtype)
    loose = {} if dtype == torch.float32 else {"y": 5e-3, "d": 1e-2}
    assert_close(*run_both(launcher, given, ends), seed, **loose)
