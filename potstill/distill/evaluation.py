"""Score torch models on any task, decoded as the server decodes, with torch in place of onnxruntime.

`evaluate` scores a checkpoint by name, `Evaluation` any number of models on one data set during training, and
`TorchSession` is the adapter by which `potstill.evaluation` runs a torch model.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill import metrics
from potstill.bundle import AgainstTrivial
from potstill.checkpoint import load_checkpoint, read_folder, save_tokenizer
from potstill.checkpoint.model import SentenceEncoder, SentenceHead, find_sentence_transformers, load_head
from potstill.checkpoint.sentence_transformers import check_pooling
from potstill.data import Examples, load_examples
from potstill.distill.batches import Collator, EpochRows, make_collator, make_mlm_collator, read_lengths, tokenize
from potstill.distill.hooks import embed, masked_lm_head, model_inputs
from potstill.distill.masking import IGNORED
from potstill.errors import CheckpointError, UsageError
from potstill.evaluation.predictions import Predictions, predict
from potstill.evaluation.scores import check_examples, check_predictions, score
from potstill.evaluation.summary import ModelEvaluation, summarize
from potstill.evaluation.trivial import against_trivial
from potstill.progress import Progress, silent
from potstill.serve import BundleTokenizer
from potstill.serve.tasks.feature_extraction import SENTENCE_EMBEDDING
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    QUESTION_ANSWERING,
    REGRESSION,
    TEXT_CLASSIFICATION,
    Task,
    get_task,
    kind_of,
    primary_metric,
)

Scores = dict[str, float]
Model: TypeAlias = PreTrainedModel | SentenceEncoder
"""A model that can be scored. A `SentenceEncoder` pools by its own head, any other as the caller says."""

_BATCH_SIZE = 32
_USUAL_LENGTH = 128
# Held-out words are masked alike for every model and at every step: scores differ by the model alone.
_MASKING_SEED = 0
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, slots=True)
class _TokenizerSettings:
    """The settings that `BundleTokenizer` reads from a manifest (`potstill.serve.tokenizer.TokenizerSettings`)."""

    inputs: tuple[str, ...]
    max_length: int
    padding_side: str
    pad_token_id: int


class TorchSession:
    """A torch model that answers as an `OnnxSession` does: arrays by name in, arrays by name out."""

    def __init__(self, model: Model, task: Task) -> None:
        """Take a model of the task's class; it is put into eval mode and stays there.

        Args:
            model: on its device, in its own precision.
            task: says which outputs there are.
        """
        self._model = model.eval()
        self.outputs: tuple[str, ...] = (task.output,)
        # The names are those of the exported graph, since the server's decoding asks for them.
        if task is QUESTION_ANSWERING:
            self.outputs = ("start_logits", "end_logits")
        self._call: Model = model
        self._encoder = model.encoder if isinstance(model, SentenceEncoder) else model
        if isinstance(model, SentenceEncoder):
            self.outputs = (task.output, SENTENCE_EMBEDDING)
        elif task is FEATURE_EXTRACTION:
            self._call = self._encoder = model.base_model

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name, as float32, for a padded batch; inputs that the model lacks are left out."""
        tensors = {name: torch.from_numpy(values).to(self._model.device) for name, values in feeds.items()}
        with torch.inference_mode():
            given = self._call(**model_inputs(self._encoder, tensors))
        return {name: given[name].float().cpu().numpy() for name in self.outputs}


def serving_tokenizer(tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> BundleTokenizer:
    """Return the tokenizer that would serve a checkpoint's texts, cut to `max_length`.

    Raises:
        CheckpointError: if it has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise CheckpointError("the tokenizer has no padding token; give it one")
    settings = _TokenizerSettings(
        inputs=tuple(name for name in _INPUTS if name in {*tokenizer.model_input_names, "attention_mask"}),
        max_length=max_length,
        # Encoders number positions from the left.
        padding_side="right",
        pad_token_id=tokenizer.pad_token_id,
    )
    # Through files, as in a bundle: what is read back is what would be served.
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return BundleTokenizer(Path(folder), settings)


def problem_type_of(model: Model) -> str | None:
    """Return what a text classifier answers, in the words of its configuration; None for other models."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    declared: str | None = model.config.problem_type
    return declared or (REGRESSION if model.config.num_labels == 1 else None)


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
        kind, total = self.kind(model), len(self.examples)
        check_examples(self.examples, kind)
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
            batch_size=_BATCH_SIZE,
            progress=lambda done: progress(f"score the {who}", min(done, total - 1), total, ""),
        )
        progress(f"score the {who}", total, total, "")
        check_predictions(predictions, self.examples, kind=kind, key=f"the {who}")
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


def evaluate_words(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset,
    *,
    mask_share: float = 0.15,
    progress: Progress = silent,
    who: str = "model",
) -> Scores:
    """Return perplexity, loss and accuracy at the masked positions of running text.

    Every call masks the same words by the 80/10/10 rule, so that scores can be compared; logits exist only there.

    Args:
        model: with a masked-LM head; it is put into eval mode and stays there.
        tokenizer: the model's.
        corpus: rows of `load_corpus`.
        mask_share: the share of words that is masked or otherwise predicted.
        progress: is called with how far it is.
        who: what the model is called there.
    """
    model.eval()
    encoder, head = model.base_model, masked_lm_head(model)
    collate = make_mlm_collator(tokenizer, seed=_MASKING_SEED, share=mask_share)
    nll, hits, count = 0.0, 0, 0
    for _, batch in _batches(corpus, collate, progress=progress, who=who):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with torch.inference_mode():
            states = encoder(**model_inputs(encoder, batch)).last_hidden_state.flatten(0, 1)
            labels = batch["masked_labels"].flatten()
            # A vocabulary of logits per token would take most of the time and memory; 15 % of them are asked for.
            scored = (labels != IGNORED).nonzero().squeeze(1)
            logits = F.linear(head.transform(states[scored]), head.weight, head.bias).float()
            nll += F.cross_entropy(logits, labels[scored], reduction="sum").item()
            hits += int((logits.argmax(-1) == labels[scored]).sum())
            count += len(scored)
    return metrics.masked_lm_scores(nll, count=count, hits=hits)


def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    pooling: str | SentenceHead = "mean",
    progress: Progress = silent,
    who: str = "model",
) -> NDArray[np.float32]:
    """Return one vector per text, float32 (N, E): pooled, or made by a head of sentence-transformers."""
    unlabelled = Examples(name="", split="", texts=list(texts), labels=None, label_names=(), sha256="")
    rows = tokenize(unlabelled, tokenizer, max_length=max_length)
    width = model.config.hidden_size if isinstance(pooling, str) else pooling.width(model.config.hidden_size)
    vectors = np.empty((len(rows), width), dtype=np.float32)
    model.eval()
    for numbers, batch in _batches(rows, make_collator(tokenizer), progress=progress, who=who):
        with torch.inference_mode():
            on_device = {name: value.to(model.device) for name, value in batch.items()}
            vectors[numbers] = embed(model, on_device, pooling).float().cpu().numpy()
    return vectors


def _batches(
    rows: Dataset, collate: Collator, *, progress: Progress, who: str
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield row numbers and their batch, rows of similar length together."""
    numbered = EpochRows(rows)
    # By length against padding; stable, so that a batch holds the same rows on every machine.
    order = np.argsort(read_lengths(rows), kind="stable").tolist()
    for start in range(0, len(order), _BATCH_SIZE):
        numbers = order[start : start + _BATCH_SIZE]
        yield numbers, collate(numbered.__getitems__(numbers))
        progress(f"score the {who}", min(start + _BATCH_SIZE, len(order)), len(order), "")
