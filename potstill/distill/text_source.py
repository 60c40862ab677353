"""Unlabelled texts one after another, from files of any size, the hub, or Python's own documentation."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from potstill.data import splits
from potstill.data.columns import TEXT_REMEDY, find_column, split_names
from potstill.data.formats import SUFFIXES as TABLES
from potstill.data.formats import arrow_columns, lines_of, read_file
from potstill.data.python_docs import read_python_docs
from potstill.data.splits import is_held_out, parse_split
from potstill.errors import DataError
from potstill.hub import check_name
from potstill.tasks import TEXT_NAMES

SUFFIXES = (*TABLES, ".txt")


def find_files(name: str, split: str) -> list[Path] | None:
    """Return the files of a split as `potstill.data` finds them; a text file is one, too."""
    return splits.find_files(name, parse_split(split)[0], SUFFIXES)


def read_texts(name: str, *, split: str, files: list[Path] | None, column: str | None) -> Iterator[str]:
    """Yield the texts of files, or of `python-docs`, in their order; blank ones are left out.

    Files are read as a stream, whatever their size; only a `.json` array is held whole.

    Raises:
        DataError: with the file and the row, at the first row that cannot be read.
    """
    base, part = parse_split(split)
    for text in _all_texts(base, files=files, column=column):
        if part is None or is_held_out(text) == (part == splits.HELD_OUT):
            yield text


def _all_texts(split: str, *, files: list[Path] | None, column: str | None) -> Iterator[str]:
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
    if parse_split(split)[1] is not None:
        raise DataError(f"no texts can be held out of {name!r}, which is on the hub; name its split to score on")
    check_name(name, "dataset")
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


def pick_column(columns: Sequence[str], asked: str | None, *, origin: str) -> str:
    """Return the asked column if it is there, else the first that is known to hold text.

    Raises:
        DataError: naming the columns that there are.
    """
    names = split_names([asked], columns) if asked else list(TEXT_NAMES)
    for name in names:
        found = name if asked and name in columns else find_column(name, columns)
        if found is not None:
            return found
    wanted = f"no column {asked!r}" if asked else f"none of the columns {', '.join(TEXT_NAMES)}"
    raise DataError(f"{origin} has {wanted}; it has {', '.join(columns) or 'none'}; {TEXT_REMEDY}")


def _texts_of(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    """Yield (row or line number from 1, text)."""
    if file.suffix == ".txt":
        yield from enumerate((line.rstrip("\r\n") for line in lines_of(file)), 1)
        return
    chosen = ""
    if file.suffix in (".parquet", ".arrow"):
        chosen = pick_column(arrow_columns(file), column, origin=str(file))
    for number, row in read_file(file, [chosen] if chosen else None):
        chosen = chosen or pick_column(list(row), column, origin=f"{file} row {number}")
        if chosen not in row:
            raise DataError(f"{file} row {number} has no column {chosen!r}; it has {', '.join(row) or 'none'}")
        yield number, row[chosen]
