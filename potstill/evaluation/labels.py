"""Recall per label: how many of the texts with a label, or of the entities of a type, a model finds, and loses.

A guard or a filter of personal data is worth what its worst label is worth, which a score over all hardly shows: of
nine labels one with 1 % of the texts can go blind for a hundredth of the accuracy. Small labels are also where chance
is largest. So a fall counts only as far as its interval shows it, and of several labels all intervals hold together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.bundle import LabelLoss
from potstill.evaluation.intervals import (
    Floats,
    Statistic,
    Z,
    bootstrap,
    decide_by_interval,
    percentiles,
    together,
    wilson,
)
from potstill.evaluation.predictions import ModelOutputs
from potstill.evaluation.results import Interval, LabelDifference, LabelRecall
from potstill.tasks import MULTI_LABEL, SINGLE_LABEL, TOKEN_CLASSIFICATION


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHits:
    """Everything that is to be found in some texts (their labels, their entities), and what one model has found."""

    names: tuple[str, ...]
    """The labels, or the types of entities."""
    labels: NDArray[np.int64]
    """The number of each thing's label, shape (things,)."""
    texts: NDArray[np.int64]
    """The number of its text, shape (things,)."""
    hits: NDArray[np.bool_]
    """Whether the model found it, shape (things,)."""
    num_texts: int

    def counts(self, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return how many things each label has, shape (labels,); with `chosen`, of those alone."""
        labels = self.labels if chosen is None else self.labels[chosen]
        return np.bincount(labels, minlength=len(self.names))

    def per_text(self, weights: NDArray[np.bool_] | None = None) -> Floats:
        """Return the counts of each text, shape (texts, labels)."""
        places, size = self.texts * len(self.names) + self.labels, self.num_texts * len(self.names)
        return np.bincount(places, weights, minlength=size).reshape(self.num_texts, len(self.names)).astype(np.float64)


def find_labels(
    wanted: NDArray[np.integer], given: NDArray[np.integer], names: Sequence[str], *, several: bool
) -> LabelHits:
    """Return the labels of texts, and which of them were answered.

    Args:
        wanted: class ids of shape (texts,); with `several`, 0 or 1 of shape (texts, labels).
        given: the answers, likewise.
        names: the labels by id.
        several: whether a text may have several labels.
    """
    texts, labels = np.nonzero(wanted) if several else (np.arange(len(wanted)), wanted)
    return LabelHits(
        names=tuple(names),
        labels=labels.astype(np.int64),
        texts=texts.astype(np.int64),
        hits=np.asarray(given[texts, labels] > 0 if several else wanted == given),
        num_texts=len(wanted),
    )


def find_entities(wanted: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> LabelHits:
    """Return the entities of tagged texts by type, and which were found: type, first and last word must be right.

    Where tags mark no entities (`NOUN` instead of `B-PER`), each word is to be found, and its tag is the label.

    Args:
        wanted: the tags of each text's words.
        given: the answers, likewise.
    """
    marks_entities = any(tag[1:2] == "-" for tags in wanted for tag in tags)
    things: list[tuple[str, int, bool]] = []
    for text, (tags, answers) in enumerate(zip(wanted, given, strict=True)):
        if marks_entities:
            found = set(metrics.get_entities(answers))
            things += [(entity[0], text, entity in found) for entity in metrics.get_entities(tags)]
        else:
            things += [(tag, text, tag == answer) for tag, answer in zip(tags, answers, strict=True) if tag != "O"]
    names = sorted({label for label, _, _ in things})
    numbers = {name: number for number, name in enumerate(names)}
    return LabelHits(
        names=tuple(names),
        labels=np.array([numbers[label] for label, _, _ in things], dtype=np.int64),
        texts=np.array([text for _, text, _ in things], dtype=np.int64),
        hits=np.array([hit for _, _, hit in things], dtype=np.bool_),
        num_texts=len(wanted),
    )


def labels_of_answers(
    reference: ModelOutputs, candidate: ModelOutputs, names: Sequence[str]
) -> tuple[LabelHits, LabelHits] | None:
    """Return the labels that a reference answers, as found by itself (all of them) and by a candidate.

    It is what can be asked of texts without labels. Entities are spans of tokens.

    Args:
        reference: outputs without NaN.
        candidate: those of another file, for the same rows.
        names: the labels by id.

    Returns:
        None where answers have no labels.
    """
    first, second = reference.decisions(), candidate.decisions()
    if first is None or second is None or not names:
        return None
    if reference.kind == MULTI_LABEL:
        own, other = (find_labels(first, side, names, several=True) for side in (first, second))
    elif reference.kind == SINGLE_LABEL:
        own, other = (find_labels(first[:, 0], side[:, 0], names, several=False) for side in (first, second))
    elif reference.kind == TOKEN_CLASSIFICATION.name:
        ends = np.flatnonzero(np.diff(reference.texts)) + 1
        tags = [
            metrics.tag_names([ids.tolist() for ids in np.split(side[:, 0], ends)], names) for side in (first, second)
        ]
        own, other = (find_entities(tags[0], side) for side in tags)
    else:
        return None
    return own, other


def recall_statistic(found: LabelHits) -> Statistic:
    """Return the statistic of every label's recall, shape (draws, labels); NaN where a draw has none of a label."""
    wanted, hits = found.per_text(), found.per_text(found.hits)

    def recalls(counts: Floats) -> Floats:
        totals = counts @ wanted
        return np.divide(counts @ hits, totals, out=np.full_like(totals, np.nan), where=totals > 0)

    return recalls


def describe_recalls(found: LabelHits, drawn: Floats | None) -> tuple[list[LabelRecall], LabelRecall | None]:
    """Return the recall of every label that occurs, each with its own interval, and the lowest one.

    The lowest one's interval is of the lowest recall, whichever label has it: that of all labels' intervals together
    (Bonferroni), since the label was chosen for being lowest. None where nothing is to be found.

    Args:
        found: what a model has found.
        drawn: `recall_statistic` of draws of the texts; None where no text has two things of one label.
    """
    support, hits = found.counts(), found.counts(found.hits)
    clustered = found.per_text().max(axis=0, initial=0) > 1
    occurring = np.flatnonzero(support).tolist()
    z = together(len(occurring))
    rows: list[LabelRecall] = []
    joint: list[Interval] = []
    for label in occurring:
        total, right = int(support[label]), int(hits[label])
        # Entities of one text go wrong together, which Wilson's interval does not know.
        seen = drawn[:, label] if drawn is not None and clustered[label] else None
        own, all_together = (_recall_interval(right, total, seen, z=width) for width in (Z, z))
        rows.append(LabelRecall(label=found.names[label], support=total, recall=right / total, interval=own))
        joint.append(all_together)
    if not rows:
        return rows, None
    worst = min(rows, key=lambda row: (row.recall, -row.support))
    ends = min(low for low, _ in joint), min(high for _, high in joint)
    return rows, worst.model_copy(update={"interval": ends})


def _recall_interval(hits: int, total: int, drawn: Floats | None, *, z: float) -> Interval:
    """Return Wilson's interval, or where the bootstrap's is wider, that one."""
    low, high = wilson(hits, total, z=z)
    if drawn is None:
        return low, high
    drawn_low, drawn_high = _stretched(hits / total, drawn, z=z)
    return max(0.0, min(low, drawn_low)), min(1.0, max(high, drawn_high))


def describe_differences(before: LabelHits, after: LabelHits, drawn: Floats) -> list[LabelDifference]:
    """Return by how much every label's recall differs between two models, each with its own 95 % interval.

    Args:
        before: what the first one has found.
        after: what the second one has found of the same.
        drawn: the recalls of the second minus those of the first, of the same draws of the texts.
    """
    rows = _losses(before, after, -drawn, z=Z)
    ends = [row.loss_interval for row in rows]
    return [
        # 0.0 - x, because -0.0 would be written with its sign.
        LabelDifference(label=row.label, difference=0.0 - row.loss, interval=(0.0 - high, 0.0 - low))
        for row, (low, high) in zip(rows, ends, strict=True)
    ]


def compare_labels(
    before: LabelHits, after: LabelHits, *, max_loss: float, rng: np.random.Generator, can_gain: bool = True
) -> list[LabelLoss]:
    """Return how far every label's recall falls, with the verdict on each.

    FAIL only where a label is shown to fall by more than is allowed: the whole interval lies beyond, and the intervals
    hold for all labels together. PASS where it lies within; INCONCLUSIVE, most of all of small labels, between.

    Args:
        before: what the reference finds.
        after: what the candidate finds of the same.
        max_loss: by how much a recall may fall, 0.05 for 5 points.
        rng: draws the texts.
        can_gain: whether the candidate may find what the reference does not; not where that says what is to be found.
    """
    first, second = recall_statistic(before), recall_statistic(after)
    if not len(before.labels):
        return []
    drawn = bootstrap(lambda counts: first(counts) - second(counts), before.num_texts, rng=rng)
    z = together(int((before.counts() > 0).sum()))
    return [
        row.model_copy(update={"verdict": decide_by_interval(row.loss_interval, max_loss, at_least=False)})
        for row in _losses(before, after, drawn, z=z, can_gain=can_gain)
    ]


def _losses(before: LabelHits, after: LabelHits, drawn: Floats, *, z: float, can_gain: bool = True) -> list[LabelLoss]:
    """Return the loss of every label that occurs, without a verdict.

    The interval is the bootstrap's, stretched to `z`, and no narrower than as many independent things leave open: a
    bootstrap of few texts draws no change that none of them shows. Lost and gained are shares with Wilson's intervals,
    and their difference has MOVER's (Donner and Zou 2012, Statistical Methods in Medical Research 21(4), equation 4).
    """
    rows = []
    totals, lost = before.counts(), before.counts(before.hits & ~after.hits)
    gained = before.counts(~before.hits & after.hits)
    right = before.counts(before.hits)
    for label in np.flatnonzero(totals).tolist():
        total, out, back = int(totals[label]), int(lost[label]), int(gained[label])
        loss = (out - back) / total
        low, high = _stretched(loss, drawn[:, label], z=z)
        out_low, out_high = wilson(out, total, z=z)
        back_low, back_high = wilson(back, total, z=z) if can_gain else (0.0, 0.0)
        below = hypot(out / total - out_low, back_high - back / total)
        above = hypot(out_high - out / total, back / total - back_low)
        interval = max(-1.0, min(low, loss - below)), min(1.0, max(high, loss + above))
        found = int(right[label])
        rows.append(
            LabelLoss(
                label=before.names[label],
                support=total,
                reference=found / total,
                candidate=(found - out + back) / total,
                loss=loss,
                loss_interval=interval,
            )
        )
    return rows


def _stretched(value: float, drawn: Floats, *, z: float) -> Interval:
    """Return the percentile interval of one label's draws, stretched from 95 % to the confidence of `z`."""
    seen = drawn[~np.isnan(drawn)]
    # A draw without the label says nothing of it; of a label in one text of many, a third of the draws has none.
    low, high = percentiles(seen) if len(seen) else (value, value)
    return value - (value - low) * z / Z, value + (high - value) * z / Z
