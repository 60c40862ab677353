"""How long a bench will take, part by part, and what of it fits into a budget.

The estimate is made before anything runs, from the sizes of models and data alone, so that what is impossible is
refused at once. It is rough and meant to be too long rather than too short; while the bench runs, every part asks the
clock again (`potstill.bench.measuring.budget.Deadline`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from potstill import machine
from potstill.bench.measuring.budget import (
    COLD_STARTS,
    COMPRESSED,
    LEAST_ROUNDS,
    MIN_CALLS,
    QUALITY,
    REPORT,
    SCALING,
    SCALING_ROUNDS,
    SCALING_S,
    THROUGHPUT,
    THROUGHPUT_S,
    THROUGHPUT_TURNS,
    thread_counts,
)
from potstill.bench.measuring.throughput import runs_on_processor, scaling_load, throughput_loads
from potstill.bench.report_schema import Load
from potstill.bench.subjects import Entry
from potstill.bench.summary import Setting
from potstill.errors import UsageError

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
    """What of a bench fits into its budget.

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


def estimate(setting: Setting) -> dict[str, float]:
    """Return the seconds that each part of a bench takes as it was asked for."""
    costs = _Costs(setting)
    config = setting.config
    grid = [load for load in setting.loads if load.kind == "grid"]
    own = [load for load in setting.loads if load.kind != "grid"]
    rounds, launches = config.rounds, min(config.launches, config.rounds)
    found = {
        "starting the processes": launches * costs.start_all,
        "latency": sum(costs.load(load, launches=launches, rounds=rounds) for load in grid),
    }
    if own:
        found[OWN_TEXTS] = sum(costs.load(load, launches=launches, rounds=rounds) for load in own)
    return {part: seconds for part, seconds in (found | costs.optional()).items() if seconds} | {REPORT: costs.report}


def fit(setting: Setting, budget_s: float, *, elapsed_s: float) -> Fit:
    """Choose what fits into the seconds that are left of a budget.

    The longest load of the smallest batch comes first, with one launch and the fewest rounds that carry an interval.
    Then what still fits, in the order of `IMPORTANCE`. What is left goes into more launches, and while the bench runs
    into more rounds where the intervals are widest.

    Raises:
        UsageError: if not even the first fits; it names the least budget.
    """
    costs = _Costs(setting)
    main = main_load(setting.loads)
    shortest = {
        "block_s": min(setting.config.block_s, _SHORTEST_TURN_S),
        "warm_up_s": min(setting.config.warm_up_s, _SHORTEST_WARM_UP_S),
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
    others = [load for load in setting.loads if load != main]
    optional = costs.optional() | {
        OTHER_LOADS: sum(costs.shortest(load) for load in others if load.kind == "grid"),
        OWN_TEXTS: sum(costs.shortest(load) for load in others if load.kind != "grid"),
    }
    chosen: list[str] = []
    left_out: list[str] = []
    for part in IMPORTANCE:
        if not optional.get(part):
            continue
        if optional[part] <= left_s and not left_out:
            chosen.append(part)
            left_s -= optional[part]
        else:
            left_out.append(f"{part} (about {optional[part]:.0f} s)")
    loads = [main] + [load for load in others if (OTHER_LOADS if load.kind == "grid" else OWN_TEXTS) in chosen]
    launches = 1 + int(min(setting.config.launches - 1, _FOR_LAUNCHES * left_s / costs.start_all))
    left_s -= (launches - 1) * costs.start_all
    # What is left makes turns longer, up to what was asked for.
    roomy = left_s > sum(costs.load(load, launches=launches, rounds=LEAST_ROUNDS) for load in loads)
    config: dict[str, Any] = shortest | {"launches": launches}
    if roomy:
        config |= {"block_s": setting.config.block_s, "warm_up_s": setting.config.warm_up_s}
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


def describe(parts: Mapping[str, float]) -> str:
    """Say how long a bench takes: `about 6 min: latency 3 min, quality 50 s, ...`."""
    words = ", ".join(f"{part} {_duration(seconds)}" for part, seconds in parts.items() if seconds >= 1)
    return f"about {_duration(sum(parts.values()))}: {words}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


class _Costs:
    """Seconds, from the sizes of models and data."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._config = setting, setting.config
        self._entries = setting.entries
        self._bytes = {entry.key: float(setting.file_bytes(entry) or 0) for entry in self._entries}
        again = [setting.baseline] if self._config.again else []
        self._racing = [*self._entries, *again]
        self.processes = len(self._racing)
        # They import and load side by side, on the cores that there are.
        self.start_all = sum(map(self.start, self._racing)) / min(machine.available_cores(), 2)
        # matplotlib, the pictures, and the bootstrap of every row at every load.
        self.report = 6.0 + 0.1 * len(self._entries) * len(setting.loads)

    def start(self, entry: Entry) -> float:
        """Return the seconds until a process is loaded."""
        imports = _TORCH_IMPORT_S if entry.runner.startswith("torch") else _IMPORT_S
        return imports + self._bytes[entry.key] / _LOADED_BYTES_PER_S

    def call(self, entry: Entry, load: Load) -> float:
        """Return the seconds of one call."""
        tokens = load.num_tokens or _MEAN_TOKENS
        facts = self._setting.subjects[entry.model].facts
        per_token = facts.flops_per_token
        flops = 2.0 * facts.encoder_parameters
        if per_token:
            flops = float(np.interp(tokens, list(per_token), list(per_token.values())))
        per_s = _GPU_FLOPS_PER_S
        if runs_on_processor(entry):
            per_s = _INT8_OPS_PER_S if entry.precision.startswith("int8") else _FLOPS_PER_S
            per_s *= min(entry.threads, machine.available_cores())
        return flops * tokens * load.batch_size / per_s

    def load(self, load: Load, *, launches: int, rounds: int, shortest: bool = False) -> float:
        """Return the seconds of a load's warm-up in every launch, and of its rounds."""
        block_s = min(self._config.block_s, _SHORTEST_TURN_S) if shortest else self._config.block_s
        warm, turns = 0.0, 0.0
        for entry in self._racing:
            call = self.call(entry, load)
            warm += max(min(_WARM_UP_S, self._config.warm_up_s), 4 * call)
            turns += max(block_s, MIN_CALLS * call) + call
        peak = _PEAK_TURN_S if self._config.peak else 0.0
        return launches * (warm + peak) + rounds * turns

    def shortest(self, load: Load) -> float:
        """Return the seconds of a load in one launch, with the fewest rounds and the shortest turns."""
        return self.load(load, launches=1, rounds=LEAST_ROUNDS, shortest=True)

    def optional(self) -> dict[str, float]:
        """Return the seconds of every part that can be left out, but of the loads."""
        config = self._config
        found = {QUALITY: 0.0}
        one = Load(num_tokens=_MEAN_TOKENS)
        for trial in self._setting.trials:
            texts = len(trial.examples.texts)
            for entry in trial.entries:
                found[QUALITY] += self.start(entry) + texts * (self.call(entry, one) + 5e-4)
        found[THROUGHPUT] = THROUGHPUT_TURNS * sum(
            max(THROUGHPUT_S, 2 * callers * self.call(entry, load))
            for load in throughput_loads(config)
            for callers in dict.fromkeys(config.callers)
            for entry in self._racing
        )
        found[COLD_STARTS] = config.cold_starts * sum(self.start(entry) + 0.2 for entry in self._racing)
        found[SCALING] = 0.0
        counts = thread_counts(machine.available_cores())
        if config.thread_scaling and len(counts) > 1:
            load = scaling_load(config)
            found[SCALING] = sum(
                len(counts) * (self.start(entry) + SCALING_ROUNDS * max(SCALING_S, MIN_CALLS * self.call(entry, load)))
                for entry in self._entries
                if runs_on_processor(entry)
            )
        sizes = (min(size, _MOST_COMPRESSED) for size in self._bytes.values())
        found[COMPRESSED] = sum(sizes) / _COMPRESSED_BYTES_PER_S if config.compressed else 0.0
        return found
