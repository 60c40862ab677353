"""GLUE's table from single fine-tunings: which setting counts, what it scored, and how much of a reference is kept."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from potstill.errors import TrainingError, UsageError
from potstill.metrics import GLUE_METRICS, glue_summary, glue_task

SUMMARY = "glue.json"
"""The file of a run's summary."""
Setting: TypeAlias = tuple[float, float]
"""A learning rate and a number of epochs."""


def choose(task: str, tried: Sequence[Setting], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the setting with the best median over its seeds, and under `settings` what every setting scored.

    Args:
        task: in GLUE's spelling.
        tried: the setting of each fine-tuning.
        outcomes: its `scores` (or `failed`), `floor`, `num_examples`, and for MNLI `second_scores`.

    Raises:
        TrainingError: if no setting has a score with every seed.
    """
    metric = GLUE_METRICS[task]
    by_setting: dict[Setting, list[Mapping[str, Any]]] = {}
    for setting, outcome in zip(tried, outcomes, strict=True):
        by_setting.setdefault(setting, []).append(outcome)
    settings = [
        {"learning_rate": rate, "epochs": epochs} | _spread([_value(one, "scores", metric) for one in found])
        for (rate, epochs), found in by_setting.items()
    ]
    whole = [setting for setting in settings if setting["median"] is not None]
    if not whole:
        raise TrainingError(
            f"{task} failed with every setting: {outcomes[0].get('failed', 'its scores are no numbers')}"
        )
    best = max(whole, key=lambda setting: setting["median"])
    chosen = by_setting[best["learning_rate"], best["epochs"]]
    second = [_value(one, "second_scores", metric) for one in chosen if "second_scores" in one]
    return {
        "metric": metric,
        "num_examples": chosen[0]["num_examples"],
        "floor": chosen[0]["floor"][metric],
        **best,
        **({"mismatched": _spread(second)} if second else {}),
        "settings": settings,
    }


def _value(outcome: Mapping[str, Any], key: str, metric: str) -> float | None:
    value = outcome.get(key, {}).get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return `values` with their median, least and greatest; nothing but the values where a seed has failed."""
    found = [value for value in values if value is not None]
    whole = len(found) == len(values)
    return {
        "median": statistics.median(found) if whole else None,
        "min": min(found) if whole else None,
        "max": max(found) if whole else None,
        "values": list(values),
    }


def read_reference(file: Path, tasks: Sequence[str]) -> dict[str, float]:
    """Return the scores of `tasks` in a run's summary, or in a JSON object of scores by task.

    Raises:
        UsageError: if it cannot be read, lacks a task, or has scores that are no shares of 1.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content.get("scores", content)
        scores = {glue_task(name): float(score) for name, score in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"cannot read {file} as a reference: {error}; expected a run's {SUMMARY} or an object of scores by task"
        ) from error
    missing = [task for task in tasks if task not in scores]
    if missing:
        raise UsageError(f"{file} has no score of {', '.join(missing)}; choose other tasks or another reference")
    large = next((task for task in tasks if scores[task] > 1), None)
    if large is not None:
        raise UsageError(f"{file} has {scores[large]} for {large}; scores are shares of 1: {scores[large] / 100:g}")
    return {task: scores[task] for task in tasks}


def compare(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    """Return how much of the reference's row is kept; tasks on which it has learned nothing have no share to keep."""
    usable = {task: score for task, score in ours.items() if theirs[task] > 0}
    compared = glue_summary(usable, theirs)
    kept = {key: compared[key] for key in ("retention", "retention_by_definition", "worst_task") if key in compared}
    return {"reference": glue_summary({task: theirs[task] for task in ours})} | kept
