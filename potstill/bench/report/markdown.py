"""The report as Markdown, fit for a pull request: verdicts first, and the rest folded away."""

import re
from collections.abc import Iterable, Sequence

from potstill.bench.report import tables
from potstill.bench.report.formatting import clean, mb, percent
from potstill.bench.report.glossary import VERDICTS, definitions
from potstill.bench.report.tables import Table
from potstill.bench.report_schema import Report

# What Markdown or HTML would take for its own, or what would call somebody.
_NUMBER = re.compile(r"[-<]? ?\d[\d,.]*(?!×)\b|–$|needs \d")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#@])")


def to_markdown(report: Report) -> str:
    """Write the report for a pull request."""
    lines = ["# Bench report", "", *_warnings(report), *_table(_marked(report), headed=False), ""]
    lines += [f"- **{escape(clean(row.claim))}**: {escape(clean(row.summary))}" for row in report.claims]
    for table in (tables.failures(report), tables.overview(report)):
        lines += _table(table)
    for part in (tables.quality(report, quality) for quality in report.quality):
        lines += _table(part)
    lines += _table(tables.glue(report))
    folded = (
        tables.latency,
        tables.ratios,
        tables.throughput,
        tables.scaling,
        tables.memory,
        tables.cold_start,
        tables.energy,
        tables.models,
        tables.files,
    )
    for make in folded:
        lines += _folded(make(report))
    lines += _closing(report)
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match[1])};", text.replace("&", "&amp;"))


def _warnings(report: Report) -> list[str]:
    lines = []
    if not report.complete:
        lines += [
            "> **This report is not complete.** Not measured: "
            + (escape("; ".join(map(clean, report.missing))) or "it does not say what")
            + ".",
            ">",
        ]
    lines += [f"> **Quality:** {escape(line)}  " for line in tables.no_better(report)]
    if report.left_out:
        lines += [f"> **The budget had no time for:** {escape('; '.join(map(clean, report.left_out)))}.", ">"]
    lines += [f"> **Noise:** {escape(clean(flag))}  " for flag in report.noise.flags]
    return [*lines, ""] if lines else []


def _marked(report: Report) -> Table:
    """Return the table of verdicts without its sentences: they stand below."""
    table = tables.verdicts(report)
    rows = [[row[0], f"{VERDICTS[row[1]][0]} {row[1]}", *row[2:5]] for row in table.groups[0][1]]
    return tables.plain(table.name, table.title, table.head[:5], rows)


def _table(table: Table, *, headed: bool = True) -> list[str]:
    if not table:
        return []
    grouped = any(title for title, _ in table.groups)
    head = [*(["load"] if grouped else []), *table.head]
    lines = ["", f"## {escape(table.title)}", ""] if headed else []
    lines += [_row(head), "|" + "---|" * (len(head) - len(table.head)) + "".join(_alignment(table))]
    for title, rows in table.groups:
        lines += [_row([*([title] if grouped else []), *row]) for row in rows]
    return lines + (["", escape(table.note)] if table.note else [])


def _alignment(table: Table) -> list[str]:
    """Put columns of numbers to the right."""
    columns = zip(*(row for _, rows in table.groups for row in rows), strict=True)
    return ["---:|" if all(_NUMBER.match(cell) for cell in column) else "---|" for column in columns]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _folded(table: Table) -> list[str]:
    body = _table(table, headed=False)
    return _fold(table.title, body) if body else []


def _fold(title: str, body: Iterable[str]) -> list[str]:
    return ["", f"<details><summary>{escape(title)}</summary>", "", *body, "", "</details>"]


def _closing(report: Report) -> list[str]:
    machine, noise = report.environment, report.noise
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    facts = [
        f"{machine.cpu}, {machine.threads} threads of {machine.cores} cores, {mb(machine.memory_bytes)} MB.",
        f"{packages}.",
    ]
    facts += [f"Energy was not measured: {report.energy.reason}."] if report.energy.reason else []
    facts += [f"Noise floor: {percent(noise.floor)}."] if noise.floor is not None else []
    lines = ["", "## How it was measured", "", *(f"- {escape(clean(line))}" for line in [*facts, *report.notes])]
    lines += _fold("Definitions", [f"- **{escape(word)}**: {escape(meaning)}" for word, meaning in definitions(report)])
    return lines + _fold("Reproduce it", _reproduce(report))


def _reproduce(report: Report) -> list[str]:
    lines = [f"- command: <code>{escape(clean(report.command))}</code>"] if report.command else []
    lines += [f"- seed: {report.seed}"]
    for row in report.contestants:
        for file, digest in row.sha256.items():
            lines.append(f"- {escape(tables.name(report, row.key))}, {escape(clean(file))}: sha256 `{digest}`")
    for quality in report.quality:
        lines.append(
            f"- {escape(clean(quality.data))} ({escape(clean(quality.split))}): sha256 `{quality.data_sha256}`"
        )
    return lines
