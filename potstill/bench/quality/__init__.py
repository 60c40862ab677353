"""How good the answers are: every contestant by the same metric on the same examples, and each against the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill import metrics
from potstill.bench import report_schema
from potstill.bench.quality.contrasts import count_confusion, list_differences
from potstill.bench.quality.power import power
from potstill.bench.quality.retention import Pair, compare, unseen, widen
from potstill.data import Examples
from potstill.evaluation.fitness import check_answers, check_examples, check_same_words
from potstill.evaluation.intervals import Floats, bootstrap_together, percentiles
from potstill.evaluation.marks import Arrays, Marks, agreement, mark
from potstill.evaluation.summary import list_notes
from potstill.evaluation.trivial import Trivial, better_by, find_trivial
from potstill.tasks import PROBLEM_TYPES, TEXT_CLASSIFICATION, lower_is_better

# No contestant's key is empty.
_TRIVIAL = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """The quality of every contestant on one data set, and the draws behind its intervals."""

    quality: report_schema.Quality
    resampled: dict[str, Floats]
    """Each contestant's score of the same draws of the examples, by its key, shape (resamples,)."""


def judge(
    files: Mapping[str, Path],
    examples: Examples,
    *,
    name: str,
    kind: str,
    metric: str,
    baseline: str,
    pairs: Sequence[Pair],
    seed: int,
    resamples: int,
) -> Judged:
    """Score every contestant on one data set, and compare some of them.

    Args:
        files: by contestant's key, the arrays that `potstill.evaluation.ask.ask` returned, saved by `numpy.savez`.
        examples: the data set; its label names are the model's.
        name: what a table calls it.
        kind: `potstill.tasks.kind_of`.
        metric: one of those that `potstill.tasks.METRICS` has for the kind.
        baseline: the key that agreement, confusion and differences are about. It may be missing from `files`.
        pairs: (comparison, baseline's key, candidate's key); those with a contestant that has no file are left out.
        seed: of the bootstrap.
        resamples: how many draws of the examples are behind every interval.

    Raises:
        DataError: if the examples cannot judge such models, or a model's answers do not fit them.
    """
    check_examples(examples, kind)
    answers = {key: _read(file) for key, file in files.items()}
    for key, arrays in answers.items():
        check_answers(arrays, examples, kind=kind, key=key)
    check_same_words(answers)
    marks = {key: mark(arrays, examples, kind=kind, metric=metric) for key, arrays in answers.items()}
    trivial = find_trivial(next(iter(answers.values()), None), examples, kind=kind, metric=metric)
    drawn, calibrated = _resample(marks, trivial, name, seed=seed, resamples=resamples)
    resampled = {key: drawn[key] for key in marks}
    compared = [pair for pair in pairs if pair[1] in marks and pair[2] in marks]
    quality = report_schema.Quality(
        name=name,
        data=examples.name,
        split=examples.split,
        num_examples=len(examples),
        data_sha256=examples.sha256,
        task=TEXT_CLASSIFICATION.name if kind in PROBLEM_TYPES else kind,
        kind=kind,
        metric=metric,
        lower_is_better=lower_is_better(metric),
        trivial=None if trivial is None else trivial.marks.scores[metric],
        trivial_answer=None if trivial is None else trivial.words,
        scores=[
            _score(key, mine, marks.get(baseline), metric=metric, drawn=drawn, calibrated=calibrated)
            for key, mine in marks.items()
        ],
        notes=list(
            dict.fromkeys(
                note for key, mine in marks.items() for note in list_notes(answers[key], mine, examples, kind=kind)
            )
        ),
        retention=[compare(pair, marks, resampled, kind=kind, metric=metric) for pair in compared],
        power=power(examples, kind=kind, metric=metric),
        confusion=count_confusion(answers, examples, kind=kind, baseline=baseline),
        differences=list_differences(answers, examples, kind=kind, baseline=baseline),
    )
    return Judged(quality, resampled)


def _read(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def _resample(
    marks: Mapping[str, Marks], trivial: Trivial | None, name: str, *, seed: int, resamples: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return the scores and the calibration errors of the same draws of the examples, by contestant.

    Among the scores are those of the answer that ignores the text, by the key `_TRIVIAL`.
    """
    if not marks:
        return {}, {}
    # Data sets of one size shall not share their draws, for they are put together in a mean.
    rng = np.random.default_rng([seed, *name.encode()])
    scored = {f"score {key}": mine.draws for key, mine in marks.items()}
    scored |= {} if trivial is None else {f"score {_TRIVIAL}": trivial.marks.draws}
    calibrated = {f"calibration {key}": mine.calibration for key, mine in marks.items() if mine.calibration}
    drawn = bootstrap_together(scored | calibrated, next(iter(marks.values())).drawn, rng=rng, resamples=resamples)
    scores, errors = ({name.split(" ", 1)[1]: drawn[name] for name in part} for part in (scored, calibrated))
    return scores, errors


def _score(
    key: str,
    mine: Marks,
    baseline: Marks | None,
    *,
    metric: str,
    drawn: Mapping[str, Floats],
    calibrated: Mapping[str, Floats],
) -> report_schema.Score:
    value = mine.scores[metric]
    low, high = widen(value, percentiles(drawn[key]), unseen(mine))
    if mine.right is not None:
        low, high = max(-1.0 if metric == "matthews_correlation" else 0.0, low), min(1.0, high)
    error = None if mine.calibration is None else float(mine.calibration(np.ones((1, mine.drawn)))[0])
    return report_schema.Score(
        key=key,
        value=value,
        interval=(low, high),
        scores={metric: value} | mine.scores,
        calibration_error=error,
        calibration_interval=None if error is None else _around(error, calibrated[key]),
        agreement=None if baseline is None else agreement(mine, baseline),
        lost_finite=mine.lost,
        better_than_trivial=better_by(drawn[key], drawn[_TRIVIAL], metric=metric)[0] > 0 if _TRIVIAL in drawn else None,
    )


def _around(value: float, resampled: Floats) -> report_schema.Interval:
    """Return the percentile interval, moved so that the resampled values' median is the value.

    Resampling adds to a calibration error, which is a sum of sizes, as if the model were worse calibrated.
    """
    low, high = percentiles(resampled)
    moved = value - float(np.median(resampled))
    return max(0.0, low + moved), min(1.0, high + moved)


def summarise_glue(
    judged: Sequence[Judged], *, baseline: str, candidates: Sequence[str]
) -> list[report_schema.GlueRow]:
    """Return each candidate's scores over several data sets, and how much of the baseline's they are.

    Data sets that one of the two has no score of are left out of a row, and so are those where a low score is good. A
    ratio is None where the baseline's score is 0 or less. No row is made of fewer than two data sets.

    Args:
        judged: one per data set.
        baseline: a key.
        candidates: keys.
    """
    rows = [_glue_row(judged, baseline=baseline, candidate=key) for key in candidates if key != baseline]
    return [row for row in rows if len(row.scores) > 1]


def _glue_row(judged: Sequence[Judged], *, baseline: str, candidate: str) -> report_schema.GlueRow:
    shared = {
        one.quality.name: one
        for one in judged
        if {baseline, candidate} <= set(one.resampled) and not one.quality.lower_is_better
    }
    theirs, ours = ({name: _value(one, key) for name, one in shared.items()} for key in (baseline, candidate))
    ratios = {name: ours[name] / theirs[name] for name in shared if name != metrics.WNLI and theirs[name] > 0}
    kept = [name for name in shared if name != metrics.WNLI]
    whole = len(ratios) == len(kept) > 0
    worst = min(ratios, key=lambda name: ratios[name]) if whole else None
    return report_schema.GlueRow(
        baseline=baseline,
        candidate=candidate,
        scores=ours,
        baseline_scores=theirs,
        macro_with_wnli=_ratio(ours, theirs, list(shared)) if metrics.WNLI in shared else None,
        macro=_ratio(ours, theirs, kept),
        mean_of_ratios=sum(ratios.values()) / len(ratios) if whole else None,
        worst_task=ratios[worst] if worst else None,
        worst_task_name=worst,
        macro_interval=_macro_interval([shared[name] for name in kept], baseline=baseline, candidate=candidate),
    )


def _value(judged: Judged, key: str) -> float:
    return next(row.value for row in judged.quality.scores if row.key == key)


def _ratio(ours: Mapping[str, float], theirs: Mapping[str, float], names: Sequence[str]) -> float | None:
    total = sum(theirs[name] for name in names)
    return sum(ours[name] for name in names) / total if total > 0 else None


def _macro_interval(judged: Sequence[Judged], *, baseline: str, candidate: str) -> report_schema.Interval | None:
    """Return the interval of the ratio of the means: in every resample, each data set's examples are drawn anew."""
    if not judged or sum(_value(one, baseline) for one in judged) <= 0:
        return None
    theirs, ours = (sum(one.resampled[key] for one in judged) for key in (baseline, candidate))
    clear = np.asarray(theirs) > 0
    return percentiles(np.asarray(ours)[clear] / np.asarray(theirs)[clear]) if clear.any() else None
