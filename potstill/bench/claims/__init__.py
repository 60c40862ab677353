"""The claims: 40 % smaller, 60 % faster, 97 % as good, and a user's own; each decided from a report.

Sanh, Debut, Chaumond, Wolf: DistilBERT, a distilled version of BERT (2019), section 4. The paper leaves the
definitions open; ours are in `claims.yaml`, beside this file.
"""

from collections.abc import Sequence
from typing import Literal

from potstill.bench import report_schema
from potstill.bench.claims.claim_file import Claim, load_claims
from potstill.bench.claims.metrics import MEASURES, Measure, Reading, Selection
from potstill.bench.claims.selection import Nothing, select
from potstill.errors import UsageError, did_you_mean
from potstill.evaluation.intervals import decide_by_interval

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


def decide(report: report_schema.Report, claims: Sequence[Claim]) -> list[report_schema.Decision]:
    """Decide every claim from what a report measured.

    PASS and FAIL are given only where the whole 95 % interval is on one side of the target, and for ratios of times
    and for memory where the value itself is outside the noise floor around it. What was disturbed while it was timed is
    not shown at all. Everything else is INCONCLUSIVE, with a reason.
    """
    return [_decide(report, claim, pick) for claim in claims for pick in select(report, claim)]


def check_required(claims: Sequence[Claim], wanted: Sequence[str]) -> None:
    """Refuse the id of a claim that nobody makes; `all` stands for every one.

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


def _decide(report: report_schema.Report, claim: Claim, pick: Selection | Nothing) -> report_schema.Decision:
    if isinstance(pick, Nothing):
        return _decision(claim, Selection(model=pick.subject, data=pick.where), reason=pick.reason)
    measure = MEASURES[claim.measure]
    answer = measure.read(report, pick)
    if isinstance(answer, str):
        return _decision(claim, pick, reason=answer)
    disturbed = answer.disturbed
    if measure.timed and not disturbed and not report.names_disturbed_rows:
        disturbed = next(iter(report.noise.flags), "").rstrip(".") or None
    if disturbed:
        return _decision(claim, pick, reason=f"the machine was disturbed: {disturbed}; bench again when it is quiet")
    floor = 0.0
    if measure.floor != "none":
        floor = (report.noise.at(pick.load) if measure.floor == "load" else report.noise.floors.get("memory")) or 0.0
    found, reason = _judge(claim, answer, floor=floor)
    return _decision(claim, pick, reading=answer, found=found, reason=reason)


def _judge(claim: Claim, reading: Reading, *, floor: float) -> tuple[report_schema.Verdict, str | None]:
    """Return the verdict, and why if there is none."""
    if reading.interval is None:
        return "INCONCLUSIVE", "it has no interval, so nobody knows how sure it is"
    without = verdict(reading.value, reading.interval, target=claim.target, direction=claim.direction)
    found = verdict(reading.value, reading.interval, target=claim.target, direction=claim.direction, floor=floor)
    if found == "PASS" and reading.worthless:
        return "INCONCLUSIVE", reading.worthless
    if found != "INCONCLUSIVE":
        return found, None
    if without == "INCONCLUSIVE":
        return found, "the target is within the interval"
    return found, f"it is nearer to the target than this machine's noise ({100 * floor:.1f}\u00a0%) lets one see"


def _decision(
    claim: Claim,
    pick: Selection,
    *,
    reading: Reading | None = None,
    found: report_schema.Verdict = "INCONCLUSIVE",
    reason: str | None = None,
) -> report_schema.Decision:
    measure = MEASURES[claim.measure]
    return report_schema.Decision(
        id=claim.id,
        claim=claim.claim,
        measure=measure.name,
        subject=pick.key or pick.model,
        against=pick.against or None,
        where=_where(measure, pick, read=reading is not None),
        definition=claim.definition or f"{measure.words[:1].upper()}{measure.words[1:]}.",
        source=claim.source,
        direction=claim.direction,
        target=claim.target,
        unit=measure.unit,
        value=None if reading is None else reading.value,
        interval=None if reading is None else reading.interval,
        verdict=found,
        summary=_summary(claim, pick, reading, reason),
        reason=reason,
    )


def _where(measure: Measure, pick: Selection, *, read: bool) -> str | None:
    """Name the load or the data."""
    if "data" in measure.fields:
        return pick.data or ("all data sets" if read else None)
    if pick.callers:
        return f"{pick.load}, {pick.callers} callers"
    return pick.load or None


def _summary(claim: Claim, pick: Selection, reading: Reading | None, reason: str | None) -> str:
    """Tell the decision in a manager's words."""
    measure = MEASURES[claim.measure]
    if reading is None:
        return f"Not decided for {_name(pick.key or pick.model)}: {reason}."
    told = measure.sentence.format(
        subject=_name(pick.key or pick.model),
        against=_name(pick.against),
        what=reading.what,
        value=measure.write(reading.value),
    )
    if reading.interval is not None and reading.interval[0] != reading.interval[1]:
        told += f" (95\u00a0% interval {measure.write_interval(reading.interval)})"
    told += reading.note
    if pick.load:
        told += f", at {pick.load}" + (" (batch × tokens)" if "×" in pick.load else "")
    open_end = f" Not decided: {reason}." if reason else ""
    return f"{_sentence(told)} Asked for: {_asked(claim, measure)}.{open_end}"


def _asked(claim: Claim, measure: Measure) -> str:
    """Write the target, with as many digits as it was given with."""
    amount = {"share": f"{100 * claim.target:g}\u00a0%", "×": f"{claim.target:g} times"}
    unit = f"\u00a0{measure.unit}" if measure.unit else ""
    return f"{claim.direction.replace('_', ' ')} {amount.get(measure.unit, f'{claim.target:g}{unit}')}"


def _name(key: str) -> str:
    """Name a row as one says it: `student int8 on torch-cpu`."""
    model, _, row = key.rpartition("/")
    return f"{model} {row}".strip().replace("@", " on ")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
