"""Let a second model answer what the first has answered while nothing else is to do, and count where they agree."""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from potstill.errors import CheckError, UsageError
from potstill.serve.batching.queue import QueuedRequest
from potstill.serve.encoder import Encoder, RunRows
from potstill.serve.session import Stop
from potstill.serve.tasks import Features, Outputs

# Answered requests that wait for the shadow; more are let go, the newest first.
_MOST_WAITING = 64
# How often a row is begun again after it had to make room.
_TRIES = 3
_PROBES = ["One text, and 2 numbers.", "Ein anderer Text: für Größe & Maß!", "a"]


@dataclass(slots=True, eq=False)
class _Case:
    """One answered request on its way through the shadow."""

    features: Features
    decide: Callable[[Any], Hashable]
    answers: list[Any]
    outputs: list[Outputs] = field(default_factory=list)
    tries: int = 0


class ShadowComparison:
    """The requests that a shadow model is to answer again; it gives way as soon as anything else is to run.

    Safe in any thread without a lock: `offer`, `next_work` and the work itself use one step each of a deque or a set,
    which are atomic, and a case belongs to one thread at a time.
    """

    def __init__(self, primary: str, run: RunRows, *, max_length: int, on_compared: Callable[[bool], None]) -> None:
        """Set up.

        Args:
            primary: the name of the model whose requests are answered again.
            run: runs rows of the shadow.
            max_length: the longest row that the shadow reads, in tokens.
            on_compared: called from any thread for each input: whether both decided the same.
        """
        self._primary, self._run, self._max_length, self._on_compared = primary, run, max_length, on_compared
        self._cases: deque[_Case] = deque()
        self._stops: set[Stop] = set()

    def offer(self, request: QueuedRequest) -> None:
        """Take a request that was answered, if there is room."""
        features, answers = request.features, request.answers
        if request.model != self._primary or answers is None or len(self._cases) >= _MOST_WAITING:
            return
        fits = all(len(row["input_ids"]) <= self._max_length for row in features.rows)
        if features.rows and fits and features.decide is not None:
            self._cases.append(_Case(features, features.decide, answers))

    def next_work(self) -> Callable[[], None] | None:
        """Return the next row's run, or None where there is none; `step_aside` ends it from now on."""
        try:
            case = self._cases.popleft()
        except IndexError:
            return None
        stop = Stop()
        self._stops.add(stop)
        return partial(self._run_row, case, stop)

    def step_aside(self) -> None:
        """End what runs: a request has come."""
        for stop in tuple(self._stops):
            stop.set()

    def _run_row(self, case: _Case, stop: Stop) -> None:
        """Run one row; only one, because a request that comes must not wait for more."""
        index = len(case.outputs)
        try:
            outputs = self._run([case.features.rows[index]], stop)[0]
        except CheckError:
            if not stop.is_set:
                raise
            case.tries += 1
            if case.tries < _TRIES:
                self._cases.append(case)
            return
        finally:
            self._stops.discard(stop)
        case.outputs.append(case.features.keep(index, outputs))
        if len(case.outputs) < len(case.features.rows):
            self._cases.appendleft(case)
            return
        for mine, other in zip(case.answers, case.features.decode(case.outputs), strict=True):
            self._on_compared(case.decide(mine) == case.decide(other))


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
    if primary.task.decide is None:
        raise UsageError("a shadow compares decisions, and vectors decide nothing")
    mine, other = (encoder.tokenizer.rows(_PROBES) for encoder in (primary, shadow))
    same = all(
        name in row and row[name].tolist() == values.tolist()
        for row, twin in zip(mine, other, strict=True)
        for name, values in twin.items()
    )
    if not same:
        raise UsageError("the shadow reads other tokens than the primary; a shadow has the same tokenizer and inputs")
