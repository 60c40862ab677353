"""The queue and the admission under load, in simulated time: no threads, no noise, seconds in milliseconds."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from potstill.serve.batching.admission import Admission
from potstill.serve.batching.cost import LONG_TOKENS, Drift, RunCost
from potstill.serve.batching.queue import BatchPolicy, Queue, QueuedRequest

# A student of 3 layers and 384 features in fp32 on one core of an EPYC: 2 ms for 25 tokens, 1.5 ms in batches.
STUDENT = RunCost(fixed=0.0007, per_row=0.0001, per_token=0.00005, per_pair=5e-8)
# A DistilBERT on one core of another: 16 ms for 25 tokens, 11 ms in batches, 0.3 s for 512.
DISTILBERT = RunCost(fixed=0.0065, per_row=0.0002, per_token=0.00038, per_pair=4e-7)
REQUEST_SECONDS = 60.0


@dataclass
class Outcome:
    offered: int = 0
    refused: int = 0
    expired: int = 0
    seconds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    duration: float = 0.0
    until: float = 0.0

    @property
    def goodput(self) -> float:
        """Answers per second while load was offered."""
        return sum(ended <= self.until for ended in self.ended) / self.duration

    def p(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent))

    def within(self, seconds: float) -> float:
        """The share of what was offered that was answered within a time."""
        return sum(taken <= seconds for taken in self.seconds) / self.offered


@dataclass
class Client:
    """Sends requests, as tokens of each text: so many a second, at random or evenly, or each after the last answer."""

    texts: Callable[[np.random.Generator], Sequence[int]]
    rate: float | None = None
    evenly: bool = False
    name: str = ""
    outcome: Outcome = field(default_factory=Outcome)


def sst2(size: int = 1) -> Callable[[np.random.Generator], Sequence[int]]:
    """Texts as the sentences of SST-2: 25 tokens on average, up to 60."""
    return lambda draw: np.clip(draw.gamma(4.0, 6.0, size).astype(int) + 3, 4, 60).tolist()


def short(every: float = 0.05, **about) -> Client:
    """The client of the issue: a great movie, every 50 ms."""
    return Client(lambda _: [5], rate=1 / every, evenly=True, **about)


def long(texts: int = 64, tokens: int = 512, **about) -> Client:
    """Long texts, one request after the other."""
    return Client(lambda _: [tokens] * texts, **about)


class Machine:
    """Runners that take what the model of their cost says, times a factor and some noise."""

    def __init__(
        self,
        *,
        cost=STUDENT,
        budget=256,
        padded=0,
        runners=1,
        slower=1.0,
        noise=0.1,
        fixed_s=None,
        batch_s=0.0,
        seed=0,
    ):
        self.draw = np.random.default_rng(seed)
        self.cost, self.slower, self.noise, self.runners = cost, slower, noise, runners
        self.queue = Queue({"m": BatchPolicy(cost=cost, drift=Drift(), budget=budget, padded=padded)}, runners=runners)
        self.admission = Admission(typical_s=cost.seconds(1, LONG_TOKENS), batch_s=batch_s, fixed_s=fixed_s)
        self.free = runners
        self.now = 0.0
        self._events: list = []
        self._order = 0
        self._asking: dict[QueuedRequest, Client] = {}

    def load(self, rate, *, duration=20.0, texts=None) -> Outcome:
        """Offer requests at so many a second."""
        client = Client(texts or sst2(), rate=rate)
        self.serve([client], duration=duration)
        return client.outcome

    def serve(self, clients: Sequence[Client], *, duration: float) -> None:
        """Let clients send for a while, and answer all that was taken."""
        until = self.now + duration
        for client in clients:
            client.outcome.duration, client.outcome.until = duration, until
            self._at(self.now, "send", client)
        while self._events:
            self.now, _, what, about = heapq.heappop(self._events)
            if what == "send":
                if self.now < until:
                    self._send(about)
            elif what == "done":
                self._done(about)
            elif about in self._asking:  # nobody waits any longer
                self._asking.pop(about).outcome.expired += 1
                self.queue.drop(about)
            self._dispatch()

    def _at(self, when, what, about):
        self._order += 1
        heapq.heappush(self._events, (when, self._order, what, about))

    def _send(self, client):
        outcome = client.outcome
        outcome.offered += 1
        if client.rate is not None:
            pause = 1 / client.rate if client.evenly else self.draw.exponential(1 / client.rate)
            self._at(self.now + pause, "send", client)
        tokens = list(client.texts(self.draw))
        cost = sum(self.queue.expected_s("m", n) for n in tokens)
        retry_after = self.admission.refusal(
            self.queue.lane("m", cost),
            self.queue.wait_s("m", cost, now=self.now, client=client.name),
            cost,
            now=self.now,
            longest_row_s=self.queue.longest_row_s(),
            runs_s=cost / min(len(tokens), self.runners),
            left_s=REQUEST_SECONDS,
        )
        if retry_after is not None:
            assert not self.free, "it was refused, and a runner was idle"
            outcome.refused += 1
            if client.rate is None:
                self._at(self.now + retry_after, "send", client)
            return
        level = self.queue.lane("m", cost).level
        self.admission.took(cost, drift=self.queue.drift("m"), is_lowest=level == 0)
        request = QueuedRequest(
            model="m",
            prepare=lambda: None,
            characters=100,
            arrived=self.now,
            deadline=self.now + REQUEST_SECONDS,
            timeout_s=REQUEST_SECONDS,
            client=client.name,
        )
        self._asking[request] = client
        self._at(request.deadline, "end", request)
        self.queue.add(request, cost_s=cost)
        assert self.queue.next_to_tokenise(long=True) is request
        request.rows_left = len(tokens)
        self.queue.add_rows(request, tokens)

    def _dispatch(self):
        while self.free:
            batch = self.queue.next_batch(self.now, idle=self.free - 1)
            if batch is None:
                return
            self.free -= 1
            noise = self.draw.lognormal(0, self.noise)
            seconds = self.cost.seconds(len(batch.rows), batch.longest, batch.tokens) * self.slower * noise
            self._at(self.now + seconds, "done", batch)

    def _done(self, batch):
        self.free += 1
        self.queue.finish(batch, now=self.now)
        for row in batch.rows:
            row.request.rows_left -= 1
            client = self._asking.get(row.request)
            if row.request.rows_left == 0 and client is not None:
                del self._asking[row.request]
                client.outcome.seconds.append(self.now - row.request.arrived)
                client.outcome.ended.append(self.now)
                if client.rate is None:
                    self._at(self.now, "send", client)
