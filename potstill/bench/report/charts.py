"""The report's pictures, by the part of the page that they stand in."""

from collections.abc import Sequence

from potstill.bench.report.drawing.canvas import Picture
from potstill.bench.report.drawing.lines import scaling_picture, throughput_pictures
from potstill.bench.report.drawing.parts import cold_start_picture, memory_picture
from potstill.bench.report.drawing.scores import quality_picture
from potstill.bench.report.drawing.speed import latency_pictures, peak_picture, ratio_picture
from potstill.bench.report.drawing.trade_off import trade_off
from potstill.bench.report_schema import Report


def pictures(report: Report) -> dict[str, list[Picture]]:
    """Draw everything that was measured; a part of which nothing was has an empty list."""
    return {
        "trade_off": _there([trade_off(report)]),
        "ratios": _there([ratio_picture(report)]),
        "latency": latency_pictures(report),
        "throughput": throughput_pictures(report) + _there([scaling_picture(report)]),
        "memory": _there([memory_picture(report), cold_start_picture(report)]),
        "peak": _there([peak_picture(report)]),
        "quality": [
            quality_picture(report, quality, name=f"quality-{place}")
            for place, quality in enumerate(report.quality)
            if quality.scores
        ],
    }


def _there(found: Sequence[Picture | None]) -> list[Picture]:
    return [picture for picture in found if picture is not None]
