"""Read answers back from a question-answering model's scores of every window of a text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.integer[Any]]
Window: TypeAlias = tuple[int, Ints, Ints, Scores, Scores]
"""The number of its question; where in the context each token begins and ends, -1 for tokens outside of it; the scores
of each token as the answer's first and last."""

# BERT's own for SQuAD (google-research/bert, run_squad.py): the context shared by neighbours, the longest question,
# how many of the best starts and ends are tried with each other, and the longest answer in tokens.
STRIDE = 128
LONGEST_QUESTION = 64
N_BEST = 20
LONGEST_ANSWER = 30


@dataclass(frozen=True, slots=True)
class Spans:
    """The best answer to each of Q questions."""

    places: NDArray[np.int64]
    """Where in the context it begins and ends, in characters, shape (Q, 2); equal where there is no span at all."""
    best: NDArray[np.float64]
    """Its score, shape (Q,): -inf where there is no span, NaN where a model's scores were not numbers."""
    null: NDArray[np.float64]
    """The score of "no answer", shape (Q,)."""


def find_spans(
    windows: Iterable[Window], *, questions: int, n_best: int = N_BEST, longest: int = LONGEST_ANSWER
) -> Spans:
    """Return the best answer to each question over its windows.

    A span scores the sum of its start and end; that of a window's first token is the score of "no answer", of which the
    least over the windows counts (google-research/bert, run_squad.py).

    Args:
        windows: in any order; their scores may be longer than their tokens, padding behind is not read.
        questions: how many there are.
        n_best: how many of the best starts and ends of a window are tried with each other.
        longest: an answer's greatest length in tokens.
    """
    places = np.zeros((questions, 2), dtype=np.int64)
    best, null = np.full(questions, -np.inf), np.full(questions, np.inf)
    for question, from_chars, to_chars, starts, ends in windows:
        inside = np.flatnonzero(to_chars > from_chars)
        # The [CLS] token opens every row of the encoders we have.
        none = float(starts[0]) + float(ends[0])
        if not (np.isfinite(none) and np.isfinite(starts[inside]).all() and np.isfinite(ends[inside]).all()):
            best[question] = np.nan
            continue
        null[question] = min(null[question], none)
        found = _best_span(inside, starts, ends, n_best=n_best, longest=longest)
        # Of a question that is lost, no other window is better than NaN.
        if found is not None and found[0] > best[question]:
            best[question], first, last = found
            places[question] = from_chars[first], to_chars[last]
    return Spans(places=places, best=best, null=null)


def read_spans(spans: Spans, contexts: Sequence[str], *, null_threshold: float | None) -> list[str]:
    """Return the answers as texts, "" for none.

    Args:
        spans: of each question.
        contexts: of each question.
        null_threshold: the answer is "" where "no answer" scores more than the best span by more than this, as in
            SQuAD 2; None always answers, as in SQuAD 1.
    """
    answers = [context[start:end] for context, (start, end) in zip(contexts, spans.places.tolist(), strict=True)]
    if null_threshold is None:
        return answers
    silent = spans.null - spans.best > null_threshold
    return ["" if quiet else answer for answer, quiet in zip(answers, silent.tolist(), strict=True)]


def _best_span(
    inside: NDArray[np.intp], starts: Scores, ends: Scores, *, n_best: int, longest: int
) -> tuple[float, int, int] | None:
    """Return score, first and last token of a window's best span, or None if it has none."""
    first = inside[np.argsort(-starts[inside], kind="stable")[:n_best]]
    last = inside[np.argsort(-ends[inside], kind="stable")[:n_best]]
    tokens = last[None, :] - first[:, None] + 1
    scores = np.where((tokens >= 1) & (tokens <= longest), starts[first][:, None] + ends[last][None, :], -np.inf)
    if not scores.size or not np.isfinite(scores.max()):
        return None
    at_first, at_last = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores.max()), int(first[at_first]), int(last[at_last])
