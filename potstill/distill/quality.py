"""Score a checkpoint by name: the task's metrics, a table per class, and every single answer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill import metrics
from potstill.checkpoint import Checkpoint, load_checkpoint, read_folder
from potstill.data import Examples, load_examples
from potstill.distill.corpus import load_corpus
from potstill.distill.evaluate import Answers, Scores, evaluate_words, predict_answers, problem_type_of, score_answers
from potstill.errors import UsageError
from potstill.progress import Progress, silent
from potstill.task import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
    get_task,
    primary_metric,
    trained_task,
)

_USUAL_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Which texts are read, and how."""

    split: str = "validation"
    label_column: str | None = None
    text_columns: list[str] | None = None
    limit: int | None = None


def evaluate(
    model: str | Path,
    *,
    data: str | Path,
    task: str | None = None,
    metric: str | None = None,
    max_length: int | None = None,
    reading: Reading | None = None,
    pooling: str = "mean",
    keep_predictions: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return the scores of a checkpoint on a data set, under `scores`, with what was scored beside them.

    Of a classifier there is also `per_class`, rows as `metrics.per_class` makes them (entities for
    token-classification); of one with single labels also `labels`, their names, and `confusion_matrix`, whose rows are
    the labels and columns the predictions.

    Args:
        model: a hub id or checkpoint folder.
        data: a hub id or folder of labelled texts; running text for fill-mask.
        task: the hub's name of the task; None takes what the checkpoint folder was trained for.
        metric: the score to put first; None takes the task's own.
        max_length: longest text in tokens; None takes 128, or what the checkpoint reads if that is less.
        reading: which split and columns; None takes the validation split and the usual names.
        pooling: for feature-extraction, `mean` or `cls`.
        keep_predictions: also return `predictions`, one row per example: what was asked (`text`, `tokens` or
            `question`), `label` and `prediction`.
        progress: is told how far it is.

    Raises:
        CheckpointError, DataError: if they cannot be loaded or do not fit.
        UsageError: if the metric does not judge the task, or predictions are wanted of masked words.
    """
    task = task or trained_task(model) or TEXT_CLASSIFICATION.name
    kind, reading = get_task(task), reading or Reading()
    if kind is FILL_MASK and keep_predictions:
        raise UsageError("fill-mask guesses words by the thousand and has no answer per example to keep")
    folder = read_folder(model)
    if max_length is None:
        max_length = min(_USUAL_LENGTH, folder.longest or _USUAL_LENGTH)
    folder.check_length(max_length)
    checkpoint = load_checkpoint(str(model), kind)
    num_labels = checkpoint.model.config.num_labels
    first = primary_metric(kind, problem_type_of(checkpoint.model), asked=metric, num_labels=num_labels)
    about = {"model": str(model), "task": task, "data": str(data), "split": reading.split, "metric": first}
    if kind is FILL_MASK:
        found = _score_words(checkpoint, str(data), reading, max_length=max_length, progress=progress)
        return about | found | {"scores": _put_first(first, found["scores"])}
    examples = _read(checkpoint, str(data), kind, reading)
    answers = predict_answers(
        checkpoint.model,
        checkpoint.tokenizer,
        examples,
        max_length=max_length,
        task=kind,
        pooling=pooling,
        progress=progress,
    )
    counted: dict[str, Any] = {"num_examples": len(examples), "data_sha256": examples.sha256}
    counted |= {"notes": list(examples.notes)} if examples.notes else {}
    scores = {"scores": _put_first(first, score_answers(answers, examples))}
    predictions = {"predictions": list_predictions(answers, examples)} if keep_predictions else {}
    return about | counted | scores | count_classes(answers, examples) | predictions


def count_classes(answers: Answers, examples: Examples) -> dict[str, Any]:
    """Return `per_class`, and of single labels `labels` and `confusion_matrix`, as `evaluate` does; else nothing."""
    labels, given, names = examples.labels, answers.given, examples.label_names
    if answers.kind == TOKEN_CLASSIFICATION.name:
        return {"per_class": metrics.per_entity(metrics.tag_names(labels, names), given)}
    if answers.kind == MULTI_LABEL:
        return {"per_class": metrics.per_label(labels, given, names)}
    if answers.kind != SINGLE_LABEL:
        return {}
    predictions = given.argmax(axis=-1)
    return {
        "per_class": metrics.per_class(labels, predictions, names),
        "labels": list(names),
        "confusion_matrix": metrics.confusion_matrix(labels, predictions, len(names)).tolist(),
    }


def list_predictions(answers: Answers, examples: Examples) -> list[dict[str, Any]]:
    """Return one row per example: what was asked, the label, and the model's answer to it, as plain JSON values.

    Single labels have a `probability` beside them, answers to questions their `f1` and `exact_match`.
    """
    rows = _ROWS[answers.kind](answers, examples)
    asked = {TOKEN_CLASSIFICATION.name: "tokens", QUESTION_ANSWERING.name: "question"}.get(answers.kind, "text")
    texts = [text[0] for text in examples.texts] if asked == "question" else examples.texts
    return [{asked: text} | row for text, row in zip(texts, rows, strict=True)]


def _name_classes(answers: Answers, examples: Examples) -> list[dict[str, Any]]:
    names, shares = examples.label_names, metrics.softmax(answers.given)
    chosen = shares.argmax(axis=-1)
    return [
        {"label": names[label], "prediction": names[choice], "probability": round(float(row[choice]), 6)}
        for label, choice, row in zip(examples.labels, chosen, shares, strict=True)
    ]


def _name_sets(answers: Answers, examples: Examples) -> list[dict[str, Any]]:
    names = examples.label_names

    def of(flags: Any) -> list[str]:
        return [name for name, flag in zip(names, flags, strict=True) if flag]

    pairs = zip(examples.labels > 0.5, answers.given > 0, strict=True)
    return [{"label": of(labels), "prediction": of(given)} for labels, given in pairs]


def _name_tags(answers: Answers, examples: Examples) -> list[dict[str, Any]]:
    wanted = metrics.tag_names(examples.labels, examples.label_names)
    return [{"label": tags, "prediction": given} for tags, given in zip(wanted, answers.given, strict=True)]


def _state_amounts(answers: Answers, examples: Examples) -> list[dict[str, Any]]:
    given = np.asarray(answers.given, dtype=np.float64).reshape(-1)
    pairs = zip(examples.labels.tolist(), given.tolist(), strict=True)
    return [{"label": label, "prediction": round(value, 6)} for label, value in pairs]


def _state_answers(answers: Answers, examples: Examples) -> list[dict[str, Any]]:
    return [
        {
            "label": labels["text"],
            "prediction": given,
            "f1": metrics.answer_f1(labels["text"], given),
            "exact_match": metrics.answer_exact(labels["text"], given),
        }
        for labels, given in zip(examples.labels, answers.given, strict=True)
    ]


_ROWS: dict[str, Callable[[Answers, Examples], list[dict[str, Any]]]] = {
    SINGLE_LABEL: _name_classes,
    MULTI_LABEL: _name_sets,
    REGRESSION: _state_amounts,
    TOKEN_CLASSIFICATION.name: _name_tags,
    QUESTION_ANSWERING.name: _state_answers,
    FEATURE_EXTRACTION.name: _state_amounts,
}


def _read(checkpoint: Checkpoint, data: str, task: Task, reading: Reading) -> Examples:
    return load_examples(
        data,
        split=reading.split,
        task=task,
        text_columns=reading.text_columns,
        label_column=reading.label_column,
        label_names=checkpoint.label_names if task.label_columns and task.output == "logits" else None,
        problem_type=problem_type_of(checkpoint.model),
        limit=reading.limit,
    )


def _put_first(name: str, scores: Scores) -> Scores:
    if name not in scores:
        raise UsageError(f"metric {name!r} is not measured here; there are {', '.join(scores)}")
    return {name: scores[name]} | scores


def _score_words(
    checkpoint: Checkpoint, data: str, reading: Reading, *, max_length: int, progress: Progress
) -> dict[str, Any]:
    corpus = load_corpus(
        data,
        split=reading.split,
        tokenizer=checkpoint.tokenizer,
        max_length=max_length,
        text_column=reading.text_columns[0] if reading.text_columns else None,
        limit=reading.limit,
    )
    scores = evaluate_words(checkpoint.model, checkpoint.tokenizer, corpus, progress=progress)
    return {"num_examples": len(corpus), "scores": scores}
