"""Where names stand beside their marks, so that they cover nothing and none is taken for another's."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""

_DIRECTIONS = [(round(math.cos(angle), 3), round(math.sin(angle), 3)) for angle in (k * math.pi / 8 for k in range(16))]
_GAPS = (3.0, 7.0, 13.0, 20.0, 28.0, 38.0)
_PASSES = 4
# What a square point of overlap, a point of distance and a name that stands nearer to another mark cost. Set by eye.
_OVER_NAME, _OVER_MARK, _OVER_LINE, _BEYOND, _AWAY, _NEARER_TO_ANOTHER = 6.0, 8.0, 4.0, 60.0, 2.0, 60.0
_LINE_OVER_MARK = 60.0
# Points between a mark and its name from which a line joins them.
LEADER_FROM = 9.0


class Mark(NamedTuple):
    """A mark that gets a name: its middle and half its width, in points."""

    x: float
    y: float
    radius: float

    def box(self) -> Box:
        """Return the square about it."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


def place(
    marks: Sequence[Mark], sizes: Sequence[tuple[float, float]], *, taken: Sequence[Box], lines: Sequence[Box],
    within: Box,
) -> list[Box]:  # fmt: skip
    """Return a box for every mark's name.

    Each name in turn takes the cheapest place given where the others are, for a few passes: names that stood well
    before a later one came can move.

    Args:
        marks: what is named.
        sizes: width and height of each name.
        taken: boxes that no name may cover.
        lines: boxes that names had better not cover.
        within: what no name may leave.
    """
    options = [_options(mark, size) for mark, size in zip(marks, sizes, strict=True)]
    chosen = [found[0] for found in options]
    for number in range(_PASSES):
        for at, found in enumerate(options):
            # In the first pass only those that have been placed count.
            others = [box for other, box in enumerate(chosen) if other != at and (number or other < at)]
            chosen[at] = min(found, key=lambda box: _cost(box, at, marks, [*others, *taken], lines, within))
    return chosen


def gap(box: Box, mark: Mark) -> float:
    """Return the distance between a box and a mark's edge; negative where they overlap."""
    across = max(box[0] - mark.x, mark.x - box[2], 0.0)
    up = max(box[1] - mark.y, mark.y - box[3], 0.0)
    return math.hypot(across, up) - mark.radius


def line_end(box: Box, mark: Mark) -> tuple[float, float]:
    """Return the point of a box that is nearest to a mark."""
    return min(max(mark.x, box[0]), box[2]), min(max(mark.y, box[1]), box[3])


def overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _options(mark: Mark, size: tuple[float, float]) -> list[Box]:
    return [_beside(mark, direction, far, size) for far in _GAPS for direction in _DIRECTIONS]


def _beside(mark: Mark, direction: tuple[float, float], far: float, size: tuple[float, float]) -> Box:
    """Return the box that leaves `far` points between itself and the mark, as seen in one direction."""
    across, up = direction
    middle_x = mark.x + across * (mark.radius + far + size[0] / 2)
    middle_y = mark.y + up * (mark.radius + far + size[1] / 2)
    return middle_x - size[0] / 2, middle_y - size[1] / 2, middle_x + size[0] / 2, middle_y + size[1] / 2


def _cost(box: Box, at: int, marks: Sequence[Mark], names: Sequence[Box], lines: Sequence[Box], within: Box) -> float:
    own = gap(box, marks[at])
    area = (box[2] - box[0]) * (box[3] - box[1])
    nearer = sum(1 for other, mark in enumerate(marks) if other != at and gap(box, mark) < own)
    return (
        _OVER_NAME * sum(overlap(box, other) for other in names)
        + _OVER_MARK * sum(overlap(box, mark.box()) for mark in marks)
        + _OVER_LINE * sum(overlap(box, line) for line in lines)
        + _BEYOND * (area - overlap(box, within))
        + _AWAY * max(own, 0.0)
        + _NEARER_TO_ANOTHER * nearer
        + _LINE_OVER_MARK * (_crossed(box, at, marks) if own > LEADER_FROM else 0)
    )


def _crossed(box: Box, at: int, marks: Sequence[Mark]) -> int:
    """Return how many other marks the line from a name to its mark runs over."""
    mark, (x, y) = marks[at], line_end(box, marks[at])
    steps = [(mark.x + (x - mark.x) * step / 12, mark.y + (y - mark.y) * step / 12) for step in range(13)]
    others = [other for place_, other in enumerate(marks) if place_ != at]
    return sum(any(math.hypot(a - other.x, b - other.y) < other.radius for a, b in steps) for other in others)
