"""Intervals and tests against scipy, and against numbers worked out by hand."""

from math import ceil

import numpy as np
import pytest
import scipy.stats

from potstill.evaluation.intervals import (
    Z,
    bootstrap,
    bootstrap_together,
    mcnemar,
    percentiles,
    sign_p_value,
    wilson,
    wilson_needs,
)


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 872), (17, 1000), (1, 1)])
def test_wilson_agrees_with_scipy(hits, total):
    theirs = scipy.stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson(hits, total) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_by_hand():
    """Nothing seen in n leaves z^2 / (n + z^2): 3.8415 / 384.15 for 380.3 texts."""
    assert pytest.approx(1.959964, abs=1e-6) == Z
    assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-7)
    assert wilson(0, 381)[1] < 0.01 < wilson(0, 380)[1]


@pytest.mark.parametrize(("share", "limit"), [(0.0, 0.01), (0.002, 0.01), (0.02, 0.05)])
def test_so_many_texts_put_the_upper_end_at_the_limit(share, limit):
    needed = wilson_needs(share, limit)
    spread = Z**2 / needed
    upper = (share + spread / 2 + Z * np.sqrt(share * (1 - share) / needed + spread / needed / 4)) / (1 + spread)
    assert upper == pytest.approx(limit, rel=1e-9)


def test_zero_flips_need_381_texts_for_one_percent():
    assert ceil(wilson_needs(0, 0.01)) == 381


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (6, 0), (8, 1), (10, 2), (12, 3), (3, 12), (40, 60)])
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    theirs = scipy.stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(theirs, rel=1e-12)


def test_mcnemar_by_hand():
    assert mcnemar(6, 0) == 2 / 64
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(1, 2) == 1.0
    assert mcnemar(3000, 3000) == 1.0


def test_the_bootstrap_agrees_with_scipys():
    """Measured: ends within 0.006 of each other."""
    values = np.random.default_rng(4).exponential(size=150)
    ours = percentiles(
        bootstrap(lambda counts: counts @ values / counts.sum(axis=1), 150, rng=np.random.default_rng(1))
    )
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_every_draw_has_as_many_texts_and_the_seed_decides():
    for texts in (1, 3, 5000):  # more than one chunk of draws
        sums = bootstrap(lambda counts: counts.sum(axis=1), texts, rng=np.random.default_rng(0), resamples=1000)
        assert sums.tolist() == [texts] * 1000
    first, second, other = (
        bootstrap(lambda counts: counts[:, 0], 9, rng=np.random.default_rng(seed), resamples=50) for seed in (0, 0, 1)
    )
    assert first.tolist() == second.tolist() != other.tolist()
    assert first.mean() == pytest.approx(1.0, abs=0.5)


def test_statistics_of_one_bootstrap_share_their_draws():
    values = np.random.default_rng(0).normal(size=50)

    def mean(counts):
        return counts @ values / 50

    found = bootstrap_together({"a": mean, "b": lambda counts: 2 * mean(counts)}, 50, rng=np.random.default_rng(1))
    np.testing.assert_allclose(found["b"], 2 * found["a"])
    np.testing.assert_array_equal(found["a"], bootstrap(mean, 50, rng=np.random.default_rng(1)))
    assert found["a"].shape == (2000,)


def test_a_difference_is_as_unlikely_as_the_few_draws_beyond_it():
    assert sign_p_value(np.array([1.0, 2, 3, 4])) == 2 / 5
    assert sign_p_value(np.array([-1.0, 2, 3, 4])) == 4 / 5
    assert sign_p_value(-np.arange(1.0, 2000)) == 2 / 2000
    assert sign_p_value(np.zeros(100)) == 1.0
    # Of a normal difference 2 standard errors away: 2 * 2.3 %.
    draws = np.random.default_rng(0).normal(2, 1, size=200_000)
    assert sign_p_value(draws) == pytest.approx(0.0455, abs=0.002)
