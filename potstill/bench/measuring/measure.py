"""Measure: fill the journal with everything that a report is made of.

Everybody is started, every load is warmed up, and then all take turns in random order, one block of calls each: models
that alternate share what the machine does meanwhile, and a random order keeps a neighbour's warm caches from favouring
one of them (google-benchmark's random interleaving cuts the spread between runs by about 40 %). This is repeated in
several launches, because a process keeps the speed that its place in memory gives it.

Nothing here is computed from the measurements but where to go on; `potstill.bench.measuring.results` does that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, log
from typing import Any

import numpy as np

from potstill.bench.engines.memory import container_limit
from potstill.bench.measuring import noise
from potstill.bench.measuring.budget import (
    COLD_STARTS,
    COMPRESSED,
    LATENCY,
    LEAST_ROUNDS,
    MIN_CALLS,
    REPORT,
    Deadline,
    next_load,
    split_rounds,
)
from potstill.bench.measuring.cold_start import start_once
from potstill.bench.measuring.energy import Meter, open_meter
from potstill.bench.measuring.plan import Plan
from potstill.bench.measuring.replies import Reply, read_block, read_rates, read_warm
from potstill.bench.measuring.rounds import (
    PRODUCT,
    Round,
    all_rounds,
    calls_of,
    disturbances,
    drop_rounds,
    is_lost,
    kept_rounds,
    load_seed,
    order_of,
    store_round,
    wanted_rounds,
)
from potstill.bench.measuring.stats import median_interval
from potstill.bench.measuring.team import Team, classify
from potstill.bench.measuring.throughput import measure_scaling, runs_on_processor, throughput_turns
from potstill.bench.report_schema import Failure, Load, Memory
from potstill.timing.client import CommandFailed
from potstill.timing.ratio import ratio_interval

_STAGE = "measure latency"
# The order of cold starts is drawn as that of turns, but belongs to no load.
_NO_LOAD = Load()
# Resamples behind the decision where a budget goes: the interval of the report is made anew, with more.
_ROUGH = 200
# Half the width / the value beyond which a load is launched again (3 % is aimed at), and how many at most, so that a
# noisy machine does not make a run a third longer.
_WIDE, _MOST_AGAIN = 0.025, 3
# Of the data's own texts, for the time that they take.
_OWN_TOKENS = 32
# What a fresh process is asked where there is no data.
_TEXT = "A pot still is heated from below, and what rises from it is caught."


@dataclass(frozen=True, slots=True)
class _Launch:
    """One life of all processes."""

    plan: Plan
    team: Team
    number: int
    meter: Meter | None
    firsts_s: dict[Load, float] = field(default_factory=dict)
    """Load -> seconds of its first round in this life, with the warm-up."""


def measure(plan: Plan, *, answer: Callable[[], None] = lambda: None) -> None:
    """Measure everything that is not in the journal yet.

    A fault of a row costs what it was asked and is written down. `KeyboardInterrupt` passes through once all processes
    are ended; a round that it cuts off leaves no trace, and another call goes on there. With a deadline, what there is
    no time for stays unmeasured.

    Args:
        plan: what.
        answer: scores quality; it comes after the latency, before what matters less.
    """
    measure_latency(plan)
    answer()
    measure_cold_starts(plan)
    measure_scaling(plan)


def measure_latency(plan: Plan) -> None:
    """Make all rounds of all loads, look at the memory of the processes that ran them, and make up for noise.

    Throughput takes its turns in the same launches, after the memory was read: a process keeps a speed of its own for
    life, and several processes tell by how much.
    """
    meter = _find_meter(plan)
    if plan.config.budget_s is not None:
        _spend_budget(plan, meter)
    else:
        shares = split_rounds(plan.config.rounds, plan.config.launches)
        for number, share in enumerate(shares):
            with plan.team(plan.racers()) as team:
                launch = _Launch(plan, team, number, meter)
                for load in plan.loads:
                    _make_rounds(launch, load, share)
                _read_memory(launch)
                throughput_turns(plan, team, launch=number, launches=len(shares))
        for more in range(plan.config.extra_launches):
            if not _launch_again(plan, len(shares) + more, meter, share=shares[-1]):
                break
    plan.progress(_STAGE, 1, 1, "")


def _spend_budget(plan: Plan, meter: Meter | None) -> None:
    """Make the least rounds of every load, and then more where the intervals are widest until the time is over.

    The processes are started again only where that leaves the time for rounds: how long it takes is known once they
    were started first.
    """
    deadline = plan.deadline or Deadline(plan.clock() + (plan.config.budget_s or 0.0), plan.clock)
    plan = replace(plan, deadline=deadline)
    shares = split_rounds(LEAST_ROUNDS, plan.config.launches)
    number, last, whole_s = 0, False, deadline.left_s(LATENCY)
    while not last:
        with plan.team(plan.racers()) as team:
            launch, begin = _Launch(plan, team, number, meter), plan.clock()
            team.start(team.names)
            if number == 0:
                deadline = deadline.on_a_slow_machine(plan.clock() - begin)
                plan = replace(plan, deadline=deadline)
                launch = replace(launch, plan=plan)
            for load in plan.loads:
                _make_rounds(launch, load, shares[number])
            took_s = plan.clock() - begin
            last = number + 1 == len(shares) or not plan.has(2 * took_s, LATENCY)
            if last:
                for load in plan.loads:
                    _make_rounds(launch, load, sum(shares[number:]))
            kept_s = 0.0 if last else whole_s * (1 - (number + 1) / len(shares))
            _spend(launch, kept_s=kept_s)
            _read_memory(launch)
            throughput_turns(plan, team, launch=number, launches=number + 1 if last else len(shares))
        number += 1


def measure_cold_starts(plan: Plan) -> None:
    """Start each row's process from nothing, in turns, and the baseline's second one beside it.

    A turn that the machine disturbed is made anew, so often as is allowed.
    """
    if not plan.config.cold_starts:
        return
    journal, text = plan.journal, next(iter(plan.texts or ()), _TEXT)
    starts = {key: greetings[0] for key, greetings in plan.everybody().items()}
    longest_s = 0.0
    for number in range(plan.config.cold_starts):
        for key in order_of(list(starts), seed=plan.seed, load=_NO_LOAD, launch=0, number=number):
            failed = any(journal.get("failure", key, stage, "") for stage in ("load", "cold start"))
            if failed or journal.get("cold start", key, number) is not None:
                continue
            if not plan.has(longest_s, COLD_STARTS):
                return
            began = plan.clock()
            plan.progress("cold start", number, plan.config.cold_starts, key)
            try:
                found, machine = noise.watched(
                    partial(start_once, starts[key], text=text, timeout_s=plan.config.timeout_s),
                    repeats=plan.config.max_repeats,
                )
            except CommandFailed as error:
                failure = Failure(key=key, stage="cold start", kind=classify(error), reason=str(error))
                journal.put(("failure", key, "cold start", ""), failure.model_dump(mode="json"))
            else:
                journal.put(("machine", "cold start", key, number), machine)
                journal.put(("cold start", key, number), found)
                longest_s = max(longest_s, plan.clock() - began)
    plan.progress("cold start", 1, 1, "")


def _find_meter(plan: Plan) -> Meter | None:
    on_gpu = not all(runs_on_processor(entry) for entry in plan.entries)
    found = open_meter(on_gpu=on_gpu)
    told = {"source": None, "reason": found} if isinstance(found, str) else {"source": found.source, "reason": None}
    plan.journal.once(("energy",), lambda: told)
    return None if isinstance(found, str) else found


def _make_rounds(launch: _Launch, load: Load, share: int) -> None:
    """Make a launch's share of rounds at a load; what the machine disturbed is made anew, so often as is allowed."""
    journal = launch.plan.journal
    first = load == launch.plan.loads[0]
    while True:
        kept = [found for found in kept_rounds(journal, load) if found.launch == launch.number]
        if len(kept) < share:
            began = launch.plan.clock()
            # The first load is what claims are about: it may take the time of everything but the report, and its first
            # round of that too, since without one there is no report.
            part = LATENCY if not first else COMPRESSED if all_rounds(journal, load) else REPORT
            if not launch.plan.has(_expected_s(launch, load), part) or not _make_round(launch, load):
                return
            launch.firsts_s.setdefault(load, launch.plan.clock() - began)
            continue
        repeats = len(journal.parts("dropped", str(load)))
        # Written down once: rounds that a budget adds later must not change it.
        judge = partial(disturbances, kept)
        reasons = journal.once(("judged", str(load), launch.number, repeats), judge)
        again_s = sum(found.seconds for found in kept)
        if not reasons or repeats >= launch.plan.config.max_repeats or not launch.plan.has(again_s, LATENCY):
            return
        drop_rounds(journal, load, kept, reason="; ".join(reasons))


def _expected_s(launch: _Launch, load: Load) -> float:
    """Return about how long the next round takes: as long as the last one, or by tokens as long as another load's."""
    known = all_rounds(launch.plan.journal, load)
    if known:
        return known[-1].seconds
    if not launch.firsts_s:
        return 0.0
    nearest = min(launch.firsts_s, key=lambda other: abs(log(_tokens(load) / _tokens(other))))
    # Turns have a least length, so fewer tokens do not make a round shorter in proportion.
    return launch.firsts_s[nearest] * max(_tokens(load) / _tokens(nearest), 0.5)


def _tokens(load: Load) -> int:
    return load.batch_size * (load.num_tokens or _OWN_TOKENS)


def _launch_again(plan: Plan, number: int, meter: Meter | None, *, share: int) -> bool:
    """Start all processes once more for the loads whose intervals are widest; tell whether one was too wide.

    Only how wide an interval is decides, not where it is, so it still holds the truth as often as it says.
    """
    chosen = plan.journal.once(("more", number), lambda: {"rounds": share, "loads": _widest(plan)})["loads"]
    with plan.team(plan.racers()) as team:
        for load in plan.loads:
            if str(load) in chosen:
                _make_rounds(_Launch(plan, team, number, meter), load, share)
    return bool(chosen)


def _widest(plan: Plan) -> list[str]:
    widths = {str(load): _width(plan, load) for load in plan.loads}
    wide = [load for load, width in widths.items() if width > _WIDE]
    return sorted(wide, key=lambda load: -widths[load])[:_MOST_AGAIN]


def _spend(launch: _Launch, *, kept_s: float) -> None:
    """Make rounds where the intervals are widest until only `kept_s` seconds are left for later launches."""
    plan = launch.plan
    assert plan.deadline is not None
    while True:
        rounds = {str(load): all_rounds(plan.journal, load) for load in plan.loads}
        costs_s = {load: own[-1].seconds for load, own in rounds.items() if own}
        widths = {str(load): _width(plan, load) for load in plan.loads if str(load) in costs_s}
        chosen = next_load(widths, costs_s, left_s=plan.deadline.left_s(LATENCY) - kept_s)
        if chosen is None:
            return
        if not _make_round(launch, next(load for load in plan.loads if str(load) == chosen)):
            return


def _width(plan: Plan, load: Load) -> float:
    """Return half the width of a load's widest interval / its value: of the ratios, or of the only row's own times."""
    rounds = kept_rounds(plan.journal, load)
    keys = [
        key
        for key in plan.everybody()
        if not is_lost(plan.journal, key, load) and plan.journal.get("failure", key, "load", "") is None
    ]
    if not keys:
        return 0.0
    base = plan.baseline if plan.baseline in keys else keys[0]
    rng = np.random.default_rng([plan.seed, *load_seed(load), len(rounds)])
    widths = []
    for key in keys:
        both = [found for found in rounds if base in found.calls_ms and key in found.calls_ms]
        if len(both) < 2:
            return inf
        if key != base:
            sides = ([found.calls_ms[name] for found in both] for name in (base, key))
            launches = [found.launch for found in both]
            estimate = ratio_interval(*sides, rng=rng, resamples=_ROUGH, launches=launches)
        elif len(keys) == 1:
            estimate = median_interval(calls_of(both, key), rng=rng, resamples=_ROUGH)
        else:
            continue
        widths.append((estimate.high - estimate.low) / 2 / estimate.value)
    return max(widths)


def _make_round(launch: _Launch, load: Load) -> bool:
    """Let everybody who still can take a turn, and write the round down; tell whether anybody could."""
    plan, number = launch.plan, sum(found.launch == launch.number for found in all_rounds(launch.plan.journal, load))
    _tell(plan, f"{load}, round {len(kept_rounds(plan.journal, load)) + 1}")
    able = [name for name in launch.team.names if not is_lost(plan.journal, name, load)]
    launch.team.start(able)
    racing = [name for name in able if name == PRODUCT or _warm(launch, load, name)]
    if racing == [PRODUCT]:
        return False
    kept = (found for found in kept_rounds(plan.journal, load) if found.launch == launch.number)
    if any(found.peaks for found in kept):  # its best turn counts, and one in each launch and load is enough for that
        racing = [name for name in racing if name != PRODUCT]
    before, start = noise.read_counters(), plan.clock()
    turns: dict[str, dict[str, Any]] = {}
    peaks: dict[str, float] = {}
    for name in order_of(racing, seed=plan.seed, load=load, launch=launch.number, number=number):
        if name == PRODUCT:
            peaks = launch.team.ask(name, {"do": "product"}, read=read_rates, stage="latency", where=str(load)) or {}
            continue
        turn = _take_turn(launch, load, name)
        if turn is not None:
            turns[name] = turn
    if not turns:
        return False
    found = Round(
        launch=launch.number,
        number=number,
        calls_ms={name: turn["latencies_ms"] for name, turn in turns.items()},
        cpu_s={name: turn["cpu_s"] for name, turn in turns.items()},
        wall_s={name: turn["wall_s"] for name, turn in turns.items()},
        joules={name: turn["joules"] for name, turn in turns.items() if "joules" in turn},
        peaks=peaks,
        seconds=plan.clock() - start,
        machine=noise.read_counters().since(before),
    )
    store_round(plan.journal, load, found)
    return True


def _warm(launch: _Launch, load: Load, name: str) -> bool:
    """Warm a process up for a load, once; tell whether it can run there."""
    plan = launch.plan
    if str(load) not in launch.team.done(name):
        command = {"do": "warm", "load": load.model_dump(), "max_s": plan.config.warm_up_s}
        reply = launch.team.ask(name, command, read=read_warm, stage="warm-up", where=str(load))
        if reply is None:
            return False
        plan.journal.put(("warm", str(load), launch.number, name), reply)
        launch.team.done(name).add(str(load))
    return True


def _take_turn(launch: _Launch, load: Load, name: str) -> dict[str, Any] | None:
    config, meter = launch.plan.config, launch.meter
    block = {"do": "block", "load": load.model_dump(), "seconds": config.block_s, "min_calls": MIN_CALLS}
    joules = meter.read() if meter else 0.0
    turn = launch.team.ask(name, block, read=read_block, stage="latency", where=str(load))
    return turn | {"joules": meter.read() - joules} if turn is not None and meter else turn


def _read_memory(launch: _Launch) -> None:
    """Ask everybody for its memory, once it has run all loads in this life."""
    journal = launch.plan.journal
    for key in launch.plan.everybody():
        if journal.get("memory", key, launch.number) is not None:
            continue
        for load in launch.plan.loads:
            if launch.plan.deadline is not None and not kept_rounds(journal, load):
                continue  # there was no time for it
            if str(load) not in launch.team.done(key) and not is_lost(journal, key, load):
                command = {"do": "warm", "load": load.model_dump(), "max_s": 0.0}
                launch.team.ask(key, command, read=read_warm, stage="memory")
        read = partial(_memory, key, container_limit())
        found = launch.team.ask(key, {"do": "memory"}, read=read, stage="memory")
        if found is not None:
            journal.put(("memory", key, launch.number), found)


def _memory(key: str, limit_bytes: int | None, reply: Reply) -> dict[str, Any]:
    return Memory.model_validate({"key": key, "limit_bytes": limit_bytes, **reply}).model_dump(mode="json")


def _tell(plan: Plan, note: str) -> None:
    rounds = [all_rounds(plan.journal, load) for load in plan.loads]
    if plan.deadline is not None:
        left_s = max(0.0, plan.deadline.left_s(LATENCY))
        whole_s = round(plan.config.budget_s or 0.0)
        plan.progress(_STAGE, min(whole_s - 1, whole_s - round(left_s)), whole_s, note)
        return
    dropped = sum(len(value["rounds"]) for value in plan.journal.parts("dropped").values())
    wanted = sum(wanted_rounds(plan.journal, load, config=plan.config) for load in plan.loads)
    plan.progress(_STAGE, sum(map(len, rounds)), wanted + dropped, note)
