"""Queues of one cost, and requests in them."""

import math

from potstill.serve.batching.cost import Drift, RunCost
from potstill.serve.batching.queue import BatchPolicy, Queue, QueuedRequest

# One millisecond a run and one a token: sums can be done in the head. A usual text, of 64 tokens, takes 65 ms.
UNIT = RunCost(fixed=0.001, per_row=0.0, per_token=0.001, per_pair=0.0)


def queue_of(*, budget=1, cost=UNIT, models=("m",), runners=1, padded=0):
    policies = {name: BatchPolicy(cost=cost, drift=Drift(), budget=budget, padded=padded) for name in models}
    return Queue(policies, runners=runners)


def request_of(*, at=0.0, model="m", deadline=math.inf, characters=10, client=""):
    return QueuedRequest(
        model=model,
        prepare=lambda: None,
        characters=characters,
        arrived=at,
        deadline=deadline,
        timeout_s=60.0,
        client=client,
    )


def put(queue, lengths, *, at=0.0, **about):
    request = request_of(at=at, **about)
    queue.add(request, cost_s=0.0)
    assert queue.next_to_tokenise(long=True) is request
    queue.add_rows(request, list(lengths))
    return request
