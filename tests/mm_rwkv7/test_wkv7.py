"""Every path of the recurrence against its definition, and the definition against loops over numbers.

B batch, T time, H heads, N head size. Inputs are new in every run; a failure names the seed they came from.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from mm_rwkv7.ops import chunked, wkv7, wkv7_reference, wkv_path

pytestmark = pytest.mark.usefixtures("poisoned_memory")

NAMES = ("r", "log_w", "k", "v", "a", "b", "state")
LENGTHS = (1, 2, 15, 63, 64, 65, 130)
STRONGEST = -(torch.tensor(-0.5, dtype=torch.float64).exp().item())
Wkv7 = Callable[..., tuple[Tensor, Tensor]]


def error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||, and 0 where both are nothing."""
    distance = (found.double() - expected.double()).norm()
    return (distance / expected.double().norm().clamp_min(1e-300)).item() if distance != 0 else 0.0


def random_inputs(seed: int, B: int, T: int, H: int, N: int, kind: str = "random") -> list[Tensor]:
    """The six inputs and a state, in fp64, as a model produces them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    r, k, v, direction, w_raw, iclr_raw = (normal(B, T, H, N) for _ in range(6))
    log_w, iclr = STRONGEST * torch.sigmoid(3 * w_raw), torch.sigmoid(3 * iclr_raw)
    if kind == "strongest decay":
        log_w = torch.full_like(log_w, STRONGEST)
    elif kind == "repeated keys":
        direction, log_w, iclr = direction[:, :1].expand_as(direction), torch.zeros_like(log_w), torch.ones_like(iclr)
    kappa = torch.nn.functional.normalize(direction, dim=-1)
    if kind == "repeated keys":
        k = kappa
    return [r, log_w, k, v, -kappa, kappa * iclr, normal(B, H, N, N)]


def results(op: Wkv7, inputs: list[Tensor], seed: int) -> dict[str, Tensor]:
    """Output, last state and the gradients of a random weighting of both."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y, last = op(*leaves)
    generator = torch.Generator().manual_seed(seed + 1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (y, last)]
    loss = (y * weights[0]).sum() + (last * weights[1]).sum()
    gradients = torch.autograd.grad(loss, leaves)
    named = zip(NAMES, gradients, strict=False)
    return {"y": y.detach(), "last": last.detach(), **{f"d_{name}": d for name, d in named}}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], y: float, d: float, seed: int) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        wrong = error(found[name], value)
        assert wrong < (d if name.startswith("d_") else y), f"{name} is off by {wrong:.1e} (seed {seed})"


def numbers(inputs: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence written out over single numbers."""
    r, log_w, k, v, a, b, state = (x.numpy() for x in inputs)
    B, T, H, N = r.shape
    y, state = np.zeros_like(r), state.copy()
    for n, h in np.ndindex(B, H):
        for t in range(T):
            old = state[n, h].copy()
            for i in range(N):
                removed = sum(old[i, j] * a[n, t, h, j] for j in range(N))
                for j in range(N):
                    decayed = old[i, j] * np.exp(log_w[n, t, h, j])
                    state[n, h, i, j] = decayed + removed * b[n, t, h, j] + v[n, t, h, i] * k[n, t, h, j]
                y[n, t, h, i] = sum(state[n, h, i, j] * r[n, t, h, j] for j in range(N))
    return y, state


@pytest.mark.parametrize("op", [wkv7, wkv7_reference])
def test_agrees_with_the_recurrence_over_single_numbers(op: Wkv7, seed: int) -> None:
    inputs = random_inputs(seed, B=2, T=5, H=2, N=3)
    y, last = numbers(inputs)
    found_y, found_last = op(*inputs)
    assert error(found_y, torch.from_numpy(y)) < 1e-13, f"seed {seed}"
    assert error(found_last, torch.from_numpy(last)) < 1e-13, f"seed {seed}"


@pytest.mark.parametrize("kind", ["random", "repeated keys", "strongest decay"])
@pytest.mark.parametrize("T", LENGTHS)
def test_agrees_with_the_reference_in_fp64(T: int, kind: str, seed: int) -> None:
    inputs = random_inputs(seed, B=2, T=T, H=2, N=16, kind=kind)
    assert_close(results(wkv7, inputs, seed), results(wkv7_reference, inputs, seed), 1e-10, 1e-10, seed)


@pytest.mark.parametrize("kind", ["random", "repeated keys", "strongest decay"])
@pytest.mark.parametrize("T", [1, 37, 130])
def test_agrees_with_the_reference_in_fp32(T: int, kind: str, seed: int) -> None:
    inputs = [x.float() for x in random_inputs(seed, B=1, T=T, H=2, N=64, kind=kind)]
    expected = results(wkv7_reference, [x.double() for x in inputs], seed)
    found = results(wkv7, inputs, seed)
    assert all(x.dtype == torch.float32 for x in found.values())
    assert_close(found, expected, 1e-5, 2e-5, seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_fp32(dtype: torch.dtype, seed: int) -> None:
    kept = ("log_w", "state")
    inputs = [
        x.float() if name in kept else x.to(dtype)
        for name, x in zip(NAMES, random_inputs(seed, B=1, T=70, H=2, N=16), strict=True)
    ]
    found = results(wkv7, inputs, seed)
    assert found["y"].dtype == found["d_a"].dtype == dtype
    assert found["last"].dtype == found["d_log_w"].dtype == found["d_state"].dtype == torch.float32
    assert_close(found, results(wkv7_reference, [x.double() for x in inputs], seed), 5e-3, 1e-2, seed)
    assert error(found["last"], wkv7_reference(*(x.double() for x in inputs))[1]) < 1e-5, f"seed {seed}"


def test_without_a_state_it_starts_from_zeros(seed: int) -> None:
    inputs = random_inputs(seed, B=2, T=70, H=2, N=8)
    zeros = torch.zeros_like(inputs.pop())
    expected = results(wkv7_reference, [*inputs, zeros], seed)
    del expected["d_state"]
    assert_close(results(wkv7, inputs, seed), expected, 1e-10, 1e-10, seed)
    with torch.no_grad():
        assert error(wkv7(*(x[:, :1] for x in inputs))[0], expected["y"][:, :1]) < 1e-12, f"seed {seed}"


@pytest.mark.parametrize("piece", [1, 7, 64, 100])
def test_a_text_in_pieces_is_the_same_as_the_whole(piece: int, seed: int) -> None:
    *inputs, state = random_inputs(seed, B=2, T=150, H=2, N=8)
    whole, last = wkv7_reference(*inputs, state)
    kept, outputs = state.clone(), []
    with torch.inference_mode():
        carried = state
        for start in range(0, 150, piece):
            y, carried = wkv7(*(x[:, start : start + piece] for x in inputs), carried)
            outputs.append(y)
    assert error(torch.cat(outputs, dim=1), whole) < 1e-10, f"seed {seed}"
    assert error(carried, last) < 1e-10, f"seed {seed}"
    assert torch.equal(state, kept), "the caller's state was changed"


def test_gradients_flow_through_pieces(seed: int) -> None:
    inputs = random_inputs(seed, B=1, T=100, H=2, N=8)

    def two_pieces(*given: Tensor) -> tuple[Tensor, Tensor]:
        *sequence, state = given
        first, state = wkv7(*(x[:, :33] for x in sequence), state)
        second, state = wkv7(*(x[:, 33:] for x in sequence), state)
        return torch.cat([first, second], dim=1), state

    assert_close(results(two_pieces, inputs, seed), results(wkv7_reference, inputs, seed), 1e-10, 1e-10, seed)


@pytest.mark.parametrize("used", ["y", "last"])
def test_gradient_of_one_of_the_results_alone(used: str, seed: int) -> None:
    inputs = random_inputs(seed, B=1, T=70, H=2, N=8)
    gradients = []
    for op in (wkv7, wkv7_reference):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y, last = op(*leaves)
        loss = {"y": y, "last": last}[used].sum()  # its gradient is expanded, without memory of its own
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    for name, found, expected in zip(NAMES, *gradients, strict=True):
        assert error(found, expected) < 1e-10, f"d_{name} (seed {seed})"


def test_gradcheck(seed: int) -> None:
    inputs = random_inputs(seed, B=1, T=5, H=1, N=3)
    assert torch.autograd.gradcheck(wkv7, [x.requires_grad_() for x in inputs]), f"seed {seed}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_derivatives_and_transforms(dtype: torch.dtype, seed: int) -> None:
    """<d, J t> is the same from either side; what a kernel cannot carry on is not dropped."""
    inputs = [x.to(dtype) for x in random_inputs(seed, B=2, T=5, H=2, N=8)]
    d, *tangents = (torch.randn_like(x) for x in (inputs[3], *inputs))
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(wkv7(*leaves)[0], leaves, d)
    terms = torch.stack([g * t for g, t in zip(gradients[:6], tangents, strict=False)])
    expected = terms.sum() + (gradients[6] * tangents[6]).sum()
    with forward_ad.dual_level():
        y, _ = wkv7(*map(forward_ad.make_dual, inputs, tangents))
        tangent = forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    assert abs((tangent * d).sum() - expected) < 1e-5 * terms.abs().sum(), f"seed {seed}"
    _, tangent = torch.func.jvp(lambda *x: wkv7(*x)[0], tuple(inputs), tuple(tangents))
    assert abs((tangent * d).sum() - expected) < 1e-5 * terms.abs().sum(), f"seed {seed}"
    found = torch.func.grad(lambda r: (wkv7(r, *inputs[1:])[0] * d).sum())(inputs[0])
    assert error(found, gradients[0]) < 1e-5, f"seed {seed}"
    several = [torch.stack([x, x / 2]) for x in inputs]
    y, last = torch.func.vmap(wkv7)(*several)
    for i in range(2):
        y_alone, last_alone = wkv7(*(x[i] for x in several))
        assert max(error(y[i], y_alone), error(last[i], last_alone)) < 1e-5, f"seed {seed}"


def test_padded_steps_leave_the_state_and_the_other_steps_alone(seed: int) -> None:
    *inputs, state = random_inputs(seed, B=1, T=90, H=2, N=8)
    real = torch.rand(90, generator=torch.Generator().manual_seed(seed)) > 0.4
    r, log_w, k, v, a, b = inputs
    mask = real[:, None, None]
    y, last = wkv7(r, log_w * mask, k * mask, v, a, b * mask, state)
    expected, expected_last = wkv7(*(x[:, real] for x in inputs), state)
    assert error(y[:, real], expected) < 1e-10, f"seed {seed}"
    assert error(last, expected_last) < 1e-10, f"seed {seed}"


def test_rows_of_a_batch_do_not_meet(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS", 2 * 2 * 8 * 64)  # two of five rows at a time
    inputs = random_inputs(seed, B=5, T=70, H=2, N=8)
    together = results(wkv7, inputs, seed)
    assert_close(together, results(wkv7_reference, inputs, seed), 1e-10, 1e-10, seed)
    for row in range(5):
        y, last = wkv7(*(x[row : row + 1] for x in inputs))
        assert error(y[0], together["y"][row]) < 1e-12, f"seed {seed}"
        assert error(last[0], together["last"][row]) < 1e-12, f"seed {seed}"


def test_inputs_in_any_strides(seed: int) -> None:
    inputs = random_inputs(seed, B=2, T=70, H=3, N=8)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:6]]
    strided.append(inputs[6].mT.contiguous().mT)
    assert error(wkv7(*strided)[0], wkv7(*inputs)[0]) < 1e-12, f"seed {seed}"


@pytest.mark.parametrize("op", [wkv7, wkv7_reference])
@pytest.mark.parametrize("with_state", [True, False])
def test_sequences_in_one_row_are_the_same_as_apart(op: Wkv7, with_state: bool, seed: int) -> None:
    lengths = (3, 0, 70, 1, 0)
    *inputs, _ = random_inputs(seed, B=1, T=sum(lengths), H=2, N=8)
    states = random_inputs(seed + 1, B=len(lengths), T=1, H=2, N=8)[6]
    given = [*inputs, states] if with_state else inputs
    ends = torch.tensor([0, 3, 3, 73, 74, 74], dtype=torch.int32)

    def packed(*given: Tensor) -> tuple[Tensor, Tensor]:
        return op(*given[:6], given[6] if with_state else None, cu_seqlens=ends)

    def apart(*given: Tensor) -> tuple[Tensor, Tensor]:
        pieces = []
        for i, sequence in enumerate(zip(*(x.split(lengths, dim=1) for x in given[:6]), strict=True)):
            if lengths[i]:
                pieces.append(wkv7_reference(*sequence, given[6][i : i + 1] if with_state else None))
            else:
                state = given[6][i : i + 1] if with_state else torch.zeros_like(states[:1])
                pieces.append((sequence[3], state))
        return torch.cat([y for y, _ in pieces], dim=1), torch.cat([last for _, last in pieces])

    assert_close(results(packed, given, seed), results(apart, given, seed), 1e-10, 1e-10, seed)


def test_no_step_at_all_returns_the_state(seed: int) -> None:
    *inputs, state = random_inputs(seed, B=2, T=0, H=2, N=4)
    y, last = wkv7(*inputs, state)
    assert y.shape == (2, 0, 2, 4)
    assert torch.equal(last, state)
    assert last is not state
    assert torch.equal(wkv7(*inputs)[1], torch.zeros_like(state))


def test_autocast_does_not_lower_the_precision(seed: int) -> None:
    inputs = [x.float() for x in random_inputs(seed, B=1, T=70, H=2, N=16)]
    one_step = [*(x[:, :1] for x in inputs[:6]), inputs[6]]
    expected, expected_step = results(wkv7, inputs, seed), wkv7_reference(*one_step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(wkv7, inputs, seed)
        with torch.no_grad():
            found_step = wkv7(*one_step)
    assert_close(found, expected, 1e-6, 1e-6, seed)
    assert error(found_step[0], expected_step[0]) < 1e-6, f"seed {seed}"


def test_training_keeps_the_inputs_and_a_state_for_each_chunk(seed: int) -> None:
    *inputs, _ = random_inputs(seed, B=2, T=130, H=2, N=8)
    leaves = [x.requires_grad_() for x in inputs]
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.shape)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        wkv7(*leaves)
    assert kept == [(2, 130, 2, 8)] * 6 + [(2, 2, 8, 8)] * 3
    with torch.no_grad():
        assert wkv7(*leaves)[0].grad_fn is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": torch.zeros(2, 3, 4)}, r"r has shape \(2, 3, 4\), expected \(B, T, H, N\)"),
        ({"k": torch.zeros(2, 3, 2, 5)}, r"k has shape \(2, 3, 2, 5\), expected \(2, 3, 2, 4\)"),
        ({"log_w": torch.zeros(2, 3, 2, 4).bfloat16()}, "log_w is torch.bfloat16, expected float32"),
        ({"v": torch.zeros(2, 3, 2, 4).double()}, "v is torch.float64, expected"),
        ({"b": torch.zeros(2, 3, 2, 4).long()}, "b is torch.int64, expected"),
        ({"state": torch.zeros(1, 2, 4, 4)}, r"state has shape \(1, 2, 4, 4\), expected \(2, 2, 4, 4\)"),
        ({"state": torch.zeros(2, 2, 4, 4).half()}, "state is torch.float16, expected float32"),
        ({"cu_seqlens": torch.tensor([0, 3])}, "B = 2, expected B = 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor], message: str) -> None:
    inputs = dict.fromkeys(NAMES[:6], torch.zeros(2, 3, 2, 4))
    with pytest.raises(ValueError, match=message):
        wkv7(**{**inputs, **changes})


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([0, 2], r"cu_seqlens is \[0, 2\], expected it to rise from 0 to T = 3"),
        ([1, 3], "expected it to rise from 0"),
        ([0, 2, 1, 3], "expected it to rise from 0"),
        ([0], r"of shape \(1,\), expected integers of shape \(S \+ 1,\)"),
        ([0.0, 3.0], "torch.float32 .* expected integers"),
        ([[0, 3]], r"of shape \(1, 2\)"),
    ],
)
def test_sequence_ends_that_do_not_fit_are_refused(ends: list, message: str) -> None:
    inputs = dict.fromkeys(NAMES[:6], torch.zeros(1, 3, 2, 4))
    with pytest.raises(ValueError, match=message):
        wkv7(**inputs, cu_seqlens=torch.tensor(ends))


def test_the_state_is_one_for_each_sequence() -> None:
    inputs = dict.fromkeys(NAMES[:6], torch.zeros(1, 3, 2, 4))
    with pytest.raises(ValueError, match=r"expected \(2, 2, 4, 4\)"):
        wkv7(**inputs, state=torch.zeros(1, 2, 4, 4), cu_seqlens=torch.tensor([0, 1, 3]))


def test_the_path_has_a_name() -> None:
    assert wkv_path("cpu") == wkv_path(torch.device("cpu"))
    assert wkv_path("meta") == "torch-chunked (meta)"
