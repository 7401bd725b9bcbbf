import math

import numpy as np
import pytest
from scipy import stats

from covidseg_train.paired_tests import (
    RESAMPLES,
    SEED,
    PairedComparison,
    bootstrap_interval,
    compare_paired,
    correct_by_holm,
    holm,
    wilcoxon_p,
)


def test_cases_that_all_agree_have_the_smallest_p_there_is():
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.05, 0.4, 0.6]) == pytest.approx(2 / 2**6)


def test_p_counts_the_sign_patterns_with_as_small_a_rank_sum():
    # Ranks 1 2 3 4, the negative one is rank 1: of 16 sign patterns, W- <= 1 in two and W+ <= 1 in two.
    assert wilcoxon_p([-0.1, 0.2, 0.3, 0.4]) == pytest.approx(4 / 16)


def test_p_is_that_of_scipy():
    differences = np.random.default_rng(0).normal(0.02, 0.05, 14)
    assert wilcoxon_p(list(differences)) == stats.wilcoxon(differences).pvalue


def test_differences_of_zero_are_dropped():
    assert wilcoxon_p([0.0, 0.1, 0.2, 0.3, 0.0]) == pytest.approx(2 / 2**3)
    assert wilcoxon_p([0.0, 0.0]) == 1.0


def test_interval_is_that_of_scipy_and_always_the_same():
    differences = list(np.random.default_rng(1).exponential(0.05, 14))
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="BCa", random_state=np.random.default_rng(SEED)
    ).confidence_interval
    assert bootstrap_interval(differences) == bootstrap_interval(differences) == pytest.approx(tuple(expected))


def test_interval_of_two_cases_spans_them():
    # Of the four equally likely draws one holds the smaller case twice and one the larger: both ends are needed.
    assert bootstrap_interval([0.1, 0.3]) == pytest.approx((0.1, 0.3))


def test_interval_of_many_cases_is_that_of_the_normal_distribution():
    differences = np.random.default_rng(2).normal(0.0, 1.0, 2000)
    half = 1.96 * differences.std() / math.sqrt(2000)
    assert bootstrap_interval(list(differences)) == pytest.approx(
        (differences.mean() - half, differences.mean() + half), abs=0.003
    )


def test_one_case_has_no_interval_and_equal_cases_one_of_no_width():
    assert all(math.isnan(end) for end in bootstrap_interval([0.2]))
    assert bootstrap_interval([0.2, 0.2, 0.2]) == (0.2, 0.2)


def test_equal_differences_stay_equal_whatever_their_last_digit():
    found = compare_paired([0.3 - 0.1, 0.2, 0.1 + 0.1])
    assert (found.lower, found.upper) == (0.2, 0.2)
    assert found.excludes_zero
    assert found.p == pytest.approx(0.25)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1; the third is raised to the second.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx((0.06, 0.04, 0.5, 0.06))
    assert holm([0.4, 0.6]) == pytest.approx((0.8, 0.8))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()


def test_holm_keeps_the_order_of_the_comparisons():
    found = [PairedComparison(6, 0.1, 0.0, 0.2, p) for p in (0.5, 0.01)]
    assert [one.p_holm for one in correct_by_holm(found)] == pytest.approx([0.5, 0.02])
