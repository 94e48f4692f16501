"""The scan of one long sequence in pieces against the definition of the recurrence in fp64.

B batch, T time, H heads, N head size, S sequences, P pieces. A failure names the seed that its inputs came from.
"""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mm_rwkv7.ops import cuda_recurrent, cuda_scan, wkv7_reference
from mm_rwkv7.ops.kernel import Launcher
from tests.mm_rwkv7.emulation import EmulatedLauncher
from tests.mm_rwkv7.test_wkv7 import error
from tests.mm_rwkv7.test_wkv7_recurrent import KINDS, lowered, make_inputs

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bound_of(dtype: torch.dtype, kind: str) -> float:
    """bf16 operands for half precision, bf16 pairs for fp32."""
    return 1e-4 if dtype == torch.float32 else 5e-3 if kind == "random" else 2e-2


def maps(inputs: list[Tensor], cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """M and D by the definition: D is what becomes of zeros, M what becomes of each unit key but for that."""
    B, _, H, N = inputs[0].shape
    P = B if cu_seqlens is None else len(cu_seqlens) - 1
    nothing = inputs[0].new_zeros(P, H, N, N)
    units = torch.eye(N, dtype=nothing.dtype, device=nothing.device).expand_as(nothing)
    d, moved = (wkv7_reference(*inputs, state, cu_seqlens)[1] for state in (nothing, units))
    return moved - d, d


def assert_maps(
    launcher: Launcher, given: list[Tensor], cu_seqlens: Tensor | None, seed: object, kind: str = "random"
) -> None:
    """M is compared as the change of states that it is: where it vanishes, its own size says nothing."""
    inputs = given[:6]
    m, d = cuda_scan.affine(launcher, tuple(inputs), cu_seqlens)
    expected_m, expected_d = maps([x.double() for x in inputs], cu_seqlens)
    bound = bound_of(inputs[0].dtype, kind)
    units = torch.eye(m.shape[-1], dtype=torch.float64, device=m.device).expand_as(m)
    wrong = (m - expected_m).norm() / torch.maximum(expected_m.norm(), 1e-2 * units.norm())
    assert wrong < bound, f"M is off by {wrong:.1e} (seed {seed})"
    assert (wrong := error(d, expected_d)) < bound, f"D is off by {wrong:.1e} (seed {seed})"


def assert_scans(
    launcher: Launcher,
    given: list[Tensor],
    cu_seqlens: Tensor | None,
    length: int,
    seed: object,
    kind: str = "random",
) -> None:
    *inputs, state = given
    y, last = wkv7_reference(*(x.double() for x in inputs), state.double(), cu_seqlens)
    plain = cuda_recurrent.forward
    found_y, found_last = cuda_scan.forward(launcher, tuple(inputs), state, cu_seqlens, length, plain)
    assert found_y.shape == y.shape
    assert found_y.dtype == inputs[3].dtype
    for name, found, expected in (("y", found_y, y), ("last", found_last, last)):
        wrong = error(found, expected)
        assert wrong < bound_of(inputs[0].dtype, kind), f"{name} is off by {wrong:.1e} (seed {seed})"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_adversarial_inputs(launcher: Launcher, kind: str, dtype: torch.dtype, seed: int) -> None:
    for T in (1, 16, 67):
        assert_maps(launcher, lowered(make_inputs(launcher, seed, 2, T, 1, 64, kind), dtype), None, seed, kind)


@pytest.mark.parametrize(("N", "dtype"), [(16, torch.float32), (128, torch.bfloat16), (128, torch.float32)])
def test_maps_of_head_sizes(launcher: Launcher, N: int, dtype: torch.dtype, seed: int) -> None:
    assert_maps(launcher, lowered(make_inputs(launcher, seed, 1, 45, 2, N), dtype), None, seed)


def test_maps_of_slow_decays_and_small_changes(launcher: Launcher, seed: int) -> None:
    """A long product of maps near the identity must not lose what the early ones held."""
    inputs = make_inputs(launcher, seed, 1, 512, 1, 64)
    inputs[1] *= 1e-3
    inputs[5] *= 3e-2
    assert maps(inputs[:6])[0].norm() > 1
    for dtype in (torch.bfloat16, torch.float32):
        assert_maps(launcher, lowered(inputs, dtype), None, seed)


def test_an_empty_piece_changes_nothing(launcher: Launcher, seed: int) -> None:
    given = lowered(make_inputs(launcher, seed, 1, 20, 2, 64), torch.bfloat16)
    ends = torch.tensor([0, 0, 20, 20], dtype=torch.int32, device=launcher.device)
    m, d = cuda_scan.affine(launcher, tuple(given[:6]), ends)
    for i in (0, 2):
        assert torch.equal(m[i], torch.eye(64, device=launcher.device).expand(2, 64, 64))
        assert not d[i].any()
    assert_maps(launcher, given, ends, seed)


@pytest.mark.parametrize("N", [64, 128])
def test_entry_states_follow_from_the_maps(launcher: Launcher, N: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(7, 2, N, N, generator=generator).to(launcher.device) / N**0.5
    d, state = (torch.randn(n, 2, N, N, generator=generator).to(launcher.device) for n in (7, 3))
    first = torch.tensor([0, 4, 4, 7], dtype=torch.int32, device=launcher.device)
    for given in (state, None):
        found = cuda_scan.entry_states(launcher, m, d, given, first)
        for s, (start, end) in enumerate(pairwise(first.tolist())):
            carried = state[s].double() if given is not None else torch.zeros_like(state[s]).double()
            for piece in range(start, end):
                assert error(found[piece], carried) < 1e-5, f"piece {piece} (seed {seed})"
                carried = carried @ m[piece].double() + d[piece].double()


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(launcher: Launcher, kind: str, seed: int) -> None:
    given = lowered(make_inputs(launcher, seed, 2, 75, 1, 64, kind), torch.bfloat16)
    assert_scans(launcher, given, None, 32, seed, kind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(launcher: Launcher, dtype: torch.dtype, seed: int) -> None:
    assert_scans(launcher, lowered(make_inputs(launcher, seed, 1, 100, 2, 64), dtype), None, 48, seed)


@pytest.mark.parametrize("T", [1, 32, 33])
def test_short_sequences(launcher: Launcher, T: int, seed: int) -> None:
    assert_scans(launcher, lowered(make_inputs(launcher, seed, 2, T, 1, 64), torch.bfloat16), None, 32, seed)


def test_any_sequences_in_one_row(launcher: Launcher, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(6):
        T, H = draw.randint(1, 100), draw.randint(1, 2)
        ends = [0, *sorted(draw.randint(0, T) for _ in range(draw.randint(0, 4))), T]
        kind = draw.choice(KINDS)
        given = make_inputs(launcher, seed, 1, T, H, 64, kind, S=len(ends) - 1)
        cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=launcher.device)
        length = draw.choice([16, 32, 40])
        assert_scans(launcher, lowered(given, torch.bfloat16), cu_seqlens, length, (seed, ends, length), kind)


def test_without_a_state_it_starts_from_zeros(launcher: Launcher, seed: int) -> None:
    *inputs, state = lowered(make_inputs(launcher, seed, 2, 70, 2, 64), torch.bfloat16)
    results = [
        cuda_scan.forward(launcher, tuple(inputs), given, None, 32, cuda_recurrent.forward)
        for given in (None, torch.zeros_like(state))
    ]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True)), f"seed {seed}"


def test_pieces_are_chosen_where_heads_leave_processors_idle() -> None:
    def length(heads: int, time: int, sequences: int = 1) -> int | None:
        return cuda_scan.piece_length(132, sequences, heads, time)

    assert length(12, 4096) in cuda_scan.LENGTHS
    assert length(32, 131072) == 1024
    assert length(12, 256) is None  # too short
    assert length(132, 4096) is None  # every processor has a head
    assert length(32, 8 * 4096, sequences=8) is None


@pytest.mark.slow
def test_a_long_sequence(launcher: Launcher, seed: int) -> None:
    given = make_inputs(launcher, seed, 1, 1100, 1, 64)
    given[1] *= 1e-3
    given[5] *= 3e-2
    for dtype in DTYPES:
        assert_scans(launcher, lowered(given, dtype), None, 256, seed)


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["thread", "address"])
@pytest.mark.parametrize(("N", "dtype"), [(64, torch.bfloat16), (128, torch.float32)])
def test_under_sanitizers(N: int, dtype: torch.dtype, sanitize: str, seed: int) -> None:
    launcher = EmulatedLauncher(sanitize=sanitize)
    ends = torch.tensor([0, 17, 17, 70], dtype=torch.int32)
    given = lowered(make_inputs(launcher, seed, 1, 70, 1, N, S=3), dtype)
    assert_scans(launcher, given, ends, 40, seed)
