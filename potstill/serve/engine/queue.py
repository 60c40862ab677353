"""Which rows run next, and with whom: the order, and what waits. Pure: no threads, and the time is given.

The order. A row is due once its request has waited as long as the request's earlier rows cost; due rows run in the
order in which they became due, and rows that are not due yet run when nothing is. So a request of 64 texts takes the
machine while it is free, and does not stand in the way of a single text that comes after it. Nothing starves: a row is
due at a fixed time, and nothing that becomes due later overtakes it except as company that makes a batch cheaper.

The batches. The row that is due first always runs; others join it while the measured cost says that a row is cheaper
in company than alone, up to a budget of tokens. Where padding is computed like text, it counts, and rows of similar
length come first; where the file leaves it out, those that are due first.

The lone runs. Where a model has a session with more threads for them, rows run there while nothing runs beside them
and few wait: one after the other, a few rows are through nearly as soon as side by side, and most of them sooner. Rows
that come during such a run had often better wait for its end than run beside it on cores that are in use.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from potstill.serve.engine.cost import Drift, RunCost
from potstill.serve.engine.jobs import Batch, Item, Job
from potstill.serve.session import Stop

# Rows among which company is looked for. More would find little more, and takes time in front of each run.
_WINDOW = 64

# So many rows at most are run one after the other; more gain by batches. The last of them may be this much later than
# if they ran side by side.
_LONE_ROWS, _LATER = 3, 1.25

# Requests with more characters take longer to tokenise than a thread takes to wake.
SHORT_CHARACTERS = 4_000


@dataclass(slots=True, kw_only=True)
class Policy:
    """How one model's rows may be batched."""

    cost: RunCost
    drift: Drift
    budget: int
    """Tokens of a batch; a single row may have more. 1: every row runs alone."""
    padded: int = 0
    """Tokens of a batch with its padding, if that may be more: where the file leaves padding out of its products."""
    lone: float | None = None
    """A run's time on the session for lone runs, as a share of its time on a runner's; None if there is no such."""

    def fits(self, rows: int, longest: int, tokens: int) -> bool:
        """Tell whether rows may be a batch."""
        return tokens <= self.budget and rows * longest <= max(self.budget, self.padded)


class Queue:
    """What waits and what runs."""

    def __init__(self, policies: Mapping[str, Policy], *, runners: int = 1) -> None:
        self._policies, self._runners = policies, runners
        self._short: deque[Job] = deque()
        self._long: deque[Job] = deque()
        self._due: deque[Item] = deque()
        self._later: list[tuple[float, int, Item]] = []
        self._order = count()
        self._spread = 0
        self.due_s = 0.0
        self.later_s = 0.0
        self.rows = dict.fromkeys(policies, 0)
        self.tokens = dict.fromkeys(policies, 0)
        self.running: dict[Batch, None] = {}

    def add(self, job: Job, *, cost_s: float) -> None:
        """Take a request that is not tokenised yet, and is expected to cost this."""
        job.due_s = cost_s
        self.due_s += cost_s
        (self._long if job.characters > SHORT_CHARACTERS else self._short).append(job)

    def next_raw(self, *, long: bool) -> Job | None:
        """Return the next request to tokenise, or None: the oldest short one, then, if `long`, the oldest long one."""
        for waiting in (self._short, self._long) if long else (self._short,):
            while waiting:
                job = waiting.popleft()
                if not job.dead:
                    return job
        return None

    def has_raw(self, *, long: bool) -> bool:
        """Tell whether requests wait to be tokenised."""
        return bool(self._short or (long and self._long))

    def has_rows(self) -> bool:
        """Tell whether rows wait (or did: those of abandoned requests count)."""
        return bool(self._due or self._later)

    def has_full_batch(self) -> bool:
        """Tell whether more rows could not make the next batch better."""
        if not self._due:
            return False
        model = self._due[0].job.model
        return self.tokens[model] >= self._policies[model].budget

    def put(self, job: Job, lengths: list[int], *, now: float) -> None:
        """Take the rows of a tokenised request, given their tokens."""
        self.due_s -= job.due_s
        job.due_s = 0.0
        if job.dead:
            return
        policy = self._policies[job.model]
        due_at = job.arrived
        for index, tokens in enumerate(lengths):
            item = Item(job, index, tokens, policy.cost.seconds(1, tokens) * policy.drift.factor)
            if due_at <= now:
                self._due.append(item)
                job.due_s += item.cost_s
            else:
                heapq.heappush(self._later, (due_at, next(self._order), item))
                job.later_s += item.cost_s
                job.later += 1
            due_at += item.cost_s
        self.due_s += job.due_s
        self.later_s += job.later_s
        self._spread += job.later > 0
        self.rows[job.model] += len(lengths)
        self.tokens[job.model] += sum(lengths)

    def drop(self, job: Job) -> list[Batch]:
        """Forget a request that nobody waits for; return the running batches that are now for nobody."""
        if job.dead:
            return []
        job.dead = True
        self.due_s -= job.due_s
        self.later_s -= job.later_s
        self._spread -= job.later > 0
        job.due_s, job.later_s, job.later = 0.0, 0.0, 0
        return [batch for batch in self.running if batch.is_abandoned()]

    def held_until(self, now: float) -> float | None:
        """Return until when the next row is better off waiting for a lone run's end; None if it is not.

        For a run that is late, or hangs, it waits no longer than it takes itself.
        """
        if len(self.running) != 1 or not self.has_rows() or self.has_raw(long=True) or self._runners == 1:
            return None
        batch = next(iter(self.running))
        item = self._due[0] if self._due else self._later[0][2]
        lone = self._policies[item.job.model].lone
        if not batch.is_lone or lone is None or item.job.dead:
            return None
        # Beside it a row shares the cores with all of the run's threads: with two cores it takes about twice as long.
        ends = batch.started + batch.predicted_s
        then = lone if self._in_turn(self._waiting(), lone) else 1.0
        pays = ends - now + then * item.cost_s < self._runners / (self._runners - 1) * item.cost_s
        until = ends + item.cost_s
        return until if pays and now < until else None

    def next_batch(self, now: float, *, idle: int = 0, stop: Callable[[], Stop] = Stop) -> Batch | None:
        """Return the rows that run now, or None where none wait; `idle` other runners are free for the rest."""
        while self._later and self._later[0][0] <= now:
            self._due.append(self._pop_later())
        head = self._head(now)
        if head is None:
            return None
        policy = self._policies[head.job.model]
        items, longest = [head], head.tokens
        if policy.budget > head.tokens:
            longest = self._company(items, policy, most=-(-self.rows[head.job.model] // (1 + idle)))
        for item in items:
            self._leaves(item)
        lone = None if self.running or self.has_raw(long=True) else policy.lone
        if lone is not None and not self._in_turn(1 + self._waiting(), lone):
            lone = None
        cost_s = policy.cost.seconds(len(items), longest, sum(item.tokens for item in items))
        predicted = cost_s * policy.drift.factor * (lone or 1.0)
        batch = Batch(
            model=head.job.model, items=items, longest=longest, started=now, predicted_s=predicted,
            is_lone=lone is not None, stop=stop(),
        )  # fmt: skip
        self.running[batch] = None
        return batch

    def done(self, batch: Batch, *, now: float) -> None:
        """Forget a batch that has run."""
        self.running.pop(batch, None)
        policy = self._policies[batch.model]
        if not batch.is_lone:  # which says nothing of runs that share the cores
            alone = sum(policy.cost.seconds(1, item.tokens) for item in batch.items)
            policy.drift.saw(actual_s=now - batch.started, predicted_s=alone)

    def expected_s(self, model: str, tokens: int) -> float:
        """Return what one row of so many tokens is expected to take."""
        policy = self._policies[model]
        return policy.cost.seconds(1, tokens) * policy.drift.factor

    def drift(self, model: str) -> float:
        """Return how many times longer than measured at the start a model's rows take now."""
        return self._policies[model].drift.factor

    def wait_s(self, cost_s: float, *, now: float) -> float:
        """Return how long a request of this cost that came now would wait for others, as predicted.

        Before it is through, each request with rows that are due later gets at most as much as it gets itself.
        """
        running = sum(max(0.0, batch.started + batch.predicted_s - now) for batch in list(self.running))
        waiting = self.due_s + min(self.later_s, self._spread * cost_s)
        return max(0.0, running + waiting) / self._runners

    def _waiting(self) -> int:
        """Return how many rows wait; those of abandoned requests count."""
        return len(self._due) + len(self._later)

    def _in_turn(self, rows: int, lone: float) -> bool:
        """Tell whether so many rows are through about as soon in lone runs, one after the other, as side by side."""
        return rows <= _LONE_ROWS and rows * lone <= _LATER * -(-rows // self._runners)

    def _head(self, now: float) -> Item | None:
        while self._due or self._later:
            item = self._due.popleft() if self._due else self._pop_later()
            if item.job.deadline <= now:
                self.drop(item.job)
            if not item.job.dead:
                return item
            self._leaves(item)
        return None

    def _company(self, items: list[Item], policy: Policy, *, most: int) -> int:
        """Add rows to a batch of one; return the longest's tokens."""
        head = items[0]
        longest = tokens = head.tokens

        def joins(item: Item) -> bool:
            wider = max(longest, item.tokens)
            fits = len(items) < most and policy.fits(len(items) + 1, wider, tokens + item.tokens)
            return fits and policy.cost.pays(len(items), longest, tokens, added=item.tokens)

        window = [self._due.popleft() for _ in range(min(_WINDOW, len(self._due)))]
        near = [item for item in window if item.job.model == head.job.model and not item.job.dead]
        taken = set()
        if not policy.cost.unpadded:
            near.sort(key=lambda item: abs(item.tokens - head.tokens))
        for item in near:
            if joins(item):
                items.append(item)
                taken.add(id(item))
                longest, tokens = max(longest, item.tokens), tokens + item.tokens
        self._due.extendleft(item for item in reversed(window) if id(item) not in taken)
        # Of rows that are not due only the next ones: to put others back would change the order.
        while self._later and not self._due:
            item = self._later[0][2]
            if item.job.dead or item.job.model != head.job.model or not joins(item):
                break
            items.append(self._pop_later())
            longest, tokens = max(longest, item.tokens), tokens + item.tokens
        return longest

    def _pop_later(self) -> Item:
        """Make the next row that is not due a due one, and return it."""
        item = heapq.heappop(self._later)[2]
        job = item.job
        if not job.dead:
            job.later -= 1
            self._spread -= job.later == 0
            job.later_s -= item.cost_s
            job.due_s += item.cost_s
            self.later_s -= item.cost_s
            self.due_s += item.cost_s
        return item

    def _leaves(self, item: Item) -> None:
        model = item.job.model
        self.rows[model] -= 1
        self.tokens[model] -= item.tokens
        if not item.job.dead:
            item.job.due_s -= item.cost_s
            self.due_s -= item.cost_s
