"""Load what is exported, a checkpoint or an ONNX file of another tool, as one type, `Source`."""

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill.bundle import LONGEST_TEXT, RECOMMENDED, Architecture, ModelRecord, Pooling, Precision, sha256_of
from potstill.checkpoint import (
    accepted_inputs,
    count_parameters,
    hash_checkpoint,
    load_checkpoint,
    load_config,
    load_tokenizer,
    read_folder,
    save_tokenizer,
    trained_task,
)
from potstill.checkpoint.folder import USUAL_LENGTH, longest_text
from potstill.checkpoint.model import (
    SentenceHead,
    find_sentence_transformers,
    load_head,
    simple_head,
    write_sentence_transformers,
)
from potstill.checkpoint.sentence_transformers import PROMPTS_FILE, SentenceTransformers, check_pooling
from potstill.errors import CheckpointError, UsageError
from potstill.export.graph import count_layers
from potstill.export.onnx_files import Feeds
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

Reference: TypeAlias = Callable[[Feeds], Mapping[str, NDArray[np.float32]]]
"""A function from inputs, (B, T), to outputs by name, float32: what an exported file is compared with."""
_LABELLED = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)
# The key of config.json under which transformers.js has its own settings.
_TRANSFORMERS_JS = "transformers.js_config"


@dataclass(slots=True, kw_only=True)
class Source:
    """A model to export. It also has the settings that `potstill.serve.BundleTokenizer` reads.

    Attributes:
        name: the hub id, folder or file, as it was given.
        task: the task.
        config: transformers' configuration.
        tokenizer: transformers' fast tokenizer.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs, the task's first.
        max_length: the longest text in tokens.
        pooling: how the graph makes one vector per text; None if it does not.
        head: the sentence head, in torch; None without pooling, or if the ONNX file already has it.
        vectors: the settings of a sentence-transformers folder; None for other folders and other tasks.
        notes: what a user must know to get the checkpoint's own answers.
        model: the torch model; None for an ONNX file and after `release_model`.
        onnx_source: the ONNX file of another tool; None for a checkpoint.
        parameters: the number of parameters of the whole model.
        encoder_parameters: the number of parameters without the task's head.
        sha256: the hash of the checkpoint's files or of the ONNX file; None for a hub id.
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
    onnx_source: OnnxSource | None = None
    parameters: int
    encoder_parameters: int
    sha256: str | None

    @property
    def kind(self) -> str:
        """The task and problem type in one word, see `potstill.tasks.kind_of`."""
        return kind_of(self.task, problem_of(self.config))

    @property
    def task_outputs(self) -> tuple[str, ...]:
        """The outputs without `sentence_embedding`."""
        return tuple(name for name in self.outputs if name != SENTENCE_EMBEDDING)

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the outputs; empty for tasks without labels."""
        return label_names(self.config) if self.task in _LABELLED else []

    @property
    def padding_side(self) -> str:
        """`left` or `right`."""
        return str(self.tokenizer.padding_side)

    @property
    def pad_token_id(self) -> int:
        """The id of the padding token."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def architecture(self) -> Architecture:
        """The model's sizes, for the manifest."""
        config = self.config
        return Architecture(
            model_type=config.model_type,
            layers=count_layers(config),
            hidden_size=config.hidden_size,
            heads=config.num_attention_heads,
            vocab_size=config.vocab_size,
            encoder_parameters=self.encoder_parameters,
            max_position_embeddings=getattr(config, "max_position_embeddings", None),
        )

    def reference(self) -> Reference:
        """Return a function that runs the torch model, or the given ONNX file without optimisations."""
        model, head, outputs = self.model, self.head, self.outputs

        def ask_torch(feeds: Feeds) -> dict[str, NDArray[np.float32]]:
            assert model is not None
            tensors = {name: torch.from_numpy(values) for name, values in feeds.items()}
            with torch.inference_mode():
                given = model(**tensors)
                found = {name: getattr(given, name) for name in outputs if name != SENTENCE_EMBEDDING}
                if head is not None:
                    found[SENTENCE_EMBEDDING] = head(given.last_hidden_state, tensors["attention_mask"])
            return {name: found[name].float().numpy() for name in outputs}

        if model is not None:
            return ask_torch
        assert self.onnx_source is not None
        session = OnnxSession(self.onnx_source.file, spinning=False, optimise=False)

        def ask_file(feeds: Feeds) -> dict[str, NDArray[np.float32]]:
            found = dict(session.run(feeds))
            if head is not None:
                states, mask = torch.from_numpy(found["last_hidden_state"]), torch.from_numpy(feeds["attention_mask"])
                with torch.inference_mode():
                    found[SENTENCE_EMBEDDING] = head(states.float(), mask).numpy()
            return found

        return ask_file

    def write_files(self, folder: Path) -> None:
        """Write configuration, tokenizer and sentence-transformers files, and make the folder `onnx`.

        Raises:
            CheckpointError: if the tokenizer cannot pad.
        """
        if self.tokenizer.pad_token_id is None:
            raise CheckpointError(f"the tokenizer of {self.name} has no padding token; give it one, and export again")
        self.config.save_pretrained(folder)
        if self.labels:
            self._name_labels(folder / "config.json")
        # After config.json, by which transformers chooses the tokenizer class that is tried there.
        save_tokenizer(self.tokenizer, folder)
        if self.head is not None:
            prompts = self.vectors.folder / PROMPTS_FILE if self.vectors else None
            write_sentence_transformers(
                self.head, folder, width=self.config.hidden_size, max_length=self.max_length, prompts=prompts
            )
        (folder / "onnx").mkdir()

    def _name_labels(self, file: Path) -> None:
        """Write `id2label` where transformers leaves it out: LABEL_0 and LABEL_1, its defaults.

        Other tools do not know these: infinity takes a classifier without names for a reranker.
        """
        content = json.loads(file.read_text(encoding="utf-8"))
        if "id2label" not in content:
            content["id2label"] = {str(number): name for number, name in enumerate(self.labels)}
            content["label2id"] = {name: number for number, name in enumerate(self.labels)}
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def name_files(self, folder: Path, models: Mapping[Precision, ModelRecord]) -> None:
        """Tell transformers.js and sentence-transformers which file to load where their user names none.

        transformers.js would look for `model_quantized.onnx` in a browser, and for fp32 on Node; sentence-transformers
        always looks for fp32, `model.onnx`.
        """
        file = folder / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        # int8-static has no word there. On WebGPU, which has no products of int8, floats are faster.
        words = [precision for precision in RECOMMENDED if precision in models and precision != "int8-static"]
        found: dict[str, object] = {"dtype": words[0]} if words else {}
        floats = [word for word in words if word != "int8"]
        if floats and floats[0] != words[0]:
            found["device_config"] = {"webgpu": {"dtype": floats[0]}}
        outside = {Path(model.file).name: len(model.external_data) for model in models.values() if model.external_data}
        if outside:
            found["use_external_data_format"] = outside
        # Of an ONNX folder that is exported again the key says what that folder had.
        content.pop(_TRANSFORMERS_JS, None)
        content |= {_TRANSFORMERS_JS: found} if found else {}
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        settings = folder / "sentence_bert_config.json"
        if "fp32" not in models and settings.is_file():
            chosen = next(model.file for precision in RECOMMENDED if (model := models.get(precision)))
            content = json.loads(settings.read_text(encoding="utf-8"))
            content["model_args"] = {"file_name": Path(chosen).name}
            settings.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def release_model(self) -> None:
        """Free the torch model's weights; functions from `reference` must not be called any more."""
        for tensor in self.model.parameters() if self.model is not None else ():
            # Emptied, because caches of the exporter still refer to single parameters (docs/log.md, memory).
            tensor.data = torch.empty(0)
        self.model = None
        gc.collect()  # modules and their hooks are reference cycles


def problem_of(config: PretrainedConfig) -> str | None:
    """Return a text classifier's problem type; with a single label it is regression."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else None)


def label_names(config: PretrainedConfig) -> list[str]:
    """Return the labels in the order of a model's outputs."""
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def peek(name: str, *, task: str | None = None) -> tuple[Task, list[str], str | None]:
    """Return task, labels and problem type of a model without loading it; a data set is read by these.

    Raises:
        CheckpointError: if it has no configuration.
    """
    given = find_onnx_source(name, task=task)
    wanted = get_task(given.task if given else task or trained_task(name) or TEXT_CLASSIFICATION.name)
    config = given.config if given else load_config(name)
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
    token_vectors: bool = True,
) -> Source:
    """Load a hub id, checkpoint folder, ONNX folder or ONNX file.

    Args:
        name: the hub id, folder or file.
        task: the name of a task; None takes what the folder was trained for, else text-classification.
        tokenizer: a hub id or folder; None takes the model's own.
        max_length: the longest text in tokens; None takes the smallest limit of tokenizer, positions and folder.
        pooling: `mean`, `cls` or `max` adds one vector per text to a feature extractor's graph; None does what a
            sentence-transformers folder says, and nothing for other folders.
        normalize: whether that vector has an L2 norm of 1; None does what the folder says, else True.
        token_vectors: whether a graph with such a vector gives those of all tokens, too.

    Raises:
        CheckpointError: if it cannot be loaded, or cannot read `max_length` tokens.
        UsageError: if pooling is set for another task, or contradicts the folder's; or if no output would be left
            without the vectors of tokens.
    """
    given = find_onnx_source(name, task=task)
    wanted = get_task(given.task if given else task or trained_task(name) or TEXT_CLASSIFICATION.name)
    if pooling is not None and wanted is not FEATURE_EXTRACTION:
        raise UsageError(f"pooling makes one vector of a text; {wanted.name} has none, so leave it out")
    vectors = find_sentence_transformers(str(given.folder) if given else name)
    vectors = vectors if wanted is FEATURE_EXTRACTION else None
    if vectors is not None:
        check_pooling(vectors, pooling=pooling, normalize=normalize)
    if given is not None and not token_vectors:
        raise UsageError(f"{given.file} is a finished graph, which keeps its outputs; export its checkpoint instead")
    if given is not None:
        return _of_onnx_file(
            name, given, vectors, tokenizer=tokenizer, max_length=max_length, pooling=pooling, normalize=normalize
        )
    head, record = _sentence_head(vectors, pooling=pooling, normalize=normalize)
    if not token_vectors and record is None:
        raise UsageError(f"token_vectors is false, and {name} has no pooling, so nothing would be left; set pooling")
    # Before the weights are read, which may take minutes for a model that is then refused.
    read_folder(name).check_encoder()
    checkpoint = load_checkpoint(name, wanted, tokenizer=tokenizer)
    model = checkpoint.model
    longest, notes = _limit_length(vectors, model.config, checkpoint.tokenizer, asked=max_length, name=name)
    outputs = ("start_logits", "end_logits") if wanted is QUESTION_ANSWERING else (wanted.output,)
    pooled = () if record is None else (SENTENCE_EMBEDDING,)
    return Source(
        name=name,
        task=wanted,
        config=model.config,
        tokenizer=checkpoint.tokenizer,
        # What the model takes and the tokenizer makes: RoBERTa's forward takes token types, its tokenizer makes none.
        inputs=tuple(name for name in accepted_inputs(model) if name in checkpoint.tokenizer.model_input_names),
        outputs=(*outputs, *pooled) if token_vectors else pooled,
        max_length=longest,
        pooling=record,
        head=head,
        vectors=vectors,
        notes=notes,
        model=model,
        parameters=count_parameters(model) + (count_parameters(head) if head is not None else 0),
        encoder_parameters=count_parameters(model.base_model),
        sha256=hash_checkpoint(name),
    )


def _of_onnx_file(
    name: str,
    given: OnnxSource,
    vectors: SentenceTransformers | None,
    *,
    tokenizer: str | None,
    max_length: int | None,
    pooling: str | None,
    normalize: bool | None,
) -> Source:
    """Make a source of an ONNX file; if it lies in a sentence-transformers folder, with that folder's head."""
    # A graph that gives sentence embeddings has its head already.
    pooled = SENTENCE_EMBEDDING in given.outputs
    if pooling is not None and (pooled or vectors is None):
        raise UsageError(f"{given.file} is a finished graph, which gets no pooling; export its checkpoint instead")
    head, record = (None, None) if pooled else _sentence_head(vectors, pooling=pooling, normalize=normalize)
    loaded = load_tokenizer(tokenizer or str(given.folder))
    longest, notes = _limit_length(vectors, given.config, loaded, asked=max_length, name=name)
    if given.precision != "fp32":
        stored = " (its weights are stored so, and multiplied as floats)" if given.weight_only else ""
        notes = (
            f"{given.file} is {given.precision} already{stored}, so it is published as that and nothing else",
            *notes,
        )
    return Source(
        name=name,
        task=get_task(given.task),
        config=given.config,
        tokenizer=loaded,
        inputs=given.inputs,
        outputs=given.outputs if head is None else (*given.outputs, SENTENCE_EMBEDDING),
        max_length=longest,
        pooling=record,
        head=head,
        vectors=vectors,
        notes=notes,
        onnx_source=given,
        parameters=given.parameters + (count_parameters(head) if head is not None else 0),
        encoder_parameters=given.parameters,
        sha256=sha256_of(given.file),
    )


def _sentence_head(
    vectors: SentenceTransformers | None, *, pooling: str | None, normalize: bool | None
) -> tuple[SentenceHead | None, Pooling | None]:
    """Return the sentence head and its record for the manifest; None for both without pooling."""
    if vectors is not None and vectors.pooling:
        record = Pooling(mode=vectors.mode, normalize=vectors.normalize, projected=vectors.is_projected)
        return load_head(vectors), record
    if pooling is None:
        return None, None
    record = Pooling(mode=pooling, normalize=normalize is not False)
    return simple_head(record.mode, normalize=record.normalize), record


def _limit_length(
    vectors: SentenceTransformers | None,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    asked: int | None,
    name: str,
) -> tuple[int, tuple[str, ...]]:
    """Return the longest text in tokens, and notes for the user.

    Args:
        vectors: the settings of a sentence-transformers folder, whose `max_seq_length` is a limit; None for others.
        config: the model's configuration, for its positions.
        tokenizer: the tokenizer, for its `model_max_length`.
        asked: the length that the user set; None takes the smallest limit.
        name: the model's name, for errors.
    """
    notes = list(vectors.notes()) if vectors else []
    ends = longest_text(config.to_dict(), tokenizer.model_max_length)
    # Relative positions have no limit: the default is then the length that the model was made for; more may be asked.
    longest = ends or getattr(config, "max_position_embeddings", None) or USUAL_LENGTH
    if vectors and vectors.max_seq_length and vectors.max_seq_length < longest:
        where = f"max_seq_length of {vectors.encoder_file}"
        if asked is not None and vectors.max_seq_length < asked <= longest:
            raise CheckpointError(
                f"max_length is {asked}; {where} is {vectors.max_seq_length}; raise it there, or here ask for less"
            )
        notes.append(
            f"texts are cut to {vectors.max_seq_length} tokens, the {where}; the model has positions for {longest}"
        )
        longest = vectors.max_seq_length
        ends = longest
    if asked is not None and not 1 <= asked <= (ends or LONGEST_TEXT):
        raise CheckpointError(f"max_length is {asked}; {name} reads 1 to {ends or LONGEST_TEXT} tokens")
    return asked or longest, tuple(notes)
