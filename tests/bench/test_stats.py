import numpy as np
import pytest
import scipy.stats

from potstill.bench import stats
from potstill.timing import ratio
from potstill.timing.ratio import Estimate


def rng(seed=0):
    return np.random.default_rng(seed)


def test_percentiles_are_those_computed_by_hand():
    row = stats.summarise(np.arange(1, 102))
    assert (row["p50_ms"], row["p90_ms"], row["samples"]) == (51.0, 91.0, 101)


def test_p90_is_left_out_below_64_samples_and_says_how_many_lack():
    row = stats.summarise(np.arange(60))
    assert row["p90_ms"] is None
    assert row["p90_missing"] == 4
    assert row["p50_ms"] == 29.5
    assert "p90_missing" not in stats.summarise(np.arange(64))


def test_p50_is_left_out_below_11_samples():
    assert stats.summarise(np.arange(10)) == {
        "samples": 10, "p50_ms": None, "p50_missing": 1, "p90_ms": None, "p90_missing": 54
    }  # fmt: skip
    assert stats.summarise(np.arange(11))["p50_ms"] == 5.0


def test_the_ratio_of_a_series_with_itself_is_exactly_one():
    rounds = [rng(seed).normal(10, 1, size=40) for seed in range(12)]
    assert ratio.ratio_interval(rounds, rounds, rng=rng()) == Estimate(1.0, 1.0, 1.0)


def test_the_interval_of_two_series_of_the_same_speed_contains_one():
    """An A/A run: of 200, about 95 % must contain 1; the bootstrap over 12 rounds comes a little short."""
    inside = 0
    for seed in range(200):
        draw = rng(seed)
        weather = draw.normal(0, 0.3, size=12)  # what the machine does in a round hits both
        first, second = ([draw.normal(10 + shift, 0.5, size=30) for shift in weather] for _ in range(2))
        estimate = ratio.ratio_interval(first, second, rng=draw, resamples=400)
        inside += estimate.low <= 1 <= estimate.high
    assert 178 <= inside <= 200


def test_a_ratio_says_how_many_times_as_fast_the_candidate_is():
    estimate = ratio.ratio_interval([[20, 20], [22, 20]], [[10, 10], [10, 11]], rng=rng())
    assert estimate.value == 2.0
    assert estimate.low <= 2.0 <= estimate.high


def test_weather_that_hits_both_models_does_not_widen_the_interval():
    weather = np.linspace(1, 3, 12)
    baseline, candidate = [np.full(20, 2 * factor) for factor in weather], [np.full(20, factor) for factor in weather]
    estimate = ratio.ratio_interval(baseline, candidate, rng=rng())
    assert (estimate.low, estimate.high) == pytest.approx((2.0, 2.0))


def test_the_ratio_interval_agrees_with_scipys_bootstrap_of_the_median():
    draw = rng(5)
    baseline, candidate = draw.normal(20, 2, size=(41, 7)), draw.normal(10, 1, size=(41, 7))
    ours = ratio.ratio_interval(baseline, candidate, rng=rng(1), resamples=4000)
    ratios = np.median(baseline, axis=1) / np.median(candidate, axis=1)
    theirs = scipy.stats.bootstrap((ratios,), np.median, method="percentile", n_resamples=4000, rng=rng(2))
    assert ours.value == np.median(ratios)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), rel=0.005)


def test_a_paired_ratio_refuses_rounds_that_do_not_pair():
    with pytest.raises(ValueError, match="2, 1"):
        ratio.ratio_interval([[1], [2]], [[1]], rng=rng())


def test_score_ratio_agrees_with_scipys_paired_bootstrap_over_examples():
    """Measured: within 0.2 % of each other."""
    draw = rng(7)
    baseline = draw.random(400) < 0.9
    candidate = np.where(draw.random(400) < 0.95, baseline, ~baseline)
    ours = stats.score_ratio(baseline, candidate, rng=rng(1), resamples=4000)
    theirs = scipy.stats.bootstrap(
        (baseline.astype(float), candidate.astype(float)), lambda b, c, axis: c.mean(axis=axis) / b.mean(axis=axis),
        paired=True, method="percentile", n_resamples=4000, rng=rng(2),
    ).confidence_interval  # fmt: skip
    assert ours.value == candidate.sum() / baseline.sum()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.005)


def test_equal_answers_keep_exactly_everything():
    answers = rng().random(100) < 0.7
    assert stats.score_ratio(answers, answers, rng=rng()) == Estimate(1.0, 1.0, 1.0)


def test_a_teacher_that_is_right_nowhere_has_nothing_to_keep():
    assert stats.score_ratio([False, False], [True, False], rng=rng()) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.6, 1.7, "PASS"),
        (1.59, 1.7, "INCONCLUSIVE"),
        (1.5, 1.6, "INCONCLUSIVE"),
        (1.5, 1.5999, "FAIL"),
        (1.6, 1.6, "PASS"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, expected):
    assert ratio.verdict(Estimate(1.6, low, high), 1.6) == expected


def test_rounds_together_make_the_samples_asked_for():
    assert stats.calls_per_round(64, 12) == 6
    assert stats.calls_per_round(64, 64) == 1
