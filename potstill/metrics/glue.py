"""GLUE's summary: one number per task, their mean, and how much of a teacher's row a student keeps.

Each task's number is the one that GLUE averages (Wang et al. 2018, arXiv 1804.07461, section 3): Matthews correlation
for CoLA, the mean of accuracy and F1 for MRPC and QQP, the mean of Pearson's and Spearman's correlation for STS-B,
accuracy for the others. DistilBERT's table 1, times 100 there, does not name its metrics.

WNLI is kept apart: on its 71 examples the more frequent label beats BERT, so that a mean with it rewards a model that
learned nothing.
"""

import re
from collections.abc import Mapping
from typing import Any

from potstill.errors import UsageError

GLUE_METRICS = {
    "CoLA": "matthews_correlation",
    "MNLI": "accuracy",
    "MRPC": "accuracy_and_f1",
    "QNLI": "accuracy",
    "QQP": "accuracy_and_f1",
    "RTE": "accuracy",
    "SST-2": "accuracy",
    "STS-B": "pearson_and_spearman",
    "WNLI": "accuracy",
}
"""The metric of each task, in the order of a GLUE table."""
WNLI = "WNLI"


def glue_task(name: str) -> str:
    """Return the task's name as GLUE writes it, whatever the case and hyphens: `sst2` is `SST-2`.

    Raises:
        UsageError: if it is none.
    """
    by_letters = {_letters(task): task for task in GLUE_METRICS}
    if _letters(name) not in by_letters:
        raise UsageError(f"{name!r} is no task of GLUE; expected {', '.join(GLUE_METRICS)}")
    return by_letters[_letters(name)]


def glue_summary(scores: Mapping[str, float], reference: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return the row of a GLUE table, and with a reference how much of its row is kept.

    Args:
        scores: each task's number, by `GLUE_METRICS`; some tasks may be missing.
        reference: the teacher's, in the same unit; tasks that `scores` has not are left out.

    Returns:
        `scores` (by GLUE's spelling and in its order), `average` (without WNLI), `average_with_wnli`; with a reference
        also `retention` (by task), `retention_by_definition`, and `worst_task`, the one that keeps least. An average
        is None where no task goes into it, or where WNLI was not scored.

    Raises:
        UsageError: if a task is unknown or given twice, the reference lacks it, or the reference's score is not
            positive, so that no share of it can be kept.
    """
    ours = _row(scores)
    # As in BERT's table 1, whose average has no WNLI (Devlin et al. 2019, arXiv 1810.04805).
    kept = {task: score for task, score in ours.items() if task != WNLI}
    summary: dict[str, Any] = {
        "scores": ours,
        "average": sum(kept.values()) / len(kept) if kept else None,
        "average_with_wnli": sum(ours.values()) / len(ours) if WNLI in ours else None,
    }
    if reference is None:
        return summary
    theirs = _row(reference)
    for task in ours:
        # Matthews' correlation and Pearson's may be 0 or negative, where a ratio says nothing; NaN is caught as well.
        if not theirs.get(task, 0.0) > 0:
            have = f"is {theirs[task]}" if task in theirs else "is missing"
            raise UsageError(f"the reference's score of {task} {have}; retention needs one above 0")
    ratios = {task: score / theirs[task] for task, score in ours.items()}
    summary["retention"] = ratios
    if kept:
        summary["retention_by_definition"] = retention_by_definition({task: theirs[task] for task in ours}, ours)
        summary["worst_task"] = min(kept, key=lambda task: ratios[task])
    return summary


def retention_by_definition(teacher: Mapping[str, float], student: Mapping[str, float]) -> dict[str, float]:
    """Return how much of the teacher's scores the student keeps, by every definition in use.

    Args:
        teacher: score by task, by GLUE's spelling.
        student: score by task, the same tasks.

    Returns:
        `macro_with_wnli` (ratio of the means), `macro` (the same without WNLI), `mean_of_ratios` and `worst_task`
        (both without WNLI). Without WNLI among the tasks the first two are equal.
    """
    kept = [task for task in teacher if task != WNLI]
    ratios = [student[task] / teacher[task] for task in kept]
    return {
        # Ratio of the means: what papers call "97 % of BERT" (DistilBERT's table 1), dominated by tasks with high
        # scores.
        "macro_with_wnli": sum(student[task] for task in teacher) / sum(teacher.values()),
        "macro": sum(student[task] for task in kept) / sum(teacher[task] for task in kept),
        # Each task weighs the same here, so a low-scoring one such as CoLA moves it more.
        "mean_of_ratios": sum(ratios) / len(ratios),
        "worst_task": min(ratios),
    }


def _row(scores: Mapping[str, float]) -> dict[str, float]:
    named = {glue_task(name): float(score) for name, score in scores.items()}
    # Two spellings of one task, `sst2` and `SST-2`, would silently overwrite each other.
    if len(named) < len(scores):
        raise UsageError(f"a task is there twice in {', '.join(scores)}; give each once")
    return {task: named[task] for task in GLUE_METRICS if task in named}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
