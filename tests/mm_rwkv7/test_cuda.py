"""The portable path on a CUDA device: the same answers as on the CPU."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mm_rwkv7.ops import wkv7, wkv7_reference
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State

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
