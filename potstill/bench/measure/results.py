"""Compute the measured parts of a report from what a journal holds, and from nothing else.

So a report of an interrupted run is made of what is there, and the samples beside an old report can be read again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Literal
from zlib import crc32

import numpy as np

from potstill import machine
from potstill.bench import statistics
from potstill.bench.budget import SCALING_ROUNDS, thread_counts
from potstill.bench.config import ResolvedBench
from potstill.bench.measure.cold_start import summarise_starts
from potstill.bench.measure.energy import summarise_energy
from potstill.bench.measure.run import A_A_SUFFIX, PEAK, load_seed
from potstill.bench.measure.samples import (
    Round,
    Samples,
    calls_of,
    has_failed_at,
    kept_rounds,
    undisturbed_rounds,
    wanted_rounds,
)
from potstill.bench.measure.throughput import describe_callers, has_enough_turns, split_threads
from potstill.bench.models import ComparisonKind, Configuration, list_comparisons
from potstill.bench.report_schema import (
    ColdStart,
    Energy,
    Failure,
    Latency,
    Load,
    Memory,
    Noise,
    Ratio,
    Scaling,
    Throughput,
)
from potstill.timing import disturbance
from potstill.timing.ratio import Estimate, finding, ratio_interval

# Offsets of the seeded generators, so that adding draws to one never moves another.
_LATENCY, _RATIO, _THROUGHPUT, _SCALING, _ENERGY = 2, 3, 4, 5, 6
_LEAST_PAIRS = 2
_MEMORY_PARTS = tuple(name for name in Memory.model_fields if name.endswith("_bytes") and name != "limit_bytes")
_COMPARED_MEMORY = ("loaded_rss_bytes", "peak_bytes", "after_uss_bytes")
_STAGES = {"throughput": "throughput", "scaling": "thread scaling", "cold start": "the cold start"}
# Medians of thirds of 12 rounds that differ by 3 % each are 3 % apart by chance alone.
_DRIFT_LIMIT = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, as a report holds it; `report_builder.add_flops` adds `flops_per_s` and `peak_share`.

    Attributes:
        peaks: number type -> operations per second of the bare product in its best turn.
        missing: sentences that say what an interrupted run had not measured yet.
    """

    latency: list[Latency]
    ratios: list[Ratio]
    throughput: list[Throughput]
    scaling: list[Scaling]
    memory: list[Memory]
    cold_start: list[ColdStart]
    energy: Energy
    noise: Noise
    failures: list[Failure]
    peaks: dict[str, float]
    missing: list[str]


def summarise_measurements(bench: ResolvedBench, journal: Samples) -> Measured:
    """Compute all parts of a report that were measured; the journal may be that of a run that was interrupted."""
    results = _Results(bench, journal)
    configurations = bench.configurations
    rows = (results.latency(each, load) for each in configurations for load in bench.loads)
    return Measured(
        latency=[row for row in rows if row is not None],
        ratios=results.ratios(),
        throughput=[row for each in configurations for row in results.throughput(each.key)],
        scaling=[row for each in configurations for row in results.scaling(each)],
        memory=[memory for each in configurations if (memory := results.memory(each.key)) is not None],
        cold_start=[start for each in configurations if (start := results.cold_start(each.key)) is not None],
        energy=results.energy(),
        noise=results.noise(),
        failures=results.failures(),
        peaks=results.peaks(),
        missing=_list_missing(bench, journal),
    )


class _Results:
    """Computes each part of a report from the rounds that count; a row that failed at a load is in none of them."""

    def __init__(self, bench: ResolvedBench, journal: Samples) -> None:
        self.bench, self.journal = bench, journal
        self.rounds: dict[Load, list[Round]] = {}
        self.disturbances: dict[Load, str] = {}
        for load in bench.loads:
            rounds, reasons = undisturbed_rounds(journal, load)
            # Not only from its failure on: a row either has all rounds of a load or none.
            self.rounds[load] = [_without_failed(journal, load, each) for each in rounds]
            if reasons:
                self.disturbances[load] = "; ".join(reasons)

    @cached_property
    def a_a(self) -> dict[Load, Estimate]:
        """How many times as fast the baseline is as its own second process, by load."""
        baseline = self.bench.baseline.key
        found = {load: self._ratio(load, baseline, baseline + A_A_SUFFIX) for load in self.rounds}
        return {load: estimate for load, estimate in found.items() if estimate is not None}

    @cached_property
    def floors(self) -> dict[Load, float]:
        """How far the ratio of the baseline to itself can be from 1, by load."""
        # The far end of the interval, because the ratio itself may be near 1 by luck.
        return {load: max(abs(found.low - 1), abs(found.high - 1)) for load, found in self.a_a.items()}

    @cached_property
    def widest_floor(self) -> float | None:
        """The widest noise floor of the grid; of all loads where there is no grid."""
        on_grid = [floor for load, floor in self.floors.items() if load.kind == "grid"]
        return max(on_grid or self.floors.values(), default=None)

    @cached_property
    def drifts(self) -> dict[Load, dict[str, float]]:
        """The drifts that exceed both the noise floor and chance: load -> key -> drift."""
        limit = max(self.widest_floor or 0.0, _DRIFT_LIMIT)
        found: dict[Load, dict[str, float]] = {}
        for load, rounds in self.rounds.items():
            for key in dict.fromkeys(key for each in rounds for key in each.calls_ms):
                calls = calls_of(rounds, key)
                drift = statistics.drift(calls)
                if drift is not None and abs(drift - 1) > max(limit, statistics.drift_by_chance(calls)):
                    found.setdefault(load, {})[key] = drift
        return found

    def rng(self, purpose: int, load: Load, name: str) -> np.random.Generator:
        """Return a generator seeded by its use alone, so that its draws do not depend on what else is computed."""
        # crc32 and not hash(), which Python salts anew in every process.
        return np.random.default_rng([self.bench.seed, purpose, *load_seed(load), crc32(name.encode())])

    def disturbed(self, load: Load, *keys: str) -> str | None:
        """Return why the times of these processes at a load must not be believed; None if nothing speaks against it."""
        drifts = self.drifts.get(load, {})
        reasons = [self.disturbances[load]] if load in self.disturbances else []
        reasons += [f"the times of {key} drifted by {drifts[key] - 1:+.0%}" for key in keys if key in drifts]
        return "; ".join(reasons) or None

    def latency(self, configuration: Configuration, load: Load) -> Latency | None:
        """Return one configuration's latency at a load; None where it ran no round."""
        key = configuration.key
        rounds = [each for each in self.rounds[load] if key in each.calls_ms]
        if not rounds:
            return None
        rng = self.rng(_LATENCY, load, key)
        row = statistics.summarise(calls_of(rounds, key), rng=rng, resamples=self.bench.config.resamples)
        # Of every launch; names end in the key.
        warm = [value for name, value in self.journal.parts("warm", str(load)).items() if name[-1] == key]
        p50_ms, wall_s = row.get("p50_ms"), sum(each.wall_s[key] for each in rounds)
        cpu_s = sum(each.cpu_s[key] for each in rounds)
        return Latency(
            key=key,
            load=load,
            mean_tokens=warm[-1]["mean_tokens"] if warm else float(load.num_tokens or 0),
            throughput_per_s=load.batch_size * 1e3 / p50_ms if p50_ms else None,
            stationary=all(value["stationary"] for value in warm),
            cpu_share=cpu_s / wall_s / configuration.threads if wall_s else None,
            disturbed=self.disturbed(load, key),
            **row,
        )

    def ratios(self) -> list[Ratio]:
        """Return the paired ratios of all comparisons at all loads, and of the A/A control."""
        baseline = self.bench.baseline.key
        rows: list[tuple[ComparisonKind | Literal["again"], str, str, Load, Estimate, float | None]] = []
        for comparison, other, candidate in list_comparisons(self.bench.configurations, baseline=baseline):
            for load in self.rounds:
                found = self._ratio(load, other, candidate)
                if found is not None:
                    rows.append((comparison, other, candidate, load, found, self.floors.get(load)))
        control = baseline + A_A_SUFFIX
        # No floor for the control: the floor is made of it.
        rows += [("again", baseline, control, load, found, None) for load, found in self.a_a.items()]
        ratios = []
        for kind, other, candidate, load, found, floor in rows:
            disturbed = self.disturbed(load, other, candidate)
            ratios.append(
                Ratio(
                    comparison=kind,
                    baseline=other,
                    candidate=candidate,
                    load=load,
                    rounds=len(self._paired_rounds(load, other, candidate)),
                    value=found.value,
                    interval=(found.low, found.high),
                    finding="disturbed" if disturbed else finding(found, floor),
                    disturbed=disturbed,
                )
            )
        return ratios

    def _paired_rounds(self, load: Load, baseline: str, candidate: str) -> list[Round]:
        return [each for each in self.rounds[load] if baseline in each.calls_ms and candidate in each.calls_ms]

    def _ratio(self, load: Load, baseline: str, candidate: str) -> Estimate | None:
        """Return how many times as fast the candidate is, over the rounds that both have; None with fewer than 2."""
        both = self._paired_rounds(load, baseline, candidate)
        if len(both) < _LEAST_PAIRS:
            return None
        return ratio_interval(
            [each.calls_ms[baseline] for each in both],
            [each.calls_ms[candidate] for each in both],
            rng=self.rng(_RATIO, load, f"{baseline} {candidate}"),
            resamples=self.bench.config.resamples,
            launches=[each.launch for each in both],
        )

    def throughput(self, key: str) -> list[Throughput]:
        """Return the throughput of one process at every load and number of callers."""
        rows = []
        for load in self.bench.throughput_loads:
            for callers in self.bench.callers:
                turns = self.journal.parts("throughput", str(load), callers)
                own = {name: turn[key] for name, turn in turns.items() if key in turn}
                where = describe_callers(load, callers)
                if not own or self.journal.get("failure", key, "throughput", where) is not None:
                    continue
                machine = [self.journal.get("machine", "throughput", str(load), callers, *name) for name in own]
                found = statistics.mean_interval(
                    [turn["texts"] / turn["seconds"] for turn in own.values()],
                    rng=self.rng(_THROUGHPUT, load, f"{key} {callers}"),
                    resamples=self.bench.config.resamples,
                )
                calls_ms = [call for turn in own.values() for call in turn["latencies_ms"]]
                rows.append(
                    Throughput(
                        key=key,
                        load=load,
                        callers=callers,
                        texts_per_s=found.value,
                        interval=(found.low, found.high),
                        p50_ms=float(np.median(calls_ms)) if len(calls_ms) >= statistics.MIN_SAMPLES[50] else None,
                        disturbed=_over_limit(machine),
                    )
                )
        return rows

    def scaling(self, configuration: Configuration) -> list[Scaling]:
        """Return the latency of one configuration by number of threads; nothing without that of one thread."""
        key = configuration.key
        turns = list(self.journal.parts("scaling", key).values())
        disturbed = _over_limit(self.journal.parts("machine", "scaling", key).values())
        load, found = self.bench.scaling_load, dict[int, Estimate]()
        for threads in sorted({int(count) for turn in turns for count in turn}):
            # JSON has only strings for keys.
            calls_ms = [turn[str(threads)] for turn in turns if str(threads) in turn]
            # One round alone has no interval.
            if len(calls_ms) >= _LEAST_PAIRS:
                rounds = statistics.Rounds(calls_ms, [0] * len(calls_ms))
                rng = self.rng(_SCALING, load, f"{key} {threads}")
                found[threads] = statistics.median_interval(rounds, rng=rng, resamples=self.bench.config.resamples)
        if 1 not in found:
            return []
        return [
            Scaling(
                key=key,
                load=load,
                threads=threads,
                p50_ms=estimate.value,
                interval=(estimate.low, estimate.high),
                speedup=found[1].value / estimate.value,
                disturbed=disturbed,
            )
            for threads, estimate in found.items()
        ]

    def memory(self, key: str) -> Memory | None:
        """Return the median of each part of a process's memory over the launches; the extremes are its interval."""
        looks = list(self.journal.parts("memory", key).values())
        if not looks:
            return None
        # The median, because one file's resident memory is bimodal between processes (docs/log.md).
        row, intervals = dict(looks[-1]), {}
        for part in _MEMORY_PARTS:
            sizes = sorted(look[part] for look in looks if look.get(part) is not None)
            if sizes:
                row[part] = int(median(sizes))
            if len(sizes) > 1:
                intervals[part] = (float(sizes[0]), float(sizes[-1]))
        return Memory.model_validate(row | {"launches": len(looks), "intervals": intervals})

    def cold_start(self, key: str) -> ColdStart | None:
        """Return the cold start of one process; None where it was never started from nothing."""
        found = list(self.journal.parts("cold start", key).values())
        machine = self.journal.parts("machine", "cold start", key).values()
        return summarise_starts(key, found, disturbed=_over_limit(machine)) if found else None

    def energy(self) -> Energy:
        """Return the joules per text where the machine counts them."""
        source = self.journal.get("energy")
        if source is None:
            return Energy(source=None, reason="not measured yet")
        keys = {each.key for each in self.bench.configurations}
        rows = []
        for load, rounds in self.rounds.items():
            rng = self.rng(_ENERGY, load, "")
            for row in summarise_energy(rounds, load, texts_per_call=load.batch_size, rng=rng):
                if row["key"] in keys:
                    rows.append(row | {"disturbed": self.disturbed(load, row["key"])})
        return Energy(rows=rows, **source)

    def peaks(self) -> dict[str, float]:
        """Return the bare product's best turn by number type, of rounds that nothing disturbed where there are any."""
        calm = [each.peaks for load, rounds in self.rounds.items() if load not in self.disturbances for each in rounds]
        turns = calm if any(calm) else [each.peaks for rounds in self.rounds.values() for each in rounds]
        # The best and not the mean: whatever else happens can only slow a product down.
        return {kind: max(turn[kind] for turn in turns if kind in turn) for turn in turns for kind in turn}

    def noise(self) -> Noise:
        """Return what the machine did meanwhile, the noise floors, and a sentence for all that is doubtful."""
        found = disturbance.shares(each.machine for rounds in self.rounds.values() for each in rounds)
        flags = [f"While {load} was timed, {reasons}." for load, reasons in self.disturbances.items()]
        drifts = {f"{key} at {load}": drift for load, own in self.drifts.items() for key, drift in own.items()}
        if drifts:
            cells = sum(len({key for each in rounds for key in each.calls_ms}) for rounds in self.rounds.values())
            worst = max(drifts, key=lambda where: abs(drifts[where] - 1))
            flags.append(
                f"Between the first and the last third of the rounds the times of {len(drifts)} of {cells} cells "
                f"drifted by more than chance would have it, most those of {worst}: {drifts[worst] - 1:+.0%}."
            )
        for stage, name in _STAGES.items():
            disturbed = _over_limit(self.journal.parts("machine", stage).values())
            flags += [f"While {name} was measured, {disturbed}."] if disturbed else []
        return Noise(
            floor=self.widest_floor,
            floors={str(load): floor for load, floor in self.floors.items()} | self._other_floors(),
            steal_share=found.steal,
            throttled_share=found.throttled,
            others_share=found.others,
            repeated_rounds=sum(len(value["rounds"]) for value in self.journal.parts("dropped").values()),
            flags=flags,
        )

    def _other_floors(self) -> dict[str, float]:
        """Return how far memory, cold start and throughput of the baseline are from those of its A/A control."""
        key = self.bench.baseline.key
        control = key + A_A_SUFFIX
        found: dict[str, float] = {}
        memory, control_memory = self.memory(key), self.memory(control)
        if memory is not None and control_memory is not None:
            # What one process keeps and another gives back (4 to 6 % of MiniLM's) shows in any row, or in none by luck.
            looks = [look for each in self.bench.configurations if (look := self.memory(each.key)) is not None]
            looks.append(control_memory)
            spans = [look.intervals[part] for look in looks for part in _COMPARED_MEMORY if part in look.intervals]
            pairs = [(getattr(memory, part), getattr(control_memory, part)) for part in _COMPARED_MEMORY]
            found["memory"] = max((_apart(one, other) for one, other in (*spans, *pairs) if one and other), default=0.0)
        start, control_start = self.cold_start(key), self.cold_start(control)
        if start is not None and control_start is not None:
            found["cold start"] = _apart(start.total_ms, control_start.total_ms)
        rates = {describe_callers(row.load, row.callers): row.texts_per_s for row in self.throughput(key)}
        for row in self.throughput(control):
            where = describe_callers(row.load, row.callers)
            if where in rates:
                found[where] = _apart(rates[where], row.texts_per_s)
        return found

    def failures(self) -> list[Failure]:
        """Return everything that failed; a process with so many threads is part of its configuration's scaling."""
        found = []
        for name, value in self.journal.parts("failure").items():
            # The bare product is no row; without it there are no shares of the peak, and nothing else is lost.
            if name[0] == PEAK:
                continue
            failure = Failure.model_validate(value)
            key, threads = split_threads(failure.key)
            if threads is not None:
                changed = {"key": key, "stage": "scaling", "where": f"threads: {threads}"}
                failure = failure.model_copy(update=changed)
            found.append(failure)
        return found


def _without_failed(journal: Samples, load: Load, found: Round) -> Round:
    calls_ms = {key: calls for key, calls in found.calls_ms.items() if not has_failed_at(journal, key, load)}
    return replace(found, calls_ms=calls_ms, joules={key: found.joules[key] for key in found.joules if key in calls_ms})


def _over_limit(machine: Iterable[Mapping[str, float] | None]) -> str | None:
    """Return what disturbed some stretches of time, each as `disturbance.Counters.since` counts it."""
    return "; ".join(disturbance.shares(counted or {} for counted in machine).over_limit()) or None


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other) - 1


def _list_missing(bench: ResolvedBench, journal: Samples) -> list[str]:
    """Return a phrase for everything that is still to be measured; what failed is not missing."""
    config = bench.config
    keys = [each.key for each in bench.configurations if journal.get("failure", each.key, "load", "") is None]
    found = [*_list_missing_rounds(bench, journal, keys)]
    for key in keys:
        if not journal.parts("memory", key) and journal.get("failure", key, "memory", "") is None:
            found.append(f"memory of {key}")
    if config.cold_starts:
        for key in keys:
            starts, failure = journal.parts("cold start", key), journal.get("failure", key, "cold start", "")
            if len(starts) < config.cold_starts and failure is None:
                found.append(f"cold start of {key}")
    for load in bench.throughput_loads if keys else ():
        for callers in bench.callers:
            if not has_enough_turns(journal.parts("throughput", str(load), callers).values()):
                found.append(f"throughput at {describe_callers(load, callers)}")
    if config.thread_scaling and len(thread_counts(machine.available_cores())) > 1:
        scaled = [each.key for each in bench.configurations if each.key in keys and each.on_processor]
        found += [f"thread scaling of {key}" for key in scaled if len(journal.parts("scaling", key)) < SCALING_ROUNDS]
    return found


def _list_missing_rounds(bench: ResolvedBench, journal: Samples, keys: Sequence[str]) -> Iterable[str]:
    for load in bench.loads:
        made, wanted = len(kept_rounds(journal, load)), wanted_rounds(journal, load, config=bench.config)
        if made < wanted and not all(has_failed_at(journal, key, load) for key in keys):
            yield f"latency at {load}: {made} of {wanted} rounds"
