"""Compare models on one data set: scores, retention of the baseline's, agreement, calibration, disagreements.

All intervals of a data set come from the same draws of its texts (`bootstrap_together`), so every comparison is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from potstill import metrics
from potstill.data import Examples
from potstill.errors import DataError
from potstill.evaluation.decision import power
from potstill.evaluation.intervals import (
    Floats,
    bootstrap_together,
    mcnemar,
    percentiles,
    sign_p_value,
    widen,
    wilson,
)
from potstill.evaluation.labels import describe_differences, describe_recalls, recall_statistic
from potstill.evaluation.predictions import Predictions
from potstill.evaluation.results import Confusion, Difference, GlueRow, Interval, Quality, Retention, Score
from potstill.evaluation.scores import (
    NO_ANSWER,
    Scored,
    agreement,
    answer_texts,
    changes,
    check_examples,
    check_predictions,
    class_logits,
    confusion,
    not_finite_rows,
    probabilities,
    row_labels,
    row_texts,
    score,
)
from potstill.evaluation.summary import list_notes
from potstill.evaluation.trivial import better_by, find_trivial
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    PROBLEM_TYPES,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    lower_is_better,
)

Pair: TypeAlias = tuple[Literal["like_for_like", "to_baseline", "to_own_fp32"], str, str]
"""(comparison, baseline's key, candidate's key)."""

# Only these metrics are shares of right texts, which is what McNemar's test compares; others get the bootstrap's
# p-value.
_SHARES = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "subset_accuracy", QUESTION_ANSWERING.name: "exact_match"}
# A report's reader looks at a few examples, and at the beginning of each.
_LONGEST_TEXT = 300


@dataclass(frozen=True, slots=True)
class Comparison:
    """The quality of every model on one data set, and the draws behind its intervals."""

    quality: Quality
    resampled: dict[str, Floats]
    """Each model's score of the same draws of the examples, by its key, shape (resamples,)."""


def compare_models(
    predictions: Mapping[str, Predictions],
    examples: Examples,
    *,
    name: str,
    kind: str,
    metric: str,
    baseline: str,
    pairs: Sequence[Pair],
    seed: int,
    resamples: int,
) -> Comparison:
    """Score every model on one data set, and compare some of them.

    Args:
        predictions: by the model's key, "name/precision", what `potstill.evaluation.predictions.predict` returned.
        examples: the data set; its label names are the models'.
        name: what a table calls it.
        kind: `potstill.tasks.kind_of`.
        metric: one of those that `potstill.tasks.METRICS` has for the kind.
        baseline: the key that agreement, confusion and differences are about. It may be missing from `predictions`.
        pairs: (comparison, baseline's key, candidate's key); those with a model that has no predictions are left out.
        seed: of the bootstrap.
        resamples: how many draws of the examples are behind every interval.

    Raises:
        DataError: if such models cannot be scored on the examples, or a model's predictions do not fit them.
    """
    check_examples(examples, kind)
    for key, arrays in predictions.items():
        check_predictions(arrays, examples, kind=kind, key=key)
    _check_same_words(predictions)
    scored = {key: score(arrays, examples, kind=kind, metric=metric) for key, arrays in predictions.items()}
    trivial = find_trivial(next(iter(predictions.values()), None), examples, kind=kind, metric=metric)
    statistics = {("score", key): one.statistic for key, one in scored.items()}
    if trivial is not None:
        statistics["trivial", ""] = trivial.scored.statistic
    statistics |= {("calibration", key): one.calibration for key, one in scored.items() if one.calibration}
    statistics |= {("labels", key): recall_statistic(one.labels) for key, one in scored.items() if one.labels}
    # The name is in the seed: data sets of one size must not share their draws, since `compare_glue` averages over
    # them.
    rng = np.random.default_rng([seed, *name.encode()])
    num_texts = next(iter(scored.values())).num_texts if scored else 0
    drawn = bootstrap_together(statistics, num_texts, rng=rng, resamples=resamples) if scored else {}
    resampled = {key: drawn["score", key] for key in scored}
    rows = []
    for key, one in scored.items():
        value, calibration, against = one.scores[metric], one.calibration, drawn.get(("trivial", ""))
        low, high = widen(value, percentiles(resampled[key]), _unseen(one))
        if one.correct is not None:
            # The widened ends may leave the metric's range; Matthews' correlation alone goes down to -1.
            low, high = max(-1.0 if metric == "matthews_correlation" else 0.0, low), min(1.0, high)
        # Weights of 1 are the texts as they are: the point estimate comes from the code that scores the draws.
        error = None if calibration is None else float(calibration(np.ones((1, num_texts)))[0])
        labels, worst = describe_recalls(one.labels, drawn["labels", key]) if one.labels else ([], None)
        rows.append(
            Score(
                key=key,
                value=value,
                interval=(low, high),
                scores={metric: value} | one.scores,
                calibration_error=error,
                calibration_interval=None if error is None else centered_interval(error, drawn["calibration", key]),
                agreement=agreement(one, scored[baseline]) if baseline in scored else None,
                lost_finite=one.num_not_finite,
                better_than_trivial=(
                    None if against is None else better_by(resampled[key], against, metric=metric)[0] > 0
                ),
                labels=labels,
                worst_label=worst,
            )
        )
    notes = [note for key, one in scored.items() for note in list_notes(predictions[key], one, examples, kind=kind)]
    quality = Quality(
        name=name,
        data=examples.name,
        split=examples.split,
        num_examples=len(examples),
        data_sha256=examples.sha256,
        task=TEXT_CLASSIFICATION.name if kind in PROBLEM_TYPES else kind,
        kind=kind,
        metric=metric,
        lower_is_better=lower_is_better(metric),
        trivial=None if trivial is None else trivial.scored.scores[metric],
        trivial_answer=None if trivial is None else trivial.words,
        scores=rows,
        notes=list(dict.fromkeys(notes)),
        retention=[
            _retention(pair, scored, drawn, kind=kind, metric=metric)
            for pair in pairs
            if pair[1] in scored and pair[2] in scored
        ],
        power=power(examples, kind=kind, metric=metric),
        confusion=_confusions(predictions, examples, kind=kind, baseline=baseline),
        differences=_differences(predictions, examples, kind=kind, baseline=baseline),
    )
    return Comparison(quality, resampled)


def asked_for_other_words(predictions: Mapping[str, Predictions], *, baseline: str) -> list[str]:
    """Return the language models that were asked for other words than the baseline; their likelihoods do not compare.

    Args:
        predictions: by the model's key.
        baseline: a key; where it has no predictions, the first that has some takes its place.
    """
    masked = {key: arrays["wanted_words"] for key, arrays in predictions.items() if "wanted_words" in arrays}
    first = baseline if baseline in masked else next(iter(masked), "")
    return [key for key, own in masked.items() if not np.array_equal(own, masked[first])]


def _check_same_words(predictions: Mapping[str, Predictions]) -> None:
    """Refuse language models that predict different tokens: their likelihoods have different units."""
    first = next(iter(predictions), "")
    for key in asked_for_other_words(predictions, baseline=first):
        raise DataError(
            f"{key} and {first} have different tokenizers, so they were asked for different words, and their "
            "perplexities cannot be compared; bench them apart"
        )


def centered_interval(value: float, resampled: Floats) -> Interval:
    """Return the percentile interval of a share, moved so that the resampled values' median is the value.

    Resampling adds to a calibration error, which is a sum of sizes, as if the model were worse calibrated.
    """
    low, high = percentiles(resampled)
    moved = value - float(np.median(resampled))
    return max(0.0, low + moved), min(1.0, high + moved)


def _unseen(scored: Scored) -> float:
    """Return the upper end of Wilson's interval for 0 of this many texts; 0 where answers are numbers.

    A bootstrap cannot draw what no text shows: by it alone, 20 texts that all stay right would prove that all do.
    """
    return wilson(0, scored.num_texts)[1] if scored.correct is not None else 0.0


def _retention(
    pair: Pair, scored: Mapping[str, Scored], drawn: Mapping[tuple[str, str], Floats], *, kind: str, metric: str
) -> Retention:
    """Compare one model's score with another's, on the same draws of the examples.

    Where a low value is good, differences change their sign and ratios turn round.
    """
    comparison, first, second = pair
    theirs, ours = scored[first], scored[second]
    resampled = {key: drawn["score", key] for key in (first, second)}
    # So that negative is worse for every metric, also for perplexity and squared error.
    sign = -1 if lower_is_better(metric) else 1
    difference = sign * (ours.scores[metric] - theirs.scores[metric])
    differences = sign * (resampled[second] - resampled[first])
    # Where low is good, kept is baseline / candidate, so that less than 1 is worse in every metric.
    part, whole = (second, first) if sign > 0 else (first, second)
    total = scored[whole].scores[metric]
    kept, kept_interval = None, None
    # A draw in which nothing is there has no ratio; it is as good as never drawn.
    clear = resampled[whole] > 0
    if total > 0 and clear.any():
        kept = scored[part].scores[metric] / total
        ratios = resampled[part][clear] / resampled[whole][clear]
        # `_unseen` is in the score's unit; divided by the whole it is in the ratio's.
        kept_interval = widen(kept, percentiles(ratios), _unseen(scored[part]) / total)
    changed = changes(theirs, ours)
    exact = changed is not None and metric == _SHARES.get(kind)
    labels = []
    if theirs.labels and ours.labels:
        labels = describe_differences(theirs.labels, ours.labels, drawn["labels", second] - drawn["labels", first])
    # A score that is no mean of right answers may move while as many are lost as gained: no McNemar there.
    lost, gained = changed or (None, None)
    return Retention(
        comparison=comparison,
        baseline=first,
        candidate=second,
        kept=kept,
        kept_interval=kept_interval,
        difference=difference,
        difference_interval=widen(difference, percentiles(differences), _unseen(ours)),
        test="McNemar, exact" if exact else "paired bootstrap",
        p_value=mcnemar(lost or 0, gained or 0) if exact else sign_p_value(differences),
        gained=gained,
        lost=lost,
        labels=labels,
    )


def _shown(keys: Sequence[str], baseline: str) -> list[str]:
    """Return one key per other model, its fp32 where it has that; without another model the baseline's other rows."""
    rows: dict[str, list[str]] = {}
    for key in keys:
        if key != baseline:
            rows.setdefault(key.split("/")[0], []).append(key)
    own = rows.pop(baseline.split("/")[0], [])
    if not rows:
        return own
    return [next((key for key in each if key.split("/")[1].startswith("fp32")), each[0]) for each in rows.values()]


def _confusions(
    predictions: Mapping[str, Predictions], examples: Examples, *, kind: str, baseline: str
) -> list[Confusion]:
    """Count the answers of one row per model against the baseline's and against the labels, and the baseline's own."""
    if kind not in (SINGLE_LABEL, TOKEN_CLASSIFICATION.name):
        return []
    shown, has_baseline = _shown(list(predictions), baseline), baseline in predictions
    pairs = [(rows, key) for key in shown for rows in ([baseline, None] if has_baseline else [None])]
    tables = []
    for rows, key in [*pairs, *([(None, baseline)] if has_baseline else [])]:
        labels, counts = confusion(None if rows is None else predictions[rows], predictions[key], examples)
        tables.append(Confusion(rows=rows or "label", columns=key, labels=labels, counts=counts))
    return tables


def _differences(
    predictions: Mapping[str, Predictions], examples: Examples, *, kind: str, baseline: str
) -> list[Difference]:
    """Return for one row per model the texts that it answers most differently from the baseline."""
    if baseline not in predictions:
        return []
    return [
        difference
        for key in _shown(list(predictions), baseline)
        for difference in disagreements(
            predictions[baseline], predictions[key], examples, kind=kind, keys=(baseline, key)
        )
    ]


def disagreements(
    baseline: Predictions,
    candidate: Predictions,
    examples: Examples,
    *,
    kind: str,
    keys: tuple[str, str] = ("baseline", "candidate"),
    most: int = 10,
) -> list[Difference]:
    """Return up to `most` texts on which two models differ most, the greatest distance first; equal ones are left out.

    The distance is the total variation between their probabilities; of several labels the greatest difference of one;
    of words that of the word where it is greatest; of masked words the difference of the true word's probability; of
    answers to questions 1 - F1 of their words; and of numbers their difference. NaN or infinity is at distance 1 of
    a finite answer, except where answers are numbers: it has no distance there.

    Args:
        baseline: what `potstill.evaluation.predictions.predict` returned.
        candidate: of another model for the same texts.
        examples: the texts with their labels.
        kind: `potstill.tasks.kind_of`.
        keys: what the two are called.
        most: how many.
    """
    distances = _distances(baseline, candidate, examples, kind=kind)
    texts = row_texts(baseline)
    found: list[Difference] = []
    listed: set[int] = set()
    # lexsort's last key comes first: by distance, ties in the order of the texts, so that a report can be repeated.
    for row in np.lexsort((np.arange(len(distances)), -distances)).tolist():
        if len(found) == most or not distances[row] > 0:
            break
        number = int(texts[row])
        # One entry per text: a tagged or masked text has a row for each word.
        if number in listed:
            continue
        listed.add(number)
        text = examples.texts[number]
        text = " ".join(text) if isinstance(text, list) else text
        found.append(
            Difference(
                baseline=keys[0],
                candidate=keys[1],
                text=(_cut(text[0]), _cut(text[1])) if isinstance(text, tuple) else _cut(text),
                label=_describe_label(baseline, examples, row, kind=kind),
                baseline_answer=_describe_answer(baseline, examples, row, kind=kind),
                candidate_answer=_describe_answer(candidate, examples, row, kind=kind),
                distance=float(distances[row]),
            )
        )
    return found


def _distances(first: Predictions, second: Predictions, examples: Examples, *, kind: str) -> Floats:
    """Return the distance of each row of the predictions, shape (rows,)."""
    sides = not_finite_rows(first), not_finite_rows(second)
    both = ~sides[0] & ~sides[1]
    # 1 where only one side is finite; 0 where neither is, as there is nothing to tell them apart.
    distances: Floats = (sides[0] != sides[1]).astype(np.float64)
    if kind in {REGRESSION, FEATURE_EXTRACTION.name}:
        distances[:] = 0
        distances[both] = np.abs(first["values"][both, 0].astype(np.float64) - second["values"][both, 0])
    elif kind == QUESTION_ANSWERING.name:
        pairs = zip(answer_texts(first, examples), answer_texts(second, examples), strict=True)
        distances[both] = np.array([1 - metrics.squad_f1([one], two) for one, two in pairs])[both]
    elif kind == FILL_MASK.name:
        distances[both] = np.abs(np.exp(-first["nll"][both]) - np.exp(-second["nll"][both]))
    else:
        shares = [probabilities(class_logits(side, examples.label_names)[both], kind=kind) for side in (first, second)]
        gaps = np.abs(shares[0] - shares[1])
        # Half the sum of absolute differences is the total variation distance, 0 to 1.
        distances[both] = gaps.max(axis=1) if kind == MULTI_LABEL else gaps.sum(axis=1) / 2
    return distances


def _describe_answer(predictions: Predictions, examples: Examples, row: int, *, kind: str) -> str:
    """Return one row's answer in words, with its probability where it has one."""
    if not_finite_rows(predictions)[row]:
        return NO_ANSWER
    if kind == QUESTION_ANSWERING.name:
        return _cut(answer_texts(predictions, examples)[row]) or NO_ANSWER
    if kind == FILL_MASK.name:
        likelihood = _percent(np.exp(-predictions["nll"][row]))
        return f"{predictions['choice_words'][row]} ({likelihood} for the true word)"
    if kind in {REGRESSION, FEATURE_EXTRACTION.name}:
        return f"{float(predictions['values'][row, 0]):.4g}"
    names = examples.label_names
    shares = probabilities(class_logits(predictions, names)[row], kind=kind)
    if kind == MULTI_LABEL:
        given = [f"{name} ({_percent(share)})" for name, share in zip(names, shares, strict=True) if share > 0.5]
        return ", ".join(given) or f"none ({_percent(shares.max())} at most)"
    best = int(shares.argmax())
    return f"{_word(predictions, examples, row, kind=kind)}{names[best]} ({_percent(shares[best])})"


def _describe_label(predictions: Predictions, examples: Examples, row: int, *, kind: str) -> str:
    """Return the label of one row in words."""
    if kind == FILL_MASK.name:
        return str(predictions["wanted_words"][row])
    if kind == QUESTION_ANSWERING.name:
        return _cut(next(iter(examples.labels[row]["text"]), "")) or NO_ANSWER
    label, names = row_labels(examples)[row], examples.label_names
    if kind in {REGRESSION, FEATURE_EXTRACTION.name}:
        return f"{float(label):.4g}"
    if kind == MULTI_LABEL:
        return ", ".join(name for name, flag in zip(names, label, strict=True) if flag > 0.5) or "none"
    return f"{_word(predictions, examples, row, kind=kind)}{names[int(label)]}"


def _word(predictions: Predictions, examples: Examples, row: int, *, kind: str) -> str:
    """Return the word that a row is about, with a colon; "" where the row is about the whole text."""
    if kind == SINGLE_LABEL:
        return ""
    texts = row_texts(predictions)
    # Rows of a text are consecutive, so its first row tells how far into the text this one is.
    place = row - int(np.searchsorted(texts, texts[row]))
    return f"{_cut(examples.texts[int(texts[row])][place])}: "


def _percent(value: float) -> str:
    return f"{100 * float(value):.0f} %"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def compare_glue(comparisons: Sequence[Comparison], *, baseline: str, candidates: Sequence[str]) -> list[GlueRow]:
    """Return each candidate's scores over several data sets, and how much of the baseline's they are.

    Data sets that one of the two has no score of are left out of a row, and so are those where a low score is good. A
    ratio is None where the baseline's score is 0 or less. No row is made of fewer than two data sets.

    Args:
        comparisons: one per data set.
        baseline: a key.
        candidates: keys.
    """
    rows = [_glue_row(comparisons, baseline=baseline, candidate=key) for key in candidates if key != baseline]
    return [row for row in rows if len(row.scores) > 1]


def _glue_row(comparisons: Sequence[Comparison], *, baseline: str, candidate: str) -> GlueRow:
    shared = {
        one.quality.name: one
        for one in comparisons
        if {baseline, candidate} <= set(one.resampled) and not one.quality.lower_is_better
    }
    theirs, ours = (
        {name: next(row.value for row in one.quality.scores if row.key == key) for name, one in shared.items()}
        for key in (baseline, candidate)
    )
    kept = [name for name in shared if name != metrics.WNLI]
    # A baseline of 0 or less (Matthews, correlations) has no ratio; one such task makes the mean of ratios None.
    ratios = {name: ours[name] / theirs[name] for name in kept if theirs[name] > 0}
    whole = len(ratios) == len(kept) > 0
    worst = min(ratios, key=lambda name: ratios[name]) if whole else None
    interval = None
    if sum(theirs[name] for name in kept) > 0:
        # Draw k of the mean takes draw k of every data set, which is independent between them: their names are in the
        # seeds.
        totals = [np.asarray(sum(shared[name].resampled[key] for name in kept)) for key in (baseline, candidate)]
        clear = totals[0] > 0
        interval = percentiles(totals[1][clear] / totals[0][clear]) if clear.any() else None

    def ratio_of_means(names: Sequence[str]) -> float | None:
        total = sum(theirs[name] for name in names)
        return sum(ours[name] for name in names) / total if total > 0 else None

    return GlueRow(
        baseline=baseline,
        candidate=candidate,
        scores=ours,
        baseline_scores=theirs,
        macro_with_wnli=ratio_of_means(list(shared)) if metrics.WNLI in shared else None,
        macro=ratio_of_means(kept),
        mean_of_ratios=sum(ratios.values()) / len(ratios) if whole else None,
        worst_task=ratios[worst] if worst else None,
        worst_task_name=worst,
        macro_interval=interval,
    )
