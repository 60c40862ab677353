"""Percentiles, medians, means, differences and ratios with their 95 % intervals.

Nothing here draws from a global generator: every bootstrap takes its generator as an argument.

`difference` and `ratio` combine two values that have intervals of their own by MOVER (Donner and Zou 2012, Statistical
Methods in Medical Research 21(4), equation 4): how far each interval reaches from its value is added in squares, so
that lopsided intervals stay lopsided. The two are taken as independent; where they were measured side by side, or on
the same examples, their paired interval would be narrower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from potstill.bench.report_schema import Interval
from potstill.timing.ratio import Estimate, Floats, draw_rounds, expanded_tail, ratio_interval

# MLPerf's early stopping rule with 99 % confidence and no margin: fewer calls than this carry no such percentile
# (mlcommons/inference, "Early Stopping", c = 0.99, d = 0).
MIN_SAMPLES: Mapping[int, int] = {50: 11, 90: 64, 95: 130, 99: 662}
# A curve of quantiles, from the smallest sample to the largest in steps of 2 %.
_QUANTILES = np.linspace(0, 1, 51)
# Student's quantile of 97.5 % for the mean of so many values (Abramowitz and Stegun 1964, table 26.10).
_STUDENT: Mapping[int, float] = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
# Resamples at a time: 200 of them over 5000 calls are 8 MB.
_CHUNK = 200


@dataclass(frozen=True, slots=True)
class Rounds:
    """The calls of one row at one load.

    Attributes:
        calls_ms: per round the latencies in milliseconds.
        launches: per round, which launch of the process it belongs to.
    """

    calls_ms: Sequence[ArrayLike]
    launches: Sequence[int]


def summarise(rounds: Rounds, *, rng: np.random.Generator, resamples: int = 2000) -> dict[str, Any]:
    """Return the fields of `report_schema.Latency` that follow from the calls alone; times are in milliseconds.

    Args:
        rounds: at least one.
        rng: draws the rounds of the intervals; one round alone has none.
        resamples: how many times.
    """
    samples = np.concatenate([np.asarray(calls, dtype=np.float64) for calls in rounds.calls_ms])
    carried = [percent for percent, needed in MIN_SAMPLES.items() if len(samples) >= needed]
    row: dict[str, Any] = {"samples": len(samples)}
    row |= {f"p{percent}_ms": float(np.percentile(samples, percent)) for percent in carried}
    row["missing"] = {
        f"p{percent}": needed - len(samples) for percent, needed in MIN_SAMPLES.items() if percent not in carried
    }
    row["quantiles_ms"] = np.quantile(samples, _QUANTILES).tolist()
    row["intervals"], row["drift"] = {}, drift(rounds)
    if len(rounds.calls_ms) > 1 and carried:
        found = percentile_intervals(rounds, carried, rng=rng, resamples=resamples)
        row["intervals"] = {f"p{percent}": interval for percent, interval in zip(carried, found, strict=True)}
    return row


def percentile_intervals(
    rounds: Rounds, percents: Sequence[int], *, rng: np.random.Generator, resamples: int = 2000
) -> list[Interval]:
    """Return the interval of each percentile of all calls, by a bootstrap over launches and rounds.

    Calls of one round are alike, so whole rounds are drawn (a cluster bootstrap: Davison and Hinkley 1997, 3.8), not
    calls. A drawn percentile is the smallest call that so large a share does not exceed.

    Args:
        rounds: at least 2.
        percents: which, 0 to 100.
        rng: draws the rounds.
        resamples: how many times.
    """
    sizes = [np.size(calls) for calls in rounds.calls_ms]
    samples = np.concatenate([np.asarray(calls, dtype=np.float64) for calls in rounds.calls_ms])
    # Sorted once for all resamples, which only give the same calls other weights.
    order = np.argsort(samples, kind="stable")
    ordered, whose = samples[order], np.repeat(np.arange(len(sizes)), sizes)[order]
    drawn = draw_rounds(rounds.launches, resamples=resamples, rng=rng)
    shares = np.asarray(percents, dtype=np.float64) / 100
    chunks = [drawn[start : start + _CHUNK] for start in range(0, resamples, _CHUNK)]
    found = np.concatenate([_draw_percentiles(ordered, whose, chunk, shares) for chunk in chunks])
    tail = expanded_tail(len(sizes))
    return [(float(low), float(high)) for low, high in np.quantile(found, (tail, 1 - tail), axis=0).T]


def _draw_percentiles(ordered: Floats, whose: Any, drawn: Any, shares: Floats) -> Floats:
    """Return percentiles of resamples, shape (resamples, shares); `whose` is the round of each ordered call."""
    # How often each round was drawn is the weight of each of its calls.
    times = np.stack([np.bincount(row, minlength=drawn.shape[1]) for row in drawn])
    weights = times[:, whose].cumsum(axis=1)
    wanted = np.ceil(weights[:, -1:] * shares)
    return np.stack([ordered[np.searchsorted(line, levels)] for line, levels in zip(weights, wanted, strict=True)])


def drift(rounds: Rounds) -> float | None:
    """Return the median call of the last third of rounds / that of the first third; None below 3 rounds."""
    third = len(rounds.calls_ms) // 3
    if not third:
        return None
    first, last = (np.concatenate(part) for part in (rounds.calls_ms[:third], rounds.calls_ms[-third:]))
    return float(np.median(last) / np.median(first))


def drift_by_chance(rounds: Rounds) -> float:
    """Return how far from 1 `drift` can be where nothing drifts but rounds differ: 3 standard errors of its logarithm.

    The rounds' own spread is taken from the differences between neighbours, which a slow drift hardly touches (von
    Neumann 1941, Annals of Mathematical Statistics 12(4)); the median of n has a standard error of 1.25 / sqrt(n).
    """
    third = len(rounds.calls_ms) // 3
    if not third:
        return 0.0
    logs = np.log([np.median(np.asarray(calls)) for calls in rounds.calls_ms])
    # / 2, because a difference has the variance of both its rounds.
    spread = float(np.sqrt(np.mean(np.diff(logs) ** 2) / 2))
    # 1.25 is sqrt(pi / 2) of a normal median; 2 / third, because two medians of a third each are compared.
    return float(np.expm1(3 * 1.25 * spread * np.sqrt(2 / third)))


def median_interval(rounds: Rounds, *, rng: np.random.Generator, resamples: int = 2000) -> Estimate:
    """Return the median over rounds of each round's median call, by the same bootstrap as a ratio's.

    Raises:
        ValueError: if there are fewer than 2 rounds.
    """
    # The ratio to something that always takes 1 ms is the time itself.
    ones = [[1.0]] * len(rounds.calls_ms)
    return ratio_interval(rounds.calls_ms, ones, rng=rng, resamples=resamples, launches=rounds.launches)


def mean_interval(values: Sequence[float], *, rng: np.random.Generator, resamples: int = 2000) -> Estimate:
    """Return the mean of some turns with a bootstrap over them; of fewer than 4 the interval is Student's."""
    found = np.asarray(values, dtype=np.float64)
    # Of 3 values there are only 10 different resamples.
    if len(found) <= 3:
        return Estimate(float(found.mean()), *mean_log_interval(values))
    drawn = found[rng.integers(len(found), size=(resamples, len(found)))].mean(axis=1)
    tail = expanded_tail(len(found))
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Estimate(float(found.mean()), float(low), float(high))


def mean_log_interval(values: Sequence[float]) -> Interval:
    """Return Student's 95 % interval of a few values, made on their logarithms so that it stays above 0.

    With two of them it is wide (12.7 standard errors), which is how little two can tell; one alone is its own.
    """
    logs = np.log(np.asarray(values, dtype=np.float64))
    if len(logs) < 2:
        return float(np.exp(logs[0])), float(np.exp(logs[0]))
    half = _STUDENT[len(logs)] * float(logs.std(ddof=1)) / len(logs) ** 0.5
    return float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


Measured: TypeAlias = tuple[float, Interval]
"""A value and its 95 % interval."""


def difference(first: Measured, second: Measured, *, widened: float = 1.0) -> Measured:
    """Return `first` - `second`; `widened` stretches the interval, such as for several comparisons at once."""
    (a, (a_low, a_high)), (b, (b_low, b_high)) = first, second
    # a - b is low where a is low or b is high, and high the other way round.
    below = widened * hypot(max(0.0, a - a_low), max(0.0, b_high - b))
    above = widened * hypot(max(0.0, a_high - a), max(0.0, b - b_low))
    return a - b, (a - b - below, a - b + above)


def ratio(first: Measured, second: Measured, *, widened: float = 1.0) -> Measured:
    """Return `first` / `second`, its interval found on the logarithmic scale.

    Raises:
        ValueError: if a value, or the end of an interval, is not above 0.
    """
    _, (low, high) = difference(_logarithm(first), _logarithm(second), widened=widened)
    return first[0] / second[0], (exp(low), exp(high))


def with_floors(interval: Interval, *floors: float | None) -> Interval:
    """Widen the interval of a ratio by the noise floors of the runs behind it; None is a floor that is not known."""
    low, high = interval
    for floor in floors:
        low, high = low / (1 + (floor or 0.0)), high * (1 + (floor or 0.0))
    return low, high


def can_be_ratio(*measured: Measured) -> bool:
    """Tell whether values and intervals are all above 0."""
    return all(min(value, *interval) > 0 for value, interval in measured)


def _logarithm(measured: Measured) -> Measured:
    if not can_be_ratio(measured):
        raise ValueError(f"a ratio needs values and intervals above 0, not {measured}")
    value, (low, high) = measured
    return log(value), (log(low), log(high))
