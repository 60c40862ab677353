"""Percentiles that the samples can carry, ratios with an interval, and verdicts.

Nothing here draws from a global generator: every bootstrap takes the one it shall use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]

CONFIDENCE = 0.95
# MLPerf's early stopping rule with 99 % confidence and no margin: fewer calls than this carry no such percentile.
P50_MIN_SAMPLES = 11
P90_MIN_SAMPLES = 64
# Rounds of more calls are thinned to this many of their quantiles before they are resampled: the rank of a median
# moves by at most 1 in 500, and the cost of an interval no longer depends on how fast a model is.
_MAX_CALLS_PER_ROUND = 250
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def interval(self) -> list[float]:
        """Return the interval as JSON holds it."""
        return [self.low, self.high]


def exactly(value: float) -> Estimate:
    """Return an estimate of something that was counted, not sampled: its interval is the value itself."""
    return Estimate(value, value, value)


def summarise(latencies_ms: ArrayLike) -> dict[str, Any]:
    """Return p50 and p90 in milliseconds and the number of samples.

    A percentile that the samples cannot carry is None, and `p50_missing` or `p90_missing` says how many lack.
    """
    samples = np.asarray(latencies_ms, dtype=np.float64)
    row: dict[str, Any] = {"samples": len(samples)}
    for name, percent, needed in (("p50", 50, P50_MIN_SAMPLES), ("p90", 90, P90_MIN_SAMPLES)):
        enough = len(samples) >= needed
        row[f"{name}_ms"] = float(np.percentile(samples, percent)) if enough else None
        if not enough:
            row[f"{name}_missing"] = needed - len(samples)
    return row


def ratio_interval(
    baseline_rounds: Sequence[ArrayLike],
    candidate_rounds: Sequence[ArrayLike],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Estimate:
    """Return how many times as fast the candidate is: median of the baseline's calls / median of the candidate's.

    The interval is a paired percentile bootstrap over rounds (Efron and Tibshirani 1993, ch. 13): whole rounds are
    drawn, the same ones for both, because calls of one round share what the machine was doing then.

    Args:
        baseline_rounds: per round the latencies of its calls, in any one unit.
        candidate_rounds: the same rounds of the other model.
        rng: draws the rounds.
        resamples: how many times.

    Raises:
        ValueError: if the two have not the same number of rounds, or fewer than 2.
    """
    baseline, candidate = _as_rounds(baseline_rounds), _as_rounds(candidate_rounds)
    if len(baseline) != len(candidate) or len(baseline) < 2:
        raise ValueError(f"a paired ratio needs the same rounds twice, at least 2: {len(baseline)}, {len(candidate)}")
    value = float(np.median(np.concatenate(baseline)) / np.median(np.concatenate(candidate)))
    drawn = rng.integers(len(baseline), size=(resamples, len(baseline)))
    ratios = _medians_of_draws(baseline, drawn) / _medians_of_draws(candidate, drawn)
    return _with_interval(value, ratios)


def score_ratio(
    baseline_correct: ArrayLike, candidate_correct: ArrayLike, *, rng: np.random.Generator, resamples: int = 2000
) -> Estimate | None:
    """Return the candidate's accuracy as a share of the baseline's, with a paired bootstrap over examples.

    An example has one of four outcomes (both right, one of them, none), so drawing the four counts from a
    multinomial is the same as drawing the examples, at no cost.

    Args:
        baseline_correct: booleans of shape (examples,).
        candidate_correct: booleans of the same examples.
        rng: draws the examples.
        resamples: how many times.

    Returns:
        The ratio, or None where the baseline is right nowhere and there is nothing to keep.
    """
    baseline, candidate = np.asarray(baseline_correct, dtype=bool), np.asarray(candidate_correct, dtype=bool)
    if baseline.shape != candidate.shape or not len(baseline):
        raise ValueError(f"the same examples twice are needed: {baseline.shape}, {candidate.shape}")
    if not baseline.any():
        return None
    outcomes = np.bincount(baseline * 2 + candidate, minlength=4)
    drawn = rng.multinomial(len(baseline), outcomes / len(baseline), size=resamples)
    # A draw without a single right answer of the baseline has no ratio; it is as good as never drawn.
    drawn = drawn[drawn[:, 2] + drawn[:, 3] > 0]
    ratios = (drawn[:, 1] + drawn[:, 3]) / (drawn[:, 2] + drawn[:, 3])
    return _with_interval(float(candidate.sum() / baseline.sum()), ratios)


def verdict(estimate: Estimate, target: float) -> Verdict:
    """Say whether a claim of at least `target` holds: only where the whole interval is on one side of it."""
    if estimate.low >= target:
        return "PASS"
    return "FAIL" if estimate.high < target else "INCONCLUSIVE"


def calls_per_round(min_samples: int, rounds: int) -> int:
    """Return how many calls each round needs at least, so that all of them make `min_samples`."""
    return ceil(min_samples / rounds)


def _as_rounds(rounds: Sequence[ArrayLike]) -> list[Floats]:
    return [np.asarray(calls, dtype=np.float64) for calls in rounds]


def _medians_of_draws(rounds: list[Floats], drawn: NDArray[np.int64]) -> Floats:
    """Return per draw (a row of round numbers) the median of all calls of its rounds, shape (draws,)."""
    # All by the same factor, so that a round keeps its weight.
    longest = max(map(len, rounds))
    share = min(1.0, _MAX_CALLS_PER_ROUND / longest)
    thinned = [_thin(calls, max(1, round(len(calls) * share))) for calls in rounds]
    width = max(map(len, thinned))
    padded = np.full((len(thinned), width), np.nan)
    for number, calls in enumerate(thinned):
        padded[number, : len(calls)] = calls
    median = np.nanmedian if np.isnan(padded).any() else np.median
    # In chunks: all draws at once would take gigabytes for nothing.
    parts = [
        median(padded[drawn[start : start + _CHUNK]].reshape(len(drawn[start : start + _CHUNK]), -1), axis=1)
        for start in range(0, len(drawn), _CHUNK)
    ]
    return np.concatenate(parts)


def _thin(calls: Floats, count: int) -> Floats:
    return calls if len(calls) == count else np.quantile(calls, (np.arange(count) + 0.5) / count)


def _with_interval(value: float, resampled: Floats) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))
