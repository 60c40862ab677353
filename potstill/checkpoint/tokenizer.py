"""Load a checkpoint's tokenizer as its own files say it, behind transformers' interface; and save it unchanged.

transformers 5 builds a tokenizer anew from the name of its class and takes no more than the vocabulary from
tokenizer.json: a WordPiece file under `RobertaTokenizer` becomes letters, and normalisers change places. Here the file
is the tokenizer, and the class only says which special tokens and which inputs are the defaults.
"""

import inspect
import json
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from potstill.checkpoint.folder import Folder, read_json, read_tokenizer_folder
from potstill.errors import CheckpointError
from potstill.extras import require
from potstill.messages import first_line

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
# Settings of transformers' classes that say how a text is read, and are only kept for whoever reads the saved files.
_KEPT = (
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "do_basic_tokenize",
    "do_lower_case",
    "errors",
    "keep_accents",
    "never_split",
    "remove_space",
    "split_by_punct",
    "split_special_tokens",
    "strip_accents",
    "tokenize_chinese_chars",
    "trim_offsets",
    "vocab_type",
)
# fairseq's models put tokens of their own before those of sentencepiece.
_SENTENCEPIECE_OFFSETS = {"XLMRobertaTokenizer": 1, "CamembertTokenizer": 4}
# What a tokenizer of another class, or another normaliser, reads otherwise.
PROBES = (
    "hello world",
    "Hello, World!",
    "The film isn't good - it is 5/10.",
    " leading and trailing ",
    "two  spaces",
    "\ttab and\nnew line ",
    "naïve café Ångström",
    "ﬁne ½ ﬁlm",
    "Windows™ x² ５０",
    "中文 日本語 한국어",
    "🙂 👍🏽",
    "İstanbul ß",
    "e\u0301 a\u0308",
    "\u200bzero\u200dwidth",
    "##ing ▁ Ġ",
    "don't can’t «so» … —",
    "",
)


def load_tokenizer(name: str | Path | Folder) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub id or folder: ids and types are those of its tokenizer.json, padding is on the right.

    Without tokenizer.json, transformers converts the older files (vocab.txt, vocab.json and merges.txt,
    spm.model), and a sentencepiece model is held against sentencepiece itself.

    Raises:
        CheckpointError: if there is none, it cannot be read or converted, or it needs code of its own.
    """
    folder = name if isinstance(name, Folder) else read_tokenizer_folder(name)
    tokenizer = _from_file(folder) if folder.tokenizer_file else _convert(folder)
    # Encoders count positions from the left: in a batch padded on the left a text would stand elsewhere than alone.
    tokenizer.padding_side = "right"
    tokenizer.model_input_names = _input_names(folder, tokenizer)
    tokenizer.name_or_path = str(folder.path)
    return tokenizer


def reference_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return what a loaded tokenizer must read like: its folder's tokenizer.json, or what that was converted to.

    It neither cuts nor pads.
    """
    file = Path(tokenizer.name_or_path) / "tokenizer.json"
    reference = read_tokenizer(file) if file.is_file() else Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    reference.no_truncation()
    reference.no_padding()
    reference.encode_special_tokens = tokenizer.split_special_tokens
    return reference


def read_tokenizer(file: Path) -> Tokenizer:
    """Load tokenizer.json.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{file} cannot be loaded as a tokenizer: {first_line(error)}; fetch it again") from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, so that every reader gets the same ids.

    tokenizer.json is the checkpoint's own, to the byte unless it cuts or pads, which is up to the caller. The class
    that tokenizer_config.json names is the checkpoint's where transformers reads the file rightly by it.

    Args:
        tokenizer: from `load_tokenizer`, or one that was made here.
        folder: already holds config.json, by which transformers chooses a class, too.
    """
    source = Path(tokenizer.name_or_path) if tokenizer.name_or_path else None
    tokenizer.save_pretrained(folder)
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    file.write_bytes(_tokenizer_bytes(tokenizer, source))
    content = read_json(config_file)
    # As transformers 4 and transformers.js call it.
    if extra := content.pop("extra_special_tokens", None):
        content["additional_special_tokens"] = extra
    content.pop("backend", None)
    content["model_input_names"] = list(tokenizer.model_input_names)
    # transformers 4 writes this one into the pipeline.
    pipeline = read_json(file).get("pre_tokenizer") or {}
    if "add_prefix_space" in pipeline:
        content["add_prefix_space"] = pipeline["add_prefix_space"]
    declared = _class_name(read_tokenizer_folder(source)) if source is not None else content["tokenizer_class"]
    for name in (declared, "PreTrainedTokenizerFast"):
        content["tokenizer_class"] = name
        config_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if name == "PreTrainedTokenizerFast" or _transformers_agrees(folder, file):
            return


def _from_file(folder: Folder) -> PreTrainedTokenizerBase:
    """Put transformers' interface before tokenizer.json as it is, without its cutting and padding."""
    file = folder.tokenizer_file
    assert file is not None
    own = read_tokenizer(file)
    own.no_truncation()
    padding = own.padding or {}
    own.no_padding()
    config = folder.tokenizer_config
    tokens = {"pad_token": padding.get("pad_token")} | _special_tokens(folder)
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    try:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=own,
            # One that the file does not know would be added to it, with an id that the model does not know.
            **{name: token for name, token in tokens.items() if token and own.token_to_id(token) is not None},
            extra_special_tokens=[text for text in map(_content, extra) if text and own.token_to_id(text) is not None],
            model_max_length=folder.tokenizer_limit,
            truncation_side="left" if config.get("truncation_side") == "left" else "right",
            **{name: config[name] for name in _KEPT if name in config},
        )
    except Exception as error:
        raise CheckpointError(f"cannot load the tokenizer of {folder.name!r}: {first_line(error)}") from error
    # transformers marks special tokens in the pipeline that the file does not mark.
    tokenizer._tokenizer = own
    return tokenizer


def _convert(folder: Folder) -> PreTrainedTokenizerBase:
    """Have transformers make a tokenizer of the older files."""
    # Without a file that the class needs, transformers would make a tokenizer that knows no word.
    named = getattr(_class_of(folder), "vocab_files_names", {})
    needed = [file for name, file in named.items() if name != "tokenizer_file"] or ["tokenizer.json"]
    missing = [name for name in needed if not (folder.path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder.name} has neither tokenizer.json nor {', '.join(missing)}, so there is no tokenizer; copy the "
            "checkpoint's tokenizer files there, or name another folder that has them (--set tokenizer=...)"
        )
    pieces = next(iter(sorted(folder.path.glob("*.model"))), None)
    if pieces is not None:  # without them transformers takes the file for one of tiktoken's
        for module in ("sentencepiece", "google.protobuf"):
            require(module, extra="distill")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder.path), trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{folder.name!r} has no tokenizer.json, and transformers {transformers.__version__} cannot make one of "
            f"its other files: {first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder.name!r} has only a slow tokenizer; convert it to tokenizer.json first")
    if pieces is not None:
        _match_sentencepiece(tokenizer, pieces, folder)
    return tokenizer


def _match_sentencepiece(tokenizer: PreTrainedTokenizerBase, file: Path, folder: Folder) -> None:
    """Give a converted tokenizer the normaliser of the sentencepiece model where transformers 5 leaves it out.

    Raises:
        CheckpointError: if it still reads a text otherwise than sentencepiece.
    """
    name = type(tokenizer).__name__
    settings = {"do_lower_case": name == "AlbertTokenizer", "keep_accents": False, "split_by_punct": False}
    settings |= {key: folder.tokenizer_config[key] for key in settings if key in folder.tokenizer_config}
    wrong = _first_difference(tokenizer, file, settings)
    if wrong is not None and name in SLOW_TO_FAST_CONVERTERS:
        converter = SLOW_TO_FAST_CONVERTERS[name](SimpleNamespace(vocab_file=str(file), **settings))
        with suppress(AttributeError):  # of a slow tokenizer of another family, which is told below
            tokenizer.backend_tokenizer.normalizer = converter.normalizer(converter.proto)
            wrong = _first_difference(tokenizer, file, settings)
    if wrong is not None:
        raise CheckpointError(
            f"transformers {transformers.__version__} makes a tokenizer of {file} that reads {wrong!r} otherwise than "
            "sentencepiece does; save a tokenizer.json beside it with the version that the checkpoint was made with"
        )


def _first_difference(tokenizer: PreTrainedTokenizerBase, file: Path, settings: Mapping[str, object]) -> str | None:
    """Return a text for which the ids are not those of sentencepiece, None if there is none."""
    from sentencepiece import SentencePieceProcessor

    name = type(tokenizer).__name__
    pieces = SentencePieceProcessor(model_file=str(file))
    offset = _SENTENCEPIECE_OFFSETS.get(name, 0)
    for text in PROBES:
        if settings["split_by_punct"] or "▁" in text:  # of which sentencepiece knows nothing, or which is its space
            continue
        clean = text
        if name == "AlbertTokenizer" and not settings["keep_accents"]:
            clean = "".join(one for one in unicodedata.normalize("NFKD", clean) if not unicodedata.combining(one))
        clean = clean.lower() if settings["do_lower_case"] else clean
        expected = [tokenizer.unk_token_id if one == pieces.unk_id() else one + offset for one in pieces.encode(clean)]
        if tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids != expected:
            return text
    return None


def _class_name(folder: Folder) -> str:
    """Return the name of the tokenizer's class: tokenizer_config.json's, else config.json's, else the family's."""
    declared = folder.tokenizer_config.get("tokenizer_class") or folder.config.get("tokenizer_class")
    return str(declared or TOKENIZER_MAPPING_NAMES.get(folder.model_type or "") or "PreTrainedTokenizerFast")


def _class_of(folder: Folder) -> Any:
    name = _class_name(folder)
    kind = tokenizer_class_from_name(name)
    return kind or tokenizer_class_from_name(name.removesuffix("Fast"))


def _special_tokens(folder: Folder) -> dict[str, str]:
    """Return the special tokens by name: those that the files name, else those of the class, as old folders need it."""
    kind = _class_of(folder)
    parameters = inspect.signature(kind.__init__).parameters if kind is not None else {}
    of_class = {name: parameters[name].default for name in _TOKENS if name in parameters}
    older = folder.path / "special_tokens_map.json"
    of_files = (read_json(older) if older.is_file() else {}) | dict(folder.tokenizer_config)
    both = [(name, _content(source.get(name))) for source in (of_class, of_files) for name in _TOKENS]
    return {name: text for name, text in both if text}


def _content(token: object) -> str | None:
    """Return a token's text; files and classes name it or describe it."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return str(token) if isinstance(token, str) or hasattr(token, "content") else None


def _input_names(folder: Folder, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what the tokenizer gives a model: token types where its files or its class say so, or the file's matter.

    A RoBERTa has one token type, and its class leaves them out whatever the file says of a pair's second text. An
    ALBERT has two, and its class in transformers 5 leaves them out all the same.
    """
    declared = folder.tokenizer_config.get("model_input_names")
    if isinstance(declared, list) and "input_ids" in declared:
        return [str(name) for name in declared]
    kind = _class_of(folder)
    names = list(getattr(kind, "model_input_names", _INPUTS))
    rows = folder.token_type_rows
    if rows is None and folder.model_type in CONFIG_MAPPING:  # an older file that leaves defaults out
        rows = getattr(CONFIG_MAPPING[folder.model_type](), "type_vocab_size", 0)
    if "token_type_ids" not in names and 0 < largest_type(tokenizer) < (rows or 0):
        names.append("token_type_ids")
    return names


def largest_type(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token type of a text or pair."""
    encodings = tokenizer.backend_tokenizer.encode_batch(["a", ("a", "a")])
    return max((kind for encoding in encodings for kind in encoding.type_ids), default=0)


def glues_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer marks a word by the space before it, so that a list of words would be glued together."""
    return _is_byte_level(json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer"))


def _is_byte_level(part: object) -> bool:
    if isinstance(part, list):
        return any(map(_is_byte_level, part))
    if not isinstance(part, dict):
        return False
    if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
        return True
    return any(_is_byte_level(value) for value in part.values() if isinstance(value, list | dict))


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest id that the tokenizer can give, added tokens included."""
    return max(tokenizer.get_vocab().values(), default=0)


def _tokenizer_bytes(tokenizer: PreTrainedTokenizerBase, source: Path | None) -> bytes:
    """Return the bytes of tokenizer.json: the source's own where it is still what the tokenizer reads by."""
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    file = source / "tokenizer.json" if source is not None else None
    if file is not None and file.is_file():
        other = read_tokenizer(file)
        cuts_or_pads = other.truncation is not None or other.padding is not None
        other.no_truncation()
        other.no_padding()
        if not cuts_or_pads and other.to_str() == own.to_str():
            return file.read_bytes()
    return own.to_str(pretty=True).encode()


def _transformers_agrees(folder: Path, file: Path) -> bool:
    """Tell whether transformers, choosing a class by what the folder says, reads texts as the file does."""
    try:
        theirs = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).backend_tokenizer
    except Exception:  # a class that cannot be made of this file
        return False
    ours = read_tokenizer(file)
    theirs.no_truncation()
    theirs.no_padding()
    texts = [*PROBES, *zip(PROBES, reversed(PROBES), strict=True)]
    pairs = zip(ours.encode_batch(texts), theirs.encode_batch(texts), strict=True)
    return all(mine.ids == other.ids and mine.type_ids == other.type_ids for mine, other in pairs)
