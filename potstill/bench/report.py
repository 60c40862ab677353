"""The report: one JSON document, and the same as Markdown for a pull request and as one HTML page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.bench import charts
from potstill.bench.claims import GLUE_BERT, GLUE_DISTILBERT
from potstill.bench.wording import bounds, mb, ms, number, percent
from potstill.errors import UsageError
from potstill.metrics import retention_by_definition
from potstill.publish import new_folder

SCHEMA = "potstill-report/1"
REPORT_NAME = "report.json"


def write_report(report: Mapping[str, Any], out_dir: Path, *, overwrite: bool = False) -> None:
    """Write report.json, report.md and report.html into a new folder, whole or not at all.

    Raises:
        OutputError: if `out_dir` is in the way.
    """
    with new_folder(out_dir, overwrite=overwrite) as building:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (building / REPORT_NAME).write_text(text + "\n", encoding="utf-8")
        (building / "report.md").write_text(to_markdown(report), encoding="utf-8")
        (building / "report.html").write_text(to_html(report), encoding="utf-8")


def read_report(path: Path) -> dict[str, Any]:
    """Read a report from its folder or its JSON file.

    Raises:
        UsageError: if there is none, or it is one of another kind.
    """
    file = path / REPORT_NAME if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file} does not exist; `potstill bench` writes one")
    try:
        report = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"{file} has the schema {schema!r}; this potstill reads {SCHEMA!r}")
    return dict(report)


def to_html(report: Mapping[str, Any]) -> str:
    """Draw the report as one page that needs nothing but itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("potstill.bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["mb"] = mb
    return environment.get_template("report.html.j2").render(
        report=report,
        tables=tables(report),
        colours=charts.COLOURS,
        latency_svg=charts.latency_chart(report["latency"]) if report["latency"] else "",
        trade_off_svg=charts.trade_off_chart(report),
        trade_off_label=charts.trade_off_label(report),
        glue=retention_by_definition(GLUE_BERT, GLUE_DISTILBERT),
    )


def to_markdown(report: Mapping[str, Any]) -> str:
    """Write the report for a pull request."""
    lines = ["# Bench report", ""]
    lines += [f"- **{claim['verdict']}** · {claim['claim']}: {claim['summary']}" for claim in report["claims"]]
    for title, (head, rows) in tables(report).items():
        if rows:
            lines += ["", f"## {title}", "", _markdown_row(head), "|---|" + "---:|" * (len(head) - 1)]
            lines += [_markdown_row(row) for row in rows]
    if report["failures"]:
        lines += ["", "## Failures", ""]
        lines += [f"- {row['model']} ({row['stage']}): {row['reason']}" for row in report["failures"]]
    environment = report["environment"]
    lines += ["", "## How it was measured", ""]
    lines += [f"- {environment['cpu']}, {environment['threads']} threads of {environment['cores']} cores; "
              f"{', '.join(f'{name} {version}' for name, version in environment['packages'].items())}."]  # fmt: skip
    lines += [f"- {note}" for note in report["notes"]]
    lines += [f"- {claim['claim']}: {claim['definition']}" for claim in report["claims"]]
    lines += [f"- Again: `{report['command']}`"] if report["command"] else []
    return "\n".join(lines) + "\n"


Table = tuple[Sequence[str], list[list[str]]]


def tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """Return the report's tables as text, by title: head and rows, the first column being the name."""
    return {
        "Models": (("model", "parameters", "file, MB", "score", "kept"), _model_rows(report)),
        "Latency": (
            ("model", "batch × tokens", "p50, ms", "p90, ms", "samples", "texts/s"),
            [
                [f"{row['model']} {row['precision']}", f"{row['batch_size']} × {row['num_tokens']}", ms(row["p50_ms"]),
                 ms(row["p90_ms"]), f"{row['samples']:,}", number(row["throughput_per_s"])]
                for row in report["latency"]
            ],
        ),
        "Times as fast": (
            ("teacher → student", "batch × tokens", "times as fast", "95 % interval"),
            [
                [f"{row['baseline'].split('/')[1]} → {row['candidate'].split('/')[1]}",
                 f"{row['batch_size']} × {row['num_tokens']}", f"{row['value']:.2f}", bounds(row["interval"])]
                for row in report["ratios"]
            ],
        ),
        "Memory, MB": (
            ("model", "imports", "loaded", "peak of the run", "private"),
            [
                [f"{row['model']} {row['precision']}", mb(row["imported_rss_bytes"]), mb(row["loaded_rss_bytes"]),
                 mb(row["peak_bytes"]), mb(row["uss_bytes"])]
                for row in report["memory"]
            ],
        ),
    }  # fmt: skip


def _model_rows(report: Mapping[str, Any]) -> list[list[str]]:
    quality = report["quality"] or {"values": {}, "retention": []}
    kept = {row["candidate"]: row for row in quality["retention"]}
    rows = []
    for model, facts in report["models"].items():
        for precision, record in facts["precisions"].items():
            key = f"{model}/{precision}"
            score, row = quality["values"].get(key), kept.get(key)
            share = f"{percent(row['value'])} ({bounds(row['interval'], as_share=True)})" if row else "–"
            rows.append(
                [f"{model} {precision}", f"{facts['parameters']:,}", mb(record["size_bytes"]),
                 "–" if score is None else f"{score:.4f}", share]
            )  # fmt: skip
    return rows


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
