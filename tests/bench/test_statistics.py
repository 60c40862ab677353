import numpy as np
import pytest
import scipy.stats

from potstill.bench import statistics
from potstill.bench.statistics import Rounds


def rng(seed=0):
    return np.random.default_rng(seed)


def one_launch(*calls_ms):
    return Rounds(calls_ms, [0] * len(calls_ms))


def summary(*calls_ms, **settings):
    return statistics.summarise(one_launch(*calls_ms), rng=rng(), **settings)


def test_percentiles_are_those_computed_by_hand():
    row = summary(*np.split(np.arange(1, 801), 10))
    assert (row["p50_ms"], row["p90_ms"], row["samples"]) == (400.5, pytest.approx(720.1), 800)
    assert (row["p95_ms"], row["p99_ms"]) == (pytest.approx(760.05), pytest.approx(792.01))
    assert row["missing"] == {}


@pytest.mark.parametrize(
    ("samples", "missing"),
    [
        (10, {"p50": 1, "p90": 54, "p95": 120, "p99": 652}),
        (11, {"p90": 53, "p95": 119, "p99": 651}),
        (63, {"p90": 1, "p95": 67, "p99": 599}),
        (64, {"p95": 66, "p99": 598}),
        (130, {"p99": 532}),
        (661, {"p99": 1}),
        (662, {}),
    ],
)
def test_a_percentile_that_the_samples_cannot_carry_is_left_out_and_says_how_many_lack(samples, missing):
    row = summary(np.arange(1, samples - 4), np.arange(1, 6))
    assert row["samples"] == samples
    assert row["missing"] == missing
    carried = {"p50", "p90", "p95", "p99"} - set(missing)
    assert {name.removesuffix("_ms") for name in row if name.endswith("_ms") and name.startswith("p")} == carried
    assert set(row["intervals"]) == carried


def test_51_quantiles_run_from_the_smallest_to_the_largest():
    row = summary(np.arange(101), np.arange(101))
    assert len(row["quantiles_ms"]) == 51
    assert (row["quantiles_ms"][0], row["quantiles_ms"][1], row["quantiles_ms"][-1]) == (0, 2, 100)


def test_rounds_that_are_alike_have_a_point_for_an_interval():
    row = summary(*[np.arange(1, 22)] * 5)
    assert row["intervals"] == {"p50": (11, 11), "p90": (19, 19)}


def test_one_round_has_no_intervals():
    assert summary(np.arange(70))["intervals"] == {}


def test_the_interval_is_over_rounds_and_not_over_calls():
    """1000 equal calls a round say nothing of how rounds differ: pooled calls would give a point."""
    row = summary(*[[level] * 1000 for level in (1, 1, 1, 2, 2, 2, 2)])
    assert row["p50_ms"] == 2
    assert row["intervals"]["p50"] == (1, 2)


def test_an_interval_of_a_percentile_agrees_with_one_by_plain_resampling():
    draw = rng(3)
    rounds = [draw.normal(10 + shift, 1, size=30) for shift in draw.normal(0, 1, size=20)]
    (ours,) = statistics.percentile_intervals(one_launch(*rounds), [90], rng=rng(1), resamples=4000)
    drawn = [np.percentile(np.concatenate([rounds[n] for n in draw.integers(20, size=20)]), 90) for _ in range(4000)]
    assert ours == pytest.approx(np.quantile(drawn, [0.0159, 0.9841]), rel=0.01)  # the expanded tail of 20 rounds


def test_launches_that_differ_widen_the_interval():
    """Four speeds, six rounds of each: as rounds of their own, half of 24 are of the fastest in 0.7 % of draws only."""
    levels = [[1.0 + launch / 10] * 20 for launch in range(4) for _ in range(6)]
    (together,) = statistics.percentile_intervals(one_launch(*levels), [50], rng=rng())
    launches = [number // 6 for number in range(24)]
    (apart,) = statistics.percentile_intervals(Rounds(levels, launches), [50], rng=rng())
    assert (together, apart) == ((1.1, 1.2), (1.0, 1.3))


def test_drift_is_the_last_third_to_the_first():
    assert statistics.drift(one_launch([1, 1], [1, 3], [5, 5], [6, 6], [2, 2], [2, 2])) == 2
    assert statistics.drift(one_launch([1], [9], [4])) == 4
    assert statistics.drift(one_launch([1], [2])) is None


def test_the_median_over_rounds_with_its_interval():
    found = statistics.median_interval(one_launch([1, 1, 9], [2, 2], [3, 3, 3]), rng=rng())
    assert (found.value, found.low, found.high) == (2, 1, 3)


def test_the_mean_of_few_turns_has_students_interval():
    found = statistics.mean_interval([10, 14, 12], rng=rng())
    logs = np.log([10, 14, 12])
    low, high = np.exp(scipy.stats.t.interval(0.95, 2, loc=logs.mean(), scale=scipy.stats.sem(logs)))
    assert (found.value, found.low, found.high) == pytest.approx((12, low, high), rel=1e-3)
    found = statistics.mean_interval([10, 14] * 20, rng=rng())
    assert found.value == 12
    assert found.low == pytest.approx(12 - 1.96 * 2 / 40**0.5, abs=0.15)
    assert found.high == pytest.approx(12 + 1.96 * 2 / 40**0.5, abs=0.15)


def test_rounds_that_differ_by_chance_do_not_drift():
    draw = np.random.default_rng(1)
    limits, drifts = [], []
    for _ in range(300):
        rounds = statistics.Rounds([[value] * 3 for value in 10 * np.exp(draw.normal(0, 0.04, 12))], [0] * 12)
        limits.append(statistics.drift_by_chance(rounds))
        drifts.append(abs(statistics.drift(rounds) - 1))
    assert np.mean(np.array(drifts) > np.array(limits)) < 0.03
    steady = statistics.Rounds([[10 + 0.3 * number] * 3 for number in range(12)], [0] * 12)
    assert abs(statistics.drift(steady) - 1) > statistics.drift_by_chance(steady)
