"""The report's pictures, as SVG that takes its text colour from the page: legible in light and dark.

matplotlib is loaded here and only here, without pyplot, so nothing of it outlives a drawing.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.bench.wording import ms

# Okabe and Ito's blue and vermilion, told apart by colour-blind readers; a page may set brighter ones for the dark.
COLOURS = {"teacher": "#0072b2", "student": "#d55e00"}
_MARKERS = {"fp32": "o", "fp16": "s", "int8": "D"}
# A stand-in for the page's own text colour, replaced after drawing.
_INK = "#010203"
_WIDTH_IN = 5.0
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "potstill",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def latency_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw p50 (dot) to p90 (end of the line) of every model, one panel per cell; return SVG."""
    cells = sorted({(row["batch_size"], row["num_tokens"]) for row in rows})

    def draw(figure: Any) -> None:
        for axes, cell in zip(figure.subplots(len(cells), squeeze=False)[:, 0], cells, strict=True):
            _latency_panel(axes, [row for row in rows if (row["batch_size"], row["num_tokens"]) == cell])
            axes.set_title(f"batch {cell[0]}, {cell[1]} tokens", fontsize=10, loc="left", fontweight="bold")
        axes.set_xlabel("latency of one call, ms")

    names = len({(row["model"], row["precision"]) for row in rows})
    return _svg(draw, prefix="latency", height_in=0.6 + len(cells) * (0.55 + 0.26 * names))


def trade_off_chart(report: Mapping[str, Any]) -> str:
    """Draw file size against quality, or against throughput where quality was not measured; return SVG."""
    points, label = _trade_off_points(report)
    largest = max((size_mb for size_mb, _ in points.values()), default=1.0)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for (model, precision), (size_mb, value) in points.items():
            axes.scatter(size_mb, value, s=70, color=COLOURS[model], marker=_MARKERS[precision], zorder=3)
            # Towards the middle, so that no label leaves the picture.
            left = size_mb > largest / 2
            axes.annotate(
                f"{model} {precision}", (size_mb, value), textcoords="offset points",
                xytext=(-9 if left else 9, 0), ha="right" if left else "left", va="center",
            )  # fmt: skip
        axes.set_xlim(left=0, right=largest * 1.1)
        axes.margins(y=0.35)
        axes.set_xlabel("size of the ONNX file, MB")
        axes.set_ylabel(label)
        axes.grid(color=_INK, alpha=0.15, linewidth=0.6)

    return _svg(draw, prefix="tradeoff", height_in=3.6)


def trade_off_label(report: Mapping[str, Any]) -> str:
    """Say what the second chart's upward axis is."""
    return _trade_off_points(report)[1]


def _trade_off_points(report: Mapping[str, Any]) -> tuple[dict[tuple[str, str], tuple[float, float]], str]:
    quality, latency = report["quality"], report["latency"]
    if quality and quality["values"]:
        label = f"{quality['metric'].replace('_', ' ')} ({quality['split']})"
        values = {tuple(name.split("/")): value for name, value in quality["values"].items()}
    else:
        longest = max((row["num_tokens"] for row in latency), default=0)
        smallest = min((row["batch_size"] for row in latency), default=0)
        label = f"texts per second (batch {smallest}, {longest} tokens)"
        values = {
            (row["model"], row["precision"]): row["throughput_per_s"]
            for row in latency
            if (row["batch_size"], row["num_tokens"]) == (smallest, longest) and row["throughput_per_s"]
        }
    sizes = {
        (model, precision): record["size_bytes"] / 1e6
        for model, facts in report["models"].items()
        for precision, record in facts["precisions"].items()
    }
    return {key: (sizes[key], values[key]) for key in sizes if key in values}, label


def _latency_panel(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    rows = [row for row in rows if row["p50_ms"] is not None]
    farthest = max((row["p90_ms"] or row["p50_ms"] for row in rows), default=1.0)
    for height, row in enumerate(reversed(rows)):
        colour, end = COLOURS[row["model"]], row["p90_ms"] or row["p50_ms"]
        axes.plot([row["p50_ms"], end], [height, height], color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axes.plot([end, end], [height - 0.16, height + 0.16], color=colour, linewidth=1.5)
        axes.scatter(row["p50_ms"], height, s=42, color=colour, marker=_MARKERS[row["precision"]], zorder=3)
        axes.annotate(
            ms(row["p50_ms"]), (end, height), textcoords="offset points", xytext=(6, 0), va="center", fontsize=9
        )
    axes.set_yticks(range(len(rows)), [f"{row['model']} {row['precision']}" for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, farthest * 1.18)
    axes.grid(axis="x", color=_INK, alpha=0.15, linewidth=0.6)
    axes.tick_params(axis="y", length=0)


def _svg(draw: Any, *, prefix: str, height_in: float) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Two drawings share a page: their ids must not collide.
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\1{prefix}-", svg)
    # The page scales it; a fixed size would run off a phone.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for model, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{model}, {colour})")
    return svg.replace(_INK, "currentColor").replace("'DejaVu Sans'", "system-ui")
