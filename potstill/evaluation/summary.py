"""The result of evaluating one model, as plain JSON: the same for a bundle and for a checkpoint."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.bundle import EngineName
from potstill.data import Examples
from potstill.evaluation.intervals import bootstrap
from potstill.evaluation.labels import describe_recalls, recall_statistic
from potstill.evaluation.predictions import Predictions, predict
from potstill.evaluation.scores import (
    Scored,
    answer_texts,
    check_examples,
    check_predictions,
    class_logits,
    confusion,
    not_finite_rows,
    probabilities,
    row_texts,
    score,
)
from potstill.evaluation.trivial import against_trivial
from potstill.progress import Progress, silent
from potstill.serve import Encoder
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
    get_task,
    kind_of,
    primary_metric,
)

_STAGE = "score quality"


class Summary(TypedDict):
    """The result for one model on one data set, as plain JSON values."""

    metric: str
    """Name of the deciding metric."""
    value: float
    """The score by that metric."""
    interval: list[float]
    """The value's 95 % interval."""
    scores: dict[str, float]
    """By metric, the deciding one first."""
    trivial: float
    """The score of the best answer that is always the same."""
    trivial_answer: str
    better_than_trivial: bool
    """Whether the model is surely better than that answer."""
    warning: str | None
    """A sentence if the model is not surely better than that answer; None if it is."""
    notes: list[str]
    """What to know of how the data was read, and of the scores, in sentences."""
    lost_finite: int
    """How many texts have an answer that is NaN or infinite, which counts as wrong."""
    per_class: NotRequired[list[metrics.ClassRow]]
    """Of classifiers; of token-classification, by type of entity."""
    worst_label: NotRequired[dict[str, Any]]
    """The label, or type of entity, with the lowest recall: `potstill.evaluation.results.LabelRecall`."""
    labels: NotRequired[list[str]]
    """The names of single labels, in the order of the confusion matrix."""
    confusion_matrix: NotRequired[list[list[int]]]
    """Of single labels: rows are the labels and columns the predictions."""
    predictions: NotRequired[list[dict[str, Any]]]
    """One row per example, where they are kept."""


class ModelEvaluation(Summary):
    """The result for one model, with what was scored on what."""

    model: str
    data: str
    split: str
    num_examples: int
    data_sha256: str


class BundleEvaluation(ModelEvaluation):
    """The result for one file of a bundle."""

    precision: str
    engine: EngineName
    sha256: str
    """Of the file."""


def evaluate_bundle(
    bundle_dir: Path,
    examples: Examples,
    *,
    precision: str | None = None,
    engine: EngineName = "onnxruntime",
    metric: str | None = None,
    threads: int | None = None,
    keep_predictions: bool = False,
    progress: Progress = silent,
) -> BundleEvaluation:
    """Score one precision of a bundle by the answers that it serves, one text at a time.

    Args:
        bundle_dir: the bundle, of any task.
        examples: read with the bundle's labels.
        precision: which of its files; None is fp32, or the only one there is.
        engine: what runs it, as in `potstill.serve.Encoder`.
        metric: the score to put first; None takes the task's own.
        threads: as in `potstill.serve.Encoder`.
        keep_predictions: as in `summarize`.
        progress: is called with how far it is.

    Raises:
        BundleError, TamperedError, MissingExtraError: as `potstill.serve.Encoder`.
        DataError: if such a model cannot be scored on the examples.
        UsageError: if the metric does not judge the task.
    """
    # The server's own encoder: its tokenizer, session and decoding are what is scored.
    encoder = Encoder(bundle_dir, precision=precision, engine=engine, threads=threads)
    manifest, precision = encoder.manifest, encoder.precision
    task = get_task(manifest.task)
    kind = kind_of(task, manifest.problem_type)
    metric = primary_metric(task, manifest.problem_type, asked=metric, num_labels=len(manifest.labels))
    check_examples(examples, kind)
    total = len(examples)

    def tell(done: int) -> None:
        # `predict` counts both sides of a pair, so it may pass the number of examples.
        progress(_STAGE, min(done, total), total, precision)

    tell(0)
    predictions = predict(
        encoder.session,
        encoder.tokenizer,
        examples.texts,
        kind=kind,
        outputs=manifest.outputs,
        function=encoder.function,
        pooling=manifest.pooling,
        progress=tell,
    )
    tell(total)
    check_predictions(predictions, examples, kind=kind, key=str(bundle_dir))
    return {
        "model": str(bundle_dir),
        "precision": precision,
        "engine": engine,
        "sha256": encoder.bundle.record_of(precision).sha256,
        "data": examples.name,
        "split": examples.split,
        "num_examples": len(examples),
        "data_sha256": examples.sha256,
        **summarize(predictions, examples, kind=kind, metric=metric, keep_predictions=keep_predictions),
    }


def summarize(
    predictions: Predictions, examples: Examples, *, kind: str, metric: str, keep_predictions: bool = False
) -> Summary:
    """Return the scores of a model's predictions, a trivial answer to compare with, notes, and tables by class.

    Args:
        predictions: what `potstill.evaluation.predictions.predict` returned for `examples.texts`.
        examples: labelled, except for fill-mask.
        kind: `potstill.tasks.kind_of`.
        metric: one of those that `potstill.tasks.METRICS` has for the kind; it decides.
        keep_predictions: not for fill-mask.
    """
    scored = score(predictions, examples, kind=kind, metric=metric)
    verdict = against_trivial(predictions, scored, examples, kind=kind, metric=metric)
    found: Summary = {
        "metric": metric,
        "value": scored.scores[metric],
        "interval": list(verdict.interval),
        "scores": {metric: scored.scores[metric]} | scored.scores,
        "trivial": verdict.trivial,
        "trivial_answer": verdict.trivial_answer,
        "better_than_trivial": verdict.better,
        "warning": verdict.sentence,
        "notes": [*examples.notes, *list_notes(predictions, scored, examples, kind=kind)],
        "lost_finite": scored.num_not_finite,
    }
    names, decisions = examples.label_names, scored.decisions
    if kind == TOKEN_CLASSIFICATION.name:
        # By entity, as seqeval counts; a report by word would be full of `O`.
        wanted = metrics.tag_names(examples.labels, names)
        found["per_class"] = metrics.entity_report(wanted, _tags(scored, examples))
    elif kind == MULTI_LABEL:
        # The report takes logits, above 0 for yes: decisions of 0 and 1 are moved to either side of 0.
        found["per_class"] = metrics.multi_label_report(examples.labels, _label_sets(scored, examples) - 0.5, names)
    elif kind == SINGLE_LABEL:
        assert decisions is not None
        shown, counts = confusion(None, predictions, examples)
        found["per_class"] = metrics.classification_report(examples.labels, decisions, names)
        found["labels"], found["confusion_matrix"] = shown, counts
    if scored.labels is not None:
        drawn = None
        if kind == TOKEN_CLASSIFICATION.name:
            rng = np.random.default_rng(0)
            drawn = bootstrap(recall_statistic(scored.labels), scored.num_texts, rng=rng)
        recalls, worst = describe_recalls(scored.labels, drawn)
        intervals = {row.label: list(row.interval) for row in recalls}
        for row in found["per_class"]:
            if row["label"] in intervals:
                row["recall_interval"] = intervals[row["label"]]
        if worst is not None:
            found["worst_label"] = worst.model_dump(mode="json")
    if keep_predictions:
        found["predictions"] = _list_predictions(predictions, scored, examples, kind=kind)
    return found


def list_notes(predictions: Predictions, scored: Scored, examples: Examples, *, kind: str) -> list[str]:
    """Return sentences about scores that mislead if read alone: 0 by convention, or means that leave something out."""
    names = examples.label_names
    if kind in (REGRESSION, FEATURE_EXTRACTION.name):
        # NaN is no variation: broken answers must not hide that all the others are equal.
        given = predictions["values"][~not_finite_rows(predictions)]
        sides = {"labels": np.asarray(examples.labels), "answers": given}
        constant = [name for name, values in sides.items() if len(values) == 0 or np.ptp(values) == 0]
        which = " and the ".join(constant)
        return [f"The {which} never vary, so no correlation is defined; it counts as 0."] if constant else []
    if kind == SINGLE_LABEL:
        assert scored.decisions is not None
        seen = metrics.occurring_classes(examples.labels, scored.decisions, len(names))
        notes = []
        if not seen.all():
            notes.append(
                f"Macro F1 is the mean over {int(seen.sum())} of {len(names)} labels; {_some_names(names, ~seen)} "
                "occur neither in the data nor in the answers."
            )
        sides = {"labels": examples.labels, "answers": scored.decisions}
        single = [name for name, values in sides.items() if len(np.unique(values)) < 2]
        if single:
            notes.append(f"The {' and the '.join(single)} are all of one class, so Matthews' correlation counts as 0.")
        return notes
    if kind == MULTI_LABEL:
        # scikit-learn counts F1 0 for such a label, which pulls macro F1 down by 1 / labels without any mistake.
        absent = ~(examples.labels > 0.5).any(axis=0) & ~(predictions["values"] > 0).any(axis=0)
        if absent.any():
            return [
                f"Macro F1 counts 0 for {_some_names(names, absent)}, which occur neither in the data nor in the "
                "answers."
            ]
    if kind == TOKEN_CLASSIFICATION.name and "seen" in predictions and not predictions["seen"].all():
        seen = predictions["seen"]
        return [
            f"{int((~seen).sum()):,} of {len(seen):,} words are not read, being behind the longest input or without a "
            f"token; they count as answered with {'O' if 'O' in names else names[0]}."
        ]
    return []


def _some_names(names: tuple[str, ...], chosen: NDArray[np.bool_]) -> str:
    found = [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    return f"{', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"


def _tags(scored: Scored, examples: Examples) -> list[list[str]]:
    """Return the predicted tag of every word of each text."""
    assert scored.decisions is not None
    ends = np.cumsum([len(tags) for tags in examples.labels])[:-1]
    return metrics.tag_names([ids.tolist() for ids in np.split(scored.decisions, ends)], examples.label_names)


def _label_sets(scored: Scored, examples: Examples) -> NDArray[np.int64]:
    """Return 1 for every label that a text is given, shape (texts, labels)."""
    assert scored.decisions is not None
    return scored.decisions.reshape(len(examples), -1)


def _list_predictions(
    predictions: Predictions, scored: Scored, examples: Examples, *, kind: str
) -> list[dict[str, Any]]:
    """Return one row per example: the input, the label, and the prediction, None for NaN or infinity.

    Single labels have a `probability` beside them, answers to questions their `f1` and `exact_match`.
    """
    assert kind != FILL_MASK.name
    names, key, texts = examples.label_names, "text", examples.texts
    rows: list[dict[str, Any]]
    if kind == SINGLE_LABEL:
        assert scored.decisions is not None
        # Only shown: rows with NaN are replaced by None below.
        shares = probabilities(np.nan_to_num(class_logits(predictions, names)), kind=SINGLE_LABEL)
        rows = [
            {"label": names[label], "prediction": names[choice], "probability": round(float(row[choice]), 6)}
            for label, choice, row in zip(examples.labels, scored.decisions, shares, strict=True)
        ]
    elif kind == MULTI_LABEL:
        sides = zip(examples.labels > 0.5, _label_sets(scored, examples) > 0, strict=True)
        rows = [
            {side: [name for name, flag in zip(names, flags, strict=True) if flag] for side, flags in both.items()}
            for both in ({"label": labels, "prediction": given} for labels, given in sides)
        ]
    elif kind == TOKEN_CLASSIFICATION.name:
        key, tags = "tokens", metrics.tag_names(examples.labels, names)
        both = zip(tags, _tags(scored, examples), strict=True)
        rows = [{"label": wanted, "prediction": given} for wanted, given in both]
    elif kind == QUESTION_ANSWERING.name:
        key, texts = "question", [text[0] for text in examples.texts]
        rows = [
            {
                "label": labels["text"],
                "prediction": given,
                "f1": metrics.squad_f1(labels["text"], given),
                "exact_match": metrics.squad_exact_match(labels["text"], given),
            }
            for labels, given in zip(examples.labels, answer_texts(predictions, examples), strict=True)
        ]
    else:
        pairs = zip(examples.labels.tolist(), predictions["values"][:, 0].tolist(), strict=True)
        rows = [{"label": label, "prediction": round(value, 6)} for label, value in pairs]
    # JSON has no NaN; a text with one broken word has no answer as a whole.
    not_finite = {int(text) for text in row_texts(predictions)[not_finite_rows(predictions)]}
    return [
        {key: text} | row | ({"prediction": None} if number in not_finite else {})
        for number, (text, row) in enumerate(zip(texts, rows, strict=True))
    ]
