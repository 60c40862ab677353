"""The claims of a made report, decided from its own numbers."""

from potstill.bench import report_schema


def decision(name, claim, verdict, **fields):
    """Return one decided claim on student/fp32 against teacher/fp32; `fields` replace and complete it."""
    facts = {
        "subject": "student/fp32",
        "against": "teacher/fp32",
        "where": None,
        "direction": "at_least",
        "unit": "",
        "source": "",
        "reason": None,
    }
    return report_schema.Decision(id=name, claim=claim, verdict=verdict, **(facts | fields))


def undecided():
    """Return the claim on quality where there is no data."""
    return decision(
        "quality",
        "97 % as good",
        "INCONCLUSIVE",
        measure="score_kept",
        unit="share",
        target=0.97,
        value=None,
        interval=None,
        definition="Score of the candidate / score of the baseline, on the same examples.",
        summary="Whether the student is 97 % as good cannot be said: no data was given.",
        reason="no data was given (--data)",
    )


def verdict_of(interval, target, direction):
    """Return the verdict by which side of the target the interval is on."""
    low, high = interval
    if direction == "at_most":
        low, high, target = -high, -low, -target
    return "PASS" if low >= target else "FAIL" if high < target else "INCONCLUSIVE"


def made_claims(parameters, of, *, peak, quality, ratios):
    """Return the claims on a student of so many `parameters` against a teacher `of` so many."""
    saved = 1 - parameters / of
    wanted = "like_for_like", "student/fp32", "1×128"
    times = next(r for r in ratios if (r.comparison, r.candidate, str(r.load)) == wanted)
    kept = next(r for r in quality[0].retention if r.candidate == "student/fp32")
    assert kept.kept is not None
    assert kept.kept_interval is not None
    peak /= 1e6
    facts = [
        (
            "size",
            "40 % smaller",
            "encoder_parameters_saved",
            saved,
            (saved, saved),
            0.40,
            "at_least",
            None,
            "share",
            f"The student's encoder has {100 * saved:.1f} % fewer parameters than the teacher's "
            f"({parameters:,} against {of:,}).",
            "1 - parameters of the candidate's encoder / the baseline's, without task heads and without rounding.",
        ),
        (
            "speed",
            "60 % faster",
            "speed_ratio",
            times.value,
            times.interval,
            1.6,
            "at_least",
            "1×128",
            "×",
            f"The student answers {times.value:.2f} times as many texts per second as the teacher.",
            "p50 of the baseline / p50 of the candidate within a round, the median over rounds; both in one precision.",
        ),
        (
            "quality",
            "97 % as good",
            "score_kept",
            kept.kept,
            kept.kept_interval,
            0.97,
            "at_least",
            "SST-2",
            "share",
            f"The student keeps {100 * kept.kept:.1f} % of the teacher's accuracy on SST-2.",
            "Score of the candidate / score of the baseline, both fp32, on the same examples.",
        ),
        (
            "memory",
            "at most 400 MB resident",
            "peak_mb",
            peak,
            (peak, peak),
            400.0,
            "at_most",
            None,
            "MB",
            f"The student needs {peak:.0f} MB at its peak, {peak - 400:.0f} MB more than allowed.",
            "The highest resident set of a process that holds this model alone.",
        ),
    ]
    return [
        decision(
            name,
            claim,
            verdict_of(interval, target, direction),
            measure=measure,
            value=value,
            interval=interval,
            target=target,
            direction=direction,
            where=where,
            unit=unit,
            summary=summary,
            definition=definition,
            source="Sanh et al. 2019, section 4." if name != "memory" else "claims.yaml",
        )
        for name, claim, measure, value, interval, target, direction, where, unit, summary, definition in facts
    ]
