"""What there is to say of one model's answers to one data set: the same for a bundle's and a checkpoint's."""

from collections.abc import Callable
from typing import Any

import numpy as np

from potstill import metrics
from potstill.data import Examples
from potstill.evaluation.contrast import confusion
from potstill.evaluation.marks import Arrays, Marks, answer_texts, class_values, lost_rows, mark, probabilities
from potstill.evaluation.trivial import against_trivial
from potstill.tasks import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
)


def summarise(
    arrays: Arrays, examples: Examples, *, kind: str, metric: str, keep_predictions: bool = False
) -> dict[str, Any]:
    """Return plain JSON values about a model's answers.

    - `metric`, its `value` and 95 % `interval`, and all `scores`, that one first
    - `trivial`, what the best answer scores that is always the same, `trivial_answer`, what it is, and
      `better_than_trivial`, whether the model is surely better; if not, `warning` says so in a sentence
    - `notes`: what to know of how the data was read, and of the scores, in sentences
    - `lost_finite`: how many texts have an answer that is no number, which counts as wrong
    - of classifiers `per_class`, rows as `metrics.per_class` makes them (entities for token-classification); of single
      labels also `labels`, their names, and `confusion_matrix`, whose rows are the labels and columns the predictions
    - with `keep_predictions`, `predictions`: one row per example

    Args:
        arrays: what `potstill.evaluation.ask.ask` returned for `examples.texts`.
        examples: labelled, but for fill-mask.
        kind: `potstill.tasks.kind_of`.
        metric: one of those that `potstill.tasks.METRICS` has for the kind; it decides.
        keep_predictions: not for fill-mask.
    """
    marks = mark(arrays, examples, kind=kind, metric=metric)
    verdict = against_trivial(arrays, marks, examples, kind=kind, metric=metric)
    found = {
        "metric": metric,
        "value": marks.scores[metric],
        "interval": list(verdict.interval),
        "scores": {metric: marks.scores[metric]} | marks.scores,
        "trivial": verdict.trivial,
        "trivial_answer": verdict.trivial_answer,
        "better_than_trivial": verdict.better,
        "warning": verdict.sentence,
        "notes": [*examples.notes, *list_notes(arrays, marks, examples, kind=kind)],
        "lost_finite": marks.lost,
    }
    found |= _count_classes(arrays, marks, examples, kind=kind)
    return found | ({"predictions": _list_predictions(arrays, marks, examples, kind=kind)} if keep_predictions else {})


def list_notes(arrays: Arrays, marks: Marks, examples: Examples, *, kind: str) -> list[str]:
    """Return sentences about scores that are not what they seem: by what they are 0, or what they leave out."""
    if kind in (REGRESSION, FEATURE_EXTRACTION.name):
        return _notes_of_amounts(arrays, examples)
    if kind == SINGLE_LABEL:
        return _notes_of_classes(marks, examples)
    if kind == MULTI_LABEL:
        return _notes_of_sets(arrays, examples)
    if kind == TOKEN_CLASSIFICATION.name:
        return _notes_of_words(arrays, examples)
    return []


def _notes_of_amounts(arrays: Arrays, examples: Examples) -> list[str]:
    given = arrays["values"][~lost_rows(arrays)]
    sides = {"labels": np.asarray(examples.labels), "answers": given}
    constant = [name for name, values in sides.items() if len(values) == 0 or np.ptp(values) == 0]
    if not constant:
        return []
    return [f"The {' and the '.join(constant)} never vary, so no correlation is defined; it counts as 0."]


def _notes_of_classes(marks: Marks, examples: Examples) -> list[str]:
    assert marks.decisions is not None
    names, notes = examples.label_names, []
    seen = metrics.occurring(examples.labels, marks.decisions, len(names))
    if not seen.all():
        absent = [name for name, occurs in zip(names, seen, strict=True) if not occurs]
        notes.append(
            f"Macro F1 is the mean over {int(seen.sum())} of {len(names)} labels; "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''} occur neither in the data nor in the answers."
        )
    sides = {"labels": examples.labels, "answers": marks.decisions}
    single = [name for name, values in sides.items() if len(np.unique(values)) < 2]
    if single:
        notes.append(f"The {' and the '.join(single)} are all of one class, so Matthews' correlation counts as 0.")
    return notes


def _notes_of_sets(arrays: Arrays, examples: Examples) -> list[str]:
    given = arrays["values"] > 0
    absent = ~(examples.labels > 0.5).any(axis=0) & ~given.any(axis=0)
    if not absent.any():
        return []
    names = [name for name, is_absent in zip(examples.label_names, absent, strict=True) if is_absent]
    return [
        f"Macro F1 counts 0 for {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}, which occur neither in the "
        "data nor in the answers."
    ]


def _notes_of_words(arrays: Arrays, examples: Examples) -> list[str]:
    unseen = int((~arrays["seen"]).sum()) if "seen" in arrays else 0
    if not unseen:
        return []
    names = examples.label_names
    tag = "O" if "O" in names else names[0]
    return [
        f"{unseen:,} of {len(arrays['seen']):,} words are not read, being behind the longest input or without a token; "
        f"they count as answered with {tag}."
    ]


def _count_classes(arrays: Arrays, marks: Marks, examples: Examples, *, kind: str) -> dict[str, Any]:
    names = examples.label_names
    if kind == TOKEN_CLASSIFICATION.name:
        wanted = metrics.tag_names(examples.labels, names)
        return {"per_class": metrics.per_entity(wanted, _tags(marks, examples))}
    if kind == MULTI_LABEL:
        return {"per_class": metrics.per_label(examples.labels, _sets(marks, examples) - 0.5, names)}
    if kind != SINGLE_LABEL:
        return {}
    assert marks.decisions is not None
    shown, counts = confusion(None, arrays, examples, names=names)
    return {
        "per_class": metrics.per_class(examples.labels, marks.decisions, names),
        "labels": shown,
        "confusion_matrix": counts,
    }


def _tags(marks: Marks, examples: Examples) -> list[list[str]]:
    """Return the tag of every word of each text."""
    assert marks.decisions is not None
    ends = np.cumsum([len(tags) for tags in examples.labels])[:-1]
    return metrics.tag_names([ids.tolist() for ids in np.split(marks.decisions, ends)], examples.label_names)


def _sets(marks: Marks, examples: Examples) -> Any:
    """Return 1 for every label that a text is given, shape (texts, labels)."""
    assert marks.decisions is not None
    return marks.decisions.reshape(len(examples), -1)


def _list_predictions(arrays: Arrays, marks: Marks, examples: Examples, *, kind: str) -> list[dict[str, Any]]:
    """Return one row per example: what was asked, the label, and the answer, None where that was no number.

    Single labels have a `probability` beside them, answers to questions their `f1` and `exact_match`.
    """
    rows = _ROWS[kind](arrays, marks, examples)
    asked = {TOKEN_CLASSIFICATION.name: "tokens", QUESTION_ANSWERING.name: "question"}.get(kind, "text")
    texts = [text[0] for text in examples.texts] if asked == "question" else examples.texts
    lost = {int(text) for text in np.asarray(arrays.get("texts", np.arange(len(texts))))[lost_rows(arrays)]}
    blank: dict[str, Any] = {"prediction": None}
    return [
        {asked: text} | row | (blank if number in lost else {})
        for number, (text, row) in enumerate(zip(texts, rows, strict=True))
    ]


def _name_classes(arrays: Arrays, marks: Marks, examples: Examples) -> list[dict[str, Any]]:
    assert marks.decisions is not None
    names = examples.label_names
    shares = probabilities(np.nan_to_num(class_values(arrays, names)), kind=SINGLE_LABEL)
    return [
        {"label": names[label], "prediction": names[choice], "probability": round(float(row[choice]), 6)}
        for label, choice, row in zip(examples.labels, marks.decisions, shares, strict=True)
    ]


def _name_sets(arrays: Arrays, marks: Marks, examples: Examples) -> list[dict[str, Any]]:
    names = examples.label_names

    def of(flags: Any) -> list[str]:
        return [name for name, flag in zip(names, flags, strict=True) if flag]

    pairs = zip(examples.labels > 0.5, _sets(marks, examples) > 0, strict=True)
    return [{"label": of(labels), "prediction": of(given)} for labels, given in pairs]


def _name_tags(arrays: Arrays, marks: Marks, examples: Examples) -> list[dict[str, Any]]:
    wanted = metrics.tag_names(examples.labels, examples.label_names)
    given = _tags(marks, examples)
    return [{"label": tags, "prediction": answer} for tags, answer in zip(wanted, given, strict=True)]


def _state_amounts(arrays: Arrays, marks: Marks, examples: Examples) -> list[dict[str, Any]]:
    pairs = zip(examples.labels.tolist(), arrays["values"][:, 0].tolist(), strict=True)
    return [{"label": label, "prediction": round(value, 6)} for label, value in pairs]


def _state_answers(arrays: Arrays, marks: Marks, examples: Examples) -> list[dict[str, Any]]:
    return [
        {
            "label": labels["text"],
            "prediction": given,
            "f1": metrics.answer_f1(labels["text"], given),
            "exact_match": metrics.answer_exact(labels["text"], given),
        }
        for labels, given in zip(examples.labels, answer_texts(arrays, examples), strict=True)
    ]


_ROWS: dict[str, Callable[[Arrays, Marks, Examples], list[dict[str, Any]]]] = {
    SINGLE_LABEL: _name_classes,
    MULTI_LABEL: _name_sets,
    REGRESSION: _state_amounts,
    TOKEN_CLASSIFICATION.name: _name_tags,
    QUESTION_ANSWERING.name: _state_answers,
    FEATURE_EXTRACTION.name: _state_amounts,
}
