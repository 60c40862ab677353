"""The report as one HTML page that needs nothing but itself: no network, no script."""

from collections import Counter
from typing import Any

from potstill.bench.report import tables
from potstill.bench.report.charts import charts
from potstill.bench.report.formatting import NOTHING, clean, count, listed, mb, percent, quantity, rate, sentence
from potstill.bench.report.glossary import VERDICTS, definitions
from potstill.bench.report.headline import answers, title
from potstill.bench.report.style import DARK, LIGHT, MARKERS, engine_order, model_order
from potstill.bench.report.tables import Table
from potstill.bench.report_schema import Decision, Report

# Of a gauge: what is left free at both ends, as a share of what it shows.
_MARGIN = 0.22


def to_html(report: Report) -> str:
    """Render the report as one HTML page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("potstill.bench.report"),
        # Names of models, labels and data sets come from other people's files.
        autoescape=True,
        # A misspelt name is an error and not a gap in the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clean": clean, "sentence": sentence}
    return environment.get_template("report.html.j2").render(
        report=report,
        title=title(report),
        answers=answers(report),
        tally=_tally(report),
        claims=[_card(claim) for claim in report.claims],
        pictures=charts(report),
        tables=_tables(report),
        quality=[_quality(report, place) for place in range(len(report.quality))],
        no_better=tables.no_better(report),
        definitions=definitions(report),
        hashes=_hashes(report),
        machine=_machine(report),
        noise=_noise(report),
        key=_key(report),
        palette=list(zip(LIGHT, DARK, strict=True)),
        settings=[(name, str(value)) for name, value in report.config.items()],
    )


def _tally(report: Report) -> str:
    """Say how many claims hold: `1 claim holds, 2 do not, 1 cannot be decided`."""
    found = Counter(claim.verdict for claim in report.claims)
    if not found:
        return "No claim was put to the test."
    holds, fails, open_ = found["PASS"], found["FAIL"], found["INCONCLUSIVE"]
    words = [f"{holds or 'no'} claim{'' if holds == 1 else 's'} hold{'s' if holds == 1 else ''}"]
    words += [f"{fails} {'does' if fails == 1 else 'do'} not"] if fails else []
    words += [f"{open_} cannot be decided"] if open_ else []
    return sentence(f"{listed(words)}.")


def _card(claim: Decision) -> dict[str, Any]:
    summary, reason = clean(claim.summary), clean(claim.reason or "")
    return {
        "claim": clean(claim.claim),
        "verdict": claim.verdict,
        "mark": VERDICTS[claim.verdict][0],
        "number": quantity(claim.value, claim.unit),
        "summary": sentence(summary) if claim.value is None else summary,
        # The summary of an undecided claim ends in the reason already.
        "reason": "" if reason in summary else reason,
        "measured": tables.measured(claim),
        "asked": tables.asked(claim),
        "gauge": gauge(claim),
    }


def gauge(claim: Decision) -> dict[str, float | bool] | None:
    """Return where value, interval and target stand on a line from 0 to 100; None where nothing was measured."""
    if claim.value is None:
        return None
    low, high = claim.interval or (claim.value, claim.value)
    ends = [low, high, claim.value, claim.target]
    # Where all of them coincide any width but 0 will do.
    start, width = min(ends), max(ends) - min(ends) or abs(claim.target) or 1.0
    places = {"low": low, "high": high, "value": claim.value, "target": claim.target}
    scaled = {
        name: round(100 * (_MARGIN + (value - start) / width * (1 - 2 * _MARGIN)), 2) for name, value in places.items()
    }
    return scaled | {"at_least": claim.direction == "at_least"}


def _tables(report: Report) -> dict[str, Table]:
    """Return every table but those of single data sets, by name."""
    makers = (
        tables.failures,
        tables.overview,
        tables.models,
        tables.files,
        tables.latency,
        tables.ratios,
        tables.throughput,
        tables.scaling,
        tables.memory,
        tables.cold_start,
        tables.energy,
        tables.glue,
    )
    return {table.name: table for table in (make(report) for make in makers)}


def _hashes(report: Report) -> list[tuple[str, str, str]]:
    """Return (of what, file, SHA-256) of every model and data file."""
    models = [
        (tables.contestant_name(report, row.key), clean(file), digest)
        for row in report.contestants
        for file, digest in row.sha256.items()
    ]
    data = [(clean(row.name), f"{clean(row.data)} ({clean(row.split)})", row.data_sha256) for row in report.quality]
    return models + data


def _quality(report: Report, place: int) -> dict[str, Any]:
    quality = report.quality[place]
    confusions = [
        {
            "rows": "the right labels" if found.rows == "label" else tables.contestant_name(report, found.rows),
            "columns": tables.contestant_name(report, found.columns),
            "labels": [clean(label) for label in found.labels],
            "counts": [[(count(cell), _shade(cell, row)) for cell in row] for row in found.counts],
        }
        for found in quality.confusion
    ]
    pairs = list(dict.fromkeys((row.baseline, row.candidate) for row in quality.differences))
    differences = [
        {
            "baseline": tables.contestant_name(report, baseline),
            "candidate": tables.contestant_name(report, candidate),
            "rows": [row for row in quality.differences if (row.baseline, row.candidate) == (baseline, candidate)],
        }
        for baseline, candidate in pairs
    ]
    return {
        "name": clean(quality.name),
        "id": f"data-{place}",
        "table": tables.quality(report, quality),
        "like_for_like": tables.like_for_like(report, quality),
        "labels": tables.labels(report, quality),
        "confusions": confusions,
        "differences": differences,
    }


def _shade(cell: int, row: list[int]) -> int:
    """Return how dark a cell is, in per cent of the ink: its share of the row; never so dark that text suffers."""
    return round(18 * cell / sum(row)) if sum(row) else 0


def _machine(report: Report) -> list[tuple[str, str]]:
    machine = report.environment
    limit = f", limited to {mb(machine.memory_limit_bytes)} MB" if machine.memory_limit_bytes else ""
    quota = f", a quota of {machine.cpu_quota:g}" if machine.cpu_quota else ""
    flags = {"turbo": machine.turbo, "SMT": machine.smt, "spinning": machine.spinning}
    states = [f"{name} {'on' if value else 'off'}" for name, value in flags.items() if value is not None]
    pairs = [
        ("CPU", f"{clean(machine.cpu)} ({', '.join(machine.cpu_features) or 'no known features'})"),
        ("Cores", f"{machine.cores} of {machine.cores_of_host or 'an unknown number'}{quota}"),
        ("Threads", f"{machine.threads} per model"),
        ("Clock", ", ".join([*([f"governor {machine.governor}"] if machine.governor else []), *states])),
        ("Memory", f"{mb(machine.memory_bytes)} MB{limit}"),
        *(("GPU", ", ".join(f"{name} {value}" for name, value in gpu.items())) for gpu in machine.gpus),
        ("Load", _load(machine.load_before, machine.load_after)),
        ("System", f"{machine.os}, Python {machine.python}"),
        ("Packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())),
    ]
    peaks = machine.peaks.model_dump(exclude={"threads"}) if machine.peaks else {}
    reached = [
        f"{name.split('_')[0]} {rate(value)}{name.split('_')[1].upper().rstrip('S')}/s"
        for name, value in peaks.items()
        if value
    ]
    return [(name, clean(value)) for name, value in [*pairs, ("Peak, measured", ", ".join(reached))] if value]


def _load(before: list[float] | None, after: list[float] | None) -> str:
    found = [f"{loads[0]:.2f} {when}" for loads, when in ((before, "before"), (after, "after")) if loads]
    return f"{', '.join(found)} (1 minute)" if found else ""


def _noise(report: Report) -> list[tuple[str, str]]:
    noise = report.noise
    shares = [
        ("Noise floor", noise.floor),
        ("Stolen by other guests", noise.steal_share),
        ("Held back by the quota", noise.throttled_share),
        ("Other processes", noise.others_share),
    ]
    pairs = [(name, percent(share) if share is not None else f"{NOTHING} (not known)") for name, share in shares]
    return [*pairs, ("Rounds measured anew", count(noise.repeated_rounds))]


def _key(report: Report) -> dict[str, list[tuple[str, Any]]]:
    """Return what colours, marks and lines stand for, as pairs of a name and how it is drawn."""
    precisions = list(dict.fromkeys(row.precision for row in report.contestants))
    engines = engine_order(report)
    return {
        "models": [(clean(name), place % len(LIGHT)) for place, name in enumerate(model_order(report))],
        "precisions": [(name, name if name in MARKERS else "other") for name in precisions],
        "engines": [(name, place > 0) for place, name in enumerate(engines)] if len(engines) > 1 else [],
    }
