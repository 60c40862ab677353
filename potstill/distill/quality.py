"""Score a checkpoint by name: the task's metrics, and where they come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.checkpoint import Checkpoint, load_checkpoint
from potstill.data import load_examples
from potstill.distill.corpus import load_corpus
from potstill.distill.evaluate import evaluate_model, evaluate_words, problem_type_of
from potstill.progress import Progress, silent
from potstill.task import FILL_MASK, get_task


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
    task: str = "text-classification",
    max_length: int = 128,
    reading: Reading | None = None,
    pooling: str = "mean",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return the scores of a checkpoint on a data set, under `scores`, with what was scored beside them.

    Args:
        model: a hub id or checkpoint folder.
        data: a hub id or folder of labelled texts; running text for fill-mask.
        task: the hub's name of the task.
        max_length: longest text in tokens.
        reading: which split and columns; None takes the validation split and the usual names.
        pooling: for feature-extraction, `mean` or `cls`.
        progress: is told how far it is.

    Raises:
        CheckpointError, DataError: if they cannot be loaded or do not fit.
    """
    kind, reading = get_task(task), reading or Reading()
    checkpoint = load_checkpoint(str(model), kind)
    about = {"model": str(model), "task": task, "data": str(data), "split": reading.split}
    if kind is FILL_MASK:
        return about | _score_words(checkpoint, str(data), reading, max_length=max_length, progress=progress)
    names = checkpoint.label_names if kind.label_columns and kind.output == "logits" else None
    problem = problem_type_of(checkpoint.model)
    examples = load_examples(
        str(data),
        split=reading.split,
        task=kind,
        text_columns=reading.text_columns,
        label_column=reading.label_column,
        label_names=names,
        problem_type=problem,
        limit=reading.limit,
    )
    scores = evaluate_model(
        checkpoint.model,
        checkpoint.tokenizer,
        examples,
        max_length=max_length,
        task=kind,
        pooling=pooling,
        progress=progress,
    )
    return about | {"num_examples": len(examples), "data_sha256": examples.sha256, "scores": scores}


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
