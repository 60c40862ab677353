"""The model at work on a file: read a window ahead, answer it in parallel, write it in order, count what is written.

A window's texts are asked in groups of similar length, so that little is padded, and several groups run at once, each
on one thread: on a CPU that is faster than one run with several threads (microsoft/onnxruntime#16304).
"""

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from potstill.errors import CheckError, DataError, UsageError
from potstill.progress import Progress, silent
from potstill.serve.bulk.columns import item_of, longest_text, pick_columns
from potstill.serve.bulk.journal import Journal
from potstill.serve.bulk.output import Answered, CsvOutput, JsonLinesOutput, Names, Output
from potstill.serve.bulk.rows import JsonLines, Place, Row, Separated, Source
from potstill.serve.encoder import Encoder

STANDARD = "-"
"""Standard input and output."""
STAGE = "predict"

# What is read, answered and flushed to the disk at once: enough to sort by length, and seconds of work.
_WINDOW_ROWS, _WINDOW_BYTES = 2048, 2 * 2**20
# Texts of one call of the model: enough for its batches, few enough that workers end together.
_GROUP = 64
# Windows in memory besides the one being read: one is being answered, one waits for it.
_AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkSettings:
    """How a file is answered."""

    columns: Sequence[str] | None = None
    """The column of the text, two of a pair; None takes the usual names."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """As in a request to the server."""
    answer_column: str = "answer"
    """The column that is added."""
    on_error: Literal["fail", "skip"] = "fail"
    """Whether the first row without an answer ends the run, or says why in `ANSWER_error`."""
    workers: int = 1
    """How many groups of texts run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkReport:
    """What was done."""

    rows: int
    """In the output."""
    failed: int
    """Of them, those without an answer."""
    resumed_rows: int
    """Of them, those that an earlier run had finished."""
    seconds: float
    problems: list[str]
    """The first few of this run."""


@dataclass(frozen=True, slots=True)
class _Window:
    rows: list[Row]
    asked: list[tuple[Any, str | None]]
    """By row: the item, or what is wrong."""
    groups: list[tuple[list[int], "Future[list[tuple[Any, str | None]]]"]]


def predict_file(
    encoder: Encoder,
    source: str | Path,
    out: str | Path,
    *,
    settings: BulkSettings,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> BulkReport:
    """Answer every row of a file; rows and their order stay, answers are those of `encoder.predict`.

    Args:
        encoder: loaded with `threads=1` where `settings.workers` is above 1.
        source: a file of .jsonl, .csv, .tsv or .parquet, or `-` for jsonl on standard input.
        out: a file of .jsonl, .csv or .parquet, or `-` for jsonl on standard output. A file appears when it is whole.
        settings: how.
        resume: go on with a run that was stopped.
        overwrite: replace what is there.
        progress: is told of rows.

    Raises:
        DataError: if a row has no answer and `settings.on_error` is fail, or the file cannot be read.
        UsageError: if columns or parameters do not fit.
        OutputError: if the output is in the way or cannot be written.
    """
    source, out = (name if str(name) == STANDARD else Path(name).expanduser().resolve() for name in (source, out))
    _check_ends(source, out, resume=resume)
    work = _Work(encoder, _open_source(source), settings)
    output = work.output_for("" if str(out) == STANDARD else Path(out).suffix)
    started = time.perf_counter()
    with ThreadPoolExecutor(settings.workers, thread_name_prefix="predict") as pool:
        try:
            if str(out) == STANDARD:
                return _to_stdout(work, output, pool, progress, started)
            with closing(Journal(Path(out))) as journal:
                journal.open(work.head(output, source), resume=resume, overwrite=overwrite)
                return _to_file(work, output, journal, pool, progress, started)
        finally:
            pool.shutdown(cancel_futures=True)


class _Work:
    """One run: the source, the model, and what is asked of it."""

    def __init__(self, encoder: Encoder, source: Source, settings: BulkSettings) -> None:
        self.source, self.settings = source, settings
        self.manifest = encoder.manifest
        self.problems: list[str] = []
        self._encoder = encoder
        self._parameters = _parameters(encoder, settings.parameters)
        self._longest = longest_text(self.manifest)
        self._names = Names(settings.answer_column, settings.on_error == "skip")
        self._peeked, self._rest = _peek(source)
        have = source.columns or next((tuple(row.values) for row in self._peeked if row.values is not None), ())
        self.input_columns = list(have)
        self.columns = pick_columns(self.manifest, have, settings.columns) if self._peeked else ()
        added = {settings.answer_column, *(f"{settings.answer_column}_{name}" for name in ("label", "score", "error"))}
        if taken := sorted(added.intersection(have)):
            raise UsageError(f"{source.name} has a column {taken[0]!r} already; choose another with --answer-column")

    def output_for(self, suffix: str) -> Output:
        match suffix:
            case "" | ".jsonl":
                return JsonLinesOutput(self._names)
            case ".csv":
                return CsvOutput(self._names, columns=self.input_columns, task=self.manifest.task)
            case ".parquet":
                from potstill.serve.bulk.parquet import ParquetOutput

                self.source.needed = self.columns or None  # it copies the others untouched
                return ParquetOutput(self._names, task=self.manifest.task)
        raise UsageError(f"the output's name ends in {suffix!r}; expected .jsonl, .csv or .parquet")

    def head(self, output: Output, source: str | Path) -> dict[str, Any]:
        """Return what a run that goes on must have the same."""
        facts = None if str(source) == STANDARD else Path(source).stat()
        return {
            "input": None if facts is None else [facts.st_size, facts.st_mtime_ns],
            "bundle": self._encoder.bundle.manifest_sha256,
            "precision": self._encoder.precision,
            "text columns": list(self.columns),
            "parameters": dict(self.settings.parameters),
            "answer column": self.settings.answer_column,
            "output": type(output).__name__,
            "output columns": output.head,
        }

    def windows(self, start: Place, pool: ThreadPoolExecutor) -> Iterator[_Window]:
        """Give windows in order, with the answers of the next ones on their way."""
        begun: deque[_Window] = deque()
        for rows in _in_windows(self._rows(start)):
            begun.append(self._ask(rows, pool))
            if len(begun) > _AHEAD:
                yield begun.popleft()
        yield from begun

    def answered(self, window: _Window) -> list[Answered]:
        """Wait for a window's answers.

        Raises:
            DataError: for the first row without one, unless such rows are skipped.
        """
        found = list(window.asked)
        for indices, future in window.groups:
            for index, answer in zip(indices, future.result(), strict=True):
                found[index] = answer
        answered = [
            Answered(row, None if problem else answer, problem and f"{self.source.unit} {row.line} {problem}")
            for row, (answer, problem) in zip(window.rows, found, strict=True)
        ]
        for one in answered:
            if one.problem is None:
                continue
            if self.settings.on_error == "fail":
                raise DataError(f"{self.source.name} {one.problem}")
            if len(self.problems) < 3:
                self.problems.append(one.problem)
        return answered

    def _rows(self, start: Place) -> Iterator[Row]:
        if self._rest is not None:  # a stream, which is read once
            return chain(self._peeked, self._rest)
        return self.source.rows(start)

    def _ask(self, rows: list[Row], pool: ThreadPoolExecutor) -> _Window:
        asked = [self._item(row) for row in rows]
        good = [index for index, (_, problem) in enumerate(asked) if problem is None]
        # The longest first: what runs at the end is short, so that workers end together.
        good.sort(key=lambda index: -_length(asked[index][0]))
        groups = []
        for begin in range(0, len(good), _GROUP):
            indices = good[begin : begin + _GROUP]
            groups.append((indices, pool.submit(self._answers, [asked[index][0] for index in indices])))
        return _Window(rows, asked, groups)

    def _item(self, row: Row) -> tuple[Any, str | None]:
        if row.values is None:
            return None, row.problem
        if self.source.columns is None:
            unknown = [name for name in (self._names.answer, self._names.problem) if name in row.values]
            if unknown:
                return None, f"has a column {unknown[0]!r}, which is the output's"
        return item_of(row.values, self.columns, manifest=self.manifest, longest=self._longest)

    def _answers(self, items: Sequence[Any]) -> list[tuple[Any, str | None]]:
        """Ask the model; where it refuses a group, ask for each alone, so that only the guilty one has no answer."""
        try:
            return [(answer, None) for answer in self._encoder.predict(items, parameters=self._parameters)]
        except (UsageError, CheckError) as error:
            if len(items) == 1:
                return [(None, f"has no answer: {error}")]
        return [self._answers([item])[0] for item in items]


def _to_file(
    work: _Work, output: Output, journal: Journal, pool: ThreadPoolExecutor, progress: Progress, started: float
) -> BulkReport:
    resumed = journal.last.rows
    if not journal.is_done:
        output.begin_again(journal.partial, journal.lengths)
        for window in work.windows(journal.last.place, pool):
            answered = work.answered(window)
            failed = sum(one.problem is not None for one in answered)
            content = output.encode(answered, is_first=journal.last.rows == 0)
            journal.add(content, rows=len(answered), failed=failed, after=window.rows[-1].after)
            _tell(progress, work.source, journal.last.rows, window.rows[-1].after, started, resumed)
        if journal.last.rows == 0:
            journal.add(output.encode([], is_first=True), rows=0, failed=0, after=Place())
    journal.publish(output.finish)
    last = journal.last
    progress(STAGE, last.rows, max(last.rows, 1), "")
    return BulkReport(
        rows=last.rows, failed=last.failed, resumed_rows=resumed, seconds=time.perf_counter() - started,
        problems=work.problems,
    )  # fmt: skip


def _to_stdout(work: _Work, output: Output, pool: ThreadPoolExecutor, progress: Progress, started: float) -> BulkReport:
    rows = failed = 0
    for window in work.windows(Place(), pool):
        answered = work.answered(window)
        sys.stdout.buffer.write(output.encode(answered, is_first=rows == 0))
        sys.stdout.buffer.flush()
        rows, failed = rows + len(answered), failed + sum(one.problem is not None for one in answered)
        _tell(progress, work.source, rows, window.rows[-1].after, started, 0)
    progress(STAGE, rows, max(rows, 1), "")
    return BulkReport(
        rows=rows, failed=failed, resumed_rows=0, seconds=time.perf_counter() - started, problems=work.problems
    )


def _tell(progress: Progress, source: Source, rows: int, after: Place, started: float, resumed: int) -> None:
    """Tell how many rows are done, of about how many; a file of lines does not say how many it has."""
    total = max(rows + 1, round(rows * source.size / after.offset)) if source.size and after.offset else 0
    progress(STAGE, rows, total, f"{(rows - resumed) / (time.perf_counter() - started):.0f} a second")


def _check_ends(source: str | Path, out: str | Path, *, resume: bool) -> None:
    if resume and STANDARD in (str(source), str(out)):
        raise UsageError("a run over standard input or output cannot be resumed; name files")
    if str(out) != STANDARD and Path(out).suffix not in {".jsonl", ".csv", ".parquet"}:
        raise UsageError(f"{out} must end in .jsonl, .csv or .parquet, or be {STANDARD} for jsonl on standard output")


def _open_source(source: str | Path) -> Source:
    if str(source) == STANDARD:
        return JsonLines(None, sys.stdin.buffer)
    file = Path(source)
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    match file.suffix:
        case ".jsonl":
            return JsonLines(file)
        case ".csv" | ".tsv":
            return Separated(file)
        case ".parquet":
            from potstill.serve.bulk.parquet import ParquetSource

            return ParquetSource(file)
    raise DataError(f"{file} must end in .jsonl, .csv, .tsv or .parquet")


def _peek(source: Source) -> tuple[list[Row], Iterator[Row] | None]:
    """Return the first rows up to one that can be read, and, of a stream, the rows behind them."""
    rows = source.rows(Place())
    first: list[Row] = []
    for row in rows:
        first.append(row)
        if row.values is not None:
            break
        if len(first) == _WINDOW_ROWS:
            raise DataError(f"none of the first {_WINDOW_ROWS} rows of {source.name} can be read: {first[0].problem}")
    return first, rows if source.is_stream else None


def _parameters(encoder: Encoder, given: Mapping[str, Any]) -> BaseModel | None:
    if not given:
        return None
    try:
        return encoder.task.parameters.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"the parameter {place} does not fit {encoder.manifest.task}: {first['msg']}") from error


def _in_windows(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Cut the same windows wherever a run begins, so that a resumed one has the same neighbours in its batches."""
    window: list[Row] = []
    weight = 0
    for row in rows:
        window.append(row)
        weight += row.weight
        if len(window) == _WINDOW_ROWS or weight >= _WINDOW_BYTES:
            yield window
            window, weight = [], 0
    if window:
        yield window


def _length(item: Any) -> int:
    if isinstance(item, str):
        return len(item)
    return sum(map(len, item)) if isinstance(item, tuple) else len(item.context)
