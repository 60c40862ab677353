"""Ask questions about texts longer than a model can read: window by window."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError
from potstill.judging.answers import Session, run_rows
from potstill.judging.spans import LONGEST_QUESTION, STRIDE, Spans, Window, find_spans
from potstill.serve import BundleTokenizer, Row
from potstill.serve.tokenizer import without_surrogates


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
    own = tokenizer.copy()
    room = tokenizer.max_length - own.num_special_tokens_to_add(True)
    longest = min(LONGEST_QUESTION, room // 2)
    if longest < 1:
        raise DataError(f"the longest input is {tokenizer.max_length} tokens; a question and its context need more")
    direction = (own.truncation or {}).get("direction", "right")
    own.no_truncation()
    # Spaces in front of a question, which SQuAD has, would count as text to some tokenizers.
    questions = [without_surrogates(question).lstrip() for question, _ in texts]
    encoded = own.encode_batch(questions, add_special_tokens=False)
    questions = [
        question if len(found.ids) <= longest else question[: found.offsets[longest - 1][1]]
        for question, found in zip(questions, encoded, strict=True)
    ]
    stride = min(STRIDE, (room - longest) // 2)
    own.enable_truncation(tokenizer.max_length, stride=stride, strategy="only_second", direction=direction)
    pairs = [(question, without_surrogates(context)) for question, (_, context) in zip(questions, texts, strict=True)]
    rows, owners, offsets = [], [], []
    for owner, whole in enumerate(own.encode_batch(pairs)):
        for window in (whole, *whole.overflowing):
            rows.append(tokenizer.row_of(window))
            owners.append(owner)
            is_context = np.array([part == 1 for part in window.sequence_ids])
            offsets.append(np.where(is_context[:, None], np.array(window.offsets, dtype=np.int64), -1))
    return rows, owners, offsets
