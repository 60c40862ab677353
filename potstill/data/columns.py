"""Which columns of a data set are the text and the label: those that are asked for, else those with the usual names."""

from collections.abc import Sequence

from potstill.data.read import Row
from potstill.errors import AbsentError, DataError
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, TEXT_CLASSIFICATION, Task

# What tells rows apart and is no label.
_NUMBERING = ("", "id", "idx", "index", "guid", "uid")
_FLAGS = (0, 1, "0", "1", "0.0", "1.0")
# Older recipes and callers say so; it must not hide another task's usual names.
_DEFAULT_LABEL_COLUMN = "label"

TEXT_REMEDY = "name it with --text-column (twice for pairs)"
LABEL_REMEDY = "name it with --label-column"


def split_names(asked: Sequence[str], have: Sequence[str]) -> list[str]:
    """Return the columns that are asked for; `a,b` is two unless there is a column of that name."""
    return [part for name in asked for part in ([name] if name in have else name.split(","))]


def find_column(name: str, have: Sequence[str]) -> str | None:
    """Return the column of this name; `Review` is found as `review` if nothing else is."""
    if name in have:
        return name
    alike = [column for column in have if column.strip().lower() == name.lower()]
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
        have: the columns that there are.
        task: says which names are usual.
        asked: what was asked for; None takes the first usual names that are there.
        origin: named in messages.
        usual: instead of the task's; two names are a pair.

    Raises:
        DataError: if what is asked for is not there or too much, or no column has a usual name.
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
        rows: of all splits.
        task: says which names are usual.
        asked: what was asked for, several parted by commas.
        text_columns: these are no labels.
        known: the model's labels; columns of all their names are theirs.
        origin: named in messages.

    Raises:
        DataError: if there is none where the task needs one.
    """
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
    raise (DataError if asked else AbsentError)(
        f"{origin} has no column {tried}; it has {', '.join(rows[0]) or 'none'}; {LABEL_REMEDY}{several}"
    )


def _flag_columns(rows: Sequence[Row], have: Sequence[str], known: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the columns that hold nothing but 0 and 1, one per label: the model's, or all but a numbering."""
    if known and len(known) > 1 and all(name in have for name in known):
        return tuple(known)
    columns = [column for column in have if column.lower() not in _NUMBERING and not column.startswith("Unnamed")]
    if len(columns) < 2:
        return None
    is_flagged = all(_is_flag(row.get(column)) for row in rows for column in columns)
    return tuple(columns) if is_flagged else None


def _is_flag(value: object) -> bool:
    return isinstance(value, bool | int | float | str) and value in _FLAGS


def cell_of(row: Row, column: str, number: int, remedy: str) -> object:
    """Return what a row holds in a column.

    Raises:
        DataError: if it has no such column.
    """
    if column not in row:
        raise DataError(f"row {number} has no column {column!r}; it has {', '.join(row)}; {remedy}")
    return row[column]
