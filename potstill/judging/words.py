"""Ask about the words of texts that come as lists of words: the first token of a word answers for it."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError
from potstill.judging.answers import Session, run_rows
from potstill.serve import BundleTokenizer, Row
from potstill.serve.tokenizer import without_surrogates


def ask_words(
    session: Session,
    tokenizer: BundleTokenizer,
    texts: Sequence[Sequence[str]],
    *,
    outputs: Sequence[str],
    batch_size: int,
) -> dict[str, NDArray[Any]]:
    """Return `values`, `texts` and `seen` of every word, as `potstill.judging.ask.ask` does for token-classification.

    Raises:
        DataError: if there is no word, or the tokenizer cannot take words.
    """
    sizes = [len(words) for words in texts]
    if not sum(sizes):
        raise DataError("there are no words to ask about; give texts that are not empty")
    rows, starts = _rows(tokenizer, texts)
    found: list[Any] = [None] * len(rows)
    for index, own, tokens in run_rows(session, tokenizer, rows, outputs=outputs[:1], batch_size=batch_size):
        logits = own[outputs[0]][tokens]
        # A word without a token has the first one's numbers for now, and `seen` says that they are not its own.
        found[index] = logits[np.maximum(starts[index], 0)]
    return {
        "values": np.concatenate(found).astype(np.float32, copy=False),
        "texts": np.repeat(np.arange(len(texts)), sizes),
        "seen": np.concatenate(starts) >= 0,
    }


def _rows(tokenizer: BundleTokenizer, texts: Sequence[Sequence[str]]) -> tuple[list[Row], list[NDArray[np.int64]]]:
    """Return the inputs of every text, and the place of each word's first token, -1 for a word that has none."""
    own = tokenizer.copy()
    if _glues_words(json.loads(own.to_str()).get("pre_tokenizer")):
        raise DataError(
            "this tokenizer marks a word by the space before it, so it cannot take lists of words; "
            "save it with add_prefix_space=True and export again"
        )
    clean = [[without_surrogates(word) for word in words] for words in texts]
    rows, starts = [], []
    for words, encoding in zip(texts, own.encode_batch(clean, is_pretokenized=True), strict=True):
        places = np.full(len(words), -1, dtype=np.int64)
        for place in range(len(encoding.word_ids) - 1, -1, -1):
            if encoding.word_ids[place] is not None:
                places[encoding.word_ids[place]] = place
        rows.append(tokenizer.row_of(encoding))
        starts.append(places)
    return rows, starts


def _glues_words(part: Any) -> bool:
    """Return whether a pre-tokenizer, or one within it, is byte-level without a space in front of a text."""
    if isinstance(part, list):
        return any(map(_glues_words, part))
    if not isinstance(part, dict):
        return False
    if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
        return True
    return any(_glues_words(value) for value in part.values() if isinstance(value, list | dict))
