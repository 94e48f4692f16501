"""A CUDA device gives the same answers as the CPU, and its kernels are sound under NVIDIA's own sanitizer."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from mm_rwkv7.ops import driver, wkv7, wkv7_reference
from mm_rwkv7.ops.kernel import Kernel
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State
from tests.mm_rwkv7.emulation import FOLDER

pytestmark = pytest.mark.gpu
PICTURE = Image.new("RGB", (40, 30), (200, 40, 40))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3)])
def test_wkv7_equals_the_reference(dtype: torch.dtype, bound: float) -> None:
    r, k, v, direction, w_raw, iclr = torch.randn(6, 2, 130, 3, 64)
    kappa = torch.nn.functional.normalize(direction, dim=-1)
    log_w = -torch.tensor(-0.5).exp() * w_raw.sigmoid()
    inputs = [r.to(dtype), log_w, *(x.to(dtype) for x in (k, v, -kappa, kappa * iclr.sigmoid()))]
    expected, last = wkv7_reference(*(x.double() for x in inputs))
    y, state = wkv7(*(x.cuda() for x in inputs))
    for found, wanted in ((y, expected), (state, last)):
        assert float((found.cpu().double() - wanted).norm() / wanted.norm()) < bound


def test_a_saved_state_goes_on_on_the_device(tiny_checkpoint: Path, tmp_path: Path) -> None:
    here = Pipeline.from_pretrained(tiny_checkpoint, device="cpu")
    there = Pipeline.from_pretrained(tiny_checkpoint, device="cuda", dtype="fp32")
    picture = [{"role": "user", "content": [{"type": "image", "image": PICTURE}]}]
    here.prefill(picture).save(tmp_path / "state.safetensors")
    state = State.load(tmp_path / "state.safetensors")
    assert there.ask("What is it?", state=state).text == here.ask("What is it?", state=state).text


def test_sampling_with_a_seed_repeats(tiny_checkpoint: Path) -> None:
    pipeline = Pipeline.from_pretrained(tiny_checkpoint, device="cuda")
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    assert len({pipeline.ask("What?", [PICTURE], sampling=sampling).text for _ in range(3)}) == 1


def test_kernels_can_be_used() -> None:
    capability = torch.cuda.get_device_capability()
    if capability < driver.LOWEST_CAPABILITY:
        pytest.skip(f"the GPU's compute capability is {capability}")
    assert driver.unavailable(torch.cuda.current_device()) is None


def test_a_graph_captures_launches_on_a_stream_of_its_own() -> None:
    launcher = driver.launcher(torch.device("cuda"))
    reverse = Kernel(str(FOLDER / "reverse.cu"), "reverse", (("THREADS", 64),), 64, shared=256)
    x, y = torch.randn(2, 640, device="cuda")
    launcher.prepare(reverse)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launcher(reverse, (10, 1, 1), (y, x, 640))
        launcher(reverse, (10, 1, 1), (x, y, 640))
    kept = x.clone()
    for _ in range(2):
        graph.replay()
    assert torch.equal(x, kept)
    assert torch.equal(y, kept.view(10, 64).flip(1).flatten())


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer on the PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_kernels_pass_compute_sanitizer(tool: str) -> None:
    """Forward and backward, at a length that ends inside a chunk, from a given state, in both precisions."""
    program = """
        import torch
        from mm_rwkv7.ops import wkv7
        for dtype in (torch.bfloat16, torch.float32):
            for T in (1, 77):
                x = torch.randn(6, 2, T, 2, 64, device="cuda")
                kappa = torch.nn.functional.normalize(x[3], dim=-1)
                log_w = -0.6 * x[4].sigmoid()
                inputs = [x[0], log_w, x[1], x[2], -kappa, kappa * x[5].sigmoid()]
                inputs = [t.to(t.dtype if i == 1 else dtype).requires_grad_() for i, t in enumerate(inputs)]
                state = torch.randn(2, 2, 64, 64, device="cuda", requires_grad=True)
                y, last = wkv7(*inputs, state)
                (y.float().sum() + last.sum()).backward()
        torch.cuda.synchronize()
    """
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "1",
        sys.executable,
        "-c",
        textwrap.dedent(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
