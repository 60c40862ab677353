"""What a sample can and cannot show, told before anything runs: the smallest loss that it will not overlook.

"Not overlook" means that a paired test at 5 % finds it 4 times in 5, the custom since Cohen (1988). How small that is
depends on how the two models differ, which nobody knows before; so each number here rests on an assumption, stated
where it is made, and is good to about a factor of 1.5.
"""

from math import atanh, lgamma, log, log1p, sqrt, tanh
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.bench import report_schema
from potstill.data import Examples
from potstill.evaluation.intervals import Floats, mcnemar
from potstill.tasks import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
)

LEVEL, POWER = 0.05, 0.8
# Of answers that change, so many are lost. Int8 files and students that keep about 97 % lose some answers and gain
# others: one gained for every four lost lies between int8 (nearly as many gained) and a student that is simply worse.
LOST_OF_CHANGED = 0.8
# A baseline that is right 9 times in 10, for the metrics whose unit depends on where it starts.
_BASELINE_RIGHT = 0.9
# How well a good model's amounts go with the labels (BERT-base has 0.89 on STS-B), and two models' with each other.
_LABELS_R, _MODELS_R = 0.88, 0.95
_STEPS, _MOST_CHANGED, _TINY = 40, 120, 1e-12


def power(examples: Examples, *, kind: str, metric: str) -> report_schema.Power:
    """Return the smallest loss that a paired test of so many examples does not overlook, and a sentence about it.

    - `accuracy`, `subset_accuracy`, `exact_match`: exact, for McNemar's exact test, if of the answers that change four
      are lost for one that is gained
    - F1 and Matthews' correlation of single labels: the same loss of answers, put into the labels' counts
    - F1 of entities, of several labels and of answers to questions: the same, each wanted entity, label or question
      counted as right or wrong on its own; optimistic where those of one text go wrong together
    - correlations: Steiger's test (1980, Psychological Bulletin 87, equation 14) for a baseline with 0.88 and models
      that go with each other by 0.95
    - mean squared error and all numbers of language models: nothing can be said before

    Args:
        examples: labelled; they need not be of the models' own labels.
        kind: `potstill.tasks.kind_of`.
        metric: the one that decides.
    """
    count = len(examples)
    found = _smallest_loss(examples, kind=kind, metric=metric)
    name = metric.replace("_", " ")
    if isinstance(found, str):
        return report_schema.Power(num_examples=count, smallest_loss=None, sentence=found)
    points = 100 * found
    told = f"{points:.1f}" if points >= 0.95 else f"{points:.2g}"
    sentence = (
        f"With {count:,} examples, a loss of {told} points of {name} or more is found 4 times in 5; "
        "a smaller one may well go unseen."
    )
    return report_schema.Power(num_examples=count, smallest_loss=found, sentence=sentence)


def smallest_share(count: int) -> float | None:
    """Return the smallest loss of right answers that McNemar's exact test finds 4 times in 5; None if it finds none.

    Args:
        count: how many examples.
    """
    net = 2 * LOST_OF_CHANGED - 1
    chances = _rejections(count)
    if _chance(count, 1.0, chances) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _chance(count, middle, chances) >= POWER else (middle, high)
    return high * net


def _chance(count: int, changed: float, rejections: Floats) -> float:
    """Return how often the test rejects if a share `changed` of `count` answers changes."""
    chances = _binomial(count, changed, np.arange(len(rejections)))
    return float(chances @ rejections) + max(0.0, 1 - float(chances.sum()))


def _rejections(count: int) -> Floats:
    """Return how often McNemar's test finds a loss, by how many answers changed, from 0 on.

    With more changes than the last of them it finds 4 lost of 5 as good as always.
    """
    found = []
    for changed in range(min(count, _MOST_CHANGED) + 1):
        lost = np.arange(changed + 1)
        shown = [2 * k > changed and mcnemar(k, changed - k) <= LEVEL for k in range(changed + 1)]
        found.append(float(_binomial(changed, LOST_OF_CHANGED, lost) @ np.array(shown)))
    return np.array(found)


def _binomial(trials: int, share: float, hits: NDArray[np.int64]) -> Floats:
    """Return the probabilities of so many hits."""
    if share <= 0 or share >= 1:
        return np.asarray(hits == (0 if share <= 0 else trials), dtype=np.float64)
    ways = np.array([lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) for k in hits.tolist()])
    chances: Floats = np.exp(ways + hits * log(share) + (trials - hits) * log1p(-share))
    return chances


def _smallest_loss(examples: Examples, *, kind: str, metric: str) -> float | str:
    """Return the smallest loss in the metric's unit, or a sentence why there is none."""
    if kind in {REGRESSION, FEATURE_EXTRACTION.name} and metric != "mse":
        return _smallest_correlation(len(examples))
    units = _units(examples, kind=kind, metric=metric)
    if units is None:
        return (
            f"What {len(examples):,} examples can show of {metric.replace('_', ' ')} depends on how much it varies "
            "from text to text, which only a run tells; see the intervals."
        )
    share = smallest_share(units)
    if share is None:
        return f"With {len(examples):,} examples hardly any loss can be told from chance; give more of them."
    if kind == SINGLE_LABEL and metric != "accuracy":
        return _in_metric(examples.labels, max(2, len(examples.label_names)), share, metric=metric)
    return share


def _units(examples: Examples, *, kind: str, metric: str) -> int | None:
    """Return how many answers are right or wrong, each on its own."""
    if kind in {SINGLE_LABEL, QUESTION_ANSWERING.name} or metric == "subset_accuracy":
        return len(examples)
    if kind == MULTI_LABEL:
        return int(np.sum(examples.labels > 0.5))
    if kind != TOKEN_CLASSIFICATION.name:
        return None
    if metric == "accuracy":
        return sum(map(len, examples.labels))
    tags = metrics.tag_names(examples.labels, examples.label_names)
    return sum(len(metrics.find_entities(row)) for row in tags)


def _in_metric(labels: NDArray[np.int64], classes: int, share: float, *, metric: str) -> float:
    """Return what a loss of answers is in another metric, wrong answers being spread evenly over the other classes."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    before, after = (
        _score(counts, right, metric=metric) for right in (_BASELINE_RIGHT, max(0.0, _BASELINE_RIGHT - share))
    )
    return before - after


def _score(counts: Floats, right: float, *, metric: str) -> float:
    """Return the metric of the confusion matrix, in shares of texts, that such a share of right answers makes."""
    classes = len(counts)
    wrong = (1 - right) / (classes - 1)
    matrix = counts[:, None] / counts.sum() * (np.full((classes, classes), wrong) + np.eye(classes) * (right - wrong))
    hits, wanted, given = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = 2 * hits / np.maximum(wanted + given, _TINY)
    if metric == "matthews_correlation":
        spread = (1 - given @ given) * (1 - wanted @ wanted)
        return float((right - given @ wanted) / sqrt(spread)) if spread > _TINY else 0.0
    return float({"macro_f1": f1.mean(), "f1": f1[1], "accuracy_and_f1": (right + f1[1]) / 2}[metric])


def _smallest_correlation(count: int) -> float | str:
    """Return the smallest loss of a correlation that Steiger's test finds."""
    if count < 10:
        return f"With {count:,} examples no loss of a correlation can be told from chance; give more of them."
    square = _LABELS_R**2
    psi = _MODELS_R * (1 - 2 * square) - square / 2 * (1 - 2 * square - _MODELS_R**2)
    covariance = psi / (1 - square) ** 2
    normal = NormalDist()
    needed = normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)
    shift = needed * sqrt((2 - 2 * covariance) / (count - 3))
    return _LABELS_R - tanh(atanh(_LABELS_R) - shift)
