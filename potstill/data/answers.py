"""Read a column of a teacher's answers, with which a student is taught where the teacher itself is not at hand.

A cell holds what is known of one row: probabilities, as a list in the order of the labels, as an object by label, or as
the list of labels and scores that `potstill predict` and the server answer; or a label alone, as a language model gives
it; for tags a list with one of these per word; a number for a regression; a vector for a sentence encoder. In csv,
lists and objects are JSON. A cell that is null or empty says nothing of its row.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.data.labels import Cells, is_missing, match_names, name_labels, spell
from potstill.errors import DataError
from potstill.tasks import MULTI_LABEL, REGRESSION, TOKEN_CLASSIFICATION

Answers: TypeAlias = NDArray[np.float64] | list[NDArray[np.float64]]
"""What a teacher says of N texts, NaN where it says nothing: probabilities (N, labels), for a regression numbers
(N, 1), and for tags a list of probabilities (words, tags)."""

# How far the probabilities of a row may add up beside 1: they are often written with two digits. They are divided by
# their sum afterwards.
_TOLERANCE = 0.02
_SHOWN = 60


def read_answers(
    cells: Cells, *, column: str, names: Sequence[str], kind: str, texts: Sequence[Sequence[str]] = ()
) -> Answers:
    """Return the answers in a column, labels in the order of `names`.

    Args:
        cells: (row number, cell).
        column: the column's name, for messages.
        names: the labels by id; empty for a regression.
        kind: `potstill.tasks.kind_of`.
        texts: for tags the words of each row.

    Raises:
        DataError: with the row, if a cell is none of what the module describes: another number of labels or words, a
            label that there is not, what is no probability, or probabilities that do not add up to 1.
    """
    parsed = [(row, _parse(value)) for row, value in cells]
    if kind == REGRESSION:
        return np.array([[_amount(value, row, column)] for row, value in parsed], dtype=np.float64).reshape(-1, 1)
    if kind != TOKEN_CLASSIFICATION.name:
        return _distributions(parsed, column=column, names=names, kind=kind)
    words: list[tuple[int, object]] = []
    for (row, value), text in zip(parsed, texts, strict=True):
        listed = [None] * len(text) if value is None else value
        if not isinstance(listed, list) or len(listed) != len(text):
            what = f"{len(listed)} answers" if isinstance(listed, list) else _show(listed)
            raise DataError(f"row {row}: column {column!r} holds {what} for {len(text)} words; each word needs one")
        words += [(row, one) for one in listed]
    found = _distributions(words, column=column, names=names, kind=kind)
    return np.split(found, np.cumsum([len(text) for text in texts])[:-1]) if texts else []


def names_in_answers(cells: Cells) -> tuple[str, ...]:
    """Return the labels that the answers name, sorted; the positions of lists of bare probabilities."""
    found: dict[str, None] = {}
    for row, value in cells:
        answer = _parse(value)
        # Of tags, or several labels, the list has one answer each.
        several = (
            answer if isinstance(answer, list) and not _are_numbers(answer) and not _are_scores(answer) else [answer]
        )
        for one in several:
            if isinstance(one, list) and _are_numbers(one):
                found |= dict.fromkeys(map(str, range(len(one))))
            elif isinstance(one, Mapping | list):
                found |= dict.fromkeys(_by_label(one, row, ""))
            elif one is not None:
                found |= {spell(one, row, ""): None}
    are_numbers = all(name.isdigit() for name in found)
    return tuple(sorted(found, key=int) if are_numbers else sorted(found))


def read_vectors(cells: Cells, column: str) -> NDArray[np.float32]:
    """Return one vector per row, float32 (N, E).

    Raises:
        DataError: with the row, if a cell is no list of finite numbers, is as wide as no other, or has length 0.
    """
    vectors: list[NDArray[np.float32]] = []
    for row, value in cells:
        listed = _parse(value)
        if not isinstance(listed, list) or not listed or not _are_numbers(listed):
            raise DataError(f"row {row}: column {column!r} holds {_show(value)}, not a vector: a list of numbers")
        vector = np.array(listed, dtype=np.float32)
        if vectors and len(vector) != len(vectors[0]):
            raise DataError(
                f"row {row}: column {column!r} holds a vector of {len(vector)} numbers, and {len(vectors[0])} in the "
                "rows before; all must come from one model"
            )
        if not np.isfinite(vector).all() or not vector.any():
            raise DataError(f"row {row}: column {column!r} holds a vector of NaN, infinity or nothing but 0")
        vectors.append(vector)
    return np.stack(vectors)


def _distributions(
    cells: Sequence[tuple[int, object]], *, column: str, names: Sequence[str], kind: str
) -> NDArray[np.float64]:
    """Return a row of probabilities per cell, (cells, labels)."""
    found = np.full((len(cells), len(names)), np.nan)
    # Labels without probabilities are read by the rule for a column of labels, all at once.
    hard: list[tuple[int, int, object]] = []
    ids: dict[tuple[str, ...], list[int]] = {}
    for place, (row, value) in enumerate(cells):
        if value is None:
            continue
        if isinstance(value, list) and value and _are_numbers(value):
            if len(value) != len(names):
                raise DataError(
                    f"row {row}: column {column!r} holds {len(value)} probabilities for {len(names)} labels "
                    f"({', '.join(names[:8])})"
                )
            found[place] = value
        elif isinstance(value, Mapping) or (isinstance(value, list) and _are_scores(value)):
            by_label = _by_label(value, row, column)
            keys = tuple(by_label)
            if keys not in ids:
                ids[keys] = _ids_of(keys, names, row=row, column=column)
            found[place, ids[keys]] = list(by_label.values())
        elif kind == MULTI_LABEL and isinstance(value, list):
            found[place] = 0
            hard += [(row, place, one) for one in value]
            continue
        else:
            found[place] = 0
            hard.append((row, place, value))
            continue
        found[place] = _checked(found[place], row, column, names, adds_up=kind != MULTI_LABEL)
    if hard:
        labels = [(row, value) for row, _, value in hard]
        naming = name_labels(labels, column=column, known=names, own=None)
        found[[place for _, place, _ in hard], naming.to_ids(labels, column)] = 1
    return found


def _checked(
    given: NDArray[np.float64], row: int, column: str, names: Sequence[str], *, adds_up: bool
) -> NDArray[np.float64]:
    """Return probabilities, divided by their sum where they must add up to 1."""
    # The tolerance of floats: a sigmoid or softmax in float32 may be 1.0000001.
    bad = ~((given >= 0) & (given <= 1 + 1e-6))
    if bad.any():
        place = int(bad.argmax())
        hint = "; of logits take the softmax first" if np.isfinite(given[place]) else ""
        raise DataError(
            f"row {row}: column {column!r} holds {given[place]:g} for {names[place]}, and a probability is 0 to 1{hint}"
        )
    total = given.sum()
    # 0.98 itself is 0.02 and a rounding error away from 1.
    if adds_up and abs(total - 1) > _TOLERANCE + 1e-9:
        raise DataError(
            f"row {row}: the probabilities in column {column!r} add up to {total:.4g}, not to 1; write more digits, or "
            "divide them by their sum"
        )
    return given / total if adds_up else np.minimum(given, 1)


def _ids_of(keys: tuple[str, ...], names: Sequence[str], *, row: int, column: str) -> list[int]:
    """Return the ids of the labels of an answer, which must be all that there are."""
    found = match_names(keys, names)
    if found is None or len(found) != len(names):
        unknown = [key for key in keys if match_names([key], names) is None]
        missing = [name for name in names if match_names([name], keys) is None]
        what = f"{unknown[0]!r} is none of the labels" if unknown else f"there is no probability for {missing[0]!r}"
        raise DataError(
            f"row {row}: column {column!r}: {what} (the column has {', '.join(keys[:8])}; the labels are "
            f"{', '.join(names[:8])}); --set data.labels=[...] names them in their order"
        )
    return [found[key] for key in keys]


def _by_label(value: Mapping[str, Any] | list[Any], row: int, column: str) -> dict[str, float]:
    """Return the probability of each label of an object, or of a list of labels and scores."""
    pairs = list(value.items()) if isinstance(value, Mapping) else [(one["label"], one["score"]) for one in value]
    # A struct of parquet has all labels that occur in any row, null in those that lack it.
    pairs = [(str(label), number) for label, number in pairs if number is not None]
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DataError(f"row {row}: column {column!r} has a label twice: {', '.join(label for label, _ in pairs)}")
    bad = next((label for label, number in pairs if not _is_number(number)), None)
    if bad is not None:
        raise DataError(f"row {row}: column {column!r} holds {_show(found[bad])} for {bad}, not a probability")
    return {label: float(number) for label, number in pairs}


def _parse(value: object) -> object:
    """Return a cell, from JSON where a text holds a list or an object; None for an empty one."""
    if is_missing(value):
        return None
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _amount(value: object, row: int, column: str) -> float:
    """Return the number of a regression's answer, alone or as the server gives it."""
    if value is None:
        return math.nan
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    number = one.get("score") if isinstance(one, Mapping) else one
    if isinstance(number, str):
        try:
            number = float(number)
        except ValueError:
            number = None
    if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
        raise DataError(f"row {row}: column {column!r} holds {_show(value)}, not a finite number")
    return float(number)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(values: Sequence[object]) -> bool:
    return all(map(_is_number, values))


def _are_scores(values: Sequence[object]) -> bool:
    return len(values) > 0 and all(isinstance(one, Mapping) and {"label", "score"} <= set(one) for one in values)


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
