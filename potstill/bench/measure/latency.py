"""Measure latency: processes take turns in rounds, every round of every load is written to the journal.

All processes are started, every load is warmed up, and then they take turns in random order, one block of calls each:
models that alternate share what the machine does meanwhile, and a random order keeps a neighbour's warm caches from
favouring one of them (google-benchmark's random interleaving cuts the spread between runs by about 40 %). This is
repeated in several launches, because a process keeps the speed that its place in memory gives it.

Only where to go on is computed here; the figures of a report are made in `potstill.bench.measure.results`.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, log
from typing import Any

import numpy as np

from potstill.bench.budget import (
    COMPRESSED,
    LATENCY,
    LEAST_ROUNDS,
    MIN_CALLS,
    REPORT,
    Deadline,
    next_load,
    split_rounds,
)
from potstill.bench.measure.energy import Meter, open_meter
from potstill.bench.measure.memory import container_limit
from potstill.bench.measure.run import (
    PEAK,
    BenchRun,
    load_seed,
    read_amount,
    read_block,
    read_warm,
    turn_order,
)
from potstill.bench.measure.samples import (
    Round,
    all_rounds,
    calls_of,
    disturbances,
    drop_rounds,
    has_failed_at,
    kept_rounds,
    store_round,
    wanted_rounds,
)
from potstill.bench.measure.throughput import measure_throughput
from potstill.bench.report_schema import Load, Memory
from potstill.bench.statistics import median_interval
from potstill.timing import disturbance
from potstill.timing.ratio import ratio_interval
from potstill.timing.worker_loop import Message
from potstill.timing.workers import WorkerPool

_STAGE = "measure latency"
# Resamples behind the decision where a budget goes: the interval of the report is made anew, with more.
_ROUGH_RESAMPLES = 200
# Half the width / the value beyond which a load is launched again (3 % is aimed at), and how many loads at most, so
# that a noisy machine does not make a run a third longer.
_WIDE, _MOST_RELAUNCHED = 0.025, 3
# What the data's own texts are taken to have, for the time that they take.
_TOKENS_OF_OWN_TEXTS = 32


@dataclass(frozen=True, slots=True)
class _Launch:
    """One launch of all processes: each is started once and lives until the launch ends."""

    run: BenchRun
    pool: WorkerPool
    number: int
    meter: Meter | None
    first_round_s: dict[Load, float] = field(default_factory=dict)
    """Load -> seconds of its first round in this life, with the warm-up."""


def measure_latency(run: BenchRun) -> None:
    """Make all rounds of all loads, read the memory of the processes that ran them, and repeat what is too noisy.

    Throughput takes its turns in the same launches, after the memory was read: a process keeps a speed of its own for
    life, and several processes tell by how much.
    """
    bench, config, journal = run.bench, run.bench.config, run.journal
    found = open_meter(on_gpu=not all(each.on_processor for each in bench.configurations))
    meter = None if isinstance(found, str) else found
    source = {"source": None, "reason": found} if isinstance(found, str) else {"source": found.source, "reason": None}
    journal.once(("energy",), lambda: source)
    if config.budget_s is not None:
        _measure_within_budget(run, meter)
    else:
        shares = split_rounds(config.rounds, config.launches)
        for number, share in enumerate(shares):
            with run.pool(run.racing_processes()) as pool:
                launch = _Launch(run, pool, number, meter)
                for load in bench.loads:
                    _make_rounds(launch, load, share)
                _read_memory(launch)
                measure_throughput(run, pool, launch=number, launches=len(shares))
        for number in range(len(shares), len(shares) + config.extra_launches):
            # Only how wide an interval is decides, not where it is, so it still holds the truth as often as it says.
            more = journal.once(("more", number), lambda: {"rounds": shares[-1], "loads": _widest_loads(run)})
            with run.pool(run.racing_processes()) as pool:
                for load in bench.loads:
                    if str(load) in more["loads"]:
                        _make_rounds(_Launch(run, pool, number, meter), load, shares[-1])
            if not more["loads"]:
                break
    run.progress(_STAGE, 1, 1, "")


def _measure_within_budget(run: BenchRun, meter: Meter | None) -> None:
    """Make the least rounds of every load, and then more where the intervals are widest until the time is over.

    The processes are started again only where that leaves the time for rounds: how long it takes is known once they
    were started first.
    """
    config = run.bench.config
    deadline = run.deadline or Deadline(run.clock() + (config.budget_s or 0.0), run.clock)
    run = replace(run, deadline=deadline)
    shares = split_rounds(LEAST_ROUNDS, config.launches)
    whole_s = deadline.left_s(LATENCY)
    for number, share in enumerate(shares):
        with run.pool(run.racing_processes()) as pool:
            began = run.clock()
            pool.start(pool.names)
            if number == 0:
                # The first thing that shows how fast this machine is beside the one of the estimate.
                deadline = deadline.on_a_slow_machine(run.clock() - began)
                run = replace(run, deadline=deadline)
            launch = _Launch(run, pool, number, meter)
            for load in run.bench.loads:
                _make_rounds(launch, load, share)
            took_s = run.clock() - began
            # Another launch takes as long again, and without as much time on top of it there would be no rounds to
            # gain.
            last = number + 1 == len(shares) or not run.has_time(2 * took_s, LATENCY)
            if last:
                for load in run.bench.loads:
                    # This one makes the rounds of the launches that there is no time for.
                    _make_rounds(launch, load, sum(shares[number:]))
            # Every launch that is still to come has an equal share of the whole time.
            kept_s = 0.0 if last else whole_s * (1 - (number + 1) / len(shares))
            while _make_round_where_uncertain(launch, left_s=deadline.left_s(LATENCY) - kept_s):
                pass
            _read_memory(launch)
            measure_throughput(run, pool, launch=number, launches=number + 1 if last else len(shares))
        if last:
            return


def _make_rounds(launch: _Launch, load: Load, share: int) -> None:
    """Make a launch's share of rounds at a load; repeat what the machine disturbed, as often as is allowed."""
    run, journal = launch.run, launch.run.journal
    is_first_load = load == run.bench.loads[0]
    while True:
        kept = [found for found in kept_rounds(journal, load) if found.launch == launch.number]
        if len(kept) < share:
            began = run.clock()
            # The first load is what claims are about: it may take the time of everything but the report, and its first
            # round of that too, since without one there is no report.
            part = LATENCY if not is_first_load else COMPRESSED if all_rounds(journal, load) else REPORT
            if not run.has_time(_expected_s(launch, load), part) or not _make_round(launch, load):
                return
            launch.first_round_s.setdefault(load, run.clock() - began)
            continue
        repeats = len(journal.parts("dropped", str(load)))
        # Written down once: rounds that a budget adds later must not change it.
        reasons = journal.once(("judged", str(load), launch.number, repeats), partial(disturbances, kept))
        repeat_s = sum(found.seconds for found in kept)
        if not reasons or repeats >= run.bench.config.max_repeats or not run.has_time(repeat_s, LATENCY):
            return
        drop_rounds(journal, load, kept, reason="; ".join(reasons))


def _expected_s(launch: _Launch, load: Load) -> float:
    """Return about how long the next round takes: as long as the last one, or by tokens as long as another load's."""
    known = all_rounds(launch.run.journal, load)
    if known:
        return known[-1].seconds
    if not launch.first_round_s:
        return 0.0
    # The nearest by the ratio of tokens, hence the logarithms.
    nearest = min(launch.first_round_s, key=lambda other: abs(log(_tokens(load) / _tokens(other))))
    # Turns have a least length, so fewer tokens do not make a round shorter in proportion.
    return launch.first_round_s[nearest] * max(_tokens(load) / _tokens(nearest), 0.5)


def _tokens(load: Load) -> int:
    return load.batch_size * (load.num_tokens or _TOKENS_OF_OWN_TEXTS)


def _widest_loads(run: BenchRun) -> list[str]:
    widths = {str(load): _relative_width(run, load) for load in run.bench.loads}
    wide = [load for load, width in widths.items() if width > _WIDE]
    return sorted(wide, key=lambda load: -widths[load])[:_MOST_RELAUNCHED]


def _make_round_where_uncertain(launch: _Launch, *, left_s: float) -> bool:
    """Make one round at the load whose interval is widest; tell whether there was time for one."""
    run = launch.run
    rounds = {load: all_rounds(run.journal, load) for load in run.bench.loads}
    costs_s = {str(load): own[-1].seconds for load, own in rounds.items() if own}
    widths = {str(load): _relative_width(run, load) for load in rounds if str(load) in costs_s}
    chosen = next_load(widths, costs_s, left_s=left_s)
    return chosen is not None and _make_round(launch, next(load for load in rounds if str(load) == chosen))


def _relative_width(run: BenchRun, load: Load) -> float:
    """Return half the width of a load's widest interval / its value: of the ratios, or of the only row's own times."""
    journal, rounds = run.journal, kept_rounds(run.journal, load)
    keys = [
        key
        for key in run.measured_processes()
        if not has_failed_at(journal, key, load) and journal.get("failure", key, "load", "") is None
    ]
    if not keys:
        return 0.0
    baseline = run.bench.baseline.key if run.bench.baseline.key in keys else keys[0]
    # Seeded by the rounds that there are, so that a resumed bench decides as it would have without a break.
    rng = np.random.default_rng([run.bench.seed, *load_seed(load), len(rounds)])
    widths = []
    for key in keys:
        both = [found for found in rounds if baseline in found.calls_ms and key in found.calls_ms]
        if len(both) < 2:
            # There is no interval yet, so nothing is more uncertain.
            return inf
        if key != baseline:
            sides = ([found.calls_ms[name] for found in both] for name in (baseline, key))
            launches = [found.launch for found in both]
            estimate = ratio_interval(*sides, rng=rng, resamples=_ROUGH_RESAMPLES, launches=launches)
        elif len(keys) == 1:
            estimate = median_interval(calls_of(both, key), rng=rng, resamples=_ROUGH_RESAMPLES)
        else:
            continue
        widths.append((estimate.high - estimate.low) / 2 / estimate.value)
    return max(widths)


def _make_round(launch: _Launch, load: Load) -> bool:
    """Let every process that still can take a turn, and write the round down; tell whether any could."""
    run, pool, journal, where = launch.run, launch.pool, launch.run.journal, str(load)
    # Dropped rounds count too: a number is a name in the journal, and is never given twice.
    number = sum(found.launch == launch.number for found in all_rounds(journal, load))
    _report_progress(run, f"{load}, round {len(kept_rounds(journal, load)) + 1}")
    able = [name for name in pool.names if not has_failed_at(journal, name, load)]
    pool.start(able)
    racing = [name for name in able if name == PEAK or _warm_up(launch, load, name)]
    # The bare product alone is no round.
    if racing == [PEAK]:
        return False
    kept = (found for found in kept_rounds(journal, load) if found.launch == launch.number)
    if any(found.peaks for found in kept):  # its best turn counts, and one in each launch and load is enough for that
        racing = [name for name in racing if name != PEAK]
    config = run.bench.config
    block = {"do": "block", "load": load.model_dump(), "seconds": config.block_s, "min_calls": MIN_CALLS}
    # From here on: what disturbs a warm-up spoils no figure.
    before, start = disturbance.read_counters(), run.clock()
    turns: dict[str, dict[str, Any]] = {}
    joules: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name in turn_order(racing, seed=run.bench.seed, load=load, launch=launch.number, number=number):
        if name == PEAK:
            peaks = pool.ask(name, {"do": "product"}, read=_read_peaks, stage="latency", where=where) or {}
            continue
        # Read around the turn alone: the bare product and the time between turns are nobody's energy.
        used = launch.meter.read() if launch.meter else 0.0
        turn = pool.ask(name, block, read=read_block, stage="latency", where=where)
        if turn is not None:
            turns[name] = turn
            if launch.meter:
                joules[name] = launch.meter.read() - used
    if not turns:
        return False
    found = Round(
        launch=launch.number,
        number=number,
        calls_ms={name: turn["latencies_ms"] for name, turn in turns.items()},
        cpu_s={name: turn["cpu_s"] for name, turn in turns.items()},
        wall_s={name: turn["wall_s"] for name, turn in turns.items()},
        joules=joules,
        peaks=peaks,
        seconds=run.clock() - start,
        machine=disturbance.read_counters().since(before),
    )
    # Written as one entry when it is whole, so a round that is cut off leaves no trace.
    store_round(journal, load, found)
    return True


def _read_peaks(reply: Message) -> dict[str, float]:
    return {str(kind): read_amount(value) for kind, value in reply["rates"].items()}


def _warm_up(launch: _Launch, load: Load, name: str) -> bool:
    """Warm a process up for a load, once; tell whether it can run there."""
    run, done = launch.run, launch.pool.done(name)
    if str(load) in done:
        return True
    command = {"do": "warm", "load": load.model_dump(), "max_s": run.bench.config.warm_up_s}
    reply = launch.pool.ask(name, command, read=read_warm, stage="warm-up", where=str(load))
    if reply is None:
        return False
    run.journal.put(("warm", str(load), launch.number, name), reply)
    launch.pool.done(name).add(str(load))
    return True


def _read_memory(launch: _Launch) -> None:
    """Ask every process for its memory, once it has run all loads in this launch."""
    run, journal = launch.run, launch.run.journal
    for key in run.measured_processes():
        if journal.get("memory", key, launch.number) is not None:
            continue
        for load in run.bench.loads:
            if run.deadline is not None and not kept_rounds(journal, load):
                continue  # there was no time for it
            if str(load) not in launch.pool.done(key) and not has_failed_at(journal, key, load):
                # A resumed bench has this load's rounds already, but this process has not grown to what they need.
                command = {"do": "warm", "load": load.model_dump(), "max_s": 0.0}
                launch.pool.ask(key, command, read=read_warm, stage="memory")
        found = launch.pool.ask(key, {"do": "memory"}, read=partial(_validate_memory, key), stage="memory")
        if found is not None:
            journal.put(("memory", key, launch.number), found)


def _validate_memory(key: str, reply: Message) -> dict[str, Any]:
    return Memory.model_validate({"key": key, "limit_bytes": container_limit(), **reply}).model_dump(mode="json")


def _report_progress(run: BenchRun, note: str) -> None:
    journal, config = run.journal, run.bench.config
    if run.deadline is not None:
        left_s = max(0.0, run.deadline.left_s(LATENCY))
        whole_s = round(config.budget_s or 0.0)
        run.progress(_STAGE, min(whole_s - 1, whole_s - round(left_s)), whole_s, note)
        return
    done = sum(len(all_rounds(journal, load)) for load in run.bench.loads)
    dropped = sum(len(value["rounds"]) for value in journal.parts("dropped").values())
    wanted = sum(wanted_rounds(journal, load, config=config) for load in run.bench.loads)
    run.progress(_STAGE, done, wanted + dropped, note)
