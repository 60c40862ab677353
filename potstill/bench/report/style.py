"""How the report's charts look: colours of models, markers of precisions, and SVG that takes its colours from the page.

matplotlib's file fixes its colours; a page has a light and a dark scheme. So charts are drawn in the light palette and
in two marker colours, `INK` and `PAPER`, and `to_svg` replaces each with a CSS variable of the page.
"""

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from potstill.bench.report.formatting import name_of
from potstill.bench.report_schema import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; in light pages darkened, in dark ones lightened until
# each has a contrast of 3 to the page (WCAG 2.2, 1.4.11).
LIGHT = ("#0072b2", "#c65300", "#00805d", "#a8517f", "#7a5c00", "#5c6670")
DARK = ("#56b4e9", "#ff9a4d", "#3ddbb0", "#e39ac4", "#e6c84f", "#b7c0c9")
MARKERS = {"fp32": "o", "fp16": "s", "bf16": "P", "int8": "D", "int8-static": "^"}
_OTHER_MARKER = "X"
_LINE_STYLES = ("-", "--", ":", "-.")
# Stand for the page's text and background.
INK, PAPER = "#010203", "#010204"
# As wide as a phone's screen, so that text in a chart is never smaller than the text beside it.
_WIDTH_IN = 4.2
# Letters of a model's name, and of a line beside a row of a chart.
LONGEST_NAME = 18
_RC_PARAMS = {
    # Text stays text: it can be searched and read aloud, and takes the page's font.
    "svg.fonttype": "none",
    "svg.hashsalt": "potstill",  # the same ids, and so the same bytes, each time
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a dollar in a model's name is no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


class LineStyle(TypedDict):
    """Keyword arguments of matplotlib's `plot`, `errorbar` and `Line2D`: a marker, and the colour of its line."""

    color: str
    marker: str
    markersize: float
    markerfacecolor: str
    markeredgecolor: str
    markeredgewidth: float


@dataclass(frozen=True, slots=True)
class Look:
    """How one contestant is drawn, the same in every chart."""

    name: str
    colour: str
    """Its model's."""
    marker: str
    """Its precision's."""
    line_style: str
    """Its engine's."""
    hollow: bool
    """Whether its engine is another than the baseline's."""

    def style(self, marker_size: float = 6) -> LineStyle:
        """Return the keyword arguments that draw it, with a marker `marker_size` points wide."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": marker_size,
            "markerfacecolor": PAPER if self.hollow else self.colour,
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.5,
        }


def looks_of(report: Report) -> dict[str, Look]:
    """Return how each contestant is drawn, by key, in the report's order."""
    models, engines = model_order(report), engine_order(report)
    return {
        row.key: Look(
            name=name_of(row, longest=LONGEST_NAME),
            colour=LIGHT[models.index(row.model) % len(LIGHT)],
            marker=MARKERS.get(row.precision, _OTHER_MARKER),
            line_style=_LINE_STYLES[engines.index(row.runner) % len(_LINE_STYLES)],
            hollow=engines.index(row.runner) > 0,
        )
        for row in report.contestants
    }


def model_order(report: Report) -> list[str]:
    """Return the names of the models, in the order of their colours."""
    return list(dict.fromkeys(row.model for row in report.contestants))


def engine_order(report: Report) -> list[str]:
    """Return the engines, the baseline's first: its markers are filled."""
    baseline = report.contestant(report.baseline)
    first = [baseline.runner] if baseline else []
    return list(dict.fromkeys(first + [row.runner for row in report.contestants]))


@contextmanager
def plot_style() -> Iterator[None]:
    """Set matplotlib's parameters for the report while its charts are drawn and saved."""
    from matplotlib import rc_context

    with rc_context(_RC_PARAMS), warnings.catch_warnings():
        # The reader's browser has letters that matplotlib's font has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        yield


def new_figure(height_in: float) -> "Figure":
    """Return an empty figure as wide as every other; without pyplot, so that nothing keeps it alive."""
    from matplotlib.figure import Figure

    # 72 dots per inch: a pixel is a point, as in the SVG.
    return Figure(figsize=(_WIDTH_IN, height_in), dpi=72, layout="constrained")


def to_svg(figure: "Figure", name: str, description: str) -> str:
    """Return a figure as an `<svg>` element for the page.

    Args:
        figure: drawn under `plot_style`.
        name: unique within the page; the ids inside begin with it.
        description: what the figure shows in words, for readers who cannot see it.
    """
    stream = io.StringIO()
    # Without metadata, of which the date would be another each time.
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    # All charts are parts of one page, where an id may be there once only.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", svg)
    # A hundredth of a point is finer than any screen; the page is a third smaller.
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    # Without a size of its own it takes the page's width.
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
    # Behind each variable stands its fallback, for a chart outside the page.
    variables = {colour: f"var(--model-{place}, {colour})" for place, colour in enumerate(LIGHT)}
    variables |= {INK: "currentColor", PAPER: "var(--page, #fff)"}
    svg = re.sub(r'(: |=")(#[0-9a-f]{6})\b', lambda found: found[1] + variables.get(found[2], found[2]), svg)
    # The font that matplotlib measured with; the page shows its own.
    return svg.replace("'DejaVu Sans'", "system-ui")
