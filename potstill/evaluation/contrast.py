"""Where two models answer differently: how far apart they are on each text, and what each of them said there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.data import Examples
from potstill.evaluation.intervals import Floats
from potstill.evaluation.marks import (
    Arrays,
    all_labels,
    answer_texts,
    class_values,
    lost_rows,
    probabilities,
    row_texts,
)
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, MULTI_LABEL, QUESTION_ANSWERING, REGRESSION, SINGLE_LABEL

NO_ANSWER = "no answer"
"""What is said of an answer that is NaN or infinite, and of a question that is left without one."""
# A report's reader looks at a few examples, and at the beginning of each.
_LONGEST_TEXT = 300


@dataclass(frozen=True, slots=True)
class Contrast:
    """One text on which two models differ."""

    text: str | tuple[str, str]
    label: str
    first_answer: str
    second_answer: str
    distance: float


def contrast(first: Arrays, second: Arrays, examples: Examples, *, kind: str, most: int = 10) -> list[Contrast]:
    """Return up to `most` texts on which two models differ most, the greatest distance first; equal ones are left out.

    The distance is the total variation between their probabilities; of several labels the greatest difference of one;
    of words that of the word where it is greatest; of hidden words the difference of the true word's probability; of
    answers to questions 1 - F1 of their words; and of amounts their difference. An answer that is no number is at
    distance 1 of one that is, but of amounts at none.

    Args:
        first: what `potstill.evaluation.ask.ask` returned.
        second: of another model for the same texts.
        examples: the texts with their labels.
        kind: `potstill.tasks.kind_of`.
        most: how many.
    """
    rows = _row_distances(first, second, examples, kind=kind)
    texts = row_texts(first)
    order = np.lexsort((np.arange(len(rows)), -rows))
    found: list[Contrast] = []
    told: set[int] = set()
    for row in order.tolist():
        if len(found) == most or not rows[row] > 0:
            break
        text = int(texts[row])
        if text in told:
            continue
        told.add(text)
        one, two = (_say(side, examples, row, kind=kind) for side in (first, second))
        label = _label(first, examples, row, kind=kind)
        found.append(Contrast(_short(examples.texts[text]), label, one, two, float(rows[row])))
    return found


def confusion(
    rows: Arrays | None, columns: Arrays, examples: Examples, *, names: Sequence[str]
) -> tuple[list[str], list[list[int]]]:
    """Return the names and the counts of two models' answers, of single labels or of words' tags.

    Args:
        rows: whose answers the rows are; None takes the labels.
        columns: whose answers the columns are.
        examples: with their labels.
        names: the labels; `no answer` is added where one of the models gave no number.
    """
    sides = [all_labels(examples) if side is None else _classes(side, names) for side in (rows, columns)]
    lost = any(bool((side == len(names)).any()) for side in sides)
    shown = [*names, *([NO_ANSWER] if lost else [])]
    counts = metrics.confusion_matrix(sides[0], sides[1], len(shown))
    return shown, counts.tolist()


def _classes(arrays: Arrays, names: Sequence[str]) -> NDArray[np.int64]:
    """Return each decision, one past the last class where there is no number."""
    values = class_values(arrays, names)
    return np.where(lost_rows(arrays), len(names), values.argmax(axis=1))


def _row_distances(first: Arrays, second: Arrays, examples: Examples, *, kind: str) -> Floats:
    """Return the distance of each row of the answers."""
    lost, other = lost_rows(first), lost_rows(second)
    both = ~lost & ~other
    distances: Floats = (lost != other).astype(np.float64)
    if kind in {REGRESSION, FEATURE_EXTRACTION.name}:
        distances[:] = 0
        distances[both] = np.abs(first["values"][both, 0].astype(np.float64) - second["values"][both, 0])
    elif kind == QUESTION_ANSWERING.name:
        pairs = zip(answer_texts(first, examples), answer_texts(second, examples), strict=True)
        distances[both] = np.array([1 - metrics.answer_f1([one], two) for one, two in pairs])[both]
    elif kind == FILL_MASK.name:
        distances[both] = np.abs(np.exp(-first["nll"][both]) - np.exp(-second["nll"][both]))
    else:
        shares = [probabilities(class_values(side, examples.label_names)[both], kind=kind) for side in (first, second)]
        gaps = np.abs(shares[0] - shares[1])
        distances[both] = gaps.max(axis=1) if kind == MULTI_LABEL else gaps.sum(axis=1) / 2
    return distances


def _say(arrays: Arrays, examples: Examples, row: int, *, kind: str) -> str:
    """Return one row's answer in words, with its probability where it has one."""
    if lost_rows(arrays)[row]:
        return NO_ANSWER
    if kind == QUESTION_ANSWERING.name:
        return _cut(answer_texts(arrays, examples)[row]) or NO_ANSWER
    if kind == FILL_MASK.name:
        return f"{arrays['choice_words'][row]} ({_share(np.exp(-arrays['nll'][row]))} for the true word)"
    if kind in {REGRESSION, FEATURE_EXTRACTION.name}:
        return f"{float(arrays['values'][row, 0]):.4g}"
    names = examples.label_names
    shares = probabilities(class_values(arrays, names)[row], kind=kind)
    if kind == MULTI_LABEL:
        given = [f"{name} ({_share(share)})" for name, share in zip(names, shares, strict=True) if share > 0.5]
        return ", ".join(given) or f"none ({_share(shares.max())} at most)"
    best = int(shares.argmax())
    return f"{_word(arrays, examples, row, kind=kind)}{names[best]} ({_share(shares[best])})"


def _label(arrays: Arrays, examples: Examples, row: int, *, kind: str) -> str:
    """Return the label of one row in words."""
    if kind == FILL_MASK.name:
        return str(arrays["wanted_words"][row])
    if kind == QUESTION_ANSWERING.name:
        return _cut(next(iter(examples.labels[row]["text"]), "")) or NO_ANSWER
    label, names = all_labels(examples)[row], examples.label_names
    if kind in {REGRESSION, FEATURE_EXTRACTION.name}:
        return f"{float(label):.4g}"
    if kind == MULTI_LABEL:
        return ", ".join(name for name, flag in zip(names, label, strict=True) if flag > 0.5) or "none"
    return f"{_word(arrays, examples, row, kind=kind)}{names[int(label)]}"


def _word(arrays: Arrays, examples: Examples, row: int, *, kind: str) -> str:
    """Return which word of its text a row is about, nothing where it is about all of it."""
    if kind == SINGLE_LABEL:
        return ""
    texts = row_texts(arrays)
    place = row - int(np.searchsorted(texts, texts[row]))
    return f"{_cut(examples.texts[int(texts[row])][place])}: "


def _share(value: float) -> str:
    return f"{100 * float(value):.0f} %"


def _short(text: Any) -> str | tuple[str, str]:
    if isinstance(text, tuple):
        return _cut(text[0]), _cut(text[1])
    return _cut(" ".join(text) if isinstance(text, list) else text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
