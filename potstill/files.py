"""Write files so that a crash loses nothing: atomic folders and files, and an append-only journal.

A folder is built in a hidden sibling (`.NAME.tmp-PID`), flushed to disk and renamed. A process that dies leaves
only the hidden sibling, which the next run for the same name removes. Long work records what it has finished in a
`Journal`, and resumes from there.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, TypeAlias

from potstill.errors import DiskError, MissingError, OutputError, PotstillError

# Bytes of a folder's name: most file systems allow 255, and the hidden sibling adds a dot, `.tmp-` and a process id.
_LONGEST_NAME = 230
# No space left, a quota reached, or a file larger than is allowed (`ulimit -f`).
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# safetensors and torch write from Rust and C++, and raise no OSError; torch's writer does not say why it failed.
_FULL_WORDS = (
    os.strerror(errno.ENOSPC),
    os.strerror(errno.EDQUOT),
    os.strerror(errno.EFBIG),
    "PytorchStreamWriter failed writing",
    "unexpected pos",
)


def check_free(out_dir: Path, *, overwrite: bool) -> None:
    """Raise unless `out_dir` can be written; first remove what runs that died have left beside it.

    Raises:
        OutputError: if `out_dir` is a file, a folder with content (unless `overwrite`), a mount point, or the current
            folder or one above it; or if its name is too long, or it lies where nothing can be written.
    """
    if Path.cwd().is_relative_to(out_dir.resolve()):
        raise OutputError(
            f"{out_dir} is the folder you are in, or one above it; name a folder to be made, as --out out"
        )
    if len(os.fsencode(out_dir.name)) > _LONGEST_NAME:
        raise OutputError(f"the name {out_dir.name[:20]}... has more than {_LONGEST_NAME} bytes; take a shorter one")
    # A mount point can neither be renamed nor removed, which is how a folder is replaced.
    if out_dir.is_mount():
        raise OutputError(f"{out_dir} is where a disk is mounted, and cannot be replaced; name a folder in it")
    _check_parent(out_dir.resolve())
    _remove_leftovers(out_dir.resolve())  # before the look at its content: it may bring one back
    if out_dir.is_file():
        raise OutputError(f"{out_dir} is a file; name a folder with --out")
    if out_dir.is_dir() and any(out_dir.iterdir()) and not overwrite:
        raise OutputError(f"{out_dir} is not empty; pass --overwrite to replace it, or name another folder")


@contextmanager
def new_folder(out_dir: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out_dir` if the block ends without an error, and is removed otherwise.

    Raises:
        OutputError: as `check_free`.
    """
    out_dir = out_dir.resolve()  # a link to a folder stays a link
    check_free(out_dir, overwrite=overwrite)
    # A sibling, because a rename is atomic within one file system only.
    building = out_dir.parent / f".{out_dir.name}.tmp-{os.getpid()}"
    try:
        with writing(out_dir):
            out_dir.parent.mkdir(parents=True, exist_ok=True)
            building.mkdir()
            yield building
            # Contents before the rename: after a power cut, a name may otherwise point to empty files.
            for path in (building, *building.rglob("*")):
                flush_to_disk(path)
            _replace(out_dir, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file` in UTF-8 atomically: it holds all of it, or is unchanged."""
    building = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        with writing(file), building.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        building.replace(file)
    finally:
        with suppress(OSError):
            building.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission, whatever a library raises for it, into an error that names `target`.

    Raises:
        DiskError: if the disk is full or a quota is reached.
        MissingError: if memory runs out.
        OutputError: if `target` may not be written.
    """
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:
        failure = machine_failure(error, target)
        if failure is None:
            raise
        raise failure from error


def machine_failure(error: BaseException, target: Path | None = None) -> PotstillError | None:
    """Return a PotstillError for a full disk, a missing permission or too little memory; None for any other error.

    Args:
        error: what was raised; other libraries' errors are recognised by their message or their cause.
        target: what was being written, if known.
    """
    causes = list(_chain(error))
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno is not None}
    words = " ".join(str(cause) for cause in causes)
    named = next((Path(str(cause.filename)) for cause in causes if isinstance(cause, OSError) and cause.filename), None)
    place = target or named
    where = f"{place} cannot be written" if place else "a file cannot be written"
    if numbers & _FULL or any(sign in words for sign in _FULL_WORDS):
        what = (
            "a quota or the largest size of a file" if numbers & {errno.EDQUOT, errno.EFBIG} else "the end of the disk"
        )
        return DiskError(f"{where}: {what} is reached; make room")
    # With no file named, a permission error may come from a socket or a process and is no matter of a place.
    if numbers & _FORBIDDEN and (target is not None or named is not None):
        reason = os.strerror((numbers & _FORBIDDEN).pop()).lower()
        return OutputError(f"{named or target} cannot be used: {reason}; name another place, or change its permissions")
    # torch's allocator on the CPU raises a RuntimeError with these words.
    if any(isinstance(cause, MemoryError) for cause in causes) or "can't allocate memory" in words:
        return MissingError("this machine has not enough memory for it; take smaller batches, or a larger machine")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes; chains may be circular."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _check_parent(out_dir: Path) -> None:
    """Raise if a folder could not be created, before anything is computed for it."""
    above = next(folder for folder in out_dir.parents if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{above} is a file, so {out_dir} cannot be made in it; name another folder")
    try:  # really make one: permissions do not show that a file system is read-only, full, or virtual as /proc
        Path(tempfile.mkdtemp(prefix=".potstill-", dir=above)).rmdir()
    except OSError as error:
        raise machine_failure(error, above) or OutputError(
            f"{above} takes no folders, so {out_dir.name} cannot be made in it ({error.strerror}); name another folder"
        ) from error


def _replace(out_dir: Path, building: Path) -> None:
    """Rename `building` to `out_dir`, and an older folder out of the way first."""
    if not out_dir.exists():
        building.rename(out_dir)
        return
    # rename(2) replaces no folder with content. A crash between the two renames leaves `.old-`, which
    # `_remove_leftovers` brings back.
    old = out_dir.parent / f".{out_dir.name}.old-{os.getpid()}"
    out_dir.rename(old)
    building.rename(out_dir)
    shutil.rmtree(old)


def flush_to_disk(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(out_dir: Path) -> None:
    """Remove what dead runs have left, and restore an old folder whose run died between its two renames."""
    for left in sorted(out_dir.parent.glob(f".{escape(out_dir.name)}.*-*")):
        kind, _, pid = left.name.removeprefix(f".{out_dir.name}.").partition("-")
        if kind not in {"tmp", "old"} or not pid.isdigit() or _is_alive(int(pid)):
            continue
        if kind == "old" and not out_dir.exists():
            left.rename(out_dir)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    """Return whether another process has this id; signal 0 sends nothing."""
    if pid == os.getpid():  # a leftover of an earlier process whose id this one was given
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no process id is so large
        return False
    except PermissionError:  # alive, and another user's
        return True
    return True


Entry: TypeAlias = dict[str, Any]
"""The JSON object of one line of a journal."""


class Journal:
    """An append-only file of JSON objects, one per line, from which an interrupted run resumes.

    The first line, the header, identifies the run: its models, data and settings, as plain JSON. Every other line is an
    entry. Opened by `open_journal`, or by `read_journal` for reading alone.

    Guarantees after a crash:

    - A process that dies leaves at most a torn last line, which is dropped when the file is opened again. If the system
      takes only a part of a line, as on a disk that is nearly full, that part is cut off again at once. So every entry
      that is read is whole; a damaged line before the last is an error.
    - An entry survives the process once `append` returns. It survives a power cut with `flush=True`, or after `close`.
      Whatever an entry vouches for, such as rows in a file beside it, must be flushed before the entry is appended.
    - One process at a time has the file open for writing (flock); a second one gets an error.
    """

    def __init__(self, file: Path, lines: Sequence[tuple[Entry, int]], *, descriptor: int | None) -> None:
        """Take (content, offset of its end in bytes) of each line; a descriptor of None makes the journal read-only."""
        self.file = file
        self.header: Mapping[str, Any] = lines[0][0]
        self.entries = [entry for entry, _ in lines[1:]]
        self._ends = [end for _, end in lines]
        self._descriptor = descriptor

    def append(self, entry: Mapping[str, object], *, flush: bool = False) -> Entry:
        """Append an entry, and return it as a later run will read it (tuples become lists).

        Args:
            entry: plain JSON.
            flush: whether to return only once it is on the disk.

        Raises:
            ValueError: if it holds what JSON has not, such as NaN; nothing is written.
            OutputError: if the journal is closed.
            OSError: if the disk is full; the file is unchanged.
        """
        if self._descriptor is None:
            raise OutputError(f"{self.file} is closed: nothing more can be written to it")
        line = _json_line(entry)
        _append_line(self._descriptor, line)
        if flush:
            os.fsync(self._descriptor)
        self.entries.append(json.loads(line))
        self._ends.append(os.fstat(self._descriptor).st_size)
        return self.entries[-1]

    def keep_first(self, count: int) -> None:
        """Drop all entries but the first `count`, such as those whose rows did not reach the disk."""
        if self._descriptor is None:
            raise OutputError(f"{self.file} is closed: nothing more can be written to it")
        if count < len(self.entries):
            # `_ends[0]` is the header's, so `_ends[count]` is where the last entry that is kept ends.
            os.ftruncate(self._descriptor, self._ends[count])
            del self.entries[count:], self._ends[count + 1 :]

    def close(self) -> None:
        """Flush and close the file, which may then be copied or removed; `entries` stay readable."""
        if self._descriptor is None:
            return
        # First of all, so that a second close after a failed flush does not close somebody else's descriptor.
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_journal(
    file: Path,
    *,
    header: Mapping[str, object],
    resume: bool = True,
    name: str | None = None,
    remedy: str = "go on with the same, or begin anew elsewhere",
) -> Journal:
    """Open a journal to resume it, or create one.

    Args:
        file: the path; its folder must exist.
        header: plain JSON that identifies the run; a file with another header is not resumed.
        resume: whether to keep the entries that are there; otherwise the file is emptied.
        name: its name in messages; None is the path.
        remedy: the advice in messages if the file belongs to another run or is damaged.

    Raises:
        OutputError: if the file belongs to another run, is damaged, or is being written by another process.
    """
    name = name or str(file)
    wanted = json.loads(_json_line(header))
    # O_APPEND: after a truncation the next write still goes to the end of the file.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        try:
            # The kernel drops the lock with the process, however it dies, so none is ever stale.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock its last owner may have removed or replaced the file: compare inodes.
            is_ours = file.exists() and file.stat().st_ino == os.fstat(descriptor).st_ino
        except BlockingIOError:
            is_ours = False
        if not is_ours:  # another process has it, or had it until this moment and removed it
            raise OutputError(f"{name} is being written by another process; wait for it, or name another")
        lines = _read_lines(file, remedy) if resume else []
        if lines and lines[0][0] != wanted:
            found = lines[0][0]
            changed = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            raise OutputError(f"{name} was begun with another {', '.join(changed)}; {remedy}")
        # Cut a torn last line off, or the next entry would be written behind it.
        os.ftruncate(descriptor, lines[-1][1] if lines else 0)
        if not lines:
            line = _json_line(wanted)
            _append_line(descriptor, line)
            lines = [(wanted, len(line))]
    except BaseException:
        os.close(descriptor)
        raise
    return Journal(file, lines, descriptor=descriptor)


def read_journal(file: Path) -> Journal:
    """Read a journal without locking it; nothing can be appended.

    Raises:
        OutputError: if the file is missing, empty, or damaged before its last line.
    """
    if not file.is_file():
        raise OutputError(f"{file} does not exist")
    lines = _read_lines(file, "name another")
    if not lines:
        raise OutputError(f"{file} is empty, so it is no journal")
    return Journal(file, lines, descriptor=None)


def _json_line(content: Mapping[str, object]) -> bytes:
    # allow_nan=False: NaN is no JSON (RFC 8259, section 6), and would make the header differ from itself.
    return (json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _append_line(descriptor: int, line: bytes) -> None:
    """Write a whole line or nothing."""
    end = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, line)
    except BaseException:
        os.ftruncate(descriptor, end)
        raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`; one write(2) may take only a part of it."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read_lines(file: Path, remedy: str) -> list[tuple[Entry, int]]:
    """Return (object, offset of its end in bytes) for every whole line; a torn last line is left out."""
    read: list[tuple[Entry, int]] = []
    end = 0
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        # A last line without its line feed is torn even if what there is of it is JSON.
        if not line.endswith(b"\n") or not isinstance(content, dict):
            if number == len(lines):
                break
            raise OutputError(f"{file}, line {number} is damaged; {remedy}")
        end += len(line)
        read.append((content, end))
    return read
