"""Pictures with one line per contestant: throughput over batch sizes, and speed over threads."""

from collections.abc import Sequence
from typing import Any

from potstill.bench.report.drawing.canvas import INK, Look, Picture, looks, picture, plain_log_axis
from potstill.bench.report.formatting import number
from potstill.bench.report_schema import Interval, Report, Scaling, Throughput

_HEIGHT_IN = 3.0


def throughput_pictures(report: Report) -> list[Picture]:
    """Draw texts per second over batch sizes, one picture per number of callers, all to one scale."""
    drawn, found = looks(report), []
    calm = [row for row in report.throughput if not row.disturbed]
    ends = [end for row in calm for end in row.interval if end > 0] or [1.0]
    scale = min(ends) / 1.15, max(ends) * 1.15
    for callers in sorted({row.callers for row in calm}):
        rows = [row for row in calm if row.callers == callers]
        found.append(_throughput_picture(rows, drawn, callers=callers, scale=scale))
    return found


def _throughput_picture(
    rows: Sequence[Throughput], drawn: dict[str, Look], *, callers: int, scale: Interval
) -> Picture:
    who = "1 caller" if callers == 1 else f"{callers} callers at once"
    tokens = sorted({row.load.num_tokens or 0 for row in rows})
    lines = {
        key: sorted((row.load.batch_size, row.texts_per_s, row.interval) for row in rows if row.key == key)
        for key in drawn
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for key, line in lines.items():
            _line(axes, line, drawn[key])
        _steps(axes, sorted({row.load.batch_size for row in rows}))
        axes.set_yscale("log")
        axes.set_ylim(*scale)
        plain_log_axis(axes.yaxis, *scale)
        axes.set_xlabel("batch size")
        axes.set_ylabel("texts per second (logarithmic)")

    says = "; ".join(
        f"{drawn[key].name}: " + ", ".join(f"{number(value)} at batch {size}" for size, value, _ in line)
        for key, line in lines.items()
        if line
    )
    return picture(
        f"throughput-{callers}", title=f"Throughput, {who}",
        caption=f"Texts of {' and '.join(map(str, tokens))} tokens; lines through the marks are 95\u00a0% intervals.",
        says=f"Texts per second with {who}. {says}.", height_in=_HEIGHT_IN, draw=draw,
    )  # fmt: skip


def scaling_picture(report: Report) -> Picture | None:
    """Draw how many times as fast more threads make each contestant, beside the ideal."""
    rows, drawn = [row for row in report.scaling if not row.disturbed], looks(report)
    if not rows:
        return None
    most = max(row.threads for row in rows)
    lines = {key: sorted(_scaled(row) for row in rows if row.key == key) for key in drawn}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([1, most], [1, most], color=INK, alpha=0.45, linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            "ideal", (most, most), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=9
        )
        for key, line in lines.items():
            _line(axes, line, drawn[key])
        _steps(axes, sorted({row.threads for row in rows}))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("threads")
        axes.set_ylabel("times as fast as 1 thread")

    says = "; ".join(
        f"{drawn[key].name}: " + ", ".join(f"{value:.2f} with {threads}" for threads, value, _ in line)
        for key, line in lines.items()
        if line
    )
    where = ", ".join(dict.fromkeys(str(row.load) for row in rows))
    return picture(
        "scaling", title="Thread scaling", caption=f"Load {where}; 1 thread is 1.",
        says=f"Times as fast as with one thread. {says}.", height_in=_HEIGHT_IN, draw=draw,
    )  # fmt: skip


def _scaled(row: Scaling) -> tuple[int, float, Interval]:
    alone = row.speedup * row.p50_ms
    return row.threads, row.speedup, (alone / row.interval[1], alone / row.interval[0])


def _line(axes: Any, line: Sequence[tuple[int, float, Interval]], look: Look) -> None:
    if not line:
        return
    at, values = [point[0] for point in line], [point[1] for point in line]
    axes.plot(at, values, color=look.colour, linestyle=look.line, linewidth=1.4, markersize=6, **look.marks())
    for where, _, interval in line:
        axes.plot([where, where], interval, color=look.colour, linewidth=1.2, alpha=0.6)


def _steps(axes: Any, steps: Sequence[int]) -> None:
    """Put a tick at every value that was measured, on a scale of doublings."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xlim(min(steps) / 1.2, max(steps) * 1.2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=INK, alpha=0.13, linewidth=0.6)
