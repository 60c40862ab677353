"""Predict what a run of the model costs on this machine: measure it at warm-up and fit a model of four terms.

The size of the batches follows from the fit (`token_budget`), and so do the order and the admission of requests. All
costs are wall-clock seconds of one runner while the other runners are busy.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from time import perf_counter

import numpy as np

from potstill.serve.encoder import RunRows
from potstill.serve.tokenizer import Row

# A row joins a batch only if that is cheaper than running it alone by this share: less is noise, and the rows that came
# first would wait for it.
_GAIN = 0.03
# Batches are formed if the best one was faster per text than texts alone by this share. It is small because a useless
# batch costs a few milliseconds under load, and a missing one a third of the throughput (96 to 116 instead of 150 texts
# per second: docs/log.md). And the measurement leaves out what each run costs besides: waking threads, the GIL.
_WORTH = 0.05
# Of the batches that pay the smallest is taken whose speed is this share of the best one's: a larger one only adds
# latency. 0.9 lost a tenth of the throughput at capacity (155 instead of 172 texts per second: docs/log.md).
_GOOD_ENOUGH = 0.95
_SIZES = (1, 2, 4, 8, 16)
# Tokens of a text that counts as long before any request has come.
LONG_TOKENS = 64
# A batch may take so many times as long as a long text alone: the next request has to wait for it.
_LONGEST_BATCH = 1.75
# Texts differ in length: where padding is computed like text, rows of a length fill so many times their tokens.
_SLACK = 1.5

# Batches beyond this many padded tokens were never faster on the CPUs this was tried on: the products are then large
# enough to fill a core, and the activations leave its cache.
_MOST_TOKENS = 1024
# Where only attention computes padding, a batch may have so many times its tokens including padding: memory holds it.
_MOST_PADDED = 3
# Numbers in the outputs of one run: 64 MB as float32. 549 tokens of a vocabulary of 30,522 words fill it.
_MOST_NUMBERS = 2**24
# Lengths in tokens at which one row alone is measured.
_LENGTHS = (8, 32, 128)
# The length of a common text, where one length has to stand for all.
_COMMON = 32
# Batches, as (rows, length), in the order in which they are measured. Batches of short texts come first: they are the
# most frequent, and the ones that pay. The first is always measured, or a slow machine would form none (docs/log.md).
_BATCHES = ((8, 32), (4, 32), (2, 32), (2, 128), (4, 8), (16, 8), (16, 32))
# Repeats of one measurement: at most so many, and none after so many seconds.
_REPEATS, _ENOUGH_S = 5, 0.05
# A run that takes longer than this is measured once: its noise is a small share of it.
_LONG_S = 0.4
# Time for all measurements. What is left by then is skipped, except one row at each length and the first batch: a model
# that needs longer for these needs its batches most.
_SECONDS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured run: `rows` of `length` tokens each took `seconds`."""

    rows: int
    length: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """Seconds of a run of n rows padded to l tokens: fixed + per_row n + per_token n l + per_pair n l^2.

    The last term is attention's. For a file that leaves padding out of its products (`unpadded`) the number of real
    tokens takes the place of n l.
    """

    fixed: float
    per_row: float
    per_token: float
    per_pair: float
    unpadded: bool = False

    def seconds(self, rows: int, longest: int, tokens: int | None = None) -> float:
        """Return the predicted seconds of one run.

        Args:
            rows: number of rows.
            longest: tokens of the longest row.
            tokens: of all rows, without padding; None where all rows are as long as the longest.
        """
        padded = rows * longest
        counted = tokens if self.unpadded and tokens is not None else padded
        return self.fixed + rows * self.per_row + counted * self.per_token + padded * longest * self.per_pair

    def pays(self, rows: int, longest: int, tokens: int, *, added: int) -> bool:
        """Tell whether a row of `added` tokens is cheaper in a run than alone; the other arguments exclude it."""
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
    # Dividing each equation by its seconds makes the residuals relative: else the longest run would decide the fit.
    terms = np.stack([np.ones_like(rows), rows, rows * length, rows * length**2], axis=1) / seconds[:, None]
    # The columns differ by orders of magnitude; scaled to 1, the solution loses fewer digits.
    scale = terms.max(axis=0)
    kept, found = list(range(4)), np.zeros(4)
    # Non-negative least squares by dropping the most negative term and solving again; four terms need no more.
    while kept:
        solution = np.linalg.lstsq(terms[:, kept] / scale[kept], np.ones_like(seconds), rcond=None)[0]
        if (solution >= 0).all():
            found[kept] = solution / scale[kept]
            break
        del kept[int(solution.argmin())]
    fixed, per_row, per_token, per_pair = map(float, found)
    return RunCost(fixed=fixed, per_row=per_row, per_token=per_token, per_pair=per_pair, unpadded=unpadded)


def token_budget(samples: Sequence[Sample], *, unpadded: bool = False) -> int:
    """Return the tokens up to which a batch pays: the largest over all measured lengths, 1 for no batches.

    At each length it is the smallest batch that is nearly as fast per row as the best one, which may be one row; but at
    the shortest length where batches gain, it has two rows at least. A length where they were not faster is left out.

    Whether batches pay is taken from the samples, how large they should be from the fit: noise in one sample would
    double the batch, and with it the latency. For the same reason no batch may take much longer than a long text alone;
    where the fixed part of a run is large, that still allows many rows.
    """
    cost, budget = fit(samples), 1
    for length in sorted({sample.length for sample in samples}):
        per_row = {sample.rows: sample.seconds / sample.rows for sample in samples if sample.length == length}
        if per_row.get(1, 0.0) * (1 - _WORTH) <= min(per_row.values()):
            continue
        # From the fit, so that sizes which there was no time to measure count too.
        fitted = {rows: cost.seconds(rows, length) / rows for rows in _SIZES if rows <= max(per_row)}
        rows = min(rows for rows, seconds in fitted.items() if seconds * _GOOD_ENOUGH <= min(fitted.values()))
        if budget == 1:
            rows = max(2, rows)  # or one row is "nearly as good" where batches pay: half of the starts had none
        if rows > 1:
            budget = max(budget, round((1.0 if unpadded else _SLACK) * rows * length))
    # A token's cost in texts of common length.
    per_token = (cost.seconds(1, LONG_TOKENS // 2) - cost.fixed) / (LONG_TOKENS // 2)
    most = (_LONGEST_BATCH * cost.seconds(1, LONG_TOKENS) - cost.fixed) / per_token if per_token else inf
    return int(min(budget, most))


class Drift:
    """Track how much slower than predicted rows run now: an exponential moving average of actual over predicted."""

    def __init__(self, *, weight: float = 0.05, most: float = 20.0) -> None:
        self.factor = 1.0
        self._weight, self._most = weight, most

    def saw(self, *, actual_s: float, predicted_s: float) -> None:
        """Update the factor from one run."""
        if predicted_s > 0:
            # Clipped: one stall (a suspended machine) must not have requests refused for long.
            ratio = min(self._most, max(1 / self._most, actual_s / predicted_s))
            self.factor += self._weight * (ratio - self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """The measurements of one model, and the batch sizes that follow from them."""

    cost: RunCost
    samples: list[Sample]
    batch_tokens: int
    """Most tokens of a batch; 1 if every text runs alone."""
    padded_tokens: int
    """Most tokens of a batch including its padding."""
    why: str
    largest_run: tuple[int, int]
    """Rows and tokens per row of the largest run that there can be."""
    batch_s: float
    """Seconds of a full batch of common texts; 0 if no batches are formed."""
    batching_gain: float
    """Texts per second in the best batch over texts per second alone, at the length where it is largest."""

    def describe(self) -> dict[str, object]:
        """Return the plan as plain JSON values, for `GET /info`."""
        return {
            "batch_tokens": self.batch_tokens,
            "padded_tokens": self.padded_tokens,
            "why": self.why,
            "batching_gain": round(self.batching_gain, 2),
            "largest_run": list(self.largest_run),
            "milliseconds": [
                {"rows": sample.rows, "tokens": sample.length, "ms": round(sample.seconds * 1e3, 3)}
                for sample in self.samples
            ],
        }


def measure(
    run: RunRows,
    *,
    max_length: int,
    row: Callable[[int], Row],
    alone: str | None,
    runners: int,
    unpadded: bool = False,
    sizes: Callable[[int], Sequence[int]] = lambda most: (),
) -> ModelPlan:
    """Measure a model and choose its batch size; then run the largest batches, so that memory has its final size.

    Args:
        run: runs rows.
        max_length: the longest row in tokens.
        row: makes a row of so many tokens.
        alone: why rows must run alone, or None where they may share a run.
        runners: how many runs there may be at a time; each shape is measured on all of them at once.
        unpadded: whether the file leaves padding out of its products.
        sizes: returns the numbers of tokens up to a largest one that the engine prepares itself for (`Session.sizes`).

    Raises:
        CheckError: if the model does not run.
    """
    short = min(_LENGTHS[0], max_length)
    # This is also the session's first run, so none of those that are measured is.
    outputs = run([row(short)], None)
    width = max(1, sum(values.size for values in outputs[0].values()) // short)  # numbers per token
    most = min(max(_MOST_TOKENS, max_length), max(max_length, _MOST_NUMBERS // width))
    lengths = sorted({min(length, max_length) for length in (*_LENGTHS, max_length)})
    shapes = [(1, length) for length in lengths]
    if alone is None:
        shapes += [(rows, length) for rows, length in _BATCHES if length <= max_length and rows * length <= most]

    def seconds(rows: list[Row]) -> float:
        began = perf_counter()
        run(rows, None)
        return perf_counter() - began

    with ThreadPoolExecutor(runners) as pool:

        def everywhere(rows: list[Row]) -> float:
            """Run the same on all runners at once, as under load, because they share the memory's bandwidth."""
            return max(pool.map(seconds, [rows] * runners))

        began = perf_counter()
        samples: list[Sample] = []
        for rows, length in shapes:
            is_first_batch = rows > 1 and samples[-1].rows == 1
            if rows > 1 and not is_first_batch and perf_counter() - began >= _SECONDS:
                continue
            batch = [row(length)] * rows
            times = [everywhere(batch)]
            # At least twice: the result holds until the server ends, and a neighbour may have had the core once.
            while times[0] < _LONG_S and (len(times) < 2 or (len(times) < _REPEATS and sum(times) < _ENOUGH_S)):
                times.append(everywhere(batch))
            # The minimum: other processes only ever make a run slower.
            samples.append(Sample(rows=rows, length=length, seconds=min(times)))
        budget = min(token_budget(samples, unpadded=unpadded), most) if alone is None else 1
        padded = max(budget, min(_MOST_PADDED * budget, most)) if unpadded and budget > 1 else budget
        for batch in _largest_batches(row, budget, padded, max_length):
            if len(batch) > 1:  # one row of the longest was measured
                everywhere(batch)
        for tokens in sizes(max(budget, max_length)):
            whole, rest = divmod(tokens, max_length)
            everywhere([row(max_length)] * whole + [row(rest)] * (rest > 0))
    cost, common = fit(samples, unpadded=unpadded), min(_COMMON, max_length)
    single = {sample.length: sample.seconds for sample in samples if sample.rows == 1}
    return ModelPlan(
        cost=cost,
        samples=samples,
        batch_tokens=budget,
        padded_tokens=padded,
        batch_s=cost.seconds(max(2, round(budget / common)), common) if budget > 1 else 0.0,
        why=alone or (f"batches of up to {budget} tokens pay" if budget > 1 else "no batch is faster than texts alone"),
        batching_gain=max(single[sample.length] * sample.rows / sample.seconds for sample in samples),
        largest_run=(budget // short, short) if budget > max_length else (1, max_length),
    )


def _largest_batches(row: Callable[[int], Row], budget: int, padded: int, max_length: int) -> list[list[Row]]:
    """Return the batches that take most memory: most rows, longest rows, and most padding.

    The layers' memory grows with the tokens, attention's with rows times the square of the padded length.
    """
    short = min(_LENGTHS[0], max_length)
    batches = [[row(length)] * max(1, budget // length) for length in (short, max_length)]
    if padded > budget:
        mixed = [
            (rows, min(max_length, padded // rows, budget - (rows - 1) * short)) for rows in range(2, budget // short)
        ]
        rows, length = max(mixed, key=lambda shape: shape[0] * shape[1] ** 2, default=(1, short))
        batches.append([row(length)] + [row(short)] * (rows - 1))
    return batches


def constant_row(inputs: Sequence[str], token: int, length: int) -> Row:
    """Return a row of one token, repeated, for a model with these inputs; the values do not matter for its speed."""
    values = {"input_ids": token, "attention_mask": 1}
    return {name: np.full(length, values.get(name, 0), dtype=np.int64) for name in inputs}
