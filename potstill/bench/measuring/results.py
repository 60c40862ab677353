"""Compute the parts of a report from what a journal holds, and from nothing else.

So a report of an interrupted run is made of what is there, and the samples beside an old report can be read again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np

from potstill.bench.measuring import energy as joules
from potstill.bench.measuring import noise, stats
from potstill.bench.measuring.cold_start import summarise_starts
from potstill.bench.measuring.rounds import AGAIN, PRODUCT, Round, calls_of, calm_rounds, is_lost, load_seed
from potstill.bench.measuring.samples import Samples
from potstill.bench.measuring.throughput import place, scaling_load, split_threads, throughput_loads
from potstill.bench.measuring.unfinished import list_unfinished
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
from potstill.bench.subjects import Comparison, list_pairs
from potstill.config import BenchConfig
from potstill.timing.ratio import Estimate, finding, ratio_interval

if TYPE_CHECKING:
    from potstill.bench.subjects import Entry

# Offsets of the seeded generators, so that adding draws to one never moves another.
_LATENCY, _RATIO, _THROUGHPUT, _SCALING, _ENERGY = 2, 3, 4, 5, 6
_LEAST_PAIRS = 2
_MEMORY_PARTS = tuple(name for name in Memory.model_fields if name.endswith("_bytes") and name != "limit_bytes")
_COMPARED_MEMORY = ("loaded_rss_bytes", "peak_bytes", "after_uss_bytes")
_STAGES = {"throughput": "throughput", "scaling": "thread scaling", "cold start": "the cold start"}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, as a report holds it; `flops_per_s` and `peak_share` are left to those who know the models.

    Attributes:
        peaks: number type -> operations per second of the bare product in its best turn.
        loaded: key -> what its process said when it had loaded: `device`, `sha256`, and milliseconds.
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
    loaded: dict[str, dict[str, Any]]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class _Source:
    """What the computation starts from.

    Attributes:
        cells: the rounds that count, without the rows that failed there.
        doubts: load -> what disturbed its rounds, if anything.
        drifts: load -> row -> by how much it drifted, of those that drifted by more than chance would have it.
    """

    journal: Samples
    entries: "Sequence[Entry]"
    cells: dict[Load, list[Round]]
    doubts: dict[Load, str]
    drifts: dict[Load, dict[str, float]]
    baseline: str
    config: BenchConfig
    seed: int

    def rng(self, purpose: int, load: Load, name: str) -> np.random.Generator:
        """Return a generator that is the same whatever else is computed."""
        return np.random.default_rng([self.seed, purpose, *load_seed(load), crc32(name.encode())])

    def disturbed(self, load: Load, *keys: str) -> str | None:
        """Return why what these rows did at a load must not be believed; None if nothing speaks against it."""
        drifts = self.drifts.get(load, {})
        drifted = [f"the times of {key} drifted by {drifts[key] - 1:+.0%}" for key in keys if key in drifts]
        return "; ".join([*([self.doubts[load]] if load in self.doubts else []), *drifted]) or None


def results(
    journal: Samples,
    entries: "Sequence[Entry]",
    loads: Sequence[Load],
    *,
    baseline: str,
    config: BenchConfig,
    seed: int,
) -> Measured:
    """Compute all parts of a report that `potstill.bench.measuring.measure` fills.

    Args:
        journal: whole, or of a run that was interrupted.
        entries: the rows, in the order of the report.
        loads: what latency was to be measured at.
        baseline: the key of the row that all are held against.
        config: what was to be measured.
        seed: of the bootstraps.
    """
    found = {load: calm_rounds(journal, load) for load in loads}
    cells = {load: [_without_lost(journal, load, one) for one in rounds] for load, (rounds, _) in found.items()}
    doubts = {load: "; ".join(reasons) for load, (_, reasons) in found.items() if reasons}
    source = _Source(journal, entries, cells, doubts, {}, baseline, config, seed)
    again = _again(source)
    floors = _floors(again)
    source.drifts.update(_drifts(source, floors))
    return Measured(
        latency=[row for entry in entries for load in loads if (row := _latency(source, entry, load)) is not None],
        ratios=_ratios(source, floors) + [_ratio(source, load, "again", found) for load, found in again.items()],
        throughput=[row for entry in entries for row in _throughput(source, entry.key)],
        scaling=[row for entry in entries for row in _scaling(source, entry)],
        memory=[seen for entry in entries if (seen := _memory(source, entry.key)) is not None],
        cold_start=[start for entry in entries if (start := _cold_start(source, entry.key)) is not None],
        energy=_energy(source),
        noise=_noise(source, floors),
        failures=[_failure(value) for name, value in journal.parts("failure").items() if name[0] != PRODUCT],
        peaks=_peaks(source),
        loaded={entry.key: value for entry in entries if (value := journal.get("load", entry.key)) is not None},
        missing=list_unfinished(journal, entries, loads, config=config),
    )


def _without_lost(journal: Samples, load: Load, found: Round) -> Round:
    calls_ms = {key: calls for key, calls in found.calls_ms.items() if not is_lost(journal, key, load)}
    return replace(found, calls_ms=calls_ms, joules={key: found.joules[key] for key in found.joules if key in calls_ms})


def _latency(source: _Source, entry: "Entry", load: Load) -> Latency | None:
    key, rounds = entry.key, [found for found in source.cells[load] if entry.key in found.calls_ms]
    if not rounds:
        return None
    rng = source.rng(_LATENCY, load, key)
    row = stats.summarise(calls_of(rounds, key), rng=rng, resamples=source.config.resamples)
    warm = [value for name, value in source.journal.parts("warm", str(load)).items() if name[-1] == key]
    p50_ms, wall_s = row.get("p50_ms"), sum(found.wall_s[key] for found in rounds)
    return Latency(
        key=key,
        load=load,
        mean_tokens=warm[-1]["mean_tokens"] if warm else float(load.num_tokens or 0),
        throughput_per_s=load.batch_size * 1e3 / p50_ms if p50_ms else None,
        stationary=all(value["stationary"] for value in warm),
        cpu_share=sum(found.cpu_s[key] for found in rounds) / wall_s / entry.threads if wall_s else None,
        disturbed=source.disturbed(load, key),
        **row,
    )


def _estimate(source: _Source, load: Load, baseline: str, candidate: str) -> Estimate | None:
    """Return how many times as fast the candidate is, over the rounds that both have; None with fewer than 2."""
    both = _both(source, load, baseline, candidate)
    if len(both) < _LEAST_PAIRS:
        return None
    return ratio_interval(
        [found.calls_ms[baseline] for found in both],
        [found.calls_ms[candidate] for found in both],
        rng=source.rng(_RATIO, load, f"{baseline} {candidate}"),
        resamples=source.config.resamples,
        launches=[found.launch for found in both],
    )


def _both(source: _Source, load: Load, baseline: str, candidate: str) -> list[Round]:
    return [found for found in source.cells[load] if baseline in found.calls_ms and candidate in found.calls_ms]


def _again(source: _Source) -> dict[Load, Estimate]:
    pairs = {load: _estimate(source, load, source.baseline, source.baseline + AGAIN) for load in source.cells}
    return {load: found for load, found in pairs.items() if found is not None}


def _floors(again: dict[Load, Estimate]) -> dict[Load, float]:
    """Return how far the ratio of the baseline to itself can be from 1, by load."""
    return {load: max(abs(found.low - 1), abs(found.high - 1)) for load, found in again.items()}


def _widest(floors: dict[Load, float]) -> float | None:
    """Return the widest floor of the grid; of all loads where there is no grid."""
    on_grid = [floor for load, floor in floors.items() if load.kind == "grid"]
    return max(on_grid or floors.values(), default=None)


def _ratios(source: _Source, floors: dict[Load, float]) -> list[Ratio]:
    rows = []
    for comparison, held, candidate in list_pairs(source.entries, baseline=source.baseline):
        for load in source.cells:
            found = _estimate(source, load, held, candidate)
            if found is not None:
                rows.append(_ratio(source, load, comparison, found, pair=(held, candidate), floor=floors.get(load)))
    return rows


def _ratio(
    source: _Source,
    load: Load,
    comparison: Comparison | Literal["again"],
    found: Estimate,
    *,
    pair: tuple[str, str] | None = None,
    floor: float | None = None,
) -> Ratio:
    baseline, candidate = pair or (source.baseline, source.baseline + AGAIN)
    disturbed = source.disturbed(load, baseline, candidate)
    return Ratio(
        comparison=comparison,
        baseline=baseline,
        candidate=candidate,
        load=load,
        rounds=len(_both(source, load, baseline, candidate)),
        value=found.value,
        interval=(found.low, found.high),
        finding="disturbed" if disturbed else finding(found, floor),
        disturbed=disturbed,
    )


def _throughput(source: _Source, key: str) -> Iterable[Throughput]:
    for load in throughput_loads(source.config):
        for callers in dict.fromkeys(source.config.callers):
            turns = source.journal.parts("throughput", str(load), callers)
            own = {name: turn[key] for name, turn in turns.items() if key in turn}
            if own and source.journal.get("failure", key, "throughput", place(load, callers)) is None:
                machine = [source.journal.get("machine", "throughput", str(load), callers, *name) for name in own]
                disturbed = _disturbed(machine)
                yield _throughput_row(source, key, load, callers=callers, turns=list(own.values()), disturbed=disturbed)


def _throughput_row(
    source: _Source,
    key: str,
    load: Load,
    *,
    callers: int,
    turns: Sequence[dict[str, Any]],
    disturbed: str | None,
) -> Throughput:
    rates = [turn["texts"] / turn["seconds"] for turn in turns]
    rng = source.rng(_THROUGHPUT, load, f"{key} {callers}")
    found = stats.mean_interval(rates, rng=rng, resamples=source.config.resamples)
    calls_ms = [call for turn in turns for call in turn["latencies_ms"]]
    return Throughput(
        key=key,
        load=load,
        callers=callers,
        texts_per_s=found.value,
        interval=(found.low, found.high),
        p50_ms=float(np.median(calls_ms)) if len(calls_ms) >= stats.MIN_SAMPLES[50] else None,
        disturbed=disturbed,
    )


def _scaling(source: _Source, entry: "Entry") -> list[Scaling]:
    turns = list(source.journal.parts("scaling", entry.key).values())
    disturbed = _disturbed(source.journal.parts("machine", "scaling", entry.key).values())
    load, found = scaling_load(source.config), dict[int, Estimate]()
    for threads in sorted({int(count) for turn in turns for count in turn}):
        calls_ms = [turn[str(threads)] for turn in turns if str(threads) in turn]
        if len(calls_ms) >= _LEAST_PAIRS:
            rounds = stats.Rounds(calls_ms, [0] * len(calls_ms))
            rng = source.rng(_SCALING, load, f"{entry.key} {threads}")
            found[threads] = stats.median_interval(rounds, rng=rng, resamples=source.config.resamples)
    if 1 not in found:
        return []
    return [
        Scaling(
            key=entry.key,
            load=load,
            threads=threads,
            p50_ms=estimate.value,
            interval=(estimate.low, estimate.high),
            speedup=found[1].value / estimate.value,
            disturbed=disturbed,
        )
        for threads, estimate in found.items()
    ]


def _memory(source: _Source, key: str) -> Memory | None:
    """Return the median of each part over the launches; the furthest processes are its interval."""
    looks = list(source.journal.parts("memory", key).values())
    if not looks:
        return None
    row, intervals = dict(looks[-1]), {}
    for part in _MEMORY_PARTS:
        sizes = sorted(look[part] for look in looks if look.get(part) is not None)
        if sizes:
            row[part] = int(median(sizes))
        if len(sizes) > 1:
            intervals[part] = (float(sizes[0]), float(sizes[-1]))
    return Memory.model_validate(row | {"launches": len(looks), "intervals": intervals})


def _cold_start(source: _Source, key: str) -> ColdStart | None:
    found = list(source.journal.parts("cold start", key).values())
    machine = source.journal.parts("machine", "cold start", key).values()
    return summarise_starts(key, found, disturbed=_disturbed(machine)) if found else None


def _energy(source: _Source) -> Energy:
    told = source.journal.get("energy")
    if told is None:
        return Energy(source=None, reason="not measured yet")
    keys = {entry.key for entry in source.entries}
    rows = []
    for load, rounds in source.cells.items():
        rng = source.rng(_ENERGY, load, "")
        for row in joules.rows(rounds, load, texts_per_call=load.batch_size, rng=rng):
            if row["key"] in keys:
                rows.append(row | {"disturbed": source.disturbed(load, row["key"])})
    return Energy(rows=rows, **told)


def _disturbed(machine: Iterable[dict[str, float] | None]) -> str | None:
    return "; ".join(noise.shares(counted or {} for counted in machine).over_limit()) or None


def _peaks(source: _Source) -> dict[str, float]:
    """Return the bare product's best turn by number type, of rounds that nothing disturbed where there are any."""
    calm = [one.peaks for load, rounds in source.cells.items() if load not in source.doubts for one in rounds]
    turns = calm if any(calm) else [one.peaks for rounds in source.cells.values() for one in rounds]
    return {kind: max(turn[kind] for turn in turns if kind in turn) for turn in turns for kind in turn}


def _drifts(source: _Source, floors: dict[Load, float]) -> dict[Load, dict[str, float]]:
    """Return who drifted where, by more than the noise floor and more than rounds that differ do by chance."""
    limit = max(_widest(floors) or 0.0, noise.DRIFT_LIMIT)
    found: dict[Load, dict[str, float]] = {}
    for load, rounds in source.cells.items():
        for key in dict.fromkeys(key for one in rounds for key in one.calls_ms):
            calls = calls_of(rounds, key)
            drift = stats.drift(calls)
            if drift is not None and abs(drift - 1) > max(limit, stats.drift_by_chance(calls)):
                found.setdefault(load, {})[key] = drift
    return found


def _noise(source: _Source, floors: dict[Load, float]) -> Noise:
    found = noise.shares(one.machine for rounds in source.cells.values() for one in rounds)
    dropped = source.journal.parts("dropped").values()
    return Noise(
        floor=_widest(floors),
        floors={str(load): floor for load, floor in floors.items()} | _other_floors(source),
        steal_share=found.steal,
        throttled_share=found.throttled,
        others_share=found.others,
        repeated_rounds=sum(len(value["rounds"]) for value in dropped),
        flags=_flags(source),
    )


def _flags(source: _Source) -> list[str]:
    """Return a sentence for everything that makes some of the rows doubtful."""
    found = [f"While {load} was timed, {reasons}." for load, reasons in source.doubts.items()]
    drifts = {f"{key} at {load}": drift for load, own in source.drifts.items() for key, drift in own.items()}
    cells = sum(len({key for one in rounds for key in one.calls_ms}) for rounds in source.cells.values())
    found += noise.drift_flags(drifts, of=cells)
    for stage in ("throughput", "scaling", "cold start"):
        disturbed = _disturbed(source.journal.parts("machine", stage).values())
        found += [f"While {_STAGES[stage]} was measured, {disturbed}."] if disturbed else []
    return found


def _other_floors(source: _Source) -> dict[str, float]:
    """Return how far memory, cold start and throughput of the baseline are from those of its second process."""
    key, again = source.baseline, source.baseline + AGAIN
    found: dict[str, float] = {}
    memory, twin = _memory(source, key), _memory(source, again)
    if memory is not None and twin is not None:
        # What one process keeps and another gives back (4 to 6 % of MiniLM's) shows in any row, or in none by luck.
        looked = [own for entry in source.entries if (own := _memory(source, entry.key)) is not None]
        spans = [own.intervals[part] for own in (*looked, twin) for part in _COMPARED_MEMORY if part in own.intervals]
        pairs = [(getattr(memory, part), getattr(twin, part)) for part in _COMPARED_MEMORY]
        found["memory"] = max((_apart(one, other) for one, other in (*spans, *pairs) if one and other), default=0.0)
    start, twins_start = _cold_start(source, key), _cold_start(source, again)
    if start is not None and twins_start is not None:
        found["cold start"] = _apart(start.total_ms, twins_start.total_ms)
    rates = {place(row.load, row.callers): row.texts_per_s for row in _throughput(source, key)}
    for row in _throughput(source, again):
        where = place(row.load, row.callers)
        if where in rates:
            found[where] = _apart(rates[where], row.texts_per_s)
    return found


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other) - 1


def _failure(value: dict[str, Any]) -> Failure:
    """Return a failure; that of a process with so many threads is one of its row's thread scaling."""
    failure = Failure.model_validate(value)
    key, threads = split_threads(failure.key)
    if threads is None:
        return failure
    return failure.model_copy(update={"key": key, "stage": "scaling", "where": f"threads: {threads}"})
