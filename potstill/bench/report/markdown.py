"""The report as Markdown, fit for a pull request: verdicts first, and the rest folded away."""

import re
from collections.abc import Iterable, Sequence

from potstill.bench.report import tables
from potstill.bench.report.formatting import clean, mb, percent
from potstill.bench.report.glossary import VERDICTS, definitions
from potstill.bench.report.headline import answers
from potstill.bench.report.headline import title as title_of
from potstill.bench.report.tables import Table
from potstill.bench.report_schema import Report

# Cells of a column of numbers: a value, a dash, or `needs 42 more`; a load such as 8×16 is none.
_NUMBER = re.compile(r"[-<]? ?\d[\d,.]*(?!×)\b|–$|needs \d")
# What Markdown or HTML has a meaning for, and the @ and # with which GitHub would call people and issues.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#@])")


def to_markdown(report: Report) -> str:
    """Write the report for a pull request: verdicts, and the tables of a glance; the others folded."""
    lines = [f"# {escape(title_of(report))}", ""]
    warnings = []
    if not report.complete:
        missing = escape("; ".join(map(clean, report.missing))) or "it does not say what"
        warnings += [f"> **This report is not complete.** Not measured: {missing}.", ">"]
    warnings += [f"> **Quality:** {escape(line)}  " for line in tables.no_better(report)]
    if report.left_out:
        warnings += [f"> **The budget had no time for:** {escape('; '.join(map(clean, report.left_out)))}.", ">"]
    warnings += [f"> **Noise:** {escape(clean(flag))}  " for flag in report.noise.flags]
    lines += [*warnings, ""] if warnings else []
    lines += [f"**{escape(line)}**  " for line in answers(report)] + [""]

    verdicts = tables.from_columns(
        "verdicts",
        "Verdicts",
        report.claims,
        {
            "claim": lambda row: clean(row.claim),
            "verdict": lambda row: f"{VERDICTS[row.verdict][0]} {row.verdict}",
            "about": lambda row: tables.subject(report, row),
            "measured": tables.measured,
            "asked for": tables.asked,
        },
    )
    lines += [*_table(verdicts, headed=False), ""]
    lines += [f"- **{escape(clean(row.claim))}**: {escape(clean(row.summary))}" for row in report.claims]
    shown = [tables.failures(report), tables.overview(report)]
    shown += [tables.quality(report, quality) for quality in report.quality] + [tables.glue(report)]
    for table in shown:
        lines += _table(table)
    for table in (tables.labels(report, quality) for quality in report.quality):
        if table:
            lines += _fold(table.title, _table(table, headed=False))
    for make in (
        tables.latency,
        tables.ratios,
        tables.throughput,
        tables.scaling,
        tables.memory,
        tables.cold_start,
        tables.energy,
        tables.models,
        tables.files,
    ):
        table = make(report)
        if table:
            lines += _fold(table.title, _table(table, headed=False))
    return "\n".join([*lines, *_how_it_was_measured(report)]) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    # As entities: a backslash escapes nothing inside raw HTML such as <summary>.
    return _SPECIAL.sub(lambda match: f"&#{ord(match[1])};", text.replace("&", "&amp;"))


def _table(table: Table, *, headed: bool = True) -> list[str]:
    """Write a table, columns of numbers to the right; the heading of a group is the first cell of each of its rows."""
    if not table:
        return []
    grouped = any(title for title, _ in table.groups)
    columns = zip(*(row for _, rows in table.groups for row in rows), strict=True)
    alignment = ["---:|" if all(_NUMBER.match(cell) for cell in column) else "---|" for column in columns]
    lines = ["", f"## {escape(table.title)}", ""] if headed else []
    lines += [_row([*([table.grouped_by] if grouped else []), *table.head])]
    lines += ["|" + ("---|" if grouped else "") + "".join(alignment)]
    for title, rows in table.groups:
        lines += [_row([*([title] if grouped else []), *row]) for row in rows]
    return lines + (["", escape(table.note)] if table.note else [])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _fold(title: str, body: Iterable[str]) -> list[str]:
    return ["", f"<details><summary>{escape(title)}</summary>", "", *body, "", "</details>"]


def _how_it_was_measured(report: Report) -> list[str]:
    """Write the machine, the notes, what the words mean, and what reproduces the report."""
    machine, noise = report.environment, report.noise
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    memory = mb(machine.memory_bytes)
    facts = [f"{machine.cpu}, {machine.threads} threads of {machine.cores} cores, {memory} MB.", f"{packages}."]
    facts += [f"Energy was not measured: {report.energy.reason}."] if report.energy.reason else []
    facts += [f"Noise floor: {percent(noise.floor)}."] if noise.floor is not None else []
    lines = ["", "## How it was measured", "", *(f"- {escape(clean(line))}" for line in [*facts, *report.notes])]
    lines += _fold("Definitions", [f"- **{escape(word)}**: {escape(meaning)}" for word, meaning in definitions(report)])

    reproduce = [f"- command: <code>{escape(clean(report.command))}</code>"] if report.command else []
    reproduce.append(f"- seed: {report.seed}")
    for row in report.contestants:
        name = escape(tables.contestant_name(report, row.key))
        reproduce += [f"- {name}, {escape(clean(file))}: sha256 `{digest}`" for file, digest in row.sha256.items()]
    for data in report.quality:
        reproduce.append(f"- {escape(clean(data.data))} ({escape(clean(data.split))}): sha256 `{data.data_sha256}`")
    return lines + _fold("Reproduce it", reproduce)
