"""How far a score may be trusted: standard errors, plain and clustered, the bootstrap, and a test of two runs.

After "Adding Error Bars to Evals" (arXiv 2411.00640). Letters: n samples, C clusters.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

REPEATS = 1000  # of the bootstrap


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values: their sample deviation over the root of n. 0 for a single one."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def clustered_error(values: Mapping[str, float], clusters: Mapping[str, str]) -> float:
    """Of the mean of values by id, where those of one cluster depend on one another (equation 4): the plain variance
    and, over n squared, the products of the deviations of all pairs within a cluster."""
    mean, n = fmean(values.values()), len(values)
    sums: dict[str, float] = defaultdict(float)
    squares = 0.0
    for name, value in values.items():
        sums[clusters[name]] += value - mean
        squares += (value - mean) ** 2
    pairs = math.fsum(total * total for total in sums.values()) - squares
    return math.sqrt(max(standard_error(list(values.values())) ** 2 + pairs / n**2, 0.0))


def bootstrap_error(
    metric: Callable[[Sequence[str]], float], clusters: Mapping[str, str], seed: int, repeats: int = REPEATS
) -> float:
    """The deviation of `metric` over `repeats` draws of as many clusters as there are, with replacement."""
    members: dict[str, list[str]] = defaultdict(list)
    for name, cluster in clusters.items():
        members[cluster].append(name)
    groups = list(members.values())
    rng = random.Random(seed)
    found = [metric([name for group in rng.choices(groups, k=len(groups)) for name in group]) for _ in range(repeats)]
    return stdev(found)


@dataclass(frozen=True)
class Paired:
    """Run B against run A on the same samples: `difference` of the means (B - A), its standard error, clustered, the
    two-sided p-value of the normal approximation, and on how many samples either was the better one."""

    difference: float
    stderr: float
    p: float
    better: int
    worse: int
    n: int


def paired(a: Mapping[str, float], b: Mapping[str, float], clusters: Mapping[str, str]) -> Paired:
    """Compare two runs sample by sample; both have the same ids."""
    differences = {name: b[name] - a[name] for name in a}
    mean = fmean(differences.values())
    stderr = clustered_error(differences, clusters)
    p = math.erfc(abs(mean) / stderr / math.sqrt(2)) if stderr else float(mean == 0)
    better, worse = sum(d > 0 for d in differences.values()), sum(d < 0 for d in differences.values())
    return Paired(mean, stderr, p, better, worse, len(differences))
