"""How long a bench takes, part by part, and which parts fit into `--budget`.

The estimate is made before anything runs, from the sizes of models and data alone, so that an impossible budget is
refused at once. It is rough, and rather too long than too short; while the bench runs, every part asks the `Deadline`
whether there is still time for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import numpy as np

from potstill import machine
from potstill.bench.config import ResolvedBench
from potstill.bench.models import Configuration
from potstill.bench.report_schema import Load
from potstill.errors import UsageError

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
    """The time by which a bench with a budget must be done, and what each part leaves for the later ones.

    Attributes:
        end: when the budget is over, by `clock`.
        clock: returns seconds.
        reserved_s: part -> seconds that the parts before it must leave for it.
        starts_s: how long starting all processes was expected to take; 0 where that is not known.
    """

    end: float
    clock: Callable[[], float]
    reserved_s: Mapping[str, float] = field(default_factory=dict)
    starts_s: float = 0.0

    def on_a_slow_machine(self, started_s: float) -> "Deadline":
        """Return a deadline with a larger reserve for later parts if starting all processes took longer than expected.

        The reserve grows threefold at most, so that a machine that is slower still measures something at all.
        """
        slow = min(3.0, max(1.0, started_s / self.starts_s)) if self.starts_s else 1.0
        return replace(self, reserved_s={part: slow * seconds for part, seconds in self.reserved_s.items()})

    def left_s(self, part: str) -> float:
        """Return the seconds that a part has from now on, without what is kept for those after it."""
        later = _PARTS[_PARTS.index(part) + 1 :]
        return self.end - self.clock() - sum(self.reserved_s.get(name, 0.0) for name in later)


def split_rounds(rounds: int, launches: int) -> list[int]:
    """Divide rounds among launches as evenly as they go, the first ones getting more: 5 in 4 are 2, 1, 1, 1."""
    # A launch without a round would measure nothing.
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
    """Return the powers of 2 up to `cores`, and `cores` itself."""
    return sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})


# Of a thread, in fp32 and int8: what a core of ten years ago reaches in a whole model.
_FLOPS_PER_S, _INT8_OPS_PER_S, _GPU_FLOPS_PER_S = 30e9, 45e9, 2e12
# Of a process: interpreter and imports; then bytes a second to hash its files and make a session of them.
_IMPORT_S, _TORCH_IMPORT_S, _LOADED_BYTES_PER_S = 1.0, 4.0, 150e6
_COMPRESSED_BYTES_PER_S, _MOST_COMPRESSED = 10e6, 16 * 2**20
_WARM_UP_S, _PEAK_TURN_S = 0.4, 0.4
_MEAN_TOKENS = 32
# With a budget: how short a turn and a warm-up may become.
_SHORTEST_TURN_S, _SHORTEST_WARM_UP_S = 0.05, 0.5
# Of the time that is left once the least has been measured, so much may go into starting all processes again.
_FOR_LAUNCHES = 0.4

OTHER_LOADS, OWN_TEXTS = "the other loads", "own texts"
IMPORTANCE = (QUALITY, OTHER_LOADS, OWN_TEXTS, THROUGHPUT, COLD_STARTS, COMPRESSED, SCALING)
"""What a budget has room for, the most important first: the first that does not fit is left out with all behind it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The part of a bench that fits into its budget, as `fit` chose it.

    Attributes:
        config: the settings that are changed.
        loads: what latency is measured at, the most important one first.
        with_data: whether quality is scored.
        reserved_s: part -> seconds that are kept for it once the turns are over.
        starts_s: how long it takes to start all processes.
        left_out: what there is no time for.
    """

    config: dict[str, Any]
    loads: list[str]
    with_data: bool
    reserved_s: dict[str, float]
    starts_s: float
    left_out: list[str] = field(default_factory=list)


def main_load(loads: tuple[Load, ...]) -> Load:
    """Return the load that claims are about unless they say otherwise: the smallest batch of the longest texts."""
    return min(loads, key=lambda load: (load.kind != "grid", load.batch_size, -(load.num_tokens or 0)))


def estimate(bench: ResolvedBench) -> dict[str, float]:
    """Return the seconds that each part of a bench takes as it was asked for."""
    costs = _Costs(bench)
    config = bench.config
    grid = [load for load in bench.loads if load.kind == "grid"]
    own = [load for load in bench.loads if load.kind != "grid"]
    rounds, launches = config.rounds, min(config.launches, config.rounds)
    found = {
        "starting the processes": launches * costs.start_all,
        "latency": sum(costs.load(load, launches=launches, rounds=rounds) for load in grid),
    }
    if own:
        found[OWN_TEXTS] = sum(costs.load(load, launches=launches, rounds=rounds) for load in own)
    return {part: seconds for part, seconds in (found | costs.optional()).items() if seconds} | {REPORT: costs.report}


def fit(bench: ResolvedBench, budget_s: float, *, elapsed_s: float) -> Fit:
    """Choose what fits into the seconds that are left of a budget.

    The longest load of the smallest batch comes first, with one launch and the fewest rounds that carry an interval.
    Then what still fits, in the order of `IMPORTANCE`. What is left goes into more launches, and while the bench runs
    into more rounds where the intervals are widest.

    Raises:
        UsageError: if not even the first fits; it names the least budget.
    """
    costs = _Costs(bench)
    main = main_load(bench.loads)
    shortest = {
        "block_s": min(bench.config.block_s, _SHORTEST_TURN_S),
        "warm_up_s": min(bench.config.warm_up_s, _SHORTEST_WARM_UP_S),
        "launches": 1,
        "extra_launches": 0,
    }
    least = costs.report + costs.start_all + costs.load(main, launches=1, rounds=LEAST_ROUNDS, shortest=True)
    if elapsed_s + least > budget_s:
        needed = int(np.ceil(elapsed_s + least))
        raise UsageError(
            f"--budget {budget_s:g}s is too short: to start {costs.processes} processes, run {LEAST_ROUNDS} rounds at "
            f"{main} and write the report takes about {least:.0f} s; pass --budget {needed}s or more, or bench fewer "
            "models or precisions"
        )
    left_s = budget_s - elapsed_s - least
    others = [load for load in bench.loads if load != main]
    optional = costs.optional() | {
        OTHER_LOADS: sum(costs.shortest(load) for load in others if load.kind == "grid"),
        OWN_TEXTS: sum(costs.shortest(load) for load in others if load.kind != "grid"),
    }
    chosen: list[str] = []
    left_out: list[str] = []
    for part in IMPORTANCE:
        if not optional.get(part):
            continue
        # What is less important never takes the place of what did not fit.
        if optional[part] <= left_s and not left_out:
            chosen.append(part)
            left_s -= optional[part]
        else:
            left_out.append(f"{part} (about {optional[part]:.0f} s)")
    loads = [main] + [load for load in others if (OTHER_LOADS if load.kind == "grid" else OWN_TEXTS) in chosen]
    # Before longer turns: what a process keeps for life only shows between launches (docs/log.md).
    launches = 1 + int(min(bench.config.launches - 1, _FOR_LAUNCHES * left_s / costs.start_all))
    left_s -= (launches - 1) * costs.start_all
    # What is left makes turns longer, up to what was asked for.
    roomy = left_s > sum(costs.load(load, launches=launches, rounds=LEAST_ROUNDS) for load in loads)
    config: dict[str, Any] = shortest | {"launches": launches}
    if roomy:
        config |= {"block_s": bench.config.block_s, "warm_up_s": bench.config.warm_up_s}
    if THROUGHPUT not in chosen:
        config["throughput_batch_sizes"] = []
    if COLD_STARTS not in chosen:
        config["cold_starts"] = 0
    if COMPRESSED not in chosen:
        config["compressed"] = False
    if SCALING not in chosen:
        config["thread_scaling"] = False
    reserved = {part: optional[part] for part in chosen if part not in (OTHER_LOADS, OWN_TEXTS)}
    return Fit(
        config, list(map(str, loads)), QUALITY in chosen, reserved | {REPORT: costs.report}, costs.start_all, left_out
    )


def reduce(bench: ResolvedBench, fitting: Fit) -> ResolvedBench:
    """Return the bench cut down to what `fit` chose."""
    loads = {str(load): load for load in bench.loads}
    return replace(
        bench,
        config=bench.config.model_copy(update=fitting.config),
        loads=tuple(loads[name] for name in fitting.loads),
        datasets=bench.datasets if fitting.with_data else (),
    )


def describe_costs(parts: Mapping[str, float]) -> str:
    """Say how long a bench takes: `about 6 min: latency 3 min, quality 50 s, ...`."""
    words = ", ".join(f"{part} {_duration(seconds)}" for part, seconds in parts.items() if seconds >= 1)
    return f"about {_duration(sum(parts.values()))}: {words}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


class _Costs:
    """Estimates in seconds, from the sizes of models and data."""

    def __init__(self, bench: ResolvedBench) -> None:
        self._bench, self._config = bench, bench.config
        self._configurations = bench.configurations
        self._bytes = {each.key: float(bench.file_bytes(each) or 0) for each in self._configurations}
        control = [bench.baseline] if self._config.again else []
        self._racing = [*self._configurations, *control]
        self.processes = len(self._racing)
        # They import and load side by side, on the cores that there are.
        self.start_all = sum(map(self.start, self._racing)) / min(machine.available_cores(), 2)
        # matplotlib, the pictures, and the bootstrap of every row at every load.
        self.report = 6.0 + 0.1 * len(self._configurations) * len(bench.loads)

    def start(self, each: Configuration) -> float:
        """Return the seconds until a process is loaded."""
        imports = _TORCH_IMPORT_S if each.runner.startswith("torch") else _IMPORT_S
        return imports + self._bytes[each.key] / _LOADED_BYTES_PER_S

    def call(self, each: Configuration, load: Load) -> float:
        """Return the seconds of one call."""
        tokens = load.num_tokens or _MEAN_TOKENS
        facts = self._bench.models[each.model].facts
        per_token = facts.flops_per_token
        # Two operations per weight, where the family's products are not counted.
        flops = 2.0 * facts.encoder_parameters
        if per_token:
            flops = float(np.interp(tokens, list(per_token), list(per_token.values())))
        per_s = _GPU_FLOPS_PER_S
        if each.on_processor:
            per_s = _INT8_OPS_PER_S if each.precision.startswith("int8") else _FLOPS_PER_S
            per_s *= min(each.threads, machine.available_cores())
        return flops * tokens * load.batch_size / per_s

    def load(self, load: Load, *, launches: int, rounds: int, shortest: bool = False) -> float:
        """Return the seconds of a load's warm-up in every launch, and of its rounds."""
        block_s = min(self._config.block_s, _SHORTEST_TURN_S) if shortest else self._config.block_s
        warm, turns = 0.0, 0.0
        for each in self._racing:
            call = self.call(each, load)
            warm += max(min(_WARM_UP_S, self._config.warm_up_s), 4 * call)
            # + call for the first one of `run_block`, which is not timed.
            turns += max(block_s, MIN_CALLS * call) + call
        peak = _PEAK_TURN_S if self._config.peak else 0.0
        return launches * (warm + peak) + rounds * turns

    def shortest(self, load: Load) -> float:
        """Return the seconds of a load in one launch, with the fewest rounds and the shortest turns."""
        return self.load(load, launches=1, rounds=LEAST_ROUNDS, shortest=True)

    def optional(self) -> dict[str, float]:
        """Return the seconds of every part that can be left out, except the loads."""
        config = self._config
        found = {QUALITY: 0.0}
        one = Load(num_tokens=_MEAN_TOKENS)
        for dataset in self._bench.datasets:
            texts = len(dataset.examples.texts)
            for each in dataset.configurations:
                # Half a millisecond per text for what is not the model.
                found[QUALITY] += self.start(each) + texts * (self.call(each, one) + 5e-4)
        found[THROUGHPUT] = THROUGHPUT_TURNS * sum(
            max(THROUGHPUT_S, 2 * callers * self.call(each, load))
            for load in self._bench.throughput_loads
            for callers in self._bench.callers
            for each in self._racing
        )
        found[COLD_STARTS] = config.cold_starts * sum(self.start(each) + 0.2 for each in self._racing)
        found[SCALING] = 0.0
        counts = thread_counts(machine.available_cores())
        if config.thread_scaling and len(counts) > 1:
            load = self._bench.scaling_load
            found[SCALING] = sum(
                len(counts) * (self.start(each) + SCALING_ROUNDS * max(SCALING_S, MIN_CALLS * self.call(each, load)))
                for each in self._configurations
                if each.on_processor
            )
        # Of a larger file 16 pieces of 1 MiB are packed (`size.compressed_bytes`).
        sizes = (min(size, _MOST_COMPRESSED) for size in self._bytes.values())
        found[COMPRESSED] = sum(sizes) / _COMPRESSED_BYTES_PER_S if config.compressed else 0.0
        return found
