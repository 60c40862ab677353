"""Decide by an interval: PASS, FAIL or INCONCLUSIVE; and say beforehand what a sample of this size can show.

`compare_outputs` asks whether a file, such as int8, is as good as another, fp32. With labels the loss is what the
task's own score loses relatively, of the answers that would be served; without, it is the share of the model's
decisions that changed. Beside that no label's recall may fall by more than a limit, see `potstill.evaluation.labels`.

`power` tells the smallest loss that a paired test at 5 % finds 4 times in 5, the custom since Cohen (1988). How small
that is depends on how the two models differ, which nobody knows before; so each number rests on an assumption, stated
where it is made, and is good to about a factor of 1.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atanh, ceil, inf, isfinite, lgamma, log, log1p, sqrt, tanh
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.bundle import Agreement, LabelledLoss, McNemar, QualityLoss
from potstill.data import Examples
from potstill.errors import CheckError
from potstill.evaluation.intervals import (
    Floats,
    Statistic,
    bootstrap,
    decide_by_interval,
    mcnemar,
    percentiles,
    wilson,
    wilson_needs,
)
from potstill.evaluation.labels import LabelHits, compare_labels, labels_of_answers
from potstill.evaluation.predictions import ModelOutputs
from potstill.evaluation.results import Power, Verdict
from potstill.evaluation.scores import Scored, changes, pearson_statistic
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    METRICS,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
    lower_is_better,
)

_DISTRIBUTIONS = (SINGLE_LABEL, TOKEN_CLASSIFICATION.name, FILL_MASK.name, QUESTION_ANSWERING.name)
# Logits that are turned into probabilities at once: 32 MiB per array in float64.
_NUMBERS_AT_ONCE = 2**22

LEVEL, POWER = 0.05, 0.8
# Of answers that change, so many are lost. Int8 files and students that keep about 97 % lose some answers and gain
# others: one gained for every four lost lies between int8 (nearly as many gained) and a student that is simply worse.
LOST_OF_CHANGED = 0.8
# A baseline that is right 9 times in 10, for the metrics whose unit depends on where it starts.
_BASELINE_RIGHT = 0.9
# How well a good model's numbers go with the labels (BERT-base has 0.89 on STS-B), and two models' with each other.
_LABELS_R, _MODELS_R = 0.88, 0.95
# Halvings of the searched share, the most changed answers that are worked out (with more the test always finds 4 lost
# of 5), and what stands for 0 in divisors.
_STEPS, _MOST_CHANGED, _TINY = 40, 120, 1e-12
# Labels that a sentence names.
_LABELS_TOLD = 3


@dataclass(frozen=True, slots=True)
class _Loss:
    """A loss (0.01 is 1 %), its 95 % interval, and how many texts would bring the interval's upper end to the limit."""

    value: float
    low: float
    high: float
    texts_needed: float


def compare_outputs(
    reference: ModelOutputs,
    candidate: ModelOutputs,
    *,
    max_loss: float,
    scored: tuple[Scored, Scored] | None = None,
    metric: str | None = None,
    max_label_loss: float | None = None,
    label_names: Sequence[str] = (),
    seed: int = 0,
) -> QualityLoss:
    """Return the quality that a file loses against a reference, with the verdict and its evidence.

    `texts_needed` is set only if the verdict is INCONCLUSIVE, `reason` only if an output is NaN or infinite or a label
    fails. The value of `agreement` is the share of equal decisions (the likeliest class; of several labels each one's
    sign), for regression Pearson's correlation, for feature-extraction the mean cosine.

    Args:
        reference: fp32's outputs.
        candidate: the other file's, for the same rows.
        max_loss: the greatest loss that is accepted, 0.01 for 1 %.
        scored: both files' predictions of labelled texts, scored by `metric`; None where there are no labels.
        metric: by which they are scored; None takes the kind's first.
        max_label_loss: by how much the recall of any label may fall, 0.05 for 5 points; beyond chance, a greater fall
            is a FAIL, whatever the score. None asks for no label.
        label_names: the labels by id, for texts without labels: then the recall of the reference's answers counts.
        seed: of the bootstrap.

    Raises:
        CheckError: if an output of the reference is NaN or infinite.
    """
    # A question's text lacks some positions, which are -inf; every other number is an output.
    lacking = np.isneginf(reference.values) if reference.kind == QUESTION_ANSWERING.name else np.False_
    finite = np.isfinite(reference.values)
    if not (finite | lacking).all():
        raise CheckError("the fp32 file answers NaN or infinity, so nothing can be held against it; export it again")
    if reference.values.shape != candidate.values.shape or reference.kind != candidate.kind:
        raise ValueError(f"the same questions twice are needed: {reference.values.shape}, {candidate.values.shape}")
    loss, basis = _Loss(1.0, 1.0, 1.0, inf), "agreement"
    agreement: Agreement | None = None
    labelled: LabelledLoss | None = None
    verdict: Verdict = "FAIL"
    details: dict[str, object] = {}
    # Before any statistic: one NaN makes every mean NaN, which is neither above nor below a limit.
    broken = int((~np.isfinite(candidate.values[finite])).sum())
    if broken:
        details["reason"] = f"{broken} of {int(finite.sum())} numbers are NaN or infinite"
    else:
        rng = np.random.default_rng(seed)
        loss, agreement = _compare_agreement(reference, candidate, rng=rng, max_loss=max_loss)
        if scored is not None:
            metric = metric or METRICS[reference.kind][0]
            of_score, labelled = _compare_scores(*scored, metric=metric, rng=rng, max_loss=max_loss)
            if of_score is not None:
                loss, basis = of_score, metric
        # A loss above the limit fails, even where its interval does not.
        verdict = decide_by_interval((loss.value, loss.high), max_loss, at_least=False)
        if max_label_loss is not None:
            pair = labels_of_answers(reference, candidate, label_names)
            if scored is not None:
                pair = (scored[0].labels, scored[1].labels) if scored[0].labels and scored[1].labels else None
            if pair:
                details = _judge_labels(*pair, max_loss=max_label_loss, rng=rng, can_gain=scored is not None)
                verdict = "FAIL" if "reason" in details else verdict
    if verdict == "INCONCLUSIVE":
        details["texts_needed"] = ceil(loss.texts_needed) if isfinite(loss.texts_needed) else None
    return QualityLoss(
        texts=len(np.unique(reference.texts)),
        rows=len(reference.values),
        max_loss=max_loss,
        verdict=verdict,
        holds=verdict != "FAIL",
        loss=loss.value,
        loss_interval=(loss.low, loss.high),
        basis=basis,
        agreement=agreement,
        labelled=labelled,
    ).model_copy(update=details)


def _judge_labels(
    before: LabelHits, after: LabelHits, *, max_loss: float, rng: np.random.Generator, can_gain: bool
) -> dict[str, object]:
    """Return what is to be told of the labels; a `reason` only if one of them fails."""
    labels = compare_labels(before, after, max_loss=max_loss, rng=rng, can_gain=can_gain)
    if not labels:
        return {}
    details: dict[str, object] = {"max_label_loss": max_loss, "labels": labels}
    failed = sorted((row for row in labels if row.verdict == "FAIL"), key=lambda row: row.loss_interval, reverse=True)
    if not failed:
        return details
    told = [
        f"{row.label} by {100 * row.loss:.1f} points ({100 * row.loss_interval[0]:.1f} to "
        f"{100 * row.loss_interval[1]:.1f}; {row.reference:.3f} to {row.candidate:.3f} of {row.support})"
        for row in failed[:_LABELS_TOLD]
    ]
    more = f" and {len(failed) - _LABELS_TOLD} more" if len(failed) > _LABELS_TOLD else ""
    falls = f"the recall of {', '.join(told)}{more} falls, where {100 * max_loss:g} points are allowed"
    return details | {"reason": falls}


def _compare_agreement(
    reference: ModelOutputs, candidate: ModelOutputs, *, rng: np.random.Generator, max_loss: float
) -> tuple[_Loss, Agreement]:
    """Return the loss without labels, and how far the outputs are from each other."""
    finite, groups = np.isfinite(reference.values), np.unique(reference.texts, return_inverse=True)[1]
    first, second = reference.decisions(), candidate.decisions()
    flips, decisions = None, None
    if first is None or second is None:
        measure, loss = _compare_numbers(reference, candidate, rng=rng, max_loss=max_loss)
    else:
        measure, changed = "equal decisions", (first != second).sum(axis=1)
        flips, decisions = int(changed.sum()), first.size
        # One decision per text is a binomial count: Wilson's interval, which also holds where few or none changed.
        if decisions == groups.max() + 1:
            needed = wilson_needs(flips / decisions, max_loss) if flips < max_loss * decisions else inf
            loss = _Loss(flips / decisions, *wilson(flips, decisions), needed)
        else:
            # Words of one text change together, so texts are drawn, not words: an interval over words would be too
            # narrow.
            sums = [np.bincount(groups, weights=changed), np.bincount(groups) * first.shape[1]]
            per_text = np.stack(sums, axis=1)

            def share(counts: Floats) -> Floats:
                parts, totals = (counts @ per_text).T
                return np.asarray(parts / totals)

            loss = _bootstrap_loss(share, flips / decisions, len(per_text), rng=rng, max_loss=max_loss, unseen=1.0)
    return loss, Agreement(
        measure=measure,
        value=1 - loss.value,
        flips=flips,
        decisions=decisions,
        mean_kl=_mean_kl(reference.values, candidate.values) if reference.kind in _DISTRIBUTIONS else None,
        max_abs_difference=float(np.abs(reference.values[finite] - candidate.values[finite]).max()),
    )


def _compare_numbers(
    reference: ModelOutputs, candidate: ModelOutputs, *, rng: np.random.Generator, max_loss: float
) -> tuple[str, _Loss]:
    first, second = (side.values.astype(np.float64) for side in (reference, candidate))
    if reference.kind == REGRESSION:
        measure, statistic = "pearson", pearson_statistic(first.ravel(), second.ravel())
    else:
        cosines = metrics.row_cosines(first, second)
        measure, statistic = "mean cosine", lambda counts: counts @ cosines / counts.sum(axis=1)
    texts = len(first)
    # Equal outputs are a loss of exactly 0; the correlation of equal numbers is rounded, and of constant ones 0.
    value = 1.0 if np.array_equal(first, second) else float(statistic(np.ones((1, texts)))[0])
    return measure, _bootstrap_loss(lambda counts: 1 - statistic(counts), 1 - value, texts, rng=rng, max_loss=max_loss)


def _compare_scores(
    reference: Scored, candidate: Scored, *, metric: str, rng: np.random.Generator, max_loss: float
) -> tuple[_Loss | None, LabelledLoss]:
    """Return the relative loss of the score, None where the reference has nothing to lose, and the evidence."""
    before, after = reference.scores[metric], candidate.scores[metric]
    changed = changes(reference, candidate)
    evidence = LabelledLoss(
        metric=metric,
        reference=before,
        candidate=after,
        mcnemar=changed and McNemar(lost=changed[0], gained=changed[1], p_value=mcnemar(*changed)),
        relative_loss=None,
        relative_loss_interval=None,
    )
    # A relative loss of nothing is undefined, and of a negative score it would have the wrong sign.
    if before <= 0:
        return None, evidence
    sign = -1 if lower_is_better(metric) else 1

    def relative_loss(counts: Floats) -> Floats:
        first, second = reference.statistic(counts), candidate.statistic(counts)
        # A draw in which the reference scores nothing has no ratio; it is as good as never drawn.
        return sign * (1 - second[first > 0] / first[first > 0])

    loss = _bootstrap_loss(
        relative_loss,
        sign * (1 - after / before),
        reference.num_texts,
        rng=rng,
        max_loss=max_loss,
        # If every answer went wrong, the score would lose all of it: 1 in its own unit, 1 / before relative to it.
        unseen=0.0 if reference.correct is None else 1 / before,
    )
    found = {"relative_loss": loss.value, "relative_loss_interval": (loss.low, loss.high)}
    return loss, evidence.model_copy(update=found)


def _bootstrap_loss(
    statistic: Statistic,
    value: float,
    texts: int,
    *,
    rng: np.random.Generator,
    max_loss: float,
    unseen: float = 0.0,
) -> _Loss:
    """Return a loss with its bootstrap interval over texts.

    Args:
        statistic: the loss of each draw.
        value: the loss of the texts as they are.
        texts: how many.
        rng: draws them.
        max_loss: the limit.
        unseen: what the loss would be if every text's answer changed, for answers that change or do not. A bootstrap
            cannot draw a change that no text shows, so the interval ends no nearer to the loss than as many texts
            without any change would leave open by Wilson's interval.
    """
    low, high = percentiles(bootstrap(statistic, texts, rng=rng))
    room = max_loss - value
    # Half-widths shrink with the root of the number of texts; above the limit no number of texts helps.
    needed = texts * ((high - value) / room) ** 2 if room > 0 else inf
    if unseen:
        high = max(high, value + unseen * wilson(0, texts)[1])
        needed = max(needed, wilson_needs(0, room / unseen)) if 0 < room < unseen else needed
    return _Loss(value, low, high, needed)


def _mean_kl(reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> float:
    """Return the mean over rows of KL(reference || candidate) in nats."""
    at_once = max(1, _NUMBERS_AT_ONCE // reference.shape[1])
    total = 0.0
    for start in range(0, len(reference), at_once):
        first, second = (_log_softmax(side[start : start + at_once]) for side in (reference, candidate))
        # Where the reference has no position, neither has the candidate, and 0 log 0 is 0.
        difference = np.subtract(first, second, out=np.zeros_like(first), where=np.isfinite(first))
        total += float((np.exp(first) * difference).sum())
    # KL is never negative, but rounding can leave equal outputs just below 0.
    return max(0.0, total / len(reference))


def _log_softmax(logits: NDArray[np.floating]) -> Floats:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def power(examples: Examples, *, kind: str, metric: str) -> Power:
    """Return the smallest loss that a paired test of so many examples finds 4 times in 5, and a sentence about it.

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
    found = _smallest_loss(examples, kind=kind, metric=metric)
    if isinstance(found, str):
        return Power(num_examples=len(examples), smallest_loss=None, sentence=found)
    points = 100 * found
    shown = f"{points:.1f}" if points >= 0.95 else f"{points:.2g}"
    sentence = (
        f"With {len(examples):,} examples, a loss of {shown} points of {metric.replace('_', ' ')} or more is found "
        "4 times in 5; a smaller one may well go unseen."
    )
    return Power(num_examples=len(examples), smallest_loss=found, sentence=sentence)


def _smallest_loss(examples: Examples, *, kind: str, metric: str) -> float | str:
    """Return the smallest loss in the metric's unit, or a sentence why there is none."""
    count = len(examples)
    if kind in {REGRESSION, FEATURE_EXTRACTION.name} and metric != "mse":
        # Fisher's transformation has the variance 1 / (n - 3), an approximation that fails for a handful of pairs.
        if count < 10:
            return f"With {count:,} examples no loss of a correlation can be told from chance; give more of them."
        return _smallest_correlation(count)
    # How many answers are right or wrong, each on its own.
    units: int | None = None
    if kind in {SINGLE_LABEL, QUESTION_ANSWERING.name} or metric == "subset_accuracy":
        units = count
    elif kind == MULTI_LABEL:
        units = int(np.sum(examples.labels > 0.5))
    elif kind == TOKEN_CLASSIFICATION.name:
        tags = metrics.tag_names(examples.labels, examples.label_names)
        units = sum(len(row) if metric == "accuracy" else len(metrics.get_entities(row)) for row in tags)
    if units is None:
        return (
            f"What {count:,} examples can show of {metric.replace('_', ' ')} depends on how much it varies "
            "from text to text, which only a run tells; see the intervals."
        )
    share = smallest_share(units)
    if share is None:
        return f"With {count:,} examples hardly any loss can be told from chance; give more of them."
    if kind == SINGLE_LABEL and metric != "accuracy":
        # Wrong answers are spread evenly over the other classes.
        counts = np.bincount(examples.labels, minlength=max(2, len(examples.label_names))).astype(np.float64)
        # These metrics depend on the confusion matrix, so the loss of answers is put into one and read off there.
        after = max(0.0, _BASELINE_RIGHT - share)
        return expected_score(counts, _BASELINE_RIGHT, metric=metric) - expected_score(counts, after, metric=metric)
    return share


def smallest_share(count: int) -> float | None:
    """Return the smallest loss of right answers that McNemar's exact test finds 4 times in 5; None if it finds none.

    Args:
        count: how many examples.
    """
    # How often the test finds a loss, by how many answers changed, from 0 on. With more changes than the last it finds
    # 4 lost of 5 as good as always.
    rejections = []
    for changed in range(min(count, _MOST_CHANGED) + 1):
        # Only rejections towards a loss count: the test is two-sided, the question is not.
        shown = [2 * k > changed and mcnemar(k, changed - k) <= LEVEL for k in range(changed + 1)]
        rejections.append(float(_binomial(changed, LOST_OF_CHANGED, np.arange(changed + 1)) @ np.array(shown)))

    def chance(share: float) -> float:
        """Return how often the test rejects if this share of the answers changes."""
        chances = _binomial(count, share, np.arange(len(rejections)))
        return float(chances @ np.array(rejections)) + max(0.0, 1 - float(chances.sum()))

    if chance(1.0) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) >= POWER else (middle, high)
    # Of the changed share 0.8 is lost and 0.2 gained: the score loses the difference.
    return high * (2 * LOST_OF_CHANGED - 1)


def _binomial(trials: int, share: float, hits: NDArray[np.int64]) -> Floats:
    """Return the binomial probability of each number of hits in `trials`."""
    if share <= 0 or share >= 1:
        return np.asarray(hits == (0 if share <= 0 else trials), dtype=np.float64)
    # In logarithms: the coefficients of large data sets overflow a float.
    ways = np.array([lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) for k in hits.tolist()])
    chances: Floats = np.exp(ways + hits * log(share) + (trials - hits) * log1p(-share))
    return chances


def expected_score(counts: Floats, right: float, *, metric: str) -> float:
    """Return the metric that a classifier with this share of right answers is expected to score.

    Args:
        counts: examples by label; wrong answers are spread evenly over the other classes.
        right: the share of right answers, the same in each class.
        metric: `macro_f1`, `f1`, `accuracy_and_f1` or `matthews_correlation`.
    """
    classes = len(counts)
    wrong = (1 - right) / (classes - 1)
    matrix = counts[:, None] / counts.sum() * (np.full((classes, classes), wrong) + np.eye(classes) * (right - wrong))
    hits, wanted, given = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = 2 * hits / np.maximum(wanted + given, _TINY)
    if metric == "matthews_correlation":
        spread = (1 - given @ given) * (1 - wanted @ wanted)
        return float((right - given @ wanted) / sqrt(spread)) if spread > _TINY else 0.0
    return float({"macro_f1": f1.mean(), "f1": f1[1], "accuracy_and_f1": (right + f1[1]) / 2}[metric])


def _smallest_correlation(count: int) -> float:
    """Return the smallest loss of a correlation that Steiger's test finds."""
    square = _LABELS_R**2
    # Steiger's psi for two correlations of the same size that share the labels, divided by their variances below.
    psi = _MODELS_R * (1 - 2 * square) - square / 2 * (1 - 2 * square - _MODELS_R**2)
    covariance = psi / (1 - square) ** 2
    normal = NormalDist()
    needed = normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)
    shift = needed * sqrt((2 - 2 * covariance) / (count - 3))
    # The test works on Fisher's z = atanh(r); the loss is told as a correlation again.
    return _LABELS_R - tanh(atanh(_LABELS_R) - shift)
