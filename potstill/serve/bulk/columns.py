"""Which columns of a row are the text, and the item that the model is asked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from potstill.bundle import Manifest
from potstill.data.columns import find_column, split_names
from potstill.errors import UsageError
from potstill.serve.limits import Limits
from potstill.serve.tasks.question_answering import Question
from potstill.tasks import (
    FEATURE_EXTRACTION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_NAMES,
    TOKEN_CLASSIFICATION,
    get_task,
)

# A data set of tags has its texts as lists of words; offsets need the text itself.
_TEXT = tuple((name,) for name in TEXT_NAMES)
_KINDS = {type(None): "nothing", list: "a list", dict: "an object", **dict.fromkeys((int, float, bool), "a number")}


def pick_columns(manifest: Manifest, have: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the column of the text, or two: of a pair, or of question and context.

    Raises:
        UsageError: if what is asked is not there, or nothing was asked and no usual name is there.
    """
    task, shown = manifest.task, ", ".join(have) or "none"
    widths = {TEXT_CLASSIFICATION.name: (1, 2), QUESTION_ANSWERING.name: (2,)}.get(task, (1,))
    if asked:
        asked = split_names(asked, have)
        if len(asked) not in widths:
            wanted = " or ".join("one column" if width == 1 else "two columns" for width in widths)
            raise UsageError(f"{task} reads {wanted}, and --text-column names {', '.join(asked)}")
        missing = [name for name in asked if name not in have]
        if missing:
            raise UsageError(f"there is no column {missing[0]!r}; there are: {shown}")
        return tuple(asked)
    for names in _usual(task):
        found = [find_column(name, have) for name in names]
        if len(names) in widths and None not in found:
            return tuple(name for name in found if name is not None)
    raise UsageError(
        f"no column has a name that is usual for {task}'s texts; name it with --text-column; there are: {shown}"
    )


def _usual(task: str) -> Iterable[tuple[str, ...]]:
    if task in {TOKEN_CLASSIFICATION.name, FEATURE_EXTRACTION.name}:
        return _TEXT
    return get_task(task).text_columns


def longest_text(manifest: Manifest) -> int:
    """Return how many characters one text may have: as many as the server takes."""
    return Limits().characters_per_token * manifest.max_length


def item_of(
    values: Mapping[str, Any], columns: Sequence[str], *, manifest: Manifest, longest: int
) -> tuple[Any, str | None]:
    """Return what the model is asked of a row, or what is wrong with it; a message holds no text."""
    parts = []
    for name in columns:
        if name not in values:
            return None, f"has no column {name!r}"
        part = values[name]
        if not isinstance(part, str):
            return None, f"column {name!r} holds {_KINDS.get(type(part), 'something else')}, not a text"
        if len(part) > longest:
            return None, f"column {name!r} has {len(part)} characters; at most {longest} are read"
        parts.append(part)
    if manifest.task == QUESTION_ANSWERING.name:
        return Question(question=parts[0], context=parts[1]), None
    return (parts[0] if len(parts) == 1 else (parts[0], parts[1])), None
