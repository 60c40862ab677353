"""Read data files row by row, whatever their format, encoding and dialect, for every command; no row is lost.

jsonl and json (also SQuAD's nesting, `{"data": [...]}` and pandas' `split`), csv and tsv with any of the usual
delimiters, parquet, and arrow as `datasets` writes it. What a file does not say of itself (the delimiter, whether a
tsv quotes its cells) is taken from its content; where two readings are possible, the one that keeps every line.

A `DataFile` gives `Record`s: a row's values, or what is wrong with it, and the place where the next row begins, from
which another process can go on. `read_rows` is for those who want every row or an error.
"""

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol, TypeAlias

from potstill.errors import DataError, MissingExtraError
from potstill.extras import require
from potstill.messages import first_line

Row: TypeAlias = dict[str, Any]
"""A row's values by column."""
# pyarrow comes without types.
Batch: TypeAlias = Any
Schema: TypeAlias = Any

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
LONGEST_LINE = 16 * 2**20
"""Bytes of one line that are read where rows come from strangers; a row is held in memory."""

_DELIMITERS = (",", ";", "\t", "|")
# Records that must agree on a delimiter before it is believed.
_LOOKED_AT = 1000
# Longer than any cell that a reader could mean; Python's own limit (128 KiB) is shorter than some articles.
_LONGEST_CELL = 2**31 - 1
# Rows of parquet that are decoded at once.
_ROWS_AT_ONCE = 256
_READ_BUFFER_BYTES = 2**20
_NOT_UTF8 = "is not UTF-8; convert the file first (iconv -f latin1 -t utf-8, if that is what it is)"
# The white space of JSON: a line of nothing else is no row.
_BLANK = b" \t\r\n"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Place(NamedTuple):
    """Where reading goes on: bytes (rows, of parquet) from the beginning, and lines read so far."""

    offset: int = 0
    line: int = 0


BEGIN = Place()


@dataclass(slots=True, kw_only=True)
class Record:
    """One row of a file, or why it cannot be read."""

    number: int
    """Its line, the first is 1; the row's number where a file has no lines."""
    after: Place
    """Where the next row begins."""
    weight: int
    """About how many bytes it takes."""
    values: Row | None
    """None if it could not be read."""
    problem: str | None = None
    """What is wrong with it, without what it holds."""
    raw: bytes | None = None
    """The JSON object as it stood in the file."""
    batch: Batch = None
    """Of parquet, the pyarrow.RecordBatch that holds it, at `index`."""
    index: int = 0


class DataFile(Protocol):
    """A data file, made by `open_data_file`."""

    name: str
    """What messages call it."""
    unit: str
    """What `Record.number` counts: line or row."""
    size: int
    """The offset at its end; 0 if that is not known."""
    is_stream: bool
    """Whether it can be read only once."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that every row has; None if each row names its own."""

    def records(
        self, start: Place = BEGIN, *, columns: Sequence[str] | None = None, decoded: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Give every row from a place on; blank lines are none.

        Args:
            start: the beginning, or the `after` of a record.
            columns: of parquet and arrow only these are read; None is all.
            decoded: of parquet and arrow only these are in `Record.values`; None is all that are read.

        Raises:
            DataError: where it is not certain where a row ends, so that rows could be lost.
        """


def open_data_file(file: Path, *, strict: bool = False) -> DataFile:
    """Open a file whose suffix says the format.

    Args:
        file: one of `SUFFIXES`.
        strict: refuse what cannot be written out again as it stood, or not be held in memory: UTF-16, NaN in JSON, and
            lines over `LONGEST_LINE`.

    Raises:
        DataError: if it is of another kind, or damaged so that no row can be read.
        MissingExtraError: if parquet or arrow is to be read without pyarrow.
    """
    match file.suffix:
        case ".jsonl":
            return JsonLinesFile(file, strict=strict)
        case ".json":
            return _open_json(file)
        case ".csv" | ".tsv":
            return SeparatedFile(file, strict=strict)
        case ".parquet":
            return ParquetFile(file)
        case ".arrow":
            return _RowsFile(file, lambda columns: _arrow_rows(file, columns), tuple(arrow_schema(file).names))
    raise DataError(f"{file} is not a data file; its name must end in {', '.join(SUFFIXES)}")


def read_rows(file: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file with their numbers: lines, or rows where there are none; both from 1.

    Args:
        file: its suffix says the format.
        columns: of parquet and arrow only these are read; None is all.

    Raises:
        DataError: naming the line or row, at the first that cannot be read.
        MissingExtraError: if parquet or arrow is to be read without pyarrow.
    """
    opened = open_data_file(file)
    for record in opened.records(columns=columns):
        if record.values is None:
            raise DataError(f"{file} {opened.unit} {record.number} {record.problem}")
        yield record.number, record.values


# Lines of text


def text_lines(file: Path, *, errors: str = "strict") -> Iterator[str]:
    """Yield the lines of a text file with their ends; only line feeds end one.

    UTF-8 with or without the byte-order mark that spreadsheets write, or UTF-16 with its own.

    Args:
        file: to read.
        errors: `replace` reads what is no text of this encoding as U+FFFD.

    Raises:
        DataError: at the first line that is no text of this encoding.
    """
    if _is_utf16(file):
        yield from _utf16_lines(file, errors)
        return
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
            except UnicodeDecodeError as error:
                raise DataError(f"{file} line {number} {_NOT_UTF8}") from error


def _is_utf16(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) in _UTF16_MARKS


def _utf16_lines(file: Path, errors: str) -> Iterator[str]:
    try:
        with file.open(encoding="utf-16", errors=errors, newline="\n") as stream:
            yield from stream
    except UnicodeError as error:
        raise DataError(f"{file} is not UTF-16, as its first bytes say: {error}; convert the file first") from error


@dataclass(frozen=True, slots=True)
class _TooLong:
    """A line that was read past."""

    quotes: int
    """How many quotation marks it has."""


_Line: TypeAlias = bytes | _TooLong


class _LineFile:
    """The lines of a file as UTF-8, each with the place behind it."""

    unit = "line"

    def __init__(self, file: Path | None, stream: BinaryIO | None = None, *, strict: bool) -> None:
        self._file, self._stream = file, stream
        self.is_stream = stream is not None
        self.name = str(file) if file else "standard input"
        self.size = file.stat().st_size if file else 0
        self._longest = LONGEST_LINE if strict else None
        self._is_utf16 = file is not None and _is_utf16(file)
        if self._is_utf16 and strict:
            raise DataError(
                f"{file} is UTF-16, and answers are written in UTF-8; convert it first (iconv -f utf-16 -t utf-8)"
            )

    def lines(self, start: Place) -> Iterator[tuple[_Line, Place]]:
        """Give each line from a place on, without the byte-order mark."""
        if self._is_utf16 and self._file is not None:  # places are in UTF-8 here: nobody goes on with such a file
            place = Place()
            for line in _utf16_lines(self._file, "strict"):
                content = line.encode("utf-8", "surrogatepass")
                place = Place(place.offset + len(content), place.line + 1)
                if place.line > start.line:
                    yield content, place
        elif self._stream is not None:
            yield from self._lines_of(self._stream, start)
        elif self._file is not None:
            with self._file.open("rb") as opened:
                opened.seek(start.offset)
                yield from self._lines_of(opened, start)

    def _lines_of(self, stream: BinaryIO, start: Place) -> Iterator[tuple[_Line, Place]]:
        offset, number = start
        limit = -1 if self._longest is None else self._longest + 1
        while line := stream.readline(limit):
            offset, number = offset + len(line), number + 1
            if self._longest is None or len(line) <= self._longest or line.endswith(b"\n"):
                yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, Place(offset, number)
                continue
            quotes, rest = line.count(b'"'), line
            while not rest.endswith(b"\n") and (rest := stream.readline(self._longest)):
                offset += len(rest)
                quotes += rest.count(b'"')
            yield _TooLong(quotes), Place(offset, number)

    def too_long(self) -> str:
        """Return what is said of a line that was read past."""
        return f"is over {self._longest} bytes"


# JSON


class JsonLinesFile(_LineFile):
    """One JSON object per line, of a file or of a stream that is open already and cannot be read twice."""

    columns = None

    def __init__(self, file: Path | None, stream: BinaryIO | None = None, *, strict: bool = False) -> None:
        """Open the file, see `open_data_file`."""
        super().__init__(file, stream, strict=strict)
        self._decode = json.JSONDecoder(parse_constant=_refuse_constant if strict else None).decode

    def records(
        self, start: Place = BEGIN, *, columns: Sequence[str] | None = None, decoded: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Give every row from a place on."""
        begin = start
        for line, place in self.lines(start):
            if isinstance(line, _TooLong):
                weight = min(place.offset - begin.offset, 64)
                yield Record(number=place.line, after=place, weight=weight, values=None, problem=self.too_long())
            elif text := line.strip(_BLANK):
                values, problem = self._parse(text)
                raw = None if problem else text
                yield Record(number=place.line, after=place, weight=len(line), values=values, problem=problem, raw=raw)
            begin = place

    def _parse(self, line: bytes) -> tuple[Row | None, str | None]:
        """Return the object of a line, or what is wrong without what it holds, which Python's messages may quote."""
        try:
            content = self._decode(line.decode())
        except UnicodeDecodeError:
            return None, _NOT_UTF8
        except json.JSONDecodeError as error:
            return None, f"is not JSON: {error.msg} at character {error.pos + 1}"
        except _ConstantError as error:
            return None, f"is not JSON: {error}"
        except (ValueError, RecursionError):
            return None, "is not JSON: nested too deep, or a number too long"
        if isinstance(content, dict):
            return content, None
        hint = "; a file that is one array ends in .json" if isinstance(content, list) else ""
        return None, f"is not an object with columns{hint}"


class _ConstantError(ValueError):
    """NaN and its like, which JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(f"it holds {name}")


class _RowsFile:
    """Rows that are read some other way, numbered from 1."""

    unit = "row"
    is_stream = False
    size = 0

    def __init__(
        self, file: Path, read: Callable[[Sequence[str] | None], Iterable[Row]], columns: tuple[str, ...] | None = None
    ) -> None:
        self.name, self.columns, self._read = str(file), columns, read

    def records(
        self, start: Place = BEGIN, *, columns: Sequence[str] | None = None, decoded: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Give every row from a place on."""
        for number, row in enumerate(self._read(decoded or columns), 1):
            if number > start.offset:
                yield Record(number=number, after=Place(number, number), weight=0, values=row)


def _open_json(file: Path) -> DataFile:
    content = "".join(text_lines(file))
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        # Many tools, `datasets` among them, write one object per line into .json.
        if error.msg == "Extra data" and content.lstrip().startswith("{"):
            return JsonLinesFile(file)
        raise DataError(f"{file} is not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if isinstance(document, dict):
        if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):  # pandas' split
            columns, cells = document["columns"], document["data"]
            return _RowsFile(file, lambda _: _split_rows(columns, cells, file))
        # A wrapper such as {"version": ..., "data": [...]}: the rows are its only list of objects.
        lists = [value for value in document.values() if _is_table(value)]
        if len(lists) == 1:
            document = lists[0]
    if not (_is_table(document) or document == []):
        raise DataError(
            f"{file} is not a JSON array of objects with columns; write one object per row, "
            '[{"text": ..., "label": ...}, ...], or one per line into .jsonl'
        )
    rows: list[Row] = document
    is_squad = all(isinstance(row.get("paragraphs"), list) for row in rows)
    return _RowsFile(file, lambda _: _squad_rows(rows, file) if is_squad else rows)


def _split_rows(columns: Sequence[object], cells: Sequence[object], file: Path) -> Iterator[Row]:
    for number, row in enumerate(cells, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise DataError(
                f"{file} row {number} of data is no list of {len(columns)} cells, one for each of its columns; write "
                "the file again"
            )
        yield dict(zip(map(str, columns), row, strict=True))


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _squad_rows(articles: Sequence[Row], file: Path) -> Iterator[Row]:
    """Flatten SQuAD's own files: articles with paragraphs, each a context with questions."""
    try:
        for title, paragraph in ((each.get("title"), part) for each in articles for part in each["paragraphs"]):
            for asked in paragraph["qas"]:
                answers = [] if asked.get("is_impossible") else asked.get("answers") or []
                yield {
                    "id": asked.get("id"),
                    "title": title,
                    "context": paragraph["context"],
                    "question": asked["question"],
                    "answers": [{"text": one["text"], "answer_start": one["answer_start"]} for one in answers],
                }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is nested like SQuAD, but lacks {error}; expected paragraphs with context and qas, each with "
            "question and answers"
        ) from error


# csv and tsv


class Dialect(NamedTuple):
    """How a table's cells are parted."""

    delimiter: str
    has_quotes: bool
    """Whether a quotation mark may hold delimiters and line breaks, as csv has it."""

    def reader(self, lines: Iterable[str]) -> "Iterator[list[str]]":
        """Return Python's reader of these lines.

        It is strict: otherwise a quotation mark that is never closed swallows the rows behind it without a word.
        """
        if not self.has_quotes:
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, strict=True)


class SeparatedFile(_LineFile):
    """csv or tsv: a head of columns, and a record per row; a file that is empty has no columns."""

    def __init__(self, file: Path, *, strict: bool = False) -> None:
        """Find the dialect and read the head.

        Raises:
            DataError: if the head cannot be read, names a column twice, or is of another encoding.
        """
        super().__init__(file, strict=strict)
        self._dialect = find_dialect(file)
        self._kind = file.suffix.removeprefix(".")
        self._remedy = (
            f"a cell that holds quotation marks, {self._dialect.delimiter!r} or line breaks stands in quotation marks, "
            "and its own are doubled"
        )
        cells, problem, begin, self._begin = next(self._cells(Place()), ([], None, Place(), Place()))
        if problem:
            raise DataError(f"{file} line {begin.line + 1} {problem}")
        if any("\0" in name for name in cells):
            raise DataError(
                f"{file} line {begin.line + 1}: the head holds NUL, so this is no UTF-8 but UTF-16 or UTF-32; convert "
                "the file first (iconv -f utf-16le -t utf-8, if that is what it is)"
            )
        repeated = next((name for name in cells if cells.count(name) > 1), None)
        if repeated is not None:
            raise DataError(
                f"{file} line {begin.line + 1}: the head names {repeated!r} twice; give each column its own name"
            )
        self.columns: tuple[str, ...] = tuple(cells)

    def records(
        self, start: Place = BEGIN, *, columns: Sequence[str] | None = None, decoded: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Give every row from a place on; the beginning is behind the head."""
        for cells, problem, begin, after in self._cells(start if start.offset else self._begin):
            if problem is None and len(cells) != len(self.columns):
                problem = (
                    f"has {len(cells)} columns, the head has {len(self.columns)}; quote cells that hold "
                    f"{self._dialect.delimiter!r}"
                )
                if after.line - begin.line > 1:  # a stray quotation mark makes one row of several
                    raise self._uncertain(begin, problem)
            yield Record(
                number=begin.line + 1,
                after=after,
                weight=after.offset - begin.offset,
                problem=problem,
                values=None if problem else dict(zip(self.columns, cells, strict=True)),
            )

    def _cells(self, start: Place) -> Iterator[tuple[list[str], str | None, Place, Place]]:
        """Give the cells of each record, what is wrong with it, and the places before and behind it.

        Raises:
            DataError: where a record cannot be read and it is not certain where it ends.
        """
        feed = _Feed(self.lines(start), start, has_quotes=self._dialect.has_quotes, too_long=self.too_long())
        reader = self._dialect.reader(feed)
        while True:
            begin = feed.begin()
            try:
                with _long_cells(self._longest or _LONGEST_CELL):
                    cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = []
                # Python's own words for it speak of how a file is opened.
                why = "a carriage return without a line feed" if "new-line" in str(error) else error
                feed.spoil(f"is not {self._kind}: {why}; {self._remedy}")
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
        lines: from `_LineFile.lines`.
        start: where they begin.
        has_quotes: whether a quotation mark may hold a line break.
        too_long: what is said of a line that was read past.
    """

    def __init__(self, lines: Iterator[tuple[_Line, Place]], start: Place, *, has_quotes: bool, too_long: str) -> None:
        self._lines, self.place, self._has_quotes, self._too_long = lines, start, has_quotes, too_long
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
            self.spoil(self._too_long)
            return "\n"
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.problem = self.problem or _NOT_UTF8
            return line.decode(errors="replace")


@contextmanager
def _long_cells(longest: int = _LONGEST_CELL) -> Iterator[None]:
    """Lift Python's limit on a cell, which is one for all readers of this process."""
    usual = csv.field_size_limit(longest)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def find_dialect(file: Path) -> Dialect:
    """Return the delimiter that gives every record as many cells as the head, the suffix's own first; and quoting."""
    usual = "\t" if file.suffix == ".tsv" else ","
    dialects = []
    for delimiter in (usual, *(other for other in _DELIMITERS if other != usual)):
        dialects.append(Dialect(delimiter, delimiter != "\t" or _quotes_cells(file)))
        widths = _widths(file, dialects[-1], most=_LOOKED_AT)
        if widths and len(set(widths)) == 1 and widths[0] > 1:
            return dialects[-1]
    return dialects[0]


def _widths(file: Path, dialect: Dialect, *, most: int | None = None) -> list[int] | None:
    """Return how many cells the first records have; None if they cannot be read so."""
    try:
        with _long_cells():
            records = filter(None, dialect.reader(text_lines(file, errors="replace")))
            return [len(cells) for cells in itertools.islice(records, most)]
    except (csv.Error, DataError):
        return None


def _quotes_cells(file: Path) -> bool:
    """Return whether a tab-separated file quotes its cells as csv does.

    GLUE's own files quote nothing: a lone quotation mark in them is text. Others, as pandas and spreadsheets write
    them, quote what holds tabs, line breaks or quotation marks. A file is read as quoted if its lines alone make no
    table, or if the quotes show that they are no text: doubled ones inside, in the head, or around all of a column.
    """
    lines = (line.rstrip("\r\n").split("\t") for line in text_lines(file, errors="replace"))
    head = next(lines, [])
    count, is_table, doubled = 0, True, False
    bare = dict.fromkeys(range(len(head)), False)
    opened = any(map(_is_quoted, head))
    in_head = opened
    for cells in lines:
        if cells == [""]:
            continue
        count += 1
        is_table &= len(cells) == len(head)
        for place, cell in enumerate(cells):
            quoted = _is_quoted(cell)
            opened |= cell.startswith('"')
            doubled |= quoted and '""' in cell[1:-1]
            bare[place] = bare.get(place, False) or not quoted
    if not opened:
        return False
    whole_column = count > 0 and not all(bare.values())
    widths = _widths(file, Dialect("\t", has_quotes=True))
    if widths is None or (set(widths) != {len(head)} and is_table):
        return False
    return not is_table or ((in_head or doubled or whole_column) and len(widths) == count + 1)


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


# parquet and arrow


class ParquetFile:
    """A parquet file, read a few rows at a time."""

    unit = "row"
    is_stream = False

    def __init__(self, file: Path) -> None:
        """Read the file's schema.

        Raises:
            DataError: if it is not parquet, or names a column twice.
            MissingExtraError: if pyarrow is not installed.
        """
        self._file, self.name = file, str(file)
        with self._open() as opened:
            self.columns: tuple[str, ...] = tuple(opened.schema_arrow.names)
            self.size = opened.metadata.num_rows
        if len(set(self.columns)) < len(self.columns):
            raise DataError(f"{file} has two columns of one name; give each a name of its own")

    def records(
        self, start: Place = BEGIN, *, columns: Sequence[str] | None = None, decoded: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Give every row from a place on."""
        with self._open() as opened:
            number, groups = 0, list[int]()
            for group in range(opened.metadata.num_row_groups):
                rows = opened.metadata.row_group(group).num_rows
                if groups or number + rows > start.offset:
                    groups.append(group)
                else:
                    number += rows
            try:
                batches = opened.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=groups, columns=columns)
                for batch in batches if groups else ():
                    if number + batch.num_rows > start.offset:
                        yield from _records_of(batch, number, skip=max(0, start.offset - number), decoded=decoded)
                    number += batch.num_rows
            except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
                raise DataError(f"{self._file} is damaged behind row {number}: {first_line(error)}") from error
            if number != self.size:
                raise DataError(f"{self._file} has {number} rows, and its own count says {self.size}; it is damaged")

    def _open(self) -> Any:
        try:
            return pyarrow("pyarrow.parquet").ParquetFile(self._file, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{self._file} is not a parquet file: {first_line(error)}") from error


def _records_of(batch: Batch, before: int, *, skip: int, decoded: Sequence[str] | None) -> Iterator[Record]:
    """Give the rows of a batch, which has `before` rows before it, without the first few."""
    weight = 1 + batch.nbytes // max(1, batch.num_rows)
    rows = (batch if decoded is None else batch.select(decoded)).to_pylist()
    for index, values in enumerate(rows[skip:], skip):
        number = before + index + 1
        after = Place(number, number)
        yield Record(number=number, after=after, weight=weight, values=values, batch=batch, index=index)


def pyarrow(module: str = "pyarrow") -> ModuleType:
    """Import a module of pyarrow.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return require(module, extra="parquet")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}, or convert the file to .jsonl") from error


def _arrow_rows(file: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    try:
        reader = _ipc_reader(file)
        is_stream = hasattr(reader, "read_next_batch")
        for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
            yield from (batch.select(columns) if columns else batch).to_pylist()
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not an arrow file: {first_line(error)}") from error


def _ipc_reader(file: Path) -> Any:
    ipc, source = pyarrow("pyarrow.ipc"), pyarrow().memory_map(str(file))
    try:
        return ipc.open_stream(source)
    except ValueError:
        source.seek(0)
        return ipc.open_file(source)


def arrow_schema(file: Path) -> Schema:
    """Return the pyarrow.Schema of a parquet or arrow file.

    Raises:
        DataError: if it is none.
    """
    is_parquet = file.suffix == ".parquet"
    try:
        return pyarrow("pyarrow.parquet").read_schema(file) if is_parquet else _ipc_reader(file).schema
    except (ValueError, OSError) as error:
        kind = "a parquet" if is_parquet else "an arrow"
        raise DataError(f"{file} is not {kind} file: {first_line(error)}") from error
