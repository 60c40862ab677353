"""What an answer scores that ignores its text: the floor that every model must clear."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.metrics.amounts import correlations, regression
from potstill.metrics.answers import question_answering
from potstill.metrics.classes import classification, multi_label
from potstill.metrics.entities import tag_names, tagging
from potstill.task import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TOKEN_CLASSIFICATION,
    Task,
    kind_of,
)

_OUTSIDE = "O"


def baseline(
    task: Task,
    labels: Any,
    *,
    problem_type: str | None = None,
    label_names: Sequence[str] = (),
    vocab_size: int | None = None,
) -> dict[str, float]:
    """Return the scores of an answer that is always the same, by the same metrics as a model's.

    That is the most frequent label (of two labels the better one by each metric: F1 asks for the positive one); each of
    several labels that more than half of the texts have; the mean amount; `O` for every word, or the most frequent tag
    where there is no `O`; no answer to any question; every word of the vocabulary equally likely; the same similarity
    for every pair.

    Args:
        task: one of `potstill.task.TASKS`.
        labels: as `potstill.data.Examples.labels`, of the examples that the model is scored on.
        problem_type: as in `potstill.task.kind_of`.
        label_names: the model's labels, for the tasks that have some.
        vocab_size: for fill-mask, the number of words that a model chooses from.

    Returns:
        Value by metric; empty where nothing can be said: fill-mask without `vocab_size`, feature-extraction without
        scores.
    """
    kind = kind_of(task, problem_type)
    if kind == FILL_MASK.name and vocab_size:
        return {"perplexity": float(vocab_size), "loss": math.log(vocab_size), "accuracy": 1 / vocab_size}
    if labels is None:
        return {}
    if kind == TOKEN_CLASSIFICATION.name:
        return _one_tag(labels, label_names)
    if kind == QUESTION_ANSWERING.name:
        return question_answering(labels, [""] * len(labels))
    if kind == MULTI_LABEL:
        return multi_label(labels, np.broadcast_to(labels.mean(axis=0) - 0.5, labels.shape))
    if kind == REGRESSION:
        return regression(labels, np.full(len(labels), labels.mean()))
    if kind == FEATURE_EXTRACTION.name:
        return correlations(labels, np.zeros(len(labels)))
    return _one_label(labels, num_labels=len(label_names))


def _one_label(labels: NDArray[np.int64], *, num_labels: int) -> dict[str, float]:
    counts = np.bincount(labels, minlength=num_labels)
    always = range(2) if len(counts) == 2 else [int(counts.argmax())]
    scores = [
        classification(labels, np.broadcast_to(np.eye(len(counts))[label], (len(labels), len(counts))))
        for label in always
    ]
    return {metric: max(score[metric] for score in scores) for metric in scores[0]}


def _one_tag(labels: Sequence[Any], names: Sequence[str]) -> dict[str, float]:
    counts = np.bincount(np.concatenate(labels), minlength=len(names))
    always = _OUTSIDE if _OUTSIDE in names else names[int(counts.argmax())]
    wanted = tag_names(labels, names)
    return tagging(wanted, [[always] * len(tags) for tags in wanted])
