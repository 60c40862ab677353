"""A confusion matrix as a picture, for papers and pages with a white ground.

matplotlib is loaded here and only here, without pyplot, so nothing of it outlives a drawing.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill.errors import OutputError, UsageError
from potstill.extras import require
from potstill.files import write_text, writing

FORMATS = (".png", ".svg")
_DPI = 160
_CELL_IN = 0.62
_LARGEST_IN = 14.0
# Below this width of a cell, counts would run into each other and only colours are drawn.
_NARROWEST_IN = 0.3
_LONGEST_NAME = 28
# White figures on the dark half of the colours, black ones on the light half.
_DARK = 0.55
# SVG: text stays text, and ids come from a fixed salt, so that the same matrix gives the same file.
_STYLE = {"font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "potstill"}


def check_picture(file: Path) -> None:
    """Refuse a picture that could not be drawn or written, before the work that it shows.

    Raises:
        UsageError: if its name ends in no known format.
        OutputError: if its folder does not exist.
        MissingExtraError: if matplotlib is not installed.
    """
    if file.suffix not in FORMATS:
        raise UsageError(f"{file} is not a picture's name; expected one that ends in {' or '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise OutputError(f"there is no folder {file.parent} to write {file.name} to; make it first")
    require("matplotlib", extra="bench")


def draw_confusion(file: Path, matrix: ArrayLike, names: Sequence[str]) -> None:
    """Write a confusion matrix as a PNG or SVG, whole or not at all: counts in the cells, coloured by row.

    Args:
        file: ends in .png or .svg.
        matrix: counts of shape (classes, classes): row is the label, column the prediction.
        names: the classes by id; long ones are shortened.

    Raises:
        As `check_picture`.
    """
    check_picture(file)
    short = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    picture = _draw(np.asarray(matrix), short, format_=file.suffix[1:])
    if file.suffix == ".svg":
        write_text(file, picture.decode("utf-8"))
        return
    building = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        with writing(file):
            building.write_bytes(picture)
            building.replace(file)
    finally:
        building.unlink(missing_ok=True)


def _draw(matrix: NDArray[np.int64], names: Sequence[str], *, format_: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    count = len(names)
    # A count has about as many figures in every cell; the widest decides.
    cell = max(_CELL_IN, 0.11 * len(f"{matrix.max():,}") + 0.12)
    side = min(max(cell * count, 2.0), _LARGEST_IN)
    margin = 0.9 + 0.085 * max(map(len, names))
    stream = io.BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(side + margin + 1.0, side + margin), layout="constrained")
        axes = figure.subplots()
        # Coloured by row: else the rare classes of an uneven data set would all be white.
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        size = min(10.0, 72 * 0.9 * side / max(count, 1) / 2)
        if side / count >= _NARROWEST_IN:
            for row, column in np.ndindex(*matrix.shape):
                colour = "white" if shares[row, column] > _DARK else "#1a1a1a"
                text = f"{matrix[row, column]:,}"
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
        slanted = max(map(len, names)) > 8
        axes.set_xticks(
            range(count),
            names,
            rotation=45 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor",
            fontsize=size,
            parse_math=False,
        )
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        axes.tick_params(length=0)
        axes.set_xlabel("prediction", fontweight="bold")
        axes.set_ylabel("label", fontweight="bold")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the label's examples")
        bar.outline.set_visible(False)
        figure.savefig(stream, format=format_, dpi=_DPI, metadata={"Date": None} if format_ == "svg" else None)
    return stream.getvalue()
