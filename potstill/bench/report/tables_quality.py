"""The tables of quality: scores, what is kept of them, GLUE by every definition, confusion."""

from potstill.bench.report import choose
from potstill.bench.report.tables import Table, name, plain
from potstill.bench.report.wording import NOTHING, clean, count, listed, p_value, percent, score, with_interval
from potstill.bench.report_schema import Quality, Report, Retention, Score


def quality(report: Report, quality: Quality) -> Table:
    """Show every contestant on one data set, held against the baseline."""
    rows = [_row(report, quality, row) for row in choose.in_order(report, quality.scores)]
    head = (
        "contestant", quality.metric.replace("_", " "), "95 % interval", *_RETENTION_HEAD, "same decision",
        "calibration error",
    )  # fmt: skip
    return plain(f"quality-{clean(quality.name)}", clean(quality.name), head, rows, note=_note(report, quality))


_RETENTION_HEAD = ("kept", "difference", "p", "gained", "lost")


def _row(report: Report, quality: Quality, row: Score) -> list[str]:
    found = choose.retention_of(quality, row.key)
    mark = f" ({row.lost_finite:,} answers not finite)" if row.lost_finite else ""
    cells = [name(report, row.key) + mark, score(row.value), f"{score(row.interval[0])} to {score(row.interval[1])}"]
    cells += _retained(found) if found else [NOTHING] * len(_RETENTION_HEAD)
    calibration = NOTHING if row.calibration_error is None else f"{row.calibration_error:.3f}"
    return [*cells, percent(row.agreement), calibration]


def _retained(row: Retention) -> list[str]:
    return [
        with_interval(row.kept, row.kept_interval, unit="share"),
        with_interval(row.difference, row.difference_interval), p_value(row.p_value), count(row.gained),
        count(row.lost),
    ]  # fmt: skip


def like_for_like(report: Report, quality: Quality) -> Table:
    """Show what each candidate keeps of the baseline model in the same precision and engine."""
    rows = [
        [name(report, row.candidate), name(report, row.baseline), *_retained(row)]
        for row in quality.retention
        if row.comparison == "like_for_like"
    ]
    title = f"{clean(quality.name)}, like for like"
    return plain("like-for-like", title, ("contestant", "against", *_RETENTION_HEAD), rows)


def no_better(report: Report) -> list[str]:
    """Return a sentence for every row that is not surely better than an answer that ignores the text."""
    return [
        f"{name(report, row.key)} on {clean(quality.name)}: {_verdict(quality, row)}"
        for quality in report.quality
        for row in choose.in_order(report, quality.scores)
        if row.better_than_trivial is False
    ]


def _verdict(quality: Quality, row: Score) -> str:
    trivial = quality.trivial if quality.trivial is not None else row.value
    is_above = row.value < trivial if quality.lower_is_better else row.value > trivial
    metric = quality.metric.replace("_", " ")
    return (
        f"{'not shown to be better' if is_above else 'no better'} than an answer that ignores the text. Its {metric} "
        f"is {score(row.value)} ({score(row.interval[0])} to {score(row.interval[1])}), and "
        f"{clean(quality.trivial_answer or 'that')} scores {score(trivial)}."
    )


def _note(report: Report, quality: Quality) -> str:
    sentences = [f"{quality.num_examples:,} examples of {clean(quality.data)} ({clean(quality.split)})."]
    if quality.trivial is not None:
        told = f" ({clean(quality.trivial_answer)})" if quality.trivial_answer else ""
        sentences.append(f"An answer that does not look at the text{told} scores {score(quality.trivial)}.")
    sentences += map(clean, quality.notes)
    sentences.append(f"Kept, difference, p and same decision are against {name(report, report.baseline)}.")
    tests = list(dict.fromkeys(row.test for row in quality.retention))
    if tests:
        sentences.append(f"p is by {listed(tests)}: how often chance alone would part two equals so far.")
    return " ".join([*sentences, clean(quality.power.sentence)])


GLUE_HEADS = {
    "macro": "macro",
    "macro_with_wnli": "macro with WNLI",
    "mean_of_ratios": "mean of ratios",
    "worst_task": "worst task",
}


def glue(report: Report) -> Table:
    """Show scores over all data sets, and what is kept by every definition."""
    tasks = list(dict.fromkeys(task for row in report.glue for task in row.baseline_scores))
    baselines = {row.baseline: row.baseline_scores for row in report.glue}
    rows = [
        [name(report, key), *(score(scores.get(task)) for task in tasks)] + [NOTHING] * len(GLUE_HEADS)
        for key, scores in baselines.items()
    ]
    for row in report.glue:
        worst = (
            f"{percent(row.worst_task)} ({clean(row.worst_task_name)})"
            if row.worst_task_name
            else percent(row.worst_task)
        )
        rows.append([
            name(report, row.candidate), *(score(row.scores.get(task)) for task in tasks),
            with_interval(row.macro, row.macro_interval, unit="share"), percent(row.macro_with_wnli),
            percent(row.mean_of_ratios), worst,
        ])  # fmt: skip
    note = (
        "Macro: mean score of the candidate / mean score of the baseline, WNLI left out. Mean of ratios: the mean of "
        "what each task keeps. Worst task: the least that any task keeps."
    )
    return plain("glue", "Over all data sets", ("contestant", *tasks, *GLUE_HEADS.values()), rows, note=note)
