"""The emulation computes what the PTX documentation says of each instruction, and finds the faults it is there to find.

Tests that take `launcher` hold on a GPU too: there they compare the documentation with the device.
"""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mm_rwkv7.ops.kernel import Argument, Kernel, Launcher
from tests.mm_rwkv7.emulation import FOLDER, EmulatedLauncher, EmulationError

REVERSE = Kernel(str(FOLDER / "reverse.cu"), "reverse", (("THREADS", 64),), 64, shared=64 * 4)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = random.randrange(2**32)
    print("seed", seed)  # shown when the test fails
    return np.random.default_rng(seed)


def every(name: str, threads: int, shared: int = 0, mma: str = "mma_bf16", **defines: int) -> Kernel:
    return Kernel(str(FOLDER / "every.cu"), name, (("MMA", mma), *defines.items()), threads, shared)


def on(launcher: Launcher, array: np.ndarray) -> Tensor:
    """A copy on the launcher's device; unsigned integers become signed ones."""
    signed = array.view(array.dtype.str.replace("u", "i")) if array.dtype.kind == "u" else array
    return torch.from_numpy(signed.copy()).to(launcher.device)


def bits(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy().view(np.uint32)


def test_a_kernel_runs(launcher: Launcher) -> None:
    x = torch.randn(150, device=launcher.device)
    y = torch.full_like(x, float("nan"))
    launcher(REVERSE, (3, 1, 1), (y, x, 150))
    expected = torch.cat([x, x.new_zeros(42)]).view(3, 64).flip(1).flatten()[:150]
    assert torch.equal(y, expected)


def test_16_bit_numbers_widen_exactly(launcher: Launcher) -> None:
    as_bf16, as_half = torch.empty(2, 65536, device=launcher.device)
    launcher(every("from_16_bits", 256), (256, 1, 1), (as_bf16, as_half))
    every_number = np.arange(65536, dtype=np.uint32)
    assert np.array_equal(bits(as_bf16), every_number << 16)
    with np.errstate(invalid="ignore"):
        expected = every_number.astype(np.uint16).view(np.float16).astype(np.float32)
    assert np.array_equal(as_half.cpu().numpy(), expected, equal_nan=True)


def test_roundings_are_to_nearest_even(launcher: Launcher, rng: np.random.Generator) -> None:
    upper = np.arange(65536, dtype=np.uint32) << 16
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        between = (halves[:-1] + halves[1:]) / 2  # ties of fp16
    numbers = [upper, upper | 0x7FFF, upper | 0x8000, upper | 0x8001, between.view(np.uint32)]
    numbers += [upper | low for low in (0x0FFF, 0x1000, 0x1001, 0x3000)]  # ties of tf32
    numbers.append(rng.integers(0, 2**32, 2**17, dtype=np.uint32))
    x = np.concatenate(numbers).view(np.float32)
    y = torch.empty(len(x), 5, dtype=torch.int32, device=launcher.device)
    launcher(every("to_16_bits", 256), (-(-len(x) // 256), 1, 1), (y, on(launcher, x), len(x)))

    def widened(values: np.ndarray, tensor_type: torch.dtype) -> np.ndarray:
        unsigned = torch.from_numpy(values.astype(np.uint16).view(np.int16).copy())
        return unsigned.view(tensor_type).float().numpy()

    found = bits(y)
    for column, tensor_type in ((0, torch.bfloat16), (1, torch.float16)):
        expected = torch.from_numpy(x).to(tensor_type).float().numpy()
        assert np.array_equal(widened(found[:, column], tensor_type), expected, equal_nan=True)
        assert (found[np.isnan(x), column] == 0x7FFF).all()
        low, high = found[:, column + 2] & 0xFFFF, found[:, column + 2] >> 16
        assert np.array_equal(low, found[:, column])
        assert np.array_equal(high, found[::-1, column])
    finite = np.isfinite(x) & (np.abs(x) < 3e38)
    scale = np.float64(2.0) ** (np.maximum(np.frexp(x[finite].astype(np.float64))[1], -125) - 11)
    steps = x[finite] / scale
    expected = (np.copysign(np.floor(np.abs(steps) + 0.5), steps) * scale).astype(np.float32)  # ties away from zero
    assert np.array_equal(found[finite, 4] & 0xFFFFE000, expected.view(np.uint32))


def test_approximations_keep_their_bounds(launcher: Launcher, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=5000) * 4, rng.uniform(-80, 80, 5000), [-200.0, 100.0]]).astype(np.float32)
    y = torch.empty(5, len(x), device=launcher.device)
    launcher(every("approximate", 256), (-(-len(x) // 256), 1, 1), (y, on(launcher, x), len(x)))
    exact = x.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = np.stack([np.exp(exact), np.exp2(exact), np.tanh(exact), 1 / exact, 1 / np.sqrt(np.abs(exact))])
    bounds = np.array([2**-22, 2**-21.9, 2**-10.9, 2**-22.9, 2**-22.4])[:, None] * np.ones_like(expected)
    bounds[0] += np.abs(exact) * 2**-23  # the rounding of x log2(e)
    expected[np.abs(expected) < 2.0**-126] = 0
    found = y.cpu().double().numpy()
    finite = np.abs(expected) < 3.4e38
    error = np.abs(found - expected)[finite] / np.maximum(np.abs(expected)[finite], 2.0**-126)
    assert (error <= bounds[finite]).all(), error.max()
    assert (found[~finite] == np.inf).all()
    assert finite.sum() > 49000


def test_shuffles(launcher: Launcher, rng: np.random.Generator) -> None:
    x = rng.integers(-(2**31), 2**31, 64, dtype=np.int32)
    lanes = rng.integers(0, 32, 64, dtype=np.int32)
    lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32
    for n in (1, 2, 5, 16, 31):
        y = torch.empty(4, 64, dtype=torch.int32, device=launcher.device)
        launcher(every("shuffles", 64), (1, 1, 1), (y, on(launcher, x), on(launcher, lanes), n))
        down = np.where(lane + n < 32, lane + n, lane)
        up = np.where(lane - n >= 0, lane - n, lane)
        expected = np.stack([x[warp + lanes], x[warp + (lane ^ n)], x[warp + down], x[warp + up]])
        assert np.array_equal(y.cpu().numpy(), expected), n


@pytest.mark.parametrize("mma", ["mma_bf16", "mma_half", "mma_tf32"])
def test_matrix_products(mma: str, launcher: Launcher, rng: np.random.Generator) -> None:
    """The places of the elements are those of the PTX ISA, sections "Matrix Fragments for mma.m16n8k16 with floating
    point type" and "Matrix Fragments for mma.m16n8k8"."""
    K = 8 if mma == "mma_tf32" else 16
    a, b, c = (rng.normal(size=shape).astype(np.float32) for shape in ((16, K), (K, 8), (16, 8)))
    group, member = np.arange(32) // 4, np.arange(32) % 4
    if K == 16:
        to = torch.bfloat16 if mma == "mma_bf16" else torch.float16
        a, b = (torch.from_numpy(x).to(to).float().numpy() for x in (a, b))
        row = [group + (0 if i in (0, 1, 4, 5) else 8) for i in range(8)]
        column = [member * 2 + i % 2 + (0 if i < 4 else 8) for i in range(8)]
        halves = torch.from_numpy(a[row, column].T.copy()).to(to)
        row_b = [member * 2 + i % 2 + (0 if i < 2 else 8) for i in range(4)]
        halves_b = torch.from_numpy(b[row_b, group].T.copy()).to(to)
        registers, registers_b = (x.view(torch.int16).numpy().view(np.int32) for x in (halves, halves_b))
    else:
        row = [group if i in (0, 2) else group + 8 for i in range(4)]
        column = [member if i < 2 else member + 4 for i in range(4)]
        registers = a[row, column].T.copy().view(np.int32)
        registers_b = b[[member, member + 4], group].T.copy().view(np.int32)
        a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    row_d = [group + i // 2 * 8 for i in range(4)]
    column_d = [member * 2 + i % 2 for i in range(4)]
    d = on(launcher, c[row_d, column_d].T)
    launcher(every("product", 32, mma=mma), (1, 1, 1), (d, on(launcher, registers), on(launcher, registers_b)))
    expected = (a.astype(np.float64) @ b + c)[row_d, column_d].T
    assert np.abs(d.cpu().numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_sum_is_cut_off(launcher: Launcher) -> None:
    """1 plus 1.75 2^-24 lies nearer to the next number in fp32, and stays 1; so does what lies below -1."""
    a, b = torch.zeros(32, 4, dtype=torch.int32), torch.zeros(32, 2, dtype=torch.int32)
    a[0, 0], a[4, 0] = 0x3F80, 0xBF80  # a[0][0] = 1, a[1][0] = -1
    b[0, 0] = 0x33E0  # b[0][0]
    d = torch.ones(32, 4)
    d[4] = -1
    device = launcher.device
    found = d.to(device)
    launcher(every("product", 32, mma="mma_bf16"), (1, 1, 1), (found, a.to(device), b.to(device)))
    assert torch.equal(found.cpu(), d)


def test_ldmatrix(launcher: Launcher, rng: np.random.Generator) -> None:
    memory = rng.integers(0, 2**16, (512, 8), dtype=np.uint16)
    rows = rng.integers(0, 512, 32, dtype=np.int32)
    y = torch.empty(32, 12, dtype=torch.int32, device=launcher.device)
    launcher(every("matrices", 32, shared=8192), (1, 1, 1), (y, on(launcher, memory), on(launcher, rows)))
    matrix = memory[rows].reshape(4, 8, 8)
    plain, transposed = (
        np.ascontiguousarray(m).view(np.uint32).reshape(4, 32).T for m in (matrix, matrix.transpose(0, 2, 1))
    )
    assert np.array_equal(bits(y), np.concatenate([plain, transposed, plain[:, :2], transposed[:, :2]], 1))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_copies_arrive_when_they_are_waited_for(steps: int, launcher: Launcher, rng: np.random.Generator) -> None:
    x = on(launcher, rng.normal(size=(steps, 64, 4)).astype(np.float32))
    y = torch.full_like(x, float("nan"))
    launcher(every("pipeline", 64, shared=3 * 1024), (1, 1, 1), (y, x, steps, 50))
    expected = x.clone()
    expected[:, 50:] = 0
    assert torch.equal(y, expected.flip(1))


def test_a_copy_not_waited_for_has_not_arrived() -> None:
    x = torch.randn(5, 64, 4)
    y = torch.zeros_like(x)
    EmulatedLauncher()(every("pipeline", 64, shared=3 * 1024, WAIT=2), (1, 1, 1), (y, x, 5, 64))
    assert y.isnan().any()


def test_blocks_and_threads_know_their_place(launcher: Launcher, rng: np.random.Generator) -> None:
    x = rng.integers(-128, 128, (64, 4, 4), dtype=np.int8)
    sums, total = (torch.zeros(n, device=launcher.device) for n in (24, 1))
    dots = torch.empty(64, dtype=torch.int32, device=launcher.device)
    launcher(every("places", 64), (2, 3, 4), (sums, total, dots, on(launcher, x.view(np.int32))))
    assert float(total) == 24 * 64
    assert (sums == 63 * 64 / 2).all()
    one, two, third = x[:, 0].astype(int), x[:, 1].astype(int), np.ascontiguousarray(x[:, 2]).view(np.int32)[:, 0]
    assert np.array_equal(dots.cpu().numpy(), ((one * two).sum(1) + third).astype(np.int32))


@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_a_sound_kernel_passes_a_sanitizer(sanitize: Any) -> None:
    x, y = torch.randn(2, 128)
    EmulatedLauncher(sanitize=sanitize)(REVERSE, (2, 1, 1), (y, x, 128))
    assert torch.equal(y, x.view(2, 64).flip(1).flatten())


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_sound_warps_and_copies_pass_a_sanitizer(sanitize: Any, rng: np.random.Generator) -> None:
    launcher = EmulatedLauncher(sanitize=sanitize)
    test_ldmatrix(launcher, rng)
    test_copies_arrive_when_they_are_waited_for(7, launcher, rng)
    test_blocks_and_threads_know_their_place(launcher, rng)
    test_shuffles(launcher, rng)


def test_a_missing_barrier_is_reported() -> None:
    broken = Kernel(REVERSE.source, "reverse", (*REVERSE.defines, ("BARRIER", "")), 64, 64 * 4)
    x, y = torch.randn(2, 64)
    with pytest.raises(EmulationError, match="data race"):
        EmulatedLauncher(sanitize="thread")(broken, (1, 1, 1), (y, x, 64))
    EmulatedLauncher()(broken, (1, 1, 1), (y, x, 64))
    assert y.isnan().any()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (1, "different places: shuffle_down at faults.cu:31 and shuffle_xor"),
        (2, "deadlock: 33 threads have ended; 31 threads wait at shuffle at faults.cu:36"),
        (3, "deadlock: 32 threads have ended; 32 threads wait at barrier at faults.cu:38"),
        (4, "faults.cu:39: block .0, 0, 0., thread 0: store_16: the address is not a multiple of 16"),
        (5, "block .0, 0, 0., thread 4: an index outside its array at faults.cu:42"),
        (6, "past the end of dynamic shared memory, 256 bytes"),
        (7, "ends with copies on their way"),
        (8, "the address of a row is not a multiple of 16"),
        (9, "a misaligned address at faults.cu:51"),
    ],
)
def test_faults_are_found(fault: int, message: str) -> None:
    _find(fault, message, EmulatedLauncher())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitize", "fault", "message"),
    [
        ("thread", 10, "data race"),
        ("thread", 11, "data race"),
        ("address", 6, "heap-buffer-overflow"),
        ("address", 12, "heap-buffer-overflow"),
        ("address", 13, "global-buffer-overflow"),
    ],
)
def test_sanitizers_find_faults(sanitize: Any, fault: int, message: str) -> None:
    _find(fault, message, EmulatedLauncher(sanitize=sanitize))


def _find(fault: int, message: str, launcher: EmulatedLauncher) -> None:
    static = (("STATIC", ""),) if fault == 13 else ()
    kernel = Kernel(str(FOLDER / "faults.cu"), "faults", static, 64, shared=256)
    x, y = torch.randn(64), torch.zeros(128)
    with pytest.raises(EmulationError, match=message):
        launcher(kernel, (2, 1, 1), (y, x, fault))
    launcher(kernel, (2, 1, 1), (y, x, 0))
    assert torch.equal(y, torch.cat([x, x]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64,), "1 arguments, expected 3"),
        ((None, None, 1.5), "argument 2 is 1.5, the parameter is vi"),
        ((None, 7, 1), "argument 1 is 7, the parameter is pf"),
        ((None, torch.zeros(3, dtype=torch.bfloat16), 1), "argument 1 is torch.bfloat16 on cpu, the parameter is pf"),
    ],
)
def test_arguments_are_compared_with_parameters(arguments: tuple[Argument, ...], message: str) -> None:
    with pytest.raises(EmulationError, match=message):
        EmulatedLauncher()(REVERSE, (1, 1, 1), arguments)


def test_launches_beyond_the_limits_are_refused() -> None:
    def launch(
        grid: tuple[int, int, int] = (1, 1, 1), threads: int = 64, shared: int = 256, name: str = "reverse"
    ) -> None:
        kernel = Kernel(REVERSE.source, name, REVERSE.defines, threads, shared)
        EmulatedLauncher(capability=(8, 6))(kernel, grid, (None, None, 0))

    for arguments, message in (
        ({"grid": (0, 1, 1)}, "the grid is"),
        ({"grid": (1, 65536, 1)}, "the grid is"),
        ({"threads": 2048}, "2048 threads"),
        ({"threads": 128}, "compiled for 64"),
        ({"threads": 48}, "whole warps"),
        ({"shared": (99 << 10) + 1}, "expected at most 101376"),
        ({"name": "revers"}, "no kernel revers"),
    ):
        with pytest.raises(EmulationError, match=message):
            launch(**arguments)
