"""Find the rows of a report that a claim is about, by its `where`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from potstill.bench import report_schema
from potstill.bench.claims.claim_file import Claim, normal_load
from potstill.bench.claims.metrics import METRICS, Metric, Selection, grid
from potstill.bundle import RECOMMENDED

_DEFAULT_RUNNER = "onnxruntime-cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """What a claim is about and the report does not have."""

    subject: str
    where: str = ""
    reason: str


def select(report: report_schema.Report, claim: Claim) -> list[Selection | NotMeasured]:
    """Return everything that a claim is decided for, at least one thing.

    A claim without a model is about every model but the baseline; without a precision, about every precision; without
    a data set, about each (the share of a score that is kept: about the mean over GLUE's tasks where the report has
    it).
    """
    metric, baseline = METRICS[claim.measure], report.baseline_model
    models = [claim.where.model] if claim.where.model is not None else report.candidates
    compares_models = metric.of_model or ("against" in metric.fields and claim.where.against != "fp32")
    # With one model alone, a claim that compares no models is about that one.
    if not models and not compares_models:
        models = [baseline]
    if not models:
        reason = f"{baseline} is the only model; there is none to hold against it"
        return [NotMeasured(subject=baseline, reason=reason)]
    return [found for model in models for found in _select_of_model(report, claim, model=model)]


def _select_of_model(report: report_schema.Report, claim: Claim, *, model: str) -> list[Selection | NotMeasured]:
    metric, baseline = METRICS[claim.measure], report.baseline_model
    if model not in report.models:
        return [NotMeasured(subject=model, reason=f"no model is called {model}; there are {', '.join(report.models)}")]
    if metric.of_model:
        if model == baseline:
            return [NotMeasured(subject=model, reason=f"{model} is the baseline itself")]
        return [Selection(model=model, against=baseline, load=_load(report, claim, metric))]
    where = claim.where
    any_precision = where.precision in (None, "recommended")
    rows = [
        row for row in report.contestants if row.model == model and (any_precision or row.precision == where.precision)
    ]
    if where.runner is not None:
        rows = [row for row in rows if row.runner == where.runner]
    else:  # the baseline's engine, if the model was run by that
        first = report.contestant(report.baseline)
        usual = report.baseline.partition("@")[2] or _DEFAULT_RUNNER if first is None else first.runner
        rows = [row for row in rows if row.runner == usual] or rows
    if where.precision == "recommended":
        # Other precisions, such as a checkpoint's bf16, stand behind in the order of the report.
        order: tuple[str, ...] = RECOMMENDED
        rows = sorted(rows, key=lambda row: order.index(row.precision) if row.precision in order else len(order))[:1]
    if not rows:
        return [_explain_missing_rows(report, claim, model=model)]
    found = [selection for row in rows for selection in _select_of_row(report, claim, row)]
    return found or [NotMeasured(subject=model, reason=f"{model} was measured in fp32 alone, which compares nothing")]


def _explain_missing_rows(report: report_schema.Report, claim: Claim, *, model: str) -> NotMeasured:
    where = claim.where
    runner = where.runner or _DEFAULT_RUNNER
    precision = None if where.precision == "recommended" else where.precision
    key = f"{model}/{precision}" + ("" if runner == _DEFAULT_RUNNER else f"@{runner}")
    subject = key if precision else model
    for failure in report.failures:
        if failure.where is None and (failure.key if precision else failure.key.rpartition("/")[0]) == subject:
            return NotMeasured(subject=subject, reason=f"{failure.key} failed ({failure.stage}): {failure.reason}")
    wanted = [f"in {precision}" * bool(precision), f"by {where.runner}" * bool(where.runner)]
    what = " ".join([f"{model} was not measured", *filter(None, wanted)])
    return NotMeasured(subject=subject, reason=f"{what}; measured are {_list_rows(report, model)}")


def _select_of_row(
    report: report_schema.Report, claim: Claim, row: report_schema.Contestant
) -> Iterator[Selection | NotMeasured]:
    metric = METRICS[claim.measure]
    selection = Selection(model=row.model, key=row.key)
    if "against" in metric.fields:
        against = _compared_with(report, claim, row)
        if isinstance(against, NotMeasured):
            yield against
            return
        # fp32 beside itself is passed over; the baseline beside itself is told.
        if against == row.key:
            if claim.where.against != "fp32":
                yield NotMeasured(subject=row.key, reason=f"{row.key} is the baseline itself")
            return
        selection = replace(selection, against=against)
    if "load" in metric.fields:
        selection = replace(selection, load=_load(report, claim, metric))
    if "callers" in metric.fields:
        most = max((each.callers for each in report.throughput), default=0)
        selection = replace(selection, callers=claim.where.callers or most)
    if "data" not in metric.fields:
        yield selection
        return
    for found in _with_data(report, claim, selection):
        if "label" in metric.fields and isinstance(found, Selection):
            yield from _with_labels(report, claim, found)
        else:
            yield found


def _compared_with(report: report_schema.Report, claim: Claim, row: report_schema.Contestant) -> str | NotMeasured:
    """Return the key of the row that `row` is compared with."""
    against = claim.where.against or "like_for_like"
    if against == "baseline":
        return report.baseline
    model, precision = report.baseline_model, row.precision
    if against == "fp32":
        model, precision = row.model, "fp32"
    for other in report.contestants:
        if (other.model, other.precision, other.runner) == (model, precision, row.runner):
            return other.key
    missing = f"{model} was not measured in {precision} by {row.runner}"
    reason = f"{missing}, so nothing can be held against it; measured are {_list_rows(report, model)}"
    return NotMeasured(subject=row.key, reason=reason)


def _with_data(report: report_schema.Report, claim: Claim, selection: Selection) -> Iterator[Selection | NotMeasured]:
    """Yield a selection for each data set that the claim is about."""
    names = [quality.name for quality in report.quality]
    wanted, why = claim.where.data, "no data was given (--data)"
    if report.config.get("data") and report.left_out:
        why = "the budget had no time for quality (--budget)"
    has_mean = any((row.candidate, row.baseline) == (selection.key, selection.against) for row in report.glue)
    if wanted is not None:
        found = [name for name in names if _same_letters(name, wanted)]
        have = f"; measured are {', '.join(names)}" if names else f": {why}"
        if not found:
            reason = f"quality on {wanted} was not measured{have}"
            yield NotMeasured(subject=selection.key, where=wanted, reason=reason)
        yield from (replace(selection, data=name) for name in found)
    elif not names:
        yield NotMeasured(subject=selection.key, reason=why)
    elif claim.measure == "score_kept" and len(names) > 1 and has_mean:
        yield selection
    else:
        yield from (replace(selection, data=name) for name in names)


def _with_labels(report: report_schema.Report, claim: Claim, selection: Selection) -> Iterator[Selection]:
    """Yield a selection for each label that the claim is about."""
    names = [claim.where.label] if claim.where.label is not None else []
    names = names or [
        label.label
        for quality in report.quality
        if quality.name == selection.data
        for row in quality.scores
        if row.key == selection.key
        for label in row.labels
    ]
    # Without any the metric tells that there is none.
    yield from (replace(selection, label=name) for name in names or [""])


def _load(report: report_schema.Report, claim: Claim, metric: Metric) -> str:
    """Return the load as reports write it; `1×longest` with the longest length of the grid."""
    if "load" not in metric.fields:
        return ""
    load = normal_load(claim.where.load or "1xlongest") or ""
    batch, cross, tokens = load.partition("×")
    if tokens != "longest":
        return load
    lengths = [length for size, length in grid(report, metric) if str(size) == batch]
    return f"{batch}{cross}{max(lengths)}" if lengths else load


def _list_rows(report: report_schema.Report, model: str) -> str:
    return ", ".join(row.key for row in report.contestants if row.model == model) or "none of its rows"


def _same_letters(one: str, other: str) -> bool:
    """Tell whether two names differ in case and punctuation alone: SST-2 and sst2."""
    first, second = ("".join(filter(str.isalnum, name.lower())) for name in (one, other))
    return first == second
