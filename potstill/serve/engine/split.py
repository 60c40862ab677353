"""One run at a time on all cores, or one on each core: whichever answers more texts here.

Small models lose more at the barriers between the threads of a run than they win. Large ones are limited by memory, and
two runs would read all weights twice (DistilBERT in fp32 on two cores: 120 texts per second either way in batches of 8,
each answered in half the time on both cores; a MiniLM of 3 layers: 1000 against 1200).
"""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from potstill.serve.encoder import Encoder
from potstill.serve.engine.model import Runs, runs_of
from potstill.serve.engine.warmup import row_of
from potstill.serve.tokenizer import Row

_SECONDS = 0.1
_ROUNDS = 2
_ROWS, _LENGTH = 8, 32
# A run on all cores answers a lone client sooner, so it may answer a crowd a little slower.
_GOOD_ENOUGH = 0.97


def split_cores(encoder: Encoder, *, cores: int, allow_drift: bool = False) -> Encoder:
    """Return the encoder, loaded with one thread, or its twin with a thread on every core, if that is no slower.

    Args:
        encoder: loaded with one thread.
        cores: how many there are.
        allow_drift: whether texts share a run even where a file's answers depend on their company.

    Raises:
        CheckError: if the model does not run.
    """
    if cores == 1:
        return encoder
    wide = encoder.with_threads(cores)
    rows = _ROWS if encoder.record.batch_invariant or allow_drift else 1
    rates = {id(encoder): 0.0, id(wide): 0.0}
    for _ in range(_ROUNDS):
        for one, callers in ((encoder, cores), (wide, 1)):
            rates[id(one)] = max(rates[id(one)], _rate(one, rows=rows, callers=callers))
    return wide if rates[id(wide)] >= _GOOD_ENOUGH * rates[id(encoder)] else encoder


def _rate(encoder: Encoder, *, rows: int, callers: int) -> float:
    """Return rows per second."""
    length = min(_LENGTH, encoder.manifest.max_length)
    given = [row_of(encoder.session.inputs, encoder.manifest.pad_token_id, length)] * rows
    run = runs_of(encoder)
    run(given, None)
    began = perf_counter()

    def call(_: int) -> int:
        return _call(run, given, until=began + _SECONDS)

    with ThreadPoolExecutor(callers) as pool:
        runs = sum(pool.map(call, range(callers)))
    return rows * runs / (perf_counter() - began)


def _call(run: Runs, given: list[Row], *, until: float) -> int:
    runs = 0
    while runs == 0 or perf_counter() < until:
        run(given, None)
        runs += 1
    return runs
