"""Rows with their answers, as lines of jsonl or csv."""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.serve.bulk.rows import Row
from potstill.serve.tokenizer import without_surrogates
from potstill.tasks import TEXT_CLASSIFICATION


@dataclass(frozen=True, slots=True)
class Names:
    """The columns that are added."""

    answer: str
    keeps_problems: bool
    """Whether rows without an answer say why, in a column of their own."""

    @property
    def problem(self) -> str:
        """The column that says why there is no answer."""
        return f"{self.answer}_error"


@dataclass(frozen=True, slots=True)
class Answered:
    """A row and what the model says of it, or why it says nothing."""

    row: Row
    answer: Any
    problem: str | None


class Output(Protocol):
    """A format to write."""

    @property
    def head(self) -> list[str] | None:
        """The columns of every row, if the format has a head; part of what a resumed run must have the same."""

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return what is appended to the partial file for these rows; raise DataError if the format cannot hold it."""

    def begin_again(self, partial: Path, lengths: Sequence[int]) -> None:
        """Take note of what a resumed run has appended so far: parts of these lengths."""

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Return the file that becomes the output: the partial one, or `final`, made of it."""


class JsonLinesOutput:
    """One object per line: the input's as it was, and the answer behind it."""

    head = None

    def __init__(self, names: Names) -> None:
        """Remember which columns are added."""
        self._names = names

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return the lines."""
        return b"".join(map(self._line, answered))

    def begin_again(self, partial: Path, lengths: Sequence[int]) -> None:
        """Nothing is to be known."""

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Return the partial file: it is the output."""
        return partial

    def _line(self, answered: Answered) -> bytes:
        more = {self._names.answer: answered.answer}
        if answered.problem is not None:
            more[self._names.problem] = answered.problem
        row = answered.row
        if row.raw is None:
            return _dump({**(row.values or {}), **more}) + b"\n"
        # The object as it stood: numbers keep their digits, and what is there twice stays.
        before = row.raw[:-1].rstrip()
        return before + (b"" if before == b"{" else b", ") + _dump(more)[1:] + b"\n"


class CsvOutput:
    """One line per row; what is no text is JSON."""

    def __init__(self, names: Names, *, columns: Sequence[str], task: str) -> None:
        """Fix the head: the input's columns and what is added."""
        self._names, self._columns = names, list(columns)
        self._best = task == TEXT_CLASSIFICATION.name
        added = [names.answer]
        if self._best:
            added += [f"{names.answer}_label", f"{names.answer}_score"]
        if names.keeps_problems:
            added.append(names.problem)
        self.head: list[str] = [*self._columns, *added]

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return the lines, with the head before the first."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if is_first:
            writer.writerow(self.head)
        writer.writerows(map(self._cells, answered))
        return without_surrogates(text.getvalue()).encode()

    def begin_again(self, partial: Path, lengths: Sequence[int]) -> None:
        """Nothing is to be known."""

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Return the partial file: it is the output."""
        return partial

    def _cells(self, answered: Answered) -> list[str]:
        values, answer = answered.row.values or {}, answered.answer
        cells = [_cell(values.get(name)) for name in self._columns]
        cells.append("" if answer is None else _cell(answer))
        if self._best:
            cells += [str(answer[0]["label"]), repr(answer[0]["score"])] if answer else ["", ""]
        if self._names.keeps_problems:
            cells.append(answered.problem or "")
        return cells


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _text(value)


def _dump(content: Mapping[str, Any]) -> bytes:
    try:
        return _text(content).encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can write
        return json.dumps(content, default=_plain).encode()


def _text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    """Return what parquet has and JSON has not: bytes in base64, dates and decimals as they are usually written."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
