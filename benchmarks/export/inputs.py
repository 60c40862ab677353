"""The inputs that every contestant gets; numpy alone, because it runs in every environment."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

# Below them stand the special tokens of the vocabulary.
FIRST_ORDINARY_ID = 5


def make_feeds(
    names: Iterable[str], *, batch_size: int, num_tokens: int, vocab_size: int, seed: int
) -> dict[str, np.ndarray]:
    """Return int64 arrays of shape (batch_size, num_tokens): random ordinary tokens, all attended to."""
    rng, shape = np.random.default_rng([seed, batch_size, num_tokens]), (batch_size, num_tokens)
    known = {
        "input_ids": rng.integers(FIRST_ORDINARY_ID, vocab_size, size=shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    return {name: known[name] for name in names}


def write_texts(file: Path, ids: Iterable[Sequence[int]], labels: Sequence[int] = ()) -> None:
    """Write single texts, as token ids with the special ones, and their labels."""
    rows = [np.asarray(row, dtype=np.int64) for row in ids]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, ids=np.concatenate(rows), lengths=[len(row) for row in rows], labels=np.asarray(labels, np.int64))


def read_batches(file: Path, names: Iterable[str], *, batch_size: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Yield the texts in order, `batch_size` at a time, padded on the right with 0."""
    with np.load(file) as stored:
        ends = np.cumsum(stored["lengths"])
        rows = np.split(stored["ids"], ends[:-1])
    wanted = list(names)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        shape = (len(batch), max(map(len, batch)))
        known = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        for number, row in enumerate(batch):
            known["input_ids"][number, : len(row)] = row
            known["attention_mask"][number, : len(row)] = 1
        yield {name: known[name] for name in wanted}
