"""Take turns: every contestant in a process of its own, and while one runs the others stand still.

An onnxruntime session's threads spin after a call for the next one, which slows a neighbour down
(microsoft/onnxruntime#17011: 77 ms became 160). Serving wants that spinning, so it stays on, and the processes that
wait for their turn are stopped by the system. Speeds are compared within rounds, so a machine that slows down slows
all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.progress import Progress, silent
from potstill.timing.disturbance import Watch
from potstill.timing.ratio import Estimate, ratio_interval, with_interval
from potstill.timing.worker_loop import Command, Message
from potstill.timing.workers import CommandFailed, Worker, python_module, worker_pool

Cell = tuple[int, int]
"""Batch size and tokens per text."""
GRID: tuple[Cell, ...] = ((1, 16), (1, 128), (8, 128), (32, 32))
"""What a small box is asked: a short and a long text alone, and two batches of about equal tokens."""
_WARM_UP_CALLS = 3


@dataclass(frozen=True, slots=True)
class RaceEntry:
    """A contestant: the command of its process (it answers as `worker_loop` does), and the first message it gets."""

    command: tuple[str, ...]
    load: Command


@dataclass(frozen=True, slots=True)
class Race:
    """The times of a race, and what spoils them.

    Attributes:
        cells: those that were asked for.
        rounds: contestant -> cell -> per round the latencies in milliseconds; a cell that failed is left out.
        failures: contestant -> why it is missing, in part or as a whole; the first reason if there are several.
        disturbances: cell -> what took the machine's time meanwhile, though the cell was measured again: its times,
            and every figure made of them, must not be shown as if they were the contestants'. Empty on a calm machine.
    """

    cells: tuple[Cell, ...]
    rounds: dict[str, dict[Cell, list[NDArray[np.float64]]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    disturbances: dict[Cell, list[str]] = field(default_factory=dict)

    def disturbed(self) -> str | None:
        """Return why the race as a whole must not be believed, as part of a sentence; None if nothing disturbed it."""
        return next((f"{reasons[0]} (at {cell[0]}x{cell[1]})" for cell, reasons in self.disturbances.items()), None)

    def median_ms(self, name: str, cell: Cell) -> float | None:
        """Return the median latency in milliseconds, or None where it failed."""
        rounds = self.rounds.get(name, {}).get(cell)
        return float(np.median(np.concatenate(rounds))) if rounds else None

    def ratio(self, baseline: str, name: str, cell: Cell, *, seed: int = 0) -> Estimate:
        """Return how many times as fast as `baseline` a contestant is in one cell."""
        # Seeded by cell, so that an interval does not depend on which others were computed before.
        return ratio_interval(
            self.rounds[baseline][cell], self.rounds[name][cell], rng=np.random.default_rng([seed, *cell])
        )

    def overall(self, baseline: str, name: str, *, seed: int = 0, resamples: int = 2000) -> Estimate:
        """Return the geometric mean of the ratios over all cells that both ran, with a bootstrap over rounds.

        Raises:
            ValueError: if there is no such cell.
        """
        cells = [cell for cell in self.cells if cell in self.rounds[baseline] and cell in self.rounds[name]]
        if not cells:
            raise ValueError(f"{baseline} and {name} ran no cell both")
        logs = np.array([self._log_ratios(baseline, name, cell) for cell in cells])
        # Each cell's rounds are drawn on their own: those of two cells ran one after the other and are not paired.
        drawn = np.random.default_rng(seed).integers(logs.shape[1], size=(resamples, *logs.shape))
        resampled = np.median(np.take_along_axis(logs[None], drawn, axis=2), axis=2).mean(axis=1)
        # The mean of logarithms: twice as fast in one cell and half as fast in another is 1 over both.
        value, rounds = float(np.exp(np.median(logs, axis=1).mean())), logs.shape[1]
        # Plain percentiles hold the truth in 98 % of A/A races of 4 cells and 5 rounds: so few medians vary
        # too much in a bootstrap, which makes up for it. Not so with one cell (88 % of 7 rounds) or 3 rounds (93 %).
        units = rounds if len(cells) == 1 or rounds <= 3 else None
        return with_interval(value, np.exp(resampled), units=units)

    def _log_ratios(self, baseline: str, name: str, cell: Cell) -> list[float]:
        pairs = zip(self.rounds[baseline][cell], self.rounds[name][cell], strict=True)
        return [float(np.log(np.median(slow) / np.median(fast))) for slow, fast in pairs]


def session(file: Path, *, threads: int, disabled_optimizers: Sequence[str] = (), vocab_size: int) -> RaceEntry:
    """Return a contestant that runs one ONNX file in the session that would serve it."""
    load = {
        "file": str(file),
        "threads": threads,
        "disabled_optimizers": list(disabled_optimizers),
        "vocab_size": vocab_size,
    }
    return RaceEntry(python_module("potstill.timing.session"), load)


def race(
    contestants: Mapping[str, RaceEntry],
    cells: Sequence[Cell] = GRID,
    *,
    rounds: int = 7,
    block_s: float = 0.2,
    seed: int = 0,
    max_repeats: int = 2,
    progress: Progress = silent,
) -> Race:
    """Time every contestant in every cell, in random turns; a cell that the machine disturbed is timed again.

    Args:
        contestants: name -> what runs.
        cells: the sizes of input.
        rounds: turns of each contestant per cell, at least 2.
        block_s: how long a turn lasts at least, in seconds; at least 2 calls.
        seed: of the turns and the inputs.
        max_repeats: how often a cell may be timed again; what is disturbed to the last is in `Race.disturbances`.
        progress: called with stage, steps done, steps in all and a note.
    """
    result, rng, log = Race(tuple(cells)), np.random.default_rng(seed), _FailureLog()
    setup = {name: [{"do": "load", "seed": seed} | dict(each.load)] for name, each in contestants.items()}
    with worker_pool(setup, launch=lambda name: Worker(contestants[name].command), log=log) as pool:
        pool.start(pool.names)
        for number, cell in enumerate(cells):
            size, where = {"do": "block", "batch_size": cell[0], "num_tokens": cell[1]}, f"{cell[0]}x{cell[1]}"
            ask = partial(pool.ask, read=_read_latencies, stage="race", where=where)
            warm_up = size | {"seconds": 0, "min_calls": _WARM_UP_CALLS}
            # For every cell again: engines allocate, and some choose kernels, by the shape of their input.
            racing = [name for name in pool.names if ask(name, warm_up) is not None]
            reasons: list[str] = []
            for _ in range(max_repeats + 1):
                note = where + (f", again: {'; '.join(reasons)}" if reasons else "")
                # Disturbed rounds are dropped for all contestants at once, so that what is left is paired.
                times: dict[str, list[NDArray[np.float64]]] = {name: [] for name in racing}
                with Watch() as watch:
                    for turn in range(rounds):
                        progress("time in turns", number * rounds + turn, len(cells) * rounds, note)
                        # A new random order each round: nobody always runs in the caches that the same neighbour left.
                        for name in [racing[position] for position in rng.permutation(len(racing))]:
                            latencies_ms = ask(name, size | {"seconds": block_s, "min_calls": 2})
                            if latencies_ms is not None:
                                times[name].append(latencies_ms)
                racing = [name for name in racing if not log.has_failed(name, "race", where)]
                reasons = watch.reasons()
                if not reasons:
                    break
            if reasons:
                result.disturbances[cell] = reasons
            for name in racing:
                result.rounds.setdefault(name, {})[cell] = times[name]
    for (name, stage, where), error in log.errors.items():
        result.failures.setdefault(name, str(error) if stage == "load" else f"{where}: {error}")
    progress("time in turns", 1, 1, "")
    return result


class _FailureLog:
    """The failures of one race, in the order in which they happened."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str, str], CommandFailed] = {}

    def has_failed(self, name: str, stage: str, where: str) -> bool:
        return (name, stage, where) in self.errors or (name, "load", "") in self.errors

    def failed(self, name: str, stage: str, where: str, error: CommandFailed) -> None:
        self.errors[name, stage, where] = error

    def loaded(self, name: str, reply: Message) -> None:
        """Ignore the reply: a race needs only the times."""


def _read_latencies(reply: Message) -> NDArray[np.float64]:
    return np.asarray(reply["latencies_ms"], dtype=np.float64)
