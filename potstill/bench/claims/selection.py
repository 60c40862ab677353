"""Which rows of a report a claim is about, by its `where`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from potstill.bench import report_schema
from potstill.bench.claims.claim_file import Claim, normal_load
from potstill.bench.claims.metrics import MEASURES, Measure, Selection, baseline_model, grid

_USUAL = "onnxruntime-cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """What a claim is about and the report does not have."""

    subject: str
    where: str = ""
    reason: str


def select(report: report_schema.Report, claim: Claim) -> list[Selection | Nothing]:
    """Return everything that a claim is decided for, at least one thing.

    A claim without a model is about every model but the baseline; without a precision, about every precision; without
    a data set, about each (the share of a score that is kept: about the mean over GLUE's tasks where the report has
    it).
    """
    baseline, named = baseline_model(report), claim.where.model
    models = [named] if named is not None else report.candidates
    if not models and not _compares_models(claim):
        models = [baseline]
    if not models:
        return [Nothing(subject=baseline, reason=f"{baseline} is the only model; there is none to hold against it")]
    return [pick for model in models for pick in _of_model(report, claim, model=model)]


def _compares_models(claim: Claim) -> bool:
    measure = MEASURES[claim.measure]
    return measure.of_model or ("against" in measure.fields and claim.where.against != "fp32")


def _of_model(report: report_schema.Report, claim: Claim, *, model: str) -> list[Selection | Nothing]:
    measure, baseline = MEASURES[claim.measure], baseline_model(report)
    if model not in report.models:
        return [Nothing(subject=model, reason=f"no model is called {model}; there are {', '.join(report.models)}")]
    if measure.of_model:
        if model == baseline:
            return [Nothing(subject=model, reason=f"{model} is the baseline itself")]
        load = _load(report, claim, measure)
        return [Selection(model=model, against=baseline, load=load)]
    rows = _rows(report, claim, model=model)
    if not rows:
        return [_not_measured(report, claim, model=model)]
    picks = [pick for row in rows for pick in _of_row(report, claim, row)]
    return picks or [Nothing(subject=model, reason=f"{model} was measured in fp32 alone, which compares nothing")]


def _rows(report: report_schema.Report, claim: Claim, *, model: str) -> list[report_schema.Contestant]:
    """Return the model's rows of the wanted precision and engine; of the baseline's engine where none is named."""
    where = claim.where
    rows = [row for row in report.contestants if row.model == model and where.precision in (None, row.precision)]
    if where.runner is not None:
        return [row for row in rows if row.runner == where.runner]
    first = report.contestant(report.baseline)
    usual = report.baseline.partition("@")[2] or _USUAL if first is None else first.runner
    return [row for row in rows if row.runner == usual] or rows


def _of_row(report: report_schema.Report, claim: Claim, row: report_schema.Contestant) -> Iterator[Selection | Nothing]:
    measure = MEASURES[claim.measure]
    pick = Selection(model=row.model, key=row.key)
    if "against" in measure.fields:
        found = _against(report, claim, row)
        if isinstance(found, Nothing):
            yield found
            return
        if found == row.key and claim.where.against == "fp32":
            return
        if found == row.key:
            yield Nothing(subject=row.key, reason=f"{row.key} is the baseline itself")
            return
        pick = replace(pick, against=found)
    if "load" in measure.fields:
        pick = replace(pick, load=_load(report, claim, measure))
    if "callers" in measure.fields:
        most = max((each.callers for each in report.throughput), default=0)
        pick = replace(pick, callers=claim.where.callers or most)
    yield from _with_data(report, claim, pick) if "data" in measure.fields else [pick]


def _with_data(report: report_schema.Report, claim: Claim, pick: Selection) -> Iterator[Selection | Nothing]:
    names = [quality.name for quality in report.quality]
    wanted, why = claim.where.data, "no data was given (--data)"
    if report.config.get("data") and report.left_out:
        why = "the budget had no time for quality (--budget)"
    if wanted is not None:
        found = [name for name in names if _letters(name) == _letters(wanted)]
        have = f"; measured are {', '.join(names)}" if names else f": {why}"
        if not found:
            yield Nothing(subject=pick.key, where=wanted, reason=f"quality on {wanted} was not measured{have}")
        yield from (replace(pick, data=name) for name in found)
    elif not names:
        yield Nothing(subject=pick.key, reason=why)
    elif claim.measure == "score_kept" and len(names) > 1 and _has_mean(report, pick):
        yield pick
    else:
        yield from (replace(pick, data=name) for name in names)


def _has_mean(report: report_schema.Report, pick: Selection) -> bool:
    return any((row.candidate, row.baseline) == (pick.key, pick.against) for row in report.glue)


def _against(report: report_schema.Report, claim: Claim, row: report_schema.Contestant) -> str | Nothing:
    """Return the key of the row that `row` is held against."""
    against = claim.where.against or "like_for_like"
    if against == "baseline":
        return report.baseline
    model, precision = baseline_model(report), row.precision
    if against == "fp32":
        model, precision = row.model, "fp32"
    for other in report.contestants:
        if (other.model, other.precision, other.runner) == (model, precision, row.runner):
            return other.key
    have = [other.key for other in report.contestants if other.model == model]
    missing = f"{model} was not measured in {precision} by {row.runner}"
    return Nothing(subject=row.key, reason=f"{missing}, so nothing can be held against it; measured are {_list(have)}")


def _load(report: report_schema.Report, claim: Claim, measure: Measure) -> str:
    """Return the load as reports write it; `1×longest` with the longest length of the grid."""
    if "load" not in measure.fields:
        return ""
    load = normal_load(claim.where.load or "1xlongest") or ""
    batch, cross, tokens = load.partition("×")
    if tokens != "longest":
        return load
    lengths = [length for size, length in grid(report, measure) if str(size) == batch]
    return f"{batch}{cross}{max(lengths)}" if lengths else load


def _not_measured(report: report_schema.Report, claim: Claim, *, model: str) -> Nothing:
    where = claim.where
    runner = where.runner or _USUAL
    key = f"{model}/{where.precision}" + ("" if runner == _USUAL else f"@{runner}")
    subject = key if where.precision else model
    for failure in report.failures:
        if failure.where is None and (failure.key if where.precision else failure.key.rpartition("/")[0]) == subject:
            return Nothing(subject=subject, reason=f"{failure.key} failed ({failure.stage}): {failure.reason}")
    have = [row.key for row in report.contestants if row.model == model]
    wanted = [f"in {where.precision}" * bool(where.precision), f"by {where.runner}" * bool(where.runner)]
    what = " ".join([f"{model} was not measured", *filter(None, wanted)])
    return Nothing(subject=subject, reason=f"{what}; measured are {_list(have)}")


def _list(keys: list[str]) -> str:
    return ", ".join(keys) or "none of its rows"


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
