"""The journal of a bench: each measurement under a name, written as it is made, so that an interruption loses none.

`samples.jsonl` is a journal (`potstill.files.Journal`): its header says what is measured and with which settings, each
entry is `{"name": [...], "value": ...}`. Entries are not flushed one by one, which would disturb what is measured. Of
entries with the same name the last one counts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from potstill import files
from potstill.bench.budget import LEAST_ROUNDS
from potstill.bench.report_schema import Load
from potstill.bench.statistics import Rounds
from potstill.config import BenchConfig
from potstill.errors import OutputError
from potstill.timing import disturbance

FILE_NAME = "samples.jsonl"
SCHEMA = "potstill-samples/1"

Name: TypeAlias = tuple[str | int, ...]
Json: TypeAlias = Any


class Samples:
    """The measurements of a bench by name; made by `open_samples` or `read_samples`."""

    def __init__(self, journal: files.Journal) -> None:
        """Take the values that the journal holds.

        Raises:
            OutputError: if it is no journal of samples.
        """
        self._journal = journal
        self.file, self.head = journal.file, journal.header
        try:
            self._parts: dict[Name, Json] = {tuple(entry["name"]): entry["value"] for entry in journal.entries}
        except (KeyError, TypeError):
            raise OutputError(f"{self.file} is not a file of samples ({SCHEMA})") from None

    def once(self, name: Name, make: Callable[[], Json]) -> Json:
        """Return what is stored as `name`; if there is nothing, make it, store it and return it."""
        if name not in self._parts:
            self.put(name, make())
        return self._parts[name]

    def put(self, name: Name, value: Json) -> None:
        """Store plain JSON `value` as `name`, in the place of an earlier one.

        Raises:
            ValueError: if it is no JSON, such as NaN.
            OutputError: if the file is finished or was opened for reading.
        """
        # The value as JSON gives it back (lists for tuples), so that a resumed bench computes with the same.
        self._parts[name] = self._journal.append({"name": list(name), "value": value})["value"]

    def get(self, *name: str | int) -> Json:
        """Return what is stored as `name`, or None."""
        return self._parts.get(name)

    def parts(self, *prefix: str | int) -> dict[Name, Json]:
        """Return the values whose names begin with `prefix`, by the rest of the name, in the order first stored."""
        length = len(prefix)
        return {name[length:]: value for name, value in self._parts.items() if name[:length] == prefix}

    def finish(self) -> None:
        """Put everything on the disk and close the file, which may then be copied; what is stored can still be read."""
        self._journal.close()


def open_samples(folder: Path, *, head: Mapping[str, Json]) -> Samples:
    """Open a folder's samples to go on with them, or begin.

    Args:
        folder: is made if it is not there.
        head: what the measurements depend on: settings, seed, the hashes of all files. Plain JSON.

    Raises:
        OutputError: if the samples there are of other models or settings, damaged, or in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remedy = "go on with the same models, data and settings, or name another folder"
    return Samples(files.open_journal(folder / FILE_NAME, header={"schema": SCHEMA, **head}, remedy=remedy))


def read_samples(file: Path) -> Samples:
    """Read samples, such as those beside an old report; nothing can be added to them.

    Raises:
        OutputError: if the file is missing, damaged or holds no samples.
    """
    if not file.is_file():
        raise OutputError(f"{file} does not exist; a report's samples lie beside it as {FILE_NAME}")
    journal = files.read_journal(file)
    if journal.header.get("schema") != SCHEMA:
        raise OutputError(f"{file} is not a file of samples ({SCHEMA})")
    return Samples(journal)


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of every process at one load.

    Attributes:
        launch: which launch of the processes it belongs to.
        number: counts the rounds of that launch at that load, the dropped ones too.
        calls_ms: key -> latencies in milliseconds; those that failed are missing.
        cpu_s: key -> CPU seconds of its process in its turn.
        wall_s: key -> seconds of its turn.
        joules: key -> what the machine used in its turn, where it tells.
        peaks: number type -> operations per second of the bare product in its turn; empty where it had none.
        seconds: of the whole round, with the waking and the bookkeeping.
        machine: what the machine did meanwhile, as `disturbance.Counters.since` counts it.
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
    # The entry's name has both.
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


def undisturbed_rounds(journal: Samples, load: Load) -> tuple[list[Round], list[str]]:
    """Return the rounds of one load that a report is made of, and what disturbed them, if anything.

    Launches that the machine disturbed to the last are left out where the others are enough. That is decided by what
    the machine did and never by the times, so it favours no model.
    """
    kept = kept_rounds(journal, load)
    launches: dict[int, list[Round]] = {}
    for found in kept:
        launches.setdefault(found.launch, []).append(found)
    calm = [own for own in launches.values() if not disturbances(own)]
    # Of several launches two must be left: one alone does not show what a process keeps for life.
    enough = sum(map(len, calm)) >= LEAST_ROUNDS and len(calm) >= min(2, len(launches))
    # Once more of all together: a launch may have been too short to be judged alone.
    if enough and not disturbances(found for own in calm for found in own):
        return [found for own in calm for found in own], []
    return kept, disturbances(kept)


def disturbances(rounds: Iterable[Round]) -> list[str]:
    """Return what the machine did in these rounds that makes them doubtful, as parts of a sentence."""
    return disturbance.shares(found.machine for found in rounds).over_limit()


def wanted_rounds(journal: Samples, load: Load, *, config: BenchConfig) -> int:
    """Return how many rounds of a load must count: those of the settings, and what was added for a wide interval."""
    if config.budget_s is not None:
        return LEAST_ROUNDS
    added = [int(more["rounds"]) for more in journal.parts("more").values() if str(load) in more["loads"]]
    return config.rounds + sum(added)


def drop_rounds(journal: Samples, load: Load, rounds: Sequence[Round], *, reason: str) -> None:
    """Mark rounds of one launch as dropped: they stay in the journal and count no more."""
    numbers = [found.number for found in rounds]
    journal.put(("dropped", str(load), rounds[0].launch, numbers[0]), {"rounds": numbers, "reason": reason})


def calls_of(rounds: Sequence[Round], key: str) -> Rounds:
    """Return the calls of one configuration in those of the rounds that it took part in."""
    own = [found for found in rounds if key in found.calls_ms]
    return Rounds([found.calls_ms[key] for found in own], [found.launch for found in own])


def has_failed_at(journal: Samples, key: str, load: Load) -> bool:
    """Tell whether a configuration failed at a load, so that none of its rounds there counts."""
    return any(journal.get("failure", key, stage, str(load)) is not None for stage in ("warm-up", "latency"))
