"""A second model that answers what the first one has answered, when nothing else is to do; only agreement is kept."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from potstill.errors import CheckError, UsageError
from potstill.serve.batching.queue import Job, Task
from potstill.serve.encoder import Encoder, RunRows
from potstill.serve.session import Stop
from potstill.serve.tasks.features import Features, Outputs
from potstill.tasks import FEATURE_EXTRACTION

# Answered requests that wait for the shadow; more are let go, the newest first.
_WAITING = 64
# How often a row is begun again after it had to make room.
_TRIES = 3
_PROBES = ["One text, and 2 numbers.", "Ein anderer Text: für Größe & Maß!", "a"]


@dataclass(slots=True, eq=False)
class _Case:
    """One answered request on its way through the shadow."""

    prepared: Features
    answers: list[Any]
    outputs: list[Outputs] = field(default_factory=list)
    tries: int = 0


class Shadow:
    """Takes what the primary has answered; gives way as soon as anything else is to run. Safe in any thread."""

    def __init__(
        self, pair: tuple[str, str], run: RunRows, *, max_length: int, on_compared: Callable[[bool], None]
    ) -> None:
        self.primary, self.name = pair
        self._run, self._max_length, self._on_compared = run, max_length, on_compared
        self._cases: deque[_Case] = deque()
        self._stops: set[Stop] = set()

    def offer(self, job: Job) -> None:
        """Take a request that was answered, if there is room."""
        prepared, answers = job.prepared, job.answers
        if job.model != self.primary or prepared is None or answers is None or len(self._cases) >= _WAITING:
            return
        fits = all(len(row["input_ids"]) <= self._max_length for row in prepared.rows)
        if prepared.rows and fits and any(decision(answer) is not None for answer in answers):
            self._cases.append(_Case(prepared, answers))

    def take(self) -> Task | None:
        """Return the next row's run, or None where there is none; `step_aside` ends it from now on."""
        try:
            case = self._cases.popleft()
        except IndexError:
            return None
        stop = Stop()
        self._stops.add(stop)
        return partial(self._step, case, stop)

    def step_aside(self) -> None:
        """End what runs: a request has come."""
        for stop in tuple(self._stops):
            stop.set()

    def _step(self, case: _Case, stop: Stop) -> None:
        """Run one row; only one, because a request that comes must not wait for more."""
        place = len(case.outputs)
        try:
            found = self._run([case.prepared.rows[place]], stop)[0]
        except CheckError:
            if not stop.is_set:
                raise
            case.tries += 1
            if case.tries < _TRIES:
                self._cases.append(case)
            return
        finally:
            self._stops.discard(stop)
        case.outputs.append(case.prepared.keep(place, found))
        if len(case.outputs) < len(case.prepared.rows):
            self._cases.appendleft(case)
            return
        for mine, other in zip(case.answers, case.prepared.decode(case.outputs), strict=True):
            self._on_compared(decision(mine) == decision(other))


def decision(answer: Any) -> Any:
    """Return what an answer decides, without its scores; None where it decides nothing (a vector, a bare tensor).

    That is the best label, the best word for each mask, all entities and where they stand, or the best span.
    """
    if isinstance(answer, dict):
        if "entity" in answer or "entity_group" in answer:
            return (answer.get("entity") or answer.get("entity_group"), answer["start"], answer["end"])
        for names in (("label",), ("token",), ("start", "end")):
            if all(name in answer for name in names) and "score" in answer:
                return tuple(answer[name] for name in names)
        return None
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        parts = [decision(part) for part in answer if isinstance(part, (dict, list))]
        if answer and (not parts or parts[0] is None):
            return None
        ranked = bool(answer) and isinstance(answer[0], dict) and not {"entity", "entity_group"} & answer[0].keys()
        return parts[0] if ranked else tuple(parts)
    return None


def check_pair(primary: Encoder, shadow: Encoder) -> None:
    """Refuse a pair whose answers cannot be compared.

    Raises:
        UsageError: if they differ in task, labels or tokens, or decide nothing.
    """
    first, second = primary.manifest, shadow.manifest
    if first.task != second.task or first.labels != second.labels:
        raise UsageError(
            f"the shadow answers {second.task} with {len(second.labels)} labels, the primary {first.task} with "
            f"{len(first.labels)}; a shadow has the same task and the same labels in the same order"
        )
    if first.task == FEATURE_EXTRACTION.name:
        raise UsageError("a shadow compares decisions, and vectors decide nothing")
    mine, other = (encoder.tokenizer.rows(_PROBES) for encoder in (primary, shadow))
    same = all(
        name in row and row[name].tolist() == values.tolist()
        for row, twin in zip(mine, other, strict=True)
        for name, values in twin.items()
    )
    if not same:
        raise UsageError("the shadow reads other tokens than the primary; a shadow has the same tokenizer and inputs")
