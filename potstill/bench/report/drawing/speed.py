"""Pictures of speed, one row per contestant: how calls are spread, how many times as fast, which share of the peak."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.bench.report.drawing import canvas
from potstill.bench.report.drawing.canvas import (
    INK,
    MIDDLE,
    Look,
    Picture,
    looks,
    picture,
    plain_log_axis,
    rows_height,
    rows_panel,
)
from potstill.bench.report.formatting import DISTURBED, bounds, load_words, ms, percent
from potstill.bench.report.selection import in_order, loads_of, main_load, ratio_at
from potstill.bench.report_schema import Latency, Load, Report

# Half the height of a strip; the label needs the rest of the row.
_HALF = 0.2


def latency_pictures(report: Report) -> list[Picture]:
    """Draw how the calls of every contestant are spread, one picture per load, on logarithmic axes."""
    drawn, found = looks(report), []
    for number_, load in enumerate(loads_of(report)):
        rows = [row for row in in_order(report, report.latency) if row.load == load and len(row.quantiles_ms) > 1]
        if rows:
            found.append(_latency_picture(f"latency-{number_}", load, rows, [drawn[row.key] for row in rows]))
    return found


def _latency_picture(name: str, load: Load, rows: Sequence[Latency], drawn: Sequence[Look]) -> Picture:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        rows_panel(axes, drawn, [DISTURBED if row.disturbed else f"{ms(row.p50_ms)} ms" for row in rows])
        for place, (row, look) in enumerate(zip(rows, drawn, strict=True)):
            _strip(axes, row, look, MIDDLE - place)
        low, high = min(row.quantiles_ms[0] for row in rows), max(row.quantiles_ms[-1] for row in rows)
        # A single row shall not fill the axis with one call's noise.
        low, high = min(low * 0.94, high / 1.5), high * 1.06
        axes.set_xlim(low, high)
        plain_log_axis(axes.xaxis, low, high)
        axes.set_xlabel("ms per call (logarithmic)")

    words = load_words(load)
    spread = "; ".join(
        f"{look.name}: half of the calls take up to {ms(row.quantiles_ms[len(row.quantiles_ms) // 2])} ms, "
        f"all {ms(row.quantiles_ms[0])} to {ms(row.quantiles_ms[-1])}{f', {DISTURBED}' if row.disturbed else ''}"
        for row, look in zip(rows, drawn, strict=True)
    )
    return picture(
        name, title=f"{words[0].upper()}{words[1:]}", caption="", says=f"Latency of {words}. {spread}.",
        height_in=rows_height(len(rows)), draw=draw,
    )  # fmt: skip


def density(quantiles: Sequence[float], at: np.ndarray) -> np.ndarray:
    """Return how densely calls lie at the logarithms `at`, the highest being 1: a kernel density over quantiles.

    Evenly spaced quantiles are a sample of the distribution that they come from. The width of the kernel is
    Silverman's (Density Estimation 1986, equation 3.31), which takes the smaller of standard deviation and
    interquartile range / 1.34, so that a few late calls do not blur the rest.
    """
    points = np.log(np.asarray(quantiles, dtype=float))
    quartiles = np.quantile(points, [0.25, 0.75])
    spread = min(float(points.std()), float(quartiles[1] - quartiles[0]) / 1.34) or float(points.std())
    width = max(0.9 * spread * len(points) ** -0.2, 1e-4)
    heights = np.exp(-0.5 * ((at[:, None] - points[None, :]) / width) ** 2).sum(axis=1)
    return np.asarray(heights / heights.max())


def _strip(axes: Any, row: Latency, look: Look, middle: float) -> None:
    """Draw a violin, a line from the 10th to the 90th percentile, and a stroke at the median."""
    quantiles = np.asarray(row.quantiles_ms)
    at = np.linspace(np.log(quantiles[0]), np.log(quantiles[-1]), 90)
    half = _HALF * density(row.quantiles_ms, at)
    axes.fill_between(np.exp(at), middle - half, middle + half, color=look.colour, alpha=0.4, linewidth=0.6)
    axes.plot(quantiles[[0, -1]], [middle, middle], color=look.colour, linewidth=0.9, alpha=0.8)
    tenth, ninetieth = np.quantile(quantiles, [0.1, 0.9])
    axes.plot([tenth, ninetieth], [middle, middle], color=look.colour, linewidth=2.4, solid_capstyle="butt")
    axes.plot([np.median(quantiles)] * 2, [middle - _HALF, middle + _HALF], color=INK, linewidth=1.3)


def ratio_picture(report: Report) -> Picture | None:
    """Draw how many times as fast as the baseline each contestant is at the main load, beside the noise."""
    load = main_load(report)
    found = {row.key: ratio_at(report, row.key, load) for row in report.contestants}
    ratios = {key: ratio for key, ratio in found.items() if ratio is not None}
    baseline = report.contestant(report.baseline)
    if not ratios or load is None or baseline is None:
        return None
    drawn, floor = looks(report), report.noise.at(load)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        labels = [DISTURBED if row.disturbed else f"{row.value:.2f}×" for row in ratios.values()]
        rows_panel(axes, [drawn[key] for key in ratios], labels)
        for place, (key, row) in enumerate(ratios.items()):
            if not row.disturbed:
                canvas.dot(axes, row.value, row.interval, drawn[key], middle=MIDDLE - place)
        canvas.across_rows(axes, 1.0, rows=len(ratios), half_width=floor or 0.0)
        ends = [1.0, *(end for row in ratios.values() if not row.disturbed for end in row.interval)]
        low, high = min(ends) / 1.12, max(ends) * 1.12
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        plain_log_axis(axes.xaxis, low, high)
        axes.set_xlabel(f"times as fast as {drawn[baseline.key].name} (logarithmic)")

    says = "; ".join(
        f"{drawn[key].name}: " + (DISTURBED if row.disturbed else f"{row.value:.2f} ({bounds(row.interval)})")
        for key, row in ratios.items()
    )
    band = " The grey band is noise: what the baseline shows against itself." if floor else ""
    return picture(
        "ratios", title=f"Times as fast, {load_words(load)}", caption=f"Lines are 95\u00a0% intervals.{band}",
        says=f"Times as fast as {drawn[baseline.key].name}. {says}.",
        height_in=rows_height(len(ratios), row_in=0.36), draw=draw,
    )  # fmt: skip


def peak_picture(report: Report) -> Picture | None:
    """Draw which share of the machine's peak each contestant reaches, a mark per load."""
    rows = [row for row in in_order(report, report.latency) if row.peak_share is not None]
    keys = list(dict.fromkeys(row.key for row in rows))
    if not keys:
        return None
    drawn = looks(report)
    shares = {key: [row.peak_share or 0.0 for row in rows if row.key == key] for key in keys}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        best = [f"at best {percent(max(shares[key]), digits=0)}" for key in keys]
        rows_panel(axes, [drawn[key] for key in keys], best)
        for place, key in enumerate(keys):
            values, middle = [100 * share for share in shares[key]], MIDDLE - place
            axes.plot([min(values), max(values)], [middle] * 2, color=drawn[key].colour, linewidth=1.2, alpha=0.6)
            axes.plot(values, [middle] * len(values), linestyle="none", markersize=6, **drawn[key].marks())
        axes.set_xlim(left=0, right=max(100.0, *(103 * row for key in keys for row in shares[key])))
        axes.set_xlabel("% of the machine's measured peak")

    says = "; ".join(f"{drawn[key].name}: {percent(min(shares[key]))} to {percent(max(shares[key]))}" for key in keys)
    return picture(
        "peak", title="Share of the machine's peak", caption="One mark per load.",
        says=f"Share of the measured peak over all loads. {says}.",
        height_in=rows_height(len(keys), row_in=0.36), draw=draw,
    )  # fmt: skip
