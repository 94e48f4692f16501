from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mm_rwkv7.ops.kernel import Launcher


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def launcher(request: pytest.FixtureRequest) -> "Launcher":
    """What runs kernels over tensors on `launcher.device`: the emulation, and on a machine with a GPU its driver."""
    if request.param == "cuda":
        import torch

        from mm_rwkv7.ops import driver

        return driver.launcher(torch.device("cuda"))
    from tests.mm_rwkv7.emulation import EmulatedLauncher

    return EmulatedLauncher()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that nothing was written to reads as NaN."""
    import torch

    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")
