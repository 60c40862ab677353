"""Read columns of labels as numbers: ids, amounts, sets of labels, tags of words, or answer spans.

`LabelReader` decides once, for all splits together, what the labels are, and then reads each split. `name_labels` has
the rule by which names and whole numbers become ids. The functions below it take `Cells`: pairs of a row's number (from
1, for messages) and the cell's value.
"""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.data.columns import LABEL_REMEDY, cell_of
from potstill.data.read import Row
from potstill.errors import AbsentError, DataError
from potstill.tasks import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
    kind_of,
)

NumberedRow: TypeAlias = tuple[int, Row]
Cells: TypeAlias = Sequence[tuple[int, object]]
ListCells: TypeAlias = Sequence[tuple[int, list[Any]]]

# With more values than this, none of them named, a column in which most values occur once is refused: it holds row ids
# or texts. Columns of more labels that repeat are taken.
MAX_UNNAMED_LABELS = 100
# Marks of a text without a label: -1 in GLUE's test splits and SNLI's undecided pairs, -100 the index torch ignores.
UNLABELLED = ("-1", "-100")
NO_LABEL = -1
"""The id that stands for no label, of a text or of each of its words, where rows without labels are read as well."""

# At most 1,000 digits: int() and str() raise ValueError beyond 4,300. Spreadsheets and pandas write 1 as 1.0.
_INTEGER = re.compile(r"\s*(-?(?:0|[1-9]\d{0,999}))(?:\.0+)?\s*")
_LONGEST_INTEGER = 10**1000
# The names that transformers makes up for labels (`LABEL_0`) where a configuration names none.
_GENERIC = re.compile(r"label_(\d+)", re.IGNORECASE)
_BOOLS = ("false", "true")
_OUTSIDE = "O"
# Suffixes of a column with the names of another column's ids: `label_text` beside `label`, as in SetFit's data sets.
_NAME_ENDINGS = ("_text", "_name", "_names", "_str")
# Characters that an abbreviation of a label needs, such as `neg` for `negative`; one or two would match by chance.
_SHORTEST_STEM = 3


class LabelReader:
    """Read the labels of one or several columns, by rules that are decided once on the rows of all splits.

    Call `without_unlabelled` on each split, `decide` on the rows that are left of all splits, then `read` on each.
    """

    def __init__(
        self,
        task: Task,
        columns: Sequence[str],
        *,
        known: tuple[str, ...] | None,
        own: Sequence[str] | None,
        problem_type: str | None,
    ) -> None:
        """Take what is known before any row is read.

        Args:
            task: decides what a label is: an id, an amount, a list of tags, or an answer.
            columns: the column of the label, or one column of 0 and 1 per label.
            known: the model's labels in id order; None if a new head takes those of the data.
            own: the names that the data set itself gives to its ids.
            problem_type: one of `PROBLEM_TYPES` for a text classifier; None infers it from the values.
        """
        self.names: tuple[str, ...] = ()
        """The labels by id, once `decide` has been called; empty where labels are not ids."""
        self.how = ""
        """How cells were mapped to ids, in words."""
        self.notes: list[str] = []
        """Remarks for the user on how labels were read."""
        self.problem_type = problem_type
        self._task, self._columns, self._known, self._own = task, columns, known, own
        self._column = ", ".join(columns)
        self._naming: Naming | None = None

    @property
    def _kind(self) -> str:
        return kind_of(self._task, self.problem_type)

    def without_unlabelled(self, rows: list[NumberedRow], origin: str, *, keeps: bool = False) -> list[NumberedRow]:
        """Return the rows that have a label, and note how many have none: null, an empty cell, or -1 or -100.

        Args:
            rows: the numbered rows of a split.
            origin: the data's name in messages.
            keeps: whether the caller has a use for the others: then nothing is noted, and no row needs a label.

        Raises:
            AbsentError: if no row has a label.
            DataError: if -1 may be one of the model's labels.
        """
        if self._kind in (QUESTION_ANSWERING.name, FEATURE_EXTRACTION.name):
            return rows
        have = [row for row in rows if not all(is_missing(row[1].get(column)) for column in self._columns)]
        if not have and not keeps:
            raise AbsentError(f"{origin} has no labels: column {self._column!r} is empty; take another split")
        if len(have) < len(rows) and not keeps:
            self.notes.append(f"{len(rows) - len(have)} of {len(rows)} rows of {origin} have no label and are left out")
        return self._without_marks(have, origin, keeps=keeps)

    def _without_marks(self, rows: list[NumberedRow], origin: str, *, keeps: bool) -> list[NumberedRow]:
        """Return the rows whose label is not -1 or -100, see `without_unlabelled`."""
        if self._kind != SINGLE_LABEL or len(self._columns) > 1:
            return rows
        names = self._own or self._known
        bare = [row for row in rows if _is_unlabelled(row[1].get(self._column), names or ())]
        if keeps and len(bare) == len(rows):
            return []
        if bare and len(bare) == len(rows):
            raise AbsentError(
                f"{origin} has no labels: column {self._column!r} holds nothing but {bare[0][1][self._column]}, as the "
                "test splits of GLUE do; take another split"
            )
        if not bare or not names:
            return rows
        seen = {spell(row[1].get(self._column), row[0], self._column) for row in rows}
        # Labels -1 and 1 for a model of two: -1 is as likely to be a class as to mean no label, so nothing is guessed.
        if self._known and not self._own and "-1" in seen and len(seen) == len(self._known):
            raise DataError(
                f"column {self._column!r} of {origin} holds {', '.join(sorted(seen, key=str))}: -1 marks a text "
                f"without a label, and here it may be one of the model's {len(self._known)} labels "
                f"({', '.join(self._known[:8])}); write the model's names into the data, or leave the rows of -1 out"
            )
        if not keeps:
            self.notes.append(f"{len(bare)} of {len(rows)} rows of {origin} have no label (-1) and are left out")
        left_out = {number for number, _ in bare}
        return [row for row in rows if row[0] not in left_out]

    def decide(self, rows: Sequence[NumberedRow], texts: Sequence[Any], text_columns: Sequence[str]) -> None:
        """Decide what the labels are from the rows of all splits, and check every row.

        Args:
            rows: the numbered rows of all splits.
            texts: their texts, for tags and answers; empty for other tasks.
            text_columns: the columns of the text, for messages.

        Raises:
            DataError: if a cell is no label, or the labels are not those of the model.
        """
        cells, column = self._cells(rows), self._column
        if self._task == TEXT_CLASSIFICATION and self.problem_type is None:
            inferred = MULTI_LABEL if len(self._columns) > 1 else _infer_problem_type(cells)
            # A model that is trained already says itself what it answers; only a new head is shaped by the values.
            self.problem_type = SINGLE_LABEL if self._known else inferred
            if self._known and inferred == MULTI_LABEL:
                raise DataError(
                    f"column {column!r} holds several labels per text, and the model answers one of "
                    f"{len(self._known)} ({', '.join(self._known[:8])}); if it was trained to answer several, its "
                    'config.json must say "problem_type": "multi_label_classification"'
                )
        if self._kind in (REGRESSION, FEATURE_EXTRACTION.name):
            # Called for its checks alone, as the next one is: a bad cell stops here, before any split is returned.
            _amounts(cells, column)
            self.how = "amounts"
        elif self._kind == QUESTION_ANSWERING.name:
            _answer_spans(cells, texts, column)
        elif self._kind == MULTI_LABEL:
            self._decide_sets(as_lists(cells, column, what="labels"))
        elif self._kind == TOKEN_CLASSIFICATION.name:
            tags = as_lists(cells, column, what="tags")
            _check_tags(tags, texts, column=column, words_column=text_columns[0])
            naming = name_labels(_flatten(tags), column=column, known=self._known, own=self._own, word="tag")
            # O gets id 0, as in CoNLL-2003; sorted as a name it would stand behind the B- and I- tags.
            if not (self._known or self._own) and _OUTSIDE in naming.names:
                names = (_OUTSIDE, *(name for name in naming.names if name != _OUTSIDE))
                naming = Naming(names=names, ids={name: place for place, name in enumerate(names)}, how=naming.how)
            self._take(naming)
        else:
            self._take(name_labels(cells, column=column, known=self._known, own=self._own))

    def _decide_sets(self, cells: ListCells) -> None:
        """Decide whether lists of labels hold names, ids, or one 0 or 1 per label."""
        if len(self._columns) > 1:
            # The head's names are looked up among the model's like cells of row 1.
            columns = [(1, name) for name in self._columns]
            naming = name_labels(columns, column=self._column, known=self._known, own=None)
            if not self._known:
                places = {name: place for place, name in enumerate(self._columns)}
                naming = Naming(names=tuple(self._columns), ids=places, how="a column each")
            self._take(naming)
            return
        # [0, 1] may be two ids or two flags: flags if every list has one entry per label and the data names no ids.
        lengths = {len(value) for _, value in cells}
        width = lengths.pop() if len(lengths) == 1 and not self._own else 0
        is_width_of_model = not self._known or width == len(self._known)
        flags = (isinstance(flag, int | float) and flag in (0, 1) for _, value in cells for flag in value)
        if width > 1 and is_width_of_model and all(flags):
            self.names = self._known or tuple(map(str, range(width)))
            self.how = "by position, 0 or 1 for each"
            return
        flat = _flatten(cells)
        if not flat and not (self._known or self._own):
            raise DataError(f"no row has any label in column {self._column!r}; {LABEL_REMEDY}")
        self._take(name_labels(flat, column=self._column, known=self._known, own=self._own))

    def _take(self, naming: "Naming") -> None:
        self._naming, self.names, self.how = naming, naming.names, naming.how
        # Ids that are the model's positions are what most data sets hold and need no note; any other mapping does.
        are_numbers = all(name.lstrip("-").isdigit() for name in naming.names)
        if "(" in naming.how and (naming.how.startswith("by name") or self._own or are_numbers):
            self.notes.append(f"labels in column {self._column!r} are read {naming.how}")

    def read(self, rows: Sequence[NumberedRow], texts: Sequence[Any]) -> Any:
        """Return the labels of some rows in the form that `potstill.data.Examples.labels` describes."""
        cells, column, naming = self._cells(rows), self._column, self._naming
        if self._kind in (REGRESSION, FEATURE_EXTRACTION.name):
            return _amounts(cells, column)
        if self._kind == QUESTION_ANSWERING.name:
            return _answer_spans(cells, texts, column)
        if self._kind == MULTI_LABEL:
            sets = as_lists(cells, column, what="labels")
            if naming is None:
                return np.array([value for _, value in sets], dtype=np.float64)
            found = np.zeros((len(sets), len(naming.names)))
            # One assignment for all rows; a label that a row names twice is still 1.
            at = np.repeat(np.arange(len(sets)), [len(value) for _, value in sets])
            found[at, naming.to_ids(_flatten(sets), column)] = 1.0
            return found
        assert naming is not None
        if self._kind == TOKEN_CLASSIFICATION.name:
            tags = as_lists(cells, column, what="tags")
            # All tags are looked up in one array, which is then cut where rows end.
            ends = np.cumsum([len(value) for _, value in tags])[:-1]
            return np.split(naming.to_ids(_flatten(tags), column), ends)
        return naming.to_ids(cells, column)

    def _cells(self, rows: Sequence[NumberedRow]) -> Cells:
        """Return each row's cell; with one column per label, the list of the columns that hold 1."""
        if len(self._columns) == 1:
            return [(number, cell_of(row, self._column, number, LABEL_REMEDY)) for number, row in rows]
        return [
            (
                number,
                [
                    column
                    for column in self._columns
                    if _flag(cell_of(row, column, number, LABEL_REMEDY), number, column)
                ],
            )
            for number, row in rows
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A mapping from the cells of a column to label ids."""

    names: tuple[str, ...]
    """The labels by id."""
    ids: Mapping[str, int]
    """Ids by a cell's content, as `spell` writes it."""
    how: str
    """The rule that was used, in words: by name, by position, as they occur."""

    def to_ids(self, cells: Cells, column: str) -> NDArray[np.int64]:
        """Return the id of each cell, int64 of shape (cells,)."""
        return np.array([self.ids[spell(value, row, column)] for row, value in cells], dtype=np.int64)


def name_labels(
    cells: Cells, *, column: str, known: Sequence[str] | None, own: Sequence[str] | None, word: str = "label"
) -> Naming:
    """Decide which label id each different cell of a column stands for, over all splits together.

    The same rule for every file format. Cells are names if each matches one of the model's labels; otherwise they are
    positions among the model's labels, if all are whole numbers in range; otherwise they are refused. Where the data
    set names its own ids, a cell is first replaced by that name, and its number never counts as the model's position
    unless the model's names say nothing (`LABEL_0`).

    Args:
        cells: names, whole numbers (as numbers or text), or bools.
        column: the column's name, for messages.
        known: the model's labels in id order; None if a new head takes those of the data.
        own: the names that the data set itself gives to its ids.
        word: what messages call a label.

    Raises:
        DataError: if cells match neither names nor positions (the message has both lists), or are too many to be
            labels.
    """
    first_rows: dict[str, tuple[int, object]] = {}
    for row, value in cells:
        first_rows.setdefault(spell(value, row, column, word), (row, value))
    spelt = {text: text for text in first_rows}
    if own:
        spelt = {text: _own_name(text, own, first_rows, column=column, word=word) for text in first_rows}
    found = list(dict.fromkeys(spelt.values()))
    if not known:
        names = tuple(own) if own else _in_order(found)
        if not own and len(names) > MAX_UNNAMED_LABELS and 2 * len(names) > len(cells):
            raise DataError(
                f"column {column!r} holds {len(names)} different values in {len(cells)} rows, such as "
                f"{_show(cells[0][1])}, which are too many to be labels; {LABEL_REMEDY}"
            )
        return Naming(
            names=names,
            ids={text: names.index(name) for text, name in spelt.items()},
            how="as the data names them" if own else "as they occur",
        )
    # Names before positions: a model of stars called "1" to "5" must not read 1 as its second label.
    by_name = match_names(found, known, own=own)
    if by_name is not None:
        others = [f"{name} is {known[place]}" for name, place in by_name.items() if name != known[place]]
        how = "by name" + (f" ({', '.join(others)})" if others else "")
        return Naming(names=tuple(known), ids={text: by_name[name] for text, name in spelt.items()}, how=how)
    by_position = _positions(spelt, known, own=own)
    if by_position is not None:
        pairs = [f"{text} is {known[place]}" for text, place in sorted(by_position.items(), key=lambda pair: pair[1])]
        return Naming(names=tuple(known), ids=by_position, how=f"by position ({_list(pairs)})")
    raise _unknown_label(spelt, first_rows, known, own=own, column=column, word=word)


def spell(value: object, row: int, column: str, word: str = "label") -> str:
    """Return a cell as text, so that 1, 1.0, "1" and "1.0" are the same label, and True, "True" and "true" are.

    Raises:
        DataError: if it is not a string, a bool or a whole number.
    """
    # First of all, because a bool is an int, too.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if value.strip().lower() in _BOOLS:
            return value.strip().lower()
        number = _INTEGER.fullmatch(value)
        # White space at the ends is a matter of the format: a csv keeps what stands behind a comma.
        return number[1] if number else value.strip()
    if isinstance(value, int) and abs(value) < _LONGEST_INTEGER:
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        raise DataError(
            f"row {row}: {word} {_show(value)} in column {column!r} is an amount, not one of several labels; "
            f"for amounts the model must be a regression (potstill finetune --problem-type regression)"
        )
    raise DataError(f"row {row}: column {column!r} holds {_show(value)}, which is no {word}")


def names_beside(rows: Sequence[Row], column: str, *, fill: bool) -> tuple[str, ...] | None:
    """Return names by label id, as a column such as `label_text` beside `label` gives them.

    Args:
        rows: the rows of all splits.
        column: the column of the label ids.
        fill: name ids that do not occur by their number; otherwise every id from 0 must occur.

    Returns:
        Names by id; None if there is no such column, or it does not give each id exactly one name of its own.
    """
    beside = next((name for name in (f"{column}{end}" for end in _NAME_ENDINGS) if name in rows[0]), None)
    if beside is None:
        return None
    found: dict[int, str] = {}
    for row in rows:
        value, name = row.get(column), row.get(beside)
        number = _INTEGER.fullmatch(str(value)) if isinstance(value, int | float | str) else None
        if number is None or isinstance(value, bool) or not isinstance(name, str) or not name.strip():
            return None
        if number[1] in UNLABELLED:
            continue
        if found.setdefault(int(number[1]), name.strip()) != name.strip():
            return None
    count = max(found, default=-1) + 1
    # The bound matters: one id of 10**9 would otherwise make a list of as many names.
    is_whole = len(found) == count or (fill and count <= MAX_UNNAMED_LABELS)
    if not found or min(found) < 0 or len(set(found.values())) < len(found) or not is_whole:
        return None
    return tuple(found.get(number, str(number)) for number in range(count))


def is_missing(value: object) -> bool:
    """Return whether a cell holds nothing: null, or white space alone."""
    return value is None or (isinstance(value, str) and not value.strip())


def _is_unlabelled(value: object, names: Sequence[str]) -> bool:
    """Return whether a cell marks a text without a label (-1 or -100) and no label has that name."""
    number = _INTEGER.fullmatch(str(value)) if isinstance(value, int | float | str) else None
    return number is not None and number[1] in UNLABELLED and number[1] not in names


def match_names(
    found: Sequence[str], known: Sequence[str], *, own: Sequence[str] | None = None
) -> dict[str, int] | None:
    """Return the index in `known` of each found name, or None if the names cannot be matched one to one.

    Tried in this order: equal names; names equal but for case, spaces, hyphens and underscores; abbreviations (neg and
    pos for NEGATIVE and POSITIVE), if both sides have equally many names and each abbreviates exactly one of the other.
    `own` is all names that the data set has, of which `found` may be a part.
    """
    # Exact names first: "us" and "US" may be two labels.
    for same in (str.__eq__, lambda one, other: _normalized(one) == _normalized(other)):
        places = {name: [place for place, other in enumerate(known) if same(name, other)] for name in found}
        if all(len(each) == 1 for each in places.values()):
            result = {name: each[0] for name, each in places.items()}
            # Two names of the data for one label of the model would merge classes.
            return result if len(set(result.values())) == len(result) else None
    # Abbreviations are weak evidence, so all labels of both sides must pair up, even those that no row has.
    everything = list(dict.fromkeys(own or found))
    stems = {name: [place for place, other in enumerate(known) if _abbreviates(name, other)] for name in everything}
    taken = [each[0] for each in stems.values() if len(each) == 1]
    if len(everything) == len(known) == len(set(taken)):
        return {name: stems[name][0] for name in found}
    return None


def _normalized(name: str) -> str:
    """Return a name casefolded, with one underscore for each run of spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip()).casefold()


def _abbreviates(one: str, other: str) -> bool:
    """Return whether the shorter name is the beginning of the longer one, as neg is of negative."""
    short, long = sorted((_normalized(one), _normalized(other)), key=len)
    # `label_1` does not abbreviate `label_10`: with a number at the end the longer one is another label.
    return len(short) >= _SHORTEST_STEM and long.startswith(short) and not long[-1].isdigit()


def _own_name(
    text: str, own: Sequence[str], first_rows: Mapping[str, tuple[int, object]], *, column: str, word: str
) -> str:
    """Return the data set's own name of a cell, which holds that name or its id."""
    row, value = first_rows[text]
    if text in own and isinstance(value, str):
        return text
    if _INTEGER.fullmatch(text) and 0 <= int(text) < len(own):
        return own[int(text)]
    raise DataError(
        f"row {row}: {word} {_show(value)} in column {column!r} is none of the {len(own)} that the data set itself "
        f"names ({_list(own)})"
    )


def _positions(spelt: Mapping[str, str], known: Sequence[str], *, own: Sequence[str] | None) -> dict[str, int] | None:
    """Return each cell's position in `known`; None if a cell is no position there, or names contradict positions."""
    if own:
        # If the data names its ids by numbers in another order (id 0 is called "3"), positions would contradict them.
        numbers = [int(name) for name in own if _INTEGER.fullmatch(name)]
        silent = are_generic(known) or (len(numbers) == len(own) and numbers == sorted(numbers))
        return {text: own.index(name) for text, name in spelt.items()} if silent and len(own) == len(known) else None
    if set(spelt) <= set(_BOOLS) and len(known) == 2:
        return {text: _BOOLS.index(text) for text in spelt}
    is_position = all(_INTEGER.fullmatch(text) and 0 <= int(text) < len(known) for text in spelt)
    return {text: int(text) for text in spelt} if is_position else None


def are_generic(names: Sequence[str]) -> bool:
    """Return whether names say nothing: `LABEL_0`, `LABEL_1`, ... or the positions themselves."""
    return all(
        name == str(place) or ((made := _GENERIC.fullmatch(name)) is not None and int(made[1]) == place)
        for place, name in enumerate(names)
    )


def _unknown_label(
    spelt: Mapping[str, str],
    first_rows: Mapping[str, tuple[int, object]],
    known: Sequence[str],
    *,
    own: Sequence[str] | None,
    column: str,
    word: str,
) -> DataError:
    """Return an error with the first label that the model lacks, and the labels of both sides."""
    lacking = [
        text
        for text, name in spelt.items()
        if match_names([name], known, own=own) is None and (own or _positions({text: text}, known, own=None) is None)
    ]
    # Each cell may be readable alone and only their mixture not, such as 0 beside true: then a cell that is no number.
    lacking += [text for text in spelt if not _INTEGER.fullmatch(text)] or list(spelt)
    row, value = first_rows[lacking[0]]
    ours = own or _in_order(list(spelt.values()))
    shown = f"{_show(value)} ({spelt[lacking[0]]})" if own else _show(value)
    return DataError(
        f"row {row}: {word} {shown} in column {column!r} is none of the model's {len(known)} labels "
        f"({_list(known)}); the data has {_list(ours)}; write the model's names into the data, or fine-tune an encoder "
        "on it"
    )


def _in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort whole numbers by value and anything else as text."""
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _amounts(cells: Cells, column: str) -> NDArray[np.float64]:
    """Return one finite number per row, float64 of shape (rows,).

    Raises:
        DataError: if a cell is not a finite number.
    """
    found = []
    for row, value in cells:
        number = _as_number(value)
        if number is None:
            raise DataError(f"row {row}: label {_show(value)} in column {column!r} is not a finite number")
        found.append(number)
    return np.array(found, dtype=np.float64)


def _as_number(value: object) -> float | None:
    """Return a cell as a finite float, or None if it is not one; bools are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # OverflowError: an int beyond the largest float
        return None
    return number if math.isfinite(number) else None


def as_lists(cells: Cells, column: str, *, what: str) -> ListCells:
    """Return cells as lists; csv holds them as text such as `[0, 1]` or `['joy']`.

    Raises:
        DataError: if a cell is not a list.
    """
    found = []
    for row, value in cells:
        listed = read_list(value)
        if not isinstance(listed, list):
            raise DataError(f"row {row}: column {column!r} holds {_show(listed)}, not a list of {what}")
        found.append((row, listed))
    return found


def read_list(value: object) -> object:
    """Return the list that a string such as `[0, 1]` writes as a Python literal, and anything else unchanged."""
    if not isinstance(value, str) or not (value.strip().startswith("[") and value.strip().endswith("]")):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return value


def _flag(value: object, row: int, column: str) -> bool:
    """Return whether a cell of a one-label column is 1 or true.

    Raises:
        DataError: if it is neither 0, 1, true nor false.
    """
    spelt = spell(value, row, column) if isinstance(value, bool | int | float | str) else ""
    if spelt not in ("0", "1", *_BOOLS):
        raise DataError(f"row {row}: column {column!r} holds {_show(value)}; a column of one label holds 0 or 1")
    return spelt in ("1", "true")


def _flatten(cells: ListCells) -> Cells:
    """Return every entry of list cells, each with its row's number."""
    return [(row, entry) for row, value in cells for entry in value]


def _check_tags(cells: ListCells, words: Sequence[Sequence[str]], *, column: str, words_column: str) -> None:
    """Check that every word has exactly one tag.

    Raises:
        DataError: if a row has more or fewer tags than words, or the tag -100, which losses of torch ignore.
    """
    for (row, value), spoken in zip(cells, words, strict=True):
        if len(value) != len(spoken):
            raise DataError(
                f"row {row}: {len(spoken)} words in column {words_column!r}, but {len(value)} tags in {column!r}; "
                "every word needs one tag"
            )
        if any(str(tag) == "-100" for tag in value):
            raise DataError(
                f"row {row}: column {column!r} holds -100, which marks a token that does not count; give every word a "
                "tag of its own, as the data had them before they were tokenised"
            )


def _infer_problem_type(cells: Cells) -> str:
    """Infer a text classifier's problem type: lists are several labels, fractions a regression, all else one label."""
    values = [value for _, value in cells]
    if all(isinstance(read_list(value), list) for value in values):
        return MULTI_LABEL
    numbers = [_as_number(value) for value in values]
    is_amount = all(number is not None for number in numbers) and any(
        number is not None and not number.is_integer() for number in numbers
    )
    return REGRESSION if is_amount else SINGLE_LABEL


def _answer_spans(cells: Cells, texts: Sequence[tuple[str, str]], column: str) -> list[dict[str, list[Any]]]:
    """Return the accepted answers of each row as `{"text": [...], "answer_start": [...]}`, empty if unanswerable.

    Args:
        cells: such objects, or lists of `{"text": ..., "answer_start": ...}`, as SQuAD has them.
        texts: (question, context) of each row; `answer_start` counts characters of the context.
        column: the column's name, for messages.

    Raises:
        DataError: if a cell has another shape, or the context does not hold an answer at its start.
    """
    return [_read_answers(value, row, context, column) for (row, value), (_, context) in zip(cells, texts, strict=True)]


def _read_answers(value: object, row: int, context: str, column: str) -> dict[str, list[Any]]:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = {key: [one.get(key) for one in value] for key in ("text", "answer_start")}
    texts, starts = (value.get(key) for key in ("text", "answer_start")) if isinstance(value, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DataError(
            f"row {row}: column {column!r} holds {_show(value)}, not answers such as "
            '{"text": ["Rome"], "answer_start": [7]} with as many starts as texts'
        )
    for text, start in zip(texts, starts, strict=True):
        # `start` must be no bool, which is an int as well.
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise DataError(
                f"row {row}: answer {_show(text)} at {_show(start)} is not a text and a count of characters"
            )
        # A start counted in bytes, or in another normal form of the text, is found here and not as a low score.
        if start < 0 or context[start : start + len(text)] != text:
            stands = _show(context[start : start + len(text)]) if start >= 0 else "nothing"
            raise DataError(f"row {row}: answer {_show(text)} should start at character {start}, where {stands} stands")
    return {"text": list(texts), "answer_start": list(starts)}


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
