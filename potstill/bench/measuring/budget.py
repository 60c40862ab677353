"""Where the time of a run goes: rounds over launches, a budget over loads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

# The parts of a bench in the order in which they run.
LATENCY, THROUGHPUT, QUALITY, COLD_STARTS = "latency", "throughput", "quality", "cold starts"
SCALING, COMPRESSED, REPORT = "thread scaling", "compressed sizes", "the report"
_PARTS = (LATENCY, THROUGHPUT, QUALITY, COLD_STARTS, SCALING, COMPRESSED, REPORT)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a bench with a budget must be done.

    Attributes:
        end: of the budget, by `clock`.
        clock: seconds.
        reserved_s: part -> seconds that the parts before it must leave for it.
        starts_s: how long starting all processes was expected to take; 0 where nobody knows.
    """

    end: float
    clock: Callable[[], float]
    reserved_s: Mapping[str, float] = field(default_factory=dict)
    starts_s: float = 0.0

    def on_a_slow_machine(self, started_s: float) -> "Deadline":
        """Return one that keeps more for what is to come, where starting all processes took longer than expected.

        Three times as much at most: a machine that is slower still shall measure something at all.
        """
        slow = min(3.0, max(1.0, started_s / self.starts_s)) if self.starts_s else 1.0
        return replace(self, reserved_s={part: slow * seconds for part, seconds in self.reserved_s.items()})

    def left_s(self, part: str) -> float:
        """Return the seconds that a part has from now on, without what is kept for those after it."""
        later = _PARTS[_PARTS.index(part) + 1 :]
        return self.end - self.clock() - sum(self.reserved_s.get(name, 0.0) for name in later)


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
