"""Everything that was measured, line by line as it comes, so that an interrupted run loses nothing.

`samples.jsonl`: the first line is the head (what is measured, and with which settings), each other one is
`{"name": [...], "value": ...}`. A process that dies leaves at most a torn last line, which is dropped when the file is
opened again; a line that a full disk has torn is taken back at once. A name that is there twice counts as it stands
last.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from potstill.errors import OutputError

FILE_NAME = "samples.jsonl"
SCHEMA = "potstill-samples/1"

Name: TypeAlias = tuple[str | int, ...]
Json: TypeAlias = Any


class Journal:
    """What has been measured, by name; made by `open_journal` or `read_journal`."""

    def __init__(
        self, file: Path, head: Mapping[str, Json], parts: dict[Name, Json], *, descriptor: int | None
    ) -> None:
        """Hold `parts`; without a `descriptor` of the open file nothing can be added."""
        self.file, self.head = file, dict(head)
        self._parts, self._descriptor = parts, descriptor

    def once(self, name: Name, make: Callable[[], Json]) -> Json:
        """Return what is stored as `name`; if there is nothing, make it, store it and return it."""
        if name not in self._parts:
            self.put(name, make())
        return self._parts[name]

    def put(self, name: Name, value: Json) -> None:
        """Store plain JSON `value` as `name`, in the place of an earlier one.

        Raises:
            ValueError: if it is no JSON, such as NaN.
            OutputError: if the journal is finished or was opened for reading.
        """
        if self._descriptor is None:
            raise OutputError(f"{self.file} is closed: nothing more can be written to it")
        line = _line({"name": list(name), "value": value})
        _append(self._descriptor, line)
        self._parts[name] = json.loads(line)["value"]

    def get(self, *name: str | int) -> Json:
        """Return what is stored as `name`, or None."""
        return self._parts.get(name)

    def parts(self, *prefix: str | int) -> dict[Name, Json]:
        """Return all whose names begin so, by the rest of the name, in the order in which they were first stored."""
        length = len(prefix)
        return {name[length:]: value for name, value in self._parts.items() if name[:length] == prefix}

    def finish(self) -> None:
        """Put everything on the disk and close the file, which may then be copied; what is stored can still be read."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def open_journal(folder: Path, *, head: Mapping[str, Json]) -> Journal:
    """Open a folder's journal to go on with it, or begin one.

    Args:
        folder: is made if it is not there.
        head: what the measurements depend on: settings, seed, the hashes of all files. Plain JSON.

    Raises:
        OutputError: if the journal there is of other models or settings, is damaged, or is in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, wanted = folder / FILE_NAME, json.loads(_line({"schema": SCHEMA, **head}))
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _lock(descriptor, file)
        found, parts, end = _read(file)
        if found is None:
            os.ftruncate(descriptor, 0)
            _append(descriptor, _line(wanted))
        elif found != wanted:
            changed = ", ".join(
                sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            )
            raise OutputError(
                f"{file} is of another run (its {changed} differ); go on with the same models, data and settings, "
                "or name another folder"
            )
        else:
            os.ftruncate(descriptor, end)
    except BaseException:
        os.close(descriptor)
        raise
    return Journal(file, wanted, parts, descriptor=descriptor)


def read_journal(file: Path) -> Journal:
    """Read a journal, such as the one beside an old report; nothing can be added to it.

    Raises:
        OutputError: if the file is missing, damaged or no journal.
    """
    if not file.is_file():
        raise OutputError(f"{file} does not exist; a report's samples lie beside it as {FILE_NAME}")
    head, parts, _ = _read(file)
    if head is None or head.get("schema") != SCHEMA:
        raise OutputError(f"{file} is not a file of samples ({SCHEMA})")
    return Journal(file, head, parts, descriptor=None)


def _line(value: Json) -> bytes:
    return (json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def _append(descriptor: int, line: bytes) -> None:
    """Write a whole line or nothing: the system may take only a part of it, as where a disk is nearly full."""
    end, rest = os.fstat(descriptor).st_size, memoryview(line)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.ftruncate(descriptor, end)
        raise


def _lock(descriptor: int, file: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"{file} is being written by another bench; wait for it, or name another folder") from None


def _read(file: Path) -> tuple[dict[str, Json] | None, dict[Name, Json], int]:
    """Return the head, the parts, and how many bytes of the file are whole lines; no head of an empty file."""
    lines = file.read_bytes().splitlines(keepends=True)
    read: list[dict[str, Json]] = []
    for number, line in enumerate(lines):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")
            read.append(json.loads(line))
        except ValueError:
            if number + 1 == len(lines):
                break
            raise OutputError(f"{file}, line {number + 1} is damaged; name another folder and measure anew") from None
    end = sum(map(len, lines[: len(read)]))
    if not read:
        return None, {}, 0
    try:
        return read[0], {tuple(part["name"]): part["value"] for part in read[1:]}, end
    except (KeyError, TypeError):
        raise OutputError(f"{file} is not a file of samples ({SCHEMA})") from None
