"""Before the first request: what runs cost here, and the largest run, so that memory has its size."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from potstill.serve.batching.cost import RunCost, Sample, fit, token_budget
from potstill.serve.batching.model import Runs
from potstill.serve.tokenizer import Row

# Batches beyond this many padded tokens were never faster on the CPUs this was tried on: the products are then large
# enough to fill a core, and the activations leave its cache.
_MOST_TOKENS = 1024
# Where only attention sees padding, a batch may have so many times its tokens with it, which memory must hold.
_MOST_PADDED = 3
# Numbers in the outputs of one run: 64 MB. A vocabulary of 30,522 words fills it with 549 tokens.
_MOST_NUMBERS = 2**24
_LENGTHS = (8, 32, 128)
# As long as most texts are, where one length has to stand for all.
_COMMON = 32
# Batches of short texts say most: they are the most frequent, and those that pay. Without the first nothing is known.
_BATCHES = ((8, 32), (4, 32), (2, 32), (2, 128), (4, 8), (16, 8), (16, 32))
_REPEATS, _ENOUGH_S = 5, 0.05
# A run that takes longer than this is long enough to be believed at once.
_LONG_S = 0.4
# Measuring takes about this long; what is not measured by then is left out, except one row at each length and the
# first batch: a model for which these take longer is the one that needs its batches most.
_SECONDS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What was measured of one model, and what follows from it."""

    cost: RunCost
    samples: list[Sample]
    batch_tokens: int
    """Tokens of a batch; 1 if every text runs alone."""
    padded_tokens: int
    """Tokens of a batch with its padding."""
    why: str
    largest_run: tuple[int, int]
    """Rows and tokens of the largest run that there can be."""
    batch_s: float
    """What a full batch of short texts takes; 0 if none is formed."""
    batching_gain: float
    """Texts per second in the best batch over texts per second alone, at the length where it is largest."""


def measure(
    run: Runs,
    *,
    max_length: int,
    row: Callable[[int], Row],
    alone: str | None,
    runners: int,
    unpadded: bool = False,
) -> ModelPlan:
    """Measure a model, and run what may run at most: memory then has its size.

    Args:
        run: runs rows.
        max_length: the longest row in tokens.
        row: makes a row of so many tokens.
        alone: why rows must run alone, or None.
        runners: how many runs there may be at a time; the largest run is tried by all of them at once.
        unpadded: whether the file leaves padding out of its products.

    Raises:
        CheckError: if the model does not run.
    """
    short = min(_LENGTHS[0], max_length)
    outputs = run([row(short)], None)
    width = max(1, sum(values.size for values in outputs[0].values()) // short)
    most = min(max(_MOST_TOKENS, max_length), max(max_length, _MOST_NUMBERS // width))
    with ThreadPoolExecutor(runners) as pool:

        def everywhere(rows: list[Row]) -> float:
            """Run the same on all runners at once, as under load: they share the memory's bandwidth."""
            return max(pool.map(partial(_seconds, run, rows), range(runners)))

        samples = _measure(everywhere, row, shapes(max_length, most, batches=alone is None))
        budget = min(token_budget(samples, unpadded=unpadded), most) if alone is None else 1
        padded = max(budget, min(_MOST_PADDED * budget, most)) if unpadded and budget > 1 else budget
        for rows in _largest(row, budget, padded, max_length):
            if len(rows) > 1:  # one row of the longest was measured
                everywhere(rows)
    cost, common = fit(samples, unpadded=unpadded), min(_COMMON, max_length)
    why = alone or (f"batches of up to {budget} tokens pay" if budget > 1 else "no batch is faster than texts alone")
    return ModelPlan(
        cost=cost,
        samples=samples,
        batch_tokens=budget,
        padded_tokens=padded,
        batch_s=cost.seconds(max(2, budget // common), common) if budget > 1 else 0.0,
        why=why,
        batching_gain=_gain(samples),
        largest_run=(budget // short, short) if budget > max_length else (1, max_length),
    )


def _largest(row: Callable[[int], Row], budget: int, padded: int, max_length: int) -> list[list[Row]]:
    """Return the largest runs: as wide and as long as it gets, and with as much padding.

    What the layers take grows with the tokens, what attention takes with the padded length and its square.
    """
    short = min(_LENGTHS[0], max_length)
    runs = [[row(length)] * max(1, budget // length) for length in (short, max_length)]
    if padded > budget:
        mixed = [
            (rows, min(max_length, padded // rows, budget - (rows - 1) * short)) for rows in range(2, budget // short)
        ]
        rows, length = max(mixed, key=lambda shape: shape[0] * shape[1] ** 2, default=(1, short))
        runs.append([row(length)] + [row(short)] * (rows - 1))
    return runs


def row_of(inputs: tuple[str, ...], token: int, length: int) -> Row:
    """Return a row of one token, repeated."""
    values = {"input_ids": token, "attention_mask": 1}
    return {name: np.full(length, values.get(name, 0), dtype=np.int64) for name in inputs}


def shapes(max_length: int, most: int, *, batches: bool) -> list[tuple[int, int]]:
    """Return the rows and lengths that are measured, those first that say most."""
    lengths = sorted({min(length, max_length) for length in (*_LENGTHS, max_length)})
    return [(1, length) for length in lengths] + [
        (rows, length) for rows, length in _BATCHES if batches and length <= max_length and rows * length <= most
    ]


def _measure(
    everywhere: Callable[[list[Row]], float], row: Callable[[int], Row], wanted: Iterable[tuple[int, int]]
) -> list[Sample]:
    began = perf_counter()
    samples: list[Sample] = []
    for rows, length in wanted:
        is_first_batch = rows > 1 and samples[-1].rows == 1
        if rows == 1 or is_first_batch or perf_counter() - began < _SECONDS:
            samples.append(Sample(rows=rows, length=length, seconds=_best(everywhere, [row(length)] * rows)))
    return samples


def _best(everywhere: Callable[[list[Row]], float], rows: list[Row]) -> float:
    seconds = [everywhere(rows)]
    # Twice at least: what decides here is decided for good, and a neighbour may have had the core once.
    while seconds[0] < _LONG_S and (len(seconds) < 2 or (len(seconds) < _REPEATS and sum(seconds) < _ENOUGH_S)):
        seconds.append(everywhere(rows))
    return min(seconds)


def _seconds(run: Runs, rows: list[Row], _: int) -> float:
    began = perf_counter()
    run(rows, None)
    return perf_counter() - began


def _gain(samples: list[Sample]) -> float:
    alone = {sample.length: sample.seconds for sample in samples if sample.rows == 1}
    return max(alone[sample.length] * sample.rows / sample.seconds for sample in samples)


def describe(plan: ModelPlan) -> dict[str, Any]:
    """Return a plan as plain JSON values."""
    return {
        "batch_tokens": plan.batch_tokens,
        "padded_tokens": plan.padded_tokens,
        "why": plan.why,
        "batching_gain": round(plan.batching_gain, 2),
        "largest_run": list(plan.largest_run),
        "milliseconds": [
            {"rows": sample.rows, "tokens": sample.length, "ms": round(sample.seconds * 1e3, 3)}
            for sample in plan.samples
        ],
    }
