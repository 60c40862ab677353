"""Percentiles that the samples can carry, and a score as a share of another.

Nothing here draws from a global generator: every bootstrap takes the one it shall use.
"""

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from potstill.timing.ratio import Estimate, with_interval

# MLPerf's early stopping rule with 99 % confidence and no margin: fewer calls than this carry no such percentile.
P50_MIN_SAMPLES = 11
P90_MIN_SAMPLES = 64


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
    return with_interval(float(candidate.sum() / baseline.sum()), ratios)


def calls_per_round(min_samples: int, rounds: int) -> int:
    """Return how many calls each round needs at least, so that all of them make `min_samples`."""
    return ceil(min_samples / rounds)
