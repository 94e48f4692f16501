"""Truncated back-propagation: within a segment it is the whole gradient, between segments only the state goes on."""

import secrets

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import LayerState, State
from training.truncated import Lanes, backward_in_segments, detached


def random_lm(seed: int, layers: int = 2) -> RWKV7:
    torch.manual_seed(seed)
    lm = RWKV7(RWKV7Config(20, 32, layers, head_size=16, decay_rank=4, iclr_rank=4, value_rank=4, gate_rank=4))
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return lm


def drawn(seed: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, (rows, length + 1), generator=generator)
    targets = ids[:, 1:].masked_fill(torch.rand(rows, length, generator=generator) < 0.3, -100)
    return ids[:, :-1], targets


def mean_loss(lm: RWKV7, ids: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
    return F.cross_entropy(lm(ids, state)[0].flatten(0, 1), targets.flatten(), ignore_index=-100)


def gradients(lm: RWKV7) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])
    lm.zero_grad()
    return found


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_one_segment_is_the_whole_gradient() -> None:
    seed = secrets.randbits(32)
    lm = random_lm(seed)
    ids, targets = drawn(seed, 2, 19)
    state = lm(ids.flip(1))[1]
    mean_loss(lm, ids, targets, detached(state)).backward()
    wanted = gradients(lm)
    loss, _ = backward_in_segments(lm, ids, targets, 19, state)
    assert distance(gradients(lm), wanted) < 1e-5, f"seed {seed}"
    assert loss.item() == pytest.approx(mean_loss(lm, ids, targets, state).item(), rel=1e-5), f"seed {seed}"


def test_segments_carry_the_state_and_stop_the_gradient() -> None:
    """Loss and state are those of one reading; the gradient is that of segments which take the state as given."""
    seed = secrets.randbits(32)
    lm = random_lm(seed)
    ids, targets = drawn(seed, 2, 23)
    segment = 7
    loss, state = backward_in_segments(lm, ids, targets, segment)
    found = gradients(lm)

    with torch.no_grad():
        befores = [lm(ids[:, :start])[1] if start else None for start in range(0, 23, segment)]
        assert loss.item() == pytest.approx(mean_loss(lm, ids, targets).item(), rel=1e-5), f"seed {seed}"
        whole = lm(ids)[1]
    for layer, expected in zip(state.layers, whole.layers, strict=True):
        for tensor, wanted in zip(layer, expected, strict=True):
            assert not tensor.requires_grad
            assert distance(tensor, wanted) < 1e-4, f"seed {seed}"

    wanted_gradient: Tensor | float = 0.0
    count = int((targets != -100).sum())
    for start, before in zip(range(0, 23, segment), befores, strict=True):
        part = targets[:, start : start + segment]
        (mean_loss(lm, ids[:, start : start + segment], part, before) * (part != -100).sum() / count).backward()
        wanted_gradient = wanted_gradient + gradients(lm)
    assert isinstance(wanted_gradient, Tensor)
    assert distance(found, wanted_gradient) < 1e-4, f"seed {seed}"
    mean_loss(lm, ids, targets).backward()
    assert distance(found, gradients(lm)) > 1e-3, f"seed {seed}: nothing was truncated"


def test_memory_does_not_grow_with_the_text() -> None:
    """What the forward keeps for the backward is freed after every segment."""
    lm = random_lm(0)
    alive = []

    def kept(length: int) -> int:
        sizes = {"now": 0, "most": 0}

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor
                sizes["now"] += tensor.numel()
                sizes["most"] = max(sizes.values())

            def __del__(self) -> None:
                sizes["now"] -= self.tensor.numel()

        ids, targets = drawn(1, 1, length)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            backward_in_segments(lm, ids, targets, 16)
        return sizes["most"]

    alive = [kept(32), kept(160)]
    assert alive[1] < 1.2 * alive[0], alive


def test_lanes_go_on_where_a_checkpoint_was() -> None:
    seed = secrets.randbits(32)
    lm = random_lm(seed)
    lanes = Lanes(lm.config, 4)
    for lane in (0, 3):
        ids, _ = drawn(seed + lane, 1, 9)
        _, state = lm(ids, lanes.state(lane))
        lanes.keep(lane, state)
        for one, other in zip(lanes.state(lane).layers, state.layers, strict=True):
            assert all(map(torch.equal, one, other)), f"seed {seed}"
            assert not any(tensor.requires_grad for tensor in one)
    before = lanes.state(0)
    again = Lanes(lm.config, 4)
    again.load_state_dict(lanes.state_dict())
    lanes.keep(0, lanes.state(3))
    for one, other in zip(before.layers, again.state(0).layers, strict=True):
        assert all(map(torch.equal, one, other)), f"seed {seed}"
    assert not any(tensor.any() for layer in again.state(1).layers for tensor in layer), "a lane that nobody read"


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_lane_keeps_no_state_that_is_no_number(number: float) -> None:
    lm = random_lm(secrets.randbits(31))
    lanes = Lanes(lm.config, 2)
    _, state = lm(torch.randint(lm.config.vocab_size, (1, 5)))
    lanes.keep(1, detached(state))
    for layer in range(lm.config.layers):
        for name in LayerState._fields:
            broken = state.map(lambda tensor: tensor.detach().clone())
            getattr(broken.layers[layer], name).view(-1)[-1] = number
            lanes.keep(1, broken)
    kept = [tensor for layer in lanes.state(1).layers for tensor in layer]
    assert all(map(torch.equal, kept, (tensor for layer in state.layers for tensor in layer)))
    assert not any(tensor.any() for layer in lanes.state(0).layers for tensor in layer)


def test_nothing_to_learn_is_said() -> None:
    lm = random_lm(0)
    ids, targets = drawn(0, 1, 5)
    with pytest.raises(ValueError, match="segment is 0"):
        backward_in_segments(lm, ids, targets, 0)
    with pytest.raises(ValueError, match="nothing to learn"):
        backward_in_segments(lm, ids, torch.full_like(targets, -100), 5)
