"""The report's tables as text; the page, the Markdown and the terminal draw the same ones.

Each table is made from rows of the report and its columns: a heading with the function that writes its cells.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
    Decision,
    Latency,
    Load,
    Memory,
    Model,
    Quality,
    Ratio,
    Report,
    Retention,
    Scaling,
    Score,
    Throughput,
)

Rows = list[list[str]]
Row = TypeVar("Row")

# Behind the name of a row that the machine disturbed.
_MARK = " †"
_MARK_NOTE = "†: disturbed, so not to be believed; it decides nothing."

WORST_LABEL = "worst label"
"""The heading of the column that a narrow terminal leaves out."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first column names its row."""

    name: str
    title: str
    head: Sequence[str]
    groups: list[tuple[str, Rows]]
    """Rows under a heading that they share; the heading is empty where there is only one group."""
    note: str = ""
    grouped_by: str = "load"
    """What the headings of the groups are."""

    def __bool__(self) -> bool:
        """Tell whether there is anything in it."""
        return any(rows for _, rows in self.groups)


def from_columns(
    name: str, title: str, rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]], *, note: str = ""
) -> Table:
    """Return a table without groups, with a line for each row and a column for each heading."""
    return Table(name, title, list(columns), [("", _cells(rows, columns))], note)


def _cells(rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]]) -> Rows:
    return [[write(row) for write in columns.values()] for row in rows]


def contestant_name(report: Report, key: str) -> str:
    """Name a contestant by its key; a key that no row has is its own name."""
    row = report.contestant(key)
    return name_of(row) if row else clean(key)


def _marked_name(report: Report, row: Latency | Throughput | Scaling | ColdStart) -> str:
    return contestant_name(report, row.key) + (_MARK if row.disturbed else "")


def _with_mark_note(note: str, *, disturbed: bool) -> str:
    return f"{note} {_MARK_NOTE}".strip() if disturbed else note


# ---- the whole report


def subject(report: Report, claim: Decision) -> str:
    """Say what a claim is about, and under which load or on which data."""
    against = f" against {contestant_name(report, claim.against)}" if claim.against else ""
    return f"{contestant_name(report, claim.subject)}{against}{f', {clean(claim.where)}' if claim.where else ''}"


def measured(claim: Decision) -> str:
    """Write what was found, with its interval."""
    return with_interval(claim.value, claim.interval, unit=claim.unit)


def asked(claim: Decision) -> str:
    """Write what was asked for."""
    return f"{claim.direction.replace('_', ' ')} {quantity(claim.target, claim.unit)}"


def overview(report: Report) -> Table:
    """Show every contestant at a glance: size, speed, quality, memory; without the columns that nobody has."""
    loads, load = selection.main_loads(report), selection.main_load(report)
    quality = selection.main_quality(report)
    memories = selection.by_key(report.memory)
    scores = selection.scores_of(quality) if quality else {}
    # Of one tokenizer all have as many, which is no news.
    others = len({row.tokens_per_text for row in scores.values()}) > 1

    rows = []
    for row in report.contestants:
        cells = {"contestant": name_of(row), "files, MB": mb(row.file_bytes)}
        for at in loads:
            timed = selection.latency_at(report, at).get(row.key)
            cells[f"p50 at {at}, ms"] = DISTURBED if timed and timed.disturbed else percentile(timed, "p50")
        ratio = selection.ratio_at(report, row.key, load)
        times = f"{ratio.value:.2f} ({bounds(ratio.interval)})" if ratio else NOTHING
        cells["times as fast"] = DISTURBED if ratio and ratio.disturbed else times
        found, kept = scores.get(row.key), selection.retention_of(quality, row.key) if quality else None
        cells[quality.metric.replace("_", " ") if quality else "score"] = score(found.value if found else None)
        cells["kept"] = with_interval(kept.kept, kept.kept_interval, unit="share") if kept else NOTHING
        worst = found.worst_label if found else None
        cells[WORST_LABEL] = percent(worst.recall if worst else None)
        cells["tokens per text"] = _tokens(found, scores.get(report.baseline)) if others else NOTHING
        cells["peak memory, MB"] = mb(memories[row.key].peak_bytes) if row.key in memories else NOTHING
        rows.append(cells)
    names = rows[0] if rows else ["contestant"]
    head = [name for name in names if name == "contestant" or any(row[name] != NOTHING for row in rows)]

    about = [*(["times as fast"] if report.ratios else []), *(["kept"] if quality else [])]
    parts = []
    if about:
        parts.append(f"{listed(about)} against {contestant_name(report, report.baseline)}, with 95\u00a0% intervals")
    if load and report.ratios:
        parts.append(f"times as fast at {load} ({load_words(load)})")
    if quality:
        parts.append(f"{quality.metric.replace('_', ' ')} and kept on {clean(quality.name)}")
    if WORST_LABEL in head:
        parts.append("worst label: the lowest recall")
    note = "; ".join(parts)
    note = f"{note[0].upper()}{note[1:]}." if note else ""
    return Table("overview", "At a glance", head, [("", [[row[name] for name in head] for row in rows])], note)


def _tokens(row: Score | None, baseline: Score | None) -> str:
    """Write the tokens of a text, and how many times the baseline's they are where that is not once."""
    own, base = (each.tokens_per_text if each else None for each in (row, baseline))
    return number(own) + (f" ({own / base:.2f}×)" if own and base and own != base else "")


def models(report: Report) -> Table:
    """Show what each model is, whatever runs it."""
    known = {length for model in report.models.values() for length in model.flops_per_token or {}}
    # Those that were timed, where they are known, else the longest.
    timed = {row.load.num_tokens for row in report.latency if row.load.num_tokens in known}
    lengths = sorted(timed or known)[-2:]

    # A function for each length: lambdas made in the comprehension would all see its last one.
    def flops_at(length: int) -> Callable[[tuple[str, Model]], str]:
        return lambda row: rate((row[1].flops_per_token or {}).get(length))

    columns: dict[str, Callable[[tuple[str, Model]], str]] = {
        "model": lambda row: clean(row[0]),
        "parameters": lambda row: count(row[1].parameters),
        "of the encoder": lambda row: count(row[1].encoder_parameters),
        "of embeddings": lambda row: millions(row[1].embedding_parameters),
        "vocabulary": lambda row: count(row[1].architecture.get("vocab_size")),
        **{f"FLOP per token at {length}": flops_at(length) for length in lengths},
        "longest input": lambda row: count(row[1].max_length),
        "task": lambda row: row[1].task + (f", {row[1].problem_type}" if row[1].problem_type else ""),
    }
    note = "FLOP: floating-point operations, 2 per weight of every matrix product, and attention." if lengths else ""
    return from_columns("models", "Models", report.models.items(), columns, note=note)


def files(report: Report) -> Table:
    """Show what each contestant loads."""
    return from_columns(
        "files",
        "Files",
        report.contestants,
        {
            "contestant": name_of,
            "engine": lambda row: row.runner,
            "device": lambda row: row.device,
            "threads": lambda row: str(row.threads),
            "files, MB": lambda row: mb(row.file_bytes),
            "compressed, MB": lambda row: mb(row.compressed_bytes),
            "same answer in any batch": lambda row: "yes" if row.batch_invariant else "no",
        },
    )


def failures(report: Report) -> Table:
    """Show what could not be measured."""
    return from_columns(
        "failures",
        "What failed",
        report.failures,
        {
            "contestant": lambda row: contestant_name(report, row.key),
            "stage": lambda row: row.stage,
            "lost": lambda row: clean(row.where) if row.where else "all of it",
            "kind": lambda row: row.kind,
            "reason": lambda row: clean(row.reason),
        },
    )


# ---- quality


def quality(report: Report, quality: Quality) -> Table:
    """Show every contestant on one data set, held against the baseline."""

    def name_and_losses(row: Score) -> str:
        lost = f" ({row.lost_finite:,} answers not finite)" if row.lost_finite else ""
        return contestant_name(report, row.key) + lost

    def of_retention(write: Callable[[Retention], str]) -> Callable[[Score], str]:
        found = {row.key: selection.retention_of(quality, row.key) for row in quality.scores}
        return lambda row: write(kept) if (kept := found[row.key]) else NOTHING

    columns: dict[str, Callable[[Score], str]] = {
        "contestant": name_and_losses,
        quality.metric.replace("_", " "): lambda row: score(row.value),
        "95 % interval": lambda row: f"{score(row.interval[0])} to {score(row.interval[1])}",
        **({WORST_LABEL: _worst_label} if any(row.worst_label for row in quality.scores) else {}),
        **{heading: of_retention(write) for heading, write in _RETENTION.items()},
        "same decision": lambda row: percent(row.agreement),
        "calibration error": lambda row: NOTHING if row.calibration_error is None else f"{row.calibration_error:.3f}",
    }
    if any(row.tokens_per_text for row in quality.scores):
        base = selection.scores_of(quality).get(report.baseline)
        columns["tokens per text"] = lambda row: _tokens(row, base)
    note = [f"{quality.num_examples:,} examples of {clean(quality.data)} ({clean(quality.split)})."]
    if quality.trivial is not None:
        told = f" ({clean(quality.trivial_answer)})" if quality.trivial_answer else ""
        note.append(f"An answer that does not look at the text{told} scores {score(quality.trivial)}.")
    note += map(clean, quality.notes)
    note.append(f"Kept, difference, p and same decision are against {contestant_name(report, report.baseline)}.")
    tests = list(dict.fromkeys(row.test for row in quality.retention))
    if tests:
        note.append(f"p is by {listed(tests)}: how often chance alone would part two equals so far.")
    note.append(clean(quality.power.sentence))
    rows, name = selection.in_order(report, quality.scores), clean(quality.name)
    return from_columns(f"quality-{name}", name, rows, columns, note=" ".join(note))


def _worst_label(row: Score) -> str:
    worst = row.worst_label
    return f"{clean(worst.label)}: {with_interval(worst.recall, worst.interval, unit='share')}" if worst else NOTHING


def labels(report: Report, quality: Quality) -> Table:
    """Show every contestant's recall of every label, or type of entity, the baseline's lowest first."""
    rows = selection.in_order(report, quality.scores)
    recalls = {(row.key, label.label): label for row in rows for label in row.labels}
    to_baseline = [row for row in quality.retention if row.comparison == "to_baseline"]
    changes = {(row.candidate, label.label): label for row in to_baseline for label in row.labels}
    baseline = selection.scores_of(quality).get(report.baseline) or next(iter(rows), None)
    groups: list[tuple[str, Rows]] = []
    for own in sorted(baseline.labels if baseline else [], key=lambda label: label.recall):
        cells = []
        for row in rows:
            found, change = recalls.get((row.key, own.label)), changes.get((row.key, own.label))
            recall = with_interval(found.recall, found.interval, unit="share") if found else NOTHING
            points = NOTHING
            if change is not None:
                low, high = change.interval
                points = f"{100 * change.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            cells.append([contestant_name(report, row.key), recall, points])
        groups.append((f"{clean(own.label)} ({own.support:,})", cells))
    note = (
        "Behind each label how many texts, or entities, have it. Recall: how many of them are found. Points: the "
        f"difference to {contestant_name(report, report.baseline)} on the same examples; negative is worse. Each has "
        "its own 95\u00a0% interval, of which one in twenty misses."
    )
    name = clean(quality.name)
    return Table(
        f"labels-{name}",
        f"{name}, label by label",
        ("contestant", "recall", "points"),
        groups,
        note,
        grouped_by="label",
    )


_RETENTION: dict[str, Callable[[Retention], str]] = {
    "kept": lambda row: with_interval(row.kept, row.kept_interval, unit="share"),
    "difference": lambda row: with_interval(row.difference, row.difference_interval),
    "p": lambda row: p_value(row.p_value),
    "gained": lambda row: count(row.gained),
    "lost": lambda row: count(row.lost),
}


def like_for_like(report: Report, quality: Quality) -> Table:
    """Show what each candidate keeps of the baseline model in the same precision and engine."""
    return from_columns(
        "like-for-like",
        f"{clean(quality.name)}, like for like",
        [row for row in quality.retention if row.comparison == "like_for_like"],
        {
            "contestant": lambda row: contestant_name(report, row.candidate),
            "against": lambda row: contestant_name(report, row.baseline),
            **_RETENTION,
        },
    )


def no_better(report: Report) -> list[str]:
    """Return a sentence for every row that is not surely better than an answer that ignores the text."""
    sentences = []
    for quality in report.quality:
        metric = quality.metric.replace("_", " ")
        for row in selection.in_order(report, quality.scores):
            if row.better_than_trivial is not False:
                continue
            trivial = quality.trivial if quality.trivial is not None else row.value
            # Better by its value but not by its interval is not shown, which is less than no better.
            is_above = row.value < trivial if quality.lower_is_better else row.value > trivial
            sentences.append(
                f"On {clean(quality.name)} {contestant_name(report, row.key)} is "
                f"{'not shown to be better' if is_above else 'no better'} than an answer that ignores the text. "
                f"Its {metric} is {score(row.value)} ({score(row.interval[0])} to {score(row.interval[1])}), and "
                f"{clean(quality.trivial_answer or 'that')} scores {score(trivial)}."
            )
    return sentences


GLUE_HEADS = {
    "macro": "macro",
    "macro_with_wnli": "macro with WNLI",
    "mean_of_ratios": "mean of ratios",
    "worst_task": "worst task",
}


def glue(report: Report) -> Table:
    """Show scores over all data sets, and what is kept by every definition."""
    tasks = list(dict.fromkeys(task for row in report.glue for task in row.baseline_scores))
    # Each baseline once, though the rows of all its candidates carry its scores.
    baselines = {row.baseline: row.baseline_scores for row in report.glue}
    rows = [
        [contestant_name(report, key), *(score(scores.get(task)) for task in tasks), *[NOTHING] * len(GLUE_HEADS)]
        for key, scores in baselines.items()
    ]
    for row in report.glue:
        cells = [contestant_name(report, row.candidate), *(score(row.scores.get(task)) for task in tasks)]
        cells += [with_interval(row.macro, row.macro_interval, unit="share"), percent(row.macro_with_wnli)]
        worst = f" ({clean(row.worst_task_name)})" if row.worst_task_name else ""
        rows.append([*cells, percent(row.mean_of_ratios), percent(row.worst_task) + worst])
    note = (
        "Macro: mean score of the candidate / mean score of the baseline, WNLI left out. Mean of ratios: the mean of "
        "what each task keeps. Worst task: the least that any task keeps."
    )
    return Table("glue", "Over all data sets", ("contestant", *tasks, *GLUE_HEADS.values()), [("", rows)], note)


# ---- time, memory, energy


def _by_load(report: Report, rows_at: Callable[[Load], Rows]) -> list[tuple[str, Rows]]:
    groups = [(f"{load}: {load_words(load)}", rows_at(load)) for load in selection.loads_of(report)]
    return [(title, rows) for title, rows in groups if rows]


def latency(report: Report) -> Table:
    """Show every percentile of every contestant under every load."""

    def p50(row: Latency) -> str:
        interval = row.intervals.get("p50")
        bracket = f" ({ms(interval[0])} to {ms(interval[1])})" if row.p50_ms and interval else ""
        return percentile(row, "p50") + bracket

    # A function for each name, as for the lengths in `models`.
    def other(name: str) -> Callable[[Latency], str]:
        return lambda row: percentile(row, name)

    columns: dict[str, Callable[[Latency], str]] = {
        "contestant": lambda row: _marked_name(report, row) + ("" if row.stationary else " *"),
        "p50, ms": p50,
        **{f"{name}, ms": other(name) for name in PERCENTILES[1:]},
        "calls": lambda row: count(row.samples),
        "texts/s": lambda row: number(row.throughput_per_s),
        "drift": lambda row: NOTHING if row.drift is None else f"{row.drift:.3f}",
        "of peak": lambda row: percent(row.peak_share, digits=0),
    }
    rows = selection.in_order(report, report.latency)
    groups = _by_load(report, lambda load: _cells([row for row in rows if row.load == load], columns))
    note = _with_mark_note(
        "A percentile that the calls cannot carry says how many more it needs. Behind p50 its 95\u00a0% interval. "
        "Drift is the last third's median / the first third's; an asterisk: had not settled when it began.",
        disturbed=any(row.disturbed for row in rows),
    )
    return Table("latency", "Latency", list(columns), groups, note)


COMPARISONS = {
    "like_for_like": "like for like",
    "to_baseline": "against the baseline",
    "to_own_fp32": "against its own fp32",
    "again": "baseline against itself",
}


def ratios(report: Report) -> Table:
    """Show every ratio of speeds."""
    columns: dict[str, Callable[[Ratio], str]] = {
        "contestant": lambda row: (
            "the same again" if row.comparison == "again" else contestant_name(report, row.candidate)
        ),
        "against": lambda row: contestant_name(report, row.baseline),
        "comparison": lambda row: COMPARISONS[row.comparison],
        "times as fast": lambda row: f"{row.value:.2f}",
        "95 % interval": lambda row: bounds(row.interval),
        "finding": lambda row: row.finding,
    }
    # A stable sort: within a comparison the rows keep the report's order.
    rows = sorted(report.ratios, key=lambda row: list(COMPARISONS).index(row.comparison))
    groups = _by_load(report, lambda load: _cells([row for row in rows if row.load == load], columns))
    note = "From rounds that both ran in; a ratio within the noise floor shows no difference."
    return Table("ratios", "Times as fast", list(columns), groups, note)


def throughput(report: Report) -> Table:
    """Show texts per second, by batch size and callers."""
    columns: dict[str, Callable[[Throughput], str]] = {
        "contestant": lambda row: _marked_name(report, row),
        "texts/s": lambda row: number(row.texts_per_s),
        "95 % interval": lambda row: f"{number(row.interval[0])} to {number(row.interval[1])}",
        "p50 of a call, ms": lambda row: ms(row.p50_ms),
    }
    rows = selection.in_order(report, report.throughput)
    by_cell: dict[tuple[int, int, int], list[Throughput]] = {}
    for row in rows:
        by_cell.setdefault((row.callers, row.load.num_tokens or 0, row.load.batch_size), []).append(row)
    groups = [
        (f"{batch}×{tokens}, {callers} caller{'' if callers == 1 else 's'}", _cells(there, columns))
        for (callers, tokens, batch), there in sorted(by_cell.items())
    ]
    note = _with_mark_note("", disturbed=any(row.disturbed for row in rows))
    return Table("throughput", "Throughput", list(columns), groups, note)


def scaling(report: Report) -> Table:
    """Show p50 by threads, and how many times as fast as one."""
    steps = sorted({row.threads for row in report.scaling})
    found = {(row.key, row.threads): f"{ms(row.p50_ms)} ({row.speedup:.2f}×)" for row in report.scaling}
    disturbed = {row.key for row in report.scaling if row.disturbed}
    keys = list(dict.fromkeys(row.key for row in selection.in_order(report, report.scaling)))
    rows = [
        [
            contestant_name(report, key) + (_MARK if key in disturbed else ""),
            *(found.get((key, at), NOTHING) for at in steps),
        ]
        for key in keys
    ]
    head = ["contestant", *(f"{step} {'thread' if step == 1 else 'threads'}, ms" for step in steps)]
    where = listed(list(dict.fromkeys(str(row.load) for row in report.scaling)))
    note = _with_mark_note(f"p50 at {where}; in brackets times as fast as 1 thread.", disturbed=bool(disturbed))
    return Table("scaling", "Thread scaling", head, [("", rows)], note)


def memory(report: Report) -> Table:
    """Show memory by part, in MB."""
    columns: dict[str, Callable[[Memory], str]] = {
        "contestant": lambda row: contestant_name(report, row.key),
        "interpreter": lambda row: mb(row.interpreter_rss_bytes),
        "imports": lambda row: mb(row.imported_rss_bytes),
        "loaded": lambda row: mb(row.loaded_rss_bytes),
        "peak of loading": lambda row: mb(row.loading_peak_bytes),
        "peak": lambda row: mb(row.peak_bytes),
        "after": lambda row: mb(row.after_rss_bytes),
        "private after": lambda row: mb(row.after_uss_bytes),
        "shared out after": lambda row: mb(row.after_pss_bytes),
    }
    if any(row.gpu_peak_reserved_bytes is not None for row in report.memory):
        columns["GPU allocated"] = lambda row: mb(row.gpu_peak_allocated_bytes)
        columns["GPU reserved"] = lambda row: mb(row.gpu_peak_reserved_bytes)
    limits = sorted({row.limit_bytes for row in report.memory if row.limit_bytes})
    limit = f" The container allows {listed([f'{mb(at)} MB' for at in limits])}." if limits else ""
    note = (
        "Resident memory after each step, the median over the launches. Private is what would be free again if the "
        f"process ended.{limit}"
    )
    return from_columns("memory", "Memory, MB", selection.in_order(report, report.memory), columns, note=note)


def cold_start(report: Report) -> Table:
    """Show the first answer of a fresh process by part, in ms."""
    return from_columns(
        "cold-start",
        "Cold start, ms",
        selection.in_order(report, report.cold_start),
        {
            "contestant": lambda row: _marked_name(report, row),
            "process": lambda row: ms(row.process_ms),
            "imports": lambda row: ms(row.import_ms),
            "load": lambda row: ms(row.load_ms),
            "first answer": lambda row: ms(row.first_answer_ms),
            "total": lambda row: ms(row.total_ms),
            "interval": lambda row: f"{ms(row.interval[0])} to {ms(row.interval[1])}",
            "starts": lambda row: str(row.starts),
        },
        note=_with_mark_note("", disturbed=any(row.disturbed for row in report.cold_start)),
    )


def energy(report: Report) -> Table:
    """Show joules where there is a source."""

    def measure(name: str) -> Callable[[dict[str, object]], str]:
        return lambda row: number(value) if isinstance(value := row.get(name), int | float) else NOTHING

    columns: dict[str, Callable[[dict[str, object]], str]] = {
        "contestant": lambda row: (
            contestant_name(report, str(row.get("key", ""))) + (_MARK if row.get("disturbed") else "")
        ),
        "load": lambda row: clean(str(Load.model_validate(row["load"]))),
        "joules per text": measure("joules_per_text"),
        "watts": measure("watts"),
    }
    return from_columns("energy", "Energy", report.energy.rows, columns)
