"""From labelled texts to padded batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from potstill.data import Examples

LENGTH_COLUMN = "length"
_LABELS = "labels"


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


def make_collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Return a function that pads rows to the longest of their batch, giving tensors (B, T) and labels (B,)."""

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [{key: row[key] for key in row if key not in {LENGTH_COLUMN, _LABELS}} for row in rows]
        batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
        batch[_LABELS] = torch.tensor([row[_LABELS] for row in rows])
        return batch

    return collate
