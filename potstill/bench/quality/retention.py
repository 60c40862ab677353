"""What one contestant keeps of another's score: the ratio, the difference, and whether it may be chance."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from potstill.bench import report_schema
from potstill.evaluation.intervals import Floats, mcnemar, percentiles, sign_p_value, wilson
from potstill.evaluation.marks import Marks
from potstill.tasks import MULTI_LABEL, QUESTION_ANSWERING, SINGLE_LABEL, lower_is_better

Pair: TypeAlias = tuple[Literal["like_for_like", "to_baseline", "to_own_fp32"], str, str]
"""(comparison, baseline's key, candidate's key)."""

# The metrics that are shares of right texts, which McNemar's test is about.
_SHARES = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "subset_accuracy", QUESTION_ANSWERING.name: "exact_match"}


def compare(
    pair: Pair,
    marks: Mapping[str, Marks],
    resampled: Mapping[str, Floats],
    *,
    kind: str,
    metric: str,
) -> report_schema.Retention:
    """Hold one contestant's score against another's, on the same draws of the examples.

    Args:
        pair: (comparison, baseline's key, candidate's key).
        marks: of both.
        resampled: their scores of the same draws.
        kind: `potstill.tasks.kind_of`.
        metric: the one that decides. Where a low value is good, differences change their sign and ratios turn round.
    """
    comparison, first, second = pair
    ours, theirs = marks[second], marks[first]
    sign = -1 if lower_is_better(metric) else 1
    difference = sign * (ours.scores[metric] - theirs.scores[metric])
    differences = sign * (resampled[second] - resampled[first])
    room = unseen(ours)
    # Of a metric that shall be low, the part that is kept is the other way round.
    part, whole = (second, first) if sign > 0 else (first, second)
    kept, kept_interval = _kept(marks, resampled, metric, part=part, whole=whole)
    gained, lost = _changes(theirs, ours)
    exact = metric == _SHARES.get(kind)
    return report_schema.Retention(
        comparison=comparison,
        baseline=first,
        candidate=second,
        kept=kept,
        kept_interval=kept_interval,
        difference=difference,
        difference_interval=widen(difference, percentiles(differences), room),
        test="McNemar, exact" if exact else "paired bootstrap",
        p_value=mcnemar(lost or 0, gained or 0) if exact else sign_p_value(differences),
        gained=gained,
        lost=lost,
    )


def _kept(
    marks: Mapping[str, Marks], resampled: Mapping[str, Floats], metric: str, *, part: str, whole: str
) -> tuple[float | None, report_schema.Interval | None]:
    total = marks[whole].scores[metric]
    # A draw in which nothing is there has no ratio; it is as good as never drawn.
    clear = resampled[whole] > 0
    if total <= 0 or not clear.any():
        return None, None
    kept = marks[part].scores[metric] / total
    ratios = resampled[part][clear] / resampled[whole][clear]
    return kept, widen(kept, percentiles(ratios), unseen(marks[part]) / total)


def _changes(theirs: Marks, ours: Marks) -> tuple[int | None, int | None]:
    """Return how many examples only we have right, and how many only they."""
    if ours.right is None or theirs.right is None:
        return None, None
    return int((ours.right & ~theirs.right).sum()), int((theirs.right & ~ours.right).sum())


def unseen(mine: Marks) -> float:
    """Return the share of changed answers that so many examples without one leave open; 0 where answers are amounts.

    A bootstrap cannot draw what no example shows: without it, 20 examples that all stay right would prove that all do.
    """
    return wilson(0, mine.drawn)[1] if mine.right is not None else 0.0


def widen(value: float, interval: report_schema.Interval, room: float) -> report_schema.Interval:
    """Return an interval whose ends are at least `room` away from the value."""
    return min(interval[0], value - room), max(interval[1], value + room)
