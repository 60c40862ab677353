"""Both ends for parquet, with pyarrow: rows keep the types of their columns, answers get types of their own.

Parts are appended to the partial file as Arrow streams, each whole in itself, and become one parquet file at the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from potstill.errors import DataError, MissingExtraError
from potstill.extras import require
from potstill.serve.bulk.output import Answered, Names
from potstill.serve.bulk.rows import Place, Row
from potstill.serve.tokenizer import without_surrogates
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, TOKEN_CLASSIFICATION

_READ_ROWS = 256
_BUFFER = 2**20
# Rows of one group in the output, enough for its compression; pyarrow's own default is a million.
_GROUP_ROWS = 65_536


def _arrow(module: str) -> Any:
    try:
        return require(module, extra="parquet")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}, or convert the file to .jsonl") from error


class ParquetSource:
    """A parquet file, read a few rows at a time."""

    unit = "row"
    is_stream = False

    def __init__(self, file: Path) -> None:
        """Read the file's schema.

        Raises:
            DataError: if it is not parquet.
            MissingExtraError: if pyarrow is not installed.
        """
        self._file, self.name = file, str(file)
        with self._open() as opened:
            self.schema = opened.schema_arrow
            self.size = opened.metadata.num_rows
        self.columns: tuple[str, ...] = tuple(self.schema.names)
        if len(set(self.columns)) < len(self.columns):
            raise DataError(f"{file} has two columns of one name; give each a name of its own")
        self.needed: Sequence[str] | None = None

    def rows(self, start: Place) -> Iterator[Row]:
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
                for batch in opened.iter_batches(batch_size=_READ_ROWS, row_groups=groups) if groups else ():
                    if number + batch.num_rows > start.offset:
                        yield from self._rows_of(batch, number, start.offset)
                    number += batch.num_rows
            except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
                raise DataError(f"{self._file} is damaged behind row {number}: {_short(error)}") from error
            if number != self.size:
                raise DataError(f"{self._file} has {number} rows, and its own count says {self.size}; it is damaged")

    def _rows_of(self, batch: Any, number: int, begin: int) -> Iterator[Row]:
        weight = 1 + batch.nbytes // max(1, batch.num_rows)
        for index, values in enumerate((batch if self.needed is None else batch.select(self.needed)).to_pylist()):
            line = number + index + 1
            if line > begin:
                yield Row(
                    line=line, after=Place(line, line), weight=weight, values=values, block=batch, index=index
                )  # fmt: skip

    def _open(self) -> Any:
        try:
            return _arrow("pyarrow.parquet").ParquetFile(self._file, buffer_size=_BUFFER, pre_buffer=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{self._file} is not a parquet file: {_short(error)}") from error


class ParquetOutput:
    """A parquet file: the input's columns, and `answer` with types by task.

    A masked text may have several masks, so a filling is a list of masks, each with a list of words. Answers to a
    question are always a list.
    """

    head = None

    def __init__(self, names: Names, *, task: str) -> None:
        """Choose the answer's type.

        Raises:
            MissingExtraError: if pyarrow is not installed.
        """
        self._names, self._task = names, task
        self._arrow, self._ipc = _arrow("pyarrow"), _arrow("pyarrow.ipc")
        self._type = _answer_type(self._arrow, task)
        self._schema: Any = None

    def encode(self, answered: Sequence[Answered], *, is_first: bool) -> bytes:
        """Return an Arrow stream of these rows.

        Raises:
            DataError: if a column's values have no one type, here or together with the rows before.
        """
        table = self._table(answered)
        self._agree(table.schema, answered[0].row.line if answered else 0)
        sink = self._arrow.BufferOutputStream()
        with self._ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content: bytes = sink.getvalue().to_pybytes()
        return content

    def begin_again(self, partial: Path, lengths: Sequence[int]) -> None:
        """Read the schemas of the parts."""
        for table in self._parts(partial, lengths, schema_only=True):
            self._agree(table, 0)

    def finish(self, partial: Path, lengths: Sequence[int], final: Path) -> Path:
        """Write the parts as one parquet file."""
        parquet = _arrow("pyarrow.parquet")
        for schema in self._parts(partial, lengths, schema_only=True):
            self._agree(schema, 0)
        if self._schema is None:
            self._schema = self._table([]).schema
        with parquet.ParquetWriter(final, self._schema) as writer:
            held: list[Any] = []
            for table in self._parts(partial, lengths, schema_only=False):
                held.append(table)
                if sum(part.num_rows for part in held) >= _GROUP_ROWS or sum(part.nbytes for part in held) > 2**26:
                    writer.write_table(self._joined(held))
                    held = []
            if held:
                writer.write_table(self._joined(held))
        return final

    def _joined(self, tables: Sequence[Any]) -> Any:
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

    def _agree(self, schema: Any, line: int) -> None:
        try:
            self._schema = (
                schema
                if self._schema is None
                else self._arrow.unify_schemas([self._schema, schema], promote_options="permissive")
            )
        except (ValueError, TypeError) as error:
            raise DataError(
                f"from row {line} on a column holds values of another kind than before ({_short(error)}), and a column "
                "of parquet has one kind: write .jsonl"
            ) from error

    def _table(self, answered: Sequence[Answered]) -> Any:
        columns = self._columns(answered)
        columns[self._names.answer] = self._arrow.array([self._shaped(one.answer) for one in answered], type=self._type)
        if self._names.keeps_problems:
            problems = [one.problem for one in answered]
            columns[self._names.problem] = self._arrow.array(problems, type=self._arrow.string())
        return self._arrow.table(columns)

    def _columns(self, answered: Sequence[Answered]) -> dict[str, Any]:
        """Return the input's columns: cut from its own table where it has one, else made of its values."""
        if answered and answered[0].row.block is not None:
            slices = []
            for _, group in groupby(answered, key=lambda one: id(one.row.block)):
                rows = [one.row for one in group]
                slices.append(rows[0].block.slice(rows[0].index, len(rows)))
            table = self._arrow.Table.from_batches(slices)
            return dict(zip(table.column_names, table.columns, strict=True))
        names = list(dict.fromkeys(name for one in answered for name in one.row.values or ()))
        return {name: self._array(name, [(one.row.values or {}).get(name) for one in answered]) for name in names}

    def _array(self, name: str, values: list[Any]) -> Any:
        try:
            return self._arrow.array(values)
        except UnicodeEncodeError:
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


def _answer_type(arrow: Any, task: str) -> Any:
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


def _struct(arrow: Any, fields: Mapping[str, Any]) -> Any:
    return arrow.struct([arrow.field(name, kind) for name, kind in fields.items()])


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
