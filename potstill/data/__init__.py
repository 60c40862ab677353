"""Labelled texts from the hub, from local files, or from the documentation that Python carries.

Local files need nothing but the standard library (parquet needs pyarrow), so that a bench on an edge box can
score quality too; only a hub id needs `datasets`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from potstill.data import labels
from potstill.data.rows import PYTHON_DOCS, Row, read_rows
from potstill.errors import DataError
from potstill.task import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TOKEN_CLASSIFICATION,
    Task,
    kind_of,
)

__all__ = ["PYTHON_DOCS", "Examples", "Text", "load_examples", "load_texts"]

Text: TypeAlias = str | tuple[str, str]
_NumberedRow: TypeAlias = tuple[int, Row]

# The command line's and old recipes' default: it must not hide another task's usual names.
_DEFAULT_LABEL_COLUMN = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """One split of a data set: texts with what a model should answer."""

    name: str
    split: str
    texts: list[Any]
    """A string or a pair of strings each; a list of words for token-classification; (question, context) for
    question-answering."""
    labels: Any
    """By task and problem type, for N examples:

    - a single label: int64 ids of shape (N,)
    - several labels: float64 of shape (N, labels), 1 for those that the text has and 0 elsewhere
    - regression, and feature-extraction where pairs have a score: float64 of shape (N,)
    - token-classification: a list of int64 ids of shape (words,)
    - question-answering: a list of `{"text": [...], "answer_start": [...]}`, both empty where there is no answer
    - None where texts are all there is: fill-mask, and feature-extraction without a score
    """
    label_names: tuple[str, ...]
    """Names by label id; the ids in decimal where the data gives no names; empty where labels are not ids."""
    sha256: str
    """Over texts and labels in their order: the same hash is the same test."""

    def __len__(self) -> int:
        return len(self.texts)


def load_examples(
    name: str,
    *,
    split: str,
    task: Task,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    limit: int | None = None,
) -> Examples:
    """Load one split of a data set.

    Args:
        name: a hub id with an optional configuration (`nyu-mll/glue:sst2`), a folder with one file per split, one
            file, or `python-docs`.
        split: `train`, `validation`, ...; a folder's file is found by this name.
        task: says which columns to look for, and what they hold.
        text_columns: the column of the text, or two for pairs; None looks for the task's usual names.
        label_column: the column of the label; None, and `label` where there is no such column, look for the task's
            usual names.
        label_names: the model's labels in their order; string labels are looked up here. None takes the names
            that the data gives, or the sorted strings found.
        problem_type: what a text classifier answers, one of `potstill.task.PROBLEM_TYPES`; None is a single label.
        limit: keep the first so many examples.

    Raises:
        DataError: if data set, split or column is missing, a row is broken, or nothing is left.
        UsageError: if there is no such problem type.
        MissingExtraError: if a hub id or parquet file needs a library that is not installed.
    """
    kind = kind_of(task, problem_type)
    origin = f"{name} ({split})"
    rows, own_names = read_rows(name, split)
    columns = _pick_columns(rows[0], task=task, asked=text_columns, origin=origin)
    numbered = _keep(rows, kind=kind, column=columns[0], limit=limit, origin=origin)
    texts = _texts(numbered, kind=kind, columns=columns)
    column = _pick_label_column(numbered[0], task=task, asked=label_column, has_pairs=len(columns) == 2)
    found: Any = None
    names: tuple[str, ...] = ()
    if column is not None:
        cells = [(number, _cell(row, column, number, setting="label_column")) for number, row in numbered]
        found, names = _labels(
            cells, texts, kind=kind, columns=columns, column=column, known=label_names or own_names.get(column)
        )
    return Examples(name=name, split=split, texts=texts, labels=found, label_names=names, sha256=_digest(texts, found))


def load_texts(
    name: str, *, split: str, task: Task, text_columns: Sequence[str] | None = None, limit: int | None = None
) -> list[Any]:
    """Load the texts of a split as `load_examples` does, labelled or not."""
    rows, _ = read_rows(name, split)
    origin = f"{name} ({split})"
    columns = _pick_columns(rows[0], task=task, asked=text_columns, origin=origin)
    numbered = _keep(rows, kind=kind_of(task), column=columns[0], limit=limit, origin=origin)
    return _texts(numbered, kind=kind_of(task), columns=columns)


def _pick_columns(row: Row, *, task: Task, asked: Sequence[str] | None, origin: str) -> Sequence[str]:
    have = ", ".join(row)
    if asked:
        if len(asked) > 2:
            raise DataError(f"data.text_columns names {', '.join(asked)}; a text has one column, a pair two")
        widths = {len(columns) for columns in task.text_columns}
        if len(asked) not in widths:
            raise DataError(
                f"data.text_columns names {', '.join(asked)}; {task.name} reads "
                f"{'two columns such as ' if 2 in widths else 'one column such as '}{', '.join(task.text_columns[0])}"
            )
        missing = [column for column in asked if column not in row]
        if missing:
            raise DataError(f"{origin} has no column {missing[0]!r}; it has {have}; set data.text_columns")
        return asked
    for columns in task.text_columns:
        if all(column in row for column in columns):
            return columns
    raise DataError(f"{origin} has no text column that potstill knows; it has {have}; set data.text_columns")


def _keep(rows: Sequence[Row], *, kind: str, column: str, limit: int | None, origin: str) -> list[_NumberedRow]:
    """Return the first `limit` rows with their numbers; running text's empty lines are no rows."""
    numbered: list[_NumberedRow] = list(enumerate(rows, 1))
    if kind in (FILL_MASK.name, TOKEN_CLASSIFICATION.name):
        numbered = [(number, row) for number, row in numbered if not _is_empty(row.get(column))]
    if not numbered:
        raise DataError(f"{origin} has nothing but empty texts in column {column!r}")
    return numbered[:limit]


def _is_empty(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else value == []


def _texts(rows: Sequence[_NumberedRow], *, kind: str, columns: Sequence[str]) -> list[Any]:
    if kind == TOKEN_CLASSIFICATION.name:
        return [_words(row, columns[0], number) for number, row in rows]
    return [_text(row, columns, number) for number, row in rows]


def _text(row: Row, columns: Sequence[str], number: int) -> Text:
    parts = [_cell(row, column, number, setting="text_columns") for column in columns]
    for column, part in zip(columns, parts, strict=True):
        if not isinstance(part, str):
            raise DataError(f"row {number}: column {column!r} holds {part!r}, not a text")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _words(row: Row, column: str, number: int) -> list[str]:
    words = _cell(row, column, number, setting="text_columns")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"row {number}: column {column!r} holds {words!r}, not a list of words")
    return words


def _cell(row: Row, column: str, number: int, *, setting: str) -> Any:
    if column not in row:
        raise DataError(f"row {number} has no column {column!r}; it has {', '.join(row)}; set data.{setting}")
    return row[column]


def _pick_label_column(first: _NumberedRow, *, task: Task, asked: str | None, has_pairs: bool) -> str | None:
    """Return the column of the label, or None where the task needs none."""
    if task == FILL_MASK or (task == FEATURE_EXTRACTION and not has_pairs):
        return None
    number, row = first
    is_open = asked is None or asked == _DEFAULT_LABEL_COLUMN
    tried = (*([asked] if asked else []), *(task.label_columns if is_open else []))
    for column in tried:
        if column in row:
            return column
    if task == FEATURE_EXTRACTION and is_open:
        return None
    listed = " or ".join(map(repr, dict.fromkeys(tried)))
    raise DataError(f"row {number} has no column {listed}; it has {', '.join(row)}; set data.label_column")


def _labels(
    cells: labels.Cells,
    texts: Sequence[Any],
    *,
    kind: str,
    columns: Sequence[str],
    column: str,
    known: Sequence[str] | None,
) -> tuple[Any, tuple[str, ...]]:
    if kind == TOKEN_CLASSIFICATION.name:
        return labels.word_tags(cells, texts, column=column, words_column=columns[0], known=known)
    if kind == QUESTION_ANSWERING.name:
        return labels.answer_spans(cells, [context for _, context in texts], column=column), ()
    if kind in (REGRESSION, FEATURE_EXTRACTION.name):
        return labels.scores(cells, column), ()
    if kind == MULTI_LABEL:
        return labels.label_sets(cells, column, known)
    return labels.single_labels(cells, column, known)


def _digest(texts: Sequence[Any], found: Any) -> str:
    listed = [ids.tolist() for ids in found] if isinstance(found, list) and hasattr(found[0], "tolist") else found
    content = json.dumps(
        [texts, found.tolist() if hasattr(found, "tolist") else listed], ensure_ascii=True, separators=(",", ":")
    )
    return hashlib.sha256(content.encode()).hexdigest()
