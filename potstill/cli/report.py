"""Draw a bench report on the terminal: what is wrong with it, the verdicts, every contestant at a glance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from potstill.bench.report import tables
from potstill.bench.report.formatting import clean
from potstill.bench.report_schema import Report
from potstill.cli.render import MAX_WIDTH

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# The words say it; colours only repeat it.
_STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
# Below this the interval behind "times as fast" leaves too little for names.
_ROOMY = 96
_SHORTEST_NAME, _GAP = 8, 2


def render_report(report: Report, console: "Console") -> None:
    """Draw a report, at most 100 columns wide: warnings, verdicts, contestants, failures."""
    width = min(MAX_WIDTH, console.width)
    blocks = [_warnings(report), _verdicts(report), _overview(report, width=width), _failures(report)]
    for number, block in enumerate(block for block in blocks if block is not None):
        if number:
            console.print()
        console.print(block, width=width, highlight=False, markup=False)


def _warnings(report: Report) -> Table | None:
    """List why the numbers are to be taken with care; None if nothing speaks against them."""
    rows = []
    if not report.complete:
        missing = "; ".join(clean(name) for name in report.missing)
        rows.append(("INCOMPLETE", f"The bench was interrupted. Not measured: {missing or 'some of it'}."))
    rows += [("QUALITY", line) for line in tables.no_better(report)]
    if report.left_out:
        rows.append(("LEFT OUT", f"The budget had no time for: {'; '.join(map(clean, report.left_out))}."))
    rows += [("NOISE", clean(flag)) for flag in report.noise.flags]
    return _listed([(word, "bold yellow", Text(_together(line))) for word, line in rows])


def _verdicts(report: Report) -> Table | None:
    rows = []
    for claim in report.claims:
        line = Text(_together(f"{clean(claim.claim)}: "), style="bold")
        line.append(_together(clean(claim.summary)), style="not bold")
        rows.append((claim.verdict, _STYLES[claim.verdict], line))
    return _listed(rows)


def _failures(report: Report) -> Table | None:
    rows = []
    for name, stage, lost, kind, reason in tables.failures(report).groups[0][1]:
        rows.append(("failed", "bold red", Text(f"{name}, {stage}, {lost} ({kind}): {_together(reason)}")))
    return _listed(rows)


def _listed(rows: Sequence[tuple[str, str, Text]]) -> Table | None:
    """Put a word before each line, in its own column; None without lines."""
    if not rows:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for word, style, line in rows:
        grid.add_row(Text(word, style=style), line)
    return grid


def _overview(report: Report, *, width: int) -> "RenderableType":
    """Draw the table of contestants; what is kept is told without its interval, which the page has."""
    content = tables.overview(report)
    without = {"kept"} | ({"times as fast"} if width < _ROOMY else set())
    short = {at for at, heading in enumerate(content.head) if heading in without}
    rows = [
        [_together(_short(cell) if at in short else cell) for at, cell in enumerate(row)]
        for row in content.groups[0][1]
    ]
    # Names break, and headings between words; numbers never.
    widths = [
        max(*(len(word) for word in heading.split()), *(len(row[at]) for row in rows))
        for at, heading in enumerate(content.head)
    ]
    widths[0] = max(_SHORTEST_NAME, min(widths[0], width - sum(widths[1:]) - _GAP * len(widths[1:])))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for at, heading in enumerate(content.head):
        table.add_column(Text(heading), justify="right" if at else "left", overflow="fold", width=widths[at])
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(table, Text(_together(content.note), style="dim"))


def _short(cell: str) -> str:
    """Leave out the interval that stands in brackets."""
    return cell.partition(" (")[0]


def _together(text: str) -> str:
    """Close up what no line shall break in: rich breaks at no-break spaces too, and "95 %" would be torn."""
    return text.replace("\u00a0%", "%").replace("\u00a0", " ")
