"""Rows of columns, from the hub, from local files, or from the documentation that Python carries."""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from potstill.errors import DataError
from potstill.extras import require
from potstill.pydocs import CHAPTERS, read_python_docs

Row: TypeAlias = dict[str, Any]
Names: TypeAlias = Mapping[str, Sequence[str]]

PYTHON_DOCS = "python-docs"
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_rows(name: str, split: str) -> tuple[list[Row], Names]:
    """Return the rows of a split, and by column the label names that the data set itself has.

    Raises:
        DataError: if there is no such data set or split, a file is broken, or it has no rows.
        MissingExtraError: if a hub id or parquet file needs a library that is not installed.
    """
    rows, names = _read(name, split)
    if not rows:
        raise DataError(f"{name} has no rows in its split {split!r}")
    return rows, names


def _read(name: str, split: str) -> tuple[list[Row], Names]:
    path = Path(name).expanduser()
    if name == PYTHON_DOCS:
        return [{"text": text, "label": chapter} for text, chapter in read_python_docs(split)], {"label": CHAPTERS}
    if path.is_file():
        return _read_file(path), {}
    if path.is_dir():
        return _read_file(_split_file(path, split)), {}
    if name.startswith((".", "/", "~")) or path.suffix in _SUFFIXES or name.count("/") > 1:
        raise DataError(
            f"there is no file or folder {name}; name a data folder, a file, or a hub id such as nyu-mll/glue:sst2"
        )
    return _read_hub(name, split)


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


def _read_hub(name: str, split: str) -> tuple[list[Row], Names]:
    datasets = require("datasets", extra="distill")
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # the hub client raises many kinds, all meaning the same here
        raise DataError(
            f"cannot load {name!r} ({split}) from the hub: {_short(error)}; check the name and the network, "
            "or pass a folder with train and validation files"
        ) from error
    return list(loaded), {column: names for column, feature in loaded.features.items() if (names := _names(feature))}


def _names(feature: Any) -> Sequence[str] | None:
    """Return the names of a column of labels, or of lists of labels."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return tuple(names) if names else None


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
