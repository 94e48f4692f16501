"""The CPU's paths of the recurrence, the C kernel and torch alone, each against the definition in fp64.

B batch, T time, H heads, N head size, S sequences. Inputs are new in every run; a failure names their seed.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mm_rwkv7.ops import dispatch, library, native, wkv7, wkv7_reference, wkv_reason
from mm_rwkv7.ops.entries import entry_rows, span_of
from tests.mm_rwkv7.test_wkv7 import NAMES, assert_close, error, random_inputs, results

pytestmark = pytest.mark.usefixtures("poisoned_memory")

KINDS = ("random", "repeated keys", "strongest decay")
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch works alone, and so the reference does not wait for a busy machine; the kernel is told two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    yield
    monkeypatch.undo()
    torch.set_num_threads(before)


@pytest.fixture
def kernel() -> None:
    """Skips where there is no C compiler."""
    if reason := wkv_reason("cpu"):
        pytest.skip(reason)


@pytest.fixture(params=["native", "torch-chunked"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Takes the test through one path and then through the other."""
    if request.param == "native":
        request.getfixturevalue("kernel")
        monkeypatch.setattr(dispatch, "_portable", None)
    else:
        monkeypatch.setattr(dispatch, "reason_against", lambda *_: "the test wants the portable path")
    return request.param


def lowered(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """As a model hands them over: log_w and the state in fp32."""
    return [x.to(torch.float32 if name in ("log_w", "state") else dtype) for name, x in zip(NAMES, inputs, strict=True)]


def assert_right(inputs: list[Tensor], seed: int, y: float = 1e-5, d: float = 1e-5, **options: Tensor) -> None:
    """Output, last state and every gradient, and the output where no gradient is wanted."""
    expected = results(lambda *x: wkv7_reference(*x, **options), [x.double() for x in inputs], seed)
    assert_close(results(lambda *x: wkv7(*x, **options), inputs, seed), expected, y, d, seed)
    with torch.no_grad():
        found_y, last = wkv7(*inputs, **options)
    assert error(found_y, expected["y"]) < y, f"seed {seed}"
    assert error(last, expected["last"]) < 1e-5, f"seed {seed}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("T", "N"), [(1, 64), (2, 8), (17, 24), (64, 64), (65, 16), (130, 64), (129, 128), (19, 256)])
def test_each_path_agrees_with_the_reference(path: str, kind: str, T: int, N: int, seed: int) -> None:
    assert_right([x.float() for x in random_inputs(seed, B=2, T=T, H=2, N=N, kind=kind)], seed)


def test_each_path_starts_from_zeros(path: str, seed: int) -> None:
    *inputs, _ = (x.float() for x in random_inputs(seed, B=2, T=70, H=2, N=16))
    assert_right(inputs, seed)
    one_step = [x[:, :1] for x in inputs]
    with torch.no_grad():
        assert error(wkv7(*one_step)[0], wkv7_reference(*one_step)[0]) < 1e-5, f"seed {seed}"


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("T", [1, 70])
def test_each_path_takes_half_precision(path: str, dtype: torch.dtype, T: int, seed: int) -> None:
    assert_right(lowered(random_inputs(seed, B=1, T=T, H=2, N=64), dtype), seed, 5e-3, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("N", [64, 128])
def test_each_path_takes_sequences_in_one_row(path: str, dtype: torch.dtype, N: int, seed: int) -> None:
    lengths = (0, 3, 0, 150, 1, 64, 0)
    *inputs, _ = lowered(random_inputs(seed, B=1, T=sum(lengths), H=2, N=N), dtype)
    state = random_inputs(seed + 1, B=len(lengths), T=1, H=2, N=N)[6].float()
    ends = torch.tensor([0, *lengths]).cumsum(0)
    bounds = (1e-5, 1e-5) if dtype == torch.float32 else (5e-3, 1e-2)
    assert_right([*inputs, state], seed, *bounds, cu_seqlens=ends)


def test_inputs_of_several_dtypes_take_the_widest(path: str, seed: int) -> None:
    inputs = [x.float() for x in random_inputs(seed, B=1, T=20, H=2, N=16)]
    r, log_w, k, v, a, b, state = inputs
    mixed = [r.bfloat16(), log_w, k.half(), v.half(), a, b.bfloat16(), state]
    found = results(wkv7, mixed, seed)
    for name, x in zip(NAMES, mixed, strict=True):
        assert found[f"d_{name}"].dtype == x.dtype
    assert found["y"].dtype == torch.float16
    expected = results(wkv7_reference, [x.double() for x in mixed], seed)
    assert_close(found, expected, 1e-3, 5e-3, seed)
    assert error(found["last"], expected["last"]) < 1e-5, f"seed {seed}"


def test_inputs_in_any_strides(path: str, seed: int) -> None:
    inputs = [x.float() for x in random_inputs(seed, B=2, T=70, H=3, N=16)]
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:6]]
    strided.append(inputs[6].mT.contiguous().mT)
    assert_right(strided, seed)
    y, _ = wkv7(*(x.requires_grad_() for x in strided))
    found = torch.autograd.grad(y.sum(), strided)  # the gradient of a sum has no memory of its own
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(wkv7_reference(*exact)[0].sum(), exact)
    for name, mine, theirs in zip(NAMES, found, expected, strict=True):
        assert error(mine, theirs) < 1e-5, f"d_{name} (seed {seed})"


@pytest.mark.parametrize("used", [0, 1])
def test_gradient_of_one_of_the_results_alone(path: str, used: int, seed: int) -> None:
    inputs = [x.float().requires_grad_() for x in random_inputs(seed, B=1, T=40, H=2, N=16)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found = torch.autograd.grad(wkv7(*inputs)[used].sum(), inputs, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(wkv7_reference(*exact)[used].sum(), exact, allow_unused=True, materialize_grads=True)
    for name, mine, theirs in zip(NAMES, found, expected, strict=True):
        assert error(mine, theirs) < 1e-5, f"d_{name} (seed {seed})"


@pytest.mark.usefixtures("kernel")
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    B, T, H, N, seed = draw(1, 3), draw(1, 140), draw(1, 4), 8 * draw(1, 9), draw(0, 2**31 - 1)
    dtype, kind = data.draw(st.sampled_from([torch.float32, *HALF])), data.draw(st.sampled_from(KINDS))
    threads = draw(1, 6)
    *inputs, state = lowered(random_inputs(seed, B, T, H, N, kind), dtype)
    options = {}
    if B == 1 and data.draw(st.booleans()):
        ends = [0, *sorted(draw(0, T) for _ in range(draw(0, 4))), T]
        options["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32)
        state = random_inputs(seed + 1, len(ends) - 1, 1, H, N)[6].float()
    bounds = (1e-5, 1e-5) if dtype == torch.float32 else (5e-3, 2e-2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert_right([*inputs, state], seed, *bounds, **options)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("ends", [None, [0, 0, 70, 70, 75, 200]])
@pytest.mark.parametrize("N", [16, 128])
def test_entries_are_the_states_before_each_span(ends: list[int] | None, N: int, seed: int) -> None:
    B, T, H, span = (2, 200, 2, span_of(N)) if ends is None else (1, 200, 2, span_of(N))
    *inputs, state = (x.float() for x in random_inputs(seed, B, T, H, N))
    cu_seqlens = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    if ends is not None:
        state = state.expand(len(ends) - 1, H, N, N).contiguous()
    _, _, entries = native.forward(tuple(inputs), state, cu_seqlens, True)
    assert len(entries) == entry_rows(B, T, N, None if ends is None else len(ends) - 1)
    if ends is None:
        places = [(b, b, 0, T, b * -(-T // span)) for b in range(B)]
    else:
        places = [(s, 0, start, end, start // span + s) for s, (start, end) in enumerate(pairwise(ends))]
    for s, b, start, end, row in places:
        for i in range(-(-(end - start) // span)):
            pieces = [x[b : b + 1, start : start + i * span].double() for x in inputs]
            _, before = wkv7_reference(*pieces, state[s : s + 1].double())
            assert error(entries[row + i], before[0]) < 1e-5, f"sequence {s}, span {i} (seed {seed})"


@pytest.mark.usefixtures("kernel")
def test_training_keeps_the_inputs_and_the_entries() -> None:
    leaves = [x.float().requires_grad_() for x in random_inputs(0, B=2, T=130, H=2, N=8)[:6]]
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        wkv7(*leaves)
    assert kept == [(2, 130, 2, 8)] * 6 + [(6, 2, 8, 8)]
    _, _, entries = native.forward(tuple(x.detach() for x in leaves), None, None, False)
    assert entries.numel() == 0


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_the_number_of_threads_changes_nothing(threads: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.float() for x in random_inputs(seed, B=1, T=150, H=2, N=128)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = results(wkv7, inputs, seed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, value in results(wkv7, inputs, seed).items():
        assert torch.equal(value, alone[name]), f"{name} (seed {seed})"


@pytest.mark.usefixtures("kernel")
def test_calls_from_several_threads_at_once(seed: int) -> None:
    inputs = [x.float() for x in random_inputs(seed, B=2, T=100, H=4, N=64)]
    expected, _ = wkv7(*inputs)
    found: list[Tensor] = []
    callers = [threading.Thread(target=lambda: found.extend(wkv7(*inputs)[0] for _ in range(10))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 40
    assert all(torch.equal(y, expected) for y in found), f"seed {seed}"


@pytest.mark.usefixtures("kernel")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(seed: int) -> None:
    inputs = tuple(x.float() for x in random_inputs(seed, B=2, T=100, H=4, N=64)[:6])
    expected, _, _ = native.forward(inputs, None, None, False)

    def child() -> None:
        same = all(torch.equal(native.forward(inputs, None, None, False)[0], expected) for _ in range(20))
        os._exit(0 if same else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, f"seed {seed}"
    assert torch.equal(native.forward(inputs, None, None, False)[0], expected)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", HALF)
def test_halves_are_read_exactly_and_rounded_to_nearest(dtype: torch.dtype, seed: int) -> None:
    """One step of one key, read under 1: y = v k, which fp32 holds exactly before it is rounded."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    v = patterns[patterns.isfinite()]
    v = torch.cat([v, v.new_zeros(-len(v) % 8)]).view(1, 1, -1, 8)
    one, zero = torch.zeros_like(v), torch.zeros_like(v)
    one[..., 0] = 1
    generator = torch.Generator().manual_seed(seed)
    for factor in (1.0, *(1 + torch.rand(4, generator=generator)).tolist()):
        k = one * factor
        y, _, _ = native.forward((one, zero.float(), k, v, zero, zero), None, None, False)
        expected = (v.float() * k[..., :1].float()).to(dtype)
        assert torch.equal(y, expected), f"factor {factor} (seed {seed})"


@pytest.mark.usefixtures("kernel")
def test_bad_ends_that_nobody_looked_at_are_refused_by_the_kernel() -> None:
    inputs = (torch.zeros(1, 8, 1, 8),) * 6
    for ends in ([0, 5, 3, 8], [1, 8], [0, 9]):
        with pytest.raises(ValueError, match=r"expected it to rise from 0 to T = 8"):
            library.wkv7_kernel(*inputs, None, torch.tensor(ends, dtype=torch.int32), False)


@pytest.mark.usefixtures("kernel")
def test_the_operators_refuse_what_the_kernel_would_read_beyond_its_end() -> None:
    x = torch.zeros(1, 20, 1, 8)
    good: list[Tensor | None] = [x] * 6
    state, ends = torch.zeros(1, 1, 8, 8), torch.tensor([0, 20])
    for place, wrong in ((0, x.bfloat16()), (1, x.double()), (2, x[:, :5])):
        given = [*good[:place], wrong, *good[place + 1 :]]
        with pytest.raises(ValueError, match="expected"):
            library.wkv7_kernel(*given, None, None, False)
        with pytest.raises(ValueError, match="expected"):
            library.wkv7_kernel_backward(*given, torch.zeros(1, 1, 8, 8), None, x, None)
    for given in ((state.bfloat16(), None), (state[:0], None), (None, ends)):
        with pytest.raises(ValueError, match="expected"):
            library.wkv7_kernel(*good, *given, False)
    for entries, d_y, d_final in ((state[:0], x, None), (state, x.half(), None), (state, x, state.half())):
        with pytest.raises(ValueError, match="expected"):
            library.wkv7_kernel_backward(*good, entries, None, d_y, d_final)


def test_fake_results_look_like_real_ones(path: str, seed: int) -> None:
    inputs = lowered(random_inputs(seed, B=2, T=70, H=2, N=16), torch.bfloat16)
    real = wkv7(*inputs)
    with FakeTensorMode() as mode:
        fake = wkv7(*(mode.from_tensor(x) for x in inputs))
    for x, y in zip(real, fake, strict=True):
        assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())
