"""B batch, T time, D width, V vocabulary."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm_rwkv7.initialisation import initialise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import State

CONFIG = RWKV7Config(
    vocab_size=40, width=32, layers=3, head_size=16, decay_rank=5, iclr_rank=6, value_rank=7, gate_rank=8
)


def random_model(config: RWKV7Config = CONFIG) -> RWKV7:
    """Every parameter is random, so that none is without effect."""
    generator = torch.Generator().manual_seed(0)
    model = RWKV7(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5, generator=generator)
            if "ln" in name and name.endswith("weight"):
                parameter += 1
    return model


MODEL = random_model()


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def assert_states_close(found: State, expected: State, tolerance: float = 1e-5) -> None:
    for found_layer, expected_layer in zip(found.layers, expected.layers, strict=True):
        for one, other in zip(found_layer, expected_layer, strict=True):
            assert error(one, other) < tolerance


def some_state(batch: int) -> State:
    return MODEL(random_ids(batch, 7, seed=2))[1]


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(1, 79)))
@torch.no_grad()
def test_any_pieces_equal_the_whole(cuts: set[int]) -> None:
    ids = random_ids(2, 80)
    expected, whole = MODEL(ids)
    state, pieces = None, []
    for piece in ids.tensor_split(sorted(cuts), dim=1):
        logits, state = MODEL(piece, state)
        pieces.append(logits)
    assert error(torch.cat(pieces, dim=1), expected) < 1e-5
    assert_states_close(state, whole)
    assert state.tokens_seen == whole.tokens_seen == 80


@pytest.mark.parametrize("gradients", [False, True])
def test_one_step_at_a_time_equals_the_whole(gradients: bool) -> None:
    ids = random_ids(2, 70)
    with torch.set_grad_enabled(gradients):
        expected, whole = MODEL(ids)
        state, steps = None, []
        for t in range(70):
            logits, state = MODEL(ids[:, t : t + 1], state)
            steps.append(logits)
        assert error(torch.cat(steps, dim=1), expected) < 1e-5
        assert_states_close(state, whole)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=19, max_size=19).filter(any), min_size=2, max_size=3))
@torch.no_grad()
def test_padding_anywhere_is_neutral(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    ids, before = random_ids(*mask.shape), some_state(len(mask))
    logits, after = MODEL(ids, before, mask=mask)
    for i, real in enumerate(mask):
        alone, alone_after = MODEL(ids[i : i + 1, real], before.rows(torch.tensor([i])))
        assert error(logits[i, real], alone[0]) < 1e-5
        assert_states_close(after.rows(torch.tensor([i])), alone_after)


@torch.no_grad()
def test_a_row_of_padding_leaves_its_state_as_it_was() -> None:
    before = some_state(2)
    mask = torch.tensor([[True] * 5, [False] * 5])
    _, after = MODEL(random_ids(2, 5), before, mask=mask)
    assert_states_close(after.rows(torch.tensor([1])), before.rows(torch.tensor([1])), 1e-7)


def test_no_state_is_the_empty_state() -> None:
    ids = random_ids(2, 9)
    assert torch.equal(MODEL(ids)[0], MODEL(ids, MODEL.initial_state(2))[0])


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("time", [1, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_a_given_state_is_never_changed(time: int, gradients: bool, padded: bool) -> None:
    state = some_state(2).map(Tensor.detach)
    kept = state.map(Tensor.clone)
    mask = torch.arange(time).expand(2, -1) % 2 == 0 if padded else None
    with torch.set_grad_enabled(gradients):
        MODEL(random_ids(2, time), state, mask=mask)
    for layer, before in zip(state.layers, kept.layers, strict=True):
        for tensor, copy in zip(layer, before, strict=True):
            assert torch.equal(tensor, copy)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_state_does_not_keep_the_text_in_memory(padded: bool) -> None:
    mask = torch.ones(1, 100, dtype=torch.bool) if padded else None
    _, state = MODEL(random_ids(1, 100), mask=mask)
    for layer in state.layers:
        for tensor in layer:
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_gradients_reach_every_parameter_and_the_given_state() -> None:
    state = some_state(2).map(lambda tensor: tensor.detach().requires_grad_())
    inputs = dict(MODEL.named_parameters())
    inputs |= {f"{i} {name}": t for i, layer in enumerate(state.layers) for name, t in layer._asdict().items()}
    logits, after = MODEL(random_ids(2, 12), state)
    loss = logits.square().mean() + sum(layer.wkv.square().mean() for layer in after.layers)
    gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    for name, gradient in zip(inputs, gradients, strict=True):
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@torch.no_grad()
def test_embedded_input_equals_ids() -> None:
    ids = random_ids(2, 9)
    assert torch.equal(MODEL(x=MODEL.embed(ids))[0], MODEL(ids)[0])


@torch.no_grad()
def test_bf16_weights_stay_near() -> None:
    model = RWKV7(CONFIG)
    torch.manual_seed(0)
    initialise(model)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    ids = random_ids(2, 70)
    expected, _ = model(ids)
    found, state = model.bfloat16()(ids)
    assert found.dtype == state.layers[0].wkv.dtype == torch.float32
    assert error(found, expected) < 3e-2
    step, _ = model(ids[:, :1], state)
    assert step.isfinite().all()


def test_bf16_autocast_runs_forward_and_backward() -> None:
    ids = random_ids(2, 70)
    parameters = list(MODEL.parameters())
    expected, _ = MODEL(ids)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = MODEL(ids)
    assert error(found, expected) < 3e-2
    exact = torch.autograd.grad(expected.square().mean(), parameters)
    rounded = torch.autograd.grad(found.square().mean(), parameters)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        assert error(one, other) < 0.2


@pytest.mark.parametrize(
    "config",
    [CONFIG, RWKV7Config(100, 128, 1), RWKV7Config(7, 64, 4, 32, value_rank=3, gate_rank=20)],
)
def test_the_parameter_count_is_the_published_one(config: RWKV7Config) -> None:
    """2VD + 4D + L (19D + 12D^2 + 2D (sum of ranks)), less the value residual that layer 0 lacks: v0, v1, v2."""
    V, D, L = config.vocab_size, config.width, config.layers
    ranks = config.decay_rank + config.iclr_rank + config.value_rank + config.gate_rank
    expected = 2 * V * D + 4 * D + L * (19 * D + 12 * D**2 + 2 * D * ranks) - (D + 2 * D * config.value_rank)
    assert sum(p.numel() for p in RWKV7(config).parameters()) == expected


@pytest.fixture(scope="module")
def fresh() -> RWKV7:
    torch.manual_seed(0)
    model = RWKV7(RWKV7Config(300, 128, 4, decay_rank=16, iclr_rank=16, value_rank=16, gate_rank=160))
    initialise(model)
    return model


def test_every_block_starts_as_the_identity(fresh: RWKV7) -> None:
    x = fresh.embed(torch.arange(20)[None])
    assert torch.equal(fresh.hidden(x)[0], fresh.ln_out(fresh.ln0(x)))


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 40, 63, 64, 127])
def test_initial_vectors_follow_the_reference_trainer(fresh: RWKV7, layer: int, n: int) -> None:
    height, depth = 1 - layer / 4, layer / 3
    zigzag = ((n % 64) - 31.5) / 31.5
    zigzag *= abs(zigzag)
    linear = n / 127 - 0.5
    powers = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}
    expected = {name: 1 - (n / 128) ** (power * height) for name, power in powers.items()}
    expected |= {
        "w0": -6 + 6 * (n / 127) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag,
        "a0": -0.19 + 0.3 * zigzag + 0.4 * linear,
        "k_k": 0.71 - 0.1 * linear,
        "k_a": 1.02,
    }
    if layer > 0:
        expected["v0"] = 0.73 - 0.4 * linear
    block = fresh.blocks[layer]
    for name, value in expected.items():
        assert getattr(block.time_mix, name)[n].item() == pytest.approx(value, abs=2e-5), name
    assert block.channel_mix.x_k[n].item() == pytest.approx(1 - (n / 128) ** (height**4), abs=2e-5)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_initial_matrices_follow_the_reference_trainer(fresh: RWKV7, layer: int) -> None:
    mix, ffn = fresh.blocks[layer].time_mix, fresh.blocks[layer].channel_mix
    for zero in (mix.output.weight, ffn.value.weight, mix.w1, mix.a1, mix.g1, mix.ln_x.bias):
        assert not zero.any()
    for weight, bound in (
        (mix.receptance.weight, 0.5),
        (mix.key.weight, 0.05),
        (mix.value.weight, 0.5),
        (ffn.key.weight, 0.5),
    ):
        assert 0.95 * bound < weight.abs().max() * math.sqrt(128) <= bound * (1 + 1e-6)
    assert torch.allclose(mix.w2 @ mix.w2.T, 0.01 * torch.eye(16), atol=1e-6)
    # 160 rows in 128 columns: the columns are orthogonal, and longer in the same proportion
    assert torch.allclose(mix.g2.T @ mix.g2, 0.01 * 160 / 128 * torch.eye(128), atol=1e-6)
    assert (mix.r_k == -0.04).all()
    assert torch.allclose(mix.ln_x.weight, torch.tensor(((1 + layer) / 4) ** 0.7))


def test_the_initial_embedding_and_head_follow_the_reference_trainer(fresh: RWKV7) -> None:
    assert 0.9e-4 < fresh.emb.weight.abs().max() <= 1e-4
    gram = fresh.head.weight.T @ fresh.head.weight
    assert torch.allclose(gram, 0.25 * 300 / 128 * torch.eye(128), atol=1e-5)


@torch.no_grad()
def test_a_checkpoint_s_language_model_opens_alone(tiny_checkpoint: Path, tiny_model: MMRWKV7) -> None:
    lm = RWKV7.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    ids = torch.arange(30)[None]
    assert torch.equal(lm(ids)[0], tiny_model.lm(ids)[0])


def test_bad_input_is_refused() -> None:
    ids = random_ids(2, 3)
    with pytest.raises(ValueError, match="either ids or x"):
        MODEL()
    with pytest.raises(ValueError, match="either ids or x"):
        MODEL(ids, x=MODEL.embed(ids))
    with pytest.raises(ValueError, match=r"\(2, 0, 32\)"):
        MODEL(ids[:, :0])
    with pytest.raises(ValueError, match=r"\(2, 3, 31\)"):
        MODEL(x=torch.zeros(2, 3, 31))
    with pytest.raises(ValueError, match=r"expected 3 of \(2, 2, 16, 16\)"):
        MODEL(ids, MODEL.initial_state(1))
    shallow = random_model(RWKV7Config(40, 32, 1, 16, decay_rank=2, iclr_rank=2, value_rank=2, gate_rank=2))
    with pytest.raises(ValueError, match="1 layers"):
        MODEL(ids, shallow.initial_state(2))
    with pytest.raises(ValueError, match="width 33"):
        RWKV7Config(40, 33, 1, 16)


def test_a_state_with_other_token_shifts_is_refused() -> None:
    model = random_model()
    first, *others = model.initial_state().layers
    for name in ("att_shift", "ffn_shift"):
        state = State((first._replace(**{name: torch.zeros(1, 5)}), *others))
        with pytest.raises(ValueError, match=r"token shifts of .*\(1, 5\).*expected"):
            model(random_ids(1, 3), state)
