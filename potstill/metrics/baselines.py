"""What an answer scores that ignores its text: the floor that every model must clear."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.metrics.amounts import correlations, regression
from potstill.metrics.answers import question_answering
from potstill.metrics.classes import classification, multi_label
from potstill.metrics.entities import tag_names, tagging
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TOKEN_CLASSIFICATION,
    Task,
    kind_of,
    lower_is_better,
)

_OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Constant:
    """An answer that is the same for every text."""

    words: str
    """What it answers, such as "always negative"."""
    arrays: Mapping[str, NDArray[Any]]
    """The answers as a model's are kept (`potstill.evaluation.ask.ask`)."""
    scores: Mapping[str, float]
    """By metric."""


def baseline(
    task: Task,
    labels: Any,
    *,
    problem_type: str | None = None,
    label_names: Sequence[str] = (),
    vocab_size: int | None = None,
) -> dict[str, float]:
    """Return the scores of an answer that is always the same, by the same metrics as a model's.

    They are those of `constant_answers`, each metric's best one. Of fill-mask it is that every word of the vocabulary
    is equally likely.

    Args:
        task: one of `potstill.tasks.TASKS`.
        labels: as `potstill.data.Examples.labels`, of the examples that the model is scored on.
        problem_type: as in `potstill.tasks.kind_of`.
        label_names: the model's labels, for the tasks that have some.
        vocab_size: for fill-mask, the number of words that a model chooses from.

    Returns:
        Value by metric; empty where nothing can be said: fill-mask without `vocab_size`, feature-extraction without
        scores.
    """
    kind = kind_of(task, problem_type)
    if kind == FILL_MASK.name and vocab_size:
        return {"perplexity": float(vocab_size), "loss": math.log(vocab_size), "accuracy": 1 / vocab_size}
    found = constant_answers(kind, labels, label_names=label_names)
    if not found:
        return {}
    return {metric: best_constant(found, metric).scores[metric] for metric in found[0].scores}


def best_constant(constants: Sequence[Constant], metric: str) -> Constant:
    """Return the one with the best score by a metric, the first of equals."""
    sign = -1 if lower_is_better(metric) else 1
    return max(constants, key=lambda constant: sign * constant.scores[metric])


def constant_answers(kind: str, labels: Any, *, label_names: Sequence[str] = ()) -> list[Constant]:
    """Return the answers that ignore their text and that a model has to beat.

    - a single label: the most frequent one; of two labels each, for F1 asks for the positive one
    - several labels: each that more than half of the texts have, and all of them, which F1 rewards
    - regression: the mean amount; feature-extraction: the same similarity for every pair
    - token-classification: `O` for every word, or the most frequent tag where there is no `O`
    - question-answering: no answer

    Args:
        kind: `potstill.tasks.kind_of`.
        labels: as `potstill.data.Examples.labels`; None has no such answer.
        label_names: the model's labels, for the tasks that have some.
    """
    if labels is None or kind == FILL_MASK.name:
        return []
    if kind == TOKEN_CLASSIFICATION.name:
        return [_one_tag(labels, label_names)]
    if kind == QUESTION_ANSWERING.name:
        silent = np.full(len(labels), "", dtype=np.str_)
        arrays = {"answers": silent, "answers_or_none": silent, "scores": np.zeros(len(labels))}
        return [Constant("no answer to any question", arrays, question_answering(labels, [""] * len(labels)))]
    if kind == MULTI_LABEL:
        return _one_set(labels)
    if kind == REGRESSION:
        mean = np.full((len(labels), 1), labels.mean())
        return [Constant("the mean for every text", {"values": mean}, regression(labels, mean))]
    if kind == FEATURE_EXTRACTION.name:
        same = np.zeros((len(labels), 1))
        return [Constant("the same similarity for every pair", {"values": same}, correlations(labels, same))]
    return _one_label(labels, label_names)


def _one_label(labels: NDArray[np.int64], names: Sequence[str]) -> list[Constant]:
    counts = np.bincount(labels, minlength=len(names))
    found = []
    for label in range(2) if len(counts) == 2 else [int(counts.argmax())]:
        values = np.broadcast_to(np.eye(len(counts))[label], (len(labels), len(counts)))
        name = names[label] if label < len(names) else str(label)
        found.append(Constant(f"always {name}", {"values": values}, classification(labels, values)))
    return found


def _one_set(labels: NDArray[np.float64]) -> list[Constant]:
    sides = {"the labels that most texts have": labels.mean(axis=0) - 0.5, "every label": np.ones(labels.shape[1])}
    both = {words: np.broadcast_to(values, labels.shape) for words, values in sides.items()}
    return [Constant(words, {"values": values}, multi_label(labels, values)) for words, values in both.items()]


def _one_tag(labels: Sequence[Any], names: Sequence[str]) -> Constant:
    flat = np.concatenate(labels)
    counts = np.bincount(flat, minlength=len(names))
    always = names.index(_OUTSIDE) if _OUTSIDE in names else int(counts.argmax())
    wanted = tag_names(labels, names)
    arrays = {
        "values": np.broadcast_to(np.eye(len(names))[always], (len(flat), len(names))),
        "texts": np.repeat(np.arange(len(labels)), [len(tags) for tags in labels]),
    }
    scores = tagging(wanted, [[names[always]] * len(tags) for tags in wanted])
    return Constant(f"{names[always]} for every word", arrays, scores)
