"""Read what a Hugging Face folder says of itself, from its own files: without torch, transformers or the weights.

Everything here takes milliseconds, so every command asks it before it loads anything.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

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
"""What a JSON file of a checkpoint holds."""
Config: TypeAlias = Mapping[str, Any]
"""config.json."""

# Their position ids begin behind that of the padding, so that they read fewer tokens than they have positions.
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
# They look at how far apart two tokens are, for any distance. `position_biased_input` gives them absolute positions
# as well, which end.
_RELATIVE = frozenset({"deberta", "deberta-v2"})
TRAINING_REPORT = "distill.json"
"""The file beside the weights that says how potstill trained them."""
# What a tokenizer without a limit says (transformers' VERY_LARGE_INTEGER is 1e30).
_NO_LIMIT = 10**9
# A text of this length is what a model with relative positions is given where nothing else is said.
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
# Encoders whose tokens are pooled, hashed, looked at in windows or padded from the left, and decoders.
_NOT_EXPORTED = frozenset(
    ["bart", "flaubert", "funnel", "gpt2", "led", "longformer", "mbart", "reformer", "t5", "xlm", "xlnet"]
)
# Types of safetensors that hold a weight as it is.
_UNSCALED = frozenset({"F64", "F32", "F16", "BF16"})
_MOST_HEADER_BYTES = 100 * 2**20  # as the safetensors library


@dataclass(frozen=True)
class Folder:
    """A checkpoint folder whose small files were read, and found to be what potstill can use."""

    name: str
    """The hub id or folder, as it was given."""
    path: Path
    """Where its files lie; of an old sentence-transformers folder those of the encoder, one level down."""
    config: Config
    """config.json."""
    tokenizer_config: Config = field(default_factory=dict)
    """tokenizer_config.json; empty where there is none."""
    tensors: Mapping[str, tuple[int, ...]] | None = None
    """The shape of every tensor by name, of safetensors files; None where there are none."""
    root: Path | None = None
    """Where modules.json lies, if it is a folder of sentence-transformers."""

    @property
    def model_type(self) -> str | None:
        """The family, such as `bert`."""
        return self.config.get("model_type")

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that wrote it, such as `BertForSequenceClassification`."""
        return tuple(self.config.get("architectures") or ())

    @property
    def task(self) -> Task | None:
        """What it was trained for, as `architectures` says; None where they name none of potstill's tasks."""
        return _task_of_folder(self.root or self.path, self.architectures)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of the outputs; None where neither `id2label` nor a head says how many there are."""
        names = self.config.get("id2label")
        if names:
            return tuple(str(names[str(number)]) for number in range(len(names)))
        if self.task not in _LABELLED:
            return None
        count = self.head_rows or self.config.get("num_labels") or 2
        return tuple(f"LABEL_{number}" for number in range(count))

    @property
    def problem_type(self) -> str | None:
        """What a text classifier answers, one of `potstill.tasks.PROBLEM_TYPES`; None where nothing says so."""
        return self.config.get("problem_type") or (REGRESSION if len(self.labels or ()) == 1 else None)

    @property
    def layers(self) -> int | None:
        """How many layers it has; None where config.json says it in a word of its own."""
        return next((self.config[key] for key in _LAYERS if isinstance(self.config.get(key), int)), None)

    @property
    def usable_positions(self) -> int | None:
        """How many tokens of one text the model has positions for; None where it needs none."""
        return usable_positions(self.config)

    @property
    def longest(self) -> int | None:
        """How many tokens of one text it reads: the least of its positions, the tokenizer's and sentences' limits."""
        return min(filter(None, (self._longest_of_model, self.max_seq_length)), default=None)

    @property
    def _longest_of_model(self) -> int | None:
        return longest_text(self.config, self.tokenizer_config.get("model_max_length"))

    @cached_property
    def _sentence_length(self) -> tuple[Path, int] | None:
        return read_length(self.root) if self.root is not None else None

    @property
    def max_seq_length(self) -> int | None:
        """How many tokens of one text sentence-transformers reads; None where its files say nothing."""
        return self._sentence_length[1] if self._sentence_length else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said of how texts are cut."""
        if self._sentence_length is None or self.longest == self._longest_of_model:
            return ()
        file, longest = self._sentence_length
        positions = self._longest_of_model or self.config.get("max_position_embeddings")
        more = f"; the model has positions for {positions}" if positions else ""
        return (f"texts are cut to {longest} tokens, the max_seq_length of {file}{more}",)

    def sentence_transformers(self) -> SentenceTransformers | None:
        """Return what the folder says of its vectors; None if it is none of sentence-transformers.

        Raises:
            CheckpointError: as `read_sentence_transformers`, of a hub id also because its weights are not here yet.
        """
        return read_sentence_transformers(self.root) if self.root is not None else None

    @property
    def usual_length(self) -> int:
        """The longest text in tokens where nobody asks for another."""
        return self.longest or self.config.get("max_position_embeddings") or USUAL_LENGTH

    @property
    def tokenizer_limit(self) -> int | None:
        """`model_max_length` of tokenizer_config.json; None where there is none."""
        return _limit(self.tokenizer_config.get("model_max_length"))

    @property
    def vocabulary_rows(self) -> int | None:
        """The rows of the word embeddings: those in the file, else those in config.json."""
        shape = self._shape_of(_WORD_EMBEDDINGS)
        return shape[0] if shape else self.config.get("vocab_size")

    @property
    def token_type_rows(self) -> int | None:
        """The rows of the token type embeddings, 0 where the model has none; None where nothing says so."""
        shape = self._shape_of(("token_type_embeddings.weight",))
        if shape or self.tensors is not None:
            return shape[0] if shape else 0
        return self.config.get("type_vocab_size")

    @cached_property
    def head_rows(self) -> int | None:
        """The rows of the classifier's last layer; None where there is none that is known."""
        found = [(self.tensors or {}).get(name) for name in _HEADS]
        return next((shape[0] for shape in found if shape and len(shape) == 2), None)

    @property
    def tokenizer_file(self) -> Path | None:
        """Return the path of tokenizer.json, if there is one."""
        file = self.path / "tokenizer.json"
        return file if file.is_file() else None

    def check_encoder(self) -> None:
        """Refuse a family that cannot be exported, before its weights are read.

        Raises:
            CheckpointError: naming the family, and some that can.
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
        """Refuse a length that the checkpoint does not read.

        Args:
            asked: tokens of one text, special ones counted.
            option: what the length is called where it was set.

        Raises:
            CheckpointError: naming the most that can be asked for.
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
        """Return the shape of the first tensor that is called so, the shortest name first."""
        for name in sorted(self.tensors or {}, key=len):
            if name.endswith(endings):
                return (self.tensors or {})[name]
        return None


def read_folder(name: str | Path) -> Folder:
    """Read the small files of a hub id or checkpoint folder, and refuse what potstill would read otherwise than meant.

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
    """Read what a tokenizer is loaded by: of a folder that may have no config.json and no weights.

    Raises:
        CheckpointError: if there is no such folder, a file is no JSON, or the tokenizer needs code of its own.
    """
    path = _encoder_folder(find_folder(str(name)))
    config = path / "config.json"
    return Folder(str(name), path, read_json(config) if config.is_file() else {}, _read_tokenizer_config(path))


def _encoder_folder(root: Path) -> Path:
    """Return where config.json is: old folders of sentence-transformers have it one level down."""
    is_below = (root / MODULES_FILE).is_file() and not (root / "config.json").is_file()
    return root / encoder_path(root) if is_below else root


def _read_tokenizer_config(path: Path) -> Settings:
    """Return tokenizer_config.json, empty where there is none.

    Raises:
        CheckpointError: if it is no JSON, or asks for code of its own.
    """
    file = path / "tokenizer_config.json"
    content = read_json(file) if file.is_file() else {}
    _check_code(file, content)
    return content


def find_folder(name: str) -> Path:
    """Return the folder of a checkpoint; of a hub id the one in the hub's cache, after fetching its small files.

    Raises:
        CheckpointError: if there is none.
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
        weights = read_json(index).get("weight_map")
        if not isinstance(weights, dict):
            raise CheckpointError(f"{index} has no weight_map; fetch or save the checkpoint again")
        files = [path / str(name) for name in sorted(set(weights.values()))]
        # On the hub they come later, with the model.
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
            # A weight in a type that has a scale, which transformers would leave out.
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
    """Refuse a checkpoint that only code of its own reads rightly; that code is never run."""
    if content.get("auto_map"):
        raise CheckpointError(
            f"{file} asks for code of its own (auto_map), which potstill never runs; take a checkpoint of a family "
            "that transformers has, or remove auto_map if this is one"
        )


def _check_config(path: Path, config: Config) -> None:
    """Refuse what transformers would leave out without a word, or cannot be meant."""
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
    """Refuse labels that are no names, the same twice, or numbered otherwise by label2id."""
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


# How long a text may be


def fit_length(names: Iterable[str], asked: int, *, was_set: bool) -> int:
    """Return the longest text in tokens that all of these checkpoints read.

    Args:
        names: hub ids or folders.
        asked: the length that was set, or the usual one.
        was_set: whether somebody asked for it; then it is refused where it is too long, and else made shorter.

    Raises:
        CheckpointError: if it was set, and is more than one of them reads; or as `read_folder`.
    """
    for folder in map(read_folder, names):
        if was_set:
            folder.check_length(asked)
        asked = min(asked, folder.longest or asked)
    return asked


def usable_positions(config: Config) -> int | None:
    """Return how many tokens of one text a model has positions for.

    Args:
        config: config.json as transformers writes it, which a bundle holds too.

    Returns:
        None for positions that are relative, and where the configuration says nothing.
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
    """Return how many tokens of one text a model reads with its tokenizer.

    Args:
        config: as in `usable_positions`.
        tokenizer_limit: the tokenizer's `model_max_length`, which may be huge or missing.

    Returns:
        The smaller of the usable positions and the tokenizer's limit; None where neither ends.
    """
    return min(filter(None, (usable_positions(config), _limit(tokenizer_limit))), default=None)


def _limit(value: object) -> int | None:
    """Return a `model_max_length` that is one; None for a missing or huge one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(value) if 1 <= value < _NO_LIMIT else None


# What a checkpoint was trained for


def task_of(name: str | Path) -> Task | None:
    """Return what a hub id or checkpoint folder was trained for; None where it names none of potstill's tasks.

    Raises:
        CheckpointError: as `read_folder`.
    """
    return read_folder(name).task


def task_of_architectures(names: Sequence[str]) -> Task | None:
    """Return the task that a checkpoint was trained for, by `architectures` of its configuration; None if unknown."""
    return next((task for name in names for task in TASKS.values() if name.endswith(task.heads)), None)


def _task_of_folder(folder: Path, architectures: Sequence[str]) -> Task | None:
    found = task_of_architectures(architectures)
    # A sentence encoder is saved under the class it was made from: all-mpnet-base-v2 calls itself MPNetForMaskedLM.
    if found in (None, FILL_MASK) and (folder / MODULES_FILE).is_file():
        return FEATURE_EXTRACTION
    return found


def trained_task(name: str | Path) -> str | None:
    """Return the name of the task that a checkpoint folder was trained for; None for a hub id, and if unknown.

    Unlike `task_of` it refuses nothing, since the name may stand for something else, and asks no hub.
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
