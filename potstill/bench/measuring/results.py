"""Compute the parts of a report from what a journal holds, and from nothing else.

So a report of an interrupted run is made of what is there, and the samples beside an old report can be read again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np

from potstill.bench.contract import (
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
from potstill.bench.measuring import energy as joules
from potstill.bench.measuring import noise, stats
from potstill.bench.measuring.journal import Journal
from potstill.bench.measuring.rounds import AGAIN, Round, calls_of, is_lost, kept_rounds, load_seed
from potstill.bench.measuring.throughput import place, scaling_load, split_threads, throughput_loads
from potstill.bench.measuring.unfinished import list_unfinished
from potstill.bench.subjects import Comparison, list_pairs
from potstill.sections import BenchConfig
from potstill.timing.ratio import Estimate, finding, ratio_interval

if TYPE_CHECKING:
    from potstill.bench.subjects import Entry

# Offsets of the seeded generators, so that adding draws to one never moves another.
_LATENCY, _RATIO, _THROUGHPUT, _SCALING = 2, 3, 4, 5
_LEAST_PAIRS = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, as a report holds it; `flops_per_s` and `peak_share` are left to those who know the models.

    Attributes:
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
    loaded: dict[str, dict[str, Any]]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class _Source:
    """What the computation starts from; `cells` are the rounds that count, without the rows that failed there."""

    journal: Journal
    entries: "Sequence[Entry]"
    cells: dict[Load, list[Round]]
    baseline: str
    config: BenchConfig
    seed: int

    def rng(self, purpose: int, load: Load, name: str) -> np.random.Generator:
        """Return a generator that is the same whatever else is computed."""
        return np.random.default_rng([self.seed, purpose, *load_seed(load), crc32(name.encode())])


def results(
    journal: Journal,
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
    cells = {load: [_without_lost(journal, load, found) for found in kept_rounds(journal, load)] for load in loads}
    source = _Source(journal, entries, cells, baseline, config, seed)
    again = _again(source)
    floors = _floors(again)
    return Measured(
        latency=[row for entry in entries for load in loads if (row := _latency(source, entry, load)) is not None],
        ratios=_ratios(source, floors) + [_ratio(source, load, "again", found) for load, found in again.items()],
        throughput=_throughput(source),
        scaling=[row for entry in entries for row in _scaling(source, entry)],
        memory=[Memory.model_validate(value) for value in _stored(source, "memory")],
        cold_start=[ColdStart.model_validate(value) for value in _stored(source, "cold start")],
        energy=_energy(source),
        noise=_noise(source, floors),
        failures=[_failure(value) for value in journal.parts("failure").values()],
        loaded={entry.key: value for entry in entries if (value := journal.get("load", entry.key)) is not None},
        missing=list_unfinished(journal, entries, loads, config=config),
    )


def _without_lost(journal: Journal, load: Load, found: Round) -> Round:
    calls_ms = {key: calls for key, calls in found.calls_ms.items() if not is_lost(journal, key, load)}
    return replace(found, calls_ms=calls_ms, joules={key: found.joules[key] for key in found.joules if key in calls_ms})


def _stored(source: _Source, name: str) -> Iterable[Any]:
    found = (source.journal.get(name, entry.key) for entry in source.entries)
    return (value for value in found if value is not None)


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
    return Ratio(
        comparison=comparison, baseline=baseline, candidate=candidate, load=load,
        rounds=len(_both(source, load, baseline, candidate)), value=found.value,
        interval=(found.low, found.high), finding=finding(found, floor),
    )  # fmt: skip


def _throughput(source: _Source) -> list[Throughput]:
    rows = []
    for key in (entry.key for entry in source.entries):
        for load in throughput_loads(source.config):
            for callers in dict.fromkeys(source.config.callers):
                turns = source.journal.parts("throughput", str(load), callers).values()
                own = [turn[key] for turn in turns if key in turn]
                if own and source.journal.get("failure", key, "throughput", place(load, callers)) is None:
                    rows.append(_throughput_row(source, key, load, callers=callers, turns=own))
    return rows


def _throughput_row(
    source: _Source, key: str, load: Load, *, callers: int, turns: Sequence[dict[str, Any]]
) -> Throughput:  # fmt: skip
    rates = [turn["texts"] / turn["seconds"] for turn in turns]
    rng = source.rng(_THROUGHPUT, load, f"{key} {callers}")
    found = stats.mean_interval(rates, rng=rng, resamples=source.config.resamples)
    calls_ms = [call for turn in turns for call in turn["latencies_ms"]]
    return Throughput(
        key=key, load=load, callers=callers, texts_per_s=found.value, interval=(found.low, found.high),
        p50_ms=float(np.median(calls_ms)) if len(calls_ms) >= stats.MIN_SAMPLES[50] else None,
    )  # fmt: skip


def _scaling(source: _Source, entry: "Entry") -> list[Scaling]:
    turns = list(source.journal.parts("scaling", entry.key).values())
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
            key=entry.key, load=load, threads=threads, p50_ms=estimate.value,
            interval=(estimate.low, estimate.high), speedup=found[1].value / estimate.value,
        )
        for threads, estimate in found.items()
    ]  # fmt: skip


def _energy(source: _Source) -> Energy:
    told = source.journal.get("energy")
    if told is None:
        return Energy(source=None, reason="not measured yet")
    keys = {entry.key for entry in source.entries}
    rows = [
        row
        for load, rounds in source.cells.items()
        for row in joules.rows(rounds, load, texts_per_call=load.batch_size)
        if row["key"] in keys
    ]
    return Energy(rows=rows, **told)


def _noise(source: _Source, floors: dict[Load, float]) -> Noise:
    found = noise.shares(one.machine for rounds in source.cells.values() for one in rounds)
    drifts = {}
    for load, rounds in source.cells.items():
        for key in dict.fromkeys(key for one in rounds for key in one.calls_ms):
            drift = stats.drift(calls_of(rounds, key))
            if drift is not None:
                drifts[f"{key} at {load}"] = drift
    dropped = source.journal.parts("dropped").values()
    return Noise(
        floor=_widest(floors), floors={str(load): floor for load, floor in floors.items()},
        steal_share=found.steal, throttled_share=found.throttled, others_share=found.others,
        repeated_rounds=sum(len(value["rounds"]) for value in dropped),
        flags=noise.flags(found, drifts, floor=_widest(floors)),
    )  # fmt: skip


def _failure(value: dict[str, Any]) -> Failure:
    """Return a failure; that of a process with so many threads is one of its row's thread scaling."""
    failure = Failure.model_validate(value)
    key, threads = split_threads(failure.key)
    if threads is None:
        return failure
    return failure.model_copy(update={"key": key, "stage": "scaling", "where": f"threads: {threads}"})
