"""Read how a sentence-transformers folder makes its vectors: pooling, layers behind it, length limit and prompts.

    modules.json                         the modules in order, each with its class and folder
    sentence_bert_config.json            the encoder's max_seq_length and do_lower_case
    1_Pooling/config.json                how token vectors become one vector
    2_Dense/config.json, its weights     a linear layer with its activation
    3_Normalize                          division by the L2 norm
    config_sentence_transformers.json    prompts

Needs neither torch nor sentence-transformers. An unknown module or setting is an error, because a vector that is made
without it is another vector.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from potstill.bundle import POOLING_MODES
from potstill.errors import CheckpointError, UsageError
from potstill.messages import first_line

MODULES_FILE = "modules.json"
"""The file that makes a folder one of sentence-transformers."""
PROMPTS_FILE = "config_sentence_transformers.json"
# One flag per mode in files before version 6, which writes `pooling_mode`. Vectors of several modes are concatenated in
# this order, whatever the file's.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# sentence-transformers has named the encoder's file after its family; all names are still read.
_ENCODER_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = frozenset({"Identity", "Tanh", "Sigmoid", "ReLU", "GELU", "SiLU", "LeakyReLU", "ELU", "Softplus"})
"""The classes of torch.nn that a Dense layer may have as activation. A list, so that no file names code to import."""
# The settings of each module that are understood; any other could change the vector.
_KEYS = {
    "Dense": {
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "module_input_name",
        "module_output_name",
        "use_residual",
    },
    "LayerNorm": {"dimension"},
    "Normalize": {"module_input_name", "module_output_name"},
    "Dropout": {"dropout"},
}
# The only tensor that layers may read and write: the text's vector, not those of the tokens.
_VECTOR = "sentence_embedding"


@dataclass(frozen=True, slots=True)
class Dense:
    """The settings of a linear layer with an activation.

    Attributes:
        path: the module's folder, relative to modules.json.
        in_features: the input width.
        out_features: the output width.
        bias: whether it has a bias.
        activation: the name of a class of torch.nn, one of `ACTIVATIONS`.
        residual: whether the input is added to the output, through a projection if the widths differ.
        weights: the weight file; None for a layer that is to be trained.
    """

    path: str
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """The settings of a layer norm over the vector."""

    path: str
    dimension: int
    weights: Path


@dataclass(frozen=True, slots=True)
class Normalize:
    """Division of the vector by its L2 norm."""


Settings: TypeAlias = dict[str, Any]
"""The content of a module's config.json."""
Layer: TypeAlias = Dense | LayerNorm | Normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformers:
    """How a sentence-transformers folder makes its vectors.

    Attributes:
        folder: the folder with modules.json.
        encoder_path: the encoder's folder, relative to `folder`; "" is the folder itself.
        pooling: the pooling modes, whose vectors are concatenated; empty if the folder has no Pooling, so that the
            token vectors are its output.
        layers: the layers behind the pooling, in order.
        max_seq_length: the longest text in tokens, special tokens included; None leaves it to the tokenizer.
        encoder_file: the file with `max_seq_length`.
        prompts: the prompts by name, without empty ones; text to put before the input.
        include_prompt: whether the tokens of a prompt are pooled too.
    """

    folder: Path
    encoder_path: str = ""
    pooling: tuple[str, ...] = ("mean",)
    layers: tuple[Layer, ...] = ()
    max_seq_length: int | None = None
    encoder_file: Path | None = None
    prompts: dict[str, str]
    include_prompt: bool = True

    @property
    def dense(self) -> tuple[Dense, ...]:
        """The Dense layers, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Dense))

    @property
    def normalize(self) -> bool:
        """Whether the vectors have an L2 norm of 1."""
        return bool(self.layers) and isinstance(self.layers[-1], Normalize)

    @property
    def mode(self) -> str:
        """The pooling modes joined by "+"."""
        return "+".join(self.pooling)

    @property
    def is_projected(self) -> bool:
        """Whether a Dense or LayerNorm follows the pooling."""
        return any(not isinstance(layer, Normalize) for layer in self.layers)

    def notes(self) -> list[str]:
        """Return what a user must know to get the same vectors as from sentence-transformers."""
        if not self.prompts:
            return []
        named = ", ".join(f"{name} {prompt!r}" for name, prompt in self.prompts.items())
        pooled = "" if self.include_prompt else ", whose tokens sentence-transformers leaves out of the pooling"
        return [f"{PROMPTS_FILE} has prompts ({named}{pooled}): put them before a text yourself, none is added"]


def read_sentence_transformers(folder: Path) -> SentenceTransformers | None:
    """Read a folder; None if it has no modules.json.

    Raises:
        CheckpointError: if a file is damaged, or has a module or setting that is unknown or cannot be exported.
    """
    file = folder / MODULES_FILE
    if not file.is_file():
        return None
    modules = _read_modules(file)
    if not modules or modules[0][0] != "Transformer":
        first = modules[0][0] if modules else "nothing"
        raise CheckpointError(f"{file} begins with {first}; only vectors that a Transformer makes are known")
    encoder_path = modules[0][1]
    encoder_file, max_seq_length = _read_encoder(folder / encoder_path)
    modes: tuple[str, ...] = ()
    # The width is followed from module to module, so that files that do not fit each other are found without torch.
    include_prompt, width = True, None
    layers: list[Layer] = []
    for kind, path in modules[1:]:
        settings_file = folder / path / "config.json"
        settings = _read_object(settings_file) if settings_file.is_file() else {}
        if kind == "Pooling":
            if modes:
                raise CheckpointError(f"{file} has two poolings; one is known; export the encoder alone without it")
            modes, width = _read_pooling(settings_file, settings)
            include_prompt = settings.get("include_prompt", True) is not False
            continue
        if not modes:
            raise CheckpointError(
                f"{file} has {kind} before any Pooling, so it works on token vectors; only layers behind the pooling "
                "are known"
            )
        layer, width = _read_layer(kind, path, folder=folder, settings=settings, width=width)
        layers += [layer] if layer is not None else []
    return SentenceTransformers(
        folder=folder,
        encoder_path=encoder_path,
        pooling=modes,
        layers=tuple(layers),
        max_seq_length=max_seq_length,
        encoder_file=encoder_file,
        prompts=_read_prompts(folder),
        include_prompt=include_prompt,
    )


def read_length(folder: Path) -> tuple[Path, int] | None:
    """Return the encoder's file with `max_seq_length`, and that length in tokens; None if there is none.

    Nothing else is checked: the length counts for every task, the other modules only for vectors.

    Raises:
        CheckpointError: if a file is damaged, or the length is no positive integer.
    """
    if not (folder / MODULES_FILE).is_file():
        return None
    file = _encoder_file(folder / encoder_path(folder))
    longest = _max_seq_length(file, _read_object(file)) if file else None
    return (file, longest) if file and longest else None


def encoder_path(folder: Path) -> str:
    """Return the encoder's path relative to a folder: "" or, in old folders, 0_Transformer.

    Raises:
        CheckpointError: if modules.json is damaged or leaves the folder.
    """
    content = _read_json(folder / MODULES_FILE)
    first = content[0] if isinstance(content, list) and content else None
    path = str(first.get("path") or "") if isinstance(first, dict) else ""
    return _check_path(folder / MODULES_FILE, "the encoder", path)


def check_pooling(
    found: SentenceTransformers, *, pooling: str | None, normalize: bool | None, option: str = "--pooling"
) -> None:
    """Refuse options that contradict the pooling of a folder.

    Args:
        found: the folder's settings.
        pooling: the mode that the user asked for; None if not.
        normalize: whether the user asked for an L2 norm of 1; None if not.
        option: the name of the pooling option, for the message.

    Raises:
        UsageError: naming the file that contradicts them.
    """
    if not found.pooling:
        return
    file = found.folder / MODULES_FILE
    if pooling is not None and pooling != found.mode:
        raise UsageError(f"pooling is {pooling}, and {file} pools by {found.mode}; leave {option} out")
    if normalize is not None and normalize != found.normalize:
        says = "gives vectors length 1" if found.normalize else "leaves vectors their length"
        raise UsageError(f"--{'' if normalize else 'no-'}normalize contradicts {file}, which {says}; leave it out")


def _read_modules(file: Path) -> list[tuple[str, str]]:
    """Return each module's class and folder, in the order of modules.json."""
    content = _read_json(file)
    rows = content if isinstance(content, list) else []
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("type"), str) for row in rows):
        raise CheckpointError(f"{file} is not a list of modules with a type each; fetch it again")
    found = []
    for row in rows:
        kind, path = str(row["type"]), str(row.get("path") or "")
        name = kind.rsplit(".", 1)[-1]
        # The class name decides, in whichever submodule it is; a class from elsewhere is code that is never run.
        if not kind.startswith("sentence_transformers.") or name not in {"Transformer", "Pooling", *_KEYS}:
            raise CheckpointError(
                f"{file} names the module {kind}, which is not known (known are Transformer, Pooling, "
                f"{', '.join(_KEYS)}), and without it the vectors would be others; export another model"
            )
        found.append((name, _check_path(file, name, path)))
    return found


def _check_path(file: Path, name: str, path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{file} keeps {name} in {path!r}, which leaves the folder; expected one within it")
    return path


def _read_encoder(encoder: Path) -> tuple[Path | None, int | None]:
    """Return the encoder's settings file and `max_seq_length`; refuse lower-casing that tokenizer.json does not do."""
    file = _encoder_file(encoder)
    if file is None:
        return None, None
    settings = _read_object(file)
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise CheckpointError(f"{file} has transformer_task {task!r}; vectors are made of feature-extraction only")
    if settings.get("do_lower_case") and not _lowers(encoder / "tokenizer.json"):
        raise CheckpointError(
            f"{file} has do_lower_case, and tokenizer.json does not lower texts, so sentence-transformers reads them "
            "otherwise than the tokenizer; add the normalizer Lowercase to tokenizer.json and set do_lower_case to "
            "false"
        )
    return file, _max_seq_length(file, settings)


def _encoder_file(encoder: Path) -> Path | None:
    return next((encoder / name for name in _ENCODER_FILES if (encoder / name).is_file()), None)


def _max_seq_length(file: Path, settings: Settings) -> int | None:
    longest = settings.get("max_seq_length")
    if longest is None or (isinstance(longest, int) and not isinstance(longest, bool) and longest >= 1):
        return longest
    raise CheckpointError(f"{file} has max_seq_length {longest!r}; expected a number of tokens, or null")


def _lowers(tokenizer: Path) -> bool:
    """Return whether the normalizer in tokenizer.json lower-cases texts; False without the file."""
    if not tokenizer.is_file():
        return False
    pending = [_read_object(tokenizer).get("normalizer")]
    while pending:
        normalizer = pending.pop()
        if isinstance(normalizer, dict):
            if normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True:
                return True
            pending += normalizer.get("normalizers") or []  # of a Sequence
    return False


def _read_pooling(file: Path, settings: Settings) -> tuple[tuple[str, ...], int | None]:
    """Return the pooling modes and the width of the pooled vector; without any setting it is the mean."""
    named = settings.get("pooling_mode")
    if named is None:
        modes = [mode for flag, mode in POOLING_FLAGS.items() if settings.get(flag)]
        if not modes and not any(flag in settings for flag in POOLING_FLAGS):
            modes = ["mean"]
    else:
        modes = [named] if isinstance(named, str) else named if isinstance(named, list) else [named]
    # An unknown flag that is on would add a part to the vector, so it cannot be ignored.
    foreign = [
        key for key, value in settings.items() if key.startswith("pooling_mode_") and key not in POOLING_FLAGS and value
    ]
    unknown = [*foreign, *(mode for mode in modes if mode not in POOLING_MODES)]
    if unknown or not modes:
        asked = ", ".join(map(str, unknown)) or "nothing"
        raise CheckpointError(f"{file} pools by {asked}; known are {', '.join(POOLING_MODES)}")
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
    return tuple(modes), width * len(modes) if isinstance(width, int) else None


def _read_layer(
    kind: str, path: str, *, folder: Path, settings: Settings, width: int | None
) -> tuple[Layer | None, int | None]:
    """Return a layer behind the pooling, and its output width; None for Dropout, which does nothing in inference."""
    file = folder / path / "config.json"
    strange = sorted(set(settings) - _KEYS[kind] - {"__version__"})
    inputs = {settings.get(key) for key in ("module_input_name", "module_output_name")} - {None, _VECTOR}
    if strange or inputs:
        what = f"settings {', '.join(strange)}" if strange else f"{', '.join(map(str, inputs))} as in- or output"
        raise CheckpointError(f"{file} of {kind} has {what}, which is not known; export another model")
    if kind == "Dropout":
        return None, width
    if kind == "Normalize":
        return Normalize(), width
    weights = next((folder / path / name for name in WEIGHT_FILES if (folder / path / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{folder / path} has no {' or '.join(WEIGHT_FILES)} for its {kind}; fetch it as well")
    if kind == "LayerNorm":
        dimension = _size(file, settings, "dimension")
        _check_width(file, dimension, width)
        return LayerNorm(path, dimension, weights), dimension
    entering, leaving = (_size(file, settings, key) for key in ("in_features", "out_features"))
    _check_width(file, entering, width)
    # sentence-transformers' defaults: Tanh where the key is missing, none where it is null.
    function = settings.get("activation_function", "torch.nn.modules.activation.Tanh") or "torch.nn.Identity"
    module, _, activation = str(function).rpartition(".")
    if not (module == "torch.nn" or module.startswith("torch.nn.modules.")) or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{file} has the activation_function {function}; known are those of torch.nn: "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    dense = Dense(
        path=path,
        in_features=entering,
        out_features=leaving,
        bias=settings.get("bias", True) is not False,
        activation=activation,
        residual=bool(settings.get("use_residual")),
        weights=weights,
    )
    return dense, leaving


def _read_prompts(folder: Path) -> dict[str, str]:
    """Return the prompts that are not empty.

    Raises:
        CheckpointError: if `default_prompt_name` puts one before every text, which a bundle does not do.
    """
    file = folder / PROMPTS_FILE
    settings = _read_object(file) if file.is_file() else {}
    given = settings.get("prompts") or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{file} has prompts {given!r}; expected names and texts")
    prompts = {str(name): str(prompt) for name, prompt in given.items() if prompt}
    default = settings.get("default_prompt_name")
    if default in prompts:
        raise CheckpointError(
            f"{file} puts the prompt {prompts[default]!r} ({default}) before every text, which a bundle does not; set "
            "default_prompt_name to null there, and put the prompt before the texts yourself"
        )
    return prompts


def _size(file: Path, settings: Settings, key: str) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{file} has {key} {value!r}; expected a width such as 384")
    return value


def _check_width(file: Path, entering: int, width: int | None) -> None:
    if width is not None and entering != width:
        raise CheckpointError(f"{file} takes vectors of {entering} numbers, and what comes before gives {width}")


def _read_object(file: Path) -> Settings:
    content = _read_json(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object; fetch it again")
    return content


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {first_line(error)}") from error
