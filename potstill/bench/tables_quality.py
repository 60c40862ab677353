"""The tables of quality: scores, what is kept of them, GLUE by every definition, confusion."""

from potstill.bench import choose
from potstill.bench.contract import Quality, Report, Score
from potstill.bench.tables import Table, name, plain
from potstill.bench.wording import NOTHING, clean, count, p_value, percent, score, with_interval


def quality(report: Report, quality: Quality) -> Table:
    """Show every contestant on one data set."""
    rows = [_row(report, quality, row) for row in choose.in_order(report, quality.scores)]
    head = (
        "contestant", quality.metric.replace("_", " "), "95 % interval", "kept", "difference", "test", "gained", "lost",
        "same decision", "calibration error",
    )  # fmt: skip
    return plain(f"quality-{clean(quality.name)}", clean(quality.name), head, rows, note=_note(report, quality))


def _row(report: Report, quality: Quality, row: Score) -> list[str]:
    found = choose.retention_of(quality, row.key)
    mark = f" ({row.lost_finite:,} answers not finite)" if row.lost_finite else ""
    cells = [name(report, row.key) + mark, score(row.value), f"{score(row.interval[0])} to {score(row.interval[1])}"]
    if found is None:
        cells += [NOTHING] * 5
    else:
        cells += [
            with_interval(found.kept, found.kept_interval, unit="share"),
            with_interval(found.difference, found.difference_interval),
            f"{found.test}: p {'' if found.p_value < 0.001 else '= '}{p_value(found.p_value)}",
            count(found.gained), count(found.lost),
        ]  # fmt: skip
    calibration = NOTHING if row.calibration_error is None else f"{row.calibration_error:.3f}"
    return [*cells, percent(row.agreement), calibration]


def _note(report: Report, quality: Quality) -> str:
    sentences = [f"{quality.num_examples:,} examples of {clean(quality.data)} ({clean(quality.split)})."]
    if quality.trivial is not None:
        sentences.append(f"An answer that does not look at the text scores {score(quality.trivial)}.")
    sentences.append(f"Kept, difference, test and same decision are against {name(report, report.baseline)}.")
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
