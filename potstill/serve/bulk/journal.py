"""What a run has finished, on the disk: a partial file, and a journal that says how much of it counts.

Beside OUT lie `.OUT.partial`, to which rows are appended, and `.OUT.journal`: its first line says what the run is, each
other one how far it has come. Rows are flushed to the disk before the line that counts them, so whatever moment a
process dies at, the last whole line is true; what the partial file holds beyond it is cut off when the run goes on.
At the end the output gets its name by one rename.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from potstill.errors import OutputError
from potstill.files import machine_failure
from potstill.serve.bulk.rows import Place

_SCHEMA = "potstill-predict/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """How far a run has come."""

    rows: int = 0
    failed: int = 0
    offset: int = 0
    line: int = 0
    size: int = 0
    """Bytes of the partial file that count."""

    @property
    def place(self) -> Place:
        """Where reading goes on."""
        return Place(self.offset, self.line)


class Journal:
    """One output in the making; only one process at a time has it."""

    def __init__(self, out: Path) -> None:
        """Name the files; nothing is opened yet."""
        self._out = out
        self._partial = out.with_name(f".{out.name}.partial")
        self._file = out.with_name(f".{out.name}.journal")
        self._descriptor = self._data = -1
        self._is_ours = False
        self.commits: list[Commit] = [Commit()]
        self.is_done = False

    def open(self, head: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Self:
        """Begin, or go on.

        Raises:
            OutputError: if the output or an unfinished run is in the way, is of other settings, or is being written.
        """
        if not self._out.parent.is_dir():
            raise OutputError(f"there is no folder {self._out.parent} for {self._out.name}; make it first")
        if self._out.exists() and not self._out.is_file():
            raise OutputError(f"{self._out} is no ordinary file; name one with --out")
        was_begun = self._file.exists()
        if was_begun and not (resume or overwrite):
            raise OutputError(f"{self._out} was begun and not finished; go on with --resume, or replace by --overwrite")
        if not was_begun and self._out.exists() and not overwrite:
            raise OutputError(f"{self._out} is there already; pass --overwrite to replace it, or name another file")
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._begin(json.loads(_line({"schema": _SCHEMA, **head})), go_on=resume)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def last(self) -> Commit:
        """How far the run has come."""
        return self.commits[-1]

    @property
    def lengths(self) -> list[int]:
        """How many bytes each commit has added."""
        sizes = [commit.size for commit in self.commits]
        return [after - before for before, after in pairwise(sizes)]

    @property
    def partial(self) -> Path:
        """The file that rows are appended to."""
        return self._partial

    def add(self, content: bytes, *, rows: int, failed: int, after: Place) -> None:
        """Append finished rows, and count them once they are on the disk.

        Raises:
            DiskError: if the disk takes no more; the run can go on later.
        """
        last = self.last
        commit = Commit(
            rows=last.rows + rows, failed=last.failed + failed, offset=after.offset, line=after.line,
            size=last.size + len(content),
        )  # fmt: skip
        try:
            _write(self._data, content)
            os.fsync(self._data)
            self._append(asdict(commit))
        except OSError as error:
            raise machine_failure(error, self._out) or OutputError(
                f"{self._partial} cannot be written: {error.strerror}; make room and go on with --resume"
            ) from error
        self.commits.append(commit)

    def publish(self, make: Callable[[Path, Sequence[int], Path], Path]) -> None:
        """Give the output its name, whole; `make` is `Output.finish`.

        Raises:
            DiskError: if the disk takes no more.
        """
        final = self._out.with_name(f".{self._out.name}.final")
        try:
            if not self.is_done:
                self._append({"done": True})
                self.is_done = True
            if self._partial.exists():
                made = make(self._partial, self.lengths, final)
                _flush(made)
                made.replace(self._out)
                _flush(self._out.parent)
                self._partial.unlink(missing_ok=True)
            self._file.unlink()
        except OSError as error:
            raise machine_failure(error, self._out) or OutputError(
                f"{self._out} cannot be written: {error.strerror}; make room, then --resume"
            ) from error

    def close(self) -> None:
        """Let go of the files; a run that has finished no row leaves nothing."""
        for descriptor in (self._data, self._descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._data = -1
        if self._is_ours and not self.is_done and self.last.rows == 0:
            self._partial.unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)

    def _begin(self, head: Mapping[str, Any], *, go_on: bool) -> None:
        _lock(self._descriptor, self._file, self._out)
        lines = _read(self._file) if go_on else []
        found = lines[0].content if lines else head
        if found != head:
            changed = sorted(key for key in found.keys() | head.keys() if found.get(key) != head.get(key))
            raise OutputError(
                f"{self._out} was begun with another {', '.join(changed)}; go on with the same, or begin again with "
                "--overwrite and without --resume"
            )
        self._is_ours = True
        if not lines or not self._take_up(lines):
            os.ftruncate(self._descriptor, 0)
            self._append(head)
            self._open_partial(0)

    def _take_up(self, lines: Sequence["_Line"]) -> bool:
        """Go on behind the last line whose rows are on the disk; return whether there is something to go on with."""
        is_published = "done" in lines[-1].content and not self._partial.exists()
        if is_published and not self._out.exists():
            return False
        size = self._partial.stat().st_size if self._partial.exists() else 0
        end = lines[0].end
        for line in lines[1:]:
            if "done" in line.content:
                self.is_done, end = True, line.end
                continue
            commit = Commit(**line.content)
            if commit.size > size and not is_published:
                break
            self.commits.append(commit)
            end = line.end
        if is_published:
            return True
        os.ftruncate(self._descriptor, end)
        self._open_partial(self.last.size)
        return True

    def _open_partial(self, size: int) -> None:
        self._data = os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._data, size)
        os.lseek(self._data, size, os.SEEK_SET)

    def _append(self, content: Mapping[str, Any]) -> None:
        _write(self._descriptor, _line(content))
        os.fsync(self._descriptor)


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: Path, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = file.exists() and file.stat().st_ino == os.fstat(descriptor).st_ino
    except BlockingIOError:
        is_there = False
    if not is_there:  # another process has it, or had it until this moment
        raise OutputError(f"{out} is being written by another process; wait for it, or name another file")


@dataclass(frozen=True, slots=True)
class _Line:
    content: dict[str, Any]
    end: int
    """Bytes of the journal up to its end."""


def _read(file: Path) -> list[_Line]:
    """Return the whole lines; a torn last one is left out."""
    read: list[_Line] = []
    end = 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(content, dict):
            break
        end += len(line)
        read.append(_Line(content, end))
    return read
