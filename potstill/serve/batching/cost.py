"""What a run costs, as measured on this machine: pure numbers, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

# A batch must be cheaper than its rows alone by this share; less is noise, and whoever came first waits for the rest.
_GAIN = 0.03
# Batches are formed if the best was faster than texts alone by this share. It is small, because the two mistakes
# differ: a batch that gains nothing costs a few milliseconds under load, and without one that does a third of the
# answers is lost. And the measurement knows the run alone: what is around it (waking threads, the interpreter's lock)
# is paid per run too.
_WORTH = 0.05
# Then the smallest batch is taken whose speed is this share of the best batch's: a bigger one only answers later.
_GOOD_ENOUGH = 0.95
_SIZES = (1, 2, 4, 8, 16)
# Tokens of a text that counts as long before any has come.
LONG_TOKENS = 64
# A batch may take so many times what a long text takes alone: whoever comes next waits for it.
_LONGEST_BATCH = 2.5
# Texts are not all of one length: where padding is computed like text, of so many times the tokens a batch of that
# many rows can be had.
_SLACK = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured run: `rows` of `length` tokens each took `seconds`."""

    rows: int
    length: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """Seconds of a run of n rows padded to l tokens: fixed + per_row n + per_token n l + per_pair n l^2.

    The last term is attention's. A file without padding in its products has their tokens in place of n l.
    """

    fixed: float
    per_row: float
    per_token: float
    per_pair: float
    unpadded: bool = False

    def seconds(self, rows: int, longest: int, tokens: int | None = None) -> float:
        """Return the predicted seconds of one run; without its `tokens` all rows are as long as the longest."""
        padded = rows * longest
        counted = tokens if self.unpadded and tokens is not None else padded
        return self.fixed + rows * self.per_row + counted * self.per_token + padded * longest * self.per_pair

    def pays(self, rows: int, longest: int, tokens: int, *, added: int) -> bool:
        """Tell whether a row of `added` tokens is cheaper in a run than alone; what the run has is told without it."""
        wider = max(longest, added)
        extra = self.seconds(rows + 1, wider, tokens + added) - self.seconds(rows, longest, tokens)
        return extra <= (1 - _GAIN) * self.seconds(1, added)


def fit(samples: Sequence[Sample], *, unpadded: bool = False) -> RunCost:
    """Fit the four terms by least squares on relative errors; a term that would be negative is left out.

    Args:
        samples: runs of rows of one length.
        unpadded: whether the file leaves padding out of its products.

    Raises:
        ValueError: if there are no samples.
    """
    if not samples:
        raise ValueError("there is nothing to fit a cost to")
    rows = np.array([sample.rows for sample in samples], dtype=np.float64)
    length = np.array([sample.length for sample in samples], dtype=np.float64)
    seconds = np.array([sample.seconds for sample in samples], dtype=np.float64)
    terms = np.stack([np.ones_like(rows), rows, rows * length, rows * length**2], axis=1) / seconds[:, None]
    # Columns differ by orders of magnitude.
    scale = terms.max(axis=0)
    kept, found = list(range(4)), np.zeros(4)
    while kept:
        solution = np.linalg.lstsq(terms[:, kept] / scale[kept], np.ones_like(seconds), rcond=None)[0]
        if (solution >= 0).all():
            found[kept] = solution / scale[kept]
            break
        del kept[int(solution.argmin())]
    fixed, per_row, per_token, per_pair = map(float, found)
    return RunCost(fixed=fixed, per_row=per_row, per_token=per_token, per_pair=per_pair, unpadded=unpadded)


def token_budget(samples: Sequence[Sample], *, unpadded: bool = False) -> int:
    """Return the tokens up to which a batch pays, over all measured lengths.

    At each length it is the smallest batch that is nearly as fast per row as the best one, which may be one row; but at
    the shortest length that gains it is two at least. A length at which batches were not faster asks for none.

    Whether batches pay is taken from what was measured, how large they should be from what was fitted to it: noise in
    one of the samples would double the batch, and with it the waiting. For the same reason no batch takes much longer
    than a long text alone; where the fixed part of a run is large, that is many rows.
    """
    cost, budget = fit(samples), 1
    for length in sorted({sample.length for sample in samples}):
        per_row = {sample.rows: sample.seconds / sample.rows for sample in samples if sample.length == length}
        if per_row.get(1, 0.0) * (1 - _WORTH) <= min(per_row.values()):
            continue
        # Also those that there was no time to measure.
        fitted = {rows: cost.seconds(rows, length) / rows for rows in _SIZES if rows <= max(per_row)}
        rows = min(rows for rows, seconds in fitted.items() if seconds * _GOOD_ENOUGH <= min(fitted.values()))
        if budget == 1:
            rows = max(2, rows)  # the shortest texts that gain are not left alone because others are nearly as fast so
        if rows > 1:
            budget = max(budget, round((1.0 if unpadded else _SLACK) * rows * length))
    # A token's cost in texts of common length.
    per_token = (cost.seconds(1, LONG_TOKENS // 2) - cost.fixed) / (LONG_TOKENS // 2)
    most = (_LONGEST_BATCH * cost.seconds(1, LONG_TOKENS) - cost.fixed) / per_token if per_token else inf
    return int(min(budget, most))


class Drift:
    """How reality relates to the prediction: an exponential mean of actual over predicted."""

    def __init__(self, *, weight: float = 0.05, most: float = 20.0) -> None:
        self.factor = 1.0
        self._weight, self._most = weight, most

    def saw(self, *, actual_s: float, predicted_s: float) -> None:
        """Learn from one run."""
        if predicted_s > 0:
            # One stall (a suspended machine) shall not close the door for long.
            ratio = min(self._most, max(1 / self._most, actual_s / predicted_s))
            self.factor += self._weight * (ratio - self.factor)
