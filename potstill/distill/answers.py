"""Read answers back from a question-answering model's scores of every window."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from potstill.distill.examples import EXAMPLE, OFFSETS

Scores = NDArray[np.floating]


def read_answers(
    rows: Dataset,
    start_logits: Sequence[Scores],
    end_logits: Sequence[Scores],
    *,
    contexts: Sequence[str],
    null_threshold: float | None = None,
    n_best: int = 20,
    max_answer_tokens: int = 30,
) -> list[str]:
    """Return the best answer to each question: a part of its context, or "" for none.

    A span scores the sum of its start and end logits; the best over all windows wins. With a threshold, as in SQuAD 2
    (google-research/bert, run_squad.py), the answer is "" where the least score of "no answer" over the windows
    exceeds the best span's by more than it.

    Args:
        rows: the windows, as `tokenize` made them.
        start_logits: of each window, in the order of `rows`; each at least (length,), padding behind is not read.
        end_logits: likewise.
        contexts: of each question, in the order of the examples.
        null_threshold: None always answers, as in SQuAD 1.
        n_best: how many of the best starts and ends of a window are tried with each other.
        max_answer_tokens: longer spans are not answers.
    """
    answers = [""] * len(contexts)
    best, null = np.full(len(contexts), -np.inf), np.full(len(contexts), np.inf)
    columns = zip(rows[EXAMPLE], rows[OFFSETS[0]], rows[OFFSETS[1]], start_logits, end_logits, strict=True)
    for example, from_chars, to_chars, starts, ends in columns:
        # The [CLS] token opens every row of the encoders we have.
        null[example] = min(null[example], float(starts[0] + ends[0]))
        found = _best_span(
            np.asarray(from_chars), np.asarray(to_chars), starts, ends, n_best=n_best, longest=max_answer_tokens
        )
        if found is not None and found[0] > best[example]:
            best[example], first, last = found
            answers[example] = contexts[example][from_chars[first] : to_chars[last]]
    if null_threshold is not None:
        answers = ["" if null[at] - best[at] > null_threshold else answer for at, answer in enumerate(answers)]
    return answers


def _best_span(
    from_chars: NDArray[np.int64],
    to_chars: NDArray[np.int64],
    starts: Scores,
    ends: Scores,
    *,
    n_best: int,
    longest: int,
) -> tuple[float, int, int] | None:
    """Return score, first and last token of a window's best span within the context, or None if it has none."""
    inside = np.flatnonzero(to_chars > from_chars)
    first = inside[np.argsort(-starts[inside], kind="stable")[:n_best]]
    last = inside[np.argsort(-ends[inside], kind="stable")[:n_best]]
    tokens = last[None, :] - first[:, None] + 1
    scores = np.where((tokens >= 1) & (tokens <= longest), starts[first][:, None] + ends[last][None, :], -np.inf)
    if not scores.size or not np.isfinite(scores.max()):
        return None
    at_first, at_last = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores.max()), int(first[at_first]), int(last[at_last])
