"""Print a bench report on the terminal: warnings, verdicts of the claims, the table of models, failures."""

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

# Colours only repeat the words: not every terminal, and not every reader, tells red from green.
_STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
# What of the table of models is left out, and whose intervals, until it is narrow enough.
_NARROWER = (
    (set[str](), {"kept"}),
    ({tables.WORST_LABEL}, {"kept"}),
    ({tables.WORST_LABEL}, {"kept", "times as fast"}),
)
# Columns: the least for a name, what is enough for one, and between two columns of the table.
_SHORTEST_NAME, _ROOMY_NAME, _GAP = 8, 20, 2


def render_report(report: Report, console: "Console") -> None:
    """Print a report at most `MAX_WIDTH` columns wide: warnings, verdicts, models, failures."""
    width = min(MAX_WIDTH, console.width)
    blocks = [_warnings(report), _verdicts(report), _overview(report, width=width), _failures(report)]
    for number, block in enumerate(block for block in blocks if block is not None):
        if number:
            console.print()
        console.print(block, width=width, highlight=False, markup=False)


def _warnings(report: Report) -> Table | None:
    """Return the reasons to take the numbers with care, or None if there is none."""
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
    """Return the claims with their verdicts and reasons, or None without claims."""
    rows = []
    for claim in report.claims:
        line = Text(_together(f"{clean(claim.claim)}: "), style="bold")
        line.append(_together(clean(claim.summary)), style="not bold")
        rows.append((claim.verdict, _STYLES[claim.verdict], line))
    return _listed(rows)


def _failures(report: Report) -> Table | None:
    """Return what failed, in which stage and why, or None."""
    rows = []
    for name, stage, lost, kind, reason in tables.failures(report).groups[0][1]:
        rows.append(("failed", "bold red", Text(f"{name}, {stage}, {lost} ({kind}): {_together(reason)}")))
    return _listed(rows)


def _listed(rows: Sequence[tuple[str, str, Text]]) -> Table | None:
    """Return a grid of (word, style, line) rows, or None without rows."""
    if not rows:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for word, style, line in rows:
        grid.add_row(Text(word, style=style), line)
    return grid


def _overview(report: Report, *, width: int) -> "RenderableType":
    """Return the table of models; intervals that do not fit are left out here and stand on the HTML page."""
    content = tables.overview(report)
    for left_out, shortened in _NARROWER:
        places = [at for at, heading in enumerate(content.head) if heading not in left_out]
        head = [content.head[at] for at in places]
        rows = [
            [_together(_short(row[at]) if content.head[at] in shortened else row[at]) for at in places]
            for row in content.groups[0][1]
        ]
        # Names may break anywhere and headings between words; a number that breaks would be read wrongly.
        widths = [
            max(*(len(word) for word in heading.split()), *(len(row[at]) for row in rows))
            for at, heading in enumerate(head)
        ]
        if min(widths[0], _ROOMY_NAME) + sum(widths[1:]) + _GAP * (len(widths) - 1) <= width:
            break
    # The names take what the numbers leave.
    widths[0] = max(_SHORTEST_NAME, min(widths[0], width - sum(widths[1:]) - _GAP * len(widths[1:])))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for at, heading in enumerate(head):
        table.add_column(Text(heading), justify="right" if at else "left", overflow="fold", width=widths[at])
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(table, Text(_together(content.note), style="dim"))


def _short(cell: str) -> str:
    """Return a cell without the interval in brackets."""
    return cell.partition(" (")[0]


def _together(text: str) -> str:
    """Replace no-break spaces, at which rich breaks lines all the same: the one in "95 %" is dropped."""
    return text.replace("\u00a0%", "%").replace("\u00a0", " ")
