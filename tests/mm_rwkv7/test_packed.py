"""Sequences that lie in one row know nothing of each other. S sequences, T time, D width."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from mm_rwkv7.ops import dispatch, wkv_reason
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import State

CONFIG = RWKV7Config(
    vocab_size=40, width=64, layers=3, head_size=32, decay_rank=5, iclr_rank=6, value_rank=7, gate_rank=8
)
LENGTHS = ([5], [3, 1, 70, 2], [0, 7, 0, 0, 40, 0], [0, 9], [33, 0])


def random_model(seed: int) -> RWKV7:
    """Every parameter is random, so that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    model = RWKV7(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5, generator=generator)
            if "ln" in name and name.endswith("weight"):
                parameter += 1
    return model


@pytest.fixture(params=["native", "torch-chunked"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Takes the test through the C kernel and then through plain torch."""
    if request.param == "torch-chunked":
        monkeypatch.setattr(dispatch, "reason_against", lambda *_: "the test wants the portable path")
    elif reason := wkv_reason("cpu"):
        pytest.skip(reason)
    else:
        monkeypatch.setattr(dispatch, "_portable", None)
    return request.param


def ends_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12))


def tensors(state: State) -> list[Tensor]:
    return [tensor for layer in state.layers for tensor in layer]


def some_state(model: RWKV7, rows: int, seed: int) -> State:
    """States as they come after some text, to which gradients flow."""
    ids = torch.randint(CONFIG.vocab_size, (rows, 6), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        _, state = model(ids)
    return state.map(lambda tensor: tensor.detach().requires_grad_())


def apart(model: RWKV7, ids: Tensor, lengths: list[int], state: State) -> tuple[Tensor, list[list[Tensor]]]:
    """The sequences one by one: logits (1, T, V), and each one's last state. An empty one keeps its own."""
    logits, states = [], []
    for i, piece in enumerate(ids.split(lengths, dim=1)):
        row = state.rows(torch.tensor([i]))
        if piece.shape[1]:
            said, row = model(piece, row)
            logits.append(said)
        states.append(tensors(row))
    return torch.cat(logits, dim=1), states


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_equals_unpacked(lengths: list[int], seed: int) -> None:
    """Logits, final states and the gradients of both with respect to every parameter and every given state. States are
    given, since out of an empty one a head's output may be next to nothing, and ln_x makes much of its rounding."""
    model = random_model(seed)
    ids = torch.randint(CONFIG.vocab_size, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    rows = len(lengths)
    state = some_state(model, rows, seed)
    expected, states = apart(model, ids, lengths, state)
    found, after = model(ids, state, cu_seqlens=ends_of(lengths))
    assert error(found, expected) < 1e-5, f"seed {seed}"
    wanted = [torch.cat(pieces) for pieces in zip(*states, strict=True)]
    for one, other in zip(tensors(after), wanted, strict=True):
        assert error(one, other) < 1e-5, f"seed {seed}"

    generator = torch.Generator().manual_seed(seed + 1)
    weights = [torch.randn(t.shape, generator=generator) for t in (expected, *wanted)]
    leaves = dict(model.named_parameters())
    leaves |= {f"state {i}": tensor for i, tensor in enumerate(tensors(state))}
    gradients = []
    for outputs in ([found, *tensors(after)], [expected, *wanted]):
        loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, list(leaves.values())))
    for name, one, other in zip(leaves, *gradients, strict=True):
        assert error(one, other) < 1e-5, f"{name}, seed {seed}"


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_without_states_each_sequence_begins_with_an_empty_one(lengths: list[int], seed: int) -> None:
    model = random_model(seed)
    ids = torch.randint(CONFIG.vocab_size, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    results = []
    for state in (None, model.initial_state(len(lengths))):
        logits, after = model(ids, state, cu_seqlens=ends_of(lengths))
        results.append([logits, *tensors(after), *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    assert all(map(torch.equal, *results)), f"seed {seed}"


def test_a_neighbour_is_without_effect(seed: int) -> None:
    """Other words before and after leave a sequence's logits bit for bit as they were."""
    model = random_model(seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(CONFIG.vocab_size, (1, 30), generator=generator)
    others = torch.randint(CONFIG.vocab_size, (1, 30), generator=generator)
    others[:, 10:20] = ids[:, 10:20]
    ends = torch.tensor([0, 10, 20, 30])
    with torch.no_grad():
        one, other = (model(row, cu_seqlens=ends)[0] for row in (ids, others))
    assert torch.equal(one[:, 10:20], other[:, 10:20]), f"seed {seed}"
    assert not torch.equal(one[:, 20:], other[:, 20:]), f"seed {seed}"


def test_a_long_run_cut_anywhere_equals_the_whole(seed: int) -> None:
    """Lanes that go on with carried states, several in one row."""
    model = random_model(seed)
    ids = torch.randint(CONFIG.vocab_size, (2, 24), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected, whole = model(ids)
        state = None
        for cut in (slice(0, 9), slice(9, 10), slice(10, 24)):
            piece = ids[:, cut]
            packed, state = model(
                piece.reshape(1, -1), state, cu_seqlens=torch.tensor([0, piece.shape[1], 2 * piece.shape[1]])
            )
            assert error(packed.view(2, piece.shape[1], -1), expected[:, cut]) < 1e-5, f"seed {seed}"
    for one, other in zip(tensors(state), tensors(whole), strict=True):
        assert error(one, other) < 1e-5, f"seed {seed}"


@pytest.mark.slow
def test_one_compiled_model_reads_any_number_of_sequences(seed: int) -> None:
    """Packs of one length hold now more, now fewer samples."""
    model = random_model(seed)
    x = model.embed(torch.randint(CONFIG.vocab_size, (1, 60), generator=torch.Generator().manual_seed(seed))).detach()
    compiled = torch.compile(lambda x, ends: model.hidden(x, cu_seqlens=ends)[0], backend="eager")
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for count in range(2, 9):
        ends = torch.tensor([*range(count), 60], dtype=torch.int32)
        expected, _ = model.hidden(x, cu_seqlens=ends)
        assert error(compiled(x, ends), expected) < 1e-5, f"seed {seed}, {count} sequences"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2


def test_what_cannot_be_is_refused() -> None:
    model, ids = random_model(0), torch.zeros(1, 4, dtype=torch.long)
    for ends, message in (
        (torch.tensor([0, 3]), r"expected it to rise from 0 to T = 4"),
        (torch.tensor([0, 3, 1, 4]), "expected it to rise"),
        (torch.tensor([0.0, 4.0]), "expected integers"),
        (torch.tensor([0]), r"of shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(ids, cu_seqlens=ends)
    with pytest.raises(ValueError, match="B = 2, expected B = 1"):
        model(ids.expand(2, -1), cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="either mask or cu_seqlens"):
        model(ids, mask=torch.ones(1, 4, dtype=torch.bool), cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"expected 3 of \(2, 2, 32, 32\)"):
        model(ids, model.initial_state(1), cu_seqlens=torch.tensor([0, 1, 4]))
