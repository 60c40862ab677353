"""Run a torch model: as an `OnnxSession` runs a bundle, over running text, and over texts for their vectors."""

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
from potstill.checkpoint import save_tokenizer
from potstill.checkpoint.model import SentenceEncoder, SentenceHead
from potstill.data import Examples
from potstill.distill.batches import Collator, EpochRows, make_collator, make_mlm_collator, read_lengths, tokenize
from potstill.distill.hooks import embed, masked_lm_head, model_inputs
from potstill.distill.masking import IGNORED
from potstill.errors import CheckpointError
from potstill.progress import Progress, silent
from potstill.serve import BundleTokenizer
from potstill.serve.tasks.feature_extraction import SENTENCE_EMBEDDING
from potstill.tasks import (
    FEATURE_EXTRACTION,
    QUESTION_ANSWERING,
    REGRESSION,
    Task,
)

Scores = dict[str, float]
Model: TypeAlias = PreTrainedModel | SentenceEncoder
"""A model that can be scored. A `SentenceEncoder` pools by its own head, any other as the caller says."""
EVALUATION_BATCH_SIZE = 32
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
    for start in range(0, len(order), EVALUATION_BATCH_SIZE):
        numbers = order[start : start + EVALUATION_BATCH_SIZE]
        yield numbers, collate(numbered.__getitems__(numbers))
        progress(f"score the {who}", min(start + EVALUATION_BATCH_SIZE, len(order)), len(order), "")
