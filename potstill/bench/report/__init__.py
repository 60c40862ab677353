"""Write and read a report: one JSON document, and the same as Markdown for a pull request and as one HTML page."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.bench.report.markdown import to_markdown
from potstill.bench.report.page import to_html
from potstill.bench.report_schema import SCHEMA, Report
from potstill.errors import UsageError
from potstill.messages import describe_fault

__all__ = ["REPORT_NAME", "read_report", "to_html", "to_json", "to_markdown", "to_schema", "write_report"]

REPORT_NAME = "report.json"
_FIRST_SCHEMA = "potstill-report/1"


def to_json(report: Report) -> str:
    """Write the report as JSON.

    Raises:
        ValueError: if a number in it is NaN or infinite, which JSON does not have.
    """
    content = report.model_dump(mode="json", by_alias=True)
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_schema() -> str:
    """Write the JSON Schema of a report, for readers in other languages: `report.schema.json` beside this file."""
    content = Report.model_json_schema(by_alias=True)
    # Written always, though a model can be made without it.
    content["required"] = ["schema", *content["required"]]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA}
    return json.dumps(head | content, indent=2, ensure_ascii=False) + "\n"


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.md and report.html into a folder that is there.

    Raises:
        ValueError: if a number in it is NaN or infinite; nothing is written then.
    """
    # All are made before the first is written, so that a fault in one leaves nothing behind.
    files = {REPORT_NAME: to_json(report), "report.md": to_markdown(report), "report.html": to_html(report)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read a report from its folder or its JSON file.

    Raises:
        UsageError: if there is none, or it is one of another kind or damaged.
    """
    file = path / REPORT_NAME if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file} does not exist; `potstill bench` writes one")
    try:
        content: Any = json.loads(file.read_bytes())
    # RecursionError: the parser recurses, and a file may nest deeper than Python's stack.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema == _FIRST_SCHEMA:
        raise UsageError(f"{file} has the schema {schema!r}, which this potstill no longer reads; bench again")
    if schema != SCHEMA:
        raise UsageError(f"{file} has the schema {schema!r}; this potstill reads {SCHEMA!r}")
    try:
        return Report.model_validate(content)
    except ValidationError as error:
        fault = describe_fault(error.errors()[0], Report, whole="the whole")
        raise UsageError(f"{file} is not a whole report: {fault}; bench again") from error
