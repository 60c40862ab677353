"""Labelled texts from the hub, from local files, or from the documentation that Python carries.

Local files need nothing but the standard library (parquet needs pyarrow), so that a bench on an edge box can
score quality too; only a hub id needs `datasets`.
"""

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError
from potstill.extras import require
from potstill.pydocs import CHAPTERS, read_python_docs
from potstill.task import Task

Text: TypeAlias = str | tuple[str, str]
Row: TypeAlias = dict[str, Any]

PYTHON_DOCS = "python-docs"
_INTEGER = re.compile(r"\s*-?\d+\s*")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """One split of a data set: texts (or pairs) with their label ids."""

    name: str
    split: str
    texts: list[Text]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    """Names by label id; the ids in decimal where the data gives no names."""
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
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
) -> Examples:
    """Load one split of a data set.

    Args:
        name: a hub id with an optional configuration (`nyu-mll/glue:sst2`), a folder with one file per split, one
            file, or `python-docs`.
        split: `train`, `validation`, ...; a folder's file is found by this name.
        task: says which columns to look for when `text_columns` is None.
        text_columns: the column of the text, or two for pairs.
        label_column: the column of the label, an integer or a name.
        label_names: the model's labels in their order; string labels are looked up here. None takes the names
            that the data gives, or the sorted strings found.
        limit: keep the first so many rows.

    Raises:
        DataError: if data set, split or column is missing, a row is broken, or nothing is left.
        MissingExtraError: if a hub id or parquet file needs a library that is not installed.
    """
    rows, own_names = _read_rows(name, split, label_column)
    rows = rows[:limit]
    if not rows:
        raise DataError(f"{name} has no rows in its split {split!r}")
    columns = _pick_columns(rows[0], task=task, asked=text_columns, origin=f"{name} ({split})")
    texts = [_text(row, columns, number) for number, row in enumerate(rows, 1)]
    raw = [_cell(row, label_column, number, setting="label_column") for number, row in enumerate(rows, 1)]
    names = _label_names(raw, label_names or own_names)
    labels = _label_ids(raw, names, label_column)
    return Examples(
        name=name, split=split, texts=texts, labels=labels, label_names=names, sha256=_digest(texts, labels)
    )


def load_texts(
    name: str, *, split: str, task: Task, text_columns: Sequence[str] | None = None, limit: int | None = None
) -> list[Text]:
    """Load the texts of a split as `load_examples` does, labelled or not."""
    rows, _ = _read_rows(name, split, "label")
    rows = rows[:limit]
    if not rows:
        raise DataError(f"{name} has no rows in its split {split!r}")
    columns = _pick_columns(rows[0], task=task, asked=text_columns, origin=f"{name} ({split})")
    return [_text(row, columns, number) for number, row in enumerate(rows, 1)]


def _read_rows(name: str, split: str, label_column: str) -> tuple[list[Row], Sequence[str] | None]:
    """Return the rows of a split, and the label names if the data set itself has them."""
    path = Path(name).expanduser()
    if name == PYTHON_DOCS:
        return [{"text": text, "label": chapter} for text, chapter in read_python_docs(split)], CHAPTERS
    if path.is_file():
        return _read_file(path), None
    if path.is_dir():
        return _read_file(_split_file(path, split)), None
    if name.startswith((".", "/", "~")) or path.suffix in _SUFFIXES or name.count("/") > 1:
        raise DataError(
            f"there is no file or folder {name}; name a data folder, a file, or a hub id such as nyu-mll/glue:sst2"
        )
    return _read_hub(name, split, label_column)


def _split_file(folder: Path, split: str) -> Path:
    for suffix in _SUFFIXES:
        file = folder / f"{split}{suffix}"
        if file.is_file():
            return file
    have = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)) or "no data files"
    raise DataError(f"{folder} has no {split}{{{','.join(_SUFFIXES)}}}; it has {have}")


def _read_file(file: Path) -> list[Row]:
    rows = list(_rows_of(file))
    if not rows:
        raise DataError(f"{file} is empty; it needs at least one row")
    return rows


def _rows_of(file: Path) -> Iterable[Row]:
    match file.suffix:
        case ".jsonl":
            return _json_lines(file)
        case ".json":
            return _json_array(file)
        case ".csv" | ".tsv":
            return _separated(file, "\t" if file.suffix == ".tsv" else ",")
        case ".parquet":
            return _parquet(file)
    raise DataError(f"{file} is not a data file; its name must end in {', '.join(_SUFFIXES)}")


def _decoded(file: Path) -> str:
    """Return a file's text, without the byte-order mark that spreadsheets write."""
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file} line {line} is not UTF-8; convert the file first") from error


def _parquet(file: Path) -> list[Row]:
    parquet = require("pyarrow.parquet", extra="distill")
    try:
        rows: list[Row] = parquet.read_table(file).to_pylist()
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{file} is not a parquet file: {_short(error)}") from error
    return rows


def _json_lines(file: Path) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(_decoded(file), newline=None), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file} line {number} is not an object with columns")
        yield row


def _json_array(file: Path) -> list[Row]:
    try:
        rows = json.loads(_decoded(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} is not a JSON array of objects with columns; one object per line goes into .jsonl")
    return rows


def _separated(file: Path, delimiter: str) -> Iterator[Row]:
    # GLUE's own .tsv files quote nothing, so a lone quotation mark in them is text.
    is_tsv = delimiter == "\t"
    stream = io.StringIO(_decoded(file), newline="")
    reader = csv.DictReader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{file} line {reader.line_num}: another number of columns than the head has")
            yield dict(row)
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num}: {error}") from error


def _read_hub(name: str, split: str, label_column: str) -> tuple[list[Row], Sequence[str] | None]:
    datasets = require("datasets", extra="distill")
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # the hub client raises many kinds, all meaning the same here
        raise DataError(
            f"cannot load {name!r} ({split}) from the hub: {_short(error)}; check the name and the network, "
            "or pass a folder with train and validation files"
        ) from error
    feature = loaded.features.get(label_column)
    names = getattr(feature, "names", None)
    return list(loaded), names


def _pick_columns(row: Row, *, task: Task, asked: Sequence[str] | None, origin: str) -> Sequence[str]:
    have = ", ".join(row)
    if asked:
        if len(asked) > 2:
            raise DataError(f"data.text_columns names {', '.join(asked)}; a text has one column, a pair two")
        missing = [column for column in asked if column not in row]
        if missing:
            raise DataError(f"{origin} has no column {missing[0]!r}; it has {have}; set data.text_columns")
        return asked
    for columns in task.text_columns:
        if all(column in row for column in columns):
            return columns
    raise DataError(f"{origin} has no text column that potstill knows; it has {have}; set data.text_columns")


def _cell(row: Row, column: str, number: int, *, setting: str) -> Any:
    if column not in row:
        raise DataError(f"row {number} has no column {column!r}; it has {', '.join(row)}; set data.{setting}")
    return row[column]


def _text(row: Row, columns: Sequence[str], number: int) -> Text:
    parts = [_cell(row, column, number, setting="text_columns") for column in columns]
    for column, part in zip(columns, parts, strict=True):
        if not isinstance(part, str):
            raise DataError(f"row {number}: column {column!r} holds {part!r}, not a text")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _label_names(raw: Sequence[Any], known: Sequence[str] | None) -> tuple[str, ...]:
    if known:
        return tuple(known)
    if all(isinstance(value, str) and not _is_integer(value) for value in raw):
        return tuple(sorted(set(raw)))
    numbers = [int(value) for value in raw if _is_integer(value)]
    return tuple(str(number) for number in range(max(numbers, default=0) + 1))


def _label_ids(raw: Sequence[Any], names: Sequence[str], column: str) -> NDArray[np.int64]:
    by_name = {name: number for number, name in enumerate(names)}
    ids = np.empty(len(raw), dtype=np.int64)
    for number, value in enumerate(raw):
        found = by_name.get(value) if isinstance(value, str) else None
        if found is None and _is_integer(value):
            found = int(value)
        if found is None or not 0 <= found < len(names):
            raise DataError(
                f"row {number + 1}: label {value!r} in column {column!r} is none of the model's {len(names)} labels "
                f"({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"
            )
        ids[number] = found
    return ids


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and _INTEGER.fullmatch(value) is not None)


def _digest(texts: Sequence[Text], labels: NDArray[np.int64]) -> str:
    content = json.dumps([texts, labels.tolist()], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
