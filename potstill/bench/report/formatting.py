"""How numbers and names are written for people; the JSON keeps them as they are.

A value that was not measured is a dash, and never zero. Nothing breaks between a number and its unit.
"""

import math
import re
import unicodedata
from collections.abc import Sequence

from potstill.bench.report_schema import Contestant, Latency, Load

NOTHING = "–"
DISTURBED = "disturbed"
"""Stands where a number would be believed that the machine has spoilt."""
PERCENTILES = ("p50", "p90", "p95", "p99")

_MEGA = 1e6
_SPACE = "\u00a0"
# Kinds of unit that measures use, and what of them is shown.
_SHARES, _BYTES, _TIMES = {"share", "%"}, {"bytes", "B"}, {"times", "×"}


def percent(share: float | None, *, digits: int = 1) -> str:
    """Write a share in per cent."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}{_SPACE}%"


def mb(size_bytes: float | None) -> str:
    """Write bytes in MB (10^6), to three digits."""
    return NOTHING if size_bytes is None else number(size_bytes / _MEGA)


def ms(latency_ms: float | None) -> str:
    """Write milliseconds, to three digits."""
    return number(latency_ms)


def number(value: float | None) -> str:
    """Write a measured value to three digits: more are noise."""
    if value is None:
        return NOTHING
    if value <= 0:
        return f"-{number(-value)}" if value < 0 else "0"
    # The limits are where rounding adds a digit: 99.96 is 100, not 100.0.
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def count(value: int | None) -> str:
    """Write something that was counted, whole."""
    return NOTHING if value is None else f"{value:,}"


def millions(value: int | None) -> str:
    """Write a count of parameters: `109.5 M`."""
    return NOTHING if value is None else f"{value / _MEGA:.1f}{_SPACE}M"


def score(value: float | None) -> str:
    """Write a score: one example in a thousand still shows."""
    return NOTHING if value is None else f"{value:.4f}" if abs(value) < 10 else number(value)


def seconds(milliseconds: float) -> str:
    """Write a duration in the unit that fits it."""
    return f"{number(milliseconds / 1000)}{_SPACE}s" if milliseconds >= 1000 else f"{number(milliseconds)}{_SPACE}ms"


def rate(per_second: float | None) -> str:
    """Write operations per second with the prefix that fits: `235 G`."""
    if per_second is None:
        return NOTHING
    power = min(max(int(math.log10(per_second) // 3), 0), 5) if per_second > 0 else 0
    return f"{number(per_second / 1000**power)}{_SPACE}{' kMGTP'[power].strip()}".rstrip()


def p_value(value: float) -> str:
    """Write a p-value: below a thousandth only that it is."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def bounds(interval: Sequence[float] | None, *, as_share: bool = False) -> str:
    """Write an interval from its lower to its upper end."""
    if interval is None:
        return NOTHING
    low, high = interval
    return f"{100 * low:.1f} to {percent(high)}" if as_share else f"{low:.2f} to {high:.2f}"


def with_interval(value: float | None, interval: Sequence[float] | None, *, unit: str = "") -> str:
    """Write a value, and behind it the ends of its interval in brackets."""
    if value is None or interval is None or interval[0] == interval[1]:
        return quantity(value, unit)
    return f"{quantity(value, unit)} ({_bare(interval[0], unit)} to {_bare(interval[1], unit)})"


def quantity(value: float | None, unit: str) -> str:
    """Write a value in the unit of a measure; bytes are told in MB, shares in per cent."""
    if value is None:
        return NOTHING
    if unit in _SHARES:
        return percent(value)
    if unit in _BYTES:
        return f"{mb(value)}{_SPACE}MB"
    if unit in _TIMES:
        return f"{value:.2f}×"
    return f"{_bare(value, unit)}{_SPACE}{unit}" if unit else score(value)


def _bare(value: float, unit: str) -> str:
    if unit in _SHARES:
        return f"{100 * value:.1f}"
    if unit in _BYTES:
        return mb(value)
    if unit in _TIMES:
        return f"{value:.2f}"
    return number(value) if unit else score(value)


def percentile(row: Latency | None, name: str) -> str:
    """Write a percentile in milliseconds, or how many samples it lacks: `needs 42 more`."""
    if row is None:
        return NOTHING
    value: float | None = getattr(row, f"{name}_ms")
    if value is None and name in row.missing:
        return f"needs {row.missing[name]:,} more"
    return ms(value)


def load_words(load: Load) -> str:
    """Say what one call of this load is given."""
    if load.kind == "grid":
        return f"{'1 text' if load.batch_size == 1 else f'{load.batch_size} texts'} of {load.num_tokens} tokens"
    each = "" if load.batch_size == 1 else f"{load.batch_size} at a time, "
    return f"texts of the data, {each}{'tokenised before' if load.kind == 'texts' else 'with tokenisation'}"


def clean(text: str, *, longest: int | None = None) -> str:
    """Return `text` on one line and without control characters, its middle left out where it is too long."""
    # Category C has format characters too, such as U+202E, which would reverse the rest of the line.
    kept = "".join(letter if unicodedata.category(letter)[0] != "C" else " " for letter in text)
    # A no-break space stays, and stands where "95 %" would be torn.
    kept = re.sub(r"(?<=\d) %", f"{_SPACE}%", re.sub(" +", " ", kept).strip(" "))
    if longest is None or len(kept) <= longest:
        return kept
    head = (longest - 1) // 2
    return f"{kept[:head]}…{kept[-(longest - 1 - head) :]}"


def sentence(text: str) -> str:
    """Return a sentence of the report's own as the page writes all: clean, with a capital, and `76 %` for `76%`."""
    kept = re.sub(r"(?<=\d)%", f"{_SPACE}%", clean(text))
    return f"{kept[:1].upper()}{kept[1:]}"


def name_of(row: Contestant, *, longest: int | None = None) -> str:
    """Name a contestant: `student int8`, and the engine where it is not onnxruntime on the CPU."""
    engine = "" if row.runner == "onnxruntime-cpu" else f" {row.runner}"
    return f"{clean(row.model, longest=longest)} {row.precision}{engine}"


def listed(words: Sequence[str]) -> str:
    """Write a list of words: `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
