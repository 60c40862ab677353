"""Turn texts into a model's inputs with the `tokenizers` library alone.

Truncation is configured once and padding is done here in numpy: changing a tokenizer's settings per call fails with
"Already borrowed" as soon as two threads use it (huggingface/tokenizers#537).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.bundle import Manifest
from potstill.errors import BundleError, UsageError

Text: TypeAlias = str | tuple[str, str]
"""One text, or a pair of them."""
Row: TypeAlias = dict[str, NDArray[np.int64]]
"""One text's inputs, without padding: input name -> array of shape (tokens,)."""

# Input name -> the attribute of a `tokenizers.Encoding` that holds it.
_ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
# Texts handed to Rust at once: enough to keep its threads busy, little enough that its encodings stay small.
_CHUNK = 1024


class BundleTokenizer:
    """The tokenizer of one bundle; safe to use from several threads.

    Its ids and masks are those of the checkpoint's own fast tokenizer with `padding=True, truncation=True`. A lone
    surrogate, which no UTF-8 text can hold, is read as U+FFFD, the replacement character.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Load `tokenizer.json` from a bundle's folder.

        Raises:
            BundleError: if the file cannot be loaded, or the manifest asks for inputs that no tokenizer makes.
        """
        unknown = [name for name in manifest.inputs if name not in _ATTRIBUTES]
        if unknown or "input_ids" not in manifest.inputs:
            raise BundleError(f"{folder} wants the inputs {manifest.inputs}; potstill makes {', '.join(_ATTRIBUTES)}")
        self.max_length = manifest.max_length
        self._inputs = tuple(manifest.inputs)
        self._pads_left = manifest.padding_side == "left"
        self._pad_values = {"input_ids": manifest.pad_token_id}
        self._tokenizer = _load(folder, manifest.max_length)

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
            rows += [self._row(encoding) for encoding in self._tokenizer.encode_batch(clean[start : start + _CHUNK])]
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

    def _row(self, encoding: Any) -> Row:
        return {name: np.array(getattr(encoding, _ATTRIBUTES[name]), dtype=np.int64) for name in self._inputs}


def _load(folder: Path, max_length: int) -> Tokenizer:
    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise BundleError(f"{file} cannot be loaded as a tokenizer: {error}; export the checkpoint again") from error
    special = tokenizer.num_special_tokens_to_add(True)
    if max_length <= special:
        raise BundleError(f"max_length {max_length} leaves no room beside the {special} special tokens of a pair")
    config = _config(folder)
    # The same order as transformers: its own file first, then what tokenizer.json says.
    side = config.get("truncation_side") or (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    return tokenizer


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
        return _without_surrogates(text)
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return _without_surrogates(text[0]), _without_surrogates(text[1])
    raise UsageError(f"a text must be a str or a (str, str) tuple, not {type(text).__name__}")


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins surrogates that form a pair and replaces those that do not.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
