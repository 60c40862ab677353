"""What is exported: a checkpoint, or an ONNX file that somebody else made, seen in one way."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill.bundle import Pooling, sha256_of
from potstill.checkpoint import (
    accepted_inputs,
    count_parameters,
    hash_checkpoint,
    load_checkpoint,
    load_config,
    load_tokenizer,
    read_folder,
    trained_task,
)
from potstill.checkpoint.folder import USUAL_LENGTH, longest_text
from potstill.checkpoint.model import SentenceHead, find_sentence_transformers, load_head, simple_head
from potstill.checkpoint.sentence_transformers import SentenceTransformers, check_pooling
from potstill.errors import CheckpointError, UsageError
from potstill.export.graph import count_layers
from potstill.export.onnx_source import OnnxSource, find_onnx_source
from potstill.serve import SENTENCE_EMBEDDING, OnnxSession
from potstill.tasks import (
    FEATURE_EXTRACTION,
    QUESTION_ANSWERING,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
    get_task,
    kind_of,
)

Feeds: TypeAlias = dict[str, NDArray[np.int64]]
Reference: TypeAlias = Callable[[Feeds], Mapping[str, NDArray[np.float32]]]
"""Inputs of shape (B, T) -> outputs by name: what an exported file must answer."""
_LABELLED = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)


@dataclass(slots=True, kw_only=True)
class Source:
    """What is exported.

    Attributes:
        name: the hub id, folder or file, as it was given.
        task: what it answers.
        config: transformers' configuration.
        tokenizer: transformers' fast tokenizer.
        inputs: the graph's inputs.
        outputs: the graph's outputs, the task's first.
        max_length: the longest text in tokens.
        pooling: how the graph makes one vector per text, if it does.
        head: what makes that vector of the token vectors, in torch.
        vectors: what a sentence-transformers folder says about them; None for other folders and other tasks.
        notes: what a user must know to get the checkpoint's own answers.
        model: the torch model; None for an existing ONNX file, and once it is not needed any more.
        existing: the ONNX file; None for a checkpoint.
        parameters: how many the whole model has.
        encoder_parameters: those without the head.
        sha256: of the checkpoint's files or of the ONNX file; None for a hub id.
    """

    name: str
    task: Task
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_length: int
    pooling: Pooling | None = None
    head: SentenceHead | None = None
    vectors: SentenceTransformers | None = None
    notes: tuple[str, ...] = ()
    model: PreTrainedModel | None = None
    existing: OnnxSource | None = None
    parameters: int
    encoder_parameters: int
    sha256: str | None

    @property
    def kind(self) -> str:
        """What is asked, in the words of `potstill.tasks.kind_of`."""
        return kind_of(self.task, problem_of(self.config))

    @property
    def task_outputs(self) -> tuple[str, ...]:
        """The outputs without the one that pooling adds."""
        return tuple(name for name in self.outputs if name != SENTENCE_EMBEDDING)

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the outputs; empty where a task has none."""
        return label_names(self.config) if self.task in _LABELLED else []

    def reference(self) -> Reference:
        """Return what the files must answer: the torch model, or the existing file without any optimisation."""
        if self.model is not None:
            return _torch_reference(self.model, self.outputs, self.head)
        assert self.existing is not None
        session = OnnxSession(self.existing.file, spinning=False, optimise=False)
        return session.run if self.head is None else _with_head(session, self.head)

    def release_model(self) -> None:
        """Let go of the torch model's weights; `reference` cannot be asked for any more."""
        for tensor in self.model.parameters() if self.model is not None else ():
            tensor.data = torch.empty(0)  # the exporter keeps single parameters in caches of its own
        self.model = None
        gc.collect()  # modules and their hooks name each other

    def architecture(self) -> dict[str, Any]:
        """Return the sizes that a report names."""
        config = self.config
        return {
            "model_type": config.model_type,
            "layers": count_layers(config),
            "hidden_size": config.hidden_size,
            "heads": config.num_attention_heads,
            "vocab_size": config.vocab_size,
            "encoder_parameters": self.encoder_parameters,
            "max_position_embeddings": getattr(config, "max_position_embeddings", None),
        }


def problem_of(config: PretrainedConfig) -> str | None:
    """Return a text classifier's problem type; one label alone is an amount."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else None)


def label_names(config: PretrainedConfig) -> list[str]:
    """Return the labels in the order of a model's outputs."""
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def peek(name: str, *, task: str | None = None) -> tuple[Task, list[str], str | None]:
    """Return the task, labels and problem type of a model without loading it, to read its data by.

    Raises:
        CheckpointError: if it has no configuration.
    """
    existing = find_onnx_source(name, task=task)
    wanted = get_task(existing.task if existing else task or trained_task(name) or TEXT_CLASSIFICATION.name)
    config = existing.config if existing else load_config(name)
    names = label_names(config) if wanted in _LABELLED else []
    return wanted, names, problem_of(config) if wanted is TEXT_CLASSIFICATION else None


def load_source(
    name: str,
    *,
    task: str | None = None,
    tokenizer: str | None = None,
    max_length: int | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
) -> Source:
    """Load a hub id, checkpoint folder, ONNX folder or ONNX file.

    Args:
        name: which.
        task: the name of a task; None is what a folder's configuration says it was trained for.
        tokenizer: a hub id or folder; None takes the model's own.
        max_length: longest text in tokens; None takes the tokenizer's own, at most the model's positions.
        pooling: `mean`, `cls` or `max` adds one vector per text to a feature extractor's graph; None does what a
            sentence-transformers folder says, and nothing elsewhere.
        normalize: whether that vector has length 1; None does what the folder says, and elsewhere yes.

    Raises:
        CheckpointError: if it cannot be loaded, or reads fewer tokens than asked for.
        UsageError: if pooling is asked for where there are no token vectors, or another one than the folder's.
    """
    existing = find_onnx_source(name, task=task)
    wanted = get_task(existing.task if existing else task or trained_task(name) or TEXT_CLASSIFICATION.name)
    if pooling is not None and wanted is not FEATURE_EXTRACTION:
        raise UsageError(f"pooling makes one vector of a text; {wanted.name} has none, so leave it out")
    found = find_sentence_transformers(str(existing.folder) if existing else name)
    found = found if wanted is FEATURE_EXTRACTION else None
    if found is not None:
        check_pooling(found, pooling=pooling, normalize=normalize)
    if existing is not None:
        return _existing_source(
            name, existing, found, tokenizer=tokenizer, max_length=max_length, pooling=pooling, normalize=normalize
        )
    head, record = _sentence_head(found, pooling=pooling, normalize=normalize)
    read_folder(name).check_encoder()
    checkpoint = load_checkpoint(name, wanted, tokenizer=tokenizer)
    model = checkpoint.model
    longest, notes = _within(found, model.config, checkpoint.tokenizer, asked=max_length, name=name)
    return Source(
        name=name,
        task=wanted,
        config=model.config,
        tokenizer=checkpoint.tokenizer,
        # A model that can take token types need not have a tokenizer that makes them: RoBERTa's does not.
        inputs=tuple(name for name in accepted_inputs(model) if name in checkpoint.tokenizer.model_input_names),
        outputs=_output_names(wanted, record),
        max_length=longest,
        pooling=record,
        head=head,
        vectors=found,
        notes=notes,
        model=model,
        parameters=count_parameters(model) + (count_parameters(head) if head is not None else 0),
        encoder_parameters=count_parameters(model.base_model),
        sha256=hash_checkpoint(name),
    )


def _existing_source(
    name: str,
    existing: OnnxSource,
    found: SentenceTransformers | None,
    *,
    tokenizer: str | None,
    max_length: int | None,
    pooling: str | None,
    normalize: bool | None,
) -> Source:
    """See an ONNX file as a source; token vectors of a sentence-transformers folder get what follows them there."""
    pooled = SENTENCE_EMBEDDING in existing.outputs
    if pooling is not None and (pooled or found is None):
        raise UsageError(f"{existing.file} is a finished graph, which gets no pooling; export its checkpoint instead")
    head, record = (None, None) if pooled else _sentence_head(found, pooling=pooling, normalize=normalize)
    config = existing.config
    loaded = load_tokenizer(tokenizer or str(existing.folder))
    longest, notes = _within(found, config, loaded, asked=max_length, name=name)
    if existing.precision != "fp32":
        stored = " (its weights are stored so, and multiplied as floats)" if existing.weight_only else ""
        notes = (
            f"{existing.file} is {existing.precision} already{stored}, so it is published as that and nothing else",
            *notes,
        )
    return Source(
        name=name,
        task=get_task(existing.task),
        config=config,
        tokenizer=loaded,
        inputs=tuple(existing.inputs),
        outputs=(*existing.outputs, SENTENCE_EMBEDDING) if head is not None else tuple(existing.outputs),
        max_length=longest,
        pooling=record,
        head=head,
        vectors=found,
        notes=notes,
        existing=existing,
        parameters=existing.parameters + (count_parameters(head) if head is not None else 0),
        encoder_parameters=existing.parameters,
        sha256=sha256_of(existing.file),
    )


def _sentence_head(
    found: SentenceTransformers | None, *, pooling: str | None, normalize: bool | None
) -> tuple[SentenceHead | None, Pooling | None]:
    """Return what makes one vector of the token vectors, in torch and in the words of the manifest."""
    if found is not None and found.pooling:
        record = Pooling(mode=found.mode, normalize=found.normalize, projected=found.is_projected)
        return load_head(found), record
    if pooling is None:
        return None, None
    record = Pooling(mode=pooling, normalize=normalize is not False)
    return simple_head(record.mode, normalize=record.normalize), record


def _within(
    found: SentenceTransformers | None,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    asked: int | None,
    name: str,
) -> tuple[int, tuple[str, ...]]:
    """Return the longest text in tokens, the smallest of all limits, and what must be said about it.

    Args:
        found: the folder's sentence-transformers files.
        config: the model's.
        tokenizer: which may have a limit of its own.
        asked: what the user asks for.
        name: what the model is called in an error.
    """
    notes = list(found.notes()) if found else []
    ends = longest_text(config.to_dict(), tokenizer.model_max_length)
    # Relative positions have no end; such a model is known to work on texts of the length that it was made for.
    longest = ends or getattr(config, "max_position_embeddings", None) or USUAL_LENGTH
    if found and found.max_seq_length and found.max_seq_length < longest:
        where = f"max_seq_length of {found.encoder_file}"
        if asked is not None and found.max_seq_length < asked <= longest:
            raise CheckpointError(
                f"max_length is {asked}; {where} is {found.max_seq_length}; raise it there, or here ask for less"
            )
        notes.append(
            f"texts are cut to {found.max_seq_length} tokens, the {where}; the model has positions for {longest}"
        )
        longest = found.max_seq_length
        ends = longest
    if asked is not None and not 1 <= asked <= (ends or asked):
        raise CheckpointError(f"max_length is {asked}; {name} reads 1 to {ends} tokens")
    return asked or longest, tuple(notes)


def _output_names(task: Task, pooling: Pooling | None) -> tuple[str, ...]:
    if task is QUESTION_ANSWERING:
        return ("start_logits", "end_logits")
    return (task.output, SENTENCE_EMBEDDING) if pooling else (task.output,)


def _with_head(session: OnnxSession, head: SentenceHead) -> Reference:
    def answer(feeds: Feeds) -> dict[str, NDArray[np.float32]]:
        found = dict(session.run(feeds))
        states, mask = (torch.from_numpy(values) for values in (found["last_hidden_state"], feeds["attention_mask"]))
        with torch.inference_mode():
            return found | {SENTENCE_EMBEDDING: head(states.float(), mask).numpy()}

    return answer


def _torch_reference(model: PreTrainedModel, outputs: tuple[str, ...], head: SentenceHead | None) -> Reference:
    def answer(feeds: Feeds) -> dict[str, NDArray[np.float32]]:
        tensors = {name: torch.from_numpy(values) for name, values in feeds.items()}
        with torch.inference_mode():
            given = model(**tensors)
            found = {name: getattr(given, name) for name in outputs if name != SENTENCE_EMBEDDING}
            if head is not None:
                found[SENTENCE_EMBEDDING] = head(given.last_hidden_state, tensors["attention_mask"])
        return {name: found[name].float().numpy() for name in outputs}

    return answer
