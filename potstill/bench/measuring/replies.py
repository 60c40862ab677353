"""What workers answer, as plain numbers.

A reply that lacks something, or holds what cannot be, raises `KeyError`, `TypeError` or `ValueError`: `Team.ask` makes
a failure of that.
"""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

Reply = Mapping[str, Any]


def read_block(reply: Reply) -> dict[str, Any]:
    """Return `latencies_ms`, and the CPU and wall-clock seconds of the block."""
    return {
        "latencies_ms": read_times(reply["latencies_ms"]),
        "cpu_s": _amount(reply["cpu_s"]),
        "wall_s": _amount(reply["wall_s"]),
    }


def read_warm(reply: Reply) -> dict[str, Any]:
    """Return what the warm-up found."""
    return {
        "calls": int(reply["calls"]),
        "stationary": bool(reply["stationary"]),
        "mean_tokens": _amount(reply["mean_tokens"]),
        "call_ms": _amount(reply["call_ms"]),
    }


def read_concurrent(reply: Reply) -> dict[str, Any]:
    """Return how many texts several callers had answered, in which time, and each call's latency."""
    texts, seconds = int(reply["texts"]), _amount(reply["seconds"])
    if texts < 1 or seconds == 0:
        raise ValueError("some texts in some time were expected")
    return {"texts": texts, "seconds": seconds, "latencies_ms": read_times(reply["latencies_ms"])}


def read_rates(reply: Reply) -> dict[str, float]:
    """Return the bare product's operations per second, by number type."""
    return {str(kind): _amount(value) for kind, value in reply["rates"].items()}


def read_times(values: Iterable[Any]) -> list[float]:
    """Return latencies in milliseconds, rounded to a tenth of a microsecond, which keeps the journal small."""
    found = [round(float(value), 4) for value in values]
    if not found or not all(isfinite(value) and value > 0 for value in found):
        raise ValueError("latencies must be some numbers above 0")
    return found


def _amount(value: Any) -> float:
    found = float(value)
    if not isfinite(found) or found < 0:
        raise ValueError(f"{found} is no amount")
    return found
