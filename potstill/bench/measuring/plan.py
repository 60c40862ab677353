"""What a run measures, with what, and where it is written down."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from potstill.bench.measuring.budget import Deadline
from potstill.bench.measuring.rounds import AGAIN, PRODUCT
from potstill.bench.measuring.samples import Samples
from potstill.bench.measuring.team import Command, Launch, Team, open_team, start_worker
from potstill.bench.report_schema import Load
from potstill.config import BenchConfig
from potstill.progress import Progress, silent

if TYPE_CHECKING:
    from potstill.bench.subjects import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run.

    Attributes:
        entries: the rows.
        loads: what latency is measured at.
        baseline: the key of the row that runs against itself too.
        config: for how long, and what else.
        journal: gets everything that is measured.
        seed: of inputs and turns.
        texts: the data's own, for the loads that are not random tokens.
        progress: is told of each round.
        launch: starts a process.
        clock: seconds.
        deadline: by when all must be done; None where there is no budget.
    """

    entries: "Sequence[Entry]"
    loads: Sequence[Load]
    baseline: str
    config: BenchConfig
    journal: Samples
    seed: int
    texts: Sequence[Any] | None = None
    progress: Progress = silent
    launch: Launch = start_worker
    clock: Callable[[], float] = time.perf_counter
    deadline: Deadline | None = None

    def has(self, seconds: float, part: str) -> bool:
        """Tell whether a part still has so many seconds; it always has where there is no budget."""
        return self.deadline is None or seconds <= self.deadline.left_s(part)

    def greetings(self, entry: "Entry", *, threads: int | None = None, texts: bool = False) -> list[Command]:
        """Return what a row's process is told first: to load, with another number of threads, and the texts."""
        load = entry.load_command(seed=self.seed)
        first: list[Command] = [load if threads is None else load | {"threads": threads}]
        if texts and self.texts and any(load.kind != "grid" for load in self.loads):
            first.append({"do": "texts", "texts": list(self.texts)})
        return first

    def everybody(self) -> dict[str, list[Command]]:
        """Return the greetings of the rows and of the baseline's second process."""
        found = {entry.key: self.greetings(entry, texts=True) for entry in self.entries}
        if self.config.again and self.baseline in found:
            found[self.baseline + AGAIN] = found[self.baseline]
        return found

    def racers(self) -> dict[str, list[Command]]:
        """Return the greetings of all who take turns: `everybody`, and on a processor the bare product."""
        cpu = [entry for entry in self.entries if entry.runner.endswith("-cpu")]
        if not self.config.peak or not cpu:
            return self.everybody()
        return self.everybody() | {PRODUCT: [{"do": "products", "threads": cpu[0].threads}]}

    def team(self, greetings: Mapping[str, Sequence[Command]]) -> AbstractContextManager[Team]:
        """Have processes for a block, by what each is told first."""
        return open_team(greetings, journal=self.journal, launch=self.launch, timeout_s=self.config.timeout_s)
