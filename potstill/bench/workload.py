"""What is timed: the cells of the grid and their inputs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill.bundle import Bundle, Manifest
from potstill.errors import BundleError, UsageError

Feeds = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One size of input."""

    batch_size: int
    num_tokens: int

    def __str__(self) -> str:
        return f"{self.batch_size}×{self.num_tokens}"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which token ids a model may be fed."""

    size: int
    special_ids: frozenset[int]


def make_cells(batch_sizes: Iterable[int], num_tokens: Iterable[int]) -> list[Cell]:
    """Return every combination once, smallest first."""
    lengths = list(num_tokens)
    return sorted({Cell(batch, length) for batch in batch_sizes for length in lengths})


def check_cells(cells: Iterable[Cell], *, name: str, manifest: Manifest) -> None:
    """Refuse a cell that is longer than the model has positions.

    Raises:
        UsageError: naming the cell and the limit.
    """
    limit = manifest.architecture.get("max_position_embeddings", manifest.max_length)
    for cell in cells:
        if cell.num_tokens > limit:
            raise UsageError(
                f"{cell.num_tokens} tokens are more than the {limit} positions of the {name}; "
                f"measure at most {limit} tokens (--num-tokens {limit})"
            )


def read_vocabulary(bundle: Bundle) -> Vocabulary:
    """Return the token ids of a bundle's model; the special ones are apart, since some of them end a text.

    Raises:
        BundleError: if neither the manifest nor the tokenizer tells the size of the vocabulary.
    """
    tokenizer = json.loads((bundle.folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = tokenizer.get("added_tokens") or []
    special_ids = frozenset(int(token["id"]) for token in added if token.get("special"))
    size = bundle.manifest.architecture.get("vocab_size") or len(tokenizer.get("model", {}).get("vocab", ()))
    if not size or size <= len(special_ids):
        raise BundleError(f"{bundle.folder}: the size of the vocabulary is unknown; export the checkpoint again")
    return Vocabulary(int(size), special_ids)


def make_feeds(cell: Cell, *, inputs: Iterable[str], vocabulary: Vocabulary, seed: int) -> Feeds:
    """Return exactly `batch_size` × `num_tokens` random ordinary tokens, all of them attended to.

    The same cell and seed give the same ids to every model with the same vocabulary.

    Raises:
        BundleError: if the model declares an input that nobody knows how to fill.
    """
    rng = np.random.default_rng([seed, cell.batch_size, cell.num_tokens])
    ordinary = np.setdiff1d(np.arange(vocabulary.size), np.array(sorted(vocabulary.special_ids), dtype=np.int64))
    shape = (cell.batch_size, cell.num_tokens)
    known: Feeds = {
        "input_ids": rng.choice(ordinary, size=shape).astype(np.int64),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise BundleError(f"the model wants an input {unknown[0]!r}; the bench fills {', '.join(known)}")
    return {name: known[name] for name in inputs}
