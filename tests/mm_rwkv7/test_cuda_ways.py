"""Which of the CUDA kernels takes what, and that all of them compute the same, over the emulation."""

import random

import pytest
import torch

from mm_rwkv7.ops import cuda, cuda_chunked, cuda_recurrent, cuda_scan, wkv7_reference
from mm_rwkv7.ops.kernel import Kernel
from tests.mm_rwkv7.emulation import EmulatedLauncher
from tests.mm_rwkv7.test_wkv7 import error, random_inputs


class Watching(EmulatedLauncher):
    """Remembers what it launched."""

    def __call__(self, kernel: Kernel, *rest: object) -> None:
        self.launched = [*getattr(self, "launched", []), kernel.name]
        super().__call__(kernel, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("N", "T", "capability", "keep", "expected"),
    [
        (64, 40, (9, 0), True, ["wkv7_forward"]),
        (64, 5, (9, 0), False, ["wkv7_recurrent_forward"]),
        (32, 40, (9, 0), True, ["wkv7_recurrent_forward"]),
        (64, 40, (7, 5), True, ["wkv7_recurrent_forward"]),
        (64, 1100, (9, 0), False, ["wkv7_pieces", "wkv7_affine", "wkv7_combine", "wkv7_forward"]),
        (64, 1100, (9, 0), True, ["wkv7_forward"]),
    ],
)
def test_each_shape_goes_its_way(N: int, T: int, capability: tuple[int, int], keep: bool, expected: list[str]) -> None:
    seed = random.SystemRandom().randrange(2**31)
    *inputs, state = (x.float() for x in random_inputs(seed, B=1, T=T, H=1, N=N))
    launcher = Watching(processors=132, capability=capability)
    y, last, entries = cuda.forward(launcher, tuple(inputs), state, None, keep)
    assert launcher.launched == expected
    assert (len(entries) > 0) == keep
    expected_y, expected_last = wkv7_reference(*(x.double() for x in (*inputs, state)))
    assert error(y, expected_y) < 1e-4, f"seed {seed}"
    assert error(last, expected_last) < 1e-4, f"seed {seed}"
    if keep and T < 100:
        ways = [way.backward(launcher, tuple(inputs), entries, None, y, last) for way in (cuda, cuda_recurrent)]
        assert all(error(one, other) < 1e-3 for one, other in zip(*ways, strict=True)), f"seed {seed}"


def test_every_way_has_its_sizes() -> None:
    for N in cuda.SIZES:
        inputs = (torch.empty(1, 1, 1, N),) * 6
        assert cuda_recurrent.supports(inputs)
    assert set(cuda_chunked.SIZES) <= set(cuda.SIZES)
    assert cuda_scan.piece_length(132, 1, 12, 4096) is not None
    assert cuda_scan.piece_length(132, 8, 64, 8 * 4096) is None
