"""Where contestants answer differently from the baseline: tables of counts, and the texts themselves."""

from collections.abc import Mapping

from potstill.bench import report_schema
from potstill.data import Examples
from potstill.evaluation.contrast import confusion, contrast
from potstill.evaluation.marks import Arrays
from potstill.tasks import SINGLE_LABEL, TOKEN_CLASSIFICATION

_CONFUSED = (SINGLE_LABEL, TOKEN_CLASSIFICATION.name)


def _shown(answers: Mapping[str, Arrays], baseline: str) -> list[str]:
    """Return one contestant of every other model, in fp32 where it has that; of a single model, its other rows."""
    rows: dict[str, list[str]] = {}
    for key in answers:
        if key != baseline:
            rows.setdefault(key.split("/")[0], []).append(key)
    own = rows.pop(baseline.split("/")[0], [])
    if not rows:
        return own
    return [next((key for key in keys if key.split("/")[1].startswith("fp32")), keys[0]) for keys in rows.values()]


def count_confusion(
    answers: Mapping[str, Arrays], examples: Examples, *, kind: str, baseline: str
) -> list[report_schema.Confusion]:
    """Count the answers of one row per model against the baseline's and against the labels, and the baseline's own.

    Args:
        answers: by contestant's key.
        examples: with their labels.
        kind: only single labels and words' tags are counted.
        baseline: a key.
    """
    if kind not in _CONFUSED:
        return []
    tables = []
    shown = _shown(answers, baseline)
    pairs = [(rows, key) for key in shown for rows in (baseline, None) if rows is None or rows in answers]
    for rows, key in [*pairs, *([(None, baseline)] if baseline in answers else [])]:
        side = None if rows is None else answers[rows]
        labels, counts = confusion(side, answers[key], examples, names=examples.label_names)
        tables.append(report_schema.Confusion(rows=rows or "label", columns=key, labels=labels, counts=counts))
    return tables


def list_differences(
    answers: Mapping[str, Arrays], examples: Examples, *, kind: str, baseline: str
) -> list[report_schema.Difference]:
    """Return for one row per model the texts that it answers most differently from the baseline."""
    if baseline not in answers:
        return []
    return [
        report_schema.Difference(
            baseline=baseline, candidate=key, text=found.text, label=found.label, baseline_answer=found.first_answer,
            candidate_answer=found.second_answer, distance=found.distance,
        )
        for key in _shown(answers, baseline)
        for found in contrast(answers[baseline], answers[key], examples, kind=kind)
    ]  # fmt: skip
