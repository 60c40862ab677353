"""Score torch models on any task, decoded as the server decodes, with torch in place of onnxruntime.

`evaluate` scores a checkpoint by name, `Evaluation` any number of models on one data set during training. How a torch
model is run is in `torch_session`.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from potstill.bundle import AgainstTrivial
from potstill.checkpoint import load_checkpoint, read_folder
from potstill.checkpoint.model import SentenceEncoder, find_sentence_transformers, load_head
from potstill.checkpoint.sentence_transformers import check_pooling
from potstill.data import Examples, load_examples
from potstill.distill.torch_session import (
    EVALUATION_BATCH_SIZE,
    Model,
    Scores,
    TorchSession,
    problem_type_of,
    serving_tokenizer,
)
from potstill.errors import UsageError
from potstill.evaluation.predictions import Predictions, predict
from potstill.evaluation.scores import check_examples, check_predictions, score
from potstill.evaluation.summary import ModelEvaluation, summarize
from potstill.evaluation.trivial import against_trivial
from potstill.progress import Progress, silent
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    REGRESSION,
    TEXT_CLASSIFICATION,
    Task,
    get_task,
    kind_of,
    primary_metric,
)

_USUAL_LENGTH = 128


class Evaluation:
    """One data set, prepared for scoring any number of models with one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        max_length: int,
        task: Task = TEXT_CLASSIFICATION,
        pooling: str = "mean",
    ) -> None:
        """Prepare the data set.

        Args:
            tokenizer: the models'.
            examples: labelled, see `Examples.labels`; for feature-extraction scored pairs; texts for fill-mask.
            max_length: longer texts are cut, contexts of questions become several windows.
            task: the models'; a text classifier's kind of label comes from its configuration.
            pooling: for feature-extraction of models without a head of their own, `mean`, `cls` or `max`.
        """
        self.examples, self.task = examples, task
        self._tokenizer = serving_tokenizer(tokenizer, max_length=max_length)
        self._pooling = pooling

    def predict(self, model: Model, *, progress: Progress = silent, who: str = "model") -> Predictions:
        """Return a model's answers, as `potstill.evaluation.predictions.predict` describes them.

        Args:
            model: of the task's class; it is put into eval mode and stays there.
            progress: is called with how far it is.
            who: what the model is called there.

        Raises:
            DataError: if such a model cannot be scored on the examples.
        """
        kind = self.kind(model)
        check_examples(self.examples, kind)
        predictions = self.ask(model, progress=progress, who=who)
        check_predictions(predictions, self.examples, kind=kind, key=f"the {who}")
        return predictions

    def ask(self, model: Model, *, progress: Progress = silent, who: str = "model") -> Predictions:
        """Return a model's answers as `predict` does, to texts that may have no labels."""
        kind, total = self.kind(model), len(self.examples)
        session = TorchSession(model, self.task)
        # As the server tells it: without a problem type of its own, a single output is a probability.
        is_declared = kind != REGRESSION or model.config.problem_type is not None
        predictions = predict(
            session,
            self._tokenizer,
            self.examples.texts,
            kind=kind,
            outputs=session.outputs,
            function=None if is_declared else "sigmoid",
            pooling=self._pooling,
            batch_size=EVALUATION_BATCH_SIZE,
            progress=lambda done: progress(f"score the {who}", min(done, total - 1), total, ""),
        )
        progress(f"score the {who}", total, total, "")
        return predictions

    def score(self, model: Model, *, progress: Progress = silent, who: str = "model") -> Scores:
        """Return a model's scores, the task's own first; arguments and errors as `predict`."""
        predictions, kind = self.predict(model, progress=progress, who=who), self.kind(model)
        metric = primary_metric(self.task, problem_type_of(model))
        scores = score(predictions, self.examples, kind=kind, metric=metric).scores
        return {metric: scores[metric]} | scores

    def against_trivial(
        self, model: Model, *, metric: str, progress: Progress = silent, who: str = "model"
    ) -> AgainstTrivial:
        """Compare a model's score with that of an answer that ignores the text; arguments and errors as `predict`."""
        predictions, kind = self.predict(model, progress=progress, who=who), self.kind(model)
        scored = score(predictions, self.examples, kind=kind, metric=metric)
        return against_trivial(predictions, scored, self.examples, kind=kind, metric=metric)

    def kind(self, model: Model) -> str:
        """Return the kind of a model: a key of `potstill.tasks.METRICS`."""
        return kind_of(self.task, problem_type_of(model))


def evaluate_model(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    max_length: int,
    task: Task = TEXT_CLASSIFICATION,
    pooling: str = "mean",
    progress: Progress = silent,
    who: str = "model",
) -> Scores:
    """Return the scores of a torch model on labelled texts, in its own precision, the deciding metric first.

    Args:
        model: of the task's class; it is put into eval mode and stays there.
        tokenizer: the model's.
        examples: as `Evaluation`, and so are the next three.
        max_length: the longest text in tokens.
        task: the model's.
        pooling: for feature-extraction.
        progress: is called with how far it is.
        who: what the model is called there.

    Raises:
        DataError: if the examples have no labels, or others than the model's.
    """
    evaluation = Evaluation(tokenizer, examples, max_length=max_length, task=task, pooling=pooling)
    return evaluation.score(model, progress=progress, who=who)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Which split, columns and number of rows `evaluate` reads."""

    split: str = "validation"
    label_column: str | None = None
    text_columns: list[str] | None = None
    limit: int | None = None


class CheckpointEvaluation(ModelEvaluation):
    """The result for a checkpoint."""

    task: str


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
) -> CheckpointEvaluation:
    """Return the scores of a checkpoint on a data set, under `scores`, with what was scored beside them.

    Texts are read and answers are decoded by the code that serves them, so a bundle of the checkpoint scores the same,
    but for what its precision changes.

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
        keep_predictions: also return `predictions`, one row per example: its `text`, `tokens` or
            `question`, `label` and `prediction`.
        progress: is called with how far it is.

    Raises:
        CheckpointError, DataError: if they cannot be loaded or do not fit.
        UsageError: if the metric does not judge the task, predictions are wanted of masked words, or another pooling
            than the folder describes.
    """
    folder = read_folder(model)
    known = get_task(task) if task else folder.task or TEXT_CLASSIFICATION
    reading = reading or Reading()
    if known is FILL_MASK and keep_predictions:
        raise UsageError("fill-mask guesses words by the thousand and has no answer per example to keep")
    found = find_sentence_transformers(str(model)) if known is FEATURE_EXTRACTION else None
    if found is not None:
        check_pooling(found, pooling=pooling, normalize=None)
    if max_length is None:
        # A sentence encoder is cut where its folder says, or its vectors are not those that others compute.
        max_length = folder.usual_length if found else min(_USUAL_LENGTH, folder.longest or _USUAL_LENGTH)
    folder.check_length(max_length)
    checkpoint, head = load_checkpoint(str(model), known), load_head(found) if found else None
    num_labels = checkpoint.model.config.num_labels
    first = primary_metric(known, problem_type_of(checkpoint.model), asked=metric, num_labels=num_labels)
    examples = load_examples(
        str(data),
        split=reading.split,
        task=known,
        text_columns=reading.text_columns,
        label_column=reading.label_column,
        label_names=checkpoint.label_names if known.label_columns and known.output == "logits" else None,
        problem_type=problem_type_of(checkpoint.model),
        limit=reading.limit,
    )
    evaluation = Evaluation(
        checkpoint.tokenizer, examples, max_length=max_length, task=known, pooling=pooling or "mean"
    )
    scored = checkpoint.model if head is None else SentenceEncoder(checkpoint.model, head)
    predictions = evaluation.predict(scored, progress=progress)
    notes = folder.notes if max_length == folder.max_seq_length else ()
    result: CheckpointEvaluation = {
        "model": str(model),
        "task": known.name,
        "data": str(data),
        "split": reading.split,
        "num_examples": len(examples),
        "data_sha256": examples.sha256,
        **summarize(
            predictions,
            examples,
            kind=evaluation.kind(checkpoint.model),
            metric=first,
            keep_predictions=keep_predictions,
        ),
    }
    result["notes"] = [*examples.notes, *notes, *result["notes"]]
    return result
