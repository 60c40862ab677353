"""The tables of time and memory: latency, ratios, throughput, threads, parts of memory, cold start, energy."""

from collections.abc import Callable

from potstill.bench.report import choose
from potstill.bench.report.tables import Rows, Table, name, plain
from potstill.bench.report.wording import (
    NOTHING,
    PERCENTILES,
    bounds,
    clean,
    count,
    listed,
    load_words,
    mb,
    ms,
    number,
    percent,
    percentile,
)
from potstill.bench.report_schema import ColdStart, Latency, Load, Ratio, Report, Scaling, Throughput

# Behind the name of a row that the machine disturbed.
_MARK = " †"
_MARKED = "†: disturbed, so not to be believed; it decides nothing."


def _noted(note: str, *, disturbed: bool) -> str:
    return f"{note} {_MARKED}".strip() if disturbed else note


def _named(report: Report, row: Latency | Throughput | Scaling | ColdStart) -> str:
    return name(report, row.key) + (_MARK if row.disturbed else "")


def _by_load(report: Report, rows_at: Callable[[Load], Rows]) -> list[tuple[str, Rows]]:
    found = [(f"{load}: {load_words(load)}", rows_at(load)) for load in choose.loads_of(report)]
    return [(title, rows) for title, rows in found if rows]


def latency(report: Report) -> Table:
    """Show every percentile of every contestant under every load."""
    rows = choose.in_order(report, report.latency)
    return Table(
        "latency", "Latency", ("contestant", *(f"{at}, ms" for at in PERCENTILES), "calls", "texts/s", "drift",
                               "of peak"),
        _by_load(report, lambda load: [_latency_row(report, row) for row in rows if row.load == load]),
        note=_noted(
            "A percentile that the calls cannot carry says how many more it needs. Behind p50 its 95\u00a0% interval. "
            "Drift is the last third's median / the first third's; an asterisk: had not settled when it began.",
            disturbed=any(row.disturbed for row in rows),
        ),
    )  # fmt: skip


def _latency_row(report: Report, row: Latency) -> list[str]:
    p50 = row.intervals.get("p50")
    first = f"{ms(row.p50_ms)} ({ms(p50[0])} to {ms(p50[1])})" if row.p50_ms and p50 else percentile(row, "p50")
    drift = NOTHING if row.drift is None else f"{row.drift:.3f}"
    return [
        _named(report, row) + ("" if row.stationary else " *"), first,
        *(percentile(row, at) for at in PERCENTILES[1:]), count(row.samples), number(row.throughput_per_s), drift,
        percent(row.peak_share, digits=0),
    ]  # fmt: skip


COMPARISONS = {
    "like_for_like": "like for like",
    "to_baseline": "against the baseline",
    "to_own_fp32": "against its own fp32",
    "again": "baseline against itself",
}


def ratios(report: Report) -> Table:
    """Show every ratio of speeds."""
    order = list(COMPARISONS)
    rows = sorted(report.ratios, key=lambda row: order.index(row.comparison))
    return Table(
        "ratios", "Times as fast", ("contestant", "against", "comparison", "times as fast", "95 % interval", "finding"),
        _by_load(report, lambda load: [_ratio_row(report, row) for row in rows if row.load == load]),
        note="From rounds that both ran in; a ratio within the noise floor shows no difference.",
    )  # fmt: skip


def _ratio_row(report: Report, row: Ratio) -> list[str]:
    candidate = "the same again" if row.comparison == "again" else name(report, row.candidate)
    return [candidate, name(report, row.baseline), COMPARISONS[row.comparison], f"{row.value:.2f}",
            bounds(row.interval), row.finding]  # fmt: skip


def throughput(report: Report) -> Table:
    """Show texts per second, by batch size and callers."""
    rows = choose.in_order(report, report.throughput)
    cells = sorted({(row.callers, row.load.num_tokens or 0, row.load.batch_size) for row in rows})
    groups = []
    for callers, tokens, batch in cells:
        title = f"{batch}×{tokens}, {'1 caller' if callers == 1 else f'{callers} callers'}"
        there = [row for row in rows if (row.callers, row.load.num_tokens or 0, row.load.batch_size) == (
            callers, tokens, batch)]  # fmt: skip
        groups.append((title, [
            [_named(report, row), number(row.texts_per_s), f"{number(row.interval[0])} to {number(row.interval[1])}",
             ms(row.p50_ms)] for row in there
        ]))  # fmt: skip
    return Table(
        "throughput", "Throughput", ("contestant", "texts/s", "95 % interval", "p50 of a call, ms"), groups,
        note=_noted("", disturbed=any(row.disturbed for row in rows)),
    )  # fmt: skip


def scaling(report: Report) -> Table:
    """Show p50 by threads, and how many times as fast as one."""
    steps = sorted({row.threads for row in report.scaling})
    found = {(row.key, row.threads): f"{ms(row.p50_ms)} ({row.speedup:.2f}×)" for row in report.scaling}
    keys = list(dict.fromkeys(row.key for row in choose.in_order(report, report.scaling)))
    disturbed = {row.key for row in report.scaling if row.disturbed}
    rows = [
        [name(report, key) + (_MARK if key in disturbed else ""), *(found.get((key, at), NOTHING) for at in steps)]
        for key in keys
    ]
    head = ["contestant", *(f"{step} {'thread' if step == 1 else 'threads'}, ms" for step in steps)]
    where = listed(list(dict.fromkeys(str(row.load) for row in report.scaling)))
    note = _noted(f"p50 at {where}; in brackets times as fast as 1 thread.", disturbed=bool(disturbed))
    return plain("scaling", "Thread scaling", head, rows, note=note)


def memory(report: Report) -> Table:
    """Show memory by part, in MB."""
    gpu = any(row.gpu_peak_reserved_bytes is not None for row in report.memory)
    head = ["contestant", "interpreter", "imports", "loaded", "peak of loading", "peak", "after", "private after",
            "shared out after"] + (["GPU allocated", "GPU reserved"] if gpu else [])  # fmt: skip
    rows = [
        [name(report, row.key), *map(mb, (
            row.interpreter_rss_bytes, row.imported_rss_bytes, row.loaded_rss_bytes, row.loading_peak_bytes,
            row.peak_bytes, row.after_rss_bytes, row.after_uss_bytes, row.after_pss_bytes,
        )), *([mb(row.gpu_peak_allocated_bytes), mb(row.gpu_peak_reserved_bytes)] if gpu else [])]
        for row in choose.in_order(report, report.memory)
    ]  # fmt: skip
    limits = sorted({row.limit_bytes for row in report.memory if row.limit_bytes})
    limit = f" The container allows {listed([f'{mb(at)} MB' for at in limits])}." if limits else ""
    note = (
        "Resident memory after each step, the median over the launches. Private is what would be free again if the "
        f"process ended.{limit}"
    )
    return plain("memory", "Memory, MB", head, rows, note=note)


def cold_start(report: Report) -> Table:
    """Show the first answer of a fresh process by part, in ms."""
    rows = [
        [_named(report, row), ms(row.process_ms), ms(row.import_ms), ms(row.load_ms), ms(row.first_answer_ms),
         ms(row.total_ms), f"{ms(row.interval[0])} to {ms(row.interval[1])}", str(row.starts)]
        for row in choose.in_order(report, report.cold_start)
    ]  # fmt: skip
    head = ("contestant", "process", "imports", "load", "first answer", "total", "interval", "starts")
    note = _noted("", disturbed=any(row.disturbed for row in report.cold_start))
    return plain("cold-start", "Cold start, ms", head, rows, note=note)


def energy(report: Report) -> Table:
    """Show joules where there is a source."""
    rows = [
        [
            name(report, str(row.get("key", ""))) + (_MARK if row.get("disturbed") else ""),
            clean(str(row.get("load", ""))),
            *(_joules(row.get(at)) for at in ("joules_per_text", "watts")),
        ]
        for row in report.energy.rows
    ]
    return plain("energy", "Energy", ("contestant", "load", "joules per text", "watts"), rows)


def _joules(value: object) -> str:
    return number(value) if isinstance(value, int | float) else NOTHING
