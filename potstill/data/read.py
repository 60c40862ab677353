"""Read data files row by row, whatever their format, encoding and dialect; no row is dropped silently.

Formats: jsonl and json (also SQuAD's nesting, `{"data": [...]}` and pandas' `split`), csv and tsv with any of the usual
delimiters, parquet, and arrow as `datasets` writes it. What a file does not declare (the delimiter, whether a tsv
quotes its cells) is found from its content; if two readings are possible, the one that keeps every line wins.

`open_data_file` returns a `DataFile`, which yields `Record`s: a row's values, or what is wrong with it, and the place
where the next row begins, from which another process can resume. `read_rows` yields every row or raises.
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
# pyarrow.RecordBatch and pyarrow.Schema: pyarrow is optional, and comes without types.
Batch: TypeAlias = Any
Schema: TypeAlias = Any

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
LONGEST_LINE = 16 * 2**20
"""Bytes of the longest line that is read with `strict`, for files of unknown origin: a row is held in memory."""

_DELIMITERS = (",", ";", "\t", "|")
# The number of records at the head of a file that must have equally many cells for a delimiter to be accepted.
_LOOKED_AT = 1000
# The largest C long of every platform; the csv module's default, 128 KiB, is shorter than some articles.
_LONGEST_CELL = 2**31 - 1
# Rows of parquet that are decoded to Python objects at once: a row group may hold a million.
_ROWS_AT_ONCE = 256
_READ_BUFFER_BYTES = 2**20
_NOT_UTF8 = "is not UTF-8; convert the file first (iconv -f latin1 -t utf-8, if that is what it is)"
# The white space of JSON (RFC 8259, section 2); strip() alone would also take \v and \f, which are an error in JSON.
_BLANK = b" \t\r\n"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Place(NamedTuple):
    """Where reading resumes: an offset in bytes (in rows, if a format has no lines), and the count of lines before."""

    offset: int = 0
    line: int = 0


BEGIN = Place()


@dataclass(slots=True, kw_only=True)
class Record:
    """One row of a file, or the reason why it cannot be read."""

    number: int
    """The line that it begins with, from 1; the row's number in formats without lines."""
    after: Place
    """Where the next row begins."""
    weight: int
    """About how many bytes of memory it takes, for callers that bound what they hold; 0 if unknown."""
    values: Row | None
    """None if it could not be read."""
    problem: str | None = None
    """What is wrong with the row; never quotes its content, which may be private."""
    raw: bytes | None = None
    """The JSON object as the bytes of the file, to be written out unchanged."""
    batch: Batch = None
    """For parquet, the pyarrow.RecordBatch that holds the row at `index`."""
    index: int = 0


class DataFile(Protocol):
    """An opened data file, as `open_data_file` returns it."""

    name: str
    """Its name in messages."""
    unit: str
    """What `Record.number` counts: line or row."""
    size: int
    """The `Place.offset` of its end; 0 if that is not known."""
    is_stream: bool
    """Whether it can be read only once."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that every row has; None if each row names its own."""

    def records(
        self, start: Place = BEGIN, *, columns: Sequence[str] | None = None, decoded: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Yield every row from a place on; blank lines are not rows.

        Args:
            start: `BEGIN`, or the `after` of a record.
            columns: for parquet and arrow, the columns to read; None reads all.
            decoded: for parquet and arrow, the columns in `Record.values`; None has all that are read.

        Raises:
            DataError: where it is not certain where a row ends, so that rows could be lost.
        """


def open_data_file(file: Path, *, strict: bool = False) -> DataFile:
    """Open a data file in the format of its suffix.

    Args:
        file: its name ends in one of `SUFFIXES`.
        strict: refuse what cannot be written out again unchanged or be held in memory: UTF-16, NaN in JSON, and lines
            over `LONGEST_LINE`.

    Raises:
        DataError: if the suffix is another one, or the file is damaged so that no row can be read.
        MissingExtraError: if it is parquet or arrow and pyarrow is not installed.
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
    """Yield (number, row) for every row of a file; numbers are lines, or rows in formats without lines, from 1.

    Args:
        file: its name ends in one of `SUFFIXES`.
        columns: for parquet and arrow, the columns to read; None reads all.

    Raises:
        DataError: at the first row that cannot be read, with its number.
        MissingExtraError: if it is parquet or arrow and pyarrow is not installed.
    """
    opened = open_data_file(file)
    for record in opened.records(columns=columns):
        if record.values is None:
            raise DataError(f"{file} {opened.unit} {record.number} {record.problem}")
        yield record.number, record.values


# Lines of text


def text_lines(file: Path, *, errors: str = "strict") -> Iterator[str]:
    """Yield the lines of a text file with their line ends; only a line feed ends a line.

    The text is UTF-8, with or without the byte-order mark that spreadsheets write, or UTF-16 with a byte-order mark.

    Args:
        file: the file to read.
        errors: `strict`, or `replace` to read invalid bytes as U+FFFD.

    Raises:
        DataError: at the first line that is not in this encoding.
    """
    if _is_utf16(file):
        yield from _utf16_lines(file, errors)
        return
    # As bytes: text mode would end lines at a lone carriage return as well, and move every number behind it.
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
    """Stands for a line over the limit, which was skipped without being kept."""

    quotes: int
    """Its number of quotation marks, by which a csv record is known to end with it or not."""


_Line: TypeAlias = bytes | _TooLong


class _LineFile:
    """The lines of a file or stream as UTF-8 bytes, each with the place behind it."""

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
        """Yield each line from a place on, without the byte-order mark."""
        if self._is_utf16 and self._file is not None:
            # Offsets count UTF-8 and lead nowhere in this file, so reading resumes by lines.
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
        # One byte over the limit tells a line that is too long from one that fits exactly.
        limit = -1 if self._longest is None else self._longest + 1
        while line := stream.readline(limit):
            offset, number = offset + len(line), number + 1
            if self._longest is None or len(line) <= self._longest or line.endswith(b"\n"):
                yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, Place(offset, number)
                continue
            # The rest is read in pieces and thrown away: a file without line feeds must not fill the memory.
            quotes, rest = line.count(b'"'), line
            while not rest.endswith(b"\n") and (rest := stream.readline(self._longest)):
                offset += len(rest)
                quotes += rest.count(b'"')
            yield _TooLong(quotes), Place(offset, number)

    def too_long(self) -> str:
        """Return the problem of a line over the limit."""
        return f"is over {self._longest} bytes"


# JSON


class JsonLinesFile(_LineFile):
    """One JSON object per line, from a file or from an open stream such as standard input."""

    columns = None

    def __init__(self, file: Path | None, stream: BinaryIO | None = None, *, strict: bool = False) -> None:
        """Take a file, or None and an open stream; `strict` as in `open_data_file`."""
        super().__init__(file, stream, strict=strict)
        self._decode = json.JSONDecoder(parse_constant=_refuse_constant if strict else None).decode

    def records(
        self, start: Place = BEGIN, *, columns: Sequence[str] | None = None, decoded: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Yield every row from a place on."""
        begin = start
        for line, place in self.lines(start):
            if isinstance(line, _TooLong):
                # The line was thrown away, so the record itself takes next to nothing.
                weight = min(place.offset - begin.offset, 64)
                yield Record(number=place.line, after=place, weight=weight, values=None, problem=self.too_long())
            elif text := line.strip(_BLANK):
                values, problem = self._parse(text)
                raw = None if problem else text
                yield Record(number=place.line, after=place, weight=len(line), values=values, problem=problem, raw=raw)
            begin = place

    def _parse(self, line: bytes) -> tuple[Row | None, str | None]:
        """Return the object of a line and None, or None and what is wrong, which never quotes the line."""
        try:
            content = self._decode(line.decode())
        except UnicodeDecodeError:
            return None, _NOT_UTF8
        except json.JSONDecodeError as error:
            return None, f"is not JSON: {error.msg} at character {error.pos + 1}"
        except _ConstantError as error:
            return None, f"is not JSON: {error}"
        # An integer over 4,300 digits is a plain ValueError, whose message is left out: it may quote the content.
        except (ValueError, RecursionError):
            return None, "is not JSON: nested too deep, or a number too long"
        if isinstance(content, dict):
            return content, None
        hint = "; a file that is one array ends in .json" if isinstance(content, list) else ""
        return None, f"is not an object with columns{hint}"


class _ConstantError(ValueError):
    """NaN, Infinity or -Infinity, which Python's reader takes and RFC 8259 does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(f"it holds {name}")


class _RowsFile:
    """Rows from any function that returns them, numbered from 1; resuming reads and skips."""

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
        """Yield every row from a place on."""
        for number, row in enumerate(self._read(decoded or columns), 1):
            if number > start.offset:
                yield Record(number=number, after=Place(number, number), weight=0, values=row)


def _open_json(file: Path) -> DataFile:
    """Open an array of objects, one wrapped in an object, pandas' `split`, SQuAD's nesting, or one object per line."""
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
    """Yield one row per question of SQuAD's own files: articles with paragraphs, each a context with questions."""
    try:
        for title, paragraph in ((each.get("title"), part) for each in articles for part in each["paragraphs"]):
            for asked in paragraph["qas"]:
                # SQuAD 2.0: an impossible question has `plausible_answers`, which do not count.
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
    """How a table separates and quotes its cells."""

    delimiter: str
    has_quotes: bool
    """Whether quotation marks enclose cells with delimiters and line breaks (RFC 4180), or are plain text."""

    def reader(self, lines: Iterable[str]) -> "Iterator[list[str]]":
        """Return a strict csv reader of these lines.

        Without `strict`, a quotation mark that is never closed silently swallows the rows behind it.
        """
        if not self.has_quotes:
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, strict=True)


class SeparatedFile(_LineFile):
    """A csv or tsv file with a header; an empty file has no columns."""

    def __init__(self, file: Path, *, strict: bool = False) -> None:
        """Find the dialect and read the header.

        Raises:
            DataError: if the header cannot be read, names a column twice, or is in another encoding.
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
        # ASCII text in UTF-16 or UTF-32 without a mark is valid UTF-8: every other byte is NUL.
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
        """Yield every row from a place on; `BEGIN` is the first row behind the header."""
        for cells, problem, begin, after in self._cells(start if start.offset else self._begin):
            if problem is None and len(cells) != len(self.columns):
                problem = (
                    f"has {len(cells)} columns, the head has {len(self.columns)}; quote cells that hold "
                    f"{self._dialect.delimiter!r}"
                )
                if after.line - begin.line > 1:  # a stray quotation mark may have made one row of several
                    raise self._uncertain(begin, problem)
            yield Record(
                number=begin.line + 1,
                after=after,
                weight=after.offset - begin.offset,
                problem=problem,
                values=None if problem else dict(zip(self.columns, cells, strict=True)),
            )

    def _cells(self, start: Place) -> Iterator[tuple[list[str], str | None, Place, Place]]:
        """Yield the cells of each record, what is wrong with it or None, and the places before and behind it.

        Raises:
            DataError: if a record cannot be read and it is uncertain where it ends.
        """
        feed = _Feed(self.lines(start), start, has_quotes=self._dialect.has_quotes, too_long=self.too_long())
        reader = self._dialect.reader(feed)
        while True:
            begin = feed.begin()
            try:
                # Around each row and not the loop: the limit is the process's, and must be back while a row is used.
                with _long_cells(self._longest or _LONGEST_CELL):
                    cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = []
                # Python's message advises how to open the file, which is no advice for a user.
                why = "a carriage return without a line feed" if "new-line" in str(error) else error
                feed.spoil(f"is not {self._kind}: {why}; {self._remedy}")
            if feed.problem and feed.is_spoilt and not feed.ends_for_sure:
                raise self._uncertain(begin, feed.problem)
            # An empty list without a problem is a blank line.
            if cells or feed.problem:
                yield cells, feed.problem, begin, feed.place

    def _uncertain(self, begin: Place, problem: str) -> DataError:
        return DataError(
            f"{self.name} line {begin.line + 1} {problem}; it is not certain where this row ends, so those behind it "
            "could be lost: mend the file first"
        )


class _Feed:
    """An iterator of lines for a csv reader that notes what the reader takes for one record.

    A csv reader pulls as many lines as a quoted record has, so that only its input knows where in the file it is.

    Args:
        lines: the lines and places of `_LineFile.lines`.
        start: the place before the first line.
        has_quotes: whether quotation marks may enclose a line break.
        too_long: the problem of a line over the limit.
    """

    def __init__(self, lines: Iterator[tuple[_Line, Place]], start: Place, *, has_quotes: bool, too_long: str) -> None:
        self._lines, self.place, self._has_quotes, self._too_long = lines, start, has_quotes, too_long
        self.problem: str | None = None
        """What is wrong with the current record, or None."""
        self.is_spoilt = False
        """Whether the csv reader failed on the current record, or was given something else in place of a line."""
        self._count = self._quotes = 0
        self._ended = False

    def begin(self) -> Place:
        """Start a new record and return the place where it begins."""
        self.problem, self.is_spoilt = None, False
        self._count = self._quotes = 0
        return self.place

    def spoil(self, problem: str) -> None:
        """Note that the current record cannot be read; the first problem is kept."""
        self.problem, self.is_spoilt = self.problem or problem, True

    @property
    def ends_for_sure(self) -> bool:
        """Return whether the record certainly is one line: its quotation marks balance, or the file ends with it."""
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
            # A blank line in its place keeps the reader going behind it.
            self.spoil(self._too_long)
            return "\n"
        try:
            return line.decode()
        except UnicodeDecodeError:
            # Not spoilt: delimiters and quotes are ASCII, so U+FFFD in a cell moves no end of a row.
            self.problem = self.problem or _NOT_UTF8
            return line.decode(errors="replace")


@contextmanager
def _long_cells(longest: int = _LONGEST_CELL) -> Iterator[None]:
    """Raise the csv module's limit on a cell, which holds for the whole process, and put it back."""
    usual = csv.field_size_limit(longest)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def find_dialect(file: Path) -> Dialect:
    """Return the first dialect in which all records have as many cells as the header; the suffix's own is tried first.

    If there is none, or there is one column alone, it is the suffix's own.
    """
    usual = "\t" if file.suffix == ".tsv" else ","
    dialects = []
    for delimiter in (usual, *(other for other in _DELIMITERS if other != usual)):
        dialects.append(Dialect(delimiter, delimiter != "\t" or _quotes_cells(file)))
        widths = _widths(file, dialects[-1], most=_LOOKED_AT)
        if widths and len(set(widths)) == 1 and widths[0] > 1:
            return dialects[-1]
    return dialects[0]


def _widths(file: Path, dialect: Dialect, *, most: int | None = None) -> list[int] | None:
    """Return the number of cells of each of the first `most` records, or None if the dialect cannot read them."""
    try:
        with _long_cells():
            records = filter(None, dialect.reader(text_lines(file, errors="replace")))
            return [len(cells) for cells in itertools.islice(records, most)]
    except (csv.Error, DataError):
        return None


def _quotes_cells(file: Path) -> bool:
    """Return whether a tab-separated file quotes its cells as csv does.

    GLUE's own files quote nothing: a quotation mark in them is text. pandas and spreadsheets quote cells with tabs,
    line breaks or quotation marks. A file counts as quoted if its lines as they are do not all have as many cells as
    the header, or if its quotes cannot be text: doubled ones inside a quoted cell, quotes in the header, or quotes
    around every cell of a column.
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
    # Without a cell that begins with a quotation mark, both readings are the same.
    if not opened:
        return False
    whole_column = count > 0 and not all(bare.values())
    widths = _widths(file, Dialect("\t", has_quotes=True))
    if widths is None or (set(widths) != {len(head)} and is_table):
        return False
    # The quoted reading must keep one record per line, or it has swallowed some.
    return not is_table or ((in_head or doubled or whole_column) and len(widths) == count + 1)


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


# parquet and arrow


class ParquetFile:
    """A parquet file, decoded a few rows at a time."""

    unit = "row"
    is_stream = False

    def __init__(self, file: Path) -> None:
        """Read the file's schema and number of rows.

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
        """Yield every row from a place on."""
        with self._open() as opened:
            # Row groups before the start are skipped by the footer's counts, without being read.
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
            # pre_buffer, pyarrow's default, reads ahead; its documentation turns it off where memory counts most.
            return pyarrow("pyarrow.parquet").ParquetFile(self._file, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{self._file} is not a parquet file: {first_line(error)}") from error


def _records_of(batch: Batch, before: int, *, skip: int, decoded: Sequence[str] | None) -> Iterator[Record]:
    """Yield the rows of a batch but the first `skip`; `before` rows of the file come before the batch."""
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
        # Only the reader of the stream format has this method; the other is indexed by batch.
        is_stream = hasattr(reader, "read_next_batch")
        for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
            yield from (batch.select(columns) if columns else batch).to_pylist()
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not an arrow file: {first_line(error)}") from error


def _ipc_reader(file: Path) -> Any:
    ipc, source = pyarrow("pyarrow.ipc"), pyarrow().memory_map(str(file))
    # `datasets` writes the stream format; pyarrow and others write files, which have an index at their end.
    try:
        return ipc.open_stream(source)
    except ValueError:
        source.seek(0)
        return ipc.open_file(source)


def arrow_schema(file: Path) -> Schema:
    """Return the pyarrow.Schema of a parquet or arrow file.

    Raises:
        DataError: if the file is neither.
    """
    is_parquet = file.suffix == ".parquet"
    try:
        return pyarrow("pyarrow.parquet").read_schema(file) if is_parquet else _ipc_reader(file).schema
    except (ValueError, OSError) as error:
        kind = "a parquet" if is_parquet else "an arrow"
        raise DataError(f"{file} is not {kind} file: {first_line(error)}") from error
