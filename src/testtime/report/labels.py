"""Places for the labels of a chart, such that none covers another or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

__all__ = ["Label", "place_labels", "spread_out", "text_width"]

Box = tuple[float, float, float, float]  # left, top, right, bottom
REACHES = (8.0, 14.0, 22.0, 32.0, 44.0, 60.0, 80.0, 105.0, 135.0, 170.0)
AROUND = [
    (math.cos(a), math.sin(a)) for a in (math.pi * k / 6 for k in (0, 6, 1, 11, 5, 7, 2, 10, 4, 8, 3, 9))
]
LEADER = 16.0  # distance of a label from its point from which a line joins them


@final
@dataclass(frozen=True)
class Label:
    """A label in its place: the left end of its text's middle line, and the end of its leader line (None without one)."""

    index: int
    x: float
    y: float
    leader: tuple[float, float] | None


def text_width(text: str, font: float, bold: bool = False) -> float:
    """Estimate the width of a text in a wide sans-serif font, in pixels."""
    units = sum(
        0.86 if c in "+=<>%@mwMW×±" else 0.74 if c.isupper() else 0.36 if c in " '.,:;ilj|()/" else 0.63
        for c in text
    )
    return font * units * (1.06 if bold else 1.0)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places along an axis until they are a gap apart, as little as needed, and inside the range if there is room.

    >>> spread_out([10.0, 12.0, 50.0], 10.0, 0.0, 55.0)
    [6.0, 16.0, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, list[int]]] = []  # middle of the block, its members from low to high
    for i in order:
        blocks.append((wanted[i], [i]))
        while True:
            middle, members = blocks[-1]
            reach = gap * (len(members) - 1) / 2
            middle = max(min(middle, high - reach), low + reach)
            blocks[-1] = (middle, members)
            if len(blocks) < 2:
                break
            before, others = blocks[-2]
            if before + gap * (len(others) - 1) / 2 + gap <= middle - reach + 1e-9:
                break
            joined = [*others, *members]
            centre = sum(wanted[j] - gap * k for k, j in enumerate(joined)) / len(joined)
            blocks[-2:] = [(centre + gap * (len(joined) - 1) / 2, joined)]
    found = [0.0] * len(wanted)
    for middle, members in blocks:
        for k, i in enumerate(members):
            found[i] = round(middle + gap * (k - (len(members) - 1) / 2), 6)
    return found


def place_labels(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    farthest: Sequence[float],
    taken: Sequence[Box],
    frame: Box,
    font: float,
) -> list[Label]:
    """Find the nearest free place for the label of each point; one that finds none is left out.

    Args:
        points: places of the points, in pixels, the most important first.
        names, farthest: labels of the first points, and their longest distances.
        taken: boxes that no label may cover, beside the points themselves.
        frame: box that holds all labels.
        font: size of the text.
    """
    boxes = [*taken, *((x - 6, y - 6, x + 6, y + 6) for x, y in points)]
    found = []
    for index, (point, name) in enumerate(zip(points, names, strict=False)):
        size = text_width(name, font, bold=True), 1.1 * font
        places = (
            _beside(point, size, reach, side)
            for reach in REACHES
            if reach <= farthest[index]
            for side in AROUND
        )
        box = next((box for box in places if _free(point, box, boxes, frame)), None)
        if box is None:
            continue
        near = _nearest(point, box)
        leader = near if math.dist(point, near) > LEADER else None
        boxes += [box, *(_pieces(point, near) if leader else [])]
        found.append(Label(index, box[0], (box[1] + box[3]) / 2, leader))
    return found


def _beside(
    point: tuple[float, float], size: tuple[float, float], reach: float, side: tuple[float, float]
) -> Box:
    """A box of a size at a distance from a point."""
    (x, y), (wide, high), (dx, dy) = point, size, side
    left = x + reach * dx - (0 if dx > 0.3 else wide if dx < -0.3 else wide / 2)
    top = y + reach * dy - high / 2 + (0 if abs(dy) < 0.7 else math.copysign(high / 2, dy))
    return left, top, left + wide, top + high


def _free(point: tuple[float, float], box: Box, taken: Sequence[Box], frame: Box) -> bool:
    """Whether a label is inside the frame, and neither it nor its leader line covers anything but its own point."""
    if box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]:
        return False
    if any(_meet(box, other) for other in taken):
        return False
    near = _nearest(point, box)
    if math.dist(point, near) <= LEADER:
        return True
    others = [other for other in taken if not _meet((*point, *point), other)]
    return not any(_meet(piece, other) for piece in _pieces(point, near) for other in others)


def _nearest(point: tuple[float, float], box: Box) -> tuple[float, float]:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _pieces(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """A line as small boxes."""
    spots = [tuple(a + k / 12 * (b - a) for a, b in zip(start, end, strict=True)) for k in range(13)]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in spots]
