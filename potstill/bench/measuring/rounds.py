"""The rounds of a run as its journal holds them: their names, their order of turns, and which of them count."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import numpy as np

from potstill.bench.measuring import noise
from potstill.bench.measuring.budget import LEAST_ROUNDS
from potstill.bench.measuring.samples import Samples
from potstill.bench.measuring.stats import Rounds
from potstill.bench.report_schema import Load, LoadKind
from potstill.config import BenchConfig

# A second process of the baseline takes part under this name: what differs between the two is noise.
AGAIN = "#again"
# The bare product takes part under this name: what the machine can do while the rows run.
PRODUCT = "#product"
_ORDER = 1  # keeps this seeded generator apart from those of the intervals


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of everybody at one load.

    Attributes:
        launch: which launch of the processes it belongs to.
        number: counts the rounds of that launch at that load, the dropped ones too.
        calls_ms: key -> latencies in milliseconds; who failed is missing.
        cpu_s: key -> CPU seconds of its process in its turn.
        wall_s: key -> seconds of its turn.
        joules: key -> what the machine used in its turn, where it tells.
        peaks: number type -> operations per second of the bare product in its turn; empty where it had none.
        seconds: of the whole round, with the waking and the bookkeeping.
        machine: what the machine did meanwhile, as `noise.Counters.since` counts it.
    """

    launch: int
    number: int
    calls_ms: dict[str, list[float]]
    cpu_s: dict[str, float]
    wall_s: dict[str, float]
    joules: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    machine: dict[str, float] = field(default_factory=dict)


def store_round(journal: Samples, load: Load, found: Round) -> None:
    """Write a round down."""
    value = asdict(found)
    del value["launch"], value["number"]
    journal.put(("round", str(load), found.launch, found.number), value)


def all_rounds(journal: Samples, load: Load | None = None) -> list[Round]:
    """Return the rounds of one load, or of all, in the order in which they ran; the dropped ones too."""
    named = journal.parts("round") if load is None else journal.parts("round", str(load))
    return [Round(launch=int(name[-2]), number=int(name[-1]), **value) for name, value in named.items()]


def kept_rounds(journal: Samples, load: Load) -> list[Round]:
    """Return the rounds of one load that count, by launch and number."""
    dropped = journal.parts("dropped", str(load))
    gone = {(name[0], number) for name, value in dropped.items() for number in value["rounds"]}
    kept = [found for found in all_rounds(journal, load) if (found.launch, found.number) not in gone]
    return sorted(kept, key=lambda found: (found.launch, found.number))


def calm_rounds(journal: Samples, load: Load) -> tuple[list[Round], list[str]]:
    """Return the rounds of one load that a report is made of, and what disturbed them, if anything.

    Launches that the machine disturbed to the last are left out where the others are enough. That is decided by what
    the machine did and never by the times, so it favours nobody.
    """
    kept = kept_rounds(journal, load)
    launches: dict[int, list[Round]] = {}
    for found in kept:
        launches.setdefault(found.launch, []).append(found)
    calm = [own for own in launches.values() if not disturbances(own)]
    enough = sum(map(len, calm)) >= LEAST_ROUNDS and len(calm) >= min(2, len(launches))
    if enough and not disturbances(found for own in calm for found in own):
        return [found for own in calm for found in own], []
    return kept, disturbances(kept)


def disturbances(rounds: Iterable[Round]) -> list[str]:
    """Return what the machine did in these rounds that makes them doubtful, as parts of a sentence."""
    return noise.shares(found.machine for found in rounds).over_limit()


def wanted_rounds(journal: Samples, load: Load, *, config: BenchConfig) -> int:
    """Return how many rounds of a load must count: those of the settings, and what was added for a wide interval."""
    if config.budget_s is not None:
        return LEAST_ROUNDS
    added = [int(more["rounds"]) for more in journal.parts("more").values() if str(load) in more["loads"]]
    return config.rounds + sum(added)


def drop_rounds(journal: Samples, load: Load, rounds: Sequence[Round], *, reason: str) -> None:
    """Let some rounds of one launch count no more."""
    numbers = [found.number for found in rounds]
    journal.put(("dropped", str(load), rounds[0].launch, numbers[0]), {"rounds": numbers, "reason": reason})


def calls_of(rounds: Sequence[Round], key: str) -> Rounds:
    """Return one row's calls in those of the rounds that it took part in."""
    own = [found for found in rounds if key in found.calls_ms]
    return Rounds([found.calls_ms[key] for found in own], [found.launch for found in own])


def load_seed(load: Load) -> list[int]:
    """Return what makes a seeded generator one of this load."""
    return [get_args(LoadKind).index(load.kind), load.batch_size, load.num_tokens or 0]


def order_of(keys: Sequence[str], *, seed: int, load: Load, launch: int, number: int) -> list[str]:
    """Return whose turn comes when: random, but the same for the same round, resumed or not."""
    rng = np.random.default_rng([seed, _ORDER, *load_seed(load), launch, number])
    return [keys[position] for position in rng.permutation(len(keys))]


def is_lost(journal: Samples, key: str, load: Load) -> bool:
    """Tell whether a row failed at a load, so that none of its rounds there counts."""
    return any(journal.get("failure", key, stage, str(load)) is not None for stage in ("warm-up", "latency"))


def failures(journal: Samples) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return everything that failed, by key, stage and place."""
    return journal.parts("failure")
