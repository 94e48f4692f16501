"""The chunked CUDA kernels against the definition in fp64: outputs, last states, and every gradient.

They run over the emulation, and on a GPU where there is one. B batch, T time, H heads, N head size.
"""

import random
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from mm_rwkv7.ops import cuda_chunked, wkv7_reference
from mm_rwkv7.ops.kernel import Kernel, Launcher
from tests.mm_rwkv7.emulation import EmulatedLauncher
from tests.mm_rwkv7.test_wkv7 import NAMES, error, random_inputs

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Given = list[Tensor | None]  # r, log_w, k, v, a, b and the state, or none
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FEW = 32  # steps of a head, all together: the rounding of a product of fewer is not averaged away
KINDS = ("random", "repeated keys", "strongest decay", "zero keys")
EVERY = [(64, BF16), (64, FP32), (128, BF16)]  # a kernel of its own each; the rest takes as long to compile
EVERY += [pytest.param(*x, marks=pytest.mark.slow) for x in ((64, FP16), (128, FP16), (128, FP32))]


def model_inputs(seed: int, B: int, T: int, H: int, N: int, dtype: torch.dtype, kind: str = "random") -> list[Tensor]:
    """The six inputs in the kernels' types, and a state."""
    inputs = random_inputs(seed, B, T, H, N, kind)
    if kind == "zero keys":
        for i in (2, 4, 5):
            inputs[i][:, ::3] = 0
    return [x.float() if name in ("log_w", "state") else x.to(dtype) for name, x in zip(NAMES, inputs, strict=True)]


def weights(seed: int, inputs: list[Tensor], sequences: int) -> list[Tensor]:
    """Gradients of y and of the last states."""
    generator = torch.Generator().manual_seed(seed + 1)
    v = inputs[3]
    *_, heads, size = v.shape
    d_y = torch.randn(v.shape, generator=generator).to(v.dtype)
    return [d_y, torch.randn(sequences, heads, size, size, generator=generator)]


def run(
    launcher: Launcher, given: Given, d_y: Tensor, d_final: Tensor | None, ends: Tensor | None
) -> dict[str, Tensor]:
    """What the kernels compute, by name."""

    def there(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(launcher.device)

    inputs, state, ends = tuple(x.to(launcher.device) for x in given[:6]), there(given[6]), there(ends)
    assert cuda_chunked.supports(inputs)
    y, last, entries = cuda_chunked.forward(launcher, inputs, state, ends, keep=True)
    gradients = cuda_chunked.backward(launcher, inputs, entries, ends, d_y.to(launcher.device), there(d_final))
    assert y.dtype == inputs[3].dtype
    assert [x.dtype for x in gradients] == [*(x.dtype for x in inputs), torch.float32]
    found = {"y": y, "last": last, **{f"d_{name}": d for name, d in zip(NAMES, gradients, strict=True)}}
    return {name: x.cpu() for name, x in found.items()}


def truth(given: Given, d_y: Tensor, d_final: Tensor | None, ends: Tensor | None) -> dict[str, Tensor]:
    """The same by the definition in fp64 and autograd."""
    _, _, heads, size = given[0].shape
    rows = len(given[0]) if ends is None else len(ends) - 1
    state = torch.zeros(rows, heads, size, size) if given[6] is None else given[6]
    leaves = [x.double().requires_grad_() for x in (*given[:6], state)]
    y, last = wkv7_reference(*leaves, cu_seqlens=ends)
    loss = (y * d_y.double()).sum() + (0 if d_final is None else (last * d_final.double()).sum())
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return {"y": y.detach(), "last": last.detach(), **{f"d_{n}": d for n, d in zip(NAMES, gradients, strict=True)}}


def check(
    launcher: Launcher,
    given: Given,
    d_y: Tensor,
    d_final: Tensor | None,
    seed: int,
    ends: Tensor | None = None,
    adversarial: bool = False,
) -> None:
    precise = given[0].dtype == FP32
    found, expected = run(launcher, given, d_y, d_final, ends), truth(given, d_y, d_final, ends)
    for name, value in expected.items():
        bound = 1e-4 if precise else 5e-3 if name in ("y", "last") else 2e-2 if adversarial else 1e-2
        wrong = error(found[name], value)
        assert wrong < bound, f"{name} is off by {wrong:.1e} (seed {seed})"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "dtype"), EVERY)
def test_agrees_with_the_reference(launcher: Launcher, size: int, dtype: torch.dtype, kind: str, seed: int) -> None:
    given = model_inputs(seed, B=2, T=150, H=1, N=size, dtype=dtype, kind=kind)
    check(launcher, [*given], *weights(seed, given, 2), seed, adversarial=kind != "random")


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 32, 33, 63, 64, 65, 128, 129])
def test_any_number_of_steps(launcher: Launcher, T: int, seed: int) -> None:
    given = model_inputs(seed, B=1, T=T, H=max(2, FEW // T), N=64, dtype=BF16)
    check(launcher, [*given], *weights(seed, given, 1), seed)


@pytest.mark.parametrize(("size", "dtype"), EVERY)
@pytest.mark.parametrize("used", ["y", "last"])
def test_a_gradient_of_one_result_alone(
    launcher: Launcher, size: int, dtype: torch.dtype, used: str, seed: int
) -> None:
    given = model_inputs(seed, B=1, T=20, H=1, N=size, dtype=dtype)
    d_y, d_final = weights(seed, given, 1)
    if used == "y":
        check(launcher, [*given], d_y, None, seed)
    else:
        check(launcher, [*given], torch.zeros_like(d_y), d_final, seed)


def test_without_a_state_it_starts_from_zeros(launcher: Launcher, seed: int) -> None:
    given = model_inputs(seed, B=2, T=70, H=1, N=64, dtype=BF16)
    check(launcher, [*given[:6], None], *weights(seed, given, 2), seed)


@pytest.mark.parametrize(("size", "dtype"), EVERY)
def test_sequences_in_one_row(launcher: Launcher, size: int, dtype: torch.dtype, seed: int) -> None:
    lengths = (0, 3, 0, size + 7, 1, 0)
    given = model_inputs(seed, B=1, T=sum(lengths), H=2, N=size, dtype=dtype)
    given[6] = random_inputs(seed + 1, len(lengths), 1, 2, size)[6].float()
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    check(launcher, [*given], *weights(seed, given, len(lengths)), seed, ends)
    check(launcher, [*given[:6], None], *weights(seed, given, len(lengths)), seed, ends)


def test_keeps_the_states_before_each_span(launcher: Launcher, seed: int) -> None:
    *inputs, state = (x.to(launcher.device) for x in model_inputs(seed, B=2, T=150, H=2, N=64, dtype=FP32))
    y, last, entries = cuda_chunked.forward(launcher, tuple(inputs), state, None, keep=True)
    assert entries.shape == (6, 2, 64, 64)
    assert torch.equal(entries[::3], state)
    _, middle = wkv7_reference(*(x[:, :128].double() for x in inputs), state.double())
    assert error(entries[2::3], middle) < 1e-4, f"seed {seed}"
    again, last_again, nothing = cuda_chunked.forward(launcher, tuple(inputs), state, None, keep=False)
    assert len(nothing) == 0
    assert torch.equal(again, y)
    assert torch.equal(last_again, last)


@pytest.mark.parametrize(
    ("size", "values"),
    [(64, 64), (64, 32), *(pytest.param(128, n, marks=pytest.mark.slow) for n in (128, 64, 32))],
)
def test_values_split_over_blocks(size: int, values: int, seed: int) -> None:
    """With processors to spare, the rows of a state go to several blocks, and nothing else changes."""
    launched: list[Kernel] = []

    class Watched(EmulatedLauncher):
        def __call__(self, kernel: Kernel, *rest: object) -> None:
            launched.append(kernel)
            super().__call__(kernel, *rest)

    given = model_inputs(seed, B=1, T=70, H=2, N=size, dtype=BF16)
    check(Watched(processors=2 * size // values), [*given], *weights(seed, given, 1), seed)
    assert dict(launched[0].defines)["VALUES"] == values


def fuzz(launcher: Launcher, seed: int, size: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    heads, kind = draw.choice([1, 2, 3]), draw.choice(KINDS)
    lengths = [draw.choice([0, 1, draw.randrange(40), draw.randrange(200)]) for _ in range(draw.randint(1, 4))]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) if draw.random() < 0.5 else None
    batch, time = (1, sum(lengths)) if ends is not None else (len(lengths), max(1, lengths[0]))
    heads *= max(1, FEW // max(1, batch * time))
    given = model_inputs(seed, batch, time, heads, size, dtype, kind)
    given[6] = random_inputs(seed + 1, len(lengths), 1, heads, size)[6].float()
    check(launcher, [*given], *weights(seed, given, len(lengths)), seed, ends, adversarial=True)


@pytest.mark.parametrize("number", range(6))
def test_any_shape(launcher: Launcher, number: int, seed: int) -> None:
    fuzz(launcher, seed, *EVERY[number % 3])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(24))
def test_many_shapes(launcher: Launcher, number: int, seed: int) -> None:
    fuzz(launcher, seed, (64, 128)[number % 2], (BF16, FP16, FP32)[number % 3])


def test_no_step_at_all_returns_the_state(launcher: Launcher, seed: int) -> None:
    given = model_inputs(seed, B=2, T=0, H=2, N=64, dtype=BF16)
    d_y, d_final = weights(seed, given, 2)
    found = run(launcher, [*given], d_y, d_final, None)
    assert torch.equal(found["last"], given[6])
    assert torch.equal(found["d_state"], d_final)


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["thread", "address"])
@pytest.mark.parametrize(("size", "dtype"), [(64, BF16), (64, FP32), (128, BF16)])
def test_no_barrier_is_missing_and_no_access_outside(sanitize: str, size: int, dtype: torch.dtype, seed: int) -> None:
    lengths = (size + 10, 0, 1)
    given = model_inputs(seed, B=1, T=sum(lengths), H=2, N=size, dtype=dtype)
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    launcher = EmulatedLauncher(processors=1, sanitize=sanitize)
    check(launcher, [*given[:6], None], *weights(seed, given, len(lengths)), seed, ends, adversarial=True)


def test_supports_what_it_can_compute() -> None:
    def inputs(size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        shape = (1, 1, 1, size)
        return tuple(torch.zeros(shape, dtype=torch.float32 if i == 1 else dtype) for i in range(6))

    assert all(cuda_chunked.supports(inputs(size, dtype)) for size in (64, 128) for dtype in (BF16, FP16, FP32))
    assert not cuda_chunked.supports(inputs(32, BF16))
    assert not cuda_chunked.supports(inputs(64, torch.float64))
    mixed = inputs(64, BF16)
    assert not cuda_chunked.supports((*mixed[:3], mixed[3].float(), *mixed[4:]))
