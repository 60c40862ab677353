"""The report's tables as text; the page, the Markdown and the terminal draw the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.bench.report import choose
from potstill.bench.report.wording import (
    DISTURBED,
    NOTHING,
    bounds,
    clean,
    count,
    listed,
    load_words,
    mb,
    millions,
    name_of,
    percentile,
    quantity,
    rate,
    score,
    with_interval,
)
from potstill.bench.report_schema import Contestant, Decision, Latency, Report

Rows = list[list[str]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first column names its row."""

    name: str
    title: str
    head: Sequence[str]
    groups: list[tuple[str, Rows]]
    """Rows under a heading that they share; the heading is empty where there is only one group."""
    note: str = ""

    def __bool__(self) -> bool:
        """Tell whether there is anything in it."""
        return any(rows for _, rows in self.groups)


def plain(name: str, title: str, head: Sequence[str], rows: Rows, *, note: str = "") -> Table:
    """Make a table without groups."""
    return Table(name, title, head, [("", rows)], note)


def name(report: Report, key: str) -> str:
    """Name a contestant by its key; a key that no row has is its own name."""
    row = report.contestant(key)
    return name_of(row) if row else clean(key)


def verdicts(report: Report) -> Table:
    """List every claim with its numbers."""
    rows = [
        [clean(claim.claim), claim.verdict, subject(report, claim), measured(claim), asked(claim), clean(claim.summary)]
        for claim in report.claims
    ]
    return plain("verdicts", "Verdicts", ("claim", "verdict", "about", "measured", "asked for", "in words"), rows)


def subject(report: Report, claim: Decision) -> str:
    """Say what a claim is about, and under which load or on which data."""
    against = f" against {name(report, claim.against)}" if claim.against else ""
    return f"{name(report, claim.subject)}{against}{f', {clean(claim.where)}' if claim.where else ''}"


def measured(claim: Decision) -> str:
    """Write what was found, with its interval."""
    return with_interval(claim.value, claim.interval, unit=claim.unit)


def asked(claim: Decision) -> str:
    """Write what was asked for."""
    return f"{claim.direction.replace('_', ' ')} {quantity(claim.target, claim.unit)}"


def overview(report: Report) -> Table:
    """Show every contestant at a glance: size, speed, quality, memory."""
    loads, quality = choose.main_loads(report), choose.main_quality(report)
    memory = choose.by_key(report.memory)
    scores = choose.scores_of(quality) if quality else {}
    head = ["contestant", "files, MB", *(f"p50 at {load}, ms" for load in loads)]
    head += ["times as fast", quality.metric.replace("_", " ") if quality else "score", "kept", "peak memory, MB"]
    rows = []
    for row in report.contestants:
        found, kept = scores.get(row.key), choose.retention_of(quality, row.key) if quality else None
        rows.append([
            name_of(row), mb(row.file_bytes),
            *(_p50(choose.latency_at(report, load).get(row.key)) for load in loads),
            _times(report, row), score(found.value if found else None),
            with_interval(kept.kept, kept.kept_interval, unit="share") if kept else NOTHING,
            mb(memory[row.key].peak_bytes) if row.key in memory else NOTHING,
        ])  # fmt: skip
    # What was measured of nobody needs no column.
    there = [at for at in range(len(head)) if not at or any(row[at] != NOTHING for row in rows)]
    rows = [[row[at] for at in there] for row in rows]
    return plain("overview", "At a glance", [head[at] for at in there], rows, note=_overview_note(report))


def _times(report: Report, row: Contestant) -> str:
    ratio = choose.ratio_at(report, row.key, choose.main_load(report))
    if ratio is not None and ratio.disturbed:
        return DISTURBED
    return f"{ratio.value:.2f} ({bounds(ratio.interval)})" if ratio else NOTHING


def _p50(row: Latency | None) -> str:
    return DISTURBED if row is not None and row.disturbed else percentile(row, "p50")


def _overview_note(report: Report) -> str:
    load, quality = choose.main_load(report), choose.main_quality(report)
    baseline = name(report, report.baseline)
    about = [*(["times as fast"] if report.ratios else []), *(["kept"] if quality else [])]
    parts = [f"{listed(about)} against {baseline}, with 95\u00a0% intervals"] if about else []
    parts += [f"times as fast at {load} ({load_words(load)})"] if load and report.ratios else []
    parts += [f"{quality.metric.replace('_', ' ')} and kept on {clean(quality.name)}"] if quality else []
    note = "; ".join(parts)
    return f"{note[0].upper()}{note[1:]}." if note else ""


def models(report: Report) -> Table:
    """Show what each model is, whatever runs it."""
    known = {length for model in report.models.values() for length in model.flops_per_token or {}}
    # Those that were timed, where they are known, else the longest.
    timed = {row.load.num_tokens for row in report.latency if row.load.num_tokens in known}
    lengths = sorted(timed or known)[-2:]
    head = ["model", "parameters", "of the encoder", "of embeddings", *(f"FLOP per token at {at}" for at in lengths),
            "longest input", "task"]  # fmt: skip
    rows = [
        [clean(title), count(model.parameters), count(model.encoder_parameters), millions(model.embedding_parameters),
         *(rate((model.flops_per_token or {}).get(at)) for at in lengths), count(model.max_length),
         f"{model.task}{f', {model.problem_type}' if model.problem_type else ''}"]
        for title, model in report.models.items()
    ]  # fmt: skip
    note = "FLOP: floating-point operations, 2 per weight of every matrix product, and attention." if lengths else ""
    return plain("models", "Models", head, rows, note=note)


def files(report: Report) -> Table:
    """Show what each contestant loads."""
    rows = [
        [name_of(row), row.runner, row.device, str(row.threads), mb(row.file_bytes), mb(row.compressed_bytes),
         "yes" if row.batch_invariant else "no"]
        for row in report.contestants
    ]  # fmt: skip
    head = ("contestant", "engine", "device", "threads", "files, MB", "compressed, MB", "same answer in any batch")
    return plain("files", "Files", head, rows)


def failures(report: Report) -> Table:
    """Show what could not be measured."""
    rows = [
        [name(report, row.key), row.stage, clean(row.where) if row.where else "all of it", row.kind, clean(row.reason)]
        for row in report.failures
    ]
    return plain("failures", "What failed", ("contestant", "stage", "lost", "kind", "reason"), rows)
