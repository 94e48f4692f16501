"""Texts in a pool against the same texts alone: rows at any slot, read and written in any company."""

import random

import pytest
import torch
from torch import Tensor

from mm_rwkv7.cpu_decode import CpuStepper
from mm_rwkv7.decode import ModuleStepper
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.pooled_decode import CpuPooledStep, ModulePooledStep, PooledStep, pooled_step, read
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state_pool import StatePool

CONFIG = RWKV7Config(60, 128, 2, 64, 8, 8, 8, 8)
SLOTS = 11


def _model(seed: int) -> RWKV7:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = RWKV7(CONFIG).eval()
        initialise(lm)
        for parameter in lm.parameters():
            torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim == 1 else None
        torch.nn.init.normal_(lm.head.weight)
    return lm


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["compiled", "modules"])
@torch.no_grad()
def test_rows_of_a_pool_are_each_on_their_own(kind: str, seed: int) -> None:
    lm, rng = _model(seed), random.Random(seed)
    step: PooledStep = pooled_step(lm, SLOTS)
    assert isinstance(step, CpuPooledStep)
    if kind == "modules":
        step = ModulePooledStep(lm, StatePool(CONFIG, SLOTS, torch.float32, torch.device("cpu")))
    for tensor in (step.pool.tensors.wkv, step.pool.tensors.att_shift, step.pool.tensors.ffn_shift):
        tensor.fill_(torch.nan)
    alone = ModuleStepper(lm)
    # Random states: out of an empty one a head's output may be next to nothing, and ln_x makes much of its rounding.
    states = {slot: lm.initial_state().map(torch.randn_like) for slot in range(SLOTS)}
    for slot, state in states.items():
        step.pool.clear(slot)
        assert not any(tensor.any() for layer in step.pool.take(slot).layers for tensor in layer)
        step.pool.put(state, slot)
    for turn in range(12):
        slots = rng.sample(range(SLOTS), rng.randint(1, SLOTS))
        if rng.random() < 0.5:
            longest = rng.choice([7, 60])  # few tokens are read by the compiled step, many by the modules
            lengths = [rng.randint(1, longest) for _ in slots]
            ids = torch.randint(60, (len(slots), max(lengths)))
            found = read(step, lm, lm.embed(ids), slots, lengths)
        else:
            lengths = [1] * len(slots)
            ids = torch.randint(60, (len(slots), 1))
            found = step(lm.embed(ids[:, 0]), slots)
        logits = step.logits(found)
        for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            for token in ids[row, :length]:
                hidden, states[slot] = alone(lm.embed(token[None]), states[slot])
            where = f"seed {seed}, turn {turn}, slot {slot}"
            assert _error(logits[row], alone.logits(hidden)[0]) < 1e-5, where
            if turn == 11:
                for ours, expected in zip(step.pool.take(slot).layers, states[slot].layers, strict=True):
                    assert max(_error(a, b) for a, b in zip(ours, expected, strict=True)) < 1e-4, where


@torch.no_grad()
def test_a_step_leaves_other_slots_alone(seed: int) -> None:
    lm = _model(seed)
    step = pooled_step(lm, 3)
    tensors = step.pool.tensors
    tensors.wkv.normal_()
    before = [tensor.clone() for tensor in (tensors.wkv, tensors.att_shift, tensors.ffn_shift)]
    step(lm.embed(torch.tensor([1, 2])), [2, 0])
    for tensor, kept in zip((tensors.wkv, tensors.att_shift, tensors.ffn_shift), before, strict=True):
        assert torch.equal(tensor[:, 1], kept[:, 1])
        assert not torch.equal(tensor[:, 0], kept[:, 0])
    for slots in ([0, 0], [0, 3], [-1, 0], [0]):
        with pytest.raises(ValueError, match="slots"):
            step(lm.embed(torch.tensor([1, 2])), slots)


@torch.no_grad()
def test_texts_that_do_not_add_up_are_refused() -> None:
    lm = _model(0)
    compiled = CpuStepper.of(lm)
    assert compiled is not None
    pool = StatePool(CONFIG, 3, torch.float32, torch.device("cpu"))
    for lengths in ([1, 2], [4, 0], []):
        with pytest.raises(ValueError, match="expected 4 together"):
            compiled.in_pool(lm.embed(torch.arange(4)), pool, [2, 0], lengths)
