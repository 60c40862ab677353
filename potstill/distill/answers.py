"""Read answers back from a question-answering model's scores of every window."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from potstill.distill.examples import EXAMPLE, OFFSETS
from potstill.judging.spans import LONGEST_ANSWER, N_BEST, find_spans, read_spans

Scores = NDArray[np.floating]


def read_answers(
    rows: Dataset,
    start_logits: Sequence[Scores],
    end_logits: Sequence[Scores],
    *,
    contexts: Sequence[str],
    null_threshold: float | None = None,
    n_best: int = N_BEST,
    max_answer_tokens: int = LONGEST_ANSWER,
) -> list[str]:
    """Return the best answer to each question: a part of its context, or "" for none.

    Bundles are judged by the same rules, `potstill.judging.spans`.

    Args:
        rows: the windows, as `tokenize` made them.
        start_logits: of each window, in the order of `rows`; each at least (length,), padding behind is not read.
        end_logits: likewise.
        contexts: of each question, in the order of the examples.
        null_threshold: None always answers, as in SQuAD 1.
        n_best: how many of the best starts and ends of a window are tried with each other.
        max_answer_tokens: longer spans are not answers.
    """
    columns = zip(rows[EXAMPLE], rows[OFFSETS[0]], rows[OFFSETS[1]], start_logits, end_logits, strict=True)
    windows = (
        (example, np.asarray(from_chars), np.asarray(to_chars), starts, ends)
        for example, from_chars, to_chars, starts, ends in columns
    )
    spans = find_spans(windows, questions=len(contexts), n_best=n_best, longest=max_answer_tokens)
    return read_spans(spans, contexts, null_threshold=null_threshold)
