"""How many texts one process answers in a second, asked by several at once; and what more threads gain."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from potstill import machine
from potstill.bench.measuring.budget import (
    MIN_CALLS,
    SCALING,
    SCALING_ROUNDS,
    SCALING_S,
    THROUGHPUT,
    THROUGHPUT_S,
    THROUGHPUT_SLOW_S,
    THROUGHPUT_SLOW_TURNS,
    THROUGHPUT_TURNS,
    split_rounds,
    thread_counts,
)
from potstill.bench.measuring.noise import watched
from potstill.bench.measuring.plan import Plan
from potstill.bench.measuring.replies import Reply, read_concurrent, read_times, read_warm
from potstill.bench.measuring.rounds import order_of
from potstill.bench.measuring.team import Stage, Team
from potstill.bench.report_schema import Load
from potstill.config import BenchConfig

if TYPE_CHECKING:
    from potstill.bench.subjects import Entry

_THROUGHPUT, _SCALING = "measure throughput", "scale threads"
# Every process has run for long when it comes to this; a second shows whether it has settled.
_WARM_S = 1.0
# Between a row's key and the number of threads, where each has a process of its own.
_THREADS = "#threads="


def throughput_loads(config: BenchConfig) -> list[Load]:
    """Return what throughput is measured at."""
    sizes = dict.fromkeys(config.throughput_batch_sizes)
    return [Load(batch_size=size, num_tokens=config.throughput_tokens) for size in sizes]


def scaling_load(config: BenchConfig) -> Load:
    """Return what threads are compared at: one text of the grid's greatest length."""
    return Load(batch_size=1, num_tokens=max(config.num_tokens))


def runs_on_processor(entry: "Entry") -> bool:
    """Tell whether a row computes on the processor, and not on a GPU."""
    return "-cpu" in entry.runner


def split_threads(name: str) -> tuple[str, int | None]:
    """Return the key of the row that a process belongs to, and its number of threads where that is a name of one."""
    key, found, threads = name.partition(_THREADS)
    return (key, int(threads)) if found else (name, None)


def place(load: Load, callers: int) -> str:
    """Return what a failure calls a load under several callers."""
    return f"{load}, {callers} caller" + ("s" if callers > 1 else "")


def is_enough(turns: Collection[Mapping[str, Any]]) -> bool:
    """Tell whether a load at a number of callers has its turns: fewer of those that take long.

    A failed row makes a turn shorter, but who is measured at all is measured at least twice.
    """
    seconds = sum(reply["seconds"] for turn in turns for reply in turn.values())
    return len(turns) >= (THROUGHPUT_SLOW_TURNS if seconds > THROUGHPUT_SLOW_S else THROUGHPUT_TURNS)


def throughput_turns(plan: Plan, team: Team, *, launch: int, launches: int) -> None:
    """Let all take this launch's share of the turns at every load and number of callers.

    A turn that the machine disturbed is made anew, so often as is allowed.
    """
    cells = [
        (load, callers) for load in throughput_loads(plan.config) for callers in dict.fromkeys(plan.config.callers)
    ]
    shares = split_rounds(THROUGHPUT_TURNS, launches)
    turns = range(sum(shares[:launch]), sum(shares[: launch + 1]))
    for number, (load, callers) in enumerate(cells):
        for turn in turns:
            done = plan.journal.parts("throughput", str(load), callers)
            if (turn,) in done or is_enough(done.values()):
                continue
            took_s = max((sum(reply["seconds"] for reply in made.values()) for made in done.values()), default=0.0)
            if not plan.has(took_s, THROUGHPUT):
                return
            step, total = launch * len(cells) + number, launches * len(cells)
            plan.progress(_THROUGHPUT, step, total, place(load, callers))
            found, counted = watched(
                partial(_concurrent_turn, plan, team, load, callers=callers, turn=turn),
                repeats=plan.config.max_repeats,
            )
            plan.journal.put(("machine", "throughput", str(load), callers, turn), counted)
            plan.journal.put(("throughput", str(load), callers, turn), found)
    if cells and launch + 1 == launches:
        plan.progress(_THROUGHPUT, 1, 1, "")


def measure_scaling(plan: Plan) -> None:
    """Compare 1, 2, 4 and so on threads of each row that runs on the processor, each in a process of its own."""
    counts, load = thread_counts(machine.available_cores()), scaling_load(plan.config)
    rows = [entry for entry in plan.entries if runs_on_processor(entry)]
    if not plan.config.thread_scaling or len(counts) < 2:
        return
    longest_s = 0.0
    for number, entry in enumerate(rows):
        greetings = {f"{entry.key}{_THREADS}{count}": plan.greetings(entry, threads=count) for count in counts}
        with plan.team(greetings) as team:
            for turn in range(SCALING_ROUNDS):
                if plan.journal.get("scaling", entry.key, turn) is not None:
                    continue
                if not plan.has(longest_s, SCALING):
                    return
                began = plan.clock()
                plan.progress(_SCALING, number * SCALING_ROUNDS + turn, len(rows) * SCALING_ROUNDS, entry.key)
                found, counted = watched(
                    partial(_scaling_turn, plan, team, load, turn=turn), repeats=plan.config.max_repeats
                )
                plan.journal.put(("machine", "scaling", entry.key, turn), counted)
                plan.journal.put(("scaling", entry.key, turn), found)
                longest_s = max(longest_s, plan.clock() - began)
    plan.progress(_SCALING, 1, 1, "")


def _concurrent_turn(plan: Plan, team: Team, load: Load, *, callers: int, turn: int) -> dict[str, Any]:
    """Return, by row, the texts answered, the seconds it took, and each call's latency."""
    where, found = place(load, callers), {}
    command = {"do": "concurrent", "load": load.model_dump(), "callers": callers, "seconds": THROUGHPUT_S}
    team.start(team.names)
    for name in order_of(team.names, seed=plan.seed, load=load, launch=callers, number=turn):
        if _warm(team, name, load, stage="throughput", where=where):
            reply = team.ask(name, command, read=read_concurrent, stage="throughput", where=where)
            if reply is not None:
                found[name] = reply
    return found


def _scaling_turn(plan: Plan, team: Team, load: Load, *, turn: int) -> dict[str, Any]:
    """Return, by number of threads, the latencies of a block in milliseconds."""
    found = {}
    command = {"do": "block", "load": load.model_dump(), "seconds": SCALING_S, "min_calls": MIN_CALLS}
    team.start(team.names)
    for name in order_of(team.names, seed=plan.seed, load=load, launch=0, number=turn):
        if _warm(team, name, load, stage="scaling", where=None):
            calls = team.ask(name, command, read=_read_calls, stage="scaling")
            if calls is not None:
                found[str(split_threads(name)[1])] = calls
    return found


def _warm(team: Team, name: str, load: Load, *, stage: Stage, where: str | None) -> bool:
    if str(load) in team.done(name):
        return True
    command = {"do": "warm", "load": load.model_dump(), "max_s": _WARM_S}
    if team.ask(name, command, read=read_warm, stage=stage, where=where) is None:
        return False
    team.done(name).add(str(load))
    return True


def _read_calls(reply: Reply) -> list[float]:
    return read_times(reply["latencies_ms"])
