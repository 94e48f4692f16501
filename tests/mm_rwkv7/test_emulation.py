"""The emulation computes what the GPU does, and finds the faults that it is there to find."""

import pytest
import torch

from mm_rwkv7.ops.kernel import Kernel, Launcher
from tests.mm_rwkv7.emulation import FOLDER, EmulatedLauncher, EmulationError

REVERSE = Kernel(str(FOLDER / "reverse.cu"), "reverse", (("THREADS", 64),), 64, shared=64 * 4)


def test_a_kernel_runs(launcher: Launcher) -> None:
    x = torch.randn(150, device=launcher.device)
    y = torch.full_like(x, float("nan"))
    launcher(REVERSE, (3, 1, 1), (y, x, 150))
    expected = torch.cat([x, x.new_zeros(42)]).view(3, 64).flip(1).flatten()[:150]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_a_sound_kernel_is_sound_under_a_sanitizer(sanitize: str) -> None:
    x, y = torch.randn(2, 128)
    EmulatedLauncher(sanitize=sanitize)(REVERSE, (2, 1, 1), (y, x, 128))
    assert torch.equal(y, x.view(2, 64).flip(1).flatten())


def test_a_missing_barrier_is_reported() -> None:
    broken = Kernel(REVERSE.source, "reverse", (*REVERSE.defines, ("BARRIER", "")), 64, 64 * 4)
    x, y = torch.randn(2, 64)
    with pytest.raises(EmulationError, match="data race"):
        EmulatedLauncher(sanitize="thread")(broken, (1, 1, 1), (y, x, 64))
