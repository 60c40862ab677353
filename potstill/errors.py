"""Every error that potstill raises on purpose, and the exit code it becomes.

    PotstillError
    ├── CheckError            exit 1: the work ran and a check said no
    │   ├── ParityError         an exported file does not answer like its checkpoint
    │   ├── TamperedError       a file of a bundle is not the one its manifest names
    │   └── TrainingError       training went wrong in a way that must not be published
    ├── UsageError            exit 2: what was asked cannot be done as it was asked
    │   ├── RecipeError         a recipe or a setting is not valid
    │   ├── DataError           the data set is missing, empty or has other columns
    │   │   └── AbsentError       it has no such split, or no labels
    │   ├── CheckpointError     a teacher or student cannot be loaded or cut
    │   ├── BundleError         a folder is not a bundle, or not one for this
    │   └── OutputError         the output folder is in the way
    └── MissingError          exit 3: this machine lacks something
        ├── DiskError           the disk is full
        └── MissingExtraError   an optional dependency is not installed

A message says what was wrong with the value shown, what was expected, and what to do.
"""

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence

if typing.TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails


class PotstillError(Exception):
    """Base of all errors that potstill raises on purpose."""

    exit_code = 1


class CheckError(PotstillError):
    """The work ran and a check said no."""

    exit_code = 1


class ParityError(CheckError):
    """An exported file does not answer like the checkpoint it came from."""


class TamperedError(CheckError):
    """A file of a bundle is not the one that its manifest names."""


class TrainingError(CheckError):
    """Training went wrong in a way that must not be published."""


class UsageError(PotstillError):
    """What was asked cannot be done as it was asked."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or a setting is not valid; the message lists every fault."""


class DataError(UsageError):
    """The data set is missing, empty, or has other columns than were named."""


class AbsentError(DataError):
    """The data set has no such split, or no labels; what does not need them goes on without."""


class CheckpointError(UsageError):
    """A teacher or student cannot be loaded, or cannot be cut as asked."""


class BundleError(UsageError):
    """A folder is not a bundle, or not one that can do what was asked."""


class OutputError(UsageError):
    """The output folder is in the way."""


class MissingError(PotstillError):
    """This machine lacks something that the work needs."""

    exit_code = 3


class DiskError(MissingError):
    """The disk takes no more: it is full, or a quota is."""


class MissingExtraError(MissingError):
    """An optional dependency is not installed."""


class OtherCpuWarning(UserWarning):
    """A file was made for a CPU of another kind than this one; it is slower here, or worse."""


# How what other libraries raise is said in one line


def first_line(error: BaseException, *, longest: int = 300) -> str:
    """Return the first line of an error's message, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
    if isinstance(error, KeyError):  # whose message is the key alone
        said = f"nothing is called {said}"
    return said[:longest]


def nearest_name(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Return the known name that is spelt most like a word, whatever its case; None if none is."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown word: the known one that is most like it, or all of them."""
    found = nearest_name(word, known)
    return f"; did you mean {found!r}?" if found else f"; known are {', '.join(known)}"


def describe_fault(fault: "ErrorDetails", model: "type[BaseModel]", *, whole: str = "it") -> str:
    """Return one of `ValidationError.errors()` in a line: where, what is wrong, and what stands there.

    Args:
        fault: what pydantic says.
        model: what was validated; an unknown key is answered with the nearest field of its section.
        whole: what is said for the place if the fault is of all of it.
    """
    from pydantic import BaseModel

    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{did_you_mean(str(fault['loc'][-1]), fields_at(model, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    shown = "" if isinstance(fault["input"], Mapping | BaseModel) else f" (it is {fault['input']!r})"
    return f"{where or whole}: {fault_message(fault)}{shown}"


def fault_message(fault: "ErrorDetails") -> str:
    """Return what pydantic says is wrong, to stand within a sentence."""
    message = fault["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def fields_at(model: "type[BaseModel]", location: Sequence[str | int]) -> list[str]:
    """Return the fields of the section of a model that a location leads to."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:  # an entry of a list or mapping
            continue
        pending = [model.model_fields[part].annotation]
        while pending:
            annotation = pending.pop()
            if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
                model = annotation
                break
            pending += typing.get_args(annotation)
    return list(model.model_fields)
