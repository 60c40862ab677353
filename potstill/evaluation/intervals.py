"""Intervals and tests of shares and scores: Wilson's interval, McNemar's test, and the paired bootstrap over texts.

All intervals are of 95 %. A `Statistic` scores many draws in one call; a draw is given as counts per text.
"""

from collections.abc import Callable, Mapping
from math import comb
from statistics import NormalDist
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from potstill.evaluation.results import Interval, Verdict

Key = TypeVar("Key")
Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""Takes how often each text counts in each draw, shape (draws, texts); returns the draws' values, shape (draws,), or
one for each label, shape (draws, labels)."""

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
RESAMPLES = 2000
# Counts (draws x texts, float64) that are held at once: 16 MiB.
_COUNTS_AT_ONCE = 2**21


def together(tests: int) -> float:
    """Return the normal quantile of intervals that all hold at once in 95 of 100 cases (Bonferroni); `Z` for one."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, tests))


def wilson(hits: int, total: int, *, z: float = Z) -> Interval:
    """Return the 95 % interval of a share of which `hits` of `total` were seen (Wilson 1927).

    Unlike the textbook's normal interval it says something where nothing, or everything, was hit. `z` is the normal
    quantile of another confidence, see `together`.
    """
    share, spread = hits / total, z**2 / total
    middle, half = share + spread / 2, z * np.sqrt(share * (1 - share) / total + spread / total / 4)
    # Rounding may pass 0 and 1 by 1e-17, which would make a share of nothing negative.
    return max(0.0, float((middle - half) / (1 + spread))), min(1.0, float((middle + half) / (1 + spread)))


def wilson_needs(share: float, limit: float) -> float:
    """Return how many texts put the upper end of Wilson's interval of `share` at `limit`, a greater share."""
    # Wilson's bounds are where |share - p| = Z √(p (1 - p) / n); solved for n at p = limit.
    texts: float = Z**2 * limit * (1 - limit) / (limit - share) ** 2
    return texts


def mcnemar(lost: int, gained: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: that a change costs as many answers as it brings.

    Args:
        lost: how many were right before and are wrong after.
        gained: how many the other way round.
    """
    changed = lost + gained
    # If the change is harmless, each changed answer is lost or gained with probability 1/2. Integers: no rounding, no
    # scipy.
    tail = sum(comb(changed, fewer) for fewer in range(min(lost, gained) + 1))
    return float(min(1.0, 2 * tail / 2**changed))


def bootstrap(statistic: Statistic, texts: int, *, rng: np.random.Generator, resamples: int = RESAMPLES) -> Floats:
    """Return the statistic of each of `resamples` draws of as many texts with replacement, shape (resamples,)."""
    return bootstrap_together({"": statistic}, texts, rng=rng, resamples=resamples)[""]


def bootstrap_together(
    statistics: Mapping[Key, Statistic], texts: int, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> dict[Key, Floats]:
    """Return every statistic of the same draws, each of shape (resamples,), so that comparing two of them is paired."""
    found: dict[Key, list[Floats]] = {name: [] for name in statistics}
    at_once = max(1, _COUNTS_AT_ONCE // texts)
    for start in range(0, resamples, at_once):
        # Fewer draws at a time for many texts; the generator's sequence, and so the result, stays that of one large
        # call.
        draws = min(at_once, resamples - start)
        # One bincount counts the texts of all these draws: each draw has numbers of its own.
        drawn = rng.integers(texts, size=(draws, texts)) + texts * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * texts).reshape(draws, texts).astype(np.float64)
        for name, statistic in statistics.items():
            found[name].append(statistic(counts))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def percentiles(resampled: Floats) -> Interval:
    """Return the 95 % percentile interval of resampled values (Efron and Tibshirani 1993, ch. 13)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def sign_p_value(resampled: Floats) -> float:
    """Return the two-sided p-value of a difference being 0, by how many of its resampled values are beyond it.

    It is the level at which the percentile interval just reaches 0 (Efron and Tibshirani 1993, section 15.4), and never
    smaller than so many resamples can tell (Davison and Hinkley 1997, section 4.2).
    """
    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(resampled) + 1))


def widen(value: float, interval: Interval, room: float) -> Interval:
    """Return the interval, its ends moved out to at least `room` (in the value's unit) from the value."""
    return min(interval[0], value - room), max(interval[1], value + room)


def decide_by_interval(interval: Interval, target: float, *, at_least: bool) -> Verdict:
    """Return what an interval says of a target: FAIL if all of it misses the target, PASS if all of it meets it.

    Args:
        interval: its lower and upper end.
        target: the limit.
        at_least: whether the value must be at least the target; otherwise it must be at most.
    """
    low, high = interval if at_least else (-interval[1], -interval[0])
    limit = target if at_least else -target
    return "FAIL" if high < limit else "PASS" if low >= limit else "INCONCLUSIVE"
