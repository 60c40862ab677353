"""The picture that a choice is made by: speed against quality, with every file's size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.bench.report.drawing.canvas import INK, Look, Picture, looks, picture, plain_log_axis
from potstill.bench.report.drawing.labels import LEADER_FROM, Box, Mark, gap, line_end, place
from potstill.bench.report.formatting import clean, load_words, mb, ms, number
from potstill.bench.report.selection import latency_at, main_load, main_quality, scores_of
from potstill.bench.report_schema import Interval, Report

# Areas in square points: the smallest that still tells the shapes apart, and how much more the largest file gets.
_SMALLEST, _MORE = 34.0, 290.0


@dataclass(frozen=True, slots=True)
class _Point:
    look: Look
    x: float
    y: float
    x_interval: Interval | None
    y_interval: Interval | None
    size_bytes: int | None

    def radius(self, largest: int) -> float:
        """Return half the width of its mark in points: the area grows with the file."""
        return math.sqrt(_SMALLEST + _MORE * (self.size_bytes or 0) / (largest or 1)) / 2


def trade_off(report: Report) -> Picture | None:
    """Draw latency against quality, or against file size where quality was not measured; None if too little was.

    A mark's area is the size of the file; lines through it are 95 % intervals.
    """
    load, quality = main_load(report), main_quality(report)
    points = _points(report)
    if load is None or not points:
        return None
    upward = "size of the files, MB"
    if quality:
        upward = f"{quality.metric.replace('_', ' ')} on {clean(quality.name, longest=24)}"

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _draw_points(axes, points)
        axes.set_xlabel(f"median latency, ms ({load_words(load)})")
        axes.set_ylabel(upward)
        if quality is None:
            axes.set_ylim(0, 1.15 * max(point.y for point in points))
        elif quality.lower_is_better:
            axes.invert_yaxis()
        _say_better(axes, top=quality is not None)
        _place_labels(figure, axes, points, corner_at_top=quality is not None)

    return picture(
        "trade-off", title="Speed against quality" if quality else "Speed against size",
        caption=_caption(points, with_quality=quality is not None), says=_says(points, upward), height_in=3.9,
        draw=draw,
    )  # fmt: skip


def _caption(points: Sequence[_Point], *, with_quality: bool) -> str:
    if not with_quality:
        return "Down and to the left is better. Quality was not measured. Lines are 95\u00a0% intervals."
    sizes = [point.size_bytes for point in points if point.size_bytes]
    size = f"The larger the mark, the larger its file: {mb(min(sizes))} to {mb(max(sizes))} MB. " if sizes else ""
    return f"Up and to the left is better. {size}Lines are 95\u00a0% intervals."


def _says(points: Sequence[_Point], upward: str) -> str:
    rows = (
        f"{point.look.name}: {ms(point.x)} ms, {number(point.y)}, file of {mb(point.size_bytes)} MB" for point in points
    )
    return f"Median latency in ms against {upward}. {'; '.join(rows)}."


def _say_better(axes: Any, *, top: bool) -> None:
    axes.annotate(
        "↖ better" if top else "↙ better", (0, 1 if top else 0), xycoords="axes fraction",
        xytext=(4, -3 if top else 4), textcoords="offset points", va="top" if top else "bottom", fontsize=9,
        fontweight="bold",
    )  # fmt: skip


def _points(report: Report) -> list[_Point]:
    quality, drawn = main_quality(report), looks(report)
    scores = scores_of(quality) if quality else None
    points = []
    for key, row in latency_at(report, main_load(report)).items():
        contestant = report.contestant(key)
        if contestant is None or row.p50_ms is None or row.disturbed:
            continue
        size = contestant.file_bytes
        found = scores.get(key) if scores is not None else None
        value = found.value if found else size / 1e6 if scores is None and size else None
        if value is not None:
            interval = found.interval if found else None
            points.append(_Point(drawn[key], row.p50_ms, value, row.intervals.get("p50"), interval, size))
    return points


def _draw_points(axes: Any, points: Sequence[_Point]) -> None:
    largest = max((point.size_bytes or 0 for point in points), default=0) or 1
    axes.set_xscale("log")
    for point in points:
        for interval, value, name in ((point.x_interval, point.x, "xerr"), (point.y_interval, point.y, "yerr")):
            if interval is not None:
                ends = [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
                axes.errorbar(
                    point.x, point.y, **{name: ends}, fmt="none", ecolor=point.look.colour, alpha=0.55, elinewidth=1.2
                )  # fmt: skip
        axes.plot(
            point.x, point.y, linestyle="none", **point.look.marks(),
            markersize=2 * point.radius(largest),
        )  # fmt: skip
    axes.grid(color=INK, alpha=0.13, linewidth=0.6)
    axes.margins(y=0.1)
    low, high = min(point.x for point in points), max(point.x for point in points)
    # Room for labels on either side.
    low, high = low / 1.9, high * 1.9
    axes.set_xlim(low, high)
    plain_log_axis(axes.xaxis, low, high)


def _place_labels(figure: Any, axes: Any, points: Sequence[_Point], *, corner_at_top: bool) -> None:
    """Write every point's name beside it; where that is far, with a line to it."""
    figure.draw_without_rendering()
    window = axes.get_window_extent()
    largest = max(point.size_bytes or 0 for point in points)
    middles = axes.transData.transform([(point.x, point.y) for point in points])
    marks = [Mark(float(x), float(y), point.radius(largest)) for (x, y), point in zip(middles, points, strict=True)]
    texts = [
        axes.annotate(
            point.look.name, (mark.x, mark.y), xycoords="figure points", xytext=(0, 0), textcoords="offset points",
            va="center", ha="center", fontsize=8.5,
        )
        for point, mark in zip(points, marks, strict=True)
    ]  # fmt: skip
    sizes = [(text.get_window_extent().width, text.get_window_extent().height) for text in texts]
    # The corner's "better" is taken.
    corner = window.y1 - 16 if corner_at_top else window.y0
    boxes = place(
        marks, sizes, taken=[(window.x0, corner, window.x0 + 58, corner + 16)],
        lines=[_upright(axes, point) for point in points if point.y_interval],
        within=(window.x0, window.y0, window.x1, window.y1),
    )  # fmt: skip
    for text, mark, box in zip(texts, marks, boxes, strict=True):
        text.set_in_layout(False)
        text.set_position(((box[0] + box[2]) / 2 - mark.x, (box[1] + box[3]) / 2 - mark.y))
        if gap(box, mark) > LEADER_FROM:
            _leader(axes, mark, line_end(box, mark))


def _leader(axes: Any, mark: Mark, end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-", "color": INK, "alpha": 0.55, "linewidth": 0.7, "shrinkA": 0, "shrinkB": mark.radius}
    line = axes.annotate(
        "", (mark.x, mark.y), xytext=end, xycoords="figure points", textcoords="figure points", arrowprops=style
    )
    line.set_in_layout(False)


def _upright(axes: Any, point: _Point) -> Box:
    """Return where the line of a point's interval runs."""
    low, high = point.y_interval or (point.y, point.y)
    (x, y0), (_, y1) = axes.transData.transform([(point.x, low), (point.x, high)])
    return float(x) - 1, float(min(y0, y1)), float(x) + 1, float(max(y0, y1))
