"""Score a checkpoint by name: the task's metrics, a table per class, and every single answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.checkpoint import Checkpoint, load_checkpoint, read_folder
from potstill.checkpoint.model import SentenceEncoder, find_sentence_transformers, load_head
from potstill.checkpoint.sentence_transformers import check_pooling
from potstill.data import Examples, load_examples
from potstill.distill.evaluate import Evaluation, problem_type_of
from potstill.errors import UsageError
from potstill.evaluation.summary import summarise
from potstill.progress import Progress, silent
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, TEXT_CLASSIFICATION, Task, get_task, primary_metric

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
    pooling: str | None = None,
    keep_predictions: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return the scores of a checkpoint on a data set, under `scores`, with what was scored beside them.

    Texts are read and answers are decoded by the code that serves them, so a bundle of the checkpoint scores the same,
    but for what its precision changes. Beside the scores is what `potstill.evaluation.summary.summarise` says of them.

    Args:
        model: a hub id or checkpoint folder.
        data: a hub id or folder of labelled texts; running text for fill-mask.
        task: the hub's name of the task; None takes what the checkpoint folder was trained for.
        metric: the score to put first; None takes the task's own.
        max_length: longest text in tokens; None takes what a sentence-transformers folder says, and elsewhere 128, or
            what the checkpoint reads if that is less.
        reading: which split and columns; None takes the validation split and the usual names.
        pooling: for feature-extraction, `mean` or `cls`; None does what a sentence-transformers folder says, and
            elsewhere takes the mean.
        keep_predictions: also return `predictions`, one row per example: what was asked (`text`, `tokens` or
            `question`), `label` and `prediction`.
        progress: is told how far it is.

    Raises:
        CheckpointError, DataError: if they cannot be loaded or do not fit.
        UsageError: if the metric does not judge the task, predictions are wanted of masked words, or another pooling
            than the folder describes.
    """
    folder = read_folder(model)
    task = task or (folder.task or TEXT_CLASSIFICATION).name
    kind, reading = get_task(task), reading or Reading()
    if kind is FILL_MASK and keep_predictions:
        raise UsageError("fill-mask guesses words by the thousand and has no answer per example to keep")
    found = find_sentence_transformers(str(model)) if kind is FEATURE_EXTRACTION else None
    if found is not None:
        check_pooling(found, pooling=pooling, normalize=None)
    if max_length is None:
        max_length = folder.usual_length if found else min(_USUAL_LENGTH, folder.longest or _USUAL_LENGTH)
    folder.check_length(max_length)
    checkpoint, head = load_checkpoint(str(model), kind), load_head(found) if found else None
    num_labels = checkpoint.model.config.num_labels
    first = primary_metric(kind, problem_type_of(checkpoint.model), asked=metric, num_labels=num_labels)
    examples = _read(checkpoint, str(data), kind, reading)
    evaluation = Evaluation(checkpoint.tokenizer, examples, max_length=max_length, task=kind, pooling=pooling or "mean")
    scored = checkpoint.model if head is None else SentenceEncoder(checkpoint.model, head)
    arrays = evaluation.predict(scored, progress=progress)
    told = folder.notes if max_length == folder.max_seq_length else ()
    result: dict[str, Any] = {
        "model": str(model),
        "task": task,
        "data": str(data),
        "split": reading.split,
        "num_examples": len(examples),
        "data_sha256": examples.sha256,
    } | summarise(
        arrays, examples, kind=evaluation.kind(checkpoint.model), metric=first, keep_predictions=keep_predictions
    )
    result["notes"] = [*examples.notes, *told, *result["notes"]]
    return result


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
