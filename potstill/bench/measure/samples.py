"""Everything that was measured, by name and line by line as it comes, so that an interrupted bench loses nothing.

`samples.jsonl` is a journal (`potstill.files.Journal`): its header says what is measured and with which settings, each
entry is `{"name": [...], "value": ...}`. Entries are not flushed one by one, which would disturb what is measured. A
name that is there twice counts as it stands last.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from potstill import files
from potstill.errors import OutputError

FILE_NAME = "samples.jsonl"
SCHEMA = "potstill-samples/1"

Name: TypeAlias = tuple[str | int, ...]
Json: TypeAlias = Any


class Samples:
    """What has been measured, by name; made by `open_samples` or `read_samples`."""

    def __init__(self, journal: files.Journal) -> None:
        """Take the values that the journal holds.

        Raises:
            OutputError: if it is no journal of samples.
        """
        self._journal = journal
        self.file, self.head = journal.file, journal.header
        try:
            self._parts: dict[Name, Json] = {tuple(entry["name"]): entry["value"] for entry in journal.entries}
        except (KeyError, TypeError):
            raise OutputError(f"{self.file} is not a file of samples ({SCHEMA})") from None

    def once(self, name: Name, make: Callable[[], Json]) -> Json:
        """Return what is stored as `name`; if there is nothing, make it, store it and return it."""
        if name not in self._parts:
            self.put(name, make())
        return self._parts[name]

    def put(self, name: Name, value: Json) -> None:
        """Store plain JSON `value` as `name`, in the place of an earlier one.

        Raises:
            ValueError: if it is no JSON, such as NaN.
            OutputError: if the file is finished or was opened for reading.
        """
        self._parts[name] = self._journal.append({"name": list(name), "value": value})["value"]

    def get(self, *name: str | int) -> Json:
        """Return what is stored as `name`, or None."""
        return self._parts.get(name)

    def parts(self, *prefix: str | int) -> dict[Name, Json]:
        """Return all whose names begin so, by the rest of the name, in the order in which they were first stored."""
        length = len(prefix)
        return {name[length:]: value for name, value in self._parts.items() if name[:length] == prefix}

    def finish(self) -> None:
        """Put everything on the disk and close the file, which may then be copied; what is stored can still be read."""
        self._journal.close()


def open_samples(folder: Path, *, head: Mapping[str, Json]) -> Samples:
    """Open a folder's samples to go on with them, or begin.

    Args:
        folder: is made if it is not there.
        head: what the measurements depend on: settings, seed, the hashes of all files. Plain JSON.

    Raises:
        OutputError: if the samples there are of other models or settings, damaged, or in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remedy = "go on with the same models, data and settings, or name another folder"
    return Samples(files.open_journal(folder / FILE_NAME, header={"schema": SCHEMA, **head}, remedy=remedy))


def read_samples(file: Path) -> Samples:
    """Read samples, such as those beside an old report; nothing can be added to them.

    Raises:
        OutputError: if the file is missing, damaged or holds no samples.
    """
    if not file.is_file():
        raise OutputError(f"{file} does not exist; a report's samples lie beside it as {FILE_NAME}")
    journal = files.read_journal(file)
    if journal.header.get("schema") != SCHEMA:
        raise OutputError(f"{file} is not a file of samples ({SCHEMA})")
    return Samples(journal)
