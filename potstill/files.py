"""Write whole or not at all: new folders and files appear by one rename.

A folder is built in a hidden sibling (`.NAME.tmp-PID`), flushed to disk and renamed. A process that dies leaves
only the hidden sibling, which the next run for the same name removes.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from potstill.errors import DiskError, MissingError, OutputError, PotstillError

# Bytes of a folder's name: most file systems allow 255, and the hidden sibling's name is longer.
_LONGEST_NAME = 230


def check_free(out_dir: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that already holds something, after clearing up behind runs that died.

    Raises:
        OutputError: if `out_dir` is a file, or a folder with content and `overwrite` is false, or the current folder or
            one above it, or has a name that is too long, or lies where nothing can be written.
    """
    if Path.cwd().is_relative_to(out_dir.resolve()):
        raise OutputError(
            f"{out_dir} is the folder you are in, or one above it; name a folder to be made, as --out out"
        )
    if len(os.fsencode(out_dir.name)) > _LONGEST_NAME:
        raise OutputError(f"the name {out_dir.name[:20]}... has more than {_LONGEST_NAME} bytes; take a shorter one")
    if out_dir.is_mount():
        raise OutputError(f"{out_dir} is where a disk is mounted, and cannot be replaced; name a folder in it")
    _check_parent(out_dir.resolve())
    _remove_leftovers(out_dir.resolve())  # first: it may bring back a folder that must not be lost
    if out_dir.is_file():
        raise OutputError(f"{out_dir} is a file; name a folder with --out")
    if out_dir.is_dir() and any(out_dir.iterdir()) and not overwrite:
        raise OutputError(f"{out_dir} is not empty; pass --overwrite to replace it, or name another folder")


@contextmanager
def new_folder(out_dir: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes `out_dir` when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: as `check_free`.
    """
    out_dir = out_dir.resolve()  # a link to a folder stays a link
    check_free(out_dir, overwrite=overwrite)
    building = out_dir.parent / f".{out_dir.name}.tmp-{os.getpid()}"
    try:
        with writing(out_dir):
            out_dir.parent.mkdir(parents=True, exist_ok=True)
            building.mkdir()
            yield building
            _flush(building)
            _replace(out_dir, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file` (UTF-8): the file holds all of it, or is what it was before."""
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
    """Turn a full disk, whatever a library calls it, into one error that names what was being written.

    Raises:
        DiskError: if the disk takes no more.
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
    """Return an error that the machine and not the program is to blame for as one of ours, or None.

    Args:
        error: whatever was raised; a library's own error counts by its words, or by what caused it.
        target: what was being written, if that is known.
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
    if numbers & _FORBIDDEN and (target is not None or named is not None):
        reason = os.strerror((numbers & _FORBIDDEN).pop()).lower()
        return OutputError(f"{named or target} cannot be used: {reason}; name another place, or change its permissions")
    if any(isinstance(cause, MemoryError) for cause in causes) or "can't allocate memory" in words:
        return MissingError("this machine has not enough memory for it; take smaller batches, or a larger machine")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


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


def _check_parent(out_dir: Path) -> None:
    """Refuse a folder that could not be made, before anything is computed for it."""
    above = next(folder for folder in out_dir.parents if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{above} is a file, so {out_dir} cannot be made in it; name another folder")
    try:  # permissions do not say it all: a file system may be read-only, full, or not a real one
        Path(tempfile.mkdtemp(prefix=".potstill-", dir=above)).rmdir()
    except OSError as error:
        raise machine_failure(error, above) or OutputError(
            f"{above} takes no folders, so {out_dir.name} cannot be made in it ({error.strerror}); name another folder"
        ) from error


def _replace(out_dir: Path, building: Path) -> None:
    if not out_dir.exists():
        building.rename(out_dir)
        return
    old = out_dir.parent / f".{out_dir.name}.old-{os.getpid()}"
    out_dir.rename(old)
    building.rename(out_dir)
    shutil.rmtree(old)


def _flush(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # some file systems cannot flush a folder
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(out_dir: Path) -> None:
    """Clear what runs that died have left, and bring back a folder that died between its two renames."""
    for left in sorted(out_dir.parent.glob(f".{escape(out_dir.name)}.*-*")):
        kind, _, pid = left.name.removeprefix(f".{out_dir.name}.").partition("-")
        if kind not in {"tmp", "old"} or not pid.isdigit() or _is_alive(int(pid)):
            continue
        if kind == "old" and not out_dir.exists():
            left.rename(out_dir)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
