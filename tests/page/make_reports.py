"""Write made reports for the browser: a whole one, a minimal one, and an incomplete one with hostile names.

python tests/page/make_reports.py OUT
"""

import sys
from pathlib import Path

from potstill.bench import report_schema
from potstill.bench.claims import decide, load_claims
from potstill.bench.report import write_report
from tests.bench import made

HOSTILE = "<script>alert('student')</script>"
_LINK = "<img src=https://example.com/x.png onerror=alert(1)>"


def hostile():
    """Return an incomplete report whose names and texts try to become part of the page."""
    text = made.incomplete().model_dump_json(by_alias=True)
    report = report_schema.Report.model_validate_json(text.replace("student", HOSTILE))
    worst = "a" * 300
    failure = report_schema.Failure(key=report.baseline, stage="quality", kind="crash", reason=f"{_LINK} {worst}")
    quality = [
        row.model_copy(
            update={
                "name": f'{row.name}"><b>{_LINK}',
                "data": worst,
                "confusion": [found.model_copy(update={"labels": [_LINK, worst[:60]]}) for found in row.confusion],
            }
        )
        for row in report.quality
    ]
    return report.model_copy(
        update={
            "command": f"potstill bench {_LINK} \u202e {worst}",
            "failures": [failure],
            "quality": quality,
            "notes": [f"</style>{_LINK}", "${7*7} {{ 7 * 7 }} $\\frac{a}{b}$"],
            "missing": [*report.missing, _LINK],
        }
    )


def main(out):
    reports = {"whole": made.made_report(), "minimal": made.minimal(), "hostile": hostile()}
    for name, report in reports.items():
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        claims = report.claims if name == "hostile" else decide(report, load_claims(None))
        write_report(report.model_copy(update={"claims": claims}), folder)


if __name__ == "__main__":
    main(sys.argv[1])
