"""Is an int8 file as good as fp32? Answers to the same texts, held against each other.

With labels the loss is what the task's own score loses relatively, whatever the task, of the answers that would be
served; without, it is the share of the model's decisions that changed. The verdict
is three-way: FAIL if the loss itself is too great, PASS if even the upper end of its 95 % interval is not, and
INCONCLUSIVE in between, where more texts would decide.
"""

from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.errors import CheckError
from potstill.evaluation.answers import Answers
from potstill.evaluation.intervals import Floats, Statistic, bootstrap, mcnemar, percentiles, wilson, wilson_needs
from potstill.evaluation.marks import Marks
from potstill.evaluation.scores import group, pearson_draws
from potstill.tasks import (
    FILL_MASK,
    METRICS,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
    lower_is_better,
)

_DISTRIBUTIONS = (SINGLE_LABEL, TOKEN_CLASSIFICATION.name, FILL_MASK.name, QUESTION_ANSWERING.name)
# Rows whose logits are turned into probabilities at once, in float64.
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class _Loss:
    """What is lost, its 95 % interval, and how many texts would put the interval's upper end at the limit."""

    value: float
    low: float
    high: float
    texts_needed: float


def judge(
    reference: Answers,
    candidate: Answers,
    *,
    max_loss: float,
    scored: tuple[Marks, Marks] | None = None,
    metric: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the evidence, as JSON values, of what a file loses against another.

    - `basis`: what the verdict rests on: the metric, or `agreement`
    - `loss`, `loss_interval`, `max_loss`, `verdict`, `holds` (it did not fail), `texts`, `rows`
    - `texts_needed`: only if inconclusive, how many texts would decide at this loss; None if no number would
    - `reason`: only if an answer is not a number
    - `agreement`: `measure`, `value`, `flips` of `decisions`, `mean_kl` in nats, `max_abs_difference`
    - `labelled`: `metric`, both scores, `relative_loss` with its interval, and McNemar's `lost`, `gained`, `p_value`
      over texts where an answer is right or wrong; None without labels

    The value of `agreement` is the share of equal decisions (the likeliest class; of several labels each one's sign),
    for regression Pearson's correlation, for feature-extraction the mean cosine.

    Args:
        reference: fp32's answers.
        candidate: the other file's, to the same rows.
        max_loss: the greatest loss that is accepted, 0.01 for 1 %.
        scored: both files' answers to labelled texts, marked by `metric`; None where there are no labels.
        metric: by which answers are scored; None takes the kind's first.
        seed: of the bootstrap.

    Raises:
        CheckError: if an answer of the reference is not a number.
    """
    asked = _finite(reference)
    texts = int(group(reference)[-1]) + 1
    about = {"texts": texts, "rows": len(reference.values), "max_loss": max_loss}
    if reference.values.shape != candidate.values.shape or reference.kind != candidate.kind:
        raise ValueError(f"the same questions twice are needed: {reference.values.shape}, {candidate.values.shape}")
    broken = int((~np.isfinite(candidate.values[asked])).sum())
    if broken:
        return _broken(about, f"{broken} of {int(asked.sum())} numbers are NaN or infinite")
    rng = np.random.default_rng(seed)
    loss, agreement = _compare(reference, candidate, rng=rng, max_loss=max_loss)
    basis, labelled = "agreement", None
    if scored is not None:
        metric = metric or METRICS[reference.kind][0]
        of_score, labelled = _compare_scores(*scored, metric=metric, rng=rng, max_loss=max_loss)
        if of_score is not None:
            loss, basis = of_score, metric
    return about | _decide(loss, max_loss) | {"basis": basis, "agreement": agreement, "labelled": labelled}


def _decide(loss: _Loss, max_loss: float) -> dict[str, Any]:
    verdict = "FAIL" if loss.value > max_loss else "PASS" if loss.high <= max_loss else "INCONCLUSIVE"
    evidence = {
        "verdict": verdict,
        "holds": verdict != "FAIL",
        "loss": loss.value,
        "loss_interval": [loss.low, loss.high],
    }
    if verdict == "INCONCLUSIVE":
        evidence["texts_needed"] = ceil(loss.texts_needed) if isfinite(loss.texts_needed) else None
    return evidence


def _broken(about: dict[str, Any], reason: str) -> dict[str, Any]:
    return {
        **about,
        **_decide(_Loss(1.0, 1.0, 1.0, inf), -inf),
        "reason": reason,
        "basis": "agreement",
        "agreement": None,
        "labelled": None,
    }


def _compare(
    reference: Answers, candidate: Answers, *, rng: np.random.Generator, max_loss: float
) -> tuple[_Loss, dict[str, Any]]:
    """Return the loss without labels, and how far the answers are from each other."""
    texts, first, second = group(reference), reference.choices(), candidate.choices()
    finite = np.isfinite(reference.values)
    evidence: dict[str, Any] = {
        "mean_kl": _mean_kl(reference.values, candidate.values) if reference.kind in _DISTRIBUTIONS else None,
        "max_abs_difference": float(np.abs(reference.values[finite] - candidate.values[finite]).max()),
    }
    if first is None or second is None:
        measure, loss = _compare_amounts(reference, candidate, rng=rng, max_loss=max_loss)
        return loss, {"measure": measure, "value": 1 - loss.value, "flips": None, "decisions": None} | evidence
    changed = (first != second).sum(axis=1)
    flips, decisions = int(changed.sum()), first.size
    if decisions == len(np.unique(texts)):
        needed = wilson_needs(flips / decisions, max_loss) if flips < max_loss * decisions else inf
        loss = _Loss(flips / decisions, *wilson(flips, decisions), needed)
    else:
        per_text = np.stack(
            [np.bincount(texts, weights=changed), np.bincount(texts) * first.shape[1]], axis=1
        )  # fmt: skip

        def share(counts: Floats) -> Floats:
            parts, totals = (counts @ per_text).T
            return np.asarray(parts / totals)

        loss = _resampled(share, flips / decisions, len(per_text), rng=rng, max_loss=max_loss, unseen=1.0)
    evidence = {
        "measure": "equal decisions",
        "value": 1 - loss.value,
        "flips": flips,
        "decisions": decisions,
    } | evidence
    return loss, evidence


def _compare_amounts(
    reference: Answers, candidate: Answers, *, rng: np.random.Generator, max_loss: float
) -> tuple[str, _Loss]:
    first, second = (side.values.astype(np.float64) for side in (reference, candidate))
    if reference.kind == REGRESSION:
        measure, statistic = "pearson", pearson_draws(first.ravel(), second.ravel())
    else:
        cosines = metrics.row_cosines(first, second)
        measure, statistic = "mean cosine", lambda counts: counts @ cosines / counts.sum(axis=1)
    texts = len(first)
    value = 1.0 if np.array_equal(first, second) else float(statistic(np.ones((1, texts)))[0])
    return measure, _resampled(lambda counts: 1 - statistic(counts), 1 - value, texts, rng=rng, max_loss=max_loss)


def _compare_scores(
    reference: Marks, candidate: Marks, *, metric: str, rng: np.random.Generator, max_loss: float
) -> tuple[_Loss | None, dict[str, Any]]:
    """Return the relative loss of the score, None where the reference has nothing to lose, and the evidence."""
    before, after = reference.scores[metric], candidate.scores[metric]
    evidence = {"metric": metric, "reference": before, "candidate": after, "mcnemar": None}
    if reference.right is not None and candidate.right is not None:
        lost = int((reference.right & ~candidate.right).sum())
        gained = int((candidate.right & ~reference.right).sum())
        evidence["mcnemar"] = {"lost": lost, "gained": gained, "p_value": mcnemar(lost, gained)}
    if before <= 0:
        return None, evidence | {"relative_loss": None, "relative_loss_interval": None}
    sign = -1 if lower_is_better(metric) else 1

    def relative_loss(counts: Floats) -> Floats:
        first, second = reference.draws(counts), candidate.draws(counts)
        # A draw in which the reference scores nothing has no ratio; it is as good as never drawn.
        return sign * (1 - second[first > 0] / first[first > 0])

    loss = _resampled(
        relative_loss,
        sign * (1 - after / before),
        reference.drawn,
        rng=rng,
        max_loss=max_loss,
        unseen=0.0 if reference.right is None else 1 / before,
    )
    return loss, evidence | {"relative_loss": loss.value, "relative_loss_interval": [loss.low, loss.high]}


def _resampled(
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
    needed = texts * ((high - value) / room) ** 2 if room > 0 else inf
    if unseen:
        high = max(high, value + unseen * wilson(0, texts)[1])
        needed = max(needed, wilson_needs(0, room / unseen)) if 0 < room < unseen else needed
    return _Loss(value, low, high, needed)


def _finite(answers: Answers) -> NDArray[np.bool_]:
    """Return which numbers are answers: all but the positions that a question's text lacks."""
    lacking = np.isneginf(answers.values) if answers.kind == QUESTION_ANSWERING.name else np.False_
    finite = np.isfinite(answers.values)
    if not (finite | lacking).all():
        raise CheckError("the fp32 file answers NaN or infinity, so nothing can be held against it; export it again")
    return finite


def _mean_kl(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Return the mean over rows of KL(reference || candidate) in nats."""
    at_once = max(1, _NUMBERS_AT_ONCE // reference.shape[1])
    total = 0.0
    for start in range(0, len(reference), at_once):
        first, second = (_log_softmax(side[start : start + at_once]) for side in (reference, candidate))
        # Where the reference has no position, neither has the candidate, and 0 log 0 is 0.
        difference = np.subtract(first, second, out=np.zeros_like(first), where=np.isfinite(first))
        total += float((np.exp(first) * difference).sum())
    return max(0.0, total / len(reference))


def _log_softmax(logits: NDArray[Any]) -> Floats:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
