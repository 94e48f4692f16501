"""What is said of the state against states and decays that the model itself has at each token."""

from typing import Any

import pytest
import torch

import mm_rwkv7.rwkv7
from mm_rwkv7.decode import ModuleStepper, stepper
from mm_rwkv7.remembering import remember


@pytest.fixture
def decays(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the recurrence is handed as log_w, call by call."""
    handed = []
    recurrence = mm_rwkv7.rwkv7.wkv7

    def listen(r: Any, log_w: torch.Tensor, *others: Any) -> Any:
        handed.append(log_w)
        return recurrence(r, log_w, *others)

    monkeypatch.setattr(mm_rwkv7.rwkv7, "wkv7", listen)
    return handed


@pytest.mark.parametrize("make", [stepper, ModuleStepper])
def test_figures_are_those_of_the_model_stepped_a_token_at_a_time(
    make: Any, tiny_model: Any, seed: int, decays: list[torch.Tensor]
) -> None:
    lm = tiny_model.lm
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(lm.config.vocab_size, (1, 24), generator=generator)
    norms, expected = [], []
    with torch.no_grad():
        _, given = lm(ids[:, :3])
        state = given
        for token in ids[0, 3:]:
            decays.clear()
            _, state = lm(token.view(1, 1), state)
            expected.append(torch.stack([log_w[0, 0].exp().mean(-1) for log_w in decays]))
            norms.append(torch.stack([layer.wkv[0].double().square().sum((1, 2)).sqrt() for layer in state.layers]))
        x = lm.embed(ids[0, 3:])
    first, between = remember(lm, make(lm), x[:10], given)  # in two pieces
    second, last = remember(lm, make(lm), x[10:], between)
    found = [torch.cat(both) for both in zip(first, second, strict=True)]
    assert found[0].shape == found[1].shape == (21, lm.config.layers, lm.config.heads)
    torch.testing.assert_close(found[0].double(), torch.stack(norms), rtol=1e-4, atol=1e-5, msg=f"seed {seed}")
    torch.testing.assert_close(found[1], torch.stack(expected), rtol=1e-4, atol=1e-5, msg=f"seed {seed}")
    assert found[1].std() > 1e-4, "decays that never differ test nothing"
    for ours, theirs in zip(last.layers, state.layers, strict=True):
        torch.testing.assert_close(ours.wkv, theirs.wkv, rtol=1e-4, atol=1e-5, msg=f"seed {seed}")


def test_reading_leaves_the_given_state_alone(tiny_model: Any) -> None:
    lm = tiny_model.lm
    given = lm.initial_state()
    remember(lm, stepper(lm), lm.embed(torch.arange(5)).detach(), given)
    assert not any(tensor.any() for layer in given.layers for tensor in layer)
