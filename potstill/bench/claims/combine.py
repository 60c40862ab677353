"""The difference and the ratio of two measured values, each with an interval of its own.

The method is MOVER (Donner and Zou 2012, Statistical Methods in Medical Research 21(4), equation 4): how far each
interval reaches from its value is added in squares, so that lopsided intervals stay lopsided. It takes the two as
independent. Where they were measured side by side, or on the same examples, their paired interval would be narrower.
"""

from math import exp, hypot, log
from typing import TypeAlias

from potstill.bench.report_schema import Interval

Measured: TypeAlias = tuple[float, Interval]
"""A value and its 95 % interval."""


def difference(first: Measured, second: Measured, *, widened: float = 1.0) -> Measured:
    """Return `first` - `second`; `widened` stretches the interval, such as for several comparisons at once."""
    (a, (a_low, a_high)), (b, (b_low, b_high)) = first, second
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
    """Widen the interval of a ratio by the noise floors of the runs behind it; None is a floor that nobody knows."""
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
