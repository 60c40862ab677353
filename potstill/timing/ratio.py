"""Ratios of two speeds with their 95 % interval.

Nothing here draws from a global generator: every bootstrap takes its generator as an argument.

Why the interval is made as it is (simulated: 600 to 2000 A/A runs of 12 rounds, noise of 1.2 to 2.8 % per round):

- A percentile bootstrap of the median holds the truth in 93 % of runs instead of 95 %, because resamples of n values
  vary by (n - 1) / n too little and their tails are those of the normal distribution. Taking the quantiles that an
  interval by Student's t would need ("expanded percentile", Hesterberg 2015, What Teachers Should Know About the
  Bootstrap) makes it 96 %, and 96 % too where one round in ten is an outlier of up to 30 %. A trimmed mean or Hodges
  and Lehmann's estimate are 10 % narrower on clean noise, but 30 to 70 % wider with such outliers; a studentised
  bootstrap is wild below 12 rounds.
- A process keeps the speed that its place in memory gives it, for as long as it lives: onnxruntime on one and the same
  file differed by 0.5 to 1 % from process to process, at 1x16 by up to 2 % (MiniLM-L6, 2 cores). Rounds of one launch
  share that, so a bootstrap over rounds alone held the truth in 85 to 94 % of runs, and in 77 % where the processes
  differed more than the rounds. Drawing launches first and rounds within them makes that 94 to 99 % with 4 launches.
- Slow drift that the turns do not cancel (half of the noise autocorrelated by 0.5) costs 6 points, here as in every
  bootstrap of so few rounds; the A/A run shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]
Finding = Literal["faster", "slower", "no difference shown"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def interval(self) -> list[float]:
        """Return the interval as JSON holds it."""
        return [self.low, self.high]


def ratio_interval(
    baseline_rounds: Sequence[ArrayLike],
    candidate_rounds: Sequence[ArrayLike],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    launches: Sequence[int] | None = None,
) -> Estimate:
    """Return how many times as fast the candidate is: the median over rounds of baseline's / candidate's median call.

    The two medians of a round share what the machine was doing then, so their ratio is free of it. The interval is a
    bootstrap over launches and rounds, as the module says.

    Args:
        baseline_rounds: per round the latencies of its calls, in any one unit.
        candidate_rounds: the same rounds of the other model.
        rng: draws the rounds.
        resamples: how many times.
        launches: per round, which launch of the processes it belongs to; None if all ran in the same processes.

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
    drawn = draw_rounds(launches or [0] * rounds, resamples=resamples, rng=rng)
    return with_interval(float(np.median(ratios)), np.median(ratios[drawn], axis=1), units=rounds)


def draw_rounds(launches: Sequence[int], *, resamples: int, rng: np.random.Generator) -> Indices:
    """Draw rounds with replacement in two stages: launches first, then rounds within each launch that was drawn.

    Args:
        launches: per round, which launch it belongs to.
        resamples: how many times.
        rng: makes the draws.

    Returns:
        Positions of rounds, shape (resamples, rounds).
    """
    places = [np.flatnonzero(np.asarray(launches) == launch) for launch in dict.fromkeys(launches)]
    sizes = np.array([len(place) for place in places])
    padded = np.zeros((len(places), sizes.max()), dtype=np.int64)
    for row, place in zip(padded, places, strict=True):
        row[: len(place)] = place
    # A drawn launch gives as many rounds as the one whose place it takes, so every resample has as many as there are.
    drawn = np.repeat(rng.integers(len(places), size=(resamples, len(places))), sizes, axis=1)
    # Places are drawn below the size of the launch that was drawn, so its padding is never taken.
    return padded[drawn, rng.integers(sizes[drawn])]


def finding(estimate: Estimate, floor: float | None) -> Finding:
    """Say whether one is faster: the interval must be on one side of 1, and the ratio beyond the noise floor.

    Args:
        estimate: how many times as fast it is.
        floor: how far the ratio of something to itself can be from 1; None if that is not known.
    """
    # The interval knows this pair's rounds and launches, the floor how far equal processes came apart: both must agree.
    if abs(estimate.value - 1) <= (floor or 0) or estimate.low <= 1 <= estimate.high:
        return "no difference shown"
    return "faster" if estimate.low > 1 else "slower"


def with_interval(value: float, resampled: Floats, *, units: int | None = None) -> Estimate:
    """Return `value` with the interval that its resampled values span.

    Args:
        value: the estimate itself.
        resampled: the same of each resample.
        units: how many things were drawn; with few of them the interval is widened to keep its promise.
    """
    tail = (1 - CONFIDENCE) / 2 if units is None else expanded_tail(units)
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))


def expanded_tail(units: int) -> float:
    """Return the quantile of the resampled values that is the interval's lower end (Hesterberg 2015).

    Student's quantile is by Fisher's and Cornish's expansion (Abramowitz and Stegun 1964, 26.7.5); with 3 units or
    fewer, where it fails, all resamples are within the interval.
    """
    if units <= 3:
        return 0.0
    normal, freedom = NormalDist(), units - 1
    z = normal.inv_cdf((1 + CONFIDENCE) / 2)
    # An expansion and not scipy's quantile: this package needs numpy and onnxruntime alone.
    student = (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    # The variance of resampled means is (n - 1) / n of the true one: the root makes up for it.
    return normal.cdf(-student * (units / freedom) ** 0.5)
