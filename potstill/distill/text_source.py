"""Unlabelled texts one after another, from files of any size, the hub, or Python's own documentation."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from potstill.data import PYTHON_DOCS
from potstill.errors import DataError
from potstill.pydocs import read_python_docs

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
TEXT_COLUMNS = ("text", "sentence", "content", "document", "article", "passage")
"""Column names that public corpora use for the text, tried in this order."""

# Longer than any field that a reader could mean; Python's own limit (128 KiB) is shorter than some articles.
_LONGEST_CSV_FIELD = 2**31 - 1


def find_files(name: str, split: str) -> list[Path] | None:
    """Return the files of a split in their order, or None where `name` is no path but a hub id or `python-docs`.

    In a folder they are `SPLIT.suffix`, or the shards `SPLIT-*.suffix`; a file is itself.

    Raises:
        DataError: if the path does not exist, or the folder has no such file.
    """
    path = Path(name).expanduser()
    if name == PYTHON_DOCS:
        return None
    if path.is_file():
        return [path]
    if path.is_dir():
        for pattern in (f"{split}{{}}", f"{split}-*{{}}"):
            for suffix in SUFFIXES:
                found = sorted(path.glob(pattern.format(suffix)))
                if found:
                    return found
        have = ", ".join(sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)) or "no data files"
        raise DataError(f"{path} has no {split}{{{','.join(SUFFIXES)}}} and no {split}-*; it has {have}")
    if name.startswith((".", "/", "~")) or path.suffix in SUFFIXES or name.count("/") > 1:
        raise DataError(f"there is no file or folder {name}; name a data folder, a file, or a hub id")
    return None


def read_texts(name: str, *, split: str, files: list[Path] | None, column: str | None) -> Iterator[str]:
    """Yield the texts of files, or of `python-docs`, in their order; blank ones are left out.

    Files are read as a stream, whatever their size; only a `.json` array is held whole.

    Raises:
        DataError: with the file and the row, at the first row that cannot be read.
    """
    if files is None:
        yield from (text for text, _ in read_python_docs(split))
        return
    for file in files:
        for number, text in _texts_of(file, column):
            if not isinstance(text, str):
                raise DataError(f"{file} row {number}: the text column holds {text!r}, not a text; mend or remove it")
            if text.strip():
                yield text


def read_hub(name: str, *, split: str, column: str | None, streaming: bool) -> tuple[Any, str]:
    """Return a split of the hub (`owner/name` or `owner/name:configuration`) and the name of its text column.

    Streaming, nothing is downloaded before the rows are read.

    Raises:
        DataError: if it cannot be loaded, or has no such column.
    """
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=split, streaming=streaming)
    except Exception as error:  # the hub client raises many kinds, all meaning the same here
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise DataError(
            f"cannot load {name!r} ({split}) from the hub: {reason}; check the name and the network, or pass a folder"
        ) from error
    columns = loaded.column_names or list(next(iter(loaded), {}))
    return loaded, pick_column(columns, column, origin=f"{name} ({split})")


def pick_column(columns: list[str], asked: str | None, *, origin: str) -> str:
    """Return the asked column if it is there, else the first that is known to hold text.

    Raises:
        DataError: naming the columns that there are.
    """
    for candidate in (asked,) if asked else TEXT_COLUMNS:
        if candidate in columns:
            return candidate
    wanted = f"no column {asked!r}" if asked else f"none of the columns {', '.join(TEXT_COLUMNS)}"
    raise DataError(f"{origin} has {wanted}; it has {', '.join(columns) or 'none'}; name the column of the text")


def _texts_of(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    """Yield (row or line number from 1, text)."""
    match file.suffix:
        case ".txt":
            return enumerate((line.rstrip("\r\n") for line in _lines(file)), 1)
        case ".parquet":
            return _parquet(file, column)
        case ".jsonl" | ".json" | ".csv" | ".tsv":
            return _cells(file, column)
    raise DataError(f"{file} is not a data file; its name must end in {', '.join(SUFFIXES)}")


def _cells(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    rows = {".jsonl": _json_lines, ".json": _json_array}.get(file.suffix, _separated)(file)
    chosen = ""
    for number, row in rows:
        chosen = chosen or pick_column(list(row), column, origin=f"{file} row {number}")
        if chosen not in row:
            raise DataError(f"{file} row {number} has no column {chosen!r}; it has {', '.join(row) or 'none'}")
        yield number, row[chosen]


def _lines(file: Path) -> Iterator[str]:
    """Yield lines, without the byte-order mark that spreadsheets write; only line feeds end one."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file} line {number} is not UTF-8; convert the file first") from error


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} row {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file} row {number} is not an object with columns")
        yield number, row


def _json_array(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads("".join(_lines(file)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} is not a JSON array of objects with columns; one object per line goes into .jsonl")
    return enumerate(rows, 1)


def _separated(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # GLUE's own .tsv files quote nothing, so a lone quotation mark in them is text.
    tabs = file.suffix == ".tsv"
    reader = csv.DictReader(
        _lines(file), delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    )
    for number in itertools.count(1):
        limit = csv.field_size_limit(_LONGEST_CSV_FIELD)  # of all readers of this process
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file} line {reader.line_num}: {error}") from error
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if None in row or None in row.values():
            raise DataError(f"{file} line {reader.line_num}: another number of columns than the head has")
        yield number, row


def _parquet(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        chosen = pick_column(table.schema_arrow.names, column, origin=str(file))
        batches = table.iter_batches(batch_size=1000, columns=[chosen])
        yield from enumerate(itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a parquet file: {str(error)[:200]}") from error
