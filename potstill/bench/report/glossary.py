"""What every word of a report means, in the order in which a reader meets them."""

from potstill.bench.report.formatting import clean, percent
from potstill.bench.report_schema import Report

VERDICTS = {
    "PASS": ("✓", "The claim holds: the whole 95 % interval is on the side that was asked for."),
    "FAIL": ("✗", "The claim does not hold: the whole 95 % interval is on the other side."),
    "INCONCLUSIVE": (
        "?",
        "It cannot be decided: the interval holds the target, or something was not measured, or the machine was "
        "disturbed meanwhile.",
    ),
}
# The numbers of `statistics.MIN_SAMPLES`: MLPerf's early stopping with 99 % confidence.
CALLS_NEEDED = "p50 needs 11 calls, p90 64, p95 130, p99 662"


def definitions(report: Report) -> list[tuple[str, str]]:
    """Return pairs of a word and what it means here: first the claims, then what the report itself speaks of."""
    claims = {claim.id: claim for claim in report.claims}
    pairs = [
        (clean(claim.claim), f"{clean(claim.definition)} {clean(claim.source)}".strip()) for claim in claims.values()
    ]
    pairs += [(verdict, meaning) for verdict, (_, meaning) in VERDICTS.items()]
    pairs += [pair for part, words in _WORDS.items() if getattr(report, part) for pair in words.items()]
    if report.noise.floor is not None:
        by_load = ", ".join(f"{percent(floor)} at {load}" for load, floor in report.noise.floors.items())
        meaning = (
            "How far from 1 the interval of the baseline against a second process of itself reaches: a ratio nearer "
            f"to 1 shows no difference. Here {by_load or percent(report.noise.floor)}."
        )
        pairs.append(("Noise floor", meaning))
    return pairs


_WORDS: dict[str, dict[str, str]] = {
    "contestants": {
        "95 % interval": (
            "By bootstrap: over rounds for times, over examples for scores, paired where two are compared. What "
            "is counted has no interval."
        ),
        "Load": (
            "1×128 is one text of 128 tokens per call, 8×16 eight texts of 16. Own texts are the data's, in their "
            "own lengths, tokenised before; with tokenisation inside the time where it says so."
        ),
        "Compressed": "The files through zlib, as a download or a container's layer holds them.",
    },
    "latency": {
        "p50, p90, p95, p99": (
            "So many per cent of the calls took at most so long. A percentile is shown only where there are calls "
            f"enough to carry it: {CALLS_NEEDED}."
        ),
        "Texts per second": "In the table of latencies: batch size / p50, of one caller.",
        "Share of the peak": (
            "Floating-point operations per second of a call, divided by the best that a bare matrix product of "
            "the same number type reached, which took its turns among the rows. Not shown where it would be above "
            "100 %, or where the machine was disturbed."
        ),
    },
    "ratios": {
        "Times as fast": (
            "p50 of the one / p50 of the other within a round, the median over rounds. Twice as fast is half the time."
        ),
        "Like for like": "Against the baseline model in the same precision and engine.",
    },
    "throughput": {
        "Throughput": "Texts per second of one process that several callers ask at once.",
    },
    "memory": {
        "Peak memory": "The highest resident set of a process that holds one model alone, over all loads.",
        "Private, shared out": (
            "Private (USS) would be free again if the process ended; shared out (PSS) divides pages that several "
            "processes hold."
        ),
    },
    "cold_start": {
        "Cold start": (
            "From starting a fresh process to its first answer: interpreter, imports, hash check and session, and "
            "the first text."
        ),
    },
    "quality": {
        "Kept": "Score of the one / score of the other, on the same examples.",
        "Gained, lost": "Examples that only the candidate has right, and that only the baseline has right.",
        "McNemar, exact": "Whether gained and lost differ more than chance would have it: a two-sided binomial test.",
        "Same decision": "Share of the examples on which it decides as the baseline does, right or wrong.",
        "Worst label": (
            "The label, or type of entity, of which it finds the least share (recall); the interval is that of the "
            "lowest recall, whichever label has it. A label that few examples have can be the worst by chance."
        ),
        "Tokens per text": (
            "By each model's own tokenizer, cut to its longest input; in brackets how many times the baseline's. With "
            "a smaller vocabulary the same text is more tokens, and costs more than a fixed length shows."
        ),
        "Calibration error": (
            "How far its confidence is from how often it is right, on average over 15 bins (Guo et al. 2017); 0 "
            "is best."
        ),
    },
    "glue": {
        "Macro": (
            "Mean score of the candidate / mean score of the baseline. Without WNLI unless it says so: of its 71 "
            "examples, always giving the more frequent answer has most right."
        ),
        "Mean of ratios, worst task": "The mean, and the least, of what each task keeps.",
    },
}
"""What each part of a report speaks of, shown where the report has that part."""
