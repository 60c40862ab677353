"""Run a second model on requests that the first has answered, while the server is idle, and count agreement.

Nothing of it delays a request: a shadow run is stopped when a request comes, and its row is tried again later.
"""

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

# Answered requests that wait for the shadow; when so many wait, further ones are not compared.
_MOST_WAITING = 64
# How often a request's runs may be stopped before it is given up: else a long text would be begun for ever.
_TRIES = 3
# Texts that two tokenizers must agree on: punctuation, digits, upper case and accents, and a single character.
_PROBES = ["One text, and 2 numbers.", "Ein anderer Text: für Größe & Maß!", "a"]


@dataclass(slots=True, eq=False)
class _Case:
    """One answered request, and how far the shadow has come with it."""

    features: Features
    decide: Callable[[Any], Hashable]
    answers: list[Any]
    outputs: list[Outputs] = field(default_factory=list)
    tries: int = 0


class ShadowComparison:
    """Queue of the requests that a shadow model answers again; it gives way as soon as a request comes.

    Safe in any thread without a lock: `offer`, `next_work` and the work itself use single operations of a deque or a
    set, which are atomic in CPython, and a case belongs to one thread at a time.
    """

    def __init__(self, primary: str, run: RunRows, *, max_length: int, on_compared: Callable[[bool], None]) -> None:
        """Set up an empty queue.

        Args:
            primary: the name of the model whose requests are answered again.
            run: runs rows on the shadow.
            max_length: the longest row that the shadow reads, in tokens.
            on_compared: called from any thread, once per input, with whether both decided the same.
        """
        self._primary, self._run, self._max_length, self._on_compared = primary, run, max_length, on_compared
        self._cases: deque[_Case] = deque()
        self._stops: set[Stop] = set()

    def offer(self, request: QueuedRequest) -> None:
        """Queue an answered request, if it is the primary's, the shadow can read it, and there is room."""
        features, answers = request.features, request.answers
        if request.model != self._primary or answers is None or len(self._cases) >= _MOST_WAITING:
            return
        fits = all(len(row["input_ids"]) <= self._max_length for row in features.rows)
        if features.rows and fits and features.decide is not None:
            self._cases.append(_Case(features, features.decide, answers))

    def next_work(self) -> Callable[[], None] | None:
        """Return a function that runs the next row, or None; from now on `step_aside` ends that run."""
        try:
            case = self._cases.popleft()
        except IndexError:
            return None
        stop = Stop()
        self._stops.add(stop)
        return partial(self._run_row, case, stop)

    def step_aside(self) -> None:
        """Stop the shadow's runs, because a request has come."""
        for stop in tuple(self._stops):  # a copy: runners add and discard meanwhile
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
        UsageError: if they differ in task, labels or tokens, or the task's answers decide nothing.
    """
    first, second = primary.manifest, shadow.manifest
    if first.task != second.task or first.labels != second.labels:
        raise UsageError(
            f"the shadow answers {second.task} with {len(second.labels)} labels, the primary {first.task} with "
            f"{len(first.labels)}; a shadow has the same task and the same labels in the same order"
        )
    if primary.task.decide is None:
        raise UsageError("a shadow compares decisions, and vectors decide nothing")
    # The shadow runs the rows that the primary's tokenizer made, so its own would have to make the same.
    mine, other = (encoder.tokenizer.rows(_PROBES) for encoder in (primary, shadow))
    same = all(
        name in row and row[name].tolist() == values.tolist()
        for row, twin in zip(mine, other, strict=True)
        for name, values in twin.items()
    )
    if not same:
        raise UsageError("the shadow reads other tokens than the primary; a shadow has the same tokenizer and inputs")
