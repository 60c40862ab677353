"""What a report says first: its title, and the answer for each candidate in a line.

`int8 student: 79 % smaller, 4.3 times as fast, accuracy 0.90 to 0.89`
"""

from potstill.bench.report import selection
from potstill.bench.report.formatting import clean, listed, mb, ms, number, percent
from potstill.bench.report_schema import Contestant, Quality, Report
from potstill.bundle import RECOMMENDED

# More data sets than this are counted in the title and not named.
_MOST_NAMES = 3


def title(report: Report) -> str:
    """Return the title: task, data, and who is held against whom."""
    models = [clean(name) for name in (*report.candidates, report.baseline_model)]
    against = f"{listed(models[:-1])} against {models[-1]}" if len(models) > 1 else models[0]
    model = report.models.get(report.baseline_model)
    if model is None:
        return against
    names = [clean(quality.name) for quality in report.quality]
    data = f"{len(names)} data sets" if len(names) > _MOST_NAMES else listed(names)
    return f"{model.task.replace('-', ' ').capitalize()}{f' on {data}' if data else ''}: {against}"


def answers(report: Report) -> list[str]:
    """Return what each candidate gains and loses against the baseline, in the precision to serve.

    Without a candidate the baseline's own int8 is told, or what else it has beside its fp32; of a lone row, what it
    is. Whatever was not measured, or was disturbed meanwhile, is left out.
    """
    baseline = report.contestant(report.baseline)
    if baseline is None:
        return []
    lines = []
    for model in report.candidates or [baseline.model]:
        rows = [row for row in report.contestants if row.model == model and row.key != baseline.key]
        row = _to_serve(rows, baseline)
        lines += [_against(report, row, baseline)] if row else []
    return lines or [_alone(report, baseline)]


def _to_serve(rows: list[Contestant], baseline: Contestant) -> Contestant | None:
    """Return the row to serve: of those in the baseline's engine, if there are any, the recommended precision."""
    order: tuple[str, ...] = RECOMMENDED
    rows = [row for row in rows if row.runner == baseline.runner] or rows
    return min(rows, key=lambda row: order.index(row.precision) if row.precision in order else len(order), default=None)


def _against(report: Report, row: Contestant, baseline: Contestant) -> str:
    parts = []
    if row.file_bytes and baseline.file_bytes:
        saved = 1 - row.file_bytes / baseline.file_bytes
        parts.append(f"{percent(abs(saved), digits=0)} {'smaller' if saved >= 0 else 'larger'}")
    ratio = selection.ratio_at(report, row.key, selection.main_load(report))
    if ratio is not None and not ratio.disturbed:
        parts.append(f"{number(ratio.value) if ratio.value < 1 else f'{ratio.value:.1f}'} times as fast")
    quality = selection.main_quality(report)
    if quality is not None:
        parts += _scores(report, quality, [baseline.key, row.key])
    return f"{_name(row)}: {', '.join(parts) or 'nothing was measured that can be compared'}"


def _alone(report: Report, row: Contestant) -> str:
    timed = selection.latency_at(report, selection.main_load(report)).get(row.key)
    quality = selection.main_quality(report)
    parts = [f"{mb(row.file_bytes)}\u00a0MB"] if row.file_bytes else []
    parts += [f"{ms(timed.p50_ms)}\u00a0ms a call"] if timed and timed.p50_ms and not timed.disturbed else []
    parts += _scores(report, quality, [row.key]) if quality is not None else []
    return f"{_name(row)}: {', '.join(parts) or 'nothing was measured'}"


def _scores(report: Report, quality: Quality, keys: list[str]) -> list[str]:
    """Write the scores of these rows, with as many digits as it takes to tell them apart, four at most."""
    found = selection.scores_of(quality)
    if any(key not in found for key in keys):
        return []
    values = [found[key].value for key in keys]
    if len(values) > 1 and len(set(values)) == 1:
        values, same = values[:1], "the same, "
    else:
        same = ""
    if max(map(abs, values)) >= 10:
        written = [number(value) for value in values]
    else:
        digits = next((at for at in (2, 3) if len({f"{value:.{at}f}" for value in values}) == len(values)), 4)
        written = [f"{value:.{digits}f}" for value in values]
    on = f" on {clean(quality.name)}" if len(report.quality) > 1 else ""
    return [f"{quality.metric.replace('_', ' ')} {same}{' to '.join(written)}{on}"]


def _name(row: Contestant) -> str:
    """Name a row with the precision first, as one says it: `int8 student`."""
    engine = "" if row.runner == "onnxruntime-cpu" else f" on {row.runner}"
    return f"{row.precision} {clean(row.model)}{engine}"
