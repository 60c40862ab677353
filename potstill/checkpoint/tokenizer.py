"""Load a checkpoint's tokenizer exactly as tokenizer.json has it, behind transformers' interface; save it unchanged.

transformers 5 rebuilds a tokenizer from the name of its class and takes only the vocabulary from tokenizer.json, which
gave other ids for 5 to 20 of 21 texts with four tokenizers (docs/log.md). Here the file is the tokenizer, and the class
only gives defaults: special tokens, and which inputs the model gets.
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
# Settings of transformers' tokenizer classes. tokenizer.json decides how a text is read; these are only passed on, so
# that the saved tokenizer_config.json has them for other readers.
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
# Models from fairseq put special tokens before sentencepiece's, so their ids are higher by this much.
_SENTENCEPIECE_OFFSETS = {"XLMRobertaTokenizer": 1, "CamembertTokenizer": 4}
# Texts that tell tokenizers apart: case, accents, Unicode normal forms, white space, CJK, emoji, zero-width characters,
# and the markers of WordPiece, sentencepiece and byte-level BPE.
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
    """Load the tokenizer of a hub id or folder: ids and token types are those of tokenizer.json; padding is right.

    Without tokenizer.json, transformers converts the older files (vocab.txt; vocab.json and merges.txt; spm.model), and
    what it makes of a sentencepiece model is compared with sentencepiece itself.

    Raises:
        CheckpointError: if there is none, it cannot be read or converted, or it needs code of its own.
    """
    folder = name if isinstance(name, Folder) else read_tokenizer_folder(name)
    tokenizer = _from_file(folder) if folder.tokenizer_file else _convert(folder)
    # Absolute positions count from the left, padding included, so left padding would change a text's answer.
    tokenizer.padding_side = "right"
    tokenizer.model_input_names = _input_names(folder, tokenizer)
    tokenizer.name_or_path = str(folder.path)
    return tokenizer


def reference_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer that a loaded one is compared with, without truncation and padding.

    This is its folder's tokenizer.json, read by the tokenizers library alone; without that file a copy of `tokenizer`.
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

    tokenizer.json is a copy of the checkpoint's, byte by byte, unless that truncates or pads, which is left to the
    reader. `tokenizer_class` is the checkpoint's if transformers then gives the file's ids, else the generic class.

    Args:
        tokenizer: from `load_tokenizer`, or one that was trained here.
        folder: the target; it holds config.json already, because transformers chooses the class by it as well.
    """
    source = Path(tokenizer.name_or_path) if tokenizer.name_or_path else None
    tokenizer.save_pretrained(folder)
    # save_pretrained writes the pipeline as transformers changed it, so the file's own bytes replace it.
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    file.write_bytes(_tokenizer_bytes(tokenizer, source))
    content = read_json(config_file)
    # transformers 4 and transformers.js know it by this name.
    if extra := content.pop("extra_special_tokens", None):
        content["additional_special_tokens"] = extra
    content.pop("backend", None)
    content["model_input_names"] = list(tokenizer.model_input_names)
    # transformers 4 overwrites the pre-tokenizer's setting with that of tokenizer_config.json, so both must agree.
    pipeline = read_json(file).get("pre_tokenizer") or {}
    if "add_prefix_space" in pipeline:
        content["add_prefix_space"] = pipeline["add_prefix_space"]
    generic = "PreTrainedTokenizerFast"
    declared = _class_name(read_tokenizer_folder(source)) if source is not None else content["tokenizer_class"]
    if declared in (generic, "TokenizersBackend"):  # the generic class, as transformers 5 calls it and 4 does not
        # transformers.js gives token types to the classes that it knows by name alone, so the family's own is better.
        beside = folder / "config.json"
        family = read_json(beside).get("model_type") if beside.is_file() else None
        declared = TOKENIZER_MAPPING_NAMES.get(family or "") or generic
    # transformers chooses a class by this name, so each is written and tried; the generic one reads the file as it is.
    for name in (declared, generic):
        content["tokenizer_class"] = name
        config_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if name == generic or _transformers_agrees(folder, file):
            return


def _from_file(folder: Folder) -> PreTrainedTokenizerBase:
    """Wrap tokenizer.json in transformers' generic fast tokenizer, without the file's truncation and padding."""
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
            # A token that the file lacks would be added, with an id for which the model has no embedding.
            **{name: token for name, token in tokens.items() if token and own.token_to_id(token) is not None},
            extra_special_tokens=[text for text in map(_content, extra) if text and own.token_to_id(text) is not None],
            model_max_length=folder.tokenizer_limit,
            truncation_side="left" if config.get("truncation_side") == "left" else "right",
            **{name: config[name] for name in _KEPT if name in config},
        )
    except Exception as error:
        raise CheckpointError(f"cannot load the tokenizer of {folder.name!r}: {first_line(error)}") from error
    # The constructor marks tokens as special in its pipeline that the file does not mark; the file's own is put back.
    tokenizer._tokenizer = own
    return tokenizer


def _convert(folder: Folder) -> PreTrainedTokenizerBase:
    """Have transformers convert the older vocabulary files, and check what it makes of them."""
    # Without one of its files, transformers makes a tokenizer without a vocabulary and raises nothing.
    named = getattr(_class_of(folder), "vocab_files_names", {})
    needed = [file for name, file in named.items() if name != "tokenizer_file"] or ["tokenizer.json"]
    missing = [name for name in needed if not (folder.path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder.name} has neither tokenizer.json nor {', '.join(missing)}, so there is no tokenizer; copy the "
            "checkpoint's tokenizer files there, or name another folder that has them (--set tokenizer=...)"
        )
    pieces = next(iter(sorted(folder.path.glob("*.model"))), None)
    if pieces is not None:  # without these packages transformers takes the file for one of tiktoken
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
    """Give a converted tokenizer the normalizer of its sentencepiece model where transformers 5 leaves it out.

    For DeBERTa's spm.model, for one, transformers 5 drops the character map (docs/log.md).

    Raises:
        CheckpointError: if some probe text still gets other ids than by sentencepiece.
    """
    name = type(tokenizer).__name__
    settings = {"do_lower_case": name == "AlbertTokenizer", "keep_accents": False, "split_by_punct": False}
    settings |= {key: folder.tokenizer_config[key] for key in settings if key in folder.tokenizer_config}
    wrong = _first_difference(tokenizer, file, settings)
    if wrong is not None and name in SLOW_TO_FAST_CONVERTERS:
        converter = SLOW_TO_FAST_CONVERTERS[name](SimpleNamespace(vocab_file=str(file), **settings))
        with suppress(AttributeError):  # the converter is for another kind of file; the error below says so
            tokenizer.backend_tokenizer.normalizer = converter.normalizer(converter.proto)
            wrong = _first_difference(tokenizer, file, settings)
    if wrong is not None:
        raise CheckpointError(
            f"transformers {transformers.__version__} makes a tokenizer of {file} that reads {wrong!r} otherwise than "
            "sentencepiece does; save a tokenizer.json beside it with the version that the checkpoint was made with"
        )


def _first_difference(tokenizer: PreTrainedTokenizerBase, file: Path, settings: Mapping[str, object]) -> str | None:
    """Return the first probe text whose ids are not those of sentencepiece; None if all are equal."""
    from sentencepiece import SentencePieceProcessor

    name = type(tokenizer).__name__
    pieces = SentencePieceProcessor(model_file=str(file))
    offset = _SENTENCEPIECE_OFFSETS.get(name, 0)
    for text in PROBES:
        # sentencepiece does not split at punctuation, and writes a space as ▁, so these cannot be compared.
        if settings["split_by_punct"] or "▁" in text:
            continue
        clean = text
        # ALBERT's slow tokenizer removes accents before it calls sentencepiece.
        if name == "AlbertTokenizer" and not settings["keep_accents"]:
            clean = "".join(one for one in unicodedata.normalize("NFKD", clean) if not unicodedata.combining(one))
        clean = clean.lower() if settings["do_lower_case"] else clean
        expected = [tokenizer.unk_token_id if one == pieces.unk_id() else one + offset for one in pieces.encode(clean)]
        if tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids != expected:
            return text
    return None


def _class_name(folder: Folder) -> str:
    """Return the tokenizer's class name: from tokenizer_config.json, else config.json, else the family's default."""
    declared = folder.tokenizer_config.get("tokenizer_class") or folder.config.get("tokenizer_class")
    return str(declared or TOKENIZER_MAPPING_NAMES.get(folder.model_type or "") or "PreTrainedTokenizerFast")


def _class_of(folder: Folder) -> Any:
    name = _class_name(folder)
    kind = tokenizer_class_from_name(name)
    # transformers 5 has one class where 4 had a slow one and a fast one.
    return kind or tokenizer_class_from_name(name.removesuffix("Fast"))


def _special_tokens(folder: Folder) -> dict[str, str]:
    """Return the special tokens by name: by the files, else the class's defaults, on which old folders rely."""
    kind = _class_of(folder)
    parameters = inspect.signature(kind.__init__).parameters if kind is not None else {}
    of_class = {name: parameters[name].default for name in _TOKENS if name in parameters}
    older = folder.path / "special_tokens_map.json"
    of_files = (read_json(older) if older.is_file() else {}) | dict(folder.tokenizer_config)
    both = [(name, _content(source.get(name))) for source in (of_class, of_files) for name in _TOKENS]
    return {name: text for name, text in both if text}


def _content(token: object) -> str | None:
    """Return a special token's text, given as a string, a JSON object or an AddedToken."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return str(token) if isinstance(token, str) or hasattr(token, "content") else None


def _input_names(folder: Folder, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the model inputs that the tokenizer makes, by its files or else its class.

    Token types are added where tokenizer.json marks a pair's second text and the model has embeddings for that: ALBERT
    has two types, though its class in transformers 5 leaves them out. RoBERTa has one, so they stay out.
    """
    declared = folder.tokenizer_config.get("model_input_names")
    if isinstance(declared, list) and "input_ids" in declared:
        return [str(name) for name in declared]
    kind = _class_of(folder)
    names = list(getattr(kind, "model_input_names", _INPUTS))
    rows = folder.token_type_rows
    if rows is None and folder.model_type in CONFIG_MAPPING:  # config.json may leave the family's default out
        rows = getattr(CONFIG_MAPPING[folder.model_type](), "type_vocab_size", 0)
    if "token_type_ids" not in names and 0 < largest_type(tokenizer) < (rows or 0):
        names.append("token_type_ids")
    return names


def largest_type(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token type that the pipeline gives to a text or a pair."""
    encodings = tokenizer.backend_tokenizer.encode_batch(["a", ("a", "a")])
    return max((kind for encoding in encodings for kind in encoding.type_ids), default=0)


def glues_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a list of words would be read as one word: byte-level BPE knows a word by the space before it."""
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
    """Return the largest token id, added tokens included."""
    return max(tokenizer.get_vocab().values(), default=0)


def _tokenizer_bytes(tokenizer: PreTrainedTokenizerBase, source: Path | None) -> bytes:
    """Return the bytes of tokenizer.json: the source file's own if that neither cuts nor pads and is unchanged."""
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
    """Return whether AutoTokenizer, with the class that the folder names, gives the ids and types of tokenizer.json."""
    try:
        theirs = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).backend_tokenizer
    except Exception:  # a class that cannot be made of this file
        return False
    ours = read_tokenizer(file)
    theirs.no_truncation()
    theirs.no_padding()
    # Pairs, too: the post-processor with its special tokens and types is rebuilt as well.
    texts = [*PROBES, *zip(PROBES, reversed(PROBES), strict=True)]
    pairs = zip(ours.encode_batch(texts), theirs.encode_batch(texts), strict=True)
    return all(mine.ids == other.ids and mine.type_ids == other.type_ids for mine, other in pairs)
