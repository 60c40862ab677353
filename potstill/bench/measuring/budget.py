"""Where the time of a run goes: rounds over launches, a budget over loads."""

from collections.abc import Mapping, Sequence
from math import inf

# With a budget, every load has at least so many rounds: fewer carry no interval of 95 %.
LEAST_ROUNDS = 5
# Calls per turn at least: of 3 one may be an outlier.
MIN_CALLS = 3
# Turns of each row at a load and a number of callers, and how long one lasts at least.
THROUGHPUT_TURNS, THROUGHPUT_S = 6, 0.3
# Where the turns of all rows so far took longer than this, 3 of each must do.
THROUGHPUT_SLOW_S, THROUGHPUT_SLOW_TURNS = 6.0, 3
# Rounds of each number of threads, and how long a turn lasts at least.
SCALING_ROUNDS, SCALING_S = 5, 0.2


def split_rounds(rounds: int, launches: int) -> list[int]:
    """Divide rounds among launches as evenly as they go, the first ones getting more: 5 in 4 are 2, 1, 1, 1."""
    launches = min(rounds, launches)
    return [rounds // launches + (number < rounds % launches) for number in range(launches)]


def next_load(widths: Mapping[str, float], costs_s: Mapping[str, float], *, left_s: float) -> str | None:
    """Return which load should have another round: the one with the widest interval of those that fit.

    Args:
        widths: load -> half the width of its widest interval / the value; infinity where there is none yet.
        costs_s: load -> seconds that its last round took, which is what the next one will take.
        left_s: seconds that are left of the budget.

    Returns:
        None where no round fits any more, or nothing is uncertain.
    """
    fitting = [load for load, width in widths.items() if width > 0 and costs_s.get(load, inf) <= left_s]
    return max(fitting, key=lambda load: widths[load], default=None)


def thread_counts(cores: int) -> Sequence[int]:
    """Return 1, 2, 4 and so on, and all cores."""
    return sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})
