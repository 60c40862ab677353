"""How good the answers are: every model by the same metrics on the same examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.bench import stats
from potstill.data import Examples
from potstill.errors import DataError
from potstill.metrics import agreement, classification, majority_share
from potstill.progress import Progress, silent
from potstill.serve import Encoder
from potstill.task import Task, get_task

_TEXTS_PER_STEP = 128
Logits = Mapping[str, NDArray[np.floating]]


def evaluate_bundle(
    bundle_dir: Path,
    examples: Examples,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Score one precision of a bundle through the same encoder that serves it.

    Returns:
        Plain JSON values: `metric`, its `value`, all `scores`, and what they were measured on.

    Raises:
        BundleError, TamperedError: as `potstill.serve.Encoder`.
        DataError: if the examples have labels that the model does not.
    """
    encoder = Encoder(bundle_dir, precision=precision, threads=threads)
    check_labels(examples, num_labels=len(encoder.manifest.labels), name=str(bundle_dir))
    parts = []
    for start in range(0, len(examples), _TEXTS_PER_STEP):
        progress("score quality", start, len(examples), precision)
        parts.append(encoder.logits(examples.texts[start : start + _TEXTS_PER_STEP]))
    progress("score quality", len(examples), len(examples), precision)
    task = get_task(encoder.manifest.task)
    scores = classification(examples.labels, np.concatenate(parts))
    return {
        "model": str(bundle_dir),
        "precision": precision,
        "sha256": encoder.bundle.record_of(precision).sha256,
        **measured_on(examples, task),
        "value": scores[task.metric],
        "scores": scores,
    }


def check_labels(examples: Examples, *, num_labels: int, name: str) -> None:
    """Refuse examples that the model cannot answer.

    Raises:
        DataError: if a label id is not below `num_labels`.
    """
    highest = int(examples.labels.max())
    if highest >= num_labels:
        raise DataError(
            f"{examples.name} ({examples.split}) has the label {highest}, but {name} knows {num_labels} labels, "
            f"0 to {num_labels - 1}; give data of the same task"
        )


def measured_on(examples: Examples, task: Task) -> dict[str, Any]:
    """Return what a score must be read with: the metric, the data and the score of always saying the same."""
    return {
        "metric": task.metric,
        "data": examples.name,
        "split": examples.split,
        "num_examples": len(examples),
        "data_sha256": examples.sha256,
        "majority": majority_share(examples.labels),
    }


def compare(
    logits: Logits, examples: Examples, *, task: Task, baseline: str, rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """Score all models, and each against `baseline`.

    Args:
        logits: model name -> array of shape (examples, labels).
        examples: with their labels.
        task: names the metric that decides.
        baseline: the model whose score is to be kept, such as `teacher/fp32`.
        rng: draws the examples.
        resamples: bootstrap resamples of each retention.

    Returns:
        `values`, `scores` and `retention`, as the report holds them. Without the baseline there is no retention.
    """
    scores = {name: dict(classification(examples.labels, answers)) for name, answers in logits.items()}
    retention = []
    if baseline in logits:
        correct = {name: answers.argmax(axis=-1) == examples.labels for name, answers in logits.items()}
        for name, answers in logits.items():
            scores[name][f"agreement_with_{baseline}"] = agreement(answers, logits[baseline])
            kept = stats.score_ratio(correct[baseline], correct[name], rng=rng, resamples=resamples)
            if name != baseline and kept is not None:
                retention.append(
                    {"baseline": baseline, "candidate": name, "value": kept.value, "interval": kept.interval()}
                )
    return measured_on(examples, task) | {
        "values": {name: row[task.metric] for name, row in scores.items()}, "scores": scores, "retention": retention
    }  # fmt: skip
