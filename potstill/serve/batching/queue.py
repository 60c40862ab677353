"""Decide which rows run next and in which batch, and predict how long a request would wait.

Pure: no threads and no clock, the caller passes the time. `WorkerPool` calls everything that changes a queue under its
lock.

**Lanes.** A request waits in the lane of its model and its size: up to what one usual text costs, up to twice that, up
to four times, and so on. Lanes share the runners by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): the
lane that has been given least runs next, and one that was empty begins where the others are. So

- a short text waits for long ones until a runner is free and no longer, as its lane has been given little;
- nothing starves: of L lanes with work each has 1/L of the machine, however much waits in the others;
- however many long requests there are, from however many connections, they take the share of one lane.

Within a lane all requests are of one size, within a factor of two. Its clients share it in the same way, as far as they
are told apart; the requests of one client run one after the other, because side by side all of them would end late.

**Batches.** The row whose turn it is always runs; others join it, first those of its lane, while the measured cost
says that a row is cheaper in the batch than alone, up to a budget of tokens. Where padding is computed like text it
counts, and rows of similar length come first; where the file leaves it out, those whose turn comes first.
"""

import asyncio
import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import ceil, log2
from typing import Any, NamedTuple

from potstill.serve.batching.cost import LONG_TOKENS, Drift, RunCost
from potstill.serve.http_errors import RequestError
from potstill.serve.session import Stop
from potstill.serve.tasks import Features, Outputs

# Rows of a lane, from its head, among which a batch's other rows are looked for. More would find little more, and the
# search delays each run.
_WINDOW = 64
# What floating-point rounding may leave of a sum of seconds after all its parts were subtracted.
_ROUNDING_S = 1e-9
# Requests with more characters take longer to tokenise than a thread takes to wake.
SHORT_CHARACTERS = 4_000
# Number of lanes of a model. The last one begins at 16,384 usual texts, more than a request may have.
_LEVELS = 16
# Handicap of a long request in the order of tokenising, per character: about fifty times what tokenising it takes.
# Short requests pass it meanwhile, for 20 s at most.
_DELAY_PER_CHARACTER_S = 1e-5


class Timings(NamedTuple):
    """Time of one request by stage, in seconds, and its tokens."""

    tokenise_s: float
    queue_s: float
    """All the rest until the answer was ready."""
    infer_s: float
    """Sum over all runs that held one of its rows."""
    tokens: int
    """Tokens that the model saw, without padding."""


class Answered(NamedTuple):
    """The answers to one request, in the order of its inputs."""

    answers: list[Any]
    timings: Timings


_NOT_TOKENISED = Features(rows=[], decode=list)


@dataclass(slots=True, eq=False, kw_only=True)
class QueuedRequest:
    """One request inside the engine. Times are `time.monotonic`, costs are seconds of one runner."""

    model: str
    prepare: Callable[[], Features]
    """Tokenises it; called in a worker thread."""
    characters: int
    """Of all its texts."""
    arrived: float
    deadline: float
    timeout_s: float
    client: str = ""
    """Who sent it, as far as known: what one client has waiting delays mostly its own requests."""
    future: asyncio.Future[Answered] | None = None

    lane: "Lane | None" = None
    """Where it, or its rows, wait."""
    waiting_s: float = 0.0
    """Cost at warm-up speed of its rows that wait; before it is tokenised, the estimated cost."""
    is_dropped: bool = False
    """Whether nobody waits for it any more; its rows must not run then."""

    features: Features = _NOT_TOKENISED
    outputs: list[Outputs | None] = field(default_factory=list)
    """The model's outputs by row; None for a row that has not run."""
    rows_left: int = 0
    """Number of rows that have not run."""
    tokens: int = 0
    tokenise_s: float = 0.0
    infer_s: float = 0.0
    decode_s: float = 0.0
    answers: list[Any] | None = None
    error: RequestError | None = None
    ended: float = 0.0

    def timings(self) -> Timings:
        """Return its timings, once it has ended."""
        queue_s = max(0.0, self.ended - self.arrived - self.tokenise_s - self.infer_s)
        return Timings(tokenise_s=self.tokenise_s, queue_s=queue_s, infer_s=self.infer_s, tokens=self.tokens)


@dataclass(slots=True, eq=False)
class QueuedRow:
    """One row of a request."""

    request: QueuedRequest
    index: int
    """Its number among the request's rows."""
    tokens: int
    cost_s: float
    """Seconds of a run of this row alone, at warm-up speed."""


@dataclass(slots=True, eq=False, kw_only=True)
class Batch:
    """Rows that run together."""

    model: str
    rows: Sequence[QueuedRow]
    longest: int
    """Tokens of the longest row: what the others are padded to."""
    started: float
    predicted_s: float
    stop: Stop = field(default_factory=Stop)
    stopped_at: float | None = None

    @property
    def tokens(self) -> int:
        """Return the tokens without padding."""
        return sum(row.tokens for row in self.rows)

    def is_abandoned(self) -> bool:
        """Tell whether nobody waits for any of it."""
        return all(row.request.is_dropped for row in self.rows)


@dataclass(slots=True, kw_only=True)
class BatchPolicy:
    """How one model's rows may be batched."""

    cost: RunCost
    drift: Drift
    budget: int
    """Most tokens of a batch; a single row may have more. 1: every row runs alone."""
    padded: int = 0
    """Most tokens of a batch including padding, where that exceeds `budget`: for files that leave padding out of their
    products."""

    def fits(self, rows: int, longest: int, tokens: int) -> bool:
        """Tell whether so many rows, the longest of them and all their tokens stay within the budgets."""
        return tokens <= self.budget and rows * longest <= max(self.budget, self.padded)

    def level(self, cost_s: float) -> int:
        """Return the lane of a cost: 0 up to the cost of a usual text, 1 up to twice that, 2 up to four times, ..."""
        usual_s = self.usual_s()
        return min(_LEVELS - 1, ceil(log2(cost_s / usual_s))) if cost_s > usual_s else 0

    def usual_s(self) -> float:
        """Return the seconds of a text of LONG_TOKENS tokens at today's speed."""
        return self.cost.seconds(1, LONG_TOKENS) * self.drift.factor


@dataclass(slots=True, eq=False)
class Lane:
    """The waiting requests of one model and one size.

    Two levels of start-time fair queueing: `start_tag` orders the lanes, `client_time` and `finish_tags` order the
    clients within the lane. All costs are seconds at warm-up speed.
    """

    model: str
    level: int
    rows: list[tuple[float, int, QueuedRow]] = field(default_factory=list)
    """The rows that wait, in the order in which they run: (start tag within the lane, serial number, row)."""
    waiting_s: dict[str, float] = field(default_factory=dict)
    """Cost of what each client has waiting, tokenised or not; clients with nothing are not in it."""
    all_s: float = 0.0
    """The sum of `waiting_s`."""
    start_tag: float = 0.0
    """The virtual time at which the lane's next row starts: it grows with the cost of what the lane has run."""
    client_time: float = 0.0
    """The virtual time within the lane: the start tag of the row that ran last."""
    finish_tags: dict[str, float] = field(default_factory=dict)
    """The virtual time within the lane at which each client's last row finishes."""
    is_standing: bool = False
    """Whether a request was refused and the lane has not been empty since. This and the next two are `Admission`'s."""
    refused_s: float = 0.0
    refused_at: float = 0.0

    def push(self, row: QueuedRow, number: int) -> None:
        """Add a row behind those of its client."""
        client = row.request.client
        # As in Goyal et al.: a client that was idle starts at the current virtual time, with no credit for the past.
        start = max(self.client_time, self.finish_tags.get(client, 0.0))
        self.finish_tags[client] = start + row.cost_s
        insort(self.rows, (start, number, row))  # the number makes equal tags first come, first served

    def add_waiting(self, request: QueuedRequest, cost_s: float) -> None:
        """Add a cost to what the request, its client and the lane have waiting."""
        request.lane = self
        request.waiting_s += cost_s
        self.all_s += cost_s
        self.waiting_s[request.client] = self.waiting_s.get(request.client, 0.0) + cost_s

    def remove_waiting(self, request: QueuedRequest, cost_s: float) -> None:
        """Subtract a cost from what the request, its client and the lane have waiting."""
        request.waiting_s -= cost_s
        self.all_s -= cost_s
        left = self.waiting_s.pop(request.client, 0.0) - cost_s
        if left > _ROUNDING_S:
            self.waiting_s[request.client] = left
        else:  # or the dictionaries would grow with every client that there ever was
            self.finish_tags.pop(request.client, None)
        if not self.waiting_s:
            self.all_s = 0.0  # and not what rounding has left

    def ahead_s(self, client: str, size_s: float) -> float:
        """Return the cost that runs in this lane before a new request of a client has run.

        That is all that the client has waiting itself, and of each other client at most that and `size_s`.

        Args:
            client: who sends the request.
            size_s: the cost of the largest request of this lane, not of the new one: else in a flood from many clients
                the shorter requests of a lane would be accepted and the longer ones refused.
        """
        own = self.waiting_s.get(client, 0.0)
        if own == self.all_s:
            return own
        # The copy is atomic in CPython: the event loop reads this without the lock while workers change it.
        waiting = list(self.waiting_s.items())
        return own + sum(min(waits, own + size_s) for other, waits in waiting if other != client)


class Queue:
    """The requests that wait and the batches that run.

    Whoever changes it holds the lock of `WorkerPool`. The event loop reads sums (`wait_s`, `longest_row_s`, `rows`,
    `tokens`) without the lock, because a prediction may be one step old but must not wait for a thread; therefore all
    lanes are made at the start, and dictionaries that change are copied before they are walked.
    """

    def __init__(self, policies: Mapping[str, BatchPolicy], *, runners: int = 1) -> None:
        self.policies = policies
        """By model."""
        self._runners = runners
        self._short: deque[QueuedRequest] = deque()
        self._long: list[tuple[float, int, QueuedRequest]] = []
        self._lanes = {model: [Lane(model, level) for level in range(_LEVELS)] for model in policies}
        self.lanes = [lane for lanes in self._lanes.values() for lane in lanes]
        """The lanes of all models and sizes."""
        self._numbers = count()
        self._virtual_time = 0.0
        self.rows = dict.fromkeys(policies, 0)
        """Number of rows that wait, by model."""
        self.tokens = dict.fromkeys(policies, 0)
        """Tokens of the rows that wait, by model."""
        self.running: dict[Batch, None] = {}
        """The batches that run now, as an ordered set."""

    def lane(self, model: str, cost_s: float) -> Lane:
        """Return the lane in which a request of this cost (seconds at today's speed) waits."""
        return self._lanes[model][self.policies[model].level(cost_s)]

    def add(self, request: QueuedRequest, *, cost_s: float) -> None:
        """Add a request that is not tokenised yet; `cost_s` is its estimated cost at today's speed."""
        self.lane(request.model, cost_s).add_waiting(request, cost_s / self.drift(request.model))
        if request.characters > SHORT_CHARACTERS:
            heapq.heappush(self._long, (_tokenise_order(request), next(self._numbers), request))
        else:
            self._short.append(request)

    def next_to_tokenise(self, *, long: bool, before: QueuedRequest | None = None) -> QueuedRequest | None:
        """Return the next request to tokenise, or None where there is none.

        Args:
            long: whether it may be a long one.
            before: a request that is being tokenised: only a much shorter one that may interrupt it is returned.
        """
        while self._short and self._short[0].is_dropped:
            self._short.popleft()
        while self._long and self._long[0][2].is_dropped:
            heapq.heappop(self._long)
        short = self._short[0] if self._short else None
        other = self._long[0][2] if long and self._long else None
        is_other = short is None or (other is not None and _tokenise_order(other) < _tokenise_order(short))
        request = other if is_other else short
        if request is None:
            return None
        if before is not None:
            # At most half as long, which bounds the depth of requests in the middle of requests.
            is_shorter = request.characters <= before.characters / 2
            if not is_shorter or _tokenise_order(request) >= _tokenise_order(before):
                return None
        if is_other:
            heapq.heappop(self._long)
        else:
            self._short.popleft()
        return request

    def has_rows(self) -> bool:
        """Tell whether rows wait."""
        return any(lane.rows for lane in self.lanes)

    def add_rows(self, request: QueuedRequest, lengths: Sequence[int]) -> None:
        """Add the rows of a tokenised request.

        Args:
            request: what was tokenised.
            lengths: tokens of each of its rows.
        """
        if request.is_dropped:
            return
        if request.lane is not None:  # the estimate ends here; the exact cost may belong to another lane
            request.lane.remove_waiting(request, request.waiting_s)
        if not lengths:
            return
        # At warm-up speed: today's changes while rows wait, which would tilt the lanes' shares (docs/log.md).
        costs = [self.policies[request.model].cost.seconds(1, tokens) for tokens in lengths]
        lane = self.lane(request.model, sum(costs) * self.drift(request.model))
        if not lane.rows:  # as for clients in `Lane.push`: an idle lane saves up no credit
            lane.start_tag = max(lane.start_tag, self._virtual_time)
        lane.add_waiting(request, sum(costs))
        for index, (tokens, cost_s) in enumerate(zip(lengths, costs, strict=True)):
            lane.push(QueuedRow(request, index, tokens, cost_s), next(self._numbers))
        self.rows[request.model] += len(lengths)
        self.tokens[request.model] += sum(lengths)

    def drop(self, request: QueuedRequest) -> list[Batch]:
        """Remove a request that nobody waits for; return the running batches of which nobody needs a row now."""
        if request.is_dropped:
            return []
        request.is_dropped = True
        if request.lane is not None:
            gone = [entry for entry in request.lane.rows if entry[2].request is request]
            if gone:
                request.lane.rows = [entry for entry in request.lane.rows if entry[2].request is not request]
                self.rows[request.model] -= len(gone)
                self.tokens[request.model] -= sum(row.tokens for _, _, row in gone)
            request.lane.remove_waiting(request, request.waiting_s)
        return [batch for batch in self.running if batch.is_abandoned()]

    def next_batch(self, now: float, *, idle: int = 0, stop: Stop | None = None) -> Batch | None:
        """Remove the rows that run next and return them as a batch, or None where none wait.

        Args:
            now: the time.
            idle: how many other runners are free for the rest.
            stop: what can end the run from another thread.
        """
        for lane in self.lanes:
            while lane.rows and lane.rows[0][2].request.deadline <= now:
                self.drop(lane.rows[0][2].request)
            # A runner is free and finds the lane empty: the load has gone, so the large limit holds again.
            if not lane.waiting_s:
                lane.is_standing = False
        waiting = [lane for lane in self.lanes if lane.rows]
        if not waiting:
            return None
        lane = min(waiting, key=lambda lane: (lane.start_tag, lane.level))  # of equal ones the shorter requests
        policy = self.policies[lane.model]
        # Virtual time is the start tag of what is being served (Goyal et al.), among lanes and within the lane.
        self._virtual_time = max(self._virtual_time, lane.start_tag)
        lane.client_time = lane.rows[0][0]
        head = lane.rows.pop(0)[2]
        rows = [head]
        self._take(head, lane)
        if policy.budget > head.tokens:
            others = sorted(
                (other for other in waiting if other.model == lane.model),
                key=lambda other: (other is not lane, other.level),
            )
            # Free runners share what waits: a batch takes its share, rounded up, and leaves the rest to them.
            self._fill(rows, others, policy, most=ceil((1 + self.rows[lane.model]) / (1 + idle)))
        longest = max(row.tokens for row in rows)
        cost_s = policy.cost.seconds(len(rows), longest, sum(row.tokens for row in rows))
        batch = Batch(
            model=lane.model,
            rows=rows,
            longest=longest,
            started=now,
            predicted_s=cost_s * policy.drift.factor,
            stop=stop or Stop(),
        )
        self.running[batch] = None
        return batch

    def finish(self, batch: Batch, *, now: float) -> None:
        """Remove a batch that has run, and update the drift from the time that it took."""
        self.running.pop(batch, None)
        policy = self.policies[batch.model]
        # Against its rows alone, as waits are sums of these: the drift then holds what batching gains, too.
        alone = sum(policy.cost.seconds(1, row.tokens) for row in batch.rows)
        policy.drift.saw(actual_s=now - batch.started, predicted_s=alone)

    def expected_s(self, model: str, tokens: int) -> float:
        """Return the predicted seconds of one row of so many tokens at today's speed."""
        policy = self.policies[model]
        return policy.cost.seconds(1, tokens) * policy.drift.factor

    def drift(self, model: str) -> float:
        """Return how many times longer than at warm-up a model's rows take now."""
        return self.policies[model].drift.factor

    def wait_s(self, model: str, cost_s: float, *, now: float, client: str = "") -> float:
        """Predict the seconds that a request of this cost would wait for others if it came now.

        It waits until a runner is free for it: the running batches have to end, then its own lane gets what is before
        it there, and meanwhile each other lane at most as much as its own (which is what fair queueing promises).
        """
        own, drift = self.lane(model, cost_s), self.drift(model)
        size_s = max(cost_s, self.policies[model].usual_s() * 2**own.level)
        ahead = own.ahead_s(client, size_s / drift) * drift
        share = ahead + cost_s
        ahead += sum(min(lane.all_s * self.drift(lane.model), share) for lane in self.lanes if lane is not own)
        left = [max(0.0, batch.started + batch.predicted_s - now) for batch in list(self.running)]
        left += [0.0] * (self._runners - len(left))
        return _until_free(sorted(left)[-self._runners :], ahead)

    def longest_row_s(self) -> float:
        """Return the predicted seconds, alone, of the longest row that is running."""
        return max((self.expected_s(batch.model, batch.longest) for batch in list(self.running)), default=0.0)

    def _fill(self, rows: list[QueuedRow], lanes: Sequence[Lane], policy: BatchPolicy, *, most: int) -> None:
        """Add rows to a batch of one row, from the lanes in the order given, up to `most` rows."""
        head = rows[0]
        longest = tokens = head.tokens
        for lane in lanes:
            if len(rows) >= most or tokens >= policy.budget:
                return
            window, taken = lane.rows[:_WINDOW], set()
            # Where padding is computed like text, rows of about the head's length come first.
            near = window
            if not policy.cost.unpadded:
                near = sorted(window, key=lambda entry: abs(entry[2].tokens - head.tokens))
            for _, number, row in near:
                wider = max(longest, row.tokens)
                fits = len(rows) < most and policy.fits(len(rows) + 1, wider, tokens + row.tokens)
                if fits and policy.cost.pays(len(rows), longest, tokens, added=row.tokens):
                    rows.append(row)
                    taken.add(number)
                    self._take(row, lane)
                    longest, tokens = wider, tokens + row.tokens
            if taken:
                lane.rows[:_WINDOW] = [entry for entry in window if entry[1] not in taken]

    def _take(self, row: QueuedRow, lane: Lane) -> None:
        """Charge a row that begins to run to its lane."""
        lane.start_tag += row.cost_s
        self.rows[lane.model] -= 1
        self.tokens[lane.model] -= row.tokens
        lane.remove_waiting(row.request, row.cost_s)


def _tokenise_order(request: QueuedRequest) -> float:
    """Return the key by which requests are tokenised: their arrival, plus a delay for a long one."""
    is_long = request.characters > SHORT_CHARACTERS
    return request.arrived + (request.characters * _DELAY_PER_CHARACTER_S if is_long else 0.0)


def _until_free(left: Sequence[float], work_s: float) -> float:
    """Return the seconds until a runner is free for more work.

    Args:
        left: seconds for which each runner is busy, ascending.
        work_s: seconds of work that waits and that the runners share as they become free.
    """
    busy = 0.0
    for number, seconds in enumerate(left, start=1):
        # When these runners alone are through with the work; it holds if no further one is free before.
        busy += seconds
        free = (work_s + busy) / number
        if number == len(left) or free <= left[number]:
            return free
    return work_s
