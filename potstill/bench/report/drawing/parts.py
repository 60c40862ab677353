"""Pictures of what adds up: memory and the first answer, by part, one row per contestant."""

from collections.abc import Sequence
from typing import Any

from potstill.bench.report.drawing.canvas import INK, MIDDLE, PAPER, Picture, looks, picture, rows_height, rows_panel
from potstill.bench.report.formatting import DISTURBED, mb, number, seconds
from potstill.bench.report.selection import in_order
from potstill.bench.report_schema import ColdStart, Memory, Report


def memory_picture(report: Report) -> Picture | None:
    """Draw what every contestant's memory is made of."""
    rows = in_order(report, report.memory)
    parts = [_memory_parts(row) for row in rows]
    return _stack(
        report, [row.key for row in rows], parts, name="memory", title="Memory at the peak, by part", unit="MB",
        names=("interpreter", "imports", "model", "peak over it"), totals=[f"{mb(row.peak_bytes)} MB" for row in rows],
        caption="Resident memory of a process that holds this model alone.",
    )  # fmt: skip


def _memory_parts(row: Memory) -> list[float]:
    ends = [row.interpreter_rss_bytes, row.imported_rss_bytes, row.loaded_rss_bytes, row.peak_bytes]
    return [max(0.0, (end - start) / 1e6) for start, end in zip([0, *ends], ends, strict=False)]


def cold_start_picture(report: Report) -> Picture | None:
    """Draw what the time to the first answer is made of."""
    rows = in_order(report, report.cold_start)
    return _stack(
        report, [row.key for row in rows], [_cold_parts(row) for row in rows], name="cold-start",
        title="From nothing to the first answer", unit="ms", names=("process", "imports", "load", "first answer"),
        totals=[DISTURBED if row.disturbed else seconds(row.total_ms) for row in rows],
        caption="A fresh process each time, its files already in the system's cache.",
    )  # fmt: skip


def _cold_parts(row: ColdStart) -> list[float]:
    return [row.process_ms, row.import_ms, row.load_ms, row.first_answer_ms]


def _stack(
    report: Report, keys: Sequence[str], parts: Sequence[Sequence[float]], *, name: str, title: str, unit: str,
    names: Sequence[str], totals: Sequence[str], caption: str,
) -> Picture | None:  # fmt: skip
    """Draw parts side by side, adding up to the total; the third is the model's own and has its colour."""
    if not keys:
        return None
    drawn = [looks(report)[key] for key in keys]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        rows_panel(axes, drawn, totals)
        for place, (values, look) in enumerate(zip(parts, drawn, strict=True)):
            start = 0.0
            for value, style in zip(values, _fills(look.colour), strict=True):
                axes.barh(MIDDLE - place, value, left=start, height=0.3, **style)
                start += value
        axes.set_xlim(0, 1.02 * max(sum(values) for values in parts))
        axes.set_xlabel(unit)
        axes.locator_params(axis="x", nbins=6)
        _legend(axes, names)

    says = "; ".join(
        f"{look.name}: " + ", ".join(f"{part} {number(value)}" for part, value in zip(names, values, strict=True))
        for values, look in zip(parts, drawn, strict=True)
    )
    return picture(
        name, title=title, caption=caption, says=f"{title}, in {unit}. {says}.",
        height_in=rows_height(len(keys)) + 0.3, draw=draw,
    )  # fmt: skip


def _fills(colour: str) -> list[dict[str, Any]]:
    return [
        {"color": INK, "alpha": 0.55, "linewidth": 0},
        {"color": INK, "alpha": 0.25, "linewidth": 0},
        {"color": colour, "linewidth": 0},
        {"facecolor": PAPER, "edgecolor": colour, "hatch": "//////", "linewidth": 0.7},
    ]


def _legend(axes: Any, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(**style, label=name) for name, style in zip(names, _fills(INK), strict=True)]
    axes.figure.legend(
        handles=patches, loc="outside upper left", ncols=len(names), frameon=False, fontsize=8.5, handlelength=0.9,
        handletextpad=0.4, columnspacing=1.1, borderpad=0, borderaxespad=0.1,
    )  # fmt: skip
