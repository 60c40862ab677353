"""Read jsonl, csv and tsv row by row: each with its line, what is wrong with it, and where the next begins."""

import codecs
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from potstill.data.formats import find_dialect
from potstill.errors import DataError

LONGEST_LINE = 16 * 2**20
"""Bytes of one line; a longer one is refused, because a row is held in memory."""
_OVER = f"is over {LONGEST_LINE} bytes"
_NOT_UTF8 = "is not UTF-8; convert the file first (iconv -f latin1 -t utf-8, if that is what it is)"
_BLANK = b" \t\r\n"
"""The white space of JSON."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on: bytes (rows, of parquet) from the beginning, and lines read so far."""

    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the input."""

    line: int
    """Its line, the first is 1; of parquet its number."""
    after: Place
    """Where the next row begins."""
    weight: int
    """About how many bytes it takes."""
    values: Mapping[str, Any] | None
    """By column; None if it could not be read."""
    problem: str | None = None
    """What is wrong with it."""
    raw: bytes | None = None
    """The JSON object as it stood in the file."""
    block: Any = None
    """The pyarrow record batch that holds it, and `index` its row there."""
    index: int = 0


class Source(Protocol):
    """An input file."""

    name: str
    """What messages call it."""
    unit: str
    """What `Row.line` counts: line or row."""
    size: int
    """The offset at its end; 0 if nobody knows."""
    is_stream: bool
    """Whether it can be read only once."""
    needed: Sequence[str] | None
    """The columns that `Row.values` must have; None is all. Only parquet leaves the others out."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that every row has; None if each row names its own."""

    def rows(self, start: Place) -> Iterator[Row]:
        """Give every row from a place on; blank lines are none."""


class JsonLines:
    """One JSON object per line."""

    unit = "line"
    columns = None
    needed: Sequence[str] | None = None

    def __init__(self, file: Path | None, stream: BinaryIO | None = None) -> None:
        """Read a file, or a stream that is open already and cannot be read twice.

        Raises:
            DataError: if the file is UTF-16.
        """
        self.is_stream = stream is not None
        self._file, self._stream = file, stream
        self.name = str(file) if file else "standard input"
        self.size = file.stat().st_size if file else 0
        if file is not None:
            _refuse_utf16(file)

    def rows(self, start: Place) -> Iterator[Row]:
        """Give every row from a place on."""
        with _opened(self._file, self._stream, start) as stream:
            begin = start
            for line, place in _lines(stream, start):
                if isinstance(line, _TooLong):
                    yield _unreadable(place, begin, _OVER)
                elif text := (line.removeprefix(codecs.BOM_UTF8) if place.line == 1 else line).strip(_BLANK):
                    values, problem = _object(text)
                    yield Row(
                        line=place.line, after=place, weight=len(line), values=values, problem=problem,
                        raw=None if problem else text,
                    )  # fmt: skip
                begin = place


class Separated:
    """csv or tsv, its delimiter and quotation marks as the reader of data sets finds them."""

    unit = "line"
    is_stream = False
    needed: Sequence[str] | None = None

    def __init__(self, file: Path) -> None:
        """Read the head.

        Raises:
            DataError: if there is none, it names a column twice, or the file is UTF-16.
        """
        self._file = file
        self.name, self.size = str(file), file.stat().st_size
        _refuse_utf16(file)
        self._dialect = find_dialect(file)
        head, self._begin = self._read_head()
        if not head or len(set(head)) < len(head):
            raise DataError(f"{file} line 1 is not a head of columns, each with a name of its own")
        self.columns: tuple[str, ...] = tuple(head)

    def rows(self, start: Place) -> Iterator[Row]:
        """Give every row from a place on; the beginning is behind the head."""
        for cells, problem, begin, after in self._records(start if start.offset else self._begin):
            if problem is None and len(cells) != len(self.columns):
                problem = f"has {len(cells)} columns, the head has {len(self.columns)}"
                if after.line - begin.line > 1:  # a stray quotation mark makes one row of several
                    raise self._uncertain(begin, problem)
            yield Row(
                line=begin.line + 1, after=after, weight=after.offset - begin.offset, problem=problem,
                values=None if problem else dict(zip(self.columns, cells, strict=True)),
            )  # fmt: skip

    def _read_head(self) -> tuple[list[str], Place]:
        for cells, problem, begin, after in self._records(Place()):
            if problem:
                raise DataError(f"{self.name} line {begin.line + 1} {problem}")
            return cells, after
        raise DataError(f"{self.name} is empty; it needs a head of columns")

    def _records(self, start: Place) -> Iterator[tuple[list[str], str | None, Place, Place]]:
        """Give the cells of each record, what is wrong with it, and the places before and behind it.

        Raises:
            DataError: where a record cannot be read and it is not certain where it ends, so that rows could be lost.
        """
        with _opened(self._file, None, start) as stream, _long_cells():
            feed = _Feed(_lines(stream, start), start, quotes=self._dialect["quoting"] != csv.QUOTE_NONE)
            reader = csv.reader(feed, strict=True, **self._dialect)
            while True:
                begin = feed.begin()
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    cells = []
                    # Python's own words for it speak of how a file is opened.
                    why = "a carriage return without a line feed" if "new-line" in str(error) else error
                    feed.spoil(f"is not {self._file.suffix.removeprefix('.')}: {why}")
                if feed.problem and feed.is_spoilt and not feed.ends_for_sure:
                    raise self._uncertain(begin, feed.problem)
                if cells or feed.problem:
                    yield cells, feed.problem, begin, feed.place

    def _uncertain(self, begin: Place, problem: str) -> DataError:
        return DataError(
            f"{self.name} line {begin.line + 1} {problem}; it is not certain where this row ends, so those behind it "
            "could be lost: mend the file first"
        )


class _Feed:
    """Hand lines to a csv reader, which takes as many as a record has, and keep where it is.

    Args:
        lines: from `_lines`.
        start: where they begin.
        quotes: whether a quotation mark may hold a line break.
    """

    def __init__(self, lines: "Iterator[tuple[bytes | _TooLong, Place]]", start: Place, *, quotes: bool) -> None:
        self._lines, self.place, self._has_quotes = lines, start, quotes
        self.problem: str | None = None
        """What is wrong with the record."""
        self.is_spoilt = False
        """Whether the reader has not seen it as it is, or could not read it."""
        self._count = self._quotes = 0
        self._ended = False

    def begin(self) -> Place:
        """Begin a record, and return where."""
        self.problem, self.is_spoilt = None, False
        self._count = self._quotes = 0
        return self.place

    def spoil(self, problem: str) -> None:
        """Note that the record cannot be read; the first reason stands."""
        self.problem, self.is_spoilt = self.problem or problem, True

    @property
    def ends_for_sure(self) -> bool:
        """Return whether the record ends with the line that it began with, quotation marks being what they may."""
        return self._count == 1 and (self._quotes % 2 == 0 or self._ended)

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        try:
            line, self.place = next(self._lines)
        except StopIteration:
            self._ended = True
            raise
        self._count += 1
        if self._has_quotes:
            self._quotes += line.quotes if isinstance(line, _TooLong) else line.count(b'"')
        if isinstance(line, _TooLong):
            self.spoil(_OVER)
            return "\n"
        try:
            return (line.removeprefix(codecs.BOM_UTF8) if self.place.line == 1 else line).decode()
        except UnicodeDecodeError:
            self.problem = self.problem or _NOT_UTF8
            return line.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class _TooLong:
    """A line that was read past."""

    quotes: int
    """How many quotation marks it has."""


def _lines(stream: BinaryIO, start: Place) -> "Iterator[tuple[bytes | _TooLong, Place]]":
    """Give each line with the place behind it."""
    offset, number = start.offset, start.line
    while line := stream.readline(LONGEST_LINE + 1):
        offset, number = offset + len(line), number + 1
        if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
            yield line, Place(offset, number)
            continue
        quotes, rest = line.count(b'"'), line
        while not rest.endswith(b"\n") and (rest := stream.readline(LONGEST_LINE)):
            offset += len(rest)
            quotes += rest.count(b'"')
        yield _TooLong(quotes), Place(offset, number)


def _refuse_utf16(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(
                f"{file} is UTF-16, and answers are written in UTF-8; convert it first (iconv -f utf-16 -t utf-8)"
            )


@contextmanager
def _opened(file: Path | None, stream: BinaryIO | None, start: Place) -> Iterator[BinaryIO]:
    if stream is not None:
        yield stream
        return
    if file is None:
        raise DataError("there is neither a file nor a stream to read")
    with file.open("rb") as opened:
        opened.seek(start.offset)
        yield opened


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let a cell be as long as a line; the csv module stops at 131,072 characters."""
    usual = csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _object(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        content = json.loads(line, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return None, _NOT_UTF8
    except json.JSONDecodeError as error:
        return None, f"is not JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON: {_reason(error)}"
    return (content, None) if isinstance(content, dict) else (None, "is not an object with columns")


def _reason(error: Exception) -> str:
    """Say it without what the line holds: Python's own messages may quote a number."""
    return str(error) if isinstance(error, _ConstantError) else "nested too deep, or a number too long"


class _ConstantError(ValueError):
    """NaN and its like, which JSON does not have."""


def _refuse_constant(name: str) -> Any:
    raise _ConstantError(f"it holds {name}")


def _unreadable(after: Place, begin: Place, problem: str) -> Row:
    return Row(line=after.line, after=after, weight=min(after.offset - begin.offset, 64), values=None, problem=problem)
