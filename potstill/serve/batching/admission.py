"""Decide whether a request is taken or refused (429), from its predicted wait. Pure: the time is given.

A queue that stands for longer than it takes to ride out a burst answers nobody sooner and everybody later (Nichols and
Jacobson, "Controlling Queue Delay", 2012). So there are two limits of the predicted wait, both in multiples of what a
long request of late takes: a generous one while the queue is a burst's, and a small one from the first refusal on,
until a runner has been free and found nothing in the request's lane, which is the proof that the load has gone or that
the small limit was too small. A request that costs more than most may wait longer, as it takes longer anyway. And while
a text is running that takes longer than a full batch of usual ones, everybody may wait for so long in addition: it is
its end that is waited for, and refusing would not make that come sooner.
"""

from collections import deque
from random import Random

from potstill.serve.batching.queue import Lane

# Multiples of a long request's cost. The small one keeps an overloaded server's answers within a few times its normal
# ones, and still has the next batch at hand: tests/serve/batching/simulation.py tries them.
_BURST = 9.0
_STANDING = 1.5
# But a burst's wait is not to outlast what people wait for an answer, however long a model's runs are.
_LONGEST_BURST_S = 0.4
# Where runs take longer than they did at the start, because the flood itself takes the cores, the small limit does not
# grow with them, but is not less than this: or the runners would wait for work.
_LEAST = 1.0
# And at least so many of the batches that pay: with less behind it a runner finds half a batch, which is slower per
# text, which keeps the queue standing.
_BATCHES_BURST, _BATCHES_STANDING = 3.0, 1.0
# A long request: this share of the last ones cost less. Of those of the lowest lane; others have their own cost.
_LONG = 0.95
_REMEMBERED = 256
_LEARN_EVERY = 32
# Even for the smallest models: what an event loop's own pauses take.
_FLOOR_S = 0.004
_LONGEST_RETRY_S = 30.0
# Refused work is forgotten over about this time: who was refused before has come back by now.
_MEMORY_S = 1.0


class Admission:
    """Takes or refuses the requests to one model. Used on the event loop only, so it needs no lock."""

    def __init__(self, *, typical_s: float, batch_s: float = 0.0, fixed_s: float | None = None, seed: int = 0) -> None:
        """Set the limits from what was measured at warm-up.

        Args:
            typical_s: what a long request is expected to cost.
            batch_s: what a full batch takes; 0 if none is formed.
            fixed_s: the limit, set by hand.
            seed: of the jitter in what the refused are told.
        """
        self.long_s = typical_s
        self._batch_s, self._fixed_s = batch_s, fixed_s
        self._drift = 1.0
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        self._seen = 0
        self._random = Random(seed)

    def limit_s(self, cost_s: float, *, is_standing: bool, longest_row_s: float = 0.0) -> float:
        """Return the longest predicted wait at which a request of this cost is taken.

        Args:
            cost_s: what it costs itself.
            is_standing: whether one of its size was refused, and some have been waiting since.
            longest_row_s: what the longest of the rows takes that are running.
        """
        if self._fixed_s is not None:
            return self._fixed_s
        long_s = max(self.long_s, cost_s)
        times = max(_LEAST, _STANDING / max(1.0, self._drift))
        limit = max(_FLOOR_S, times * long_s, _BATCHES_STANDING * self._batch_s)
        if not is_standing:
            limit = max(limit, min(_LONGEST_BURST_S, max(_BURST * long_s, _BATCHES_BURST * self._batch_s)))
        return limit + (longest_row_s if longest_row_s > max(self.long_s, self._batch_s) else 0.0)

    def limits_ms(self) -> dict[str, float]:
        """Return the limits for a short request: in a burst, and while a queue stands."""
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
        """Return None if a request is taken, else the seconds after which it should be sent again.

        Args:
            lane: where it would wait; what is remembered of its refusals is kept in it.
            wait_s: how long it would wait for others.
            cost_s: what it costs itself.
            now: the time.
            longest_row_s: what the longest of the rows takes that are running.
            runs_s: how long its own runs take, several at a time; None for `cost_s`.
            left_s: how long its client waits. What cannot be ready by then is refused now, unless nothing is before it.
        """
        limit = self.limit_s(cost_s, is_standing=lane.is_standing, longest_row_s=longest_row_s)
        ends_s = wait_s + (cost_s if runs_s is None else runs_s)
        if wait_s <= limit and (ends_s <= left_s or wait_s <= 0):
            return None
        lane.is_standing = lane.is_standing or wait_s > limit
        # Refused work decays linearly over the memory, which needs no exponent and no list.
        lane.refused_s = cost_s + lane.refused_s * max(0.0, 1.0 - (now - lane.refused_at) / _MEMORY_S)
        lane.refused_at = now
        # All that were refused come back; together they should find room.
        seconds = (wait_s - 0.5 * min(wait_s, limit) + lane.refused_s) * self._random.uniform(0.8, 1.6)
        return min(_LONGEST_RETRY_S, seconds)

    def took(self, cost_s: float, *, drift: float, is_lowest: bool = True) -> None:
        """Learn what a request costs, once it is tokenised; `drift` times what it cost at the start."""
        self._drift = drift
        if not is_lowest:
            return
        self._costs.append(cost_s)
        self._seen += 1
        if self._seen % _LEARN_EVERY == 0:
            self.long_s = sorted(self._costs)[int(_LONG * len(self._costs))]
