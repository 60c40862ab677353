"""Turn texts into a model's inputs with the `tokenizers` library alone.

Truncation is configured once and padding is done here in numpy: changing a tokenizer's settings per call fails with
"Already borrowed" as soon as two threads use it (huggingface/tokenizers#537).
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.errors import BundleError, UsageError

Text: TypeAlias = str | tuple[str, str]
"""One text, or a pair of them."""
Row: TypeAlias = dict[str, NDArray[np.int64]]
"""One text's inputs, without padding: input name -> array of shape (tokens,)."""

# Input name -> the attribute of a `tokenizers.Encoding` that holds it.
_ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
# Texts handed to Rust at once: enough to keep its threads busy, little enough that its encodings stay small.
_CHUNK = 1024


class TokenizerSettings(Protocol):
    """What a tokenizer must know of its model; a bundle's manifest says all of it."""

    @property
    def inputs(self) -> Sequence[str]:
        """The model's inputs, by name."""

    @property
    def max_length(self) -> int:
        """The longest text in tokens."""

    @property
    def padding_side(self) -> str:
        """`left` or `right`."""

    @property
    def pad_token_id(self) -> int:
        """The id that fills short rows up."""


class BundleTokenizer:
    """The tokenizer of one bundle; safe to use from several threads.

    Its ids and masks are those of the checkpoint's own fast tokenizer with `padding=True, truncation=True`. A lone
    surrogate, which no UTF-8 text can hold, is read as U+FFFD, the replacement character.
    """

    def __init__(self, folder: Path, settings: TokenizerSettings) -> None:
        """Load `tokenizer.json` from a bundle's folder.

        Raises:
            BundleError: if the file cannot be loaded, or the settings ask for inputs that no tokenizer makes.
        """
        unknown = [name for name in settings.inputs if name not in _ATTRIBUTES]
        if unknown or "input_ids" not in settings.inputs:
            raise BundleError(f"{folder} wants the inputs {settings.inputs}; potstill makes {', '.join(_ATTRIBUTES)}")
        self.max_length = settings.max_length
        self._inputs = tuple(settings.inputs)
        self._pads_left = settings.padding_side == "left"
        self._pad_values = {"input_ids": settings.pad_token_id}
        config = _config(folder)
        self._tokenizer = _load(folder, settings.max_length, config)
        self.mask_id = _mask_id(self._tokenizer, config)
        """The token that hides a word; None where the tokenizer has none."""

    def encode(self, texts: Sequence[Text]) -> dict[str, NDArray[np.int64]]:
        """Return the inputs that the model declares, each of shape (texts, longest of them in tokens)."""
        return self.pad(self.rows(texts))

    def lengths(self, texts: Sequence[Text]) -> NDArray[np.int64]:
        """Return how many tokens the model sees of each text, special tokens included; shape (texts,)."""
        return np.array([len(row["input_ids"]) for row in self.rows(texts)], dtype=np.int64)

    def rows(self, texts: Sequence[Text]) -> list[Row]:
        """Return each text's inputs without padding, in order.

        Raises:
            UsageError: if `texts` is one string, or holds something that is neither a text nor a pair.
        """
        if isinstance(texts, str):
            raise UsageError("one string was given where a list of texts is expected; write [text]")
        clean = [_clean(text) for text in texts]
        rows: list[Row] = []
        for start in range(0, len(clean), _CHUNK):
            # encode_batch releases the interpreter lock, encode does not.
            rows += [self.row_of(encoding) for encoding in self._tokenizer.encode_batch(clean[start : start + _CHUNK])]
        return rows

    def pad(self, rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
        """Stack rows into arrays of shape (rows, longest row), padded on the model's side."""
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        padded = {}
        for name in self._inputs:
            block = np.full((len(rows), longest), self._pad_values.get(name, 0), dtype=np.int64)
            for target, row in zip(block, rows, strict=True):
                length = len(row[name])
                target[slice(longest - length, None) if self._pads_left else slice(length)] = row[name]
            padded[name] = block
        return padded

    def copy(self) -> Tokenizer:
        """Return a tokenizer of one's own, for truncation other than this one's; give `row_of` what it encodes."""
        own = copy.deepcopy(self._tokenizer)
        # Its JSON, by which it is copied, does not hold this one.
        own.encode_special_tokens = self._tokenizer.encode_special_tokens
        return own

    def ordinary_ids(self, vocab_size: int | None = None) -> NDArray[np.int64]:
        """Return the ids that stand for text, ascending: no special token, none added later, none beyond `vocab_size`.

        `vocab_size` is the model's, which may be smaller or larger than the tokenizer's.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        frame = np.concatenate([row["input_ids"] for row in self.rows(["", ("", "")])])
        special = [*(number for number, token in added.items() if token.special), *self._pad_values.values()]
        size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        ids = np.arange(size if vocab_size is None else min(size, vocab_size), dtype=np.int64)
        return np.setdiff1d(ids, np.concatenate([np.array(special, dtype=np.int64), frame]))

    def row_of(self, encoding: Any) -> Row:
        """Return the inputs that a `tokenizers.Encoding` makes, without padding."""
        return {name: np.array(getattr(encoding, _ATTRIBUTES[name]), dtype=np.int64) for name in self._inputs}


def _load(folder: Path, max_length: int, config: dict[str, Any]) -> Tokenizer:
    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise BundleError(f"{file} cannot be loaded as a tokenizer: {error}; export the checkpoint again") from error
    special = tokenizer.num_special_tokens_to_add(True)
    if max_length <= special:
        raise BundleError(f"max_length {max_length} leaves no room beside the {special} special tokens of a pair")
    # The same order as transformers: its own file first, then what tokenizer.json says.
    side = config.get("truncation_side") or (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    return tokenizer


def _mask_id(tokenizer: Tokenizer, config: dict[str, Any]) -> int | None:
    token = config.get("mask_token")
    # Older files describe the token, newer ones name it.
    token = token.get("content") if isinstance(token, dict) else token
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON; export the checkpoint again") from error
    return content if isinstance(content, dict) else {}


def _clean(text: Text) -> Text:
    if isinstance(text, str):
        return without_surrogates(text)
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return without_surrogates(text[0]), without_surrogates(text[1])
    raise UsageError(f"a text must be a str or a (str, str) tuple, not {type(text).__name__}")


def without_surrogates(text: str) -> str:
    """Return the text as UTF-8 can hold it: surrogates that form a pair become one character, others U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins surrogates that form a pair and replaces those that do not.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
