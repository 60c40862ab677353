"""The report's tables as text; the page, the Markdown and the terminal draw the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from potstill.bench.report import selection
from potstill.bench.report.formatting import (
    DISTURBED,
    NOTHING,
    PERCENTILES,
    bounds,
    clean,
    count,
    listed,
    load_words,
    mb,
    millions,
    ms,
    name_of,
    number,
    p_value,
    percent,
    percentile,
    quantity,
    rate,
    score,
    with_interval,
)
from potstill.bench.report_schema import (
    ColdStart,
    Contestant,
    Decision,
    Latency,
    Load,
    Quality,
    Ratio,
    Report,
    Retention,
    Scaling,
    Score,
    Throughput,
)

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
    loads, quality = selection.main_loads(report), selection.main_quality(report)
    memory = selection.by_key(report.memory)
    scores = selection.scores_of(quality) if quality else {}
    head = ["contestant", "files, MB", *(f"p50 at {load}, ms" for load in loads)]
    head += ["times as fast", quality.metric.replace("_", " ") if quality else "score", "kept", "peak memory, MB"]
    rows = []
    for row in report.contestants:
        found, kept = scores.get(row.key), selection.retention_of(quality, row.key) if quality else None
        rows.append(
            [
                name_of(row),
                mb(row.file_bytes),
                *(_p50(selection.latency_at(report, load).get(row.key)) for load in loads),
                _times(report, row),
                score(found.value if found else None),
                with_interval(kept.kept, kept.kept_interval, unit="share") if kept else NOTHING,
                mb(memory[row.key].peak_bytes) if row.key in memory else NOTHING,
            ]
        )
    # What was measured of nobody needs no column.
    there = [at for at in range(len(head)) if not at or any(row[at] != NOTHING for row in rows)]
    rows = [[row[at] for at in there] for row in rows]
    return plain("overview", "At a glance", [head[at] for at in there], rows, note=_overview_note(report))


def _times(report: Report, row: Contestant) -> str:
    ratio = selection.ratio_at(report, row.key, selection.main_load(report))
    if ratio is not None and ratio.disturbed:
        return DISTURBED
    return f"{ratio.value:.2f} ({bounds(ratio.interval)})" if ratio else NOTHING


def _p50(row: Latency | None) -> str:
    return DISTURBED if row is not None and row.disturbed else percentile(row, "p50")


def _overview_note(report: Report) -> str:
    load, quality = selection.main_load(report), selection.main_quality(report)
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
    head = [
        "model",
        "parameters",
        "of the encoder",
        "of embeddings",
        *(f"FLOP per token at {at}" for at in lengths),
        "longest input",
        "task",
    ]
    rows = [
        [
            clean(title),
            count(model.parameters),
            count(model.encoder_parameters),
            millions(model.embedding_parameters),
            *(rate((model.flops_per_token or {}).get(at)) for at in lengths),
            count(model.max_length),
            f"{model.task}{f', {model.problem_type}' if model.problem_type else ''}",
        ]
        for title, model in report.models.items()
    ]
    note = "FLOP: floating-point operations, 2 per weight of every matrix product, and attention." if lengths else ""
    return plain("models", "Models", head, rows, note=note)


def files(report: Report) -> Table:
    """Show what each contestant loads."""
    rows = [
        [
            name_of(row),
            row.runner,
            row.device,
            str(row.threads),
            mb(row.file_bytes),
            mb(row.compressed_bytes),
            "yes" if row.batch_invariant else "no",
        ]
        for row in report.contestants
    ]
    head = ("contestant", "engine", "device", "threads", "files, MB", "compressed, MB", "same answer in any batch")
    return plain("files", "Files", head, rows)


def failures(report: Report) -> Table:
    """Show what could not be measured."""
    rows = [
        [name(report, row.key), row.stage, clean(row.where) if row.where else "all of it", row.kind, clean(row.reason)]
        for row in report.failures
    ]
    return plain("failures", "What failed", ("contestant", "stage", "lost", "kind", "reason"), rows)


# DOC: The tables of quality: scores, what is kept of them, GLUE by every definition, confusion.


def quality(report: Report, quality: Quality) -> Table:
    """Show every contestant on one data set, held against the baseline."""
    rows = [_row(report, quality, row) for row in selection.in_order(report, quality.scores)]
    head = (
        "contestant",
        quality.metric.replace("_", " "),
        "95 % interval",
        *_RETENTION_HEAD,
        "same decision",
        "calibration error",
    )
    return plain(f"quality-{clean(quality.name)}", clean(quality.name), head, rows, note=_note(report, quality))


_RETENTION_HEAD = ("kept", "difference", "p", "gained", "lost")


def _row(report: Report, quality: Quality, row: Score) -> list[str]:
    found = selection.retention_of(quality, row.key)
    mark = f" ({row.lost_finite:,} answers not finite)" if row.lost_finite else ""
    cells = [name(report, row.key) + mark, score(row.value), f"{score(row.interval[0])} to {score(row.interval[1])}"]
    cells += _retained(found) if found else [NOTHING] * len(_RETENTION_HEAD)
    calibration = NOTHING if row.calibration_error is None else f"{row.calibration_error:.3f}"
    return [*cells, percent(row.agreement), calibration]


def _retained(row: Retention) -> list[str]:
    return [
        with_interval(row.kept, row.kept_interval, unit="share"),
        with_interval(row.difference, row.difference_interval),
        p_value(row.p_value),
        count(row.gained),
        count(row.lost),
    ]


def like_for_like(report: Report, quality: Quality) -> Table:
    """Show what each candidate keeps of the baseline model in the same precision and engine."""
    rows = [
        [name(report, row.candidate), name(report, row.baseline), *_retained(row)]
        for row in quality.retention
        if row.comparison == "like_for_like"
    ]
    title = f"{clean(quality.name)}, like for like"
    return plain("like-for-like", title, ("contestant", "against", *_RETENTION_HEAD), rows)


def no_better(report: Report) -> list[str]:
    """Return a sentence for every row that is not surely better than an answer that ignores the text."""
    return [
        f"{name(report, row.key)} on {clean(quality.name)}: {_verdict(quality, row)}"
        for quality in report.quality
        for row in selection.in_order(report, quality.scores)
        if row.better_than_trivial is False
    ]


def _verdict(quality: Quality, row: Score) -> str:
    trivial = quality.trivial if quality.trivial is not None else row.value
    is_above = row.value < trivial if quality.lower_is_better else row.value > trivial
    metric = quality.metric.replace("_", " ")
    return (
        f"{'not shown to be better' if is_above else 'no better'} than an answer that ignores the text. Its {metric} "
        f"is {score(row.value)} ({score(row.interval[0])} to {score(row.interval[1])}), and "
        f"{clean(quality.trivial_answer or 'that')} scores {score(trivial)}."
    )


def _note(report: Report, quality: Quality) -> str:
    sentences = [f"{quality.num_examples:,} examples of {clean(quality.data)} ({clean(quality.split)})."]
    if quality.trivial is not None:
        told = f" ({clean(quality.trivial_answer)})" if quality.trivial_answer else ""
        sentences.append(f"An answer that does not look at the text{told} scores {score(quality.trivial)}.")
    sentences += map(clean, quality.notes)
    sentences.append(f"Kept, difference, p and same decision are against {name(report, report.baseline)}.")
    tests = list(dict.fromkeys(row.test for row in quality.retention))
    if tests:
        sentences.append(f"p is by {listed(tests)}: how often chance alone would part two equals so far.")
    return " ".join([*sentences, clean(quality.power.sentence)])


GLUE_HEADS = {
    "macro": "macro",
    "macro_with_wnli": "macro with WNLI",
    "mean_of_ratios": "mean of ratios",
    "worst_task": "worst task",
}


def glue(report: Report) -> Table:
    """Show scores over all data sets, and what is kept by every definition."""
    tasks = list(dict.fromkeys(task for row in report.glue for task in row.baseline_scores))
    baselines = {row.baseline: row.baseline_scores for row in report.glue}
    rows = [
        [name(report, key), *(score(scores.get(task)) for task in tasks)] + [NOTHING] * len(GLUE_HEADS)
        for key, scores in baselines.items()
    ]
    for row in report.glue:
        worst = (
            f"{percent(row.worst_task)} ({clean(row.worst_task_name)})"
            if row.worst_task_name
            else percent(row.worst_task)
        )
        rows.append(
            [
                name(report, row.candidate),
                *(score(row.scores.get(task)) for task in tasks),
                with_interval(row.macro, row.macro_interval, unit="share"),
                percent(row.macro_with_wnli),
                percent(row.mean_of_ratios),
                worst,
            ]
        )
    note = (
        "Macro: mean score of the candidate / mean score of the baseline, WNLI left out. Mean of ratios: the mean of "
        "what each task keeps. Worst task: the least that any task keeps."
    )
    return plain("glue", "Over all data sets", ("contestant", *tasks, *GLUE_HEADS.values()), rows, note=note)


# DOC: The tables of time and memory: latency, ratios, throughput, threads, parts of memory, cold start, energy.

# Behind the name of a row that the machine disturbed.
_MARK = " †"
_MARKED = "†: disturbed, so not to be believed; it decides nothing."


def _noted(note: str, *, disturbed: bool) -> str:
    return f"{note} {_MARKED}".strip() if disturbed else note


def _named(report: Report, row: Latency | Throughput | Scaling | ColdStart) -> str:
    return name(report, row.key) + (_MARK if row.disturbed else "")


def _by_load(report: Report, rows_at: Callable[[Load], Rows]) -> list[tuple[str, Rows]]:
    found = [(f"{load}: {load_words(load)}", rows_at(load)) for load in selection.loads_of(report)]
    return [(title, rows) for title, rows in found if rows]


def latency(report: Report) -> Table:
    """Show every percentile of every contestant under every load."""
    rows = selection.in_order(report, report.latency)
    return Table(
        "latency",
        "Latency",
        ("contestant", *(f"{at}, ms" for at in PERCENTILES), "calls", "texts/s", "drift", "of peak"),
        _by_load(report, lambda load: [_latency_row(report, row) for row in rows if row.load == load]),
        note=_noted(
            "A percentile that the calls cannot carry says how many more it needs. Behind p50 its 95\u00a0% interval. "
            "Drift is the last third's median / the first third's; an asterisk: had not settled when it began.",
            disturbed=any(row.disturbed for row in rows),
        ),
    )


def _latency_row(report: Report, row: Latency) -> list[str]:
    p50 = row.intervals.get("p50")
    first = f"{ms(row.p50_ms)} ({ms(p50[0])} to {ms(p50[1])})" if row.p50_ms and p50 else percentile(row, "p50")
    drift = NOTHING if row.drift is None else f"{row.drift:.3f}"
    return [
        _named(report, row) + ("" if row.stationary else " *"),
        first,
        *(percentile(row, at) for at in PERCENTILES[1:]),
        count(row.samples),
        number(row.throughput_per_s),
        drift,
        percent(row.peak_share, digits=0),
    ]


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
        "ratios",
        "Times as fast",
        ("contestant", "against", "comparison", "times as fast", "95 % interval", "finding"),
        _by_load(report, lambda load: [_ratio_row(report, row) for row in rows if row.load == load]),
        note="From rounds that both ran in; a ratio within the noise floor shows no difference.",
    )


def _ratio_row(report: Report, row: Ratio) -> list[str]:
    candidate = "the same again" if row.comparison == "again" else name(report, row.candidate)
    return [
        candidate,
        name(report, row.baseline),
        COMPARISONS[row.comparison],
        f"{row.value:.2f}",
        bounds(row.interval),
        row.finding,
    ]


def throughput(report: Report) -> Table:
    """Show texts per second, by batch size and callers."""
    rows = selection.in_order(report, report.throughput)
    cells = sorted({(row.callers, row.load.num_tokens or 0, row.load.batch_size) for row in rows})
    groups = []
    for callers, tokens, batch in cells:
        title = f"{batch}×{tokens}, {'1 caller' if callers == 1 else f'{callers} callers'}"
        there = [
            row
            for row in rows
            if (row.callers, row.load.num_tokens or 0, row.load.batch_size) == (callers, tokens, batch)
        ]
        groups.append(
            (
                title,
                [
                    [
                        _named(report, row),
                        number(row.texts_per_s),
                        f"{number(row.interval[0])} to {number(row.interval[1])}",
                        ms(row.p50_ms),
                    ]
                    for row in there
                ],
            )
        )
    return Table(
        "throughput",
        "Throughput",
        ("contestant", "texts/s", "95 % interval", "p50 of a call, ms"),
        groups,
        note=_noted("", disturbed=any(row.disturbed for row in rows)),
    )


def scaling(report: Report) -> Table:
    """Show p50 by threads, and how many times as fast as one."""
    steps = sorted({row.threads for row in report.scaling})
    found = {(row.key, row.threads): f"{ms(row.p50_ms)} ({row.speedup:.2f}×)" for row in report.scaling}
    keys = list(dict.fromkeys(row.key for row in selection.in_order(report, report.scaling)))
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
    head = [
        "contestant",
        "interpreter",
        "imports",
        "loaded",
        "peak of loading",
        "peak",
        "after",
        "private after",
        "shared out after",
    ] + (["GPU allocated", "GPU reserved"] if gpu else [])
    rows = [
        [
            name(report, row.key),
            *map(
                mb,
                (
                    row.interpreter_rss_bytes,
                    row.imported_rss_bytes,
                    row.loaded_rss_bytes,
                    row.loading_peak_bytes,
                    row.peak_bytes,
                    row.after_rss_bytes,
                    row.after_uss_bytes,
                    row.after_pss_bytes,
                ),
            ),
            *([mb(row.gpu_peak_allocated_bytes), mb(row.gpu_peak_reserved_bytes)] if gpu else []),
        ]
        for row in selection.in_order(report, report.memory)
    ]
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
        [
            _named(report, row),
            ms(row.process_ms),
            ms(row.import_ms),
            ms(row.load_ms),
            ms(row.first_answer_ms),
            ms(row.total_ms),
            f"{ms(row.interval[0])} to {ms(row.interval[1])}",
            str(row.starts),
        ]
        for row in selection.in_order(report, report.cold_start)
    ]
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
