"""The queue and the door under load, in simulated time: no threads, no noise, seconds in milliseconds."""

import heapq
from dataclasses import dataclass, field

import numpy as np

from potstill.serve.engine.admission import Admission
from potstill.serve.engine.cost import Drift, RunCost
from potstill.serve.engine.jobs import Job
from potstill.serve.engine.queue import Policy, Queue

# A student of 3 layers and 384 features in fp32 on one core of an EPYC: 2 ms for 25 tokens, 1.5 ms in batches.
STUDENT = RunCost(fixed=0.0007, per_row=0.0001, per_token=0.00005, per_pair=5e-8)
# A DistilBERT on one core of another: 16 ms for 25 tokens, 11 ms in batches.
DISTILBERT = RunCost(fixed=0.0065, per_row=0.0002, per_token=0.00038, per_pair=4e-7)


@dataclass
class Outcome:
    offered: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)
    by_size: dict[int, list[float]] = field(default_factory=dict)
    ended: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    duration: float = 0.0
    until: float = 0.0

    @property
    def goodput(self) -> float:
        """Answers per second while load was offered."""
        return sum(ended <= self.until for ended in self.ended) / self.duration

    def p(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent))


class Machine:
    """Runners that take what the model of their cost says, times a factor and some noise."""

    def __init__(
        self, *, cost=STUDENT, budget=256, padded=0, runners=1, slower=1.0, noise=0.1, fixed_s=None, batch_s=0.0,
        seed=0,
    ):  # fmt: skip
        self.draw = np.random.default_rng(seed)
        self.cost, self.slower, self.noise = cost, slower, noise
        self.queue = Queue({"m": Policy(cost=cost, drift=Drift(), budget=budget, padded=padded)}, runners=runners)
        self.door = Admission(typical_s=cost.seconds(1, 64), batch_s=batch_s, fixed_s=fixed_s)
        self.free = runners
        self.now = 0.0

    def load(self, rate, *, duration=20.0, sizes=(1,), lengths=None) -> Outcome:
        """Offer requests of `sizes` texts, each size as likely, at so many a second."""
        outcome = Outcome(duration=duration, until=self.now + duration)
        begin = self.now
        events: list = []
        arrival = begin
        order = 0
        while (arrival := arrival + self.draw.exponential(1 / rate)) < begin + duration:
            order += 1
            heapq.heappush(events, (arrival, order, None))
        while events:
            self.now, _, batch = heapq.heappop(events)
            if batch is None:
                self._arrive(outcome, int(self.draw.choice(sizes)), lengths)
            else:
                self.free += 1
                self.queue.done(batch, now=self.now)
                self._store(batch, outcome)
            while self.free:
                batch = self.queue.next_batch(self.now, idle=self.free - 1)
                if batch is None:
                    self.door.idle()
                    break
                self.free -= 1
                order += 1
                noise = self.draw.lognormal(0, self.noise)
                seconds = self.cost.seconds(len(batch.items), batch.longest, batch.tokens) * self.slower * noise
                outcome.batches.append(len(batch.items))
                heapq.heappush(events, (self.now + seconds, order, batch))
        return outcome

    def _arrive(self, outcome, size, lengths):
        outcome.offered += 1
        tokens = [int(n) for n in (lengths if lengths is not None else self._lengths(size))]
        cost = sum(self.queue.expected_s("m", n) for n in tokens)
        wait = self.queue.wait_s(cost, now=self.now)
        if self.door.refusal(wait, cost, now=self.now) is not None:
            outcome.refused += 1
            return
        self.door.took(cost, drift=self.queue.drift("m"))
        job = Job(
            model="m", prepare=lambda: None, characters=100, arrived=self.now, deadline=float("inf"), timeout_s=60.0
        )
        self.queue.add(job, cost_s=cost)
        assert self.queue.next_raw(long=True) is job
        job.left = len(tokens)
        self.queue.put(job, tokens, now=self.now)

    def _store(self, batch, outcome):
        for item in batch.items:
            item.job.left -= 1
            if item.job.left == 0:
                outcome.seconds.append(self.now - item.job.arrived)
                outcome.ended.append(self.now)
                outcome.by_size.setdefault(len(batch.items), []).append(self.now - item.job.arrived)

    def _lengths(self, size):
        # As the sentences of SST-2: 25 tokens on average, up to 60.
        return np.clip(self.draw.gamma(4.0, 6.0, size).astype(int) + 3, 4, 60)
