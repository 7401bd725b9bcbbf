"""Paired comparison of two arms over cases: difference, bootstrap interval, signed-rank test, Holm's correction.

Cases are the independent unit. Results of one case in several folds are averaged first, by the caller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 2020
# Averages of equal numbers differ in their last digits; zeros and ties of the ranks must not hang on them.
_DIGITS = 12


@dataclass(frozen=True)
class PairedComparison:
    """One arm against another over the same cases.

    Attributes:
        cases: Number of differences.
        difference: Their mean.
        lower: Lower end of the confidence interval of the mean.
        upper: Upper end.
        p: Of the two-sided Wilcoxon signed-rank test.
        p_holm: ``p`` corrected for the comparisons it was made among; NaN before that.
    """

    cases: int
    difference: float
    lower: float
    upper: float
    p: float
    p_holm: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.lower > 0 or self.upper < 0


def compare_paired(differences: Sequence[float]) -> PairedComparison:
    """Compare by the differences of at least one case."""
    rounded = [round(value, _DIGITS) for value in differences]
    lower, upper = bootstrap_interval(rounded)
    return PairedComparison(len(rounded), float(np.mean(rounded)), lower, upper, wilcoxon_p(rounded))


def bootstrap_interval(differences: Sequence[float], *, seed: int = SEED) -> tuple[float, float]:
    """Interval of the mean by drawing cases with replacement: bias-corrected and accelerated (BCa).

    BCa follows a skewed distribution, where the plain percentiles miss on one side. One case has no interval (NaN);
    differences that are all the same have one of no width.
    """
    if len(differences) < 2:
        return math.nan, math.nan
    if min(differences) == max(differences):
        return differences[0], differences[0]
    result = stats.bootstrap(
        (np.asarray(differences),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; differences of zero are dropped, 1 if all are zero.

    Exact for few cases: n cases that all agree have p = 2 / 2ⁿ, the smallest there is.
    """
    other = [value for value in differences if value != 0]
    return float(stats.wilcoxon(other).pvalue) if other else 1.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction, in the order given.

    The smallest of m is multiplied by m, the next by m − 1, and so on; a corrected value is never below that of a
    smaller one, nor above 1.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return tuple(corrected)


def correct_by_holm(comparisons: Sequence[PairedComparison]) -> tuple[PairedComparison, ...]:
    """The comparisons of one family with ``p_holm`` filled in."""
    corrected = holm([one.p for one in comparisons])
    return tuple(replace(one, p_holm=p) for one, p in zip(comparisons, corrected, strict=True))
