import math
import random
from statistics import fmean, stdev, variance

import pytest

from eval.statistics import bootstrap_error, clustered_error, paired, standard_error


def made(seed: int, size: int = 60) -> tuple[dict[str, float], dict[str, str]]:
    rng = random.Random(seed)
    values = {str(i): 100.0 * rng.randint(0, 3) / 3 for i in range(size)}
    return values, {name: str(rng.randrange(15)) for name in values}


def test_the_clustered_error_is_the_sum_over_all_pairs(seed: int) -> None:
    values, clusters = made(seed)
    mean, n = fmean(values.values()), len(values)
    pairs = sum(
        (values[i] - mean) * (values[j] - mean) for i in values for j in values if i != j and clusters[i] == clusters[j]
    )
    expected = variance(values.values()) / n + pairs / n**2
    assert clustered_error(values, clusters) == pytest.approx(math.sqrt(max(expected, 0))), f"seed {seed}"


def test_clusters_of_one_leave_the_plain_error(seed: int) -> None:
    values, _ = made(seed)
    plain = standard_error(list(values.values()))
    assert plain == pytest.approx(stdev(values.values()) / math.sqrt(len(values)))
    assert clustered_error(values, {name: name for name in values}) == pytest.approx(plain), f"seed {seed}"


def test_copies_of_a_sample_tell_nothing_new(seed: int) -> None:
    values, _ = made(seed)
    copies = {f"{name}-{k}": value for name, value in values.items() for k in range(4)}
    plain = standard_error(list(values.values()))
    found = clustered_error(copies, {name: name.partition("-")[0] for name in copies})
    assert found == pytest.approx(plain, rel=0.02), f"seed {seed}"


def test_the_bootstrap_of_a_mean_is_its_standard_error(seed: int) -> None:
    values, _ = made(seed, 200)
    clusters = {name: name for name in values}

    def mean(names: list[str]) -> float:
        return fmean(values[name] for name in names)

    found = bootstrap_error(mean, clusters, seed, 800)
    assert found == pytest.approx(standard_error(list(values.values())), rel=0.15), f"seed {seed}"
    assert found == bootstrap_error(mean, clusters, seed, 800)


def test_paired_runs_are_compared_sample_by_sample() -> None:
    a = {str(i): 0.0 for i in range(100)}
    b = {name: 100.0 * (int(name) < 10) for name in a}
    found = paired(a, b, {name: name for name in a})
    assert (found.difference, found.better, found.worse, found.n) == (10, 10, 0, 100)
    assert found.stderr == pytest.approx(100 * math.sqrt(0.1 * 0.9 / 99))
    assert found.p == pytest.approx(math.erfc(10 / found.stderr / math.sqrt(2)))
    assert paired(a, a, {name: name for name in a}).p == 1
    most = {name: 100.0 * (int(name) < 90) for name in a}
    assert 0 < paired(a, most, {name: name for name in a}).p < 1e-100  # smaller than what 1 - cdf can tell from 0
