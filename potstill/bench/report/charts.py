"""The report's charts, drawn with matplotlib: one function for each kind."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from potstill.bench.report.formatting import (
    DISTURBED,
    bounds,
    clean,
    load_words,
    mb,
    ms,
    number,
    percent,
    score,
    seconds,
)
from potstill.bench.report.selection import in_order, latency_at, loads_of, main_load, main_quality, ratio_at, scores_of
from potstill.bench.report.style import INK, LONGEST_NAME, PAPER, Look, looks_of, new_figure, plot_style, to_svg
from potstill.bench.report_schema import Interval, Load, Quality, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

Looks: TypeAlias = Mapping[str, Look]
"""How each contestant is drawn, by key."""

_LINE_CHART_HEIGHT_IN = 3.0
# Marker areas of the trade-off in square points: the smallest that still tells the shapes apart, and what the largest
# file gets more.
_SMALLEST_AREA, _AREA_MORE = 34.0, 290.0


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its words."""

    name: str
    title: str
    caption: str
    svg: str


def charts(report: Report) -> dict[str, list[Chart]]:
    """Draw everything that was measured, by the part of the page that it stands in; empty lists where nothing was."""
    looks = looks_of(report)
    callers = sorted({row.callers for row in report.throughput if not row.disturbed})
    with plot_style():
        drawn: dict[str, list[Chart | None]] = {
            "trade_off": [trade_off(report, looks)],
            "ratios": [ratios(report, looks)],
            "latency": [latency(report, looks, f"latency-{at}", load) for at, load in enumerate(loads_of(report))],
            "throughput": [*(throughput(report, looks, count) for count in callers), scaling(report, looks)],
            "memory": [memory(report, looks), cold_start(report, looks)],
            "peak": [peak(report, looks)],
            "quality": [scores(report, looks, f"quality-{at}", data) for at, data in enumerate(report.quality)],
        }
    return {part: [chart for chart in found if chart is not None] for part, found in drawn.items()}


@dataclass(frozen=True, slots=True)
class _Point:
    look: Look
    x: float
    x_interval: Interval | None
    y: float
    y_interval: Interval | None
    size_bytes: int


def _trade_off_points(report: Report, looks: Looks) -> list[_Point]:
    """Return the contestants that have a latency and a score, or a latency and a size where no score was measured."""
    quality = main_quality(report)
    scored = scores_of(quality) if quality else None
    points = []
    for key, timed in latency_at(report, main_load(report)).items():
        contestant = report.contestant(key)
        if contestant is None or timed.p50_ms is None or timed.disturbed:
            continue
        size, x_interval = contestant.file_bytes or 0, timed.intervals.get("p50")
        if scored is None and size:
            points.append(_Point(looks[key], timed.p50_ms, x_interval, size / 1e6, None, size))
        elif scored and key in scored:
            points.append(_Point(looks[key], timed.p50_ms, x_interval, scored[key].value, scored[key].interval, size))
    return points


def trade_off(report: Report, looks: Looks) -> Chart | None:
    """Draw latency against quality, or against file size where quality was not measured; None if there is too little.

    A marker's area grows with the file.
    """
    from matplotlib.lines import Line2D

    load, quality, points = main_load(report), main_quality(report), _trade_off_points(report, looks)
    if load is None or not points:
        return None
    figure = new_figure(3.9 + 0.08 * len(points))
    axes = figure.subplots()
    largest = max(point.size_bytes for point in points) or 1
    for point in points:
        look, x, y = point.look, point.x, point.y
        if point.x_interval:
            axes.errorbar(x, y, xerr=_errors([x], [point.x_interval]), fmt="none", ecolor=look.colour, alpha=0.55)
        if point.y_interval:
            axes.errorbar(x, y, yerr=_errors([y], [point.y_interval]), fmt="none", ecolor=look.colour, alpha=0.55)
        area = _SMALLEST_AREA + _AREA_MORE * point.size_bytes / largest
        # markersize is a width, and it is areas that readers compare.
        axes.plot(x, y, **look.style(area**0.5))
    _log_axis(axes, "x", min(point.x for point in points) / 1.3, max(point.x for point in points) * 1.3)
    upward = "size of the files, MB"
    if quality:
        upward = f"{quality.metric.replace('_', ' ')} on {clean(quality.name, longest=24)}"
    axes.set_xlabel(f"median latency, ms ({load_words(load)})")
    axes.set_ylabel(upward)
    axes.grid()
    axes.margins(y=0.1)
    if quality is None:
        axes.set_ylim(0, 1.15 * max(point.y for point in points))
        axes.text(0.015, 0.02, "↙ better", transform=axes.transAxes, va="bottom", fontweight="bold")
    else:
        # Better is always up, so that the arrow holds.
        axes.yaxis.set_inverted(quality.lower_is_better)
        axes.text(0.015, 0.98, "↖ better", transform=axes.transAxes, va="top", fontweight="bold")
    handles = [Line2D([], [], linestyle="none", label=point.look.name, **point.look.style()) for point in points]
    ncols = 2 if max(len(point.look.name) for point in points) < 26 else 1
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, handletextpad=0.2)

    caption = "Down and to the left is better. Quality was not measured."
    if quality:
        sizes = [point.size_bytes for point in points if point.size_bytes]
        of = f" The larger the mark, the larger its file: {mb(min(sizes))} to {mb(max(sizes))} MB." if sizes else ""
        caption = f"Up and to the left is better.{of}"
    told = "; ".join(
        f"{point.look.name}: {ms(point.x)} ms, {number(point.y)}, file of {mb(point.size_bytes or None)} MB"
        for point in points
    )
    return Chart(
        "trade-off",
        title="Speed against quality" if quality else "Speed against size",
        caption=f"{caption} Lines are 95\u00a0% intervals.",
        svg=to_svg(figure, "trade-off", f"Median latency in ms against {upward}. {told}."),
    )


def latency(report: Report, looks: Looks, name: str, load: Load) -> Chart | None:
    """Draw how the calls of every contestant are spread under one load: a violin each, on a logarithmic axis."""
    rows = [row for row in in_order(report, report.latency) if row.load == load and len(row.quantiles_ms) > 1]
    if not rows:
        return None
    figure = new_figure(_rows_height(len(rows)))
    values = [DISTURBED if row.disturbed else f"{ms(row.p50_ms)} ms" for row in rows]
    axes = _row_axes(figure, [looks[row.key] for row in rows], values)
    violins = axes.violinplot(
        # Without the first and the last quantile: one late call would widen the kernel of all.
        [row.quantiles_ms[1:-1] or row.quantiles_ms for row in rows],
        positions=range(len(rows)),
        orientation="horizontal",
        widths=0.8,
        showextrema=False,
    )
    bodies = cast("list[PolyCollection]", violins["bodies"])
    for at, (row, body) in enumerate(zip(rows, bodies, strict=True)):
        colour = looks[row.key].colour
        body.set(facecolor=colour, edgecolor=colour, alpha=0.4)
        tenth, median, ninetieth = np.quantile(row.quantiles_ms, [0.1, 0.5, 0.9])
        axes.hlines(at, row.quantiles_ms[0], row.quantiles_ms[-1], color=colour, linewidth=0.9)
        axes.hlines(at, tenth, ninetieth, color=colour, linewidth=2.4)
        axes.vlines(median, at - 0.4, at + 0.4, color=INK, linewidth=1.3)
    low, high = min(row.quantiles_ms[0] for row in rows), max(row.quantiles_ms[-1] for row in rows)
    # A single row shall not fill the axis with one call's noise.
    _log_axis(axes, "x", min(low * 0.94, high / 1.5), high * 1.06)
    axes.set_xlabel("ms per call (logarithmic)")

    words = load_words(load)
    told = "; ".join(
        f"{looks[row.key].name}: half of the calls take up to {ms(row.quantiles_ms[len(row.quantiles_ms) // 2])} ms, "
        f"all {ms(row.quantiles_ms[0])} to {ms(row.quantiles_ms[-1])}{f', {DISTURBED}' if row.disturbed else ''}"
        for row in rows
    )
    svg = to_svg(figure, name, f"Latency of {words}. {told}.")
    return Chart(name, title=f"{words[0].upper()}{words[1:]}", caption="", svg=svg)


def ratios(report: Report, looks: Looks) -> Chart | None:
    """Draw how many times as fast as the baseline each contestant is at the main load, beside the noise."""
    load = main_load(report)
    rows = [row for at in report.contestants if (row := ratio_at(report, at.key, load)) is not None]
    if not rows or load is None or report.baseline not in looks:
        return None
    figure = new_figure(_rows_height(len(rows)))
    values = [DISTURBED if row.disturbed else f"{row.value:.2f}×" for row in rows]
    axes = _row_axes(figure, [looks[row.candidate] for row in rows], values)
    floor = report.noise.at(load)
    if floor:
        axes.axvspan(1 - floor, 1 + floor, color=INK, alpha=0.16, linewidth=0)
    axes.axvline(1, color=INK, alpha=0.7, linewidth=1)
    ends = [1.0]
    for at, row in enumerate(rows):
        if not row.disturbed:
            errors = _errors([row.value], [row.interval])
            axes.errorbar(row.value, at, xerr=errors, linestyle="none", **looks[row.candidate].style())
            ends += row.interval
    _log_axis(axes, "x", min(ends) / 1.12, max(ends) * 1.12)
    against = looks[report.baseline].name
    axes.set_xlabel(f"times as fast as {against} (logarithmic)")

    told = "; ".join(
        f"{looks[row.candidate].name}: {DISTURBED if row.disturbed else f'{row.value:.2f} ({bounds(row.interval)})'}"
        for row in rows
    )
    band = " The grey band is noise: what the baseline shows against itself." if floor else ""
    return Chart(
        "ratios",
        title=f"Times as fast, {load_words(load)}",
        caption=f"Lines are 95\u00a0% intervals.{band}",
        svg=to_svg(figure, "ratios", f"Times as fast as {against}. {told}."),
    )


def peak(report: Report, looks: Looks) -> Chart | None:
    """Draw which share of the machine's peak each contestant reaches, a marker for each load."""
    shares: dict[str, list[float]] = {}
    for row in in_order(report, report.latency):
        if row.peak_share is not None:
            shares.setdefault(row.key, []).append(row.peak_share)
    if not shares:
        return None
    figure = new_figure(_rows_height(len(shares)))
    best = [f"at best {percent(max(values), digits=0)}" for values in shares.values()]
    axes = _row_axes(figure, [looks[key] for key in shares], best)
    for at, (key, values) in enumerate(shares.items()):
        in_percent = [100 * share for share in values]
        axes.hlines(at, min(in_percent), max(in_percent), color=looks[key].colour, linewidth=1.2, alpha=0.6)
        axes.plot(in_percent, [at] * len(values), linestyle="none", **looks[key].style())
    axes.set_xlim(0, max(100, *(103 * share for values in shares.values() for share in values)))
    axes.set_xlabel("% of the machine's measured peak")

    told = "; ".join(
        f"{looks[key].name}: {percent(min(values))} to {percent(max(values))}" for key, values in shares.items()
    )
    svg = to_svg(figure, "peak", f"Share of the measured peak over all loads. {told}.")
    return Chart("peak", title="Share of the machine's peak", caption="One mark per load.", svg=svg)


def throughput(report: Report, looks: Looks, callers: int) -> Chart:
    """Draw texts per second over batch sizes; charts of other numbers of callers have the same scale."""
    calm = [row for row in report.throughput if not row.disturbed]
    rows = sorted((row for row in calm if row.callers == callers), key=lambda row: row.load.batch_size)
    figure = new_figure(_LINE_CHART_HEIGHT_IN)
    axes = _doublings_axes(figure, [row.load.batch_size for row in rows])
    told = []
    for key, look in looks.items():
        own = [row for row in rows if row.key == key]
        if own:
            values = [row.texts_per_s for row in own]
            errors = _errors(values, [row.interval for row in own])
            sizes = [row.load.batch_size for row in own]
            axes.errorbar(sizes, values, yerr=errors, linestyle=look.line_style, **look.style())
            at_sizes = (f"{number(row.texts_per_s)} at batch {row.load.batch_size}" for row in own)
            told.append(f"{look.name}: {', '.join(at_sizes)}")
    # Of all numbers of callers, whose charts share this scale.
    ends = [end for row in calm for end in row.interval if end > 0] or [1.0]
    _log_axis(axes, "y", min(ends) / 1.15, max(ends) * 1.15)
    axes.set_xlabel("batch size")
    axes.set_ylabel("texts per second (logarithmic)")

    who, name = "1 caller" if callers == 1 else f"{callers} callers at once", f"throughput-{callers}"
    tokens = sorted({row.load.num_tokens or 0 for row in rows})
    return Chart(
        name,
        title=f"Throughput, {who}",
        caption=f"Texts of {' and '.join(map(str, tokens))} tokens; lines through the marks are 95\u00a0% intervals.",
        svg=to_svg(figure, name, f"Texts per second with {who}. {'; '.join(told)}."),
    )


def scaling(report: Report, looks: Looks) -> Chart | None:
    """Draw how many times as fast more threads make each contestant, beside the ideal."""
    rows = sorted((row for row in report.scaling if not row.disturbed), key=lambda row: row.threads)
    if not rows:
        return None
    most = rows[-1].threads
    figure = new_figure(_LINE_CHART_HEIGHT_IN)
    axes = _doublings_axes(figure, [row.threads for row in rows])
    axes.plot([1, most], [1, most], color=INK, alpha=0.45, linewidth=1, linestyle=":")
    axes.annotate("ideal", (most, most), xytext=(-6, 0), textcoords="offset points", ha="right", va="center")
    told = []
    for key, look in looks.items():
        own = [row for row in rows if row.key == key]
        if own:
            speedups, threads = [row.speedup for row in own], [row.threads for row in own]
            # The interval is that of p50; a speed-up is p50 with one thread / p50.
            alone_ms = [row.speedup * row.p50_ms for row in own]
            ends = [(p50 / row.interval[1], p50 / row.interval[0]) for p50, row in zip(alone_ms, own, strict=True)]
            errors = _errors(speedups, ends)
            axes.errorbar(threads, speedups, yerr=errors, linestyle=look.line_style, **look.style())
            told.append(f"{look.name}: " + ", ".join(f"{row.speedup:.2f} with {row.threads}" for row in own))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threads")
    axes.set_ylabel("times as fast as 1 thread")

    where = ", ".join(dict.fromkeys(str(row.load) for row in rows))
    return Chart(
        "scaling",
        title="Thread scaling",
        caption=f"Load {where}; 1 thread is 1.",
        svg=to_svg(figure, "scaling", f"Times as fast as with one thread. {'; '.join(told)}."),
    )


def memory(report: Report, looks: Looks) -> Chart | None:
    """Draw what every contestant's memory is made of."""
    rows = in_order(report, report.memory)
    parts: dict[str, list[float]] = {"interpreter": [], "imports": [], "model": [], "peak over it": []}
    for row in rows:
        steps = [0, row.interpreter_rss_bytes, row.imported_rss_bytes, row.loaded_rss_bytes, row.peak_bytes]
        for values, (start, end) in zip(parts.values(), pairwise(steps), strict=True):
            # A step can end with less than it began with, where a library gave memory back.
            values.append(max(0.0, (end - start) / 1e6))
    return _stacked_bars(
        [looks[row.key] for row in rows],
        parts,
        name="memory",
        title="Memory at the peak, by part",
        caption="Resident memory of a process that holds this model alone.",
        unit="MB",
        totals=[f"{mb(row.peak_bytes)} MB" for row in rows],
    )


def cold_start(report: Report, looks: Looks) -> Chart | None:
    """Draw what the time to the first answer is made of."""
    rows = in_order(report, report.cold_start)
    return _stacked_bars(
        [looks[row.key] for row in rows],
        {
            "process": [row.process_ms for row in rows],
            "imports": [row.import_ms for row in rows],
            "load": [row.load_ms for row in rows],
            "first answer": [row.first_answer_ms for row in rows],
        },
        name="cold-start",
        title="From nothing to the first answer",
        caption="A fresh process each time, its files already in the system's cache.",
        unit="ms",
        totals=[DISTURBED if row.disturbed else seconds(row.total_ms) for row in rows],
    )


def scores(report: Report, looks: Looks, name: str, quality: Quality) -> Chart | None:
    """Draw every contestant's score on one data set with its interval, and the score that needs no model."""
    rows = in_order(report, quality.scores)
    if not rows:
        return None
    figure = new_figure(_rows_height(len(rows)))
    axes = _row_axes(figure, [looks[row.key] for row in rows], [score(row.value) for row in rows])
    for at, row in enumerate(rows):
        errors = _errors([row.value], [row.interval])
        axes.errorbar(row.value, at, xerr=errors, linestyle="none", **looks[row.key].style())
    caption = f"{quality.num_examples:,} examples of {clean(quality.data)} ({clean(quality.split)})."
    low, high = min(row.interval[0] for row in rows), max(row.interval[1] for row in rows)
    margin = 0.6 * (high - low)
    # Farther away it would press the others together.
    if quality.trivial is not None and low - margin <= quality.trivial <= high + margin:
        axes.axvline(quality.trivial, color=INK, alpha=0.7, linewidth=1)
        caption += " The upright line: an answer that does not look at the text."
    metric = quality.metric.replace("_", " ")
    axes.set_xlabel(f"{metric}{', lower is better' if quality.lower_is_better else ''}")
    axes.locator_params(axis="x", nbins=6)

    told = "; ".join(
        f"{looks[row.key].name}: {score(row.value)} ({score(row.interval[0])} to {score(row.interval[1])})"
        for row in rows
    )
    svg = to_svg(figure, name, f"{metric} on {clean(quality.name)}, with 95\u00a0% intervals. {told}.")
    return Chart(name, title=clean(quality.name, longest=40), caption=caption, svg=svg)


def _stacked_bars(
    looks: Sequence[Look],
    parts: Mapping[str, Sequence[float]],
    *,
    name: str,
    title: str,
    caption: str,
    unit: str,
    totals: Sequence[str],
) -> Chart | None:
    """Draw four parts that add up to a total, a bar for each contestant; the third is the model's, in its colour."""
    from matplotlib.patches import Patch

    if not looks:
        return None

    def fills(colour: str) -> list[dict[str, Any]]:
        return [
            {"facecolor": INK, "alpha": 0.55},
            {"facecolor": INK, "alpha": 0.25},
            {"facecolor": colour},
            {"facecolor": PAPER, "edgecolor": colour, "hatch": "//////", "linewidth": 0.7},
        ]

    figure = new_figure(_rows_height(len(looks)) + 0.3)
    axes = _row_axes(figure, looks, totals)
    for at, look in enumerate(looks):
        start = 0.0
        for values, fill in zip(parts.values(), fills(look.colour), strict=True):
            axes.barh(at, values[at], left=start, height=0.6, **fill)
            start += values[at]
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)
    axes.locator_params(axis="x", nbins=6)
    handles = [Patch(label=part, **fill) for part, fill in zip(parts, fills(INK), strict=True)]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(parts), handlelength=0.9, columnspacing=1.1)

    told = "; ".join(
        f"{look.name}: " + ", ".join(f"{part} {number(values[at])}" for part, values in parts.items())
        for at, look in enumerate(looks)
    )
    return Chart(name, title=title, caption=caption, svg=to_svg(figure, name, f"{title}, in {unit}. {told}."))


def _row_axes(figure: "Figure", looks: Sequence[Look], values: Sequence[str]) -> "Axes":
    """Return axes with a row for each contestant from the top down, at heights 0, 1, ...: name left, value right."""
    axes = figure.subplots()
    axes.set_yticks(range(len(looks)), [textwrap.fill(look.name, LONGEST_NAME) for look in looks])
    # From high to low: row 0 is at the top.
    axes.set_ylim(len(looks) - 0.5, -0.5)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(looks)), values, fontweight="bold")
    for axis in (axes, right):
        axis.tick_params(axis="y", length=0)
        axis.spines[["left", "right"]].set_visible(False)
    axes.grid(axis="x")
    return axes


def _rows_height(rows: int) -> float:
    """Return the height in inches of a chart of so many rows, with its axis."""
    return 0.62 + 0.36 * rows


def _doublings_axes(figure: "Figure", measured: Sequence[int]) -> "Axes":
    """Return axes whose x is a scale of doublings, with a tick at every value that was measured."""
    axes = figure.subplots()
    steps = sorted(set(measured))
    axes.set_xscale("log", base=2)
    axes.set_xlim(steps[0] / 1.2, steps[-1] * 1.2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.grid()
    return axes


def _errors(values: Sequence[float], intervals: Sequence[Interval]) -> NDArray[np.float64]:
    """Return intervals as `errorbar` takes them, (2, values): how far below and above its value each one reaches."""
    low, high = np.asarray(intervals, dtype=float).T
    # errorbar refuses negative lengths, and a bootstrap's interval need not hold its value.
    return np.maximum([values - low, high - values], 0.0)


def _log_axis(axes: "Axes", which: Literal["x", "y"], low: float, high: float) -> None:
    """Make an axis logarithmic from `low` to `high`, with few round numbers as a person writes them."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    # The more decades, the fewer ticks in each, or their labels would touch.
    digits = (1, 2, 5) if high < 100 * low else (1, 3) if high < 1000 * low else (1,)
    # Within less than a factor of 5 a logarithmic locator finds hardly a tick.
    axis.set_major_locator(LogLocator(subs=digits) if high > 5 * low else MaxNLocator(5, steps=(1, 2, 5, 10)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,.10g}")
