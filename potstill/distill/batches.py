"""From labelled texts to padded batches of similar length, in an order that a resumed run finds again."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from potstill.data import Examples

LENGTH_COLUMN = "length"
_LABELS = "labels"
# Batches that are sorted by length together: enough to leave little padding, few enough to stay shuffled.
_BATCHES_PER_POOL = 50


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
    """Return one row per text: the tokenizer's inputs unpadded, its length in tokens, and its label.

    Token types are always there when the tokenizer makes them: a BERT teacher needs them even when its DistilBERT
    student has none.
    """
    pairs = [text if isinstance(text, tuple) else (text, None) for text in examples.texts]
    seconds = [second for _, second in pairs]
    encoded = tokenizer(
        [first for first, _ in pairs],
        seconds if any(second is not None for second in seconds) else None,
        truncation=True,
        max_length=max_length,
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return Dataset.from_dict({**encoded, LENGTH_COLUMN: lengths, _LABELS: examples.labels})


class LengthGroupedSampler(Sampler[int]):
    """Give row numbers so that consecutive `batch_size` rows have similar lengths, shuffled anew in each epoch.

    The order depends on seed and epoch alone. transformers' own sampler draws it from torch's global generator, so a
    run resumed in the middle of an epoch sees some rows twice and others never.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the training loop calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self._seed, self._epoch))
        order = generator.permutation(len(self._lengths))
        size = self._batch_size * _BATCHES_PER_POOL
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        by_length = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        batches = np.split(by_length, range(self._batch_size, len(order), self._batch_size))
        # The last batch may be short, and only there: moved, it would shift the bounds of all that follow.
        turns = [*generator.permutation(len(batches) - 1), len(batches) - 1]
        return iter(np.concatenate([batches[turn] for turn in turns]).tolist())


def make_collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Return a function that pads rows to the longest of their batch, giving tensors (B, T) and labels (B,)."""

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [{key: row[key] for key in row if key not in {LENGTH_COLUMN, _LABELS}} for row in rows]
        batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
        batch[_LABELS] = torch.tensor([row[_LABELS] for row in rows])
        return batch

    return collate
