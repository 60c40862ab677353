"""The picture of one data set: every contestant's score."""

from collections.abc import Sequence
from typing import Any

from potstill.bench.report.drawing.canvas import (
    MIDDLE,
    Picture,
    across_rows,
    dot,
    looks,
    picture,
    rows_height,
    rows_panel,
)
from potstill.bench.report.formatting import clean, score
from potstill.bench.report.selection import in_order
from potstill.bench.report_schema import Quality, Report, Score


def quality_picture(report: Report, quality: Quality, *, name: str) -> Picture:
    """Draw every contestant's score on one data set with its interval, and what needs no model."""
    rows = in_order(report, quality.scores)
    drawn = [looks(report)[row.key] for row in rows]
    metric = quality.metric.replace("_", " ")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        rows_panel(axes, drawn, [score(row.value) for row in rows])
        for place, (row, look) in enumerate(zip(rows, drawn, strict=True)):
            dot(axes, row.value, row.interval, look, middle=MIDDLE - place)
        _trivial(axes, quality, rows)
        axes.set_xlabel(f"{metric}{', lower is better' if quality.lower_is_better else ''}")
        axes.locator_params(axis="x", nbins=6)

    values = "; ".join(
        f"{look.name}: {score(row.value)} ({score(row.interval[0])} to {score(row.interval[1])})"
        for row, look in zip(rows, drawn, strict=True)
    )
    return picture(
        name, title=clean(quality.name, longest=40),
        caption=f"{quality.num_examples:,} examples of {clean(quality.data)} ({clean(quality.split)}).",
        says=f"{metric} on {clean(quality.name)}, with 95 % intervals. {values}.",
        height_in=rows_height(len(rows), row_in=0.36), draw=draw,
    )  # fmt: skip


def _trivial(axes: Any, quality: Quality, rows: Sequence[Score]) -> None:
    """Draw the score of an answer that does not look, where that does not press the others together."""
    low, high = min(row.interval[0] for row in rows), max(row.interval[1] for row in rows)
    if quality.trivial is not None and low - 0.6 * (high - low) <= quality.trivial <= high + 0.6 * (high - low):
        across_rows(axes, quality.trivial, rows=len(rows))
