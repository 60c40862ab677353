"""Rows of one local file, in any format, encoding and dialect: read as a stream, and none is lost on the way.

jsonl and json (also SQuAD's nesting, `{"data": [...]}` and pandas' `split`), csv and tsv with any of the usual
delimiters, parquet, and arrow as `datasets` writes it. What a file does not say of itself (the delimiter, whether a
tsv quotes its cells) is taken from its content; where two readings are possible, the one that keeps every line.
"""

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from potstill.errors import DataError
from potstill.extras import require

Row: TypeAlias = dict[str, Any]
Names: TypeAlias = Mapping[str, Sequence[str]]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")

_DELIMITERS = (",", ";", "\t", "|")
# Records that must agree on a delimiter before it is believed.
_LOOKED_AT = 1000
# Longer than any field that a reader could mean; Python's own limit (128 KiB) is shorter than some articles.
_LONGEST_FIELD = 2**31 - 1
_ROWS_AT_ONCE = 1000


def read_file(file: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file with their numbers from 1 (lines, of jsonl).

    Args:
        file: its suffix says the format.
        columns: of parquet and arrow only these are read; None is all.

    Raises:
        DataError: naming the line or row, at the first that cannot be read.
        MissingExtraError: if parquet or arrow is to be read without pyarrow.
    """
    match file.suffix:
        case ".jsonl":
            return _json_lines(file)
        case ".json":
            return _json_document(file)
        case ".csv" | ".tsv":
            return _separated(file)
        case ".parquet" | ".arrow":
            return _arrow_rows(file, columns)
    raise DataError(f"{file} is not a data file; its name must end in {', '.join(SUFFIXES)}")


def lines_of(file: Path, *, errors: str = "strict") -> Iterator[str]:
    """Yield the lines of a text file with their ends; only line feeds end one.

    UTF-8 with or without the byte-order mark that spreadsheets write, or UTF-16 with its own.

    Args:
        file: to read.
        errors: `replace` reads what is no text of this encoding as U+FFFD.

    Raises:
        DataError: at the first line that is no text of this encoding.
    """
    with file.open("rb") as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            yield from _utf16_lines(file, errors)
            return
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file} line {number} is not UTF-8; convert the file first (iconv -f latin1 -t utf-8, if that is "
                    "what it is)"
                ) from error


def _utf16_lines(file: Path, errors: str) -> Iterator[str]:
    try:
        with file.open(encoding="utf-16", errors=errors, newline="\n") as stream:
            yield from stream
    except UnicodeError as error:
        raise DataError(f"{file} is not UTF-16, as its first bytes say: {error}; convert the file first") from error


# JSON


def _json_lines(file: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines_of(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            hint = "; a file that is one array ends in .json" if isinstance(row, list) else ""
            raise DataError(f"{file} line {number} is not an object with columns{hint}")
        yield number, row


def _json_document(file: Path) -> Iterator[tuple[int, Row]]:
    content = "".join(lines_of(file))
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        # Many tools, `datasets` among them, write one object per line into .json.
        if error.msg == "Extra data" and content.lstrip().startswith("{"):
            return _json_lines(file)
        raise DataError(f"{file} is not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    return enumerate(_rows_of_document(document, file), 1)


def _rows_of_document(document: Any, file: Path) -> list[Row]:
    if isinstance(document, dict):
        if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):  # pandas' split
            return list(_split_rows(document["columns"], document["data"], file))
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
    if all(isinstance(row.get("paragraphs"), list) for row in rows):
        return list(_squad_rows(rows, file))
    return rows


def _split_rows(columns: Sequence[Any], cells: Sequence[Any], file: Path) -> Iterator[Row]:
    for number, row in enumerate(cells, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise DataError(
                f"{file} row {number} of data is no list of {len(columns)} cells, one for each of its columns; write "
                "the file again"
            )
        yield dict(zip(map(str, columns), row, strict=True))


def _is_table(value: Any) -> bool:
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


def _separated(file: Path) -> Iterator[tuple[int, Row]]:
    dialect = find_dialect(file)
    head: list[str] | None = None
    number = 0
    for line, cells in _records(file, **dialect):
        if head is None:
            head = cells
            if any("\0" in name for name in head):
                raise DataError(
                    f"{file} line {line}: the head holds NUL, so this is no UTF-8 but UTF-16 or UTF-32; convert the "
                    "file first (iconv -f utf-16le -t utf-8, if that is what it is)"
                )
            repeated = next((name for name in head if head.count(name) > 1), None)
            if repeated is not None:
                raise DataError(f"{file} line {line}: the head names {repeated!r} twice; give each column its own name")
            continue
        number += 1
        if len(cells) != len(head):
            raise DataError(
                f"{file} line {line}: another number of columns than the head has ({len(cells)}, not {len(head)}); "
                f"quote cells that hold {dialect['delimiter']!r}"
            )
        yield number, dict(zip(head, cells, strict=True))


def _records(
    file: Path, *, delimiter: str, quoting: Literal[0, 3], errors: str = "strict"
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each record's last line, and its cells; blank lines are no records."""
    # Strict: otherwise a quotation mark that is never closed swallows the rows behind it without a word.
    reader = csv.reader(lines_of(file, errors=errors), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        try:
            with _long_fields():
                cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{file} line {reader.line_num}: {error}; a cell that holds quotation marks, {delimiter!r} or line "
                "breaks stands in quotation marks, and its own are doubled"
            ) from error
        if cells is None:
            return
        if cells:
            yield reader.line_num, cells


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift Python's limit, which is one for all readers of this process."""
    usual = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def find_dialect(file: Path) -> dict[str, Any]:
    """Return the delimiter that gives every record as many cells as the head, the suffix's own first; and quoting.

    Both are arguments of `csv.reader`.
    """
    usual = "\t" if file.suffix == ".tsv" else ","
    dialects = []
    for delimiter in (usual, *(other for other in _DELIMITERS if other != usual)):
        quoted = delimiter != "\t" or _quotes_cells(file)
        dialects.append({"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE})
        if _agrees(file, dialects[-1]):
            return dialects[-1]
    return dialects[0]


def _agrees(file: Path, dialect: Mapping[str, Any]) -> bool:
    try:
        widths = {len(cells) for _, cells in itertools.islice(_records(file, errors="replace", **dialect), _LOOKED_AT)}
    except DataError:
        return False
    return len(widths) == 1 and widths.pop() > 1


def _quotes_cells(file: Path) -> bool:
    """Return whether a tab-separated file quotes its cells as csv does.

    GLUE's own files quote nothing: a lone quotation mark in them is text. Others, as pandas and spreadsheets write
    them, quote what holds tabs, line breaks or quotation marks. A file is read as quoted if its lines alone make no
    table, or if the quotes show that they are no text: doubled ones inside, in the head, or around all of a column.
    """
    lines = (line.rstrip("\r\n").split("\t") for line in lines_of(file, errors="replace"))
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
    try:
        quoted_records = _records(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL, errors="replace")
        widths = [len(cells) for _, cells in quoted_records]
    except DataError:
        return False
    if set(widths) != {len(head)} and is_table:
        return False
    return not is_table or ((in_head or doubled or whole_column) and len(widths) == count + 1)


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


# Arrow


def _arrow_rows(file: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    number = itertools.count(1)
    try:
        for batch in _batches(file, columns):
            yield from ((next(number), row) for row in batch.to_pylist())
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{file} is not {_kind(file)} file: {_short(error)}") from error


def _batches(file: Path, columns: Sequence[str] | None) -> Iterable[Any]:
    if file.suffix == ".parquet":
        parquet = require("pyarrow.parquet", extra="distill")
        return parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)  # type: ignore[no-any-return]
    reader = _ipc_reader(file)
    whole = reader if hasattr(reader, "read_next_batch") else map(reader.get_batch, range(reader.num_record_batches))
    return (batch.select(columns) if columns else batch for batch in whole)


def _ipc_reader(file: Path) -> Any:
    ipc = require("pyarrow.ipc", extra="distill")
    source = require("pyarrow", extra="distill").memory_map(str(file))
    try:
        return ipc.open_stream(source)
    except ValueError:
        source.seek(0)
        return ipc.open_file(source)


def _arrow_schema(file: Path) -> Any:
    try:
        if file.suffix == ".parquet":
            return require("pyarrow.parquet", extra="distill").read_schema(file)
        return _ipc_reader(file).schema
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not {_kind(file)} file: {_short(error)}") from error


def arrow_columns(file: Path) -> list[str]:
    """Return the columns of a parquet or arrow file."""
    return list(_arrow_schema(file).names)


def _kind(file: Path) -> str:
    return "a parquet" if file.suffix == ".parquet" else "an arrow"


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


# Names of labels that a data set carries beside its rows


def label_names(file: Path) -> dict[str, tuple[str, ...]]:
    """Return by column the names of its label ids, as `datasets` writes them into parquet, arrow and a README.

    Raises:
        DataError: if a parquet or arrow file cannot be read.
    """
    if file.suffix in (".parquet", ".arrow"):
        metadata = (_arrow_schema(file).metadata or {}).get(b"huggingface")
        found = _feature_names(_parsed(metadata).get("info", {}).get("features")) if metadata else {}
        if found:
            return found
    for folder in (file.parent, *([file.parent.parent] if file.parent.name == "data" else [])):
        for described in (
            _described(folder / "dataset_info.json"),
            _described_together(folder / "dataset_infos.json"),
            _readme(folder / "README.md"),
        ):
            if described:
                return described
    return {}


def _parsed(content: bytes | str) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _described(file: Path) -> dict[str, tuple[str, ...]]:
    return _feature_names(_parsed(file.read_bytes()).get("features")) if file.is_file() else {}


def _described_together(file: Path) -> dict[str, tuple[str, ...]]:
    """Read what `datasets` 1 and 2 wrote of all configurations, where they agree on a column."""
    infos = _parsed(file.read_bytes()) if file.is_file() else {}
    found: dict[str, set[tuple[str, ...]]] = {}
    for info in infos.values():
        for column, names in _feature_names(info.get("features") if isinstance(info, dict) else None).items():
            found.setdefault(column, set()).add(names)
    return {column: named.pop() for column, named in found.items() if len(named) == 1}


def _feature_names(features: Any) -> dict[str, tuple[str, ...]]:
    """Read the features of `DatasetInfo` as JSON."""
    if not isinstance(features, dict):
        return {}
    return {str(column): names for column, feature in features.items() if (names := _class_names(feature))}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if isinstance(feature.get("names"), list):
        return tuple(map(str, feature["names"]))
    return _class_names(feature.get("feature"))


def _readme(file: Path) -> dict[str, tuple[str, ...]]:
    """Read `dataset_info` of the YAML in front of a dataset card, where all configurations agree on a column."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    import yaml

    try:
        card = yaml.safe_load(io.StringIO(text.split("---", 2)[1]))
    except yaml.YAMLError:
        return {}
    infos = card.get("dataset_info") if isinstance(card, dict) else None
    found: dict[str, set[tuple[str, ...]]] = {}
    for info in infos if isinstance(infos, list) else [infos]:
        for feature in (info.get("features") or []) if isinstance(info, dict) else []:
            names = _card_names(feature)
            if names:
                found.setdefault(str(feature.get("name")), set()).add(names)
    return {column: named.pop() for column, named in found.items() if len(named) == 1}


def _card_names(feature: Any) -> tuple[str, ...] | None:
    """Read `{dtype: {class_label: {names: {"0": ...}}}}`, or the same under `sequence` or `list`."""
    if not isinstance(feature, dict):
        return None
    for key in ("dtype", "sequence", "list"):
        inner = feature.get(key)
        if isinstance(inner, dict):
            names = (inner.get("class_label") or {}).get("names")
            if isinstance(names, dict):
                return tuple(str(names[number]) for number in sorted(names, key=int))
            if isinstance(names, list):
                return tuple(map(str, names))
            if (deeper := _card_names(inner)) is not None:
                return deeper
    return None
