import dataclasses
import itertools
import math

import pytest
import torch

from mm_rwkv7.model import MMRWKV7
from training.config import StageConfig
from training.optim import Average, build_optimizer, gradient_norm, set_learning_rate

STAGE = StageConfig(
    name="s",
    kind="answer",
    train=("lm",),
    data={"scenes": 1.0},
    steps=110,
    batch=1,
    learning_rate=1e-2,
    warmup=10,
    final_learning_rate=0.1,
    weight_decay=0.3,
)

LANGUAGE_MODEL = {"emb", "head", "receptance", "key", "value", "output"}
MATRICES = LANGUAGE_MODEL | {"up", "down"} | {"proj", "qkv", "fc1", "fc2"}  # the projector's, the tower's


def test_weight_decay_is_for_matrices_and_the_decay_s_offset_learns_twice_as_fast(tiny_model: MMRWKV7) -> None:
    optimizer = build_optimizer(tiny_model.named_parameters(), STAGE)
    set_learning_rate(optimizer, STAGE, step=10)
    treatment = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(treatment) == len(list(tiny_model.parameters()))
    for name, parameter in tiny_model.named_parameters():
        decay, rate = treatment[id(parameter)]
        matrix = name.endswith(".weight") and name.split(".")[-2] in MATRICES
        assert decay == (0.3 if matrix else 0.0), name
        assert rate == pytest.approx(2e-2 if name.endswith("w0") else 1e-2), name


def test_frozen_parts_are_left_alone() -> None:
    parts = torch.nn.ModuleDict({"tower": torch.nn.Linear(2, 2), "lm": torch.nn.Linear(2, 2)})
    parts["tower"].requires_grad_(False)
    optimizer = build_optimizer(parts.named_parameters(), STAGE)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in parts["lm"].parameters()}


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    optimizer = build_optimizer([("a.weight", torch.nn.Parameter(torch.zeros(2, 2)))], STAGE)
    rates = [set_learning_rate(optimizer, STAGE, step) for step in range(110)]
    assert rates[:11] == pytest.approx([1e-2 * min(1, (step + 1) / 10) for step in range(11)])
    assert rates[60] == pytest.approx(1e-2 * (0.1 + 0.9 / 2))
    assert rates[35] == pytest.approx(1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert rates[109] == pytest.approx(1e-3, rel=0.01)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert optimizer.param_groups[0]["lr"] == rates[-1]


def test_gradients_are_clipped_to_the_limit() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0, 0]), torch.tensor([0, 4.0, 0, 0])
    assert gradient_norm(parameters, 100.0) == pytest.approx(5)
    assert gradient_norm(parameters, 1.0) == pytest.approx(5)
    assert gradient_norm(parameters, 1.0) == pytest.approx(1, rel=1e-4)


def test_the_other_schedule_stays_and_then_falls_along_a_line() -> None:
    stage = dataclasses.replace(STAGE, schedule="wsd", decay=0.2)  # of 110 steps: from 88 on
    optimizer = build_optimizer([("a.weight", torch.nn.Parameter(torch.zeros(2, 2)))], stage)
    rates = [set_learning_rate(optimizer, stage, step) for step in range(110)]
    assert rates[:10] == pytest.approx([1e-2 * (step + 1) / 10 for step in range(10)])
    assert rates[10:89] == pytest.approx([1e-2] * 79)
    assert rates[99] == pytest.approx(1e-2 * (1 - 0.9 * 11 / 22))
    assert rates[109] == pytest.approx(1e-2 * (1 - 0.9 * 21 / 22))


def test_the_running_average_is_what_it_says(seed: int) -> None:
    torch.manual_seed(seed)
    weight, frozen = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    average = Average([("weight", weight), ("frozen", frozen)], 0.5)
    expected = torch.zeros(3)
    for step in range(20):
        weight.data = torch.randn(3)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weight.data
        average.take(step)
        torch.testing.assert_close(average.mean["weight"], expected, msg=f"seed {seed}, step {step}")
    average.finish()
    torch.testing.assert_close(weight.data, expected, msg=f"seed {seed}")
    assert torch.equal(frozen, torch.ones(3))
