"""Print tables, JSON and progress: results on stdout, progress on stderr."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from potstill.progress import Progress

MAX_WIDTH = 100
"""Columns of a table at most."""
_LINE_SECONDS = 60.0
"""Seconds between two progress lines if stderr is not a terminal, as in a log file."""

# A cell of a column of numbers: 0.91, 1.5x, 3 of 4, 0.71 to 0.93, or no value.
_AMOUNT = re.compile(r"([+-]?\d[\d.,e+-]*\S{0,2}|[-–?]?)( (of|to) [\d.,?-]+)?$")

# Without a terminal rich assumes 80 columns, which are too few for the tables.
out = Console(width=None if sys.stdout.isatty() else MAX_WIDTH, soft_wrap=False)
err = Console(stderr=True)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield a `Progress` callback that draws one bar or, if stderr is no terminal, prints a line a minute."""
    if not err.is_terminal:
        yield _StageLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    # The time left follows from the steps of the last ten minutes: by default it is rich's 30 s, in which a long step
    # does not end.
    with Bars(*columns, console=err, transient=True, speed_estimate_period=600) as bars:
        yield _OneBar(bars)


class _OneBar:
    """A `Progress` callback that shows the bar of the stage that goes on, and leaves a line of each that has ended."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._ended: set[str] = set()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        # A stage may pause for another, as training does to score; its bar comes back with the next step.
        for name, task in self._tasks.items():
            if name != stage:
                self._bars.update(task, visible=False)
        if stage not in self._tasks:
            self._begun[stage] = monotonic()
            # A resumed stage begins with some steps done, which must not count for the pace.
            self._tasks[stage] = self._bars.add_task(stage, total=total or None, completed=done, note=note)
        is_over = bool(total) and done >= total
        bar = self._tasks[stage]
        self._bars.update(bar, completed=done, total=total or None, note=note, visible=not is_over)
        if is_over and stage not in self._ended:
            self._ended.add(stage)
            tell(f"{stage}: done in {duration(monotonic() - self._begun[stage])}{f' ({note})' if note else ''}")


class _StageLines:
    """A `Progress` callback that prints a line when a stage begins and ends, and one a minute between."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}
        self._ended: set[str] = set()
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        now, noted = monotonic(), f" ({note})" if note else ""
        if stage not in self._begun:
            # A resumed stage begins with some steps done, which must not count for the pace.
            self._begun[stage] = now, done
            self._say(f"{stage} ...", now)
        if total and done >= total:
            if stage not in self._ended:
                self._ended.add(stage)
                self._say(f"{stage}: done{noted}", now)
        elif now - self._last >= _LINE_SECONDS:
            since, first = self._begun[stage]
            left = f", about {duration((now - since) / (done - first) * (total - done))} to go" if done > first else ""
            self._say(f"{stage}: {done:,}{f' of {total:,}' if total else ''}{noted}{left if total else ''}", now)

    def _say(self, line: str, now: float) -> None:
        self._last = now
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Format seconds as whole minutes from 2 min on, else as whole seconds."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def tell(sentence: str) -> None:
    """Print a sentence on stderr."""
    err.print(sentence, highlight=False, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print one JSON document on stdout, past rich, which would wrap and colour it."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def print_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """Print a titled table of names and values; values of None are left out."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            table.add_row(name, str(value))
    out.print(table, markup=False, highlight=False)


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a titled table; columns of numbers are right-aligned, the first one and texts left."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(head):
        is_text = number == 0 or any(not _AMOUNT.match(str(row[number])) for row in rows)
        table.add_column(name, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out.print(table, markup=False, highlight=False)
