import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mm_rwkv7.sampler import Sampler, nucleus
from mm_rwkv7.sampling import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -math.inf])
DRAWS = 4000


def frequencies(sampling: Sampling, logits: Tensor = LOGITS) -> Tensor:
    sampler = Sampler(sampling, len(logits))
    drawn = torch.tensor([sampler(logits) for _ in range(DRAWS)])
    return torch.bincount(drawn, minlength=len(logits)) / DRAWS


def assert_distributed(found: Tensor, expected: Tensor) -> None:
    """Chi-square with a bound that the seeds used here keep far from (6 degrees of freedom at most)."""
    assert (found[expected == 0] == 0).all()
    expected, found = expected[expected > 0], found[expected > 0]
    assert DRAWS * ((found - expected) ** 2 / expected).sum() < 25


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    found = frequencies(Sampling(temperature=temperature, seed=1))
    assert_distributed(found, (LOGITS / temperature).softmax(0))


def test_top_k_draws_follow_the_rest_of_the_softmax() -> None:
    expected = LOGITS.softmax(0)
    expected[3:] = 0
    assert_distributed(frequencies(Sampling(temperature=1, top_k=3, seed=2)), expected / expected.sum())


def test_top_p_draws_follow_the_nucleus() -> None:
    expected = LOGITS.softmax(0)
    top_p = float(expected[:2].sum()) + 0.01  # needs the third
    expected[3:] = 0
    assert_distributed(frequencies(Sampling(temperature=1, top_p=top_p, seed=3)), expected / expected.sum())


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0, 1))
def test_nucleus_is_the_smallest_set_with_that_mass(logits: list[float], top_p: float) -> None:
    probabilities = torch.tensor(logits, dtype=torch.float64).softmax(0)
    kept = probabilities[nucleus(probabilities, top_p)]
    assert kept.sum() >= top_p - 1e-9
    assert len(kept) == 1 or kept.sum() - kept.min() < top_p + 1e-9
    assert set(kept.tolist()) >= {p for p in probabilities.tolist() if p > kept.min()}


def test_nucleus_edges() -> None:
    probabilities = torch.tensor([0.25, 0.5, 0.125, 0.125])
    assert nucleus(probabilities, 0.0).tolist() == [1]
    assert nucleus(probabilities, 0.5).tolist() == [1]
    assert nucleus(probabilities, 0.51).tolist() == [1, 0]
    assert nucleus(probabilities, 0.75).tolist() == [1, 0]
    assert nucleus(probabilities, 1.0).tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1, top_k=1), Sampling(temperature=1, top_p=0)])
def test_greedy_takes_the_likeliest(sampling: Sampling) -> None:
    sampler = Sampler(sampling, 50)
    for seed in range(20):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        assert sampler(logits) == int(logits.argmax())


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_temperature_towards_zero_is_greedy(temperature: float) -> None:
    assert frequencies(Sampling(temperature=temperature, seed=0))[0] == 1


def test_the_same_seed_draws_the_same() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed), 1000)
        return [sampler(torch.zeros(1000)) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Sampler(Sampling(temperature=1), 6)(LOGITS)
    assert torch.equal(torch.get_rng_state(), before)


def test_presence_penalty_is_paid_once() -> None:
    sampler = Sampler(Sampling(presence_penalty=1.5), 3)
    logits = torch.tensor([2.0, 1.0, 0.0])
    # 2 | 0.5 1 0 | 0.5 -0.5 0 | and so on for ever: every token has paid, or never will
    assert [sampler(logits) for _ in range(5)] == [0, 1, 0, 0, 0]


def test_count_penalty_grows_with_each_time() -> None:
    sampler = Sampler(Sampling(count_penalty=0.6), 2)
    logits = torch.tensor([1.0, 0.0])
    # 1 0 | 0.4 0 | -0.2 0 | -0.2 -0.6 | -0.8 -0.6
    assert [sampler(logits) for _ in range(5)] == [0, 0, 1, 0, 1]


def test_counts_decay_before_the_token_is_counted() -> None:
    sampler = Sampler(Sampling(count_penalty=1.0, penalty_decay=0.5), 2)
    for logits in (torch.tensor([9.0, 0.0]), torch.tensor([9.0, 0.0]), torch.tensor([0.0, 9.0])):
        sampler(logits)
    assert sampler.counts.tolist() == [0.75, 1.0]


def test_penalties_apply_before_the_temperature() -> None:
    sampler = Sampler(Sampling(temperature=2.0, presence_penalty=1.0, seed=4), len(LOGITS))
    sampler.counts[0] = 1
    expected = ((LOGITS - torch.eye(6)[0]) / 2).softmax(0)
    drawn = []
    for _ in range(DRAWS):
        drawn.append(sampler(LOGITS))
        sampler.counts = torch.eye(6)[0]
    assert_distributed(torch.bincount(torch.tensor(drawn), minlength=6) / DRAWS, expected)


def test_logits_are_left_alone() -> None:
    logits = LOGITS.clone()
    Sampler(Sampling(temperature=1, top_k=2, top_p=0.5, presence_penalty=1, count_penalty=1), 6)(logits)
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[0, math.nan, 1], [math.nan, math.inf, 0], [math.inf, 0, 0], [-math.inf] * 3])
def test_broken_logits_are_refused(temperature: float, logits: list[float]) -> None:
    with pytest.raises(FloatingPointError, match=r"greatest logit is (nan|inf|-inf): the weights"):
        Sampler(Sampling(temperature=temperature), 3)(torch.tensor(logits))


def test_logits_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(3,\)"):
        Sampler(Sampling(), 3)(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -1),
        ("presence_penalty", math.nan),
        ("count_penalty", math.inf),
        ("penalty_decay", 1.5),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", "\n\n"),
        ("stop", ("",)),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        Sampling(**{name: value})
