"""What the DistilBERT paper claims, how each claim is defined here, and the verdicts.

Sanh, Debut, Chaumond, Wolf: DistilBERT, a distilled version of BERT (2019), section 4: "40 % smaller", "60 %
faster", "97 % of the language understanding". The paper leaves the definitions open; these are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.bench.wording import percent
from potstill.timing.ratio import Estimate, exactly, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence that a bench decides."""

    id: str
    claim: str
    definition: str
    target: float
    source: str


SIZE = Claim(
    id="size",
    claim="40 % smaller",
    definition=(
        "1 - parameters of the student's encoder / parameters of the teacher's, task heads left out as in the paper, "
        "against 0.40 without rounding. Counted, so the interval is the value itself. File bytes are shown beside it."
    ),
    target=0.40,
    source="The paper's 66 M against 110 M. Counted exactly, 66,362,880 against 109,482,240 is 39.4 %.",
)
SPEED = Claim(
    id="speed",
    claim="60 % faster",
    definition=(
        "p50 latency of the teacher / p50 latency of the student within a round, the median over rounds: how many "
        "times as many texts per second. Both fp32, same engine and threads, batch 1 and the longest input measured. "
        "95 % interval by bootstrap over the paired rounds."
    ),
    target=1.6,
    source="The paper's 668 s against 410 s is 1.63 times the throughput, which is only 39 % less time.",
)
QUALITY = Claim(
    id="quality",
    claim="97 % as good",
    definition=(
        "score of the student / score of the teacher, both fp32, on the same examples by the task's metric. 95 % "
        "interval by paired bootstrap over examples."
    ),
    target=0.97,
    source="The paper's GLUE table gives 96.9 % with WNLI, 96.2 % without, 95.7 % as the mean of the ratios.",
)
CLAIMS = (SIZE, SPEED, QUALITY)

# DistilBERT paper, table 1 (development sets, medians of 5 runs).
GLUE_BERT = {
    "CoLA": 56.3, "MNLI": 84.7, "MRPC": 88.6, "QNLI": 91.8, "QQP": 89.6, "RTE": 69.3, "SST-2": 92.7, "STS-B": 89.0,
    "WNLI": 53.5,
}  # fmt: skip
GLUE_DISTILBERT = {
    "CoLA": 51.3, "MNLI": 82.2, "MRPC": 87.5, "QNLI": 89.2, "QQP": 88.5, "RTE": 59.9, "SST-2": 91.3, "STS-B": 86.9,
    "WNLI": 56.3,
}  # fmt: skip
# 71 examples, on which answering the more frequent label beats both models.


def decide_size(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Decide the size claim from the report's `models`."""
    teacher, student = (_encoder_parameters(models[role]) for role in ("teacher", "student"))
    value = 1 - student / teacher
    word = f"{percent(value)} fewer" if value >= 0 else f"{percent(-value)} more"
    summary = f"The student's encoder has {word} parameters than the teacher's ({student:,} against {teacher:,})."
    row = _decided(SIZE, exactly(value), summary)
    files = {
        precision: record["size_bytes"] / models["teacher"]["precisions"][precision]["size_bytes"]
        for precision, record in models["student"]["precisions"].items()
        if precision in models["teacher"]["precisions"]
    }
    return row | {"file_size_ratio": files}


def _encoder_parameters(model: Mapping[str, Any]) -> int:
    """Return the encoder's parameters; all of them for a bundle that does not tell them apart."""
    return int(model.get("architecture", {}).get("encoder_parameters", model["parameters"]))


def decide_speed(estimate: Estimate | None, *, cell: str, reason: str = "") -> dict[str, Any]:
    """Decide the speed claim from the ratio of the latencies, or say why there is none."""
    if estimate is None:
        return _undecided(SPEED, reason) | {"cell": cell}
    saved = 1 - 1 / estimate.value
    time = f"{percent(saved, digits=0)} less time" if saved >= 0 else f"{percent(-saved, digits=0)} more time"
    summary = (
        f"The student answers {estimate.value:.2f} times as many texts per second as the teacher "
        f"(95\u00a0% interval {estimate.low:.2f} to {estimate.high:.2f}), which is {time} per text, at {cell} "
        "(batch × tokens). Asked for are 1.6 times as many."
    )
    return _decided(SPEED, estimate, summary) | {"cell": cell}


def decide_quality(estimate: Estimate | None, *, metric: str = "score", reason: str = "") -> dict[str, Any]:
    """Decide the quality claim from the retention, or say why there is none."""
    if estimate is None:
        return _undecided(QUALITY, reason)
    summary = (
        f"The student keeps {percent(estimate.value)} of the teacher's {metric.replace('_', ' ')} "
        f"(95\u00a0% interval {percent(estimate.low)} to {percent(estimate.high)})."
    )
    return _decided(QUALITY, estimate, summary)


def _decided(claim: Claim, estimate: Estimate, summary: str) -> dict[str, Any]:
    answer = verdict(estimate, claim.target)
    return _head(claim) | {
        "value": estimate.value, "interval": estimate.interval(), "target": claim.target, "verdict": answer,
        "summary": summary,
    }  # fmt: skip


def _undecided(claim: Claim, reason: str) -> dict[str, Any]:
    return _head(claim) | {
        "value": None, "interval": None, "target": claim.target, "verdict": "INCONCLUSIVE", "reason": reason,
        "summary": f"Not measured: {reason}.",
    }  # fmt: skip


def _head(claim: Claim) -> dict[str, Any]:
    return {"id": claim.id, "claim": claim.claim, "definition": claim.definition, "source": claim.source}
