"""How numbers are written for people; the JSON keeps them as they are."""

from collections.abc import Sequence

_MEGA = 1e6


def percent(share: float, *, digits: int = 1) -> str:
    """Write a share in per cent, with a space that no line breaks at."""
    return f"{100 * share:.{digits}f}\u00a0%"


def mb(size_bytes: float | None) -> str:
    """Write bytes in MB (10^6), to three digits."""
    return "–" if size_bytes is None else number(size_bytes / _MEGA)


def ms(latency_ms: float | None) -> str:
    """Write milliseconds, to three digits."""
    return "–" if latency_ms is None else number(latency_ms)


def number(value: float | None) -> str:
    """Write a measured value to three digits: more are noise."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def bounds(interval: Sequence[float] | None, *, as_share: bool = False) -> str:
    """Write an interval from its lower to its upper end."""
    if interval is None:
        return "–"
    low, high = interval
    return f"{100 * low:.1f} to {percent(high)}" if as_share else f"{low:.2f} to {high:.2f}"
