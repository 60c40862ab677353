"""Score a model's predictions on a data set, and score any resample of its texts, for the bootstrap.

An answer that is NaN or infinite is a wrong one: the class after the right one, `O` for the tag of an entity, each
label the other way round, the end of the other predictions that is farther from the label, a text that nobody accepts,
a masked word as likely as every other of the vocabulary.

Nearly every metric is made of sums over texts, so a draw is scored by one row of a matrix product: how often each text
was drawn, times what each text adds to the sums. Only Spearman's ranks are made anew in every draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill import metrics
from potstill.data import Examples
from potstill.errors import DataError
from potstill.evaluation.intervals import Floats, Statistic
from potstill.evaluation.labels import LabelHits, find_entities, find_labels
from potstill.evaluation.predictions import Predictions
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
)

Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]

NO_ANSWER = "no answer"
"""Shown in place of an answer that is NaN or infinite, and of an answer to a question that is left without one."""
_LABELLED = (SINGLE_LABEL, MULTI_LABEL, TOKEN_CLASSIFICATION.name)
# What stands for NaN as an answer: normalising leaves it alone, and no accepted answer is it; "" would mean "none".
_NO_TEXT = "\0"
# JSON has no infinity (RFC 8259, section 6).
_LARGEST = float(np.finfo(np.float64).max)
# A draw that repeats one text has no spread; what rounding leaves of it is far below this.
_NO_SPREAD = 1e-12


def check_examples(examples: Examples, kind: str) -> None:
    """Refuse examples that models of a kind cannot be scored on, before any of them runs.

    Raises:
        DataError: if there are no labels, no pairs for feature-extraction, or labels beyond those with a name.
    """
    where = f"{examples.name} ({examples.split})"
    if examples.labels is None and kind != FILL_MASK.name:
        what = "pairs of texts with a score" if kind == FEATURE_EXTRACTION.name else "labels"
        raise DataError(f"{where} has no {what}, and a {kind} model is judged by them; give other data or columns")
    known, highest = len(examples.label_names), -1
    if kind == SINGLE_LABEL:
        highest = int(examples.labels.max())
    elif kind == MULTI_LABEL:
        highest = int(examples.labels.shape[1]) - 1
    elif kind == TOKEN_CLASSIFICATION.name:
        highest = max(int(ids.max()) for ids in examples.labels if len(ids))
    if highest >= known and kind in _LABELLED:
        raise DataError(
            f"{where} has the label {highest}, but the model knows {known} labels, 0 to {known - 1}; "
            "give data of the same task"
        )


def check_predictions(predictions: Predictions, examples: Examples, *, kind: str, key: str) -> None:
    """Refuse predictions with more or fewer numbers than the examples' labels ask for.

    Raises:
        DataError: naming the model by `key`.
    """
    if "values" not in predictions:
        return
    columns = len(examples.label_names) if kind in _LABELLED else 1
    if predictions["values"].shape[1] != columns:
        raise DataError(
            f"{key} answers with {predictions['values'].shape[1]} numbers per decision, and {examples.name} "
            f"({examples.split}) is read with {columns}; give data with the model's own labels"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of one model on a data set, and what comparisons and intervals need."""

    scores: dict[str, float]
    """By every metric of the kind."""
    statistic: Statistic
    """The deciding metric of draws of the texts."""
    num_texts: int
    """How many texts a draw draws from."""
    correct: Bools | None
    """Whether each text's answer is right in every part; None where an answer is no decision, or several."""
    decisions: NDArray[Any] | None
    """What was decided, shape (decisions,); None where answers are numbers."""
    decisions_not_finite: Bools | None
    """Which decisions rest on NaN or infinity, shape (decisions,)."""
    num_not_finite: int
    """How many texts have an answer that is NaN or infinite."""
    calibration: Statistic | None = None
    """For classifiers: the expected calibration error of draws of the texts, over the finite decisions."""
    labels: LabelHits | None = None
    """For classifiers: which labels, or entities, were to be found, and which were."""


def score(predictions: Predictions, examples: Examples, *, kind: str, metric: str) -> Scored:
    """Score the predictions of one model.

    Args:
        predictions: what `potstill.evaluation.predictions.predict` returned for `examples.texts`.
        examples: labelled, except for fill-mask.
        kind: `potstill.tasks.kind_of`.
        metric: one of those that `potstill.tasks.METRICS` has for the kind; it decides.
    """
    if kind == FILL_MASK.name:
        return _score_masked_words(predictions, metric=metric)
    if kind == QUESTION_ANSWERING.name:
        return _score_answers(predictions, examples, metric=metric)
    if kind in {REGRESSION, FEATURE_EXTRACTION.name}:
        return _score_numbers(predictions, examples, kind=kind, metric=metric)
    return _score_classes(predictions, examples, kind=kind, metric=metric)


def agreement(ours: Scored, theirs: Scored) -> float | None:
    """Return the share of equal decisions; NaN or infinity agrees with nothing. None where answers are numbers."""
    if ours.decisions is None or theirs.decisions is None:
        return None
    assert ours.decisions_not_finite is not None
    assert theirs.decisions_not_finite is not None
    # Two broken answers were both replaced by the same wrong one, which is no agreement.
    alike = (ours.decisions == theirs.decisions) & ~ours.decisions_not_finite & ~theirs.decisions_not_finite
    return float(alike.mean())


def changes(before: Scored, after: Scored) -> tuple[int, int] | None:
    """Return how many texts only `before` has right (lost), and only `after` (gained); None for numbers."""
    if before.correct is None or after.correct is None:
        return None
    return int((before.correct & ~after.correct).sum()), int((after.correct & ~before.correct).sum())


def confusion(rows: Predictions | None, columns: Predictions, examples: Examples) -> tuple[list[str], list[list[int]]]:
    """Return the names and the counts of two models' answers, of single labels or of words' tags.

    Args:
        rows: whose answers the rows are; None takes the labels.
        columns: whose answers the columns are.
        examples: with their labels and the labels' names; `no answer` is added where a model gave no number.
    """
    names, sides = examples.label_names, []
    for side in (rows, columns):
        if side is None:
            sides.append(row_labels(examples))
        else:
            decisions = class_logits(side, names).argmax(axis=1)
            # argmax of NaN would be some class; it gets a row or column of its own behind the last class.
            sides.append(np.where(not_finite_rows(side), len(names), decisions))
    lost = any(bool((side == len(names)).any()) for side in sides)
    shown = [*names, *([NO_ANSWER] if lost else [])]
    return shown, metrics.confusion_matrix(sides[0], sides[1], len(shown)).tolist()


def row_texts(predictions: Predictions) -> Ints:
    """Return which text each row of the predictions is about, shape (rows,)."""
    if "texts" in predictions:
        return predictions["texts"]
    return np.arange(len(predictions["scores" if "scores" in predictions else "values"]))


def not_finite_rows(predictions: Predictions) -> Bools:
    """Return which rows of the predictions hold NaN or infinity, shape (rows,)."""
    if "nll" in predictions:
        return np.isnan(predictions["nll"])
    if "scores" in predictions:
        return np.isnan(predictions["scores"])
    return np.asarray(~np.isfinite(predictions["values"]).all(axis=1))


def row_labels(examples: Examples) -> NDArray[Any]:
    """Return the labels, one per row of the predictions: those of words one after another."""
    return np.concatenate(examples.labels) if isinstance(examples.labels, list) else examples.labels


def class_logits(predictions: Predictions, names: Sequence[str]) -> NDArray[np.float32]:
    """Return the logits of classes; a word that the model did not see has those of `O`, or else of the first tag."""
    values = predictions["values"]
    if "seen" not in predictions or predictions["seen"].all():
        return values
    # -inf and 0 make a probability of 1; a tagger that reads no further leaves words without an entity.
    unseen = np.full(values.shape[1], -np.inf, dtype=values.dtype)
    unseen[names.index("O") if "O" in names else 0] = 0
    return np.where(predictions["seen"][:, None], values, unseen)


def answer_texts(predictions: Predictions, examples: Examples) -> list[str]:
    """Return the answers to questions, "" for none; where every question has an answer, none is left without."""
    # As a user would set `handle_impossible_answer`: by the data set, never by the question.
    may_be_none = any(not answers["text"] for answers in examples.labels)
    return [str(answer) for answer in predictions["answers_or_none" if may_be_none else "answers"]]


def probabilities(values: NDArray[Any], *, kind: str) -> Floats:
    """Return the probabilities of logits: each label's own with several labels, else shares of 1."""
    if kind == MULTI_LABEL:
        # The same as 1 / (1 + exp(-x)), which would overflow.
        halves: Floats = 0.5 * (1 + np.tanh(0.5 * values.astype(np.float64)))
        return halves
    return metrics.softmax(values)


def _score_classes(predictions: Predictions, examples: Examples, *, kind: str, metric: str) -> Scored:
    not_finite, labels, names = not_finite_rows(predictions), row_labels(examples), examples.label_names
    # The bootstrap draws texts, so rows (words) are grouped by text; the new numbers skip texts without any word.
    texts, groups = np.unique(row_texts(predictions), return_inverse=True)
    values = class_logits(predictions, names).astype(np.float32)
    # A broken answer counts as wrong instead of being left out, or a model could gain by breaking on hard texts.
    values[not_finite] = _wrong_logits(labels[not_finite], names, kind=kind)
    shares = probabilities(values, kind=kind)
    counted = ~not_finite & predictions.get("seen", np.True_)
    if kind == MULTI_LABEL:
        decisions, wanted = (shares > 0.5).astype(np.int64), labels.astype(np.int64)
        scores = metrics.multi_label_scores(labels, shares - 0.5)
        statistic = _label_set_statistic(labels > 0.5, decisions > 0, metric=metric)
        found = find_labels(wanted, decisions, names, several=True)
        # Of a yes or no, the confidence is in whichever was decided: sigmoid(|z|), at least one half.
        confidences = probabilities(np.abs(values), kind=kind)
        hits = (values > 0) == (labels > 0.5)
    else:
        decisions, wanted = shares.argmax(axis=1)[:, None], labels[:, None].astype(np.int64)
        confidences, hits = shares.max(axis=1)[:, None], decisions == wanted
        if kind == TOKEN_CLASSIFICATION.name:
            # Entities must not run from one text into the next.
            ends = np.flatnonzero(np.diff(groups)) + 1
            tags = [
                metrics.tag_names([ids.tolist() for ids in np.split(side[:, 0], ends)], names)
                for side in (wanted, decisions)
            ]
            scores, statistic = metrics.entity_scores(*tags), _entity_statistic(*tags, metric=metric)
            found = find_entities(*tags)
        else:
            columns = np.arange(shares.shape[1])
            scores = metrics.classification_scores(labels, shares)
            statistic = _class_statistic(wanted == columns, decisions == columns, metric=metric)
            found = find_labels(wanted[:, 0], decisions[:, 0], names, several=False)
    wrong = (decisions != wanted).any(axis=1)
    return Scored(
        scores=scores,
        statistic=statistic,
        num_texts=len(texts),
        # A tagged text is right if every word is; McNemar's test needs one bit per text.
        correct=np.bincount(groups, weights=wrong) == 0,
        decisions=decisions.ravel(),
        decisions_not_finite=np.repeat(not_finite, decisions.shape[1]),
        num_not_finite=len(np.unique(groups[not_finite])),
        calibration=_calibration_statistic(confidences, hits, groups, counted) if counted.any() else None,
        labels=found,
    )


def _wrong_logits(labels: NDArray[Any], names: Sequence[str], *, kind: str) -> NDArray[Any]:
    """Return logits that decide wrongly. A tag becomes `O`, for another of its type might find the same entity."""
    if kind == MULTI_LABEL:
        return 1 - 2 * labels
    others = (labels + 1) % len(names)
    if kind == TOKEN_CLASSIFICATION.name and "O" in names:
        outside = names.index("O")
        others = np.where(labels == outside, others, outside)
    wrong: NDArray[np.float64] = np.eye(len(names))[others]
    return wrong


def _score_numbers(predictions: Predictions, examples: Examples, *, kind: str, metric: str) -> Scored:
    not_finite, labels = not_finite_rows(predictions), np.asarray(examples.labels)
    values = predictions["values"].astype(np.float64)
    if not_finite.all():
        values = np.zeros_like(values)
    elif not_finite.any():
        # The end that is farther from the label: the worst answer that this model gives, whatever the unit.
        low, high = values[~not_finite].min(), values[~not_finite].max()
        middle = (labels.min() + labels.max()) / 2
        values[not_finite, 0] = np.where(labels[not_finite] > middle, low, high)
    # A cosine and a score of 0 to 5 are not of one unit, so they have no squared error.
    scoring = metrics.correlations if kind == FEATURE_EXTRACTION.name else metrics.regression_scores
    return Scored(
        scores=scoring(labels, values),
        statistic=_regression_statistic(labels, values, metric=metric),
        num_texts=len(labels),
        correct=None,
        decisions=None,
        decisions_not_finite=None,
        num_not_finite=int(not_finite.sum()),
    )


def _score_answers(predictions: Predictions, examples: Examples, *, metric: str) -> Scored:
    not_finite = not_finite_rows(predictions)
    answers = answer_texts(predictions, examples)
    given = [_NO_TEXT if lost else answer for lost, answer in zip(not_finite.tolist(), answers, strict=True)]
    pairs = [(labels["text"], answer) for labels, answer in zip(examples.labels, given, strict=True)]
    exact = np.array([metrics.squad_exact_match(*pair) for pair in pairs])
    return Scored(
        scores=metrics.squad_scores(examples.labels, given),
        statistic=_mean_statistic(exact if metric == "exact_match" else [metrics.squad_f1(*pair) for pair in pairs]),
        num_texts=len(given),
        correct=exact > 0,
        decisions=np.array([metrics.normalize_answer(answer) for answer in given]),
        decisions_not_finite=not_finite,
        num_not_finite=int(not_finite.sum()),
    )


def _score_masked_words(predictions: Predictions, *, metric: str) -> Scored:
    not_finite = not_finite_rows(predictions)
    # A uniform guess: as bad as knowing nothing, and finite, so one text cannot make the perplexity infinite.
    nll = np.where(not_finite, np.log(float(predictions["vocabulary"])), predictions["nll"])
    hits = (predictions["choices"] == predictions["wanted"]) & ~not_finite
    scores = metrics.masked_lm_scores(float(nll.sum()), count=len(nll), hits=int(hits.sum()))
    groups = np.unique(predictions["texts"], return_inverse=True)[1]
    columns = np.stack([np.bincount(groups, weights=side) for side in (nll, hits, np.ones(len(nll)))], axis=1)

    def statistic(counts: Floats) -> Floats:
        total_nll, found, words = (counts @ columns).T
        if metric == "accuracy":
            return np.asarray(found / words)
        loss: Floats = total_nll / words
        # A report cannot hold infinity.
        return loss if metric == "loss" else np.exp(np.minimum(loss, np.log(_LARGEST)))

    return Scored(
        scores=scores | {"perplexity": min(scores["perplexity"], _LARGEST)},
        statistic=statistic,
        num_texts=len(columns),
        correct=None,
        decisions=predictions["choices"],
        decisions_not_finite=not_finite,
        num_not_finite=len(np.unique(groups[not_finite])),
    )


def _class_statistic(wanted: Bools, given: Bools, *, metric: str) -> Statistic:
    """Score one class per text; arguments of shape (texts, classes), one true in each row."""
    sums = _summing(wanted & given, wanted, given)

    def of(counts: Floats) -> Floats:
        hits, labels, predictions = sums(counts)
        texts, found = labels.sum(axis=1), hits.sum(axis=1)
        accuracy: Floats = found / texts
        f1 = _shares(2 * hits, labels + predictions)
        if metric == "matthews_correlation":
            covariance = found * texts - (labels * predictions).sum(axis=1)
            spread = (texts**2 - (predictions**2).sum(axis=1)) * (texts**2 - (labels**2).sum(axis=1))
            # Counts are integers, so a spread that is not 0 is at least 1, and the maximum changes nothing that counts.
            return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1)), 0.0)
        if metric == "accuracy":
            return accuracy
        if metric == "macro_f1":
            occurring = labels + predictions > 0
            return np.asarray((f1 * occurring).sum(axis=1) / occurring.sum(axis=1))
        positive: Floats = f1[:, 1]
        return positive if metric == "f1" else (accuracy + positive) / 2

    return of


def _label_set_statistic(wanted: Bools, given: Bools, *, metric: str) -> Statistic:
    """Score several labels per text; arguments of shape (texts, labels)."""
    if metric == "subset_accuracy":
        return _mean_statistic((wanted == given).all(axis=1))
    sums = _summing(wanted & given, wanted, given)

    def of(counts: Floats) -> Floats:
        hits, labels, predictions = sums(counts)
        if metric == "macro_f1":
            return np.asarray(_shares(2 * hits, labels + predictions).mean(axis=1))
        return _shares(2 * hits.sum(axis=1), (labels + predictions).sum(axis=1))

    return of


def _calibration_statistic(confidences: Floats, hits: Bools, groups: NDArray[np.intp], counted: Bools) -> Statistic:
    """Return the statistic of `metrics.expected_calibration_error`.

    Args:
        confidences: of each row's decisions, shape (rows, decisions).
        hits: whether they are right, likewise.
        groups: the number of each row's text, shape (rows,).
        counted: which rows count, shape (rows,).
    """
    bins = metrics.CALIBRATION_BINS
    # The error of a bin depends on sums alone: one table of (texts, bins) serves every draw.
    places = metrics.confidence_bins(confidences) + bins * groups[:, None]
    gaps = np.where(counted[:, None], hits - confidences, 0.0)
    texts = int(groups.max()) + 1
    table = np.bincount(places.ravel(), weights=gaps.ravel(), minlength=texts * bins).reshape(texts, bins)
    decisions = np.bincount(groups, weights=counted * confidences.shape[1], minlength=texts)
    return lambda counts: _shares(np.abs(counts @ table).sum(axis=1), counts @ decisions)


def _entity_statistic(wanted: list[list[str]], given: list[list[str]], *, metric: str) -> Statistic:
    """Score the tags of each text's words."""
    if metric == "accuracy":
        parts = [sum(map(str.__eq__, *pair)) for pair in zip(wanted, given, strict=True)]
        totals = [len(tags) for tags in wanted]
    else:
        found = [[set(metrics.get_entities(tags)) for tags in pair] for pair in zip(wanted, given, strict=True)]
        # Micro averages are ratios of sums of counts per text, so a draw's score needs no entities again.
        hits, labels, predictions = ([*map(len, sets)] for sets in zip(*((a & b, a, b) for a, b in found), strict=True))
        parts = [2 * hit for hit in hits] if metric == "f1" else hits
        both = [label + prediction for label, prediction in zip(labels, predictions, strict=True)]
        totals = {"f1": both, "precision": predictions, "recall": labels}[metric]
    columns = np.array([parts, totals], dtype=np.float64).T
    return lambda counts: _shares(*(counts @ columns).T)


def _regression_statistic(labels: NDArray[Any], values: NDArray[Any], *, metric: str) -> Statistic:
    """Score one number per text."""
    wanted, given = (np.asarray(side, dtype=np.float64).reshape(-1) for side in (labels, values))
    if metric == "mse":
        return _mean_statistic((wanted - given) ** 2)
    pearson, spearman = pearson_statistic(wanted, given), _spearman_statistic(wanted, given)
    if metric == "pearson_and_spearman":
        return lambda counts: (pearson(counts) + spearman(counts)) / 2
    return pearson if metric == "pearson" else spearman


def pearson_statistic(wanted: Floats, given: Floats) -> Statistic:
    """Return the statistic that correlates two numbers per text, 0 where a draw has no spread."""
    # Standardised beforehand: E[x²] - E[x]² of raw values loses its digits where the mean is large beside the spread.
    first, second = ((side - side.mean()) / (side.std() or 1.0) for side in (wanted, given))
    columns = np.stack([first, second, first * first, second * second, first * second], axis=1)

    def of(counts: Floats) -> Floats:
        means = (counts @ columns / counts.sum(axis=1, keepdims=True)).T
        return _correlation(means[4] - means[0] * means[1], means[2] - means[0] ** 2, means[3] - means[1] ** 2)

    return of


def _spearman_statistic(wanted: Floats, given: Floats) -> Statistic:
    def of(counts: Floats) -> Floats:
        texts = counts.sum(axis=1, keepdims=True)
        # The ranks 1 to n have the mean (n + 1) / 2 in every draw, ties or not.
        first, second = ((_ranks(side, counts) - (texts + 1) / 2) / texts for side in (wanted, given))
        return _correlation(
            *(np.einsum("dt,dt,dt->d", counts, *pair) for pair in ((first, second), (first, first), (second, second)))
        )

    return of


def _ranks(values: Floats, counts: Floats) -> Floats:
    """Return the rank of every text in every draw, equal values sharing the mean of theirs; (draws, texts)."""
    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    # How often each distinct value was drawn; the mean rank of equal ones is cumulated from that, without sorting a
    # draw.
    equal = np.add.reduceat(counts[:, np.argsort(values, kind="stable")], starts, axis=1)
    ranks: Floats = (np.cumsum(equal, axis=1) - (equal - 1) / 2)[:, places]
    return ranks


def _correlation(covariance: Floats, first: Floats, second: Floats) -> Floats:
    clear = (first > _NO_SPREAD) & (second > _NO_SPREAD)
    return np.where(clear, covariance / np.sqrt(np.where(clear, first * second, 1.0)), 0.0)


def _mean_statistic(values: ArrayLike) -> Statistic:
    """Return the statistic that averages one number per text."""
    column = np.asarray(values, dtype=np.float64)
    return lambda counts: counts @ column / counts.sum(axis=1)


def _summing(*columns: Bools) -> Callable[[Floats], Floats]:
    """Return a function of counts (draws, texts) that sums every array over each draw: (arrays, draws, columns)."""
    table = np.concatenate(columns, axis=1).astype(np.float64)
    return lambda counts: (counts @ table).reshape(len(counts), len(columns), -1).swapaxes(0, 1)


def _shares(parts: Floats, totals: Floats) -> Floats:
    result: Floats = np.where(totals > 0, parts / np.maximum(totals, 1), 0.0)
    return result
