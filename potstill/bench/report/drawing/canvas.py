"""What every picture of the report shares: the canvas, the colours of models and the marks of precisions.

Pictures are SVG that takes its colours from the page, so they are legible in light and dark: the drawing uses
stand-ins, and the page's variables take their place. All are drawn as wide as a phone, so that text in them is never
smaller than what stands beside. matplotlib is loaded here and only here, without pyplot: nothing outlives a drawing.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.bench.report.formatting import name_of
from potstill.bench.report_schema import Contestant, Interval, Report

# Okabe and Ito's palette, told apart by colour-blind readers; in light pages darkened, in dark ones lightened until
# each has a contrast of 3 to the page (WCAG 2.2, 1.4.11).
LIGHT = ("#0072b2", "#c65300", "#00805d", "#a8517f", "#7a5c00", "#5c6670")
DARK = ("#56b4e9", "#ff9a4d", "#3ddbb0", "#e39ac4", "#e6c84f", "#b7c0c9")
MARKERS = {"fp32": "o", "fp16": "s", "bf16": "P", "int8": "D", "int8-static": "^"}
_OTHER_MARKER = "X"
_LINES = ("-", "--", ":", "-.")
# Stand-ins for the page's own colours, replaced after drawing.
INK, PAPER = "#010203", "#010204"
_WIDTH_IN = 4.2
_LONGEST_NAME = 22
# A pixel is a point, as in the SVG that comes out.
_DPI = 72
# Where a row's drawing has its middle, below its label.
MIDDLE = -0.13
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "potstill",
    "font.family": "sans-serif",
    "font.size": 9.5,
    # A dollar in somebody's model name is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    # Lines of single marks have this colour too, though nobody sees them.
    "axes.prop_cycle": f"cycler('color', ['{INK}'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing with its words."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Look:
    """How one contestant is drawn, in every picture the same."""

    name: str
    colour: str
    """A stand-in for its model's colour."""
    marker: str
    """Its precision's."""
    line: str
    """Its engine's."""
    hollow: bool
    """Whether its engine is another than the baseline's."""

    def marks(self) -> dict[str, Any]:
        """Return matplotlib's words for its mark."""
        return {
            "marker": self.marker, "markeredgecolor": self.colour, "markeredgewidth": 1.5,
            "markerfacecolor": PAPER if self.hollow else self.colour,
        }  # fmt: skip


def looks(report: Report) -> dict[str, Look]:
    """Return how each contestant is drawn, by key, in the report's order."""
    models, engines = model_order(report), engine_order(report)
    return {row.key: _look(row, models, engines) for row in report.contestants}


def _look(row: Contestant, models: Sequence[str], engines: Sequence[str]) -> Look:
    engine = engines.index(row.runner)
    return Look(
        name=name_of(row, longest=_LONGEST_NAME),
        colour=_stand_in(models.index(row.model) % len(LIGHT)),
        marker=MARKERS.get(row.precision, _OTHER_MARKER),
        line=_LINES[engine % len(_LINES)],
        hollow=engine > 0,
    )


def model_order(report: Report) -> list[str]:
    """Return the names of the models, in the order of their colours."""
    return list(dict.fromkeys(row.model for row in report.contestants))


def engine_order(report: Report) -> list[str]:
    """Return the engines, the baseline's first: its marks are filled."""
    baseline = report.contestant(report.baseline)
    first = [baseline.runner] if baseline else []
    return list(dict.fromkeys(first + [row.runner for row in report.contestants]))


def _stand_in(place: int) -> str:
    return f"#0103{place:02x}"


def picture(
    name: str, *, title: str, caption: str, says: str, height_in: float, draw: Callable[[Any], None]
) -> Picture:
    """Draw a figure of the page's width and return it as SVG for a page.

    Args:
        name: unique within the page; the ids inside begin with it.
        title: what is drawn.
        caption: how it is read.
        says: the same in words, for who cannot see it.
        height_in: in inches, beside a width of 4.2.
        draw: draws on the matplotlib figure that it is given.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    stream = io.StringIO()
    with rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser has letters that matplotlib's font has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        # A phone is narrow: no margin but the page's own.
        figure = Figure(
            figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02)
        )
        draw(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return Picture(name=name, title=title, caption=caption, svg=_for_page(stream.getvalue(), name=name, says=says))


def _for_page(svg: str, *, name: str, says: str) -> str:
    """Make matplotlib's file a part of a page: its ids unique, its size and its colours the page's."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", svg)
    # A hundredth of a point is finer than any screen.
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    # The page scales it; a fixed size would run off a phone.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(says)}"', 1)
    for place, colour in enumerate(LIGHT):
        svg = svg.replace(_stand_in(place), f"var(--model-{place}, {colour})")
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--page, #fff)")
    return svg.replace("'DejaVu Sans'", "system-ui")


def plain_log_axis(axis: Any, low: float, high: float) -> None:
    """Put three to six round numbers on a logarithmic axis, as a person writes them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(round_numbers(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def round_numbers(low: float, high: float) -> list[float]:
    """Return three to six round numbers between two positive ones, spread over a logarithmic axis.

    Decades where there are three, else 1-2-5, else ever finer even steps.
    """
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = [digit * 10.0**power for power in decades for digit in digits]
        found = [value for value in found if low <= value <= high]
        if 3 <= len(found) <= 6:
            return found
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    for size in (10 * step, 5 * step, 2.5 * step, 2 * step, step):
        found = [float(f"{value:.6g}") for value in np.arange(np.ceil(low / size), high / size + 1e-9) * size]
        if len(found) >= 3:
            return found[:: -(-len(found) // 6)]
    return found


def rows_panel(axes: Any, rows: Sequence[Look], values: Sequence[str]) -> None:
    """Prepare one row per contestant, from the top down: mark and name at the left, a value at the right, both above.

    Row `i` has its label at height -i; what is drawn below it should stay between -i - 0.35 and -i + 0.1.
    """
    across = axes.get_yaxis_transform()
    for place, (look, value) in enumerate(zip(rows, values, strict=True)):
        axes.plot(0.012, 0.31 - place, transform=across, markersize=5.5, clip_on=False, **look.marks())
        axes.text(0.035, 0.31 - place, look.name, transform=across, va="center", ha="left", fontsize=9)
        axes.text(1, 0.31 - place, value, transform=across, va="center", ha="right", fontsize=9, fontweight="bold")
    axes.set_ylim(0.52 - len(rows), 0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=INK, alpha=0.13, linewidth=0.6)


def rows_height(rows: int, *, row_in: float = 0.4) -> float:
    """Return the height in inches of a panel of so many rows, with its axis."""
    return 0.62 + row_in * rows


def dot(axes: Any, value: float, interval: Interval, look: Look, *, middle: float) -> None:
    """Draw a value and its interval at a height."""
    axes.plot(interval, [middle, middle], color=look.colour, linewidth=2.2, alpha=0.6, solid_capstyle="round")
    axes.plot(value, middle, **look.marks(), markersize=7, zorder=3)


def across_rows(axes: Any, where: float, *, rows: int, half_width: float = 0.0) -> None:
    """Draw a reference through every row but not through its label: a stroke, or a band about it."""
    for place in range(rows):
        low, high = MIDDLE - place - 0.24, MIDDLE - place + 0.24
        if half_width:
            axes.fill_between([where - half_width, where + half_width], low, high, color=INK, alpha=0.16, linewidth=0)
        axes.plot([where, where], [low, high], color=INK, alpha=0.7, linewidth=1)
