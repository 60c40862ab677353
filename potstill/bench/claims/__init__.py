"""Decide claims from a report: the package's (40 % smaller, its file too, 60 % faster, 97 % as good) or a user's own.

Sanh, Debut, Chaumond, Wolf: DistilBERT, a distilled version of BERT (2019), section 4. The paper leaves the
definitions open; ours are in `claims.yaml`, beside this file.
"""

from collections.abc import Sequence
from typing import Literal

from potstill.bench import report_schema
from potstill.bench.claims.claim_file import Claim, load_claims
from potstill.bench.claims.metrics import METRICS, Metric, MetricValue, Selection
from potstill.bench.claims.selection import NotMeasured, select
from potstill.errors import UsageError
from potstill.evaluation.intervals import decide_by_interval
from potstill.messages import did_you_mean

__all__ = ["GLUE_BERT", "GLUE_DISTILBERT", "Claim", "check_required", "decide", "load_claims", "require", "verdict"]

# DistilBERT paper, table 1 (development sets, medians of 5 runs).
GLUE_BERT = {
    "CoLA": 56.3,
    "MNLI": 84.7,
    "MRPC": 88.6,
    "QNLI": 91.8,
    "QQP": 89.6,
    "RTE": 69.3,
    "SST-2": 92.7,
    "STS-B": 89.0,
    "WNLI": 53.5,
}
GLUE_DISTILBERT = {
    "CoLA": 51.3,
    "MNLI": 82.2,
    "MRPC": 87.5,
    "QNLI": 89.2,
    "QQP": 88.5,
    "RTE": 59.9,
    "SST-2": 91.3,
    "STS-B": 86.9,
    "WNLI": 56.3,
}
# WNLI has 71 examples, on which answering the more frequent label beats both models.

Direction = Literal["at_least", "at_most"]
INCONCLUSIVE: Literal["INCONCLUSIVE"] = "INCONCLUSIVE"


def decide(report: report_schema.Report, claims: Sequence[Claim]) -> list[report_schema.Decision]:
    """Decide every claim from what a report measured.

    PASS and FAIL are given only where the whole 95 % interval is on one side of the target, and for ratios of times
    and for memory where the value itself is outside the noise floor around it. What was disturbed while it was timed is
    not shown at all. Everything else is INCONCLUSIVE, with a reason.
    """
    return [_decide(report, claim, selection) for claim in claims for selection in select(report, claim)]


def check_required(claims: Sequence[Claim], wanted: Sequence[str]) -> None:
    """Refuse the id of a claim that does not exist; `all` stands for every one.

    Raises:
        UsageError: naming it and the nearest known one.
    """
    known = [claim.id for claim in claims]
    for name in wanted:
        if name != "all" and name not in known:
            raise UsageError(f"--require {name}: no claim is called {name!r}{did_you_mean(name, known)}")


def require(decisions: Sequence[report_schema.Decision], wanted: Sequence[str]) -> list[report_schema.Decision]:
    """Return the decisions that are not PASS among those with the ids `wanted`; `all` stands for every one.

    Raises:
        UsageError: if no claim has one of the ids.
    """
    known = list(dict.fromkeys(decision.id for decision in decisions))
    ids = known if "all" in wanted else wanted
    for name in ids:
        if name not in known:
            raise UsageError(f"--require {name}: no claim is called {name!r}{did_you_mean(name, known)}")
    return [decision for decision in decisions if decision.id in ids and decision.verdict != "PASS"]


def verdict(
    value: float, interval: report_schema.Interval, *, target: float, direction: Direction, floor: float = 0.0
) -> report_schema.Verdict:
    """Say whether a claim holds: only where the whole interval is on one side of the target.

    Args:
        value: what was measured.
        interval: its 95 % interval.
        target: what is asked for.
        direction: `at_least` passes on the target itself and above it, `at_most` on it and below.
        floor: for a ratio of times the noise floor, a share of the target: a value nearer to it is inconclusive.
    """
    if abs(value - target) < floor * abs(target):
        return "INCONCLUSIVE"
    return decide_by_interval(interval, target, at_least=direction == "at_least")


def _decide(report: report_schema.Report, claim: Claim, selection: Selection | NotMeasured) -> report_schema.Decision:
    """Decide one claim about one row of the report."""
    metric = METRICS[claim.measure]
    found: MetricValue | None = None
    decided: report_schema.Verdict = INCONCLUSIVE
    reason: str | None
    if isinstance(selection, NotMeasured):
        reason = selection.reason
        selection = Selection(model=selection.subject, data=selection.where)
    else:
        value = metric.read(report, selection)
        disturbed = None if isinstance(value, str) else _disturbance(report, metric, value)
        if isinstance(value, str):
            reason = value
        elif disturbed:
            reason = f"the machine was disturbed: {disturbed}; bench again when it is quiet"
        else:
            floors = {"load": report.noise.at(selection.load), "memory": report.noise.floors.get("memory")}
            found = value
            decided, reason = _judge(claim, value, floor=floors.get(metric.floor) or 0.0)
    if "data" in metric.fields:
        where = selection.data or ("all data sets" if found else "")
        where += f", {selection.label}" if selection.label else ""
    else:
        where = f"{selection.load}, {selection.callers} callers" if selection.callers else selection.load
    return report_schema.Decision(
        id=claim.id,
        claim=claim.claim,
        measure=metric.name,
        subject=selection.key or selection.model,
        against=selection.against or None,
        where=where or None,
        definition=claim.definition or f"{metric.words[:1].upper()}{metric.words[1:]}.",
        source=claim.source,
        direction=claim.direction,
        target=claim.target,
        unit=metric.unit,
        value=None if found is None else found.value,
        interval=None if found is None else found.interval,
        verdict=decided,
        summary=_summarise(claim, selection, found, reason),
        reason=reason,
    )


def _disturbance(report: report_schema.Report, metric: Metric, found: MetricValue) -> str | None:
    """Return what disturbed a value; in an older report, which flags no rows, anything that was timed may be."""
    if metric.timed and not found.disturbed and not report.names_disturbed_rows:
        return next(iter(report.noise.flags), "").rstrip(".") or None
    return found.disturbed


def _judge(claim: Claim, found: MetricValue, *, floor: float) -> tuple[report_schema.Verdict, str | None]:
    """Return the verdict, and why if there is none."""
    if found.interval is None:
        return INCONCLUSIVE, "it has no interval, so nobody knows how sure it is"
    # Decided twice, to tell whether the interval or the noise floor stands in the way.
    without_floor = verdict(found.value, found.interval, target=claim.target, direction=claim.direction)
    decided = verdict(found.value, found.interval, target=claim.target, direction=claim.direction, floor=floor)
    # A FAIL stands: a row that is worth nothing can still be shown to miss the target.
    if decided == "PASS" and found.worthless:
        return INCONCLUSIVE, found.worthless
    if decided != INCONCLUSIVE:
        return decided, None
    if without_floor == INCONCLUSIVE:
        return decided, "the target is within the interval"
    return decided, f"it is nearer to the target than this machine's noise ({100 * floor:.1f}\u00a0%) lets one see"


def _summarise(claim: Claim, selection: Selection, found: MetricValue | None, reason: str | None) -> str:
    """Write the decision as a sentence for readers who do not know the bench."""
    metric, subject = METRICS[claim.measure], _name(selection.key or selection.model)
    if found is None:
        return f"Not decided for {subject}: {reason}."
    told = metric.sentence.format(
        subject=subject, against=_name(selection.against), what=found.what, value=metric.write(found.value)
    )
    if found.interval is not None and found.interval[0] != found.interval[1]:
        told += f" (95\u00a0% interval {metric.write_interval(found.interval)})"
    told += found.note
    if selection.load:
        told += f", at {selection.load}" + (" (batch × tokens)" if "×" in selection.load else "")
    told += "" if told.endswith((".", "!", "?")) else "."
    # The target has as many digits as it was given with.
    unit = f"\u00a0{metric.unit}" if metric.unit else ""
    amounts = {"share": f"{100 * claim.target:g}\u00a0%", "×": f"{claim.target:g} times"}
    target = amounts.get(metric.unit, f"{claim.target:g}{unit}")
    open_end = f" Not decided: {reason}." if reason else ""
    return f"{told} Asked for: {claim.direction.replace('_', ' ')} {target}.{open_end}"


def _name(key: str) -> str:
    """Name a row as one says it: `student int8 on torch-cpu`."""
    model, _, row = key.rpartition("/")
    return f"{model} {row}".strip().replace("@", " on ")
