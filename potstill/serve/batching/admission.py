"""Decide from its predicted wait whether a request is accepted or refused (429). Pure: the caller passes the time.

A queue that persists after a burst is over adds latency and no throughput (Nichols and Jacobson, "Controlling Queue
Delay", 2012). So there are two limits on the predicted wait, both multiples of the cost of a recent long request:

- a large one as long as nothing was refused, so that a burst is absorbed;
- a small one from the first refusal on, until a runner is free and finds the request's lane empty: then either the
  load has gone or the small limit is too small.

A request that costs more than most may wait longer, because it takes longer anyway. While a text runs that takes longer
than a full batch of usual ones, its time is added to both limits: refusing would not make it end sooner.
"""

from collections import deque
from random import Random

from potstill.serve.batching.queue import Lane

# Multiples of a long request's cost. The small one keeps an overloaded server's latency within a few times its normal
# one, and still keeps a batch's worth of work queued: tests/serve/batching/simulation.py tries them.
_BURST = 9.0
_STANDING = 1.5
# Upper bound of the burst limit: ten long texts are 0.9 s for DistilBERT, longer than people wait (docs/log.md).
_LONGEST_BURST_S = 0.4
# When runs take longer than at warm-up because the flood itself takes the cores, the small limit does not grow with
# them, but stays at least this multiple: below it the runners would wait for work.
_LEAST = 1.0
# And at least so many full batches: with less queued a runner finds half a batch, which is slower per text, which keeps
# the queue standing (76 instead of 133 texts per second for DistilBERT: docs/log.md). At ten times the load
# a quarter more than one batch answered 0.88 of the peak, one batch 0.75 (docs/log.md).
_BATCHES_BURST, _BATCHES_STANDING = 3.0, 1.25
# Quantile of the recent costs that counts as a long request, among requests of the lowest lane only: the others are
# measured by their own cost.
_LONG = 0.95
_REMEMBERED = 256
_LEARN_EVERY = 32  # sorting 256 costs for every answer would be on the event loop
# The smallest limit, for models of under a millisecond: the event loop's own pauses are as long.
_FLOOR_S = 0.004
_LONGEST_RETRY_S = 30.0
# Time over which refused work is forgotten: a client that was refused earlier has come back by then.
_MEMORY_S = 1.0


class Admission:
    """Accept or refuse the requests to one model. It is used on the event loop only, so it needs no lock."""

    def __init__(self, *, typical_s: float, batch_s: float = 0.0, fixed_s: float | None = None, seed: int = 0) -> None:
        """Set the limits from what was measured at warm-up.

        Args:
            typical_s: expected cost of a long request in seconds, until requests have been seen.
            batch_s: seconds of a full batch; 0 if none is formed.
            fixed_s: a limit set by the user, in seconds, which replaces all of this.
            seed: of the jitter in Retry-After.
        """
        self.long_s = typical_s
        self._batch_s, self._fixed_s = batch_s, fixed_s
        self._drift = 1.0
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        self._seen = 0
        self._random = Random(seed)

    def limit_s(self, cost_s: float, *, is_standing: bool, longest_row_s: float = 0.0) -> float:
        """Return the longest predicted wait, in seconds, at which a request of this cost is accepted.

        Args:
            cost_s: predicted cost of the request itself.
            is_standing: whether a request of its lane was refused and the lane has not been empty since.
            longest_row_s: predicted seconds of the longest row that is running.
        """
        if self._fixed_s is not None:
            return self._fixed_s
        long_s = max(self.long_s, cost_s)
        times = max(_LEAST, _STANDING / max(1.0, self._drift))
        limit = max(_FLOOR_S, times * long_s, _BATCHES_STANDING * self._batch_s)
        if not is_standing:
            limit = max(limit, min(_LONGEST_BURST_S, max(_BURST * long_s, _BATCHES_BURST * self._batch_s)))
        # Only a run beyond a full batch: adding any long batch took p99 in a flood from 3.3 to 6.4 times (docs/log.md).
        return limit + (longest_row_s if longest_row_s > max(self.long_s, self._batch_s) else 0.0)

    def limits_ms(self) -> dict[str, float]:
        """Return the limits for a short request in milliseconds: `burst` and `standing`."""
        return {
            name: round(self.limit_s(0.0, is_standing=is_standing) * 1e3, 2)
            for name, is_standing in (("burst", False), ("standing", True))
        }

    def refusal(
        self,
        lane: Lane,
        wait_s: float,
        cost_s: float,
        *,
        now: float,
        longest_row_s: float = 0.0,
        runs_s: float | None = None,
        left_s: float = float("inf"),
    ) -> float | None:
        """Return None if a request is accepted, else the seconds for Retry-After.

        Args:
            lane: where it would wait; the state of its refusals is kept in it.
            wait_s: predicted wait for other requests.
            cost_s: predicted cost of the request itself, on one runner.
            now: the time, in seconds of any monotonic clock.
            longest_row_s: predicted seconds of the longest row that is running.
            runs_s: seconds of its own runs, several at a time; None for `cost_s`.
            left_s: seconds until its deadline. What cannot be ready by then is refused, unless nothing is before it.
        """
        limit = self.limit_s(cost_s, is_standing=lane.is_standing, longest_row_s=longest_row_s)
        ends_s = wait_s + (cost_s if runs_s is None else runs_s)
        if wait_s <= limit and (ends_s <= left_s or wait_s <= 0):
            return None
        lane.is_standing = lane.is_standing or wait_s > limit
        # Refused work decays linearly over the memory, which needs no exponent and no list.
        lane.refused_s = cost_s + lane.refused_s * max(0.0, 1.0 - (now - lane.refused_at) / _MEMORY_S)
        lane.refused_at = now
        # All that were refused come back: together they find room once the queue is down to half of the limit and the
        # refused work has run. The jitter keeps them from coming at the same moment.
        seconds = (wait_s - 0.5 * min(wait_s, limit) + lane.refused_s) * self._random.uniform(0.8, 1.6)
        return min(_LONGEST_RETRY_S, seconds)

    def took(self, cost_s: float, *, drift: float, is_lowest: bool = True) -> None:
        """Record the cost of an answered request.

        Args:
            cost_s: seconds, at today's speed.
            drift: how many times slower than at warm-up rows run now.
            is_lowest: whether it was of the lowest lane; only these define a long request.
        """
        self._drift = drift
        if not is_lowest:
            return
        self._costs.append(cost_s)
        self._seen += 1
        if self._seen % _LEARN_EVERY == 0:
            self.long_s = sorted(self._costs)[int(_LONG * len(self._costs))]
