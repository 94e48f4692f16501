"""Training on the compiled kernels goes as it does by torch alone: nano's language model, from random weights."""

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7 import rwkv7
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.ops import wkv_reason
from mm_rwkv7.ops.chunked import wkv7_chunked
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.synthetic.scenes import sample

STEPS, ROWS, T = 200, 8, 32


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Captions, as nano's ids."""
    tokenizer = Pipeline.from_pretrained("nano", device="cpu").tokenizer
    return torch.tensor(tokenizer.encode("\n".join(sample(seed, 48).caption for seed in range(400))))


def train(seed: int, text: Tensor, device: str) -> Tensor:
    """The loss of every step."""
    config = Pipeline.from_pretrained("nano", device="cpu").model.config.lm
    torch.manual_seed(seed)
    model = RWKV7(config)
    initialise(model)
    model = model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(len(text) - T - 1, (ROWS, 1), generator=generator)
        ids = text[starts + torch.arange(T + 1)].to(device)
        logits, _ = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_losses_are_those_of_torch_alone(device: str, text: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := wkv_reason(device):
        pytest.skip(f"no kernel for {device}: {reason}")
    seed = random.SystemRandom().randrange(2**31)
    kernel = train(seed, text, device)
    monkeypatch.setattr(rwkv7, "wkv7", lambda *inputs: wkv7_chunked(inputs[:6], inputs[6]))
    portable = train(seed, text, device)
    other = train(seed + 1, text, device)
    smooth = [losses.unfold(0, 20, 20).mean(1) for losses in (kernel, portable, other)]
    assert smooth[0][-1] < 0.6 * smooth[0][0], f"nothing was learned (seed {seed})"
    apart, noise = ((smooth[1] - curve).abs().mean() for curve in (smooth[0], smooth[2]))
    assert apart < 0.5 * noise, f"{apart:.4f} apart, where another seed is {noise:.4f} (seed {seed})"
    torch.testing.assert_close(kernel[:5], portable[:5], rtol=1e-3, atol=1e-3, msg=f"seed {seed}")
