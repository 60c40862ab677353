"""Load and hash transformers checkpoints, and the sentence heads behind their encoders. Needs torch and transformers.

Loading is stricter than `from_pretrained`: weights that would be random, or that the checkpoint has and the model does
not use, are errors, because the model would answer otherwise. No code of a checkpoint is ever run: `trust_remote_code`
is False at every load, which also keeps transformers from asking on the terminal.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from potstill.bundle import sha256_of
from potstill.checkpoint.folder import TRAINING_REPORT, Folder, read_folder
from potstill.checkpoint.sentence_transformers import (
    MODULES_FILE,
    POOLING_FLAGS,
    PROMPTS_FILE,
    WEIGHT_FILES,
    Dense,
    Layer,
    LayerNorm,
    SentenceTransformers,
    read_sentence_transformers,
)
from potstill.checkpoint.tokenizer import (
    largest_id,
    largest_type,
    load_tokenizer,
    reference_tokenizer,
    save_tokenizer,
)
from potstill.errors import CheckpointError
from potstill.messages import first_line
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
)

__all__ = [
    "Checkpoint",
    "accepted_inputs",
    "count_parameters",
    "hash_checkpoint",
    "load_checkpoint",
    "load_config",
    "load_tokenizer",
    "reference_tokenizer",
    "save_tokenizer",
]

# Files that decide how a checkpoint answers: not optimiser states (.pt), nor what else a training writes beside them,
# whose times and paths differ between two runs that end with the same model.
_HASHED_SUFFIXES = (".safetensors", ".bin", ".json", ".txt", ".model")
_OF_TRAINING = re.compile(rf"(training_args|optimizer)\.bin|trainer_state\.json|\w+_results\.json|{TRAINING_REPORT}")
# Settings of one machine or run, such as chunked layers or an attention implementation: they change how the answer is
# computed and not the answer, so config.json does not decide them here.
_STEERING = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "attn_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "gradient_checkpointing",
    "output_attentions",
    "output_hidden_states",
    "reference_compile",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "use_return_dict",
)
# Weights that a model of one task has no use for: poolers, heads of pre-training and of other tasks, and buffers that
# older versions of transformers saved.
_UNUSED = re.compile(
    r"((^|\.)pooler\."
    r"|^(cls|lm_head|classifier|pre_classifier|qa_outputs|sequence_summary|predictions|sop_classifier|vocab_transform"
    r"|vocab_layer_norm|vocab_projector|lm_predictions|mask_predictions|discriminator_predictions"
    r"|generator_predictions|generator_lm_head)\."
    r"|(^|\.)(position_ids|token_type_ids|inv_freq)$)"
)
# The pre-training heads of ModernBERT; in other families these names are parts of the model.
_UNUSED_BY_FAMILY = {"modernbert": re.compile(r"^(head|decoder)\.")}
# Weights of the head that answers. If the model leaves one of them out, the checkpoint was trained with another head
# than transformers has, so here they are not excused by `_UNUSED`.
_OWN_HEAD = {
    TEXT_CLASSIFICATION: re.compile(r"^(pre_)?classifier\."),
    TOKEN_CLASSIFICATION: re.compile(r"^(pre_)?classifier\."),
    QUESTION_ANSWERING: re.compile(r"^qa_outputs\."),
}
_POOLER = re.compile(r"(^|\.)pooler\.")
_SHOWN = 4
LoadingInfo: TypeAlias = dict[str, Any]
"""`loading_info` of `from_pretrained`: the keys that are missing, unexpected or of another shape."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model with its tokenizer, and the hub id or folder it was loaded from."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of the model's outputs."""
        names = self.model.config.id2label
        return tuple(str(names[number]) for number in range(self.model.config.num_labels))


def load_checkpoint(
    name: str, task: Task, *, tokenizer: str | None = None, new_head: Mapping[str, object] | None = None
) -> Checkpoint:
    """Load a hub id or folder as a model of `task`, in float32 and eval mode, with its tokenizer.

    Args:
        name: a hub id or checkpoint folder.
        task: decides the model class, such as AutoModelForTokenClassification.
        tokenizer: a hub id or folder; None takes the model's own.
        new_head: settings of the configuration, such as labels, for an encoder whose head is yet to be trained; None
            refuses a checkpoint without a trained head.

    Raises:
        CheckpointError: if it does not exist, cannot be read, has no trained head for the task, has weights that the
            model does not use, or weights that are no numbers; or if its tokenizer gives ids or token types that the
            model has no row for.
    """
    folder = read_folder(name)
    if new_head is None:
        _check_task(folder, task)
    loaded_tokenizer = load_tokenizer(tokenizer or folder)
    # Checked here to fail before the weights are read, and again below for formats whose shapes show only then.
    if folder.tensors is not None:
        _check_rows(folder, loaded_tokenizer, ids=folder.vocabulary_rows)
    config = _make_config(folder, new_head or {})
    try:
        model, loading = getattr(transformers, task.model_class).from_pretrained(
            str(folder.path) if Path(name).expanduser().is_dir() else name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # looked at below: a head for other labels is made anew
        )
    except Exception as error:  # whatever a broken file makes transformers, torch or safetensors raise
        raise CheckpointError(f"cannot load {name!r} for {task.name}: {first_line(error)}") from error
    _check_weights(name, task, model, loading, head_may_be_new=new_head is not None)
    _check_unused(folder, task, model, loading, head_may_be_new=new_head is not None)
    _check_numbers(name, model)
    _check_rows(folder, loaded_tokenizer, ids=model.get_input_embeddings().weight.shape[0])
    model.eval()
    return Checkpoint(name, model, loaded_tokenizer)


def load_config(name: str) -> PretrainedConfig:
    """Load the configuration of a hub id or checkpoint folder, without the settings in `_STEERING`.

    Raises:
        CheckpointError: if there is none, or none that transformers reads.
    """
    return _make_config(read_folder(name), {})


def count_parameters(model: torch.nn.Module) -> int:
    """Count the parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def hash_checkpoint(name: str) -> str | None:
    """Return one SHA-256 over names and contents of the files that decide a folder's answers; None for a hub id."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    # sentence-transformers' modules, such as 2_Dense, decide the answer too. Sorted, as iterdir has no order.
    found = [*folder.iterdir(), *folder.glob("[0-9]*_*/*")]
    decisive = [path for path in found if path.suffix in _HASHED_SUFFIXES and not _OF_TRAINING.fullmatch(path.name)]
    for file in sorted(path for path in decisive if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def accepted_inputs(model: torch.nn.Module) -> list[str]:
    """Return the tokenizer outputs that the model's forward takes; DistilBERT, for one, has no token types."""
    parameters = inspect.signature(model.forward).parameters
    return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in parameters]


def _make_config(folder: Folder, changes: Mapping[str, object]) -> PretrainedConfig:
    file = folder.path / "config.json"
    if folder.model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{file} has model_type {folder.model_type!r}, which transformers {transformers.__version__} does not "
            "know; take a checkpoint of a family that it knows"
        )
    content = {name: value for name, value in folder.config.items() if name not in _STEERING}
    if "id2label" in changes:
        # They belong to the old labels, and would contradict the new id2label.
        content = {name: value for name, value in content.items() if name not in ("label2id", "num_labels")}
    try:
        # Not AutoConfig.from_pretrained, which would read the file again, with what was left out above.
        config: PretrainedConfig = CONFIG_MAPPING[folder.model_type].from_dict(content | dict(changes))
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read by transformers: {first_line(error)}") from error
    return config


def _check_task(folder: Folder, task: Task) -> None:
    """Refuse a head of another task: `classifier.weight` fits a tagger and a text classifier alike."""
    trained = folder.task
    if task in (FEATURE_EXTRACTION, FILL_MASK) or trained in (None, task, FEATURE_EXTRACTION, FILL_MASK):
        return
    raise CheckpointError(
        f"{folder.name} is a {folder.architectures[0]}, trained for {trained.name}, not for {task.name}; pass --task "
        f"{trained.name}, or fine-tune it first (`potstill finetune`)"
    )


def _check_weights(
    name: str, task: Task, model: PreTrainedModel, loading: LoadingInfo, *, head_may_be_new: bool
) -> None:
    """Refuse a model with weights that from_pretrained had to initialise at random.

    Excused are the pooler, which is no part of the answer, and with `head_may_be_new` a head that will be trained.
    """
    encoder = f"{model.base_model_prefix}."
    resized = {str(key): (tuple(found), tuple(wanted)) for key, found, wanted in loading["mismatched_keys"]}
    lost = sorted(key for key in resized if key.startswith(encoder) or not head_may_be_new)
    if lost:
        found, wanted = resized[lost[0]]
        raise CheckpointError(
            f"{name} has {len(lost)} weights of other sizes than its config.json says, such as {lost[0]} with {found} "
            f"for {wanted}; fetch both from one place"
        )
    missing = sorted(str(key) for key in loading["missing_keys"])
    if task is FEATURE_EXTRACTION:  # vectors are pooled from the tokens; the BERT pooler is not used
        missing = [key for key in missing if not key.startswith("pooler.")]
    lost = [key for key in missing if key.startswith(encoder) and ".pooler." not in key]
    if missing and (lost or not head_may_be_new):
        raise CheckpointError(
            f"{name} has no trained weights for {', '.join((lost or missing)[:_SHOWN])}: it is not fine-tuned for "
            f"{task.name}; fine-tune it first (`potstill finetune`) or name another checkpoint"
        )


def _check_unused(
    folder: Folder, task: Task, model: PreTrainedModel, loading: LoadingInfo, *, head_may_be_new: bool
) -> None:
    """Refuse a checkpoint with weights that the model does not use, except those that no task needs (`_UNUSED`)."""
    family = _UNUSED_BY_FAMILY.get(folder.model_type or "")
    needed = [] if head_may_be_new or task not in _OWN_HEAD else [_OWN_HEAD[task]]
    # A classifier of BERT reads the pooler, so there it is a part of the head; a DistilBERT has none.
    if needed and any(_POOLER.search(name) for name, _ in model.named_parameters()):
        needed.append(_POOLER)
    unused = sorted(
        name
        for name in map(str, loading["unexpected_keys"])
        if not (_UNUSED.search(name) or (family and family.search(name))) or any(part.search(name) for part in needed)
    )
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        raise CheckpointError(
            f"{folder.name} has weights that transformers {transformers.__version__} does not use in a model of "
            f"{folder.model_type} for {task.name}: {', '.join(unused[:_SHOWN])}{more}; without them it answers "
            "otherwise, so take a checkpoint whose layers transformers has"
        )


def _check_numbers(name: str, model: PreTrainedModel) -> None:
    for key, values in model.named_parameters():
        if not torch.isfinite(values).all():
            raise CheckpointError(f"{name} has NaN or infinity in {key}; fetch it again, or take an earlier checkpoint")


def _check_rows(folder: Folder, tokenizer: PreTrainedTokenizerBase, *, ids: int | None) -> None:
    """Refuse a tokenizer whose ids or token types exceed the rows of the embedding tables (`ids` for the words)."""
    largest = largest_id(tokenizer)
    if ids is not None and largest >= ids:
        raise CheckpointError(
            f"the tokenizer of {folder.name} gives ids up to {largest} and the model has {ids} rows of word "
            "embeddings; take the model's own tokenizer, or give the model the rows (resize_token_embeddings)"
        )
    kinds, rows = largest_type(tokenizer), folder.token_type_rows
    if "token_type_ids" in tokenizer.model_input_names and rows and kinds >= rows:
        raise CheckpointError(
            f"the tokenizer of {folder.name} gives token types up to {kinds} and the model has {rows} rows for them; "
            'take the model\'s own tokenizer, or set "model_input_names": ["input_ids", "attention_mask"] in '
            "tokenizer_config.json"
        )


# Sentence heads: from a text's token vectors to one vector, as sentence-transformers computes it.
#
# Shapes: B texts, T tokens, H the width of a token vector, E that of a text's vector.

# Lower bounds of divisors: the token count as in sentence-transformers' Pooling, the norm as in torch's normalize.
_FEWEST_TOKENS, _SHORTEST_VECTOR = 1e-9, 1e-12


class SentenceHead(nn.Module):
    """Pooling of the token vectors, and the layers behind it. Traceable, so that export puts it into the graph."""

    def __init__(self, pooling: Sequence[str], layers: Sequence[nn.Module] = ()) -> None:
        """Take the pooling modes, whose vectors are concatenated in this order, and the layers that follow."""
        super().__init__()
        self.pooling = tuple(pooling)
        self.layers = nn.ModuleList(layers)

    def width(self, hidden_size: int) -> int:
        """Return E, the width of a text's vector, for token vectors of `hidden_size`."""
        dense = [layer.linear.out_features for layer in self.layers if isinstance(layer, DenseLayer)]
        return dense[-1] if dense else hidden_size * len(self.pooling)

    def describe(self) -> str:
        """Describe the head in a few words, such as `cls, 24 numbers, length 1`."""
        words = ["+".join(self.pooling)]
        for layer in self.layers:
            if isinstance(layer, DenseLayer):
                words.append(f"{layer.linear.out_features} numbers")
            elif isinstance(layer, UnitLength):
                words.append("length 1")
        return ", ".join(words)

    def extra_repr(self) -> str:
        """Return the pooling modes, for torch's printed form of the module."""
        return ", ".join(self.pooling)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector per text, (B, E), from token vectors (B, T, H) and the attention mask (B, T)."""
        vector = torch.cat([pool(states, attention_mask, mode) for mode in self.pooling], dim=-1)
        for layer in self.layers:
            vector = layer(vector)
        return vector


class SentenceEncoder(nn.Module):
    """An encoder with its sentence head, as one module for training and evaluation."""

    def __init__(self, encoder: PreTrainedModel, head: SentenceHead) -> None:
        """Take both, on the same device and of the same dtype."""
        super().__init__()
        self.encoder, self.head, self.config = encoder, head, encoder.config

    @property
    def device(self) -> torch.device:
        """The device of the encoder's weights."""
        return self.encoder.device

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return `last_hidden_state`, (B, T, H), and `sentence_embedding`, (B, E)."""
        states = self.encoder(**inputs).last_hidden_state
        return {"last_hidden_state": states, "sentence_embedding": self.head(states, inputs["attention_mask"])}


class UnitLength(nn.Module):
    """Divide a vector by its L2 norm."""

    def forward(self, vector: Tensor) -> Tensor:
        """Normalise vectors (B, E)."""
        return vector / vector.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST_VECTOR)


class DenseLayer(nn.Module):
    """A linear layer with an activation, and optionally a residual connection around both."""

    def __init__(self, dense: Dense) -> None:
        """Make the layer with random weights; their names are those of sentence-transformers, to load its files."""
        super().__init__()
        self.linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias)
        self.activation: nn.Module = getattr(nn, dense.activation)()
        self.adds_input = dense.residual
        if dense.residual and dense.in_features != dense.out_features:
            self.residual = nn.Linear(dense.in_features, dense.out_features, bias=False)

    def forward(self, vector: Tensor) -> Tensor:
        """Map vectors (B, in_features) to (B, out_features)."""
        result: Tensor = self.activation(self.linear(vector))
        if not self.adds_input:
            return result
        return result + (self.residual(vector) if hasattr(self, "residual") else vector)


class NormLayer(nn.Module):
    """A layer norm whose weights have the names of sentence-transformers."""

    def __init__(self, dimension: int) -> None:
        """Make the layer with initial weights."""
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vector: Tensor) -> Tensor:
        """Normalise vectors (B, E) to mean 0 and variance 1, then scale and shift them."""
        normed: Tensor = self.norm(vector)
        return normed


def pool(states: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """Pool token vectors (B, T, H), padded on the right, into one vector per text, (B, H).

    `mode` is one of `potstill.checkpoint.sentence_transformers.POOLING_MODES`.
    """
    tokens = attention_mask[:, :, None].to(states.dtype)
    if mode == "cls":
        return states[:, 0]
    if mode == "max":
        # Not -inf: the vector of a text without tokens stays a number, in float16 too.
        return states.masked_fill(tokens == 0, torch.finfo(states.dtype).min).amax(1)
    weights = tokens
    if mode in {"lasttoken", "weightedmean"}:
        # Token i weighs i, as in SGPT (arXiv 2202.08904); divided by the length, so that the sum fits into float16.
        # A cumulative sum is in every opset; Range only from 11 on.
        places = (tokens * 0 + 1).cumsum(1)
        weights = tokens * places / places.amax(1, keepdim=True)
    if mode == "lasttoken":
        # The weights grow with the position and are 0 at padding, so the largest is that of the last token.
        return (states * tokens * (weights == weights.amax(1, keepdim=True)).to(states.dtype)).sum(1)
    count = weights.sum(1).clamp(min=_FEWEST_TOKENS)
    return (states * weights).sum(1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def simple_head(mode: str, *, normalize: bool) -> SentenceHead:
    """Return a head that pools by one mode and, with `normalize`, divides by the L2 norm."""
    return SentenceHead([mode], [UnitLength()] if normalize else [])


def load_head(found: SentenceTransformers) -> SentenceHead | None:
    """Build the head that a folder describes, in float32 and eval mode; None if it has no pooling.

    Raises:
        CheckpointError: if weights cannot be read, or do not fit the folder's settings.
    """
    if not found.pooling:
        return None
    return SentenceHead(found.pooling, [_load_layer(layer) for layer in found.layers]).eval()


def load_sentence_encoder(name: str, *, tokenizer: str | None = None) -> tuple[Checkpoint, SentenceHead | None]:
    """Load an encoder with its sentence head; the head is None if it is no sentence-transformers folder.

    Raises:
        CheckpointError: as `load_checkpoint`, `read_sentence_transformers` and `load_head`.
    """
    found = find_sentence_transformers(name)
    return load_checkpoint(name, FEATURE_EXTRACTION, tokenizer=tokenizer), load_head(found) if found else None


def write_sentence_transformers(
    head: SentenceHead, folder: Path, *, width: int, max_length: int, prompts: Path | None = None
) -> None:
    """Make an encoder's folder a sentence-transformers folder that gives the head's vectors.

    Args:
        head: the sentence head.
        folder: the encoder's folder; modules.json, settings and weights are added.
        width: H, the width of a token vector.
        max_length: the longest text in tokens.
        prompts: a config_sentence_transformers.json to copy; if it is None or missing, none is written.
    """
    # The encoder itself is module 0 and lies in the folder, whose path is "".
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modes = {flag: mode in head.pooling for flag, mode in POOLING_FLAGS.items()}
    settings: list[dict[str, Any]] = [{}, {"word_embedding_dimension": width} | modes]
    for number, layer in enumerate(head.layers, start=2):
        kind, about = _describe(layer)
        modules.append((kind, f"{number}_{kind}"))
        settings.append(about)
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    _write_json(folder / MODULES_FILE, rows)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    if prompts is not None and prompts.is_file():
        (folder / PROMPTS_FILE).write_bytes(prompts.read_bytes())
    for (_, path), about, layer in zip(modules[1:], settings[1:], [None, *head.layers], strict=True):
        (folder / path).mkdir()
        if about:
            _write_json(folder / path / "config.json", about)
        state = {} if layer is None else dict(layer.state_dict())
        if state:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / path / WEIGHT_FILES[0])


def _describe(layer: nn.Module) -> tuple[str, dict[str, object]]:
    """Return a layer's class name in sentence-transformers and its config.json."""
    if isinstance(layer, DenseLayer):
        activation = type(layer.activation)
        about = {
            "in_features": layer.linear.in_features,
            "out_features": layer.linear.out_features,
            "bias": layer.linear.bias is not None,
            "activation_function": f"{activation.__module__}.{activation.__qualname__}",
        }
        return "Dense", about | ({"use_residual": True} if layer.adds_input else {})
    if isinstance(layer, NormLayer):
        return "LayerNorm", {"dimension": layer.norm.normalized_shape[0]}
    return "Normalize", {}


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_sentence_transformers(name: str) -> SentenceTransformers | None:
    """Read pooling, layers and prompts of a folder or hub id; None if it is no sentence-transformers folder.

    Raises:
        CheckpointError: as `read_sentence_transformers`.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        fetched = None if folder.exists() else _fetch(name)
        if fetched is None:
            return None
        folder = fetched
    return read_sentence_transformers(folder)


def _fetch(name: str) -> Path | None:
    """Cache the files that describe a hub id's vectors, Dense weights included; None without modules.json.

    Files that cannot be fetched are left for `read_sentence_transformers` to report as missing.
    """
    modules = _cached(name, MODULES_FILE)
    if modules is None:
        return None
    _cached(name, PROMPTS_FILE)
    folder = modules.parent
    _cached(name, "sentence_bert_config.json")
    _cached(name, "tokenizer.json")
    for row in json.loads(modules.read_text(encoding="utf-8")):
        path = str(row.get("path") or "") if isinstance(row, dict) else ""
        if path and _cached(name, f"{path}/config.json") and not str(row.get("type")).endswith(".Transformer"):
            # The first of them that exists; the encoder's own weights are loaded by transformers.
            any(_cached(name, f"{path}/{weights}") for weights in WEIGHT_FILES)
    return folder


def _cached(name: str, file: str) -> Path | None:
    try:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def _load_layer(layer: Layer) -> nn.Module:
    if isinstance(layer, Dense):
        return _with_weights(DenseLayer(layer), layer.weights)
    if isinstance(layer, LayerNorm):
        return _with_weights(NormLayer(layer.dimension), layer.weights)
    return UnitLength()


def _with_weights(module: nn.Module, file: Path | None) -> nn.Module:
    assert file is not None
    try:
        state: Mapping[str, Tensor]
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            # weights_only: a pickle may run code.
            state = torch.load(file, map_location="cpu", weights_only=True)
        module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except Exception as error:  # pickles, safetensors and torch each have errors of their own
        raise CheckpointError(
            f"{file} is not the weights that its config.json describes: {first_line(error)}"
        ) from error
    return module
