"""Score answers by any metric of `potstill.metrics`, for thousands of draws of the texts at once.

Nearly every metric is made of sums over texts, so a draw is scored by one row of a matrix product: how often each text
was drawn, times what each text adds to the sums. Only Spearman's ranks are made anew in every draw.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill import metrics
from potstill.evaluation.answers import Answers
from potstill.evaluation.intervals import Floats, Statistic
from potstill.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKEN_CLASSIFICATION

LABELLED = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, TOKEN_CLASSIFICATION.name)
"""The kinds whose answers can be scored by labels here."""
IGNORED = -100
"""The label of a token that has none: the second part of a word."""
# A draw that repeats one text has no spread; what rounding leaves of it is far below this.
_NO_SPREAD = 1e-12

Ints = NDArray[np.int64]


def score(answers: Answers, labels: Any, *, names: Sequence[str] = ()) -> dict[str, float]:
    """Return the scores of `answers` by `potstill.metrics`; arguments as `score_draws`."""
    if answers.kind == TOKEN_CLASSIFICATION.name:
        wanted, given = _tags(answers, labels, names)
        return metrics.tagging(wanted, given)
    scoring: dict[str, Callable[[Any, Any], dict[str, float]]] = {
        SINGLE_LABEL: metrics.classification,
        MULTI_LABEL: metrics.multi_label,
        REGRESSION: metrics.regression,
    }
    return scoring[answers.kind](np.asarray(labels), answers.values)


def score_draws(answers: Answers, labels: Any, *, metric: str, names: Sequence[str] = ()) -> Statistic:
    """Return the statistic that scores draws of the texts by `metric`.

    Args:
        answers: of one of the kinds in `LABELLED`.
        labels: as `potstill.data.Examples.labels`; for token-classification one id per row of the answers, -100
            where a token has none.
        metric: one of those that `potstill.tasks.METRICS` has for the kind.
        names: the labels' names, for token-classification.
    """
    if answers.kind == TOKEN_CLASSIFICATION.name:
        return _entities(*_tags(answers, labels, names), metric=metric)
    if answers.kind == REGRESSION:
        return _amounts(np.asarray(labels), answers.values, metric=metric)
    if answers.kind == MULTI_LABEL:
        return _several(np.asarray(labels) > 0.5, answers.values > 0, metric=metric)
    columns = np.arange(answers.values.shape[1])
    return _classes(
        np.asarray(labels)[:, None] == columns, answers.values.argmax(axis=1)[:, None] == columns, metric=metric
    )


def right(answers: Answers, labels: Any) -> NDArray[np.bool_] | None:
    """Return whether each text's answer is right in every part, shape (texts,); None for amounts."""
    choices = answers.choices()
    if choices is None:
        return None
    wanted = np.asarray(labels).reshape(choices.shape).astype(np.int64)
    wrong = ((choices != wanted) & (wanted != IGNORED)).any(axis=1)
    faults: NDArray[np.bool_] = np.bincount(group(answers), weights=wrong) == 0
    return faults


def group(answers: Answers) -> NDArray[np.intp]:
    """Return the number of each row's text, counting only texts that have rows; shape (rows,)."""
    return np.unique(answers.texts, return_inverse=True)[1]


def _classes(wanted: NDArray[np.bool_], given: NDArray[np.bool_], *, metric: str) -> Statistic:
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
            return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1)), 0.0)
        if metric == "accuracy":
            return accuracy
        if metric == "macro_f1":
            occurring = labels + predictions > 0
            return np.asarray((f1 * occurring).sum(axis=1) / occurring.sum(axis=1))
        positive: Floats = f1[:, 1]
        return positive if metric == "f1" else (accuracy + positive) / 2

    return of


def _several(wanted: NDArray[np.bool_], given: NDArray[np.bool_], *, metric: str) -> Statistic:
    """Score several labels per text; arguments of shape (texts, labels)."""
    if metric == "subset_accuracy":
        return mean_draws((wanted == given).all(axis=1))
    sums = _summing(wanted & given, wanted, given)

    def of(counts: Floats) -> Floats:
        hits, labels, predictions = sums(counts)
        if metric == "macro_f1":
            return np.asarray(_shares(2 * hits, labels + predictions).mean(axis=1))
        return _shares(2 * hits.sum(axis=1), (labels + predictions).sum(axis=1))

    return of


def calibration_draws(
    confidences: Floats, hits: NDArray[np.bool_], groups: NDArray[np.intp], asked: NDArray[np.bool_]
) -> Statistic:
    """Return the statistic of `metrics.expected_calibration_error`.

    Args:
        confidences: of each row's decisions, shape (rows, decisions).
        hits: whether they are right, likewise.
        groups: the number of each row's text, shape (rows,).
        asked: which rows count, shape (rows,).
    """
    bins = metrics.CALIBRATION_BINS
    places = metrics.confidence_bins(confidences) + bins * groups[:, None]
    gaps = np.where(asked[:, None], hits - confidences, 0.0)
    texts = int(groups.max()) + 1
    table = np.bincount(places.ravel(), weights=gaps.ravel(), minlength=texts * bins).reshape(texts, bins)
    decisions = np.bincount(groups, weights=asked * confidences.shape[1], minlength=texts)

    def of(counts: Floats) -> Floats:
        return _shares(np.abs(counts @ table).sum(axis=1), counts @ decisions)

    return of


def _entities(wanted: list[list[str]], given: list[list[str]], *, metric: str) -> Statistic:
    """Score the tags of each text's tokens."""
    if metric == "accuracy":
        hits = [sum(map(str.__eq__, *pair)) for pair in zip(wanted, given, strict=True)]
        parts, totals = hits, [len(tags) for tags in wanted]
    else:
        found = [[set(metrics.find_entities(tags)) for tags in pair] for pair in zip(wanted, given, strict=True)]
        hits, labels, predictions = ([*map(len, sets)] for sets in zip(*((a & b, a, b) for a, b in found), strict=True))
        parts = [2 * hit for hit in hits] if metric == "f1" else hits
        both = [label + prediction for label, prediction in zip(labels, predictions, strict=True)]
        totals = {"f1": both, "precision": predictions, "recall": labels}[metric]
    columns = np.array([parts, totals], dtype=np.float64).T
    return lambda counts: _shares(*(counts @ columns).T)


def _amounts(labels: NDArray[np.floating], values: NDArray[np.floating], *, metric: str) -> Statistic:
    """Score one amount per text."""
    wanted, given = (np.asarray(side, dtype=np.float64).reshape(-1) for side in (labels, values))
    if metric == "mse":
        return mean_draws((wanted - given) ** 2)
    return {
        "pearson": pearson_draws(wanted, given),
        "spearman": _spearman(wanted, given),
        "pearson_and_spearman": lambda counts: (
            (pearson_draws(wanted, given)(counts) + _spearman(wanted, given)(counts)) / 2
        ),
    }[metric]


def pearson_draws(wanted: Floats, given: Floats) -> Statistic:
    """Return the statistic that correlates two amounts per text, 0 where a draw has no spread."""
    first, second = ((side - side.mean()) / (side.std() or 1.0) for side in (wanted, given))
    columns = np.stack([first, second, first * first, second * second, first * second], axis=1)

    def of(counts: Floats) -> Floats:
        means = (counts @ columns / counts.sum(axis=1, keepdims=True)).T
        return _correlation(means[4] - means[0] * means[1], means[2] - means[0] ** 2, means[3] - means[1] ** 2)

    return of


def _spearman(wanted: Floats, given: Floats) -> Statistic:
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
    equal = np.add.reduceat(counts[:, np.argsort(values, kind="stable")], starts, axis=1)
    ranks: Floats = (np.cumsum(equal, axis=1) - (equal - 1) / 2)[:, places]
    return ranks


def _correlation(covariance: Floats, first: Floats, second: Floats) -> Floats:
    clear = (first > _NO_SPREAD) & (second > _NO_SPREAD)
    return np.where(clear, covariance / np.sqrt(np.where(clear, first * second, 1.0)), 0.0)


def mean_draws(values: ArrayLike) -> Statistic:
    """Return the statistic that averages one number per text."""
    column = np.asarray(values, dtype=np.float64)
    return lambda counts: counts @ column / counts.sum(axis=1)


def _summing(*columns: NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """Return what sums each of several (texts, columns) arrays over a draw: (len(columns), draws, columns)."""
    table = np.concatenate(columns, axis=1).astype(np.float64)
    return lambda counts: (counts @ table).reshape(len(counts), len(columns), -1).swapaxes(0, 1)


def _shares(parts: Floats, totals: Floats) -> Floats:
    result: Floats = np.where(totals > 0, parts / np.maximum(totals, 1), 0.0)
    return result


def _tags(answers: Answers, labels: Any, names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the tags wanted and given of each text's labelled tokens."""
    if not names:
        raise ValueError("tokens are scored by the names of their tags; give `names`")
    wanted, given = np.asarray(labels), answers.values.argmax(axis=1)
    ends = np.flatnonzero(np.diff(group(answers))) + 1
    kept = [tags != IGNORED for tags in np.split(wanted, ends)]
    sides = ([tags[keep] for tags, keep in zip(np.split(ids, ends), kept, strict=True)] for ids in (wanted, given))
    first, second = (metrics.tag_names(side, names) for side in sides)
    return first, second
