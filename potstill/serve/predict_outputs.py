"""The output formats of `predict_file`: jsonl, csv and parquet.

Each part that is appended to a partial file is complete in itself, so that a run can be resumed after any of them:
lines for jsonl and csv, Arrow streams for parquet, which needs its footer at the end and is made of them when all rows
are there.
"""

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

from potstill.data.read import Record, Schema, pyarrow
from potstill.errors import DataError, UsageError
from potstill.messages import first_line
from potstill.serve.tokenizer import without_surrogates
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

# pyarrow has no type hints.
Table: TypeAlias = Any
Array: TypeAlias = Any
# Rows and bytes of one row group in a parquet file: enough for its compression, few enough to be held in memory.
_GROUP_ROWS, _GROUP_BYTES = 65_536, 2**26


@dataclass(frozen=True, slots=True)
class Added:
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
    """A row with its answer, or with the problem because of which it has none."""

    record: Record
    answer: Any
    problem: str | None


class Output(Protocol):
    """An output format. It appends parts to a partial file, and makes the output of it at the end."""

    @property
    def head(self) -> list[str] | None:
        """The columns of the header, which a resumed run must have the same; None for formats without one."""

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return the bytes that are appended for these rows; raise DataError if the format cannot hold them."""

    def take_up(self, partial: Path, lengths: Sequence[int]) -> None:
        """Restore the state of a resumed run, whose partial file has parts of these lengths in bytes."""

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Return the finished file: the partial file itself, or `final`, made of its parts."""


class JsonLinesOutput:
    """One object per line: that of the input, unchanged, with the answer added at its end."""

    head = None

    def __init__(self, added: Added) -> None:
        """Take the columns that are added."""
        self._added = added

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return the lines."""
        return b"".join(map(self._line, answered))

    def take_up(self, partial: Path, lengths: Sequence[int]) -> None:
        """Do nothing: lines do not depend on those before them."""

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Return the partial file: it is the output."""
        return partial

    def _line(self, answered: Answered) -> bytes:
        more = {self._added.answer: answered.answer}
        if answered.problem is not None:
            more[self._added.problem] = answered.problem
        record = answered.record
        if record.raw is None:
            return _dump({**(record.values or {}), **more}) + b"\n"
        # The input's own bytes rather than its parsed values: numbers keep their digits, and double keys stay.
        before = record.raw[:-1].rstrip()
        return before + (b"" if before == b"{" else b", ") + _dump(more)[1:] + b"\n"


class CsvOutput:
    """One line per row; values that are no texts are written as JSON."""

    def __init__(self, added: Added, *, columns: Sequence[str], task: str) -> None:
        """Set the header: the input's columns and those that are added."""
        self._added, self._columns = added, list(columns)
        self._best = task == TEXT_CLASSIFICATION.name
        self.head: list[str] = [*self._columns, added.answer]
        if self._best:
            self.head += [f"{added.answer}_label", f"{added.answer}_score"]
        if added.keeps_problems:
            self.head.append(added.problem)

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return the lines, with the header before the first."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if is_first:
            writer.writerow(self.head)
        writer.writerows(map(self._cells, answered))
        return without_surrogates(text.getvalue()).encode()

    def take_up(self, partial: Path, lengths: Sequence[int]) -> None:
        """Do nothing: lines do not depend on those before them."""

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Return the partial file: it is the output."""
        return partial

    def _cells(self, answered: Answered) -> list[str]:
        values, answer = answered.record.values or {}, answered.answer
        cells = [_cell(values.get(name)) for name in self._columns]
        cells.append("" if answer is None else _cell(answer))
        if self._best:
            cells += [str(answer[0]["label"]), repr(answer[0]["score"])] if answer else ["", ""]
        if self._added.keeps_problems:
            cells.append(answered.problem or "")
        return cells


class ParquetOutput:
    """A parquet file: the input's columns, and `answer` with types by task.

    A masked text may have several masks, so a filling is a list of masks, each with a list of words. Answers to a
    question are always a list.
    """

    head = None

    def __init__(self, added: Added, *, task: str) -> None:
        """Choose the Arrow type of the answer.

        Raises:
            MissingExtraError: if pyarrow is not installed.
        """
        self._added, self._task = added, task
        self._arrow, self._ipc = pyarrow(), pyarrow("pyarrow.ipc")
        self._type = _answer_type(self._arrow, task)
        self._schema: Any = None

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return an Arrow stream of these rows.

        Raises:
            DataError: if a column's values have no one type, here or together with the rows before.
        """
        table = self._table(answered)
        self._agree(table.schema, answered[0].record.number if answered else 0)
        sink = self._arrow.BufferOutputStream()
        with self._ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content: bytes = sink.getvalue().to_pybytes()
        return content

    def take_up(self, partial: Path, lengths: Sequence[int]) -> None:
        """Read the schemas of the parts, with which later ones have to agree."""
        for table in self._parts(partial, lengths, schema_only=True):
            self._agree(table, 0)

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Write the parts as one parquet file, in row groups of _GROUP_ROWS rows or _GROUP_BYTES."""
        parquet = pyarrow("pyarrow.parquet")
        for schema in self._parts(partial, lengths, schema_only=True):
            self._agree(schema, 0)
        if self._schema is None:
            self._schema = self._table([]).schema
        with parquet.ParquetWriter(final, self._schema) as writer:
            held: list[Any] = []
            rows = size = 0
            for table in self._parts(partial, lengths, schema_only=False):
                held.append(table)
                rows, size = rows + table.num_rows, size + table.nbytes
                if rows >= _GROUP_ROWS or size > _GROUP_BYTES:
                    writer.write_table(self._joined(held))
                    held, rows, size = [], 0, 0
            if held:
                writer.write_table(self._joined(held))
        return final

    def _joined(self, tables: Sequence[Table]) -> Table:
        # The empty table brings every column; "permissive" fills those that a part lacks with nulls.
        joined = self._arrow.concat_tables([self._schema.empty_table(), *tables], promote_options="permissive")
        return joined.select(self._schema.names).cast(self._schema)

    def _parts(self, partial: Path, lengths: Sequence[int], *, schema_only: bool) -> Iterator[Any]:
        with partial.open("rb") as stream:
            begin = 0
            for length in lengths:
                stream.seek(begin)
                reader = self._ipc.open_stream(stream)
                yield reader.schema if schema_only else reader.read_all()
                begin += length

    def _agree(self, schema: Schema, line: int) -> None:
        try:
            self._schema = (
                schema
                if self._schema is None
                else self._arrow.unify_schemas([self._schema, schema], promote_options="permissive")
            )
        except (ValueError, TypeError) as error:
            raise DataError(
                f"from row {line} on a column holds values of another kind than before ({first_line(error)}), and a "
                "column of parquet has one kind: write .jsonl"
            ) from error

    def _table(self, answered: Sequence[Answered]) -> Table:
        columns = self._columns(answered)
        columns[self._added.answer] = self._arrow.array([self._shaped(one.answer) for one in answered], type=self._type)
        if self._added.keeps_problems:
            problems = [one.problem for one in answered]
            columns[self._added.problem] = self._arrow.array(problems, type=self._arrow.string())
        return self._arrow.table(columns)

    def _columns(self, answered: Sequence[Answered]) -> dict[str, Array]:
        """Return the input's columns: slices of its Arrow batches if it is parquet, else arrays of its values."""
        if answered and answered[0].record.batch is not None:
            slices = []
            # A window's rows of one batch are contiguous: a slice copies nothing and keeps the input's exact types.
            for _, group in groupby(answered, key=lambda one: id(one.record.batch)):
                rows = [one.record for one in group]
                slices.append(rows[0].batch.slice(rows[0].index, len(rows)))
            table = self._arrow.Table.from_batches(slices)
            return dict(zip(table.column_names, table.columns, strict=True))
        names = list(dict.fromkeys(name for one in answered for name in one.record.values or ()))
        return {name: self._array(name, [(one.record.values or {}).get(name) for one in answered]) for name in names}

    def _array(self, name: str, values: list[object]) -> Array:
        try:
            return self._arrow.array(values)
        except UnicodeEncodeError:  # a lone surrogate, which Arrow's UTF-8 cannot hold
            return self._arrow.array(
                [without_surrogates(value) if isinstance(value, str) else None for value in values]
            )
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(
                f"column {name!r} holds values of several kinds, and a column of parquet has one: write .jsonl"
            ) from error

    def _shaped(self, answer: Any) -> Any:
        if answer is None:
            return None
        if self._task == QUESTION_ANSWERING.name and isinstance(answer, Mapping):
            return [answer]
        if self._task == FILL_MASK.name and answer and isinstance(answer[0], Mapping):
            return [answer]
        return answer


def open_output(suffix: str, added: Added, *, columns: Sequence[str], task: str) -> Output:
    """Return the output format for a file name's suffix.

    Args:
        suffix: `.jsonl` (or nothing), `.csv` or `.parquet`.
        added: the columns that are added.
        columns: the names of the input's columns.
        task: the name of the model's task.

    Raises:
        UsageError: if there is no such format.
        MissingExtraError: if parquet is to be written without pyarrow.
    """
    match suffix:
        case "" | ".jsonl":
            return JsonLinesOutput(added)
        case ".csv":
            return CsvOutput(added, columns=columns, task=task)
        case ".parquet":
            return ParquetOutput(added, task=task)
    raise UsageError(f"the output's name ends in {suffix!r}; expected .jsonl, .csv or .parquet")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _text(value)


def _dump(content: Mapping[str, object]) -> bytes:
    try:
        return _text(content).encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can write
        return json.dumps(content, default=_plain).encode()


def _text(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    """Return a value that JSON has no type for as a text: bytes in base64, dates in ISO 8601, others by `str`."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _answer_type(arrow: ModuleType, task: str) -> Array:
    text, whole, real = arrow.string(), arrow.int64(), arrow.float64()
    match task:
        case TOKEN_CLASSIFICATION.name:
            fields = {"entity_group": text, "entity": text, "score": real, "index": whole, "word": text}
            return arrow.list_(_struct(arrow, fields | {"start": whole, "end": whole}))
        case QUESTION_ANSWERING.name:
            return arrow.list_(_struct(arrow, {"answer": text, "score": real, "start": whole, "end": whole}))
        case FILL_MASK.name:
            fields = {"score": real, "token": whole, "token_str": text, "sequence": text}
            return arrow.list_(arrow.list_(_struct(arrow, fields)))
        case FEATURE_EXTRACTION.name:
            return arrow.list_(arrow.float32())
    return arrow.list_(_struct(arrow, {"label": text, "score": real}))


def _struct(arrow: ModuleType, fields: Mapping[str, Array]) -> Array:
    return arrow.struct([arrow.field(name, kind) for name, kind in fields.items()])
