"""Mark a model's answers to a data set: its scores, the scores of any draw of the texts, and what was lost.

What a model answered is what `potstill.evaluation.ask.ask` returned. An answer that is NaN or infinite is a wrong one:
the class after the right one, `O` for the tag of a name, each label the other way round, the end of the other answers
that is farther from the label, a text that nobody accepts, a word as surprising as every other of the vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.data import Examples
from potstill.evaluation.answers import Answers
from potstill.evaluation.intervals import Floats, Statistic
from potstill.evaluation.scores import calibration_draws, mean_draws, right, score, score_draws
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TOKEN_CLASSIFICATION,
)

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Bools: TypeAlias = NDArray[np.bool_]

# No accepted answer is this one, which normalisation leaves alone.
_NO_TEXT = "\0"
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """How one model's answers to a data set are scored."""

    scores: dict[str, float]
    """By every metric of the kind."""
    draws: Statistic
    """Scores draws of the texts by the deciding metric."""
    drawn: int
    """How many texts a draw draws from."""
    right: Bools | None
    """Whether each text's answer is right in every part; None where an answer is no decision, or several."""
    decisions: NDArray[Any] | None
    """What was decided, shape (decisions,); None where answers are amounts."""
    lost_decisions: Bools | None
    """Which decisions were no numbers, shape (decisions,)."""
    lost: int
    """How many texts have an answer that is no number."""
    calibration: Statistic | None = None
    """Of classifiers: the expected calibration error of draws of the texts, over the decisions that are numbers."""


def mark(arrays: Arrays, examples: Examples, *, kind: str, metric: str) -> Marks:
    """Mark the answers of one model.

    Args:
        arrays: what `potstill.evaluation.ask.ask` returned for `examples.texts`.
        examples: labelled, but for fill-mask.
        kind: `potstill.tasks.kind_of`.
        metric: one of those that `potstill.tasks.METRICS` has for the kind; it decides.
    """
    marking: dict[str, Callable[..., Marks]] = {
        FILL_MASK.name: _mark_hidden,
        QUESTION_ANSWERING.name: _mark_questions,
        REGRESSION: _mark_amounts,
        FEATURE_EXTRACTION.name: _mark_amounts,
    }
    return marking.get(kind, _mark_classes)(arrays, examples, kind=kind, metric=metric)


def agreement(ours: Marks, theirs: Marks) -> float | None:
    """Return the share of decisions that both took alike; what is no number agrees with nothing. None for amounts."""
    if ours.decisions is None or theirs.decisions is None:
        return None
    assert ours.lost_decisions is not None
    assert theirs.lost_decisions is not None
    alike = (ours.decisions == theirs.decisions) & ~ours.lost_decisions & ~theirs.lost_decisions
    return float(alike.mean())


def row_texts(arrays: Arrays) -> NDArray[np.int64]:
    """Return which text each row of the answers is about."""
    if "texts" in arrays:
        return arrays["texts"]
    return np.arange(len(arrays["scores" if "scores" in arrays else "values"]))


def lost_rows(arrays: Arrays) -> Bools:
    """Return which rows of the answers hold something that is no number."""
    if "nll" in arrays:
        return np.isnan(arrays["nll"])
    if "scores" in arrays:
        return np.isnan(arrays["scores"])
    return np.asarray(~np.isfinite(arrays["values"]).all(axis=1))


def all_labels(examples: Examples) -> Any:
    """Return the labels one per row of the answers: those of words one after another."""
    return np.concatenate(examples.labels) if isinstance(examples.labels, list) else examples.labels


def class_values(arrays: Arrays, names: Sequence[str]) -> NDArray[np.float32]:
    """Return the logits of classes, of a word that the model did not see those of `O`, else of the first tag."""
    values = arrays["values"]
    if "seen" not in arrays or arrays["seen"].all():
        return values
    silent = np.full(values.shape[1], -np.inf, dtype=values.dtype)
    silent[_outside(names) or 0] = 0
    return np.where(arrays["seen"][:, None], values, silent)


def answer_texts(arrays: Arrays, examples: Examples) -> list[str]:
    """Return the answers to questions, "" for none; where every question has an answer, none is left without."""
    may_be_none = any(not answers["text"] for answers in examples.labels)
    return [str(answer) for answer in arrays["answers_or_none" if may_be_none else "answers"]]


def _mark_classes(arrays: Arrays, examples: Examples, *, kind: str, metric: str) -> Marks:
    lost, texts, labels = lost_rows(arrays), row_texts(arrays), all_labels(examples)
    names = examples.label_names
    values = class_values(arrays, names).astype(np.float32)
    values[lost] = _wrong_classes(labels[lost], names, kind=kind)
    answers = decided(values, texts, kind=kind)
    choices = answers.choices()
    assert choices is not None
    seen = arrays.get("seen", np.ones(len(lost), dtype=np.bool_))
    return Marks(
        scores=score(answers, labels, names=names),
        draws=score_draws(answers, labels, metric=metric, names=names),
        drawn=len(np.unique(texts)),
        right=right(answers, labels),
        decisions=choices.ravel(),
        lost_decisions=np.repeat(lost, choices.shape[1]),
        lost=len(np.unique(texts[lost])),
        calibration=_calibration(values, labels, texts, ~lost & seen, kind=kind),
    )


def decided(values: NDArray[Any], texts: NDArray[np.int64], *, kind: str) -> Answers:
    """Return logits as answers that decide by the scores that are served: the highest, or of several above one half."""
    shares = probabilities(values, kind=kind)
    return Answers(values=shares - 0.5 if kind == MULTI_LABEL else shares, texts=texts, kind=kind)


def _wrong_classes(labels: NDArray[Any], names: Sequence[str], *, kind: str) -> NDArray[Any]:
    """Return logits that decide wrongly. A tag becomes `O`, for another of its type might find the same entity."""
    if kind == MULTI_LABEL:
        return 1 - 2 * labels
    others, outside = (labels + 1) % len(names), _outside(names)
    if kind == TOKEN_CLASSIFICATION.name and outside is not None:
        others = np.where(labels == outside, others, outside)
    wrong: NDArray[np.float64] = np.eye(len(names))[others]
    return wrong


def _outside(names: Sequence[str]) -> int | None:
    return names.index("O") if "O" in names else None


def _calibration(
    values: NDArray[np.float32], labels: NDArray[Any], texts: NDArray[np.int64], asked: Bools, *, kind: str
) -> Statistic | None:
    """Return the statistic of the expected calibration error; of several labels, each is a decision of its own."""
    if not asked.any():
        return None
    groups = np.unique(texts, return_inverse=True)[1]
    if kind == MULTI_LABEL:
        sure = probabilities(np.abs(values), kind=kind)
        return calibration_draws(sure, (values > 0) == (labels > 0.5), groups, asked)
    shares = probabilities(values, kind=kind)
    return calibration_draws(shares.max(axis=1)[:, None], (shares.argmax(axis=1) == labels)[:, None], groups, asked)


def probabilities(values: NDArray[Any], *, kind: str) -> Floats:
    """Return what logits mean: of several labels each one's own probability, else shares of 1."""
    if kind == MULTI_LABEL:
        # The same as 1 / (1 + exp(-x)), which would overflow.
        halves: Floats = 0.5 * (1 + np.tanh(0.5 * values.astype(np.float64)))
        return halves
    return metrics.softmax(values)


def _mark_amounts(arrays: Arrays, examples: Examples, *, kind: str, metric: str) -> Marks:
    lost, labels = lost_rows(arrays), np.asarray(examples.labels)
    values = arrays["values"].astype(np.float64)
    if lost.all():
        values = np.zeros_like(values)
    elif lost.any():
        low, high = values[~lost].min(), values[~lost].max()
        middle = (labels.min() + labels.max()) / 2
        values[lost, 0] = np.where(labels[lost] > middle, low, high)
    answers = Answers(values=values, texts=row_texts(arrays), kind=REGRESSION)
    scores = score(answers, labels)
    if kind == FEATURE_EXTRACTION.name:
        # A cosine and a score of 0 to 5 are no amounts of one unit.
        del scores["mse"]
    return Marks(
        scores=scores, draws=score_draws(answers, labels, metric=metric), drawn=len(labels), right=None, decisions=None,
        lost_decisions=None, lost=int(lost.sum()),
    )  # fmt: skip


def _mark_questions(arrays: Arrays, examples: Examples, *, kind: str, metric: str) -> Marks:
    lost = lost_rows(arrays)
    given = answer_texts(arrays, examples)
    given = [_NO_TEXT if gone else answer for gone, answer in zip(lost.tolist(), given, strict=True)]
    golds = [answers["text"] for answers in examples.labels]
    judges = {"f1": metrics.answer_f1, "exact_match": metrics.answer_exact}
    each = {
        name: np.array([judge(gold, answer) for gold, answer in zip(golds, given, strict=True)])
        for name, judge in judges.items()
    }
    return Marks(
        scores=metrics.question_answering(examples.labels, given),
        draws=mean_draws(each[metric]),
        drawn=len(given),
        right=each["exact_match"] > 0,
        decisions=np.array([metrics.normalise_answer(answer) for answer in given]),
        lost_decisions=lost,
        lost=int(lost.sum()),
    )


def _mark_hidden(arrays: Arrays, examples: Examples, *, kind: str, metric: str) -> Marks:
    lost, texts = lost_rows(arrays), arrays["texts"]
    nll = np.where(lost, np.log(float(arrays["vocabulary"])), arrays["nll"])
    hits = (arrays["choices"] == arrays["wanted"]) & ~lost
    scores = metrics.masked_words(float(nll.sum()), count=len(nll), hits=int(hits.sum()))
    groups = np.unique(texts, return_inverse=True)[1]
    columns = np.stack([np.bincount(groups, weights=side) for side in (nll, hits, np.ones(len(nll)))], axis=1)

    def draws(counts: Floats) -> Floats:
        surprise, found, words = (counts @ columns).T
        if metric == "accuracy":
            return np.asarray(found / words)
        loss: Floats = surprise / words
        # Infinity is no value that a report can hold.
        return loss if metric == "loss" else np.exp(np.minimum(loss, np.log(_LARGEST)))

    return Marks(
        scores=scores | {"perplexity": min(scores["perplexity"], _LARGEST)},
        draws=draws,
        drawn=len(columns),
        right=None,
        decisions=arrays["choices"],
        lost_decisions=lost,
        lost=len(np.unique(texts[lost])),
    )
