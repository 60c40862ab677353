"""Scores as claims read them out of a report: a value with its interval, or why there is none."""

from dataclasses import replace
from typing import TypeAlias

from potstill.bench import report_schema
from potstill.bench.claims import combine
from potstill.bench.claims.readings import Answer, Reading, Selection, lost
from potstill.bench.report.formatting import percent
from potstill.evaluation.intervals import wilson


def score(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the score by the data set's metric."""
    found = _scored(report, pick, pick.key)
    if isinstance(found, str):
        return found
    quality, row = found
    return Reading(value=row.value, interval=row.interval, worthless=_worthless(quality, row), what=_metric(quality))


def agreement(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the share of decisions that are the baseline's, with Wilson's interval over the examples."""
    found = _scored(report, pick, pick.key)
    if isinstance(found, str):
        return found
    quality, row = found
    if row.agreement is None:
        return f"answers on {quality.name} are amounts, which agree more or less and not yes or no"
    same = round(row.agreement * quality.num_examples)
    return Reading(value=row.agreement, interval=wilson(same, quality.num_examples), what=quality.name)


def calibration(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the expected calibration error."""
    found = _scored(report, pick, pick.key)
    if isinstance(found, str):
        return found
    quality, row = found
    if row.calibration_error is None:
        return f"{pick.key} gives no probabilities on {quality.name}"
    return Reading(value=row.calibration_error, interval=row.calibration_interval, what=quality.name)


def kept(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the share of the other's score that is kept: on one data set, or by the mean over GLUE's tasks."""
    return _kept_on(report, pick) if pick.data else _kept_of_glue(report, pick)


def _kept_on(report: report_schema.Report, pick: Selection) -> Answer:
    found = _two_scores(report, pick)
    if isinstance(found, str):
        return found
    quality, row, own, base = found
    if quality.lower_is_better:
        return f"a low {quality.metric} is good, so no share of it is kept; claim the score itself"
    if row is not None and row.kept is not None and row.kept_interval is not None:
        return Reading(
            value=row.kept, interval=row.kept_interval, worthless=_worthless(quality, own), what=_metric(quality)
        )
    sides = (own.value, own.interval), (base.value, base.interval)
    if not combine.can_be_ratio(*sides):
        return f"{pick.against} scores {base.value:.3f} in {_metric(quality)}: not surely above 0, so no share is kept"
    value, interval = combine.ratio(*sides)
    return Reading(
        value=value,
        interval=interval,
        worthless=_worthless(quality, own),
        what=_metric(quality),
        note=", each score on its own, unpaired",
    )


def _kept_of_glue(report: report_schema.Report, pick: Selection) -> Answer:
    row = next((row for row in report.glue if (row.candidate, row.baseline) == (pick.key, pick.against)), None)
    if row is None or row.macro is None:
        return f"{pick.key} and {pick.against} have no row of several data sets"
    others = {
        "with WNLI": row.macro_with_wnli,
        "without": row.macro,
        "as the mean of the ratios": row.mean_of_ratios,
        f"on the worst task ({row.worst_task_name})": row.worst_task,
    }
    told = ", ".join(f"{percent(share)} {name}" for name, share in others.items() if share is not None)
    tasks = [name for name in row.scores if name != "WNLI"]
    what = f"mean score on {', '.join(tasks)}"
    found = [_scored(report, replace(pick, data=task), pick.key) for task in tasks]
    reasons = [None if isinstance(each, str) else _worthless(*each) for each in found]
    return Reading(
        value=row.macro,
        interval=row.macro_interval,
        # One task of many may be too small to tell; all of them are not.
        worthless=reasons[0] if reasons and all(reasons) else None,
        what=what,
        note=f". By definition: {told}",
    )


def points_lost(report: report_schema.Report, pick: Selection) -> Answer:
    """Read how many hundredths of the metric are lost against the other; negative where it gains."""
    found = _two_scores(report, pick)
    if isinstance(found, str):
        return found
    quality, row, own, base = found
    if quality.lower_is_better:
        return f"{quality.metric} is not counted in points; claim the score itself"
    if row is not None:
        gain, (low, high), note = row.difference, row.difference_interval, ""
    else:
        gain, (low, high) = combine.difference((own.value, own.interval), (base.value, base.interval))
        note = ", each score on its own, unpaired"
    note += ", so it gains" if gain > 0 else ""
    # 0.0 - x, because -0.0 would be written with its sign.
    return Reading(
        value=0.0 - 100 * gain,
        interval=(0.0 - 100 * high, 0.0 - 100 * low),
        worthless=_worthless(quality, own),
        what=_metric(quality),
        note=note,
    )


_Scores: TypeAlias = tuple[
    report_schema.Quality, report_schema.Retention | None, report_schema.Score, report_schema.Score
]


def _two_scores(report: report_schema.Report, pick: Selection) -> _Scores | str:
    """Return the scores of the row and of the other, with their paired comparison where the report has it."""
    own, base = _scored(report, pick, pick.key), _scored(report, pick, pick.against)
    if isinstance(own, str) or isinstance(base, str):
        return own if isinstance(own, str) else str(base)
    pair = (pick.against, pick.key)
    row = next((row for row in own[0].retention if (row.baseline, row.candidate) == pair), None)
    return own[0], row, own[1], base[1]


def _scored(
    report: report_schema.Report, pick: Selection, key: str
) -> tuple[report_schema.Quality, report_schema.Score] | str:
    quality = next((row for row in report.quality if row.name == pick.data), None)
    if quality is None:
        return f"no quality on {pick.data or 'any data'}"
    row = next((row for row in quality.scores if row.key == key), None)
    return (quality, row) if row is not None else lost(report, key, "score", at=quality.name)


def _worthless(quality: report_schema.Quality, row: report_schema.Score) -> str | None:
    """Return why a score cannot be a PASS; None where it can."""
    if row.better_than_trivial is not False:
        return None
    return f"{row.key} is not shown to be better on {quality.name} than an answer that ignores the text"


def _metric(quality: report_schema.Quality) -> str:
    return f"{quality.metric.replace('_', ' ')} on {quality.name}"
