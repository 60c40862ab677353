"""Ask a model for its answers to real texts, the same for every kind of task: rows of numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError, UsageError
from potstill.serve import BundleTokenizer
from potstill.serve.tokenizer import Row
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TOKEN_CLASSIFICATION,
)

Floats: TypeAlias = NDArray[np.floating]
Places: TypeAlias = list[NDArray[np.intp]]

SENTENCE_EMBEDDING = "sentence_embedding"
"""The output of a graph that pools: one vector per text."""

# One word in seven is hidden, as in BERT's training, and always the same ones; the first is near the text's beginning.
_MASK_EVERY, _FIRST_MASKED = 7, 3
# As many masked words as carry a share, and as many numbers as fit in 256 MiB: a word has a logit per vocabulary entry.
_MAX_MASKED, _MAX_NUMBERS = 1000, 2**26


class Session(Protocol):
    """What answers: an `OnnxSession`, or a runner of a bench."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name for a padded batch."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one file answers to texts."""

    values: Floats
    """Shape (rows, columns): logits or scores, amounts or vectors. Positions that a question's text lacks are -inf."""
    texts: NDArray[np.int64]
    """Which text each row is about, shape (rows,), ascending."""
    kind: str
    """What was asked: `potstill.tasks.kind_of`."""

    def choices(self) -> NDArray[np.int64] | None:
        """Return what each row decides, shape (rows, decisions); None where an answer is an amount or a vector."""
        if self.kind in {REGRESSION, FEATURE_EXTRACTION.name}:
            return None
        if self.kind == MULTI_LABEL:
            return (self.values > 0).astype(np.int64)
        chosen: NDArray[np.int64] = self.values.argmax(axis=1)[:, None]
        return chosen


def collect(
    session: Session,
    tokenizer: BundleTokenizer,
    rows: Sequence[Row],
    *,
    kind: str,
    outputs: Sequence[str],
    batch_size: int = 8,
    mask_id: int | None = None,
    shuffle: np.random.Generator | None = None,
) -> Answers:
    """Return a file's answers to `rows`, which `tokenizer.rows(texts)` made.

    A text has one row of answers where it is asked one thing; one per token between the special ones for
    token-classification; two for question-answering, the scores of start and end over its tokens; one per hidden word
    for fill-mask, which hides every 7th and stops at 1000.

    Args:
        session: the file.
        tokenizer: pads.
        rows: at least one.
        kind: `potstill.tasks.kind_of`.
        outputs: the graph's outputs, in the order of the manifest; of feature-extraction `sentence_embedding` is taken
            where it is among them, else the mean of the token vectors.
        batch_size: texts per run; 1 for a file whose answers depend on the batch.
        mask_id: the token that hides a word, for fill-mask.
        shuffle: groups texts at random; None puts texts of similar length together.

    Raises:
        UsageError: if fill-mask has no `mask_id`.
        DataError: if there is nothing to ask about.
    """
    rows, places = _questions(session, tokenizer, rows, kind=kind, output=outputs[0], mask_id=mask_id)
    # A language model answers each word with its vocabulary.
    size = 1 if kind == FILL_MASK.name and shuffle is None else batch_size
    found = {
        index: _read(own, kind, tokens=tokens, places=None if places is None else places[index])
        for index, own, tokens in run_rows(session, tokenizer, rows, outputs=outputs, batch_size=size, shuffle=shuffle)
    }
    parts = [found[index] for index in range(len(rows))]
    width = max(part.shape[1] for part in parts)
    return Answers(
        values=np.concatenate([_widen(part, width) for part in parts]).astype(np.float32, copy=False),
        texts=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        kind=kind,
    )


def run_rows(
    session: Session,
    tokenizer: BundleTokenizer,
    rows: Sequence[Row],
    *,
    outputs: Sequence[str],
    batch_size: int,
    shuffle: np.random.Generator | None = None,
) -> Iterator[tuple[int, dict[str, Floats], Any]]:
    """Yield for every row, in any order, its number, its outputs by name, and what picks its tokens from the padding.

    Arguments as `collect`. One row is alive at a time, for outputs may be as long as a vocabulary.
    """
    # Without a mask the padding would be read as words.
    size = batch_size if rows and "attention_mask" in rows[0] else 1
    for batch in _batches(rows, size, shuffle=shuffle):
        feeds = tokenizer.pad([rows[index] for index in batch])
        given = session.run(feeds)
        for position, index in enumerate(batch.tolist()):
            tokens = feeds["attention_mask"][position] > 0 if "attention_mask" in feeds else slice(None)
            yield index, {name: given[name][position] for name in outputs}, tokens


def ordinary_tokens(tokenizer: BundleTokenizer, rows: Sequence[Row]) -> Places:
    """Return the positions of each row's tokens, without those that the tokenizer puts around and between texts."""
    frame = np.concatenate([row["input_ids"] for row in tokenizer.rows(["", ("", "")])])
    return [np.flatnonzero(~np.isin(row["input_ids"], frame)) for row in rows]


def _questions(
    session: Session,
    tokenizer: BundleTokenizer,
    rows: Sequence[Row],
    *,
    kind: str,
    output: str,
    mask_id: int | None,
) -> tuple[Sequence[Row], Places | None]:
    """Return what is asked, and at which tokens; None where a whole text is asked about."""
    places: Places | None = None
    if rows and kind in {TOKEN_CLASSIFICATION.name, FILL_MASK.name}:
        places = ordinary_tokens(tokenizer, rows)
        if kind == FILL_MASK.name:
            columns = session.run(tokenizer.pad(rows[:1]))[output].shape[-1]
            limit = min(_MAX_MASKED, _MAX_NUMBERS // columns)
            rows, places = hide_words(rows, places, mask_id=mask_id, limit=limit)
    if not rows or (places is not None and not any(map(len, places))):
        raise DataError(f"there are no words to ask a {kind} model about; give texts that are not empty")
    return rows, places


def hide_words(
    rows: Sequence[Row], ordinary: Places, *, mask_id: int | None, limit: int | None = None
) -> tuple[list[Row], Places]:
    """Return the rows with every 7th word hidden, and where those are, up to `limit` words; rows beyond are left out.

    Raises:
        UsageError: if there is no mask token.
    """
    if mask_id is None:
        raise UsageError("fill-mask needs the id of the mask token; this tokenizer seems to have none")
    hidden: list[Row] = []
    places: Places = []
    left = len(rows) * max(map(len, ordinary), default=0) if limit is None else limit
    for row, positions in zip(rows, ordinary, strict=True):
        if left == 0:
            break
        chosen = positions[min(_FIRST_MASKED, len(positions) // 2) :: _MASK_EVERY][:left]
        ids = row["input_ids"].copy()
        ids[chosen] = mask_id
        hidden.append({**row, "input_ids": ids})
        places.append(chosen)
        left -= len(chosen)
    return hidden, places


def _batches(
    rows: Sequence[Row], batch_size: int, *, shuffle: np.random.Generator | None
) -> Iterator[NDArray[np.int64]]:
    lengths = np.array([-len(row["input_ids"]) for row in rows])
    order = np.argsort(lengths, kind="stable") if shuffle is None else shuffle.permutation(len(rows))
    for start in range(0, len(rows), batch_size):
        yield order[start : start + batch_size]


def _read(own: Mapping[str, Floats], kind: str, *, tokens: Any, places: NDArray[np.intp] | None) -> Floats:
    """Return one text's answers, shape (rows, columns); `tokens` picks those that are no padding."""
    if kind == QUESTION_ANSWERING.name:
        return np.stack([scores[tokens] for scores in own.values()])
    if kind == FEATURE_EXTRACTION.name:
        if SENTENCE_EMBEDDING in own:
            return own[SENTENCE_EMBEDDING][None]
        mean: Floats = next(iter(own.values()))[tokens].mean(axis=0, keepdims=True)
        return mean
    logits = next(iter(own.values()))
    return logits[None] if places is None else logits[tokens][places]


def _widen(part: Floats, width: int) -> Floats:
    return np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-np.inf)
