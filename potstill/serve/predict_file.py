"""Answer a whole file (`potstill predict`): write every row with its answer; resumable after a kill at any moment.

Rows are read in windows, answered in parallel and written in order. The texts of a window are sorted into groups of
similar length, so that little is padded, and several groups run at once, each on one thread: on a CPU that is faster
than one run with several threads (microsoft/onnxruntime#16304).

Crash safety: while a run goes on, `.OUT.partial` and `.OUT.journal` (`potstill.files.Journal`) lie beside OUT. Rows are
appended to the partial file and flushed to the disk before the journal entry that counts them, so the last entry is
true at whatever moment the process dies; bytes of the partial file beyond it are cut off on resume. At the end one
rename gives the output its name.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ValidationError

from potstill.data.columns import pick_text_columns
from potstill.data.read import BEGIN, DataFile, JsonLinesFile, Place, Record, open_data_file
from potstill.errors import CheckError, DataError, OutputError, UsageError
from potstill.files import Journal, flush_to_disk, machine_failure, open_journal, read_journal, write_all
from potstill.progress import Progress, silent
from potstill.serve.encoder import Encoder
from potstill.serve.limits import Limits
from potstill.serve.predict_outputs import Added, Answered, Output, open_output
from potstill.serve.tasks.question_answering import Question
from potstill.tasks import FEATURE_EXTRACTION, QUESTION_ANSWERING, TEXT_NAMES, TOKEN_CLASSIFICATION, get_task

STANDARD = "-"
"""Standard input and output."""
STAGE = "predict"

_SCHEMA = "potstill-predict/1"
_READ, _WRITTEN = (".jsonl", ".csv", ".tsv", ".parquet"), (".jsonl", ".csv", ".parquet")
# Rows and bytes that are read, answered and flushed to the disk at once: enough to sort by length, and at most some
# seconds of work to lose.
WINDOW_ROWS, WINDOW_BYTES = 2048, 2 * 2**20
# Texts of one call of `Encoder.predict`: enough for its batches, few enough that the workers end together.
GROUP_TEXTS = 64
# Windows in memory besides the one being read: one that is being answered, and one that keeps workers busy after it.
_AHEAD = 2
_KINDS = {type(None): "nothing", list: "a list", dict: "an object", **dict.fromkeys((int, float, bool), "a number")}

Item: TypeAlias = Any
"""One input of a model: a text, a pair, or a `Question`."""
Asked: TypeAlias = tuple[Any, str | None]
"""A row's input, or later its answer, and None; or None and what is wrong with the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSettings:
    """Settings of one run over a file."""

    columns: Sequence[str] | None = None
    """The column of the text, or the two of a pair; None looks for the usual names."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """The task's parameters, as in a request to the server."""
    answer_column: str = "answer"
    """The name of the column that is added."""
    on_error: Literal["fail", "skip"] = "fail"
    """Whether the first row without an answer ends the run, or its problem is written to `ANSWER_error`."""
    workers: int = 1
    """Number of groups of texts that run at once, one thread each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictReport:
    """Result of one run over a file."""

    rows: int
    """Rows in the output."""
    failed: int
    """Those of them without an answer."""
    resumed_rows: int
    """Those of them that an earlier run had finished."""
    seconds: float
    """Duration of this run."""
    problems: list[str]
    """The first few problems of this run."""


def predict_file(
    encoder: Encoder,
    source: str | Path,
    out: str | Path,
    *,
    settings: PredictSettings,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PredictReport:
    """Answer every row of a file; rows and their order are kept, answers are those of `encoder.predict`.

    Args:
        encoder: loaded with `threads=1` where `settings.workers` is above 1.
        source: a file of .jsonl, .csv, .tsv or .parquet, or `-` for jsonl on standard input.
        out: a file of .jsonl, .csv or .parquet, or `-` for jsonl on standard output. A file appears when it is whole.
        settings: columns, parameters and what to do with errors.
        resume: continue a run that was stopped.
        overwrite: replace an existing output or unfinished run.
        progress: called with the rows that are done.

    Raises:
        DataError: if a row has no answer and `settings.on_error` is fail, or the file cannot be read.
        UsageError: if columns or parameters do not fit.
        OutputError: if the output is in the way or cannot be written.
    """
    source, out = (name if str(name) == STANDARD else Path(name).expanduser().resolve() for name in (source, out))
    is_stream, to_stdout = str(source) == STANDARD, str(out) == STANDARD
    if resume and (is_stream or to_stdout):
        raise UsageError("a run over standard input or output cannot be resumed; name files")
    suffix = "" if to_stdout else Path(out).suffix
    if not to_stdout and suffix not in _WRITTEN:
        raise UsageError(f"{out} must end in .jsonl, .csv or .parquet, or be {STANDARD} for jsonl on standard output")
    file = _open_source(source)
    run = _Run(encoder, file, settings)
    output = open_output(suffix, run.added, columns=run.input_columns, task=encoder.manifest.task)
    if suffix == ".parquet":  # it copies the input's other columns as Arrow data, so only texts become Python values
        run.decoded = run.columns or None
    started = time.perf_counter()
    rows = failed = resumed = 0

    def tell(after: Place) -> None:
        """Report the rows done and the total, estimated from the bytes read: a file of lines has no count of rows."""
        total = max(rows + 1, round(rows * file.size / after.offset)) if file.size and after.offset else 0
        progress(STAGE, rows, total, f"{(rows - resumed) / (time.perf_counter() - started):.0f} a second")

    with ThreadPoolExecutor(settings.workers, thread_name_prefix="predict") as pool:
        try:
            if to_stdout:
                for answered in run.answer(BEGIN, pool):
                    sys.stdout.buffer.write(output.encode(answered, is_first=rows == 0))
                    sys.stdout.buffer.flush()
                    rows, failed = rows + len(answered), failed + _count_failed(answered)
                    tell(answered[-1].record.after)
            else:
                with closing(_ResumableFile(Path(out))) as written:
                    written.open(run.identity(output, source), resume=resume, overwrite=overwrite)
                    rows = resumed = written.last.rows
                    # Else an earlier run has written all rows and died before it gave the output its name.
                    if not written.is_done:
                        output.take_up(written.partial, written.lengths)
                        for answered in run.answer(written.last.place, pool):
                            content = output.encode(answered, is_first=rows == 0)
                            after = answered[-1].record.after
                            written.add(content, rows=len(answered), failed=_count_failed(answered), after=after)
                            rows = written.last.rows
                            tell(after)
                        if rows == 0:
                            written.add(output.encode([], is_first=True), rows=0, failed=0, after=BEGIN)
                    written.publish(output)
                    failed = written.last.failed
        finally:  # after an error the groups that wait must not run first
            pool.shutdown(cancel_futures=True)
    progress(STAGE, rows, max(rows, 1), "")
    seconds = time.perf_counter() - started
    return PredictReport(rows=rows, failed=failed, resumed_rows=resumed, seconds=seconds, problems=run.problems)


def _open_source(source: str | Path) -> DataFile:
    if str(source) == STANDARD:
        return JsonLinesFile(None, sys.stdin.buffer, strict=True)
    file = Path(source).expanduser()
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    if file.suffix not in _READ:
        raise DataError(f"{file} must end in .jsonl, .csv, .tsv or .parquet")
    opened = open_data_file(file, strict=True)
    if opened.columns == ():
        raise DataError(f"{file} is empty; it needs a head of columns")
    return opened


def _count_failed(answered: Sequence[Answered]) -> int:
    return sum(one.problem is not None for one in answered)


# Rows and their answers


@dataclass(frozen=True, slots=True)
class _Window:
    records: list[Record]
    asked: list[Asked]
    groups: list[tuple[list[int], "Future[list[Asked]]"]]
    """The row numbers within the window of each group, and the future of their answers."""


class _Run:
    """The rows of one file and the model that answers them."""

    def __init__(self, encoder: Encoder, source: DataFile, settings: PredictSettings) -> None:
        """Read up to the first good row, to find its columns.

        Raises:
            UsageError: if columns or parameters do not fit.
        """
        self._encoder, self._source, self._settings = encoder, source, settings
        self._manifest = encoder.manifest
        self._parameters = _check_parameters(encoder, settings.parameters)
        # As many characters as the server accepts.
        self._longest = Limits().characters_per_token * encoder.manifest.max_length
        self.problems: list[str] = []
        self.decoded: Sequence[str] | None = None
        """The columns that are needed as Python values; None for all."""
        self.added = Added(settings.answer_column, settings.on_error == "skip")
        records = source.records()
        self._first: list[Record] = []
        for record in records:
            self._first.append(record)
            if record.values is not None:
                break
            if len(self._first) == WINDOW_ROWS:
                raise DataError(f"none of the first {WINDOW_ROWS} rows of {source.name} can be read: {record.problem}")
        self._rest = records if source.is_stream else None  # a stream cannot be read from its beginning again
        have = source.columns or next((list(one.values) for one in self._first if one.values is not None), ())
        self.input_columns = list(have)
        self.columns = self._pick_columns() if self._first else ()
        added = {settings.answer_column, *(f"{settings.answer_column}_{name}" for name in ("label", "score", "error"))}
        if taken := sorted(added.intersection(have)):
            raise UsageError(f"{source.name} has a column {taken[0]!r} already; choose another with --answer-column")

    def _pick_columns(self) -> tuple[str, ...]:
        task = get_task(self._manifest.task)
        # A data set of tags has its texts as lists of words, but offsets need the text. A vector is of one text.
        is_single = task in (TOKEN_CLASSIFICATION, FEATURE_EXTRACTION)
        return pick_text_columns(
            self.input_columns,
            task=task,
            asked=self._settings.columns,
            origin=self._source.name,
            usual=[(name,) for name in TEXT_NAMES] if is_single else None,
        )

    def identity(self, output: Output, source: str | Path) -> dict[str, object]:
        """Return the facts that must be equal for a run to be resumed."""
        facts = None if str(source) == STANDARD else Path(source).expanduser().stat()
        return {
            "schema": _SCHEMA,
            # Not a hash, which would read the whole input before the first row.
            "input": None if facts is None else [facts.st_size, facts.st_mtime_ns],
            "bundle": self._encoder.bundle.manifest_sha256,
            "precision": self._encoder.precision,
            "text columns": list(self.columns),
            "parameters": dict(self._settings.parameters),
            "answer column": self._settings.answer_column,
            "output": type(output).__name__,
            "output columns": output.head,
        }

    def answer(self, start: Place, pool: ThreadPoolExecutor) -> Iterator[list[Answered]]:
        """Yield the answers of windows in order, while those of the next windows are computed.

        Windows begin and end at the same rows wherever a run begins, so a resumed run makes the same batches.

        Raises:
            DataError: for the first row without an answer, unless such rows are skipped.
        """
        begun: deque[_Window] = deque()
        if self._rest is not None:  # read once: what was looked at first, and the rest
            records: Iterator[Record] = chain(self._first, self._rest)
        else:
            records = self._source.records(start, decoded=self.decoded)
        window: list[Record] = []
        weight = 0
        for record in records:
            window.append(record)
            weight += record.weight
            if len(window) == WINDOW_ROWS or weight >= WINDOW_BYTES:
                begun.append(self._ask(window, pool))
                window, weight = [], 0
                if len(begun) > _AHEAD:
                    yield self._answered(begun.popleft())
        if window:
            begun.append(self._ask(window, pool))
        yield from map(self._answered, begun)

    def _ask(self, records: list[Record], pool: ThreadPoolExecutor) -> _Window:
        asked = [self._item(record) for record in records]
        good = [index for index, (_, problem) in enumerate(asked) if problem is None]
        # The longest first: the groups that run at the end are short, so the workers end together.
        good.sort(key=lambda index: -_length(asked[index][0]))
        groups = []
        for begin in range(0, len(good), GROUP_TEXTS):
            indices = good[begin : begin + GROUP_TEXTS]
            groups.append((indices, pool.submit(self._predict, [asked[index][0] for index in indices])))
        return _Window(records, asked, groups)

    def _item(self, record: Record) -> Asked:
        """Return a row's input, or what is wrong with the row; the message repeats no text."""
        values = record.values
        if values is None:
            return None, record.problem
        if self._source.columns is None:  # jsonl: every row has its own keys, and only the first row's were checked
            unknown = [name for name in (self.added.answer, self.added.problem) if name in values]
            if unknown:
                return None, f"has a column {unknown[0]!r}, which is the output's"
        parts = []
        for name in self.columns:
            if name not in values:
                return None, f"has no column {name!r}"
            part = values[name]
            if not isinstance(part, str):
                return None, f"column {name!r} holds {_KINDS.get(type(part), 'something else')}, not a text"
            if len(part) > self._longest:
                return None, f"column {name!r} has {len(part)} characters; at most {self._longest} are read"
            parts.append(part)
        if self._manifest.task == QUESTION_ANSWERING.name:
            return Question(question=parts[0], context=parts[1]), None
        return (parts[0] if len(parts) == 1 else (parts[0], parts[1])), None

    def _predict(self, items: Sequence[Item]) -> list[Asked]:
        """Return the answers of a group; if it fails, ask for each text alone, so that only the culprit has none."""
        try:
            return [(answer, None) for answer in self._encoder.predict(items, parameters=self._parameters)]
        except (UsageError, CheckError) as error:
            if len(items) == 1:
                return [(None, f"has no answer: {error}")]
        return [self._predict([item])[0] for item in items]

    def _answered(self, window: _Window) -> list[Answered]:
        """Wait for the answers of a window, and return them in the order of its rows.

        Raises:
            DataError: for the first row without an answer, unless such rows are skipped.
        """
        found = list(window.asked)
        for indices, future in window.groups:
            for index, one in zip(indices, future.result(), strict=True):
                found[index] = one
        answered = []
        for record, (answer, problem) in zip(window.records, found, strict=True):
            if problem is not None:
                problem = f"{self._source.unit} {record.number} {problem}"
                if self._settings.on_error == "fail":
                    raise DataError(f"{self._source.name} {problem}")
                if len(self.problems) < 3:
                    self.problems.append(problem)
                answer = None
            answered.append(Answered(record, answer, problem))
        return answered


def _check_parameters(encoder: Encoder, given: Mapping[str, object]) -> BaseModel | None:
    if not given:
        return None
    try:
        return encoder.task.parameters.model_validate(dict(given))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise UsageError(f"the parameter {place} does not fit {encoder.manifest.task}: {fault['msg']}") from error


def _length(item: Item) -> int:
    if isinstance(item, str):
        return len(item)
    return sum(map(len, item)) if isinstance(item, tuple) else len(item.context)


# The output in the making


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commit:
    """How far a run has come: an entry of its journal. `offset` and `line` say where reading the input goes on."""

    rows: int = 0
    failed: int = 0
    offset: int = 0
    line: int = 0
    size: int = 0
    """Bytes of the partial file that this entry vouches for."""

    @property
    def place(self) -> Place:
        """Where reading the input goes on."""
        return Place(self.offset, self.line)


class _ResumableFile:
    """The partial file and the journal of one output; the journal's lock keeps other processes away."""

    def __init__(self, out: Path) -> None:
        """Set the names of the files; nothing is opened yet."""
        self._out = out
        self.partial = out.with_name(f".{out.name}.partial")
        self._journal_file = journal_file(out)
        self._journal: Journal | None = None
        self._descriptor = -1
        self._commits = [_Commit()]
        self.is_done = False

    def open(self, identity: Mapping[str, object], *, resume: bool, overwrite: bool) -> None:
        """Begin a run, or resume one.

        Args:
            identity: facts that must be equal for a run to be resumed.
            resume: continue an unfinished run, if there is one.
            overwrite: replace an existing output, or an unfinished run.

        Raises:
            OutputError: if an output or an unfinished run is there already, has other settings, or is being written by
                another process.
        """
        out, was_begun = self._out, self._journal_file.exists()
        if not out.parent.is_dir():
            raise OutputError(f"there is no folder {out.parent} for {out.name}; make it first")
        if out.exists() and not out.is_file():
            raise OutputError(f"{out} is no ordinary file; name one with --out")
        if was_begun and not (resume or overwrite):
            raise OutputError(f"{out} was begun and not finished; go on with --resume, or replace by --overwrite")
        if not was_begun and out.exists() and not overwrite:
            raise OutputError(f"{out} is there already; pass --overwrite to replace it, or name another file")
        self._journal = open_journal(
            self._journal_file,
            header=identity,
            resume=resume,
            name=str(out),
            remedy="go on with the same, or begin again with --overwrite and without --resume",
        )
        entries = self._journal.entries
        # A run may have died between the rename and the removal of its journal; then only the removal is left to do.
        is_published = bool(entries) and "done" in entries[-1] and not self.partial.exists()
        if is_published and not out.exists():  # somebody has removed the output since: begin again
            self._journal.keep_first(0)
            is_published = False
        size = self.partial.stat().st_size if self.partial.exists() else 0
        kept = 0
        for entry in list(self._journal.entries):
            if "done" in entry:
                self.is_done = True
            elif entry["size"] > size and not is_published:  # its rows were lost, for example when the machine failed
                break
            else:
                self._commits.append(_Commit(**entry))
            kept += 1
        if not is_published:
            self._journal.keep_first(kept)
            self._descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644)
            # Rows beyond the last entry may be incomplete; they are answered again.
            os.ftruncate(self._descriptor, self.last.size)
            os.lseek(self._descriptor, self.last.size, os.SEEK_SET)

    @property
    def last(self) -> _Commit:
        """The latest commit: how far the run has come."""
        return self._commits[-1]

    @property
    def lengths(self) -> list[int]:
        """The bytes of the partial file that each commit has added."""
        return [after.size - before.size for before, after in pairwise(self._commits)]

    def add(self, content: bytes, *, rows: int, failed: int, after: Place) -> None:
        """Append finished rows, flush them, and then add the journal entry that counts them.

        Raises:
            DiskError: if the disk takes no more; the run can go on later.
        """
        assert self._journal is not None
        commit = _Commit(
            rows=self.last.rows + rows,
            failed=self.last.failed + failed,
            offset=after.offset,
            line=after.line,
            size=self.last.size + len(content),
        )
        try:
            write_all(self._descriptor, content)
            os.fsync(self._descriptor)  # before the entry, or after a power failure it could count rows that are lost
            self._journal.append(asdict(commit), flush=True)
        except OSError as error:
            raise machine_failure(error, self._out) or OutputError(
                f"{self.partial} cannot be written: {error.strerror}; make room and go on with --resume"
            ) from error
        self._commits.append(commit)

    def publish(self, output: Output) -> None:
        """Finish the partial file and rename it to the output; safe to be repeated after a crash at any step.

        Raises:
            DiskError: if the disk takes no more.
        """
        assert self._journal is not None
        try:
            if not self.is_done:
                self._journal.append({"done": True}, flush=True)
                self.is_done = True
            if self.partial.exists():
                made = output.finish(self.partial, self.lengths, self._out.with_name(f".{self._out.name}.final"))
                flush_to_disk(made)  # before the rename: else the name may come to the disk before the content
                made.replace(self._out)
                flush_to_disk(self._out.parent)  # the rename itself is data of the folder (fsync(2))
                self.partial.unlink(missing_ok=True)
            self._journal_file.unlink()
        except OSError as error:
            raise machine_failure(error, self._out) or OutputError(
                f"{self._out} cannot be written: {error.strerror}; make room, then --resume"
            ) from error

    def close(self) -> None:
        """Close the files; a run that has finished no row removes them."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._journal is not None:
            self._journal.close()
            if not self.is_done and self.last.rows == 0:
                self.partial.unlink(missing_ok=True)
                self._journal_file.unlink(missing_ok=True)


def journal_file(out: Path) -> Path:
    """Return the path of an output's journal, which exists while the run is unfinished."""
    return out.with_name(f".{out.name}.journal")


def rows_done(out: Path) -> int | None:
    """Return how many rows of an unfinished output are on the disk; None if there is no such output."""
    file = journal_file(out)
    if not file.is_file():
        return None
    try:
        return max((entry.get("rows", 0) for entry in read_journal(file).entries), default=0)
    except OutputError:
        return 0
