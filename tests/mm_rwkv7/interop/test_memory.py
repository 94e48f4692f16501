"""What loading costs in anonymous memory (that which the system cannot drop), measured in a process of its own: the
project's bound is 1.3 times the file."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
LOAD = """
    import sys, threading
    import torch
    from mm_rwkv7.rwkv7 import RWKV7

    def anonymous():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    peak, done = 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    RWKV7.from_pretrained(sys.argv[2], "cpu", "bf16")  # what torch imports on the way is no part of the weights
    before = anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = RWKV7.from_pretrained(sys.argv[1], "cpu", "bf16")
    done.set()
    watcher.join()
    print((max(peak, anonymous()) - before) * 1024)
"""


@pytest.fixture(scope="module")
def large(make_blinkdl: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return make_blinkdl(768, 1, 95_000, 64, (64, 64, 32, 128), torch.bfloat16)


def save_old(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("save", "allowed"),
    [
        pytest.param(torch.save, 0.05, id="pth"),  # mapped: only what is cast or made contiguous comes into memory
        pytest.param(save_file, 0.05, id="safetensors"),
        pytest.param(save_old, 1.1, id="before torch 1.6"),
    ],
)
def test_loading_at_the_stored_precision(
    large: dict[str, Tensor], blinkdl_file: Path, tmp_path: Path, save: Callable[..., Any], allowed: float
) -> None:
    path = tmp_path / "large.file"
    save(large, path)
    size = path.stat().st_size
    assert size > 290_000_000
    command = [sys.executable, "-c", textwrap.dedent(LOAD), str(path), str(blinkdl_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < allowed * size
