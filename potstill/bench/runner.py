"""Take turns: warm every cell up, then give each model its block per round, in random order.

Models that are measured one after the other also measure what the machine did meanwhile; models that alternate
share it. Random order keeps a neighbour's warm caches from favouring one of them (google-benchmark's random
interleaving cuts the spread between runs by about 40 %).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.bench.workload import Cell
from potstill.data import Examples
from potstill.progress import Progress, silent
from potstill.timing.client import Asks, CommandFailed, WorkerDied

# Long enough for caches, memory arenas and clock speeds to settle at the lengths of BERT.
_WARM_UP_CALLS = 5
# Texts per message: enough to batch by length, little enough for a lively progress bar and a fair time limit.
_TEXTS_PER_MESSAGE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long a measurement takes."""

    rounds: int
    block_s: float
    min_calls: int
    """Calls per block at least."""


@dataclass(slots=True)
class Team:
    """The workers that still work, and what happened to the others."""

    workers: dict[str, Asks]
    failures: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, name: str, command: Mapping[str, Any], *, stage: str, cells: Sequence[Cell] = ()) -> Any:
        """Return a worker's answer, or None after writing down its failure; a dead worker leaves the team.

        `cells` are what is lost with it: the one at hand, and if it died those after it.
        """
        try:
            return self.workers[name].ask(command)
        except CommandFailed as error:
            died = isinstance(error, WorkerDied)
            lost = cells if died else cells[:1]
            self.failures.append(
                {"model": name, "stage": stage, "cells": [str(cell) for cell in lost], "died": died,
                 "reason": str(error)}
            )  # fmt: skip
            if died:
                del self.workers[name]
            return None


Rounds = list[NDArray[np.float64]]
Timings = dict[tuple[str, Cell], Rounds]


def load(team: Team, requests: Mapping[str, Mapping[str, Any]], *, progress: Progress = silent) -> dict[str, float]:
    """Load every model, one after the other; return the milliseconds each took. Who cannot load leaves the team."""
    load_ms = {}
    for done, (name, request) in enumerate(requests.items()):
        progress("load the models", done, len(requests), name)
        reply = team.ask(name, {"do": "load"} | dict(request), stage="load")
        if reply is None:
            team.workers.pop(name, None)
        else:
            load_ms[name] = float(reply["load_ms"])
    progress("load the models", len(requests), len(requests), "")
    return load_ms


def measure(
    team: Team, cells: Sequence[Cell], *, plan: Plan, rng: np.random.Generator, progress: Progress = silent
) -> Timings:
    """Return, per model and cell, the latencies in milliseconds of each round's calls.

    A model that fails in a cell has no entry for it; the reason is in `team.failures`.
    """
    timings: Timings = {}
    total = len(cells) * (plan.rounds + 1)
    for number, cell in enumerate(cells):
        lost, done = cells[number:], number * (plan.rounds + 1)
        progress("measure latency", done, total, f"{cell}: warm-up")
        warm_up = _block(cell, seconds=plan.block_s, min_calls=_WARM_UP_CALLS)
        names = [name for name in list(team.workers) if team.ask(name, warm_up, stage="warm-up", cells=lost)]
        rounds: dict[str, Rounds] = {name: [] for name in names}
        turn = _block(cell, seconds=plan.block_s, min_calls=plan.min_calls)
        for round_number in range(plan.rounds):
            progress("measure latency", done + 1 + round_number, total, f"{cell}: round {round_number + 1}")
            for position in rng.permutation(len(names)):
                name = names[position]
                reply = team.ask(name, turn, stage="latency", cells=lost) if name in rounds else None
                if reply is None:
                    rounds.pop(name, None)
                else:
                    rounds[name].append(np.asarray(reply["latencies_ms"], dtype=np.float64))
        timings |= {(name, cell): calls for name, calls in rounds.items()}
    progress("measure latency", total, total, "")
    return timings


def read_memory(team: Team) -> dict[str, dict[str, Any]]:
    """Return what memory each worker holds, by part."""
    found = {name: team.ask(name, {"do": "memory"}, stage="memory") for name in list(team.workers)}
    return {name: reply for name, reply in found.items() if reply is not None}


def score(team: Team, examples: Examples, *, progress: Progress = silent) -> dict[str, NDArray[np.float64]]:
    """Return each model's logits of all examples, shape (examples, labels); models answer one after the other."""
    logits = {}
    names = list(team.workers)
    total = len(examples) * len(names)
    for number, name in enumerate(names):
        parts = []
        for start in range(0, len(examples), _TEXTS_PER_MESSAGE):
            progress("score quality", number * len(examples) + start, total, name)
            texts = examples.texts[start : start + _TEXTS_PER_MESSAGE]
            reply = team.ask(name, {"do": "score", "texts": texts}, stage="quality")
            if reply is None:
                break
            parts.append(np.asarray(reply["logits"], dtype=np.float64))
        else:
            logits[name] = np.concatenate(parts)
    progress("score quality", total, total, "")
    return logits


def _block(cell: Cell, *, seconds: float, min_calls: int) -> dict[str, Any]:
    return {
        "do": "block", "batch_size": cell.batch_size, "num_tokens": cell.num_tokens,
        "seconds": seconds, "min_calls": min_calls,
    }  # fmt: skip
