"""The calls that are timed: inputs of a load's size, or the data's own texts, prepared for an engine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from potstill.bench.report_schema import Load
from potstill.bench.runners import Feeds, Runner
from potstill.errors import BundleError, UsageError
from potstill.serve import Text

Call = Callable[[], object]

# Texts that are run before timing begins: enough lengths to grow an engine's memory to what it will need.
_WARM_TEXTS = 16
_GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(frozen=True, slots=True)
class Workload:
    """One load, ready to be run.

    Attributes:
        calls: what is timed, one text or batch each, to be gone round.
        warm: those of `calls` that are run before, the longest first.
        samples: the inputs of `warm`.
        mean_tokens: tokens per text.
    """

    calls: tuple[Call, ...]
    warm: tuple[Call, ...]
    samples: tuple[Feeds, ...]
    mean_tokens: float

    def go_round(self, start: int = 0) -> Call:
        """Return one call that makes the next of `calls` each time, beginning with number `start`."""
        if len(self.calls) == 1:
            return self.calls[0]
        start %= len(self.calls)
        # Cut and joined, because cycle cannot begin in the middle.
        following = cycle(self.calls[start:] + self.calls[:start]).__next__
        return lambda: following()()


def make_loads(batch_sizes: Iterable[int], num_tokens: Iterable[int]) -> list[Load]:
    """Return a grid load of every combination once, smallest first."""
    lengths = list(num_tokens)
    sizes = sorted({(batch, length) for batch in batch_sizes for length in lengths})
    return [Load(batch_size=batch, num_tokens=length) for batch, length in sizes]


def check_loads(loads: Iterable[Load], *, name: str, positions: int) -> None:
    """Refuse a load that is longer than a model has positions.

    Raises:
        UsageError: naming the load and the limit.
    """
    for load in loads:
        if load.num_tokens is not None and load.num_tokens > positions:
            raise UsageError(
                f"{load.num_tokens} tokens are more than the {positions} positions of the {name}; "
                f"measure at most {positions} tokens (--num-tokens {positions})"
            )


def grid_feeds(load: Load, *, inputs: Iterable[str], ids: NDArray[np.int64], seed: int) -> Feeds:
    """Return exactly `batch_size` × `num_tokens` random tokens of `ids`, all of them attended to.

    The same load and seed give the same tokens to every model with the same vocabulary.

    Raises:
        UsageError: if the load has no length, or there are no ids to draw from.
        BundleError: if the model declares an input that the bench cannot fill.
    """
    if load.num_tokens is None or not len(ids):
        raise UsageError(f"a grid load needs a length and ordinary tokens; got {load.num_tokens} and {len(ids)}")
    rng = np.random.default_rng([seed, load.batch_size, load.num_tokens])
    shape = (load.batch_size, load.num_tokens)
    known = {
        "input_ids": rng.choice(ids, size=shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise BundleError(f"the model wants an input {unknown[0]!r}; the bench fills {', '.join(known)}")
    return {name: known[name] for name in inputs}


def make_workload(load: Load, runner: Runner, *, texts: Sequence[Text], seed: int) -> Workload:
    """Prepare the calls of a load for an engine.

    Args:
        load: what one call is given.
        runner: the engine that runs the calls.
        texts: those of the data set, for loads of texts, in any order.
        seed: of the random tokens.

    Raises:
        UsageError: if the load wants texts and there are none, or several per call.
    """
    if load.kind == "grid":
        ids = runner.tokenizer.ordinary_ids(runner.vocab_size)
        feeds = grid_feeds(load, inputs=runner.inputs, ids=ids, seed=seed)
        call = runner.prepare(feeds)
        return Workload((call,), (call,), (feeds,), float(feeds["input_ids"].shape[1]))
    if not texts or load.batch_size != 1:
        raise UsageError(f"{load} takes texts one by one; got {len(texts)} texts and batches of {load.batch_size}")
    rows = runner.tokenizer.rows(texts)
    order = mix_lengths(np.array([len(row["input_ids"]) for row in rows]))
    rows, texts = [rows[index] for index in order], [texts[index] for index in order]
    lengths = np.array([len(row["input_ids"]) for row in rows])
    calls: tuple[Call, ...]
    if load.kind == "texts_tokenised":  # the whole way of one text, as a server goes it
        calls = tuple(partial(lambda text: runner.run(runner.tokenizer.encode([text])), text) for text in texts)
    else:
        calls = tuple(runner.prepare(runner.tokenizer.pad([row])) for row in rows)
    # From the longest to the shortest in even steps.
    chosen = np.argsort(-lengths, kind="stable")[np.linspace(0, len(rows) - 1, min(_WARM_TEXTS, len(rows))).astype(int)]
    return Workload(
        calls,
        tuple(calls[index] for index in chosen),
        tuple(runner.tokenizer.pad([rows[index]]) for index in chosen),
        float(lengths.mean()),
    )


def mix_lengths(lengths: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return an order in which any few texts in a row are about as long as all of them.

    In the same time a fast model answers more texts than a slow one, and both must get the same mix of lengths. The
    texts' ranks by length follow multiples of the golden ratio, of which every stretch is spread evenly (Knuth, The
    Art of Computer Programming 3, section 6.4, theorem S).
    """
    # argsort twice gives ranks, so that every text is taken exactly once.
    ranks = np.argsort(np.argsort(np.arange(len(lengths)) * _GOLDEN_RATIO % 1))
    return np.argsort(lengths, kind="stable")[ranks]
