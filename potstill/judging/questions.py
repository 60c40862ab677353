"""Ask questions about texts longer than a model can read: window by window."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError
from potstill.judging.answers import Session, run_rows
from potstill.judging.spans import LONGEST_QUESTION, STRIDE, Spans, Window, find_spans
from potstill.serve import BundleTokenizer, Row
from potstill.serve.answering.windows import window_rows


def ask_questions(
    session: Session,
    tokenizer: BundleTokenizer,
    texts: Sequence[tuple[str, str]],
    *,
    outputs: Sequence[str],
    batch_size: int,
) -> Spans:
    """Return a model's answers to (question, context) pairs; a long context is read in windows that share 128 tokens.

    Raises:
        DataError: if the model's longest input has no room for a question and its context.
    """
    rows, owners, offsets = _windows(tokenizer, texts)
    windows: list[Window] = []
    for index, own, tokens in run_rows(session, tokenizer, rows, outputs=outputs, batch_size=batch_size):
        starts, ends = (own[name][tokens].astype(np.float32, copy=False) for name in outputs[:2])
        windows.append((owners[index], offsets[index][:, 0], offsets[index][:, 1], starts, ends))
    return find_spans(windows, questions=len(texts))


def _windows(
    tokenizer: BundleTokenizer, texts: Sequence[tuple[str, str]]
) -> tuple[list[Row], list[int], list[NDArray[np.int64]]]:
    """Return every window's inputs, the number of its question, and its tokens' places in the context, (tokens, 2)."""
    both = tokenizer.max_length - tokenizer.pair.size
    longest = min(LONGEST_QUESTION, both // 2)
    if longest < 1:
        raise DataError(f"the longest input is {tokenizer.max_length} tokens; a question and its context need more")
    stride = min(STRIDE, (both - longest) // 2)
    rows, owners, offsets = [], [], []
    for owner, (question, context) in enumerate(texts):
        # Spaces in front of a question, which SQuAD has, would count as text to some tokenizers.
        asked, read = tokenizer.pieces([question.lstrip(), context])
        ids = asked.ids[:longest]
        for row, part, inside in window_rows(tokenizer, ids, read.ids, room=both - len(ids), stride=stride):
            places = np.full((len(row["input_ids"]), 2), -1, dtype=np.int64)
            places[inside] = read.places[part]
            rows.append(row)
            owners.append(owner)
            offsets.append(places)
    return rows, owners, offsets
