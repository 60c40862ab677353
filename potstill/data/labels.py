"""What a column of labels holds, as numbers: ids, amounts, sets of labels, tags of words, or answers in a text.

Every function takes cells, pairs of a row's number (from 1, for messages) and its value, and the column's name.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError

Cells: TypeAlias = Sequence[tuple[int, Any]]
Ids: TypeAlias = NDArray[np.int64]

# A number in the wrong column, such as a row's own id, would make as many labels as it counts.
MAX_UNNAMED_LABELS = 10_000
# Python refuses to read longer numbers from text, and no label counts as far.
_INTEGER = re.compile(r"\s*-?\d{1,1000}\s*")
_OUTSIDE = "O"


def single_labels(cells: Cells, column: str, known: Sequence[str] | None) -> tuple[Ids, tuple[str, ...]]:
    """Return one id per row, int64 of shape (rows,), and the names by id.

    Args:
        cells: integers, names, or integers as text.
        column: named in messages.
        known: the names in their order; None takes the sorted names found, or the ids in decimal.

    Raises:
        DataError: if a label is not among the names, or unnamed ids count too far.
    """
    names = _names(cells, column, known)
    return _ids(cells, names, word="label", column=column), names


def scores(cells: Cells, column: str) -> NDArray[np.float64]:
    """Return one amount per row, float64 of shape (rows,).

    Raises:
        DataError: if a cell is not a finite number.
    """
    return np.array([_number(value, row, column) for row, value in cells], dtype=np.float64)


def label_sets(cells: Cells, column: str, known: Sequence[str] | None) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return 1 for every label that a row has and 0 for the others, float64 of shape (rows, labels), and the names.

    Args:
        cells: lists of names or ids. Lists that all have one entry per label, and in them nothing but 0 and 1, are
            taken as they stand.
        column: named in messages.
        known: as in `single_labels`.

    Raises:
        DataError: if a cell is no list, a label is not among the names, or no row has any.
    """
    for row, value in cells:
        _check_list(value, row, column, what="labels")
    width = _width(cells, known)
    if width is not None:
        names = tuple(known) if known else tuple(str(number) for number in range(width))
        return np.array([value for _, value in cells], dtype=np.float64), names
    flat = [(row, label) for row, value in cells for label in value]
    if not flat and not known:
        raise DataError(f"no row has any label in column {column!r}; give label names or another column")
    names = _names(flat, column, known)
    found = np.zeros((len(cells), len(names)))
    at = np.repeat(np.arange(len(cells)), [len(value) for _, value in cells])
    found[at, _ids(flat, names, word="label", column=column)] = 1.0
    return found, names


def word_tags(
    cells: Cells, words: Sequence[Sequence[str]], *, column: str, words_column: str, known: Sequence[str] | None
) -> tuple[list[Ids], tuple[str, ...]]:
    """Return for every row the ids of its words' tags, int64 of shape (words,), and the names by id.

    Args:
        cells: lists of tags, ids or names, one per word.
        words: the rows' words.
        column: named in messages.
        words_column: likewise.
        known: as in `single_labels`; where names are sorted, `O` comes first.

    Raises:
        DataError: if a cell is no list, has another length than the row's words, or a tag is not among the names.
    """
    for (row, value), spoken in zip(cells, words, strict=True):
        _check_list(value, row, column, what="tags")
        if len(value) != len(spoken):
            raise DataError(
                f"row {row}: {len(spoken)} words in column {words_column!r}, but {len(value)} tags in {column!r}; "
                "every word needs one tag"
            )
    flat = [(row, tag) for row, value in cells for tag in value]
    names = _names(flat, column, known)
    if not known and _OUTSIDE in names:
        names = (_OUTSIDE, *(name for name in names if name != _OUTSIDE))
    ids = _ids(flat, names, word="tag", column=column)
    ends = np.cumsum([len(value) for _, value in cells])[:-1]
    return np.split(ids, ends), names


def answer_spans(cells: Cells, contexts: Sequence[str], *, column: str) -> list[dict[str, list[Any]]]:
    """Return for every row its accepted answers, `{"text": [...], "answer_start": [...]}`; empty is unanswerable.

    Args:
        cells: SQuAD's answers, such an object or a list of `{"text": ..., "answer_start": ...}`.
        contexts: the texts in which the answers stand, counted in characters.
        column: named in messages.

    Raises:
        DataError: if a cell has another shape, or an answer does not stand where it says.
    """
    return [_answers(value, row, context, column) for (row, value), context in zip(cells, contexts, strict=True)]


def _answers(value: Any, row: int, context: str, column: str) -> dict[str, list[Any]]:
    listed = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    if listed:
        value = {key: [one.get(key) for one in value] for key in ("text", "answer_start")}
    texts, starts = (value.get(key) for key in ("text", "answer_start")) if isinstance(value, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DataError(
            f"row {row}: column {column!r} holds {_show(value)}, not answers such as "
            '{"text": ["Rome"], "answer_start": [7]} with as many starts as texts'
        )
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise DataError(
                f"row {row}: answer {_show(text)} at {_show(start)} is not a text and a count of characters"
            )
        if start < 0 or context[start : start + len(text)] != text:
            stands = _show(context[start : start + len(text)]) if start >= 0 else "nothing"
            raise DataError(f"row {row}: answer {_show(text)} should start at character {start}, where {stands} stands")
    return {"text": list(texts), "answer_start": list(starts)}


def _width(cells: Cells, known: Sequence[str] | None) -> int | None:
    """Return the number of labels if all rows are lists of 0 and 1, one per label; None if they list labels."""
    lengths = {len(value) for _, value in cells}
    width = lengths.pop() if len(lengths) == 1 else 0
    if width < 2 or (known and width != len(known)):
        return None
    flags = all(isinstance(flag, int | float) and flag in (0, 1) for _, value in cells for flag in value)
    return width if flags else None


def _names(cells: Cells, column: str, known: Sequence[str] | None) -> tuple[str, ...]:
    if known:
        return tuple(known)
    if all(isinstance(value, str) and not _is_integer(value) for _, value in cells):
        return tuple(sorted({value for _, value in cells}))
    bound = max(MAX_UNNAMED_LABELS, len(cells))
    highest = 0
    for row, value in cells:
        if _is_integer(value) and int(value) >= bound:
            raise DataError(
                f"row {row}: label {_show(value)} in column {column!r} would make more than {bound} labels without a "
                "name; ids count from 0: name another column, or give the labels' names"
            )
        highest = max(highest, int(value)) if _is_integer(value) else highest
    return tuple(str(number) for number in range(highest + 1))


def _ids(cells: Iterable[tuple[int, Any]], names: Sequence[str], *, word: str, column: str) -> Ids:
    by_name = {name: number for number, name in enumerate(names)}
    ids = []
    for row, value in cells:
        found = by_name.get(value) if isinstance(value, str) else None
        if found is None and _is_integer(value):
            found = int(value)
        if found is None or not 0 <= found < len(names):
            raise DataError(
                f"row {row}: {word} {_show(value)} in column {column!r} is none of the model's {len(names)} labels "
                f"({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"
            )
        ids.append(found)
    return np.array(ids, dtype=np.int64)


def _number(value: Any, row: int, column: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"row {row}: label {_show(value)} in column {column!r} is not a finite number")
    return number


def _check_list(value: Any, row: int, column: str, *, what: str) -> None:
    if not isinstance(value, list):
        raise DataError(f"row {row}: column {column!r} holds {_show(value)}, not a list of {what}")


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and _INTEGER.fullmatch(value) is not None)


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
