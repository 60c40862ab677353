"""Which columns of a data set are the text and the label: those that are asked for, else those with the usual names."""

from collections.abc import Sequence

from potstill.data.read import Row
from potstill.errors import AbsentError, DataError
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, TEXT_CLASSIFICATION, Task

# Columns that number the rows and are never labels; pandas writes its index as "" or "Unnamed: 0".
_NUMBERING = ("", "id", "idx", "index", "guid", "uid")
# As numbers, as csv text, and as pandas writes a column with gaps; True and False equal 1 and 0.
_FLAGS = (0, 1, "0", "1", "0.0", "1.0")
# Older recipes and callers pass this default by name; it must not keep the task's usual names from being tried.
_DEFAULT_LABEL_COLUMN = "label"

TEXT_REMEDY = "name it with --text-column (twice for pairs)"
LABEL_REMEDY = "name it with --label-column"
NO_LABELS = "none"
"""What `--label-column` names where texts have no labels, though other columns stand beside them."""


def split_names(asked: Sequence[str], have: Sequence[str]) -> list[str]:
    """Split requested names at commas; `a,b` stays one name if a column is called so."""
    return [part for name in asked for part in ([name] if name in have else name.split(","))]


def find_column(name: str, have: Sequence[str]) -> str | None:
    """Return the column with this name, else the only one that differs just in case and outer spaces, else None."""
    if name in have:
        return name
    alike = [column for column in have if column.strip().lower() == name.lower()]
    # `Text` and `TEXT` in one table are ambiguous: neither is taken.
    return alike[0] if len(alike) == 1 else None


def pick_text_columns(
    have: Sequence[str],
    *,
    task: Task,
    asked: Sequence[str] | None,
    origin: str,
    usual: Sequence[tuple[str, ...]] | None = None,
) -> tuple[str, ...]:
    """Return the column of the text, or the two of a pair.

    Args:
        have: the data's columns.
        task: its `text_columns` are the usual names.
        asked: the requested names; None takes the first usual names that the data has.
        origin: the data's name in messages.
        usual: candidates that replace the task's; a tuple of two names is a pair.

    Raises:
        DataError: if a requested column is missing, there are more or fewer than the task takes, or no column has a
            usual name.
    """
    listed = ", ".join(have) or "none"
    usual = usual or task.text_columns
    if asked:
        names = split_names(asked, have)
        widths = {len(columns) for columns in usual}
        if len(names) not in widths:
            wanted = "one column or two" if widths == {1, 2} else "two columns" if 2 in widths else "one column"
            raise DataError(
                f"--text-column names {', '.join(names)}; {task.name} reads {wanted}, such as {', '.join(usual[0])}"
            )
        missing = [name for name in names if name not in have]
        if missing:
            raise DataError(f"{origin} has no column {missing[0]!r}; it has {listed}; {TEXT_REMEDY}")
        return tuple(names)
    # The usual names list pairs first: `sentence` beside `question` is half of a pair, not a text of its own.
    for columns in usual:
        found = [find_column(name, have) for name in columns]
        if all(name is not None for name in found):
            return tuple(name for name in found if name is not None)
    raise DataError(f"{origin} has no text column that potstill knows; it has {listed}; {TEXT_REMEDY}")


def pick_label_columns(
    rows: Sequence[Row],
    *,
    task: Task,
    asked: str | None,
    text_columns: Sequence[str],
    known: Sequence[str] | None,
    origin: str,
) -> tuple[str, ...] | None:
    """Return the column of the label, several if each label has one of its own, or None where the task needs none.

    Args:
        rows: the rows of all splits.
        task: its `label_columns` are the usual names.
        asked: the requested name, or several separated by commas; None looks for the usual names.
        text_columns: the columns of the text, which are never labels.
        known: the model's labels; if every one of them is a column, those columns are the labels.
        origin: the data's name in messages.

    Raises:
        AbsentError: if the task needs a label, none was asked for, and no column has a usual name.
        DataError: if a requested column is missing.
    """
    # A single text has nothing to be similar to; only pairs can carry a score.
    if task == FILL_MASK or (task == FEATURE_EXTRACTION and len(text_columns) == 1):
        return None
    have = [column for column in rows[0] if column not in text_columns]
    is_open = asked is None or asked == _DEFAULT_LABEL_COLUMN
    if asked is not None and (names := split_names([asked], list(rows[0]))) and all(name in rows[0] for name in names):
        return tuple(names)
    for usual in task.label_columns if is_open else ():
        column = find_column(usual, have)
        if column is not None:
            return (column,)
    if task == FEATURE_EXTRACTION and is_open:
        return None
    if task == TEXT_CLASSIFICATION and is_open:
        flags = _flag_columns(rows, have, known)
        if flags:
            return flags
    tried = " or ".join(
        map(repr, dict.fromkeys([*([asked] if asked else []), *(task.label_columns if is_open else ())]))
    )
    several = "; several, as toxic,insult, if each label has its own" if task == TEXT_CLASSIFICATION else ""
    # Callers that can do without labels catch AbsentError: `export` then judges int8 against fp32 alone.
    raise (DataError if asked else AbsentError)(
        f"{origin} has no column {tried}; it has {', '.join(rows[0]) or 'none'}; {LABEL_REMEDY}{several}"
    )


def _flag_columns(rows: Sequence[Row], have: Sequence[str], known: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return one column of 0 and 1 per label: those named like the model's labels, else all that do not number rows."""
    if known and len(known) > 1 and all(name in have for name in known):
        return tuple(known)
    columns = [column for column in have if not is_numbering(column)]
    if len(columns) < 2:
        return None
    is_flagged = all(_is_flag(row.get(column)) for row in rows for column in columns)
    return tuple(columns) if is_flagged else None


def is_numbering(column: str) -> bool:
    """Return whether a column numbers the rows, by its name."""
    return column.lower() in _NUMBERING or column.startswith("Unnamed")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool | int | float | str) and value in _FLAGS


def cell_of(row: Row, column: str, number: int, remedy: str) -> object:
    """Return the value of a row in a column; `number` and `remedy` are for the message.

    Raises:
        DataError: if the row lacks the column, as a line of jsonl may.
    """
    if column not in row:
        raise DataError(f"row {number} has no column {column!r}; it has {', '.join(row)}; {remedy}")
    return row[column]
