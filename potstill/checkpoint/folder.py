"""Read a checkpoint folder's metadata (JSON files, safetensors headers) without torch, transformers or the weights.

This takes milliseconds, so every command calls `read_folder` first. It also refuses what transformers would load
without an error but answer otherwise than the checkpoint was meant to, such as dropped weights or contradictory labels.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from potstill.bundle import TrimmedVocabulary
from potstill.checkpoint.sentence_transformers import (
    MODULES_FILE,
    SentenceTransformers,
    encoder_path,
    read_length,
    read_sentence_transformers,
)
from potstill.errors import CheckpointError
from potstill.hub import check_name
from potstill.messages import first_line
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    PROBLEM_TYPES,
    REGRESSION,
    TASKS,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
)

Settings: TypeAlias = dict[str, Any]
"""The content of a checkpoint's JSON file."""
Config: TypeAlias = Mapping[str, Any]
"""config.json."""

# Their position ids begin at pad_token_id + 1, as in fairseq: RoBERTa has 514 positions and reads 512 tokens.
POSITIONS_AFTER_PADDING = frozenset(
    [
        "camembert",
        "data2vec-text",
        "ibert",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
# Their attention is relative and clamps the distance of two tokens, so any length works. `position_biased_input` adds
# absolute position embeddings, which are limited.
_RELATIVE = frozenset({"deberta", "deberta-v2"})
TRAINING_REPORT = "distill.json"
"""The file beside the weights in which potstill records how it trained them."""
# From here on a `model_max_length` means "no limit": transformers writes 1e30 (VERY_LARGE_INTEGER).
_NO_LIMIT = 10**9
# The default length, in tokens, of a model without a limit: BERT's.
USUAL_LENGTH = 512
# transformers 4 computed `relative_key` and `relative_key_query`; 5 leaves their weights out without an error.
_POSITION_KINDS = (None, "absolute")
# Families whose attention knew `position_embedding_type` in transformers 4 and does not in 5.
_LIKE_BERT = frozenset(
    [
        "albert",
        "bert",
        "bert-generation",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "layoutlm",
        "lilt",
        "markuplm",
        "megatron-bert",
        "mobilebert",
        "nezha",
        "realm",
        "roberta",
        "roberta-prelayernorm",
        "splinter",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
_WORD_EMBEDDINGS = ("word_embeddings.weight", "tok_embeddings.weight", "embed_tokens.weight")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers")
_HEADS = ("classifier.weight", "classifier.out_proj.weight")
_LABELLED = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)
_EXPORTED = "bert, roberta, distilbert, electra, albert, mobilebert, mpnet, modernbert or deberta-v2"
# Decoders, and encoders whose attention is not one product of all tokens with all: Funnel pools tokens, Reformer
# hashes them, Longformer has windows, XLNet is padded on the left. Refused here before their weights are read.
_NOT_EXPORTED = frozenset(
    ["bart", "flaubert", "funnel", "gpt2", "led", "longformer", "mbart", "reformer", "t5", "xlm", "xlnet"]
)
# safetensors types that hold a weight as it is; any other needs a scale, which transformers would ignore.
_UNSCALED = frozenset({"F64", "F32", "F16", "BF16"})
_MOST_HEADER_BYTES = 100 * 2**20  # against a damaged length; safetensors itself stops at 100 MB


@dataclass(frozen=True)
class Folder:
    """The metadata of a checkpoint folder, checked by `read_folder`."""

    name: str
    """The hub id or folder, as it was given."""
    path: Path
    """The folder with config.json; in old sentence-transformers folders one level down, in 0_Transformer."""
    config: Config
    """config.json."""
    tokenizer_config: Config = field(default_factory=dict)
    """tokenizer_config.json; empty where there is none."""
    tensors: Mapping[str, tuple[int, ...]] | None = None
    """The shape of every tensor by name, from safetensors headers; None without such files."""
    root: Path | None = None
    """The folder with modules.json; None if it is no sentence-transformers folder."""

    @property
    def model_type(self) -> str | None:
        """The family by transformers' name, such as `bert`."""
        return self.config.get("model_type")

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that wrote it, such as `BertForSequenceClassification`."""
        return tuple(self.config.get("architectures") or ())

    @property
    def task(self) -> Task | None:
        """The task it was trained for, by the class in `architectures`; None if that is none of potstill's tasks."""
        return _task_of_folder(self.root or self.path, self.architectures)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of the outputs; None without `id2label` unless the task has a classifier head."""
        names = self.config.get("id2label")
        if names:
            return tuple(str(names[str(number)]) for number in range(len(names)))
        if self.task not in _LABELLED:
            return None
        # As transformers' PretrainedConfig does: LABEL_0, LABEL_1, ..., and two of them by default.
        count = self.head_rows or self.config.get("num_labels") or 2
        return tuple(f"LABEL_{number}" for number in range(count))

    @property
    def problem_type(self) -> str | None:
        """A text classifier's problem type, one of `potstill.tasks.PROBLEM_TYPES`; None if it is not declared."""
        # One label is regression to transformers' heads, too.
        return self.config.get("problem_type") or (REGRESSION if len(self.labels or ()) == 1 else None)

    @property
    def layers(self) -> int | None:
        """The number of layers; None if config.json has it under none of the usual keys."""
        return next((self.config[key] for key in _LAYERS if isinstance(self.config.get(key), int)), None)

    @property
    def usable_positions(self) -> int | None:
        """The longest text, in tokens, that the position embeddings allow; None for relative positions."""
        return usable_positions(self.config)

    @property
    def longest(self) -> int | None:
        """The longest text in tokens: the smallest of positions, `model_max_length` and `max_seq_length`."""
        return min(filter(None, (self._longest_of_model, self.max_seq_length)), default=None)

    @property
    def _longest_of_model(self) -> int | None:
        return longest_text(self.config, self.tokenizer_config.get("model_max_length"))

    @cached_property
    def _sentence_length(self) -> tuple[Path, int] | None:
        return read_length(self.root) if self.root is not None else None

    @property
    def max_seq_length(self) -> int | None:
        """The longest text, in tokens, by sentence-transformers' own file; None if there is none."""
        return self._sentence_length[1] if self._sentence_length else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user: whether `max_seq_length` cuts texts shorter than the model could read."""
        if self._sentence_length is None or self.longest == self._longest_of_model:
            return ()
        file, longest = self._sentence_length
        positions = self._longest_of_model or self.config.get("max_position_embeddings")
        more = f"; the model has positions for {positions}" if positions else ""
        return (f"texts are cut to {longest} tokens, the max_seq_length of {file}{more}",)

    def sentence_transformers(self) -> SentenceTransformers | None:
        """Read pooling, layers and prompts; None if it is no sentence-transformers folder.

        Raises:
            CheckpointError: as `read_sentence_transformers`; also for a hub id whose Dense weights are not cached yet.
        """
        return read_sentence_transformers(self.root) if self.root is not None else None

    @property
    def usual_length(self) -> int:
        """The default `max_length` in tokens."""
        return self.longest or self.config.get("max_position_embeddings") or USUAL_LENGTH

    @property
    def tokenizer_limit(self) -> int | None:
        """`model_max_length` of tokenizer_config.json; None where there is none."""
        return _limit(self.tokenizer_config.get("model_max_length"))

    @property
    def vocabulary_rows(self) -> int | None:
        """The rows of the word embeddings, by the weights if their shapes are known, else by config.json."""
        shape = self._shape_of(_WORD_EMBEDDINGS)
        return shape[0] if shape else self.config.get("vocab_size")

    @property
    def token_type_rows(self) -> int | None:
        """The rows of the token type embeddings, 0 without any; None if neither weights nor config.json tell."""
        shape = self._shape_of(("token_type_embeddings.weight",))
        if shape or self.tensors is not None:
            return shape[0] if shape else 0
        return self.config.get("type_vocab_size")

    @cached_property
    def head_rows(self) -> int | None:
        """The rows of the classifier's last layer, which is the number of labels; None without a known head."""
        found = [(self.tensors or {}).get(name) for name in _HEADS]
        return next((shape[0] for shape in found if shape and len(shape) == 2), None)

    @property
    def tokenizer_file(self) -> Path | None:
        """The path of tokenizer.json; None if there is none."""
        file = self.path / "tokenizer.json"
        return file if file.is_file() else None

    def check_encoder(self) -> None:
        """Refuse families that cannot be exported, before their weights are read.

        Raises:
            CheckpointError: for a decoder or another kind of attention, naming families that can be exported.
        """
        config = self.config
        if config.get("is_decoder"):
            what = f"{self.name} is set up as a decoder (is_decoder in its config.json), which is"
        elif config.get("is_encoder_decoder") or self.model_type in _NOT_EXPORTED:
            what = f"{self.name} is a {self.model_type} model; these are"
        else:
            return
        raise CheckpointError(
            f"{what} not exported: only encoders with one attention of all tokens to all are, such as {_EXPORTED}; "
            "fine-tune or distil one of these for the task, or export this model with optimum"
        )

    def check_length(self, asked: int, *, option: str = "max_length") -> None:
        """Refuse a `max_length` above what the checkpoint can read.

        Args:
            asked: the length in tokens, special tokens included.
            option: the option or setting by which it was given, for the message.

        Raises:
            CheckpointError: with the largest possible length and what limits it.
        """
        if self.longest is None or asked <= self.longest:
            return
        more = ""
        if self._sentence_length and self.longest != self._longest_of_model:
            why, more = f"max_seq_length of {self._sentence_length[0]} is {self.longest}", ", or raise that"
        elif self.longest == self.usable_positions:
            positions = self.config["max_position_embeddings"]
            why = f"{self.name} has {positions} positions"
            if positions != self.longest:
                why += f", of which {self.longest} can be used: they begin behind the padding's"
        else:
            why = f"the tokenizer of {self.name} has model_max_length {self.longest}"
        way = f"pass {option}{'=' if option.startswith('--set ') else ' '}" if option[0] == "-" else f"set {option} to "
        raise CheckpointError(f"{option} is {asked} and {why}; {way}{self.longest} or less{more}")

    def _shape_of(self, endings: tuple[str, ...]) -> tuple[int, ...] | None:
        """Return the shape of the tensor with one of these name endings; of several the one with the shortest name."""
        for name in sorted(self.tensors or {}, key=len):
            if name.endswith(endings):
                return (self.tensors or {})[name]
        return None


def read_folder(name: str | Path) -> Folder:
    """Read and check the metadata of a hub id or checkpoint folder; of a hub id the small files are downloaded.

    Raises:
        CheckpointError: if there is no such folder; if a file is missing, cut short or no JSON; if the checkpoint needs
            code of its own, is quantised or an adapter; if its labels are not numbered 0 to n - 1, or are not as many
            as the rows of its head; or if it asks for positions that transformers no longer computes.
    """
    root = find_folder(str(name))
    path = _encoder_folder(root)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{name} has no config.json, so it is not a transformers checkpoint")
    config = read_json(path / "config.json")
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise CheckpointError(
            f"{path / 'config.json'} has no model_type that is a name, so it is no transformers checkpoint"
        )
    _check_code(path / "config.json", config)
    _check_config(path, config)
    numbers = config.get("label2id")
    if config.get("id2label") is None and isinstance(numbers, dict) and numbers:  # which says it as well
        config |= {"id2label": {str(number): name for name, number in numbers.items()}}
    folder = Folder(
        str(name),
        path,
        config,
        _read_tokenizer_config(path),
        _read_tensor_shapes(path),
        root if (root / MODULES_FILE).is_file() else None,
    )
    _check_labels(folder)
    return folder


def read_tokenizer_folder(name: str | Path) -> Folder:
    """Read the metadata that a tokenizer needs; the folder may have no config.json and no weights.

    Raises:
        CheckpointError: if there is no such folder, a file is no JSON, or the tokenizer needs code of its own.
    """
    path = _encoder_folder(find_folder(str(name)))
    config = path / "config.json"
    return Folder(str(name), path, read_json(config) if config.is_file() else {}, _read_tokenizer_config(path))


def _encoder_folder(root: Path) -> Path:
    """Return the folder with config.json; old sentence-transformers folders have it one level down."""
    is_below = (root / MODULES_FILE).is_file() and not (root / "config.json").is_file()
    return root / encoder_path(root) if is_below else root


def _read_tokenizer_config(path: Path) -> Settings:
    """Return the content of tokenizer_config.json; empty if the file is missing.

    Raises:
        CheckpointError: if it is no JSON, or asks for code of its own.
    """
    file = path / "tokenizer_config.json"
    content = read_json(file) if file.is_file() else {}
    _check_code(file, content)
    return content


def find_folder(name: str) -> Path:
    """Return the folder of a checkpoint; for a hub id the snapshot in the hub's cache, with its small files.

    Raises:
        CheckpointError: if there is no such folder, and the hub has no such model or cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{name} is a file; name the checkpoint folder that it lies in, or a hub id")
    check_name(name, "model")
    return _fetch(name)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # No weights: they are fetched by from_pretrained, once the metadata is found to be usable.
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model"]))
    except Exception as error:  # of several libraries: an unknown name, no network, no permission
        raise CheckpointError(
            f"there is no folder {name}, and the hub gives no such checkpoint: {first_line(error)}"
        ) from error


def read_json(file: Path) -> Settings:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: if it cannot be read, or holds anything else.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {first_line(error)}; fetch or save the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__} where an object is expected; fetch or save the checkpoint again"
        )
    return content


def _read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of every tensor by name from the headers of safetensors files; None where there are none.

    Raises:
        CheckpointError: if a file is missing, cut short, or no safetensors file.
    """
    index = path / "model.safetensors.index.json"
    files = [path / "model.safetensors"]
    if not files[0].is_file() and index.is_file():
        # A sharded checkpoint: the index maps each tensor to its file.
        weights = read_json(index).get("weight_map")
        if not isinstance(weights, dict):
            raise CheckpointError(f"{index} has no weight_map; fetch or save the checkpoint again")
        files = [path / str(name) for name in sorted(set(weights.values()))]
        # None of them is here for a hub id, whose weights come later; some of them is a broken copy.
        missing = [file.name for file in files if not file.is_file()]
        if len(missing) == len(files):
            return None
        if missing:
            raise CheckpointError(f"{index} names {missing[0]}, which is not there; fetch the checkpoint again")
    if not files[0].is_file():
        return None
    return {name: shape for file in files for name, shape in _read_header(file).items()}


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Read a safetensors header: its length in 8 bytes, JSON, then the data (github.com/huggingface/safetensors)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise CheckpointError(f"{file} is cut short or no safetensors file ({size} bytes); fetch it again")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: about for name, about in header.items() if name != "__metadata__"}
            # A weight in int8 or float8 needs a scale tensor, which transformers would drop as unexpected.
            scaled = [name for name, about in tensors.items() if about["dtype"] not in _UNSCALED]
            quantised = next((name for name in scaled if name.endswith((".weight", ".bias"))), None)
            end = 8 + length + max((about["data_offsets"][1] for about in tensors.values()), default=0)
            shapes = {name: tuple(about["shape"]) for name, about in tensors.items()}
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"the header of {file} cannot be read; fetch it again") from error
    if size < end:
        raise CheckpointError(f"{file} is cut short: it has {size} of {end} bytes; fetch it again")
    if quantised is not None:
        raise CheckpointError(
            f"{file} holds {quantised} as {tensors[quantised]['dtype']}, so its weights are quantised; name the "
            "checkpoint that they were made from"
        )
    return shapes


# Checks of what the files say


def _check_code(file: Path, content: Config) -> None:
    """Refuse a checkpoint with `auto_map`: it needs Python code from its folder, which is never run."""
    if content.get("auto_map"):
        raise CheckpointError(
            f"{file} asks for code of its own (auto_map), which potstill never runs; take a checkpoint of a family "
            "that transformers has, or remove auto_map if this is one"
        )


def _check_config(path: Path, config: Config) -> None:
    """Refuse settings that transformers would ignore silently, and numbers that are NaN or infinite."""
    if config.get("quantization_config"):
        kind = config["quantization_config"]
        method = kind.get("quant_method") if isinstance(kind, dict) else None
        raise CheckpointError(
            f"{path / 'config.json'} has a quantization_config ({method or 'of an unknown method'}): its weights are "
            "quantised; name the checkpoint that they were made from"
        )
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path} holds an adapter (adapter_config.json); merge it into its model (merge_and_unload), save that, "
            "and name it"
        )
    kind = config.get("position_embedding_type")
    if config["model_type"] in _LIKE_BERT and kind not in _POSITION_KINDS:
        raise CheckpointError(
            f"{path / 'config.json'} has position_embedding_type {kind!r}, whose weights (distance_embedding) "
            "transformers 5 does not use; train one with absolute positions, or take another checkpoint"
        )
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):  # Python's JSON reads NaN and Infinity
            raise CheckpointError(
                f"{path / 'config.json'} has {key} {value}, which is no amount; correct it, or fetch the file again"
            )


def _check_names(file: Path, config: Config, names: Mapping[str, object]) -> None:
    """Refuse labels that are no strings or numbers, occur twice, or have another number in label2id."""
    for name in names.values():
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise CheckpointError(f"{file} has an id2label with {name!r}, which is no name; correct id2label")
        if list(names.values()).count(name) > 1:
            raise CheckpointError(f"{file} calls two labels {name!r}; give each a name of its own in id2label")
    numbers = config.get("label2id")
    for name, number in numbers.items() if isinstance(numbers, dict) else ():
        if name in names.values() and str(names.get(str(number))) != name:
            own = next(own for own, other in names.items() if other == name)
            raise CheckpointError(
                f"{file} contradicts itself: label {name!r} is {own} in id2label and {number} in label2id; correct "
                "the one that is wrong"
            )


def _check_labels(folder: Folder) -> None:
    file, names = folder.path / "config.json", folder.config.get("id2label")
    if names is not None:
        if not isinstance(names, dict):
            raise CheckpointError(f"{file} has an id2label that is no object from numbers to names; write one")
        expected = {str(number) for number in range(len(names))}
        if set(names) != expected:
            keys = ", ".join(sorted(map(str, names))[:8])
            raise CheckpointError(
                f"{file} numbers its labels {keys}; expected 0 to {len(names) - 1}, one per row of the head: "
                "correct id2label and label2id"
            )
        _check_names(file, folder.config, names)
    problem = folder.config.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        raise CheckpointError(f"{file} has problem_type {problem!r}; expected {', '.join(PROBLEM_TYPES)}, or null")
    rows = folder.head_rows
    if rows is not None and names and folder.task in _LABELLED and rows != len(names):
        shown = ", ".join(map(str, list(names.values())[:8]))
        raise CheckpointError(
            f"{file} names {len(names)} labels ({shown}) and the head in the weights has {rows} rows; correct id2label "
            "and label2id"
        )


def read_trimming(name: str | Path) -> TrimmedVocabulary | None:
    """Return what trimming a checkpoint folder's vocabulary saved and costs; None where it is whole, or not known."""
    file = Path(name).expanduser() / TRAINING_REPORT
    found = read_json(file).get("vocabulary") if file.is_file() else None
    return TrimmedVocabulary.model_validate(found) if isinstance(found, dict) else None


# How long a text may be


def fit_length(names: Iterable[str], asked: int, *, was_set: bool) -> int:
    """Return a `max_length`, in tokens, that all of these checkpoints can read.

    Args:
        names: hub ids or folders.
        asked: the length that the user set, or the default.
        was_set: whether the user set it: then a length that is too long is an error, else it is lowered.

    Raises:
        CheckpointError: if it was set and one of them cannot read that much; or as `read_folder`.
    """
    for folder in map(read_folder, names):
        if was_set:
            folder.check_length(asked)
        asked = min(asked, folder.longest or asked)
    return asked


def usable_positions(config: Config) -> int | None:
    """Return the longest text, in tokens, that a model has position embeddings for.

    Args:
        config: config.json as transformers writes it, which a bundle holds too.

    Returns:
        None for relative positions, and if the configuration has no `max_position_embeddings`.
    """
    family, longest = config.get("model_type"), config.get("max_position_embeddings")
    if not longest or (family in _RELATIVE and not config.get("position_biased_input", True)):
        return None
    if family in POSITIONS_AFTER_PADDING:
        # 1 is transformers' pad_token_id of all of these where a configuration leaves it out, and MPNet's always.
        padding = 1 if family == "mpnet" else config.get("pad_token_id", 1)
        longest -= (padding or 0) + 1
    return int(longest)


def longest_text(config: Config, tokenizer_limit: object) -> int | None:
    """Return the longest text, in tokens, that a model and its tokenizer can read.

    Args:
        config: as in `usable_positions`.
        tokenizer_limit: the tokenizer's `model_max_length`, which may be huge or missing.

    Returns:
        The smaller of the usable positions and the tokenizer's limit; None without either.
    """
    return min(filter(None, (usable_positions(config), _limit(tokenizer_limit))), default=None)


def _limit(value: object) -> int | None:
    """Return a `model_max_length` as an int; None if it is missing, huge or no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(value) if 1 <= value < _NO_LIMIT else None


# What a checkpoint was trained for


def task_of(name: str | Path) -> Task | None:
    """Return the task of a hub id or checkpoint folder; None if it is none of potstill's.

    Raises:
        CheckpointError: as `read_folder`.
    """
    return read_folder(name).task


def task_of_architectures(names: Sequence[str]) -> Task | None:
    """Return the task that a checkpoint was trained for, by `architectures` of its configuration; None if unknown."""
    # By the end of the name, such as ForSequenceClassification: the families are many.
    return next((task for name in names for task in TASKS.values() if name.endswith(task.heads)), None)


def _task_of_folder(folder: Path, architectures: Sequence[str]) -> Task | None:
    found = task_of_architectures(architectures)
    # A sentence encoder is saved under the class it was made from: all-mpnet-base-v2 calls itself MPNetForMaskedLM.
    if found in (None, FILL_MASK) and (folder / MODULES_FILE).is_file():
        return FEATURE_EXTRACTION
    return found


def trained_task(name: str | Path) -> str | None:
    """Return the name of a checkpoint folder's task; None for a hub id, and if it is not known.

    Unlike `task_of` it raises nothing, because the name may be that of something else, and does not ask the hub.
    """
    folder = Path(name).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [str(each) for each in config.get("architectures") or ()]
    except OSError:
        architectures = []  # an old sentence encoder's lies one level down
    except (ValueError, AttributeError, TypeError):
        return None
    found = _task_of_folder(folder, architectures)
    return found.name if found else None
