"""Write whole or not at all: new folders and files appear by one rename.

A folder is built in a hidden sibling (`.NAME.tmp-PID`), flushed to disk and renamed. A process that dies leaves
only the hidden sibling, which the next run for the same name removes.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from potstill.errors import OutputError

# Bytes of a folder's name: most file systems allow 255, and the hidden sibling's name is longer.
_LONGEST_NAME = 230


def check_free(out_dir: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that already holds something, after clearing up behind runs that died.

    Raises:
        OutputError: if `out_dir` is a file, or a folder with content and `overwrite` is false, or the current folder or
            one above it, or has a name that is too long.
    """
    if Path.cwd().is_relative_to(out_dir.resolve()):
        raise OutputError(
            f"{out_dir} is the folder you are in, or one above it; name a folder to be made, as --out out"
        )
    if len(os.fsencode(out_dir.name)) > _LONGEST_NAME:
        raise OutputError(f"the name {out_dir.name[:20]}... has more than {_LONGEST_NAME} bytes; take a shorter one")
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
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    building = out_dir.parent / f".{out_dir.name}.tmp-{os.getpid()}"
    building.mkdir()
    try:
        yield building
        _flush(building)
        _replace(out_dir, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file` (UTF-8): the file holds all of it, or is what it was before."""
    building = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        with building.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        building.replace(file)
    finally:
        building.unlink(missing_ok=True)


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
