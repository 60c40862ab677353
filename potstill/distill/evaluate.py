"""Score a torch model on any task, on the same batches as training makes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill import metrics
from potstill.checkpoint.sentence_head import SentenceHead
from potstill.data import Examples
from potstill.distill.anatomy import base, masked_lm_head, model_inputs
from potstill.distill.answers import read_answers
from potstill.distill.batches import EpochRows, make_collator, make_mlm_collator, read_column, tokenize
from potstill.distill.examples import LENGTH_COLUMN, WORD_STARTS
from potstill.distill.masking import IGNORED
from potstill.distill.methods.embedding import embed
from potstill.errors import DataError
from potstill.progress import Progress, silent
from potstill.task import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
    kind_of,
)

Scores = dict[str, float]
Floats = NDArray[np.floating]

_BATCH_SIZE = 32
# Held-out words are masked alike for every model and at every step: scores differ by the model alone.
_MASKING_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a model answers to labelled texts, one entry per example."""

    kind: str
    """What was asked: a key of `potstill.task.METRICS`."""
    given: Any
    """By kind, for N examples:

    - text classifiers: logits, float32 of shape (N, labels), also of a regression
    - token-classification: a list of tag names, one for every word
    - question-answering: a list of texts, "" where there is no answer
    - feature-extraction: the cosines of the pairs, float64 of shape (N,)
    """


def problem_type_of(model: PreTrainedModel) -> str | None:
    """Return what a text classifier answers, in the words of its configuration; None for other models."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    declared: str | None = model.config.problem_type
    return declared or (REGRESSION if model.config.num_labels == 1 else None)


def evaluate_model(
    model: PreTrainedModel,
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
        examples: labelled, see `Examples.labels`; for feature-extraction scored pairs.
        max_length: longer texts are cut, contexts of questions become several windows.
        task: what is asked; a text classifier's kind of label comes from its configuration.
        pooling: for feature-extraction, `mean` or `cls`.
        progress: is told how far it is.
        who: the name under which it is told.

    Raises:
        DataError: if the examples have no labels.
    """
    answers = predict_answers(
        model, tokenizer, examples, max_length=max_length, task=task, pooling=pooling, progress=progress, who=who
    )
    return score_answers(answers, examples)


def predict_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    max_length: int,
    task: Task = TEXT_CLASSIFICATION,
    pooling: str = "mean",
    progress: Progress = silent,
    who: str = "model",
) -> Answers:
    """Return what a torch model answers to labelled texts; arguments and errors as `evaluate_model`."""
    if examples.labels is None:
        raise DataError(f"{examples.name} ({examples.split}) has no labels to score a model by")
    model.eval()
    kind, tell = kind_of(task, problem_type_of(model)), (progress, who)
    if task is FEATURE_EXTRACTION:
        given = _similarity(model, tokenizer, examples, max_length=max_length, pooling=pooling, tell=tell)
        return Answers(kind=kind, given=given)
    rows = tokenize(examples, tokenizer, max_length=max_length)
    outputs = predict(model, rows, make_collator(tokenizer), tell=tell)
    if task is QUESTION_ANSWERING:
        starts, ends = ([output[key] for output in outputs] for key in ("start_logits", "end_logits"))
        contexts = [context for _, context in examples.texts]
        may_be_none = any(not answers["text"] for answers in examples.labels)
        answers = read_answers(rows, starts, ends, contexts=contexts, null_threshold=0.0 if may_be_none else None)
        return Answers(kind=kind, given=answers)
    logits = [output["logits"] for output in outputs]
    if task is TOKEN_CLASSIFICATION:
        return Answers(kind=kind, given=_read_tags(rows, logits, examples.label_names))
    return Answers(kind=kind, given=np.stack(logits))


def score_answers(answers: Answers, examples: Examples) -> Scores:
    """Return the scores of answers to labelled texts, the deciding metric first."""
    labels, given = examples.labels, answers.given
    if answers.kind == FEATURE_EXTRACTION.name:
        scores = metrics.correlations(labels, given)
        return {"spearman": scores["spearman"]} | scores
    if answers.kind == TOKEN_CLASSIFICATION.name:
        return metrics.tagging(metrics.tag_names(labels, examples.label_names), given)
    scoring: dict[str, Callable[[Any, Any], Scores]] = {
        QUESTION_ANSWERING.name: metrics.question_answering,
        REGRESSION: metrics.regression,
        MULTI_LABEL: metrics.multi_label,
        SINGLE_LABEL: metrics.classification,
    }
    return scoring[answers.kind](labels, given)


def _read_tags(rows: Dataset, logits: Sequence[Floats], names: Sequence[str]) -> list[list[str]]:
    """Return the tag of every word of each text; a word that was cut off counts as `O`, or the first tag."""
    outside = names.index("O") if "O" in names else 0
    predictions = [
        [int(scores[start].argmax()) if start >= 0 else outside for start in starts]
        for scores, starts in zip(logits, rows[WORD_STARTS], strict=True)
    ]
    return metrics.tag_names(predictions, names)


def predict(
    model: PreTrainedModel, rows: Dataset, collate: Callable[[Any], Any], *, tell: tuple[Progress, str]
) -> list[dict[str, Floats]]:
    """Return the model's outputs for each row, float32, in the order of the rows; padding is cut where there is any."""
    wanted = ("start_logits", "end_logits") if "start_positions" in rows.column_names else ("logits",)
    found: list[dict[str, Floats]] = [{} for _ in range(len(rows))]
    for numbers, batch in _batches(rows, collate, tell=tell):
        with torch.inference_mode():
            output = model(**model_inputs(model, {name: value.to(model.device) for name, value in batch.items()}))
        for name in wanted:
            for number, values in zip(numbers, getattr(output, name).float().cpu().numpy(), strict=True):
                found[number][name] = values
    return found


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
        mask_share: the share of words that is asked for.
        progress: is told how far it is.
        who: the name under which it is told.
    """
    model.eval()
    encoder, head = base(model), masked_lm_head(model)
    collate = make_mlm_collator(tokenizer, seed=_MASKING_SEED, share=mask_share)
    nll, hits, count = 0.0, 0, 0
    for _, batch in _batches(corpus, collate, tell=(progress, who)):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with torch.inference_mode():
            states = encoder(**model_inputs(encoder, batch)).last_hidden_state.flatten(0, 1)
            labels = batch["masked_labels"].flatten()
            asked = (labels != IGNORED).nonzero().squeeze(1)
            logits = F.linear(head.transform(states[asked]), head.weight, head.bias).float()
            nll += F.cross_entropy(logits, labels[asked], reduction="sum").item()
            hits += int((logits.argmax(-1) == labels[asked]).sum())
            count += len(asked)
    return metrics.masked_words(nll, count=count, hits=hits)


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
    for numbers, batch in _batches(rows, make_collator(tokenizer), tell=(progress, who)):
        with torch.inference_mode():
            on_device = {name: value.to(model.device) for name, value in batch.items()}
            vectors[numbers] = embed(model, on_device, pooling).float().cpu().numpy()
    return vectors


def _similarity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    max_length: int,
    pooling: str,
    tell: tuple[Progress, str],
) -> NDArray[np.float64]:
    """Return the cosine of every pair."""
    sides = [
        embed_texts(model, tokenizer, list(side), max_length=max_length, pooling=pooling, progress=tell[0], who=tell[1])
        for side in zip(*examples.texts, strict=True)
    ]
    return metrics.row_cosines(*sides)


def _batches(
    rows: Dataset, collate: Callable[[Any], Any], *, tell: tuple[Progress, str]
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield row numbers and their batch, rows of similar length together."""
    numbered = EpochRows(rows)
    order = np.argsort(read_column(rows, LENGTH_COLUMN), kind="stable").tolist()
    for start in range(0, len(order), _BATCH_SIZE):
        numbers = order[start : start + _BATCH_SIZE]
        yield numbers, collate(numbered.__getitems__(numbers))
        tell[0](f"score the {tell[1]}", min(start + _BATCH_SIZE, len(order)), len(order), "")
