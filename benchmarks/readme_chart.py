"""Draw a report's trade-off for a page that is not the report's: one SVG for light and one for dark surroundings.

python benchmarks/readme_chart.py out/sst2-small/report/report.json --out docs/assets
"""

import argparse
from pathlib import Path

from potstill.bench import read_report
from potstill.bench.report.charts import trade_off
from potstill.bench.report.style import DARK, LIGHT, looks_of, plot_style
from potstill.files import write_text

# GitHub's text and background; an image has none of its page.
SCHEMES = {"light": ("#1f2328", "#ffffff", LIGHT), "dark": ("#e6edf3", "#0d1117", DARK)}
WIDTH_PX = 460


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    report = read_report(arguments.report)
    with plot_style():
        chart = trade_off(report, looks_of(report))
    if chart is None:
        raise SystemExit(f"{arguments.report} has no speed and quality to draw")
    for scheme, (ink, paper, colours) in SCHEMES.items():
        models = "".join(f" --model-{place}: {colour};" for place, colour in enumerate(colours))
        look = f"color: {ink}; --page: {paper};{models} font-family: system-ui, sans-serif"
        svg = chart.svg.replace("<svg", f'<svg width="{WIDTH_PX}" style="{look}"', 1)
        write_text(arguments.out / f"trade-off-{scheme}.svg", svg)


if __name__ == "__main__":
    main()
