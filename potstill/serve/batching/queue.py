"""Which rows run next, and with whom; how long a request would wait. Pure: no threads, and the time is given.

**Lanes.** A request waits in the lane of its model and its size: up to what one usual text costs, up to twice that, up
to four times, and so on. Lanes share the runners by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): the
lane that has been given least runs next, and one that was empty begins where the others are. So

- a short text waits for long ones until a runner is free and no longer, as its lane has been given little;
- nothing starves: of L lanes with work each has 1/L of the machine, however much waits in the others;
- however many long requests there are, from however many connections, they take the share of one lane.

Within a lane all are of one size, within a factor of two. Its clients share it in the same way, as far as they are
told apart; the requests of one client run one after the other, because side by side all of them would end late.

**Batches.** The row whose turn it is always runs; others join it, first those of its lane, while the measured cost
says that a row is cheaper in company than alone, up to a budget of tokens. Where padding is computed like text it
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
from typing import Any, NamedTuple, TypeAlias

from potstill.serve.batching.cost import LONG_TOKENS, Drift, RunCost
from potstill.serve.http_errors import RequestError
from potstill.serve.session import Stop
from potstill.serve.tasks.features import Features, Outputs

# Rows among which company is looked for. More would find little more, and takes time in front of each run.
_WINDOW = 64
# What is left of sums whose parts have all been taken away.
_NOTHING_S = 1e-9
# Requests with more characters take longer to tokenise than a thread takes to wake.
SHORT_CHARACTERS = 4_000
# Sizes beyond this many times two are one: 32,768 usual texts, which no request has.
_LEVELS = 16
# A text is tokenised as if it had come later by this time for each character, about fifty times what that takes: short
# ones pass long ones, and long ones are passed for 20 s at most.
_LATER_S = 1e-5


class Timings(NamedTuple):
    """Where one request's time went, in seconds."""

    tokenise_s: float
    queue_s: float
    """Neither tokenised nor run, until the answer was ready."""
    infer_s: float
    """All runs that held one of its rows."""
    tokens: int
    """Tokens that the model saw of it, without padding."""


class Answered(NamedTuple):
    """One request's answers, in the order of its inputs."""

    answers: list[Any]
    timings: Timings


Task: TypeAlias = Callable[[], None]
"""Something for a thread to do."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request inside of the engine. Times are of `time.monotonic`, costs in seconds of one runner."""

    model: str
    prepare: Callable[[], Features]
    characters: int
    """Of all its texts."""
    arrived: float
    deadline: float
    timeout_s: float
    client: str = ""
    """Who sent it, as far as that is known: what one client has waiting stands only in its own way."""
    future: "asyncio.Future[Answered] | None" = None

    lane: "Lane | None" = None
    """Where it, or its rows, wait."""
    waiting_s: float = 0.0
    """Cost of its rows that wait, as measured at the start; before it is tokenised, what it is expected to cost."""
    dead: bool = False
    """Nobody waits for it any more; its rows must not run."""

    prepared: Features | None = None
    outputs: list[Outputs | None] = field(default_factory=list)
    """Of its rows, as far as they have run."""
    left: int = 0
    """Rows that have not run."""
    tokens: int = 0
    tokenise_s: float = 0.0
    infer_s: float = 0.0
    read_s: float = 0.0
    answers: list[Any] | None = None
    error: RequestError | None = None
    ended: float = 0.0


@dataclass(slots=True, eq=False)
class Item:
    """One row that waits."""

    job: Job
    index: int
    tokens: int
    cost_s: float
    """Alone, as measured at the start."""


@dataclass(slots=True, eq=False, kw_only=True)
class Batch:
    """Rows that run together."""

    model: str
    items: Sequence[Item]
    longest: int
    """Tokens of the longest row: what the others are padded to."""
    started: float
    predicted_s: float
    stop: Stop = field(default_factory=Stop)
    stopped_at: float | None = None

    @property
    def tokens(self) -> int:
        """Return the tokens without padding."""
        return sum(item.tokens for item in self.items)

    def is_abandoned(self) -> bool:
        """Tell whether nobody waits for any of it."""
        return all(item.job.dead for item in self.items)


@dataclass(slots=True, kw_only=True)
class Policy:
    """How one model's rows may be batched."""

    cost: RunCost
    drift: Drift
    budget: int
    """Tokens of a batch; a single row may have more. 1: every row runs alone."""
    padded: int = 0
    """Tokens of a batch with its padding, if that may be more: where the file leaves padding out of its products."""

    def fits(self, rows: int, longest: int, tokens: int) -> bool:
        """Tell whether rows may be a batch."""
        return tokens <= self.budget and rows * longest <= max(self.budget, self.padded)

    def level(self, cost_s: float) -> int:
        """Return the size of a request: 0 up to what a usual text costs, 1 up to twice that, and so on."""
        usual_s = self.usual_s()
        return min(_LEVELS - 1, ceil(log2(cost_s / usual_s))) if cost_s > usual_s else 0

    def usual_s(self) -> float:
        """Return what one of the longest usual texts takes."""
        return self.cost.seconds(1, LONG_TOKENS) * self.drift.factor


@dataclass(slots=True, eq=False)
class Lane:
    """The requests of one model and one size."""

    model: str
    level: int
    rows: list[tuple[float, int, Item]] = field(default_factory=list)
    """Those that wait, in the order of their turns; (turn, number, row)."""
    waiting_s: dict[str, float] = field(default_factory=dict)
    """Cost of what each client has waiting, rows and requests that are not tokenised; only while there is something.
    It is the cost as measured at the start."""
    all_s: float = 0.0
    """The same of all clients."""
    begins: float = 0.0
    """Virtual time at which its next row begins: how much the lane has been given."""
    turn: float = 0.0
    """The same within the lane: the turn of the row that ran last."""
    ends: dict[str, float] = field(default_factory=dict)
    """Where the turn of each client's last row ends."""
    is_standing: bool = False
    """Something was refused, and the lane has not been empty since. Of the admission, as the next two."""
    refused_s: float = 0.0
    refused_at: float = 0.0

    def push(self, item: Item, number: int) -> None:
        """Add a row behind those of its client."""
        client = item.job.client
        turn = max(self.turn, self.ends.get(client, 0.0))
        self.ends[client] = turn + item.cost_s
        insort(self.rows, (turn, number, item))

    def expect(self, job: Job, cost_s: float) -> None:
        """Count work of a request that waits here."""
        job.lane = self
        job.waiting_s += cost_s
        self.all_s += cost_s
        self.waiting_s[job.client] = self.waiting_s.get(job.client, 0.0) + cost_s

    def forget(self, job: Job, cost_s: float) -> None:
        """Count work of a request no longer."""
        job.waiting_s -= cost_s
        self.all_s -= cost_s
        left = self.waiting_s.pop(job.client, 0.0) - cost_s
        if left > _NOTHING_S:
            self.waiting_s[job.client] = left
        else:
            self.ends.pop(job.client, None)
        if not self.waiting_s:
            self.all_s = 0.0

    def ahead_s(self, client: str, size_s: float) -> float:
        """Return what runs here before a request of a client is through: its own, and as much of each other's.

        The request counts as the largest that waits here: else in a flood from many clients the shorter ones of a lane
        would be taken and the longer ones refused.
        """
        own = self.waiting_s.get(client, 0.0)
        if own == self.all_s:
            return own
        waiting = list(self.waiting_s.items())  # other threads change it
        return own + sum(min(waits, own + size_s) for other, waits in waiting if other != client)


class Queue:
    """What waits and what runs."""

    def __init__(self, policies: Mapping[str, Policy], *, runners: int = 1) -> None:
        self._policies, self._runners = policies, runners
        self._short: deque[Job] = deque()
        self._long: list[tuple[float, int, Job]] = []
        # All that there can be: the event loop reads them while other threads work.
        self._lanes = {model: [Lane(model, level) for level in range(_LEVELS)] for model in policies}
        self._every = [lane for lanes in self._lanes.values() for lane in lanes]
        self._order = count()
        self._virtual = 0.0
        self.rows = dict.fromkeys(policies, 0)
        self.tokens = dict.fromkeys(policies, 0)
        self.running: dict[Batch, None] = {}

    def lane(self, model: str, cost_s: float) -> Lane:
        """Return where a request of this cost waits."""
        return self._lanes[model][self._policies[model].level(cost_s)]

    def add(self, job: Job, *, cost_s: float) -> None:
        """Take a request that is not tokenised yet, and is expected to cost this."""
        self.lane(job.model, cost_s).expect(job, cost_s / self.drift(job.model))
        if job.characters > SHORT_CHARACTERS:
            heapq.heappush(self._long, (_due(job), next(self._order), job))
        else:
            self._short.append(job)

    def next_raw(self, *, long: bool, before: Job | None = None) -> Job | None:
        """Return the next request to tokenise, or None where there is none.

        Args:
            long: whether it may be a long one.
            before: if given, only one that goes first although this one was begun: it is much shorter.
        """
        while self._short and self._short[0].dead:
            self._short.popleft()
        while self._long and self._long[0][2].dead:
            heapq.heappop(self._long)
        short = self._short[0] if self._short else None
        other = self._long[0][2] if long and self._long else None
        job = other if short is None or (other is not None and _due(other) < _due(short)) else short
        if job is None or (before is not None and not _passes(job, before)):
            return None
        if job is short:
            self._short.popleft()
        else:
            heapq.heappop(self._long)
        return job

    def has_rows(self) -> bool:
        """Tell whether rows wait."""
        return any(lane.rows for lane in self._every)

    def put(self, job: Job, lengths: Sequence[int]) -> None:
        """Take the rows of a tokenised request, given their tokens."""
        if job.dead:
            return
        if job.lane is not None:
            job.lane.forget(job, job.waiting_s)
        if not lengths:
            return
        # As measured at the start: what runs cost now changes while rows wait, and would change the lanes' shares.
        costs = [self._policies[job.model].cost.seconds(1, tokens) for tokens in lengths]
        lane = self.lane(job.model, sum(costs) * self.drift(job.model))
        if not lane.rows:
            lane.begins = max(lane.begins, self._virtual)
        lane.expect(job, sum(costs))
        for index, (tokens, cost_s) in enumerate(zip(lengths, costs, strict=True)):
            lane.push(Item(job, index, tokens, cost_s), next(self._order))
        self.rows[job.model] += len(lengths)
        self.tokens[job.model] += sum(lengths)

    def drop(self, job: Job) -> list[Batch]:
        """Forget a request that nobody waits for; return the running batches that are now for nobody."""
        if job.dead:
            return []
        job.dead = True
        if job.lane is not None:
            gone = [row for row in job.lane.rows if row[2].job is job]
            if gone:
                job.lane.rows = [row for row in job.lane.rows if row[2].job is not job]
                self.rows[job.model] -= len(gone)
                self.tokens[job.model] -= sum(item.tokens for _, _, item in gone)
            job.lane.forget(job, job.waiting_s)
        return [batch for batch in self.running if batch.is_abandoned()]

    def next_batch(self, now: float, *, idle: int = 0, stop: Stop | None = None) -> Batch | None:
        """Return the rows that run now, or None where none wait; `idle` other runners are free for the rest."""
        for lane in self._every:
            while lane.rows and lane.rows[0][2].job.deadline <= now:
                self.drop(lane.rows[0][2].job)
            if not lane.waiting_s:  # a runner is free, and nothing is here
                lane.is_standing = False
        waiting = [lane for lane in self._every if lane.rows]
        if not waiting:
            return None
        lane = min(waiting, key=lambda lane: (lane.begins, lane.level))
        policy = self._policies[lane.model]
        self._virtual = max(self._virtual, lane.begins)
        lane.turn = lane.rows[0][0]
        head = lane.rows.pop(0)[2]
        items = [head]
        self._leaves(head, lane)
        if policy.budget > head.tokens:
            lanes = sorted((other for other in waiting if other.model == lane.model), key=lambda other: other.level)
            lanes.sort(key=lambda other: other is not lane)
            self._company(items, lanes, policy, most=-(-(1 + self.rows[lane.model]) // (1 + idle)))
        longest = max(item.tokens for item in items)
        cost_s = policy.cost.seconds(len(items), longest, sum(item.tokens for item in items))
        batch = Batch(
            model=lane.model,
            items=items,
            longest=longest,
            started=now,
            predicted_s=cost_s * policy.drift.factor,
            stop=stop or Stop(),
        )
        self.running[batch] = None
        return batch

    def done(self, batch: Batch, *, now: float) -> None:
        """Forget a batch that has run."""
        self.running.pop(batch, None)
        policy = self._policies[batch.model]
        alone = sum(policy.cost.seconds(1, item.tokens) for item in batch.items)
        policy.drift.saw(actual_s=now - batch.started, predicted_s=alone)

    def expected_s(self, model: str, tokens: int) -> float:
        """Return what one row of so many tokens is expected to take."""
        policy = self._policies[model]
        return policy.cost.seconds(1, tokens) * policy.drift.factor

    def drift(self, model: str) -> float:
        """Return how many times longer than measured at the start a model's rows take now."""
        return self._policies[model].drift.factor

    def wait_s(self, model: str, cost_s: float, *, now: float, client: str = "") -> float:
        """Return how long a request of this cost that came now would wait for others, as predicted.

        That is until a runner is free for it: what runs has to end, and before it is through its client's lane gets
        what is before it there, and each other lane at most as much.
        """
        own, drift = self.lane(model, cost_s), self.drift(model)
        size_s = max(cost_s, self._policies[model].usual_s() * 2**own.level)
        ahead = own.ahead_s(client, size_s / drift) * drift
        share = ahead + cost_s
        ahead += sum(min(lane.all_s * self.drift(lane.model), share) for lane in self._every if lane is not own)
        left = [max(0.0, batch.started + batch.predicted_s - now) for batch in list(self.running)]
        left += [0.0] * (self._runners - len(left))
        return _until_free(sorted(left)[-self._runners :], ahead)

    def longest_row_s(self) -> float:
        """Return what the longest of the rows that are running takes alone, as predicted."""
        return max((self.expected_s(batch.model, batch.longest) for batch in list(self.running)), default=0.0)

    def _company(self, items: list[Item], lanes: Sequence[Lane], policy: Policy, *, most: int) -> None:
        """Add rows to a batch of one, from the lanes in their order."""
        head = items[0]
        longest = tokens = head.tokens
        for lane in lanes:
            if len(items) >= most or tokens >= policy.budget:
                return
            window, taken = lane.rows[:_WINDOW], set()
            # Where padding is computed like text, those of the head's length first.
            near = window if policy.cost.unpadded else sorted(window, key=lambda row: abs(row[2].tokens - head.tokens))
            for _, number, item in near:
                wider = max(longest, item.tokens)
                fits = len(items) < most and policy.fits(len(items) + 1, wider, tokens + item.tokens)
                if fits and policy.cost.pays(len(items), longest, tokens, added=item.tokens):
                    items.append(item)
                    taken.add(number)
                    self._leaves(item, lane)
                    longest, tokens = wider, tokens + item.tokens
            if taken:
                lane.rows[:_WINDOW] = [row for row in window if row[1] not in taken]

    def _leaves(self, item: Item, lane: Lane) -> None:
        lane.begins += item.cost_s
        self.rows[lane.model] -= 1
        self.tokens[lane.model] -= item.tokens
        lane.forget(item.job, item.cost_s)


def _due(job: Job) -> float:
    """Return the place of a request in the order of tokenising."""
    return job.arrived + job.characters * _LATER_S * (job.characters > SHORT_CHARACTERS)


def _passes(job: Job, other: Job) -> bool:
    """Tell whether a request passes one that is in the middle of it; it is half as long, which bounds the depth."""
    return _due(job) < _due(other) and job.characters <= other.characters / 2


def _until_free(left: Sequence[float], work_s: float) -> float:
    """Return when the first runner is free, if `left` (ascending) are busy so long and share so much work then."""
    busy = 0.0
    for number, seconds in enumerate(left, start=1):
        busy += seconds
        free = (work_s + busy) / number
        if number == len(left) or free <= left[number]:
            return free
    return work_s
