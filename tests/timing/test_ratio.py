import numpy as np
import pytest
import scipy.stats

from potstill.timing import ratio
from potstill.timing.ratio import Estimate


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_ratio_of_a_series_with_itself_is_exactly_one():
    rounds = [rng(seed).normal(10, 1, size=40) for seed in range(12)]
    assert ratio.ratio_interval(rounds, rounds, rng=rng()) == Estimate(1.0, 1.0, 1.0)


def test_a_ratio_says_how_many_times_as_fast_the_candidate_is():
    estimate = ratio.ratio_interval([[20, 20], [22, 20]], [[10, 10], [10, 11]], rng=rng())
    assert estimate.value == 2.0
    assert estimate.low <= 2.0 <= estimate.high


def test_weather_that_hits_both_models_does_not_widen_the_interval():
    weather = np.linspace(1, 3, 12)
    baseline, candidate = [np.full(20, 2 * factor) for factor in weather], [np.full(20, factor) for factor in weather]
    estimate = ratio.ratio_interval(baseline, candidate, rng=rng())
    assert (estimate.low, estimate.high) == pytest.approx((2.0, 2.0))


def test_the_interval_agrees_with_scipys_bootstrap_at_the_expanded_level():
    draw = rng(5)
    baseline, candidate = draw.normal(20, 2, size=(41, 7)), draw.normal(10, 1, size=(41, 7))
    ours = ratio.ratio_interval(baseline, candidate, rng=rng(1), resamples=4000)
    ratios = np.median(baseline, axis=1) / np.median(candidate, axis=1)
    tail = scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, 40) * (41 / 40) ** 0.5)
    theirs = scipy.stats.bootstrap(
        (ratios,), np.median, method="percentile", n_resamples=4000, confidence_level=1 - 2 * tail, rng=rng(2)
    )
    assert ours.value == np.median(ratios)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), rel=0.005)


@pytest.mark.parametrize("units", [4, 5, 8, 12, 30, 200])
def test_the_expanded_tail_is_students(units):
    exact = scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, units - 1) * (units / (units - 1)) ** 0.5)
    assert ratio.expanded_tail(units) == pytest.approx(exact, rel=0.15)
    assert units < 8 or ratio.expanded_tail(units) == pytest.approx(exact, rel=0.003)


def test_of_three_units_the_interval_is_all_that_was_drawn():
    assert ratio.with_interval(2, np.array([1.0, 2, 2, 3]), units=3) == Estimate(2, 1, 3)
    assert ratio.with_interval(2, np.linspace(0, 1, 1001)) == Estimate(2, pytest.approx(0.025), pytest.approx(0.975))


def test_a_paired_ratio_refuses_rounds_that_do_not_pair():
    with pytest.raises(ValueError, match="2, 1"):
        ratio.ratio_interval([[1], [2]], [[1]], rng=rng())
    with pytest.raises(ValueError, match="1, 1"):
        ratio.ratio_interval([[1]], [[1]], rng=rng())


def coverage(*, launches, between, within, outliers=0.0, runs=300):
    """Return the share of A/A runs whose interval holds 1, and the interval's median half-width."""
    inside, widths = 0, []
    for seed in range(runs):
        draw = rng(seed)
        numbers = np.repeat(np.arange(launches), 12 // launches)
        logs = draw.normal(0, between, launches)[numbers] + draw.normal(0, within, 12)
        logs += (draw.random(12) < outliers) * draw.choice([-1, 1], 12) * draw.uniform(0.05, 0.3, 12)
        weather = 1 + draw.random(12)  # what the machine does in a round hits both
        estimate = ratio.ratio_interval(
            (weather * np.exp(logs))[:, None], weather[:, None], rng=draw, resamples=400, launches=numbers.tolist()
        )
        inside += estimate.low <= 1 <= estimate.high
        widths.append((estimate.high - estimate.low) / 2)
    return inside / runs, float(np.median(widths))


# Measured with 2000 runs each: 96.6, 96.1, 97.7, 97.5 and 94.5 %.
@pytest.mark.parametrize(
    ("made", "widest"),
    [
        ({"launches": 1, "between": 0.0, "within": 0.012}, 0.012),
        ({"launches": 1, "between": 0.0, "within": 0.012, "outliers": 0.1}, 0.016),
        ({"launches": 4, "between": 0.005, "within": 0.012}, 0.015),
        ({"launches": 4, "between": 0.013, "within": 0.028}, 0.035),
        ({"launches": 4, "between": 0.013, "within": 0.013}, 0.022),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(made, widest):
    held, width = coverage(**made)
    assert held >= 0.91  # of 300 runs with 94.5 %, one in 200 has less
    assert width <= widest


def test_rounds_alone_would_not_hold_the_truth_where_processes_differ():
    """Without the launches, as if all 12 rounds were independent: 86 % instead of 95 %."""
    inside = 0
    for seed in range(300):
        draw = rng(seed)
        logs = np.repeat(draw.normal(0, 0.013, 4), 3) + draw.normal(0, 0.013, 12)
        estimate = ratio.ratio_interval(np.exp(logs)[:, None], np.ones((12, 1)), rng=draw, resamples=400)
        inside += estimate.low <= 1 <= estimate.high
    assert inside / 300 < 0.91


def test_drawn_rounds_come_from_drawn_launches():
    launches = [5, 5, 5, 9, 9, 9]
    drawn = ratio.draw_rounds(launches, resamples=4000, rng=rng())
    assert drawn.shape == (4000, 6)
    first, second = drawn[:, :3], drawn[:, 3:]
    assert ((first // 3 == first[:, :1] // 3).all(), (second // 3 == second[:, :1] // 3).all()) == (True, True)
    assert np.bincount(drawn.ravel(), minlength=6) / drawn.size == pytest.approx([1 / 6] * 6, abs=0.02)
    # Half of the resamples have one launch twice.
    assert np.mean(first[:, 0] // 3 == second[:, 0] // 3) == pytest.approx(0.5, abs=0.03)


def test_launches_of_unequal_length_keep_the_number_of_rounds():
    drawn = ratio.draw_rounds([0, 0, 1], resamples=1000, rng=rng())
    assert drawn.shape == (1000, 3)
    assert set(np.unique(drawn)) == {0, 1, 2}
    both_of_last = (drawn[:, 0] == 2) & (drawn[:, 1] == 2)
    assert both_of_last.mean() == pytest.approx(0.5, abs=0.05)  # the place of the first launch given to the second


@pytest.mark.parametrize(
    ("estimate", "floor", "expected"),
    [
        (Estimate(1.1, 1.05, 1.15), 0.02, "faster"),
        (Estimate(0.9, 0.85, 0.95), 0.02, "slower"),
        (Estimate(1.1, 0.99, 1.2), 0.02, "no difference shown"),
        (Estimate(1.02, 1.01, 1.03), 0.03, "no difference shown"),
        (Estimate(0.98, 0.97, 0.99), 0.03, "no difference shown"),
        (Estimate(1.02, 1.01, 1.03), None, "faster"),
        (Estimate(0.9, 0.9, 1.0), None, "no difference shown"),
    ],
)
def test_a_finding_needs_the_interval_and_the_floor(estimate, floor, expected):
    assert ratio.finding(estimate, floor) == expected
