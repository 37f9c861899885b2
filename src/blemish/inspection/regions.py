"""Where the defects are: the connected parts of a map that lie above a threshold, as a list people can use.

A region is a set of pixels that touch along edges or at corners (8-connectivity) and whose map values lie *strictly*
above the threshold: a value equal to the threshold is still good. Coordinates are those of the original image, with
``x`` to the right and ``y`` down, and the pixel in column ``x`` and row ``y`` covers the square from ``(x, y)`` to
``(x + 1, y + 1)``. Boxes, centres and outlines are points of that plane; only ``peak`` is a pixel's column and row.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from blemish.errors import ConfigError, DataError

Polygon = tuple[tuple[int, int], ...]
"""Corners of a closed polygon, clockwise as seen; the last corner joins the first, which is not repeated."""

_Edge = tuple[tuple[int, int], tuple[int, int]]  # where it starts, and the step along it

_TOUCHING = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Region:
    """One connected part of a map above the threshold.

    Attributes:
        box: ``(x0, y0, x1, y1)``; half-open, so that the width is ``x1 - x0`` and ``image[y0:y1, x0:x1]`` cuts it out.
        area: pixels above the threshold; holes do not count.
        worst: the highest map value inside.
        centre: the centroid ``(x, y)`` of its pixels; outside the region where that is bent.
        peak: column and row of the pixel with the highest map value; the first one in reading order.
        outline: the outer boundary along pixel edges. One simple polygon for each part that holds together along
            edges: a region whose parts meet only at a corner has several. Holes are filled.
    """

    box: tuple[int, int, int, int]
    area: int
    worst: float
    centre: tuple[float, float]
    peak: tuple[int, int]
    outline: tuple[Polygon, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {
            "box": list(self.box),
            "area": self.area,
            "worst": self.worst,
            "centre": list(self.centre),
            "peak": list(self.peak),
            "outline": [[list(corner) for corner in polygon] for polygon in self.outline],
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Region:
        """The region that ``as_dict`` described."""
        x0, y0, x1, y1 = given["box"]
        outline = tuple(tuple((x, y) for x, y in polygon) for polygon in given["outline"])
        centre, peak = given["centre"], given["peak"]
        return cls(
            (x0, y0, x1, y1), given["area"], given["worst"], (centre[0], centre[1]), (peak[0], peak[1]), outline
        )


def checked_map(heatmap: ArrayLike) -> NDArray[np.float32]:
    """``heatmap`` as a float32 array ``h w``.

    Raises:
        DataError: it is not two-dimensional, is empty, or holds a value that is not a finite number.
    """
    values = np.asarray(heatmap, dtype=np.float32)
    if values.ndim != 2 or values.size == 0:
        raise DataError(f"a map of shape {values.shape} was given; one image's map, height x width, is needed")
    # A NaN makes both extremes NaN, so two cheap passes find every kind of unusable value.
    if not (math.isfinite(values.max()) and math.isfinite(values.min())):
        wrong = int(values.size - np.isfinite(values).sum())
        raise DataError(
            f"{wrong} of the map's {values.size} values are not finite numbers, so nothing can be said of this image; "
            "check the image, and learn the model again if it happens on every image"
        )
    return values


def find_regions(heatmap: ArrayLike, threshold: float, smallest_area: float = 1) -> tuple[Region, ...]:
    """The regions of ``heatmap`` strictly above ``threshold``, worst first.

    Args:
        heatmap: ``h w`` at the size of the original image; compared as float32.
        threshold: in the map's own units.
        smallest_area: in pixels; smaller regions are left out.

    Raises:
        DataError: the map is not a finite array ``h w``.
        ConfigError: the threshold is NaN, or the smallest area is negative or NaN.
    """
    if math.isnan(threshold):
        raise ConfigError("the threshold is NaN; a number in the map's units is needed: calibrate the model again")
    if not smallest_area >= 0:
        raise ConfigError(f"smallest area {smallest_area!r}: a number of pixels, 0 or more, is needed")
    values = checked_map(heatmap)
    if values.max() <= np.float32(threshold):
        return ()
    above = values > np.float32(threshold)
    left, top, right, bottom = _bounds(above)
    above, values = above[top:bottom, left:right], values[top:bottom, left:right]
    labels, _ = ndimage.label(above, structure=_TOUCHING)
    found = []
    for index, place in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[place] == index
        if np.count_nonzero(mask) >= smallest_area:
            found.append(_region(mask, values[place], (left + place[1].start, top + place[0].start)))
    return tuple(sorted(found, key=lambda region: (-region.worst, -region.area, region.peak[1], region.peak[0])))


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The half-open box around the pixels of ``mask``, which has some."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _region(mask: NDArray[np.bool_], values: NDArray[np.float32], corner: tuple[int, int]) -> Region:
    """The region of ``mask``, cut out tightly with its top left pixel at ``corner``."""
    left, top = corner
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    peak = int(np.argmax(values[rows, columns]))
    return Region(
        box=(left, top, left + width, top + height),
        area=len(rows),
        worst=float(values[rows[peak], columns[peak]]),
        centre=(left + float(columns.mean()) + 0.5, top + float(rows.mean()) + 0.5),
        peak=(left + int(columns[peak]), top + int(rows[peak])),
        outline=trace(_filled(mask), corner),
    )


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``mask`` with all that it encloses; labelling is several times quicker than SciPy's filling by erosion."""
    if mask.all():
        return mask
    outside, _ = ndimage.label(~np.pad(mask, 1))
    filled: NDArray[np.bool_] = outside[1:-1, 1:-1] != outside[0, 0]
    return filled


def trace(mask: NDArray[np.bool_], corner: tuple[int, int] = (0, 0)) -> tuple[Polygon, ...]:
    """The boundaries of ``mask`` along pixel edges, clockwise around pixels and anticlockwise around holes.

    Where two pixels meet only at a corner, the boundary stays with its own pixel, so polygons touch there and never
    cross. ``rasterise`` gives the mask back.

    Args:
        mask: ``h w``.
        corner: what the top left corner of ``mask`` is called.
    """
    edges = _edges(mask)
    polygons = []
    while edges:
        polygons.append(tuple((corner[0] + x, corner[1] + y) for x, y in _walk(edges)))
    return tuple(polygons)


def _edges(mask: NDArray[np.bool_]) -> dict[_Edge, None]:
    """The pixel edges between inside and outside, in a fixed order, each with the inside on its right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges: dict[_Edge, None] = {}
    # The neighbour that may be outside; where the edge towards it starts, from the pixel's corner; its step.
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for neighbour, (right, down), step in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        points = zip((columns + right).tolist(), (rows + down).tolist())
        edges.update(dict.fromkeys((point, step) for point in points))
    return edges


def _walk(edges: dict[_Edge, None]) -> list[tuple[int, int]]:
    """The turning points of one boundary, whose edges are taken out of ``edges``."""
    first = next(iter(edges))
    (x, y), (dx, dy) = first
    turns = []
    while True:
        x, y = x + dx, y + dy
        # A right turn stays with the same pixel where two meet at a corner.
        way = next(way for way in ((-dy, dx), (dx, dy), (dy, -dx)) if ((x, y), way) in edges)
        if way != (dx, dy):
            turns.append((x, y))
        dx, dy = way
        del edges[(x, y), way]
        if ((x, y), way) == first:
            return turns[-1:] + turns[:-1]


def rasterise(outline: Iterable[Polygon], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """The pixels of ``box`` inside ``outline`` (even-odd), ``y1 - y0`` by ``x1 - x0``: undoes ``trace``."""
    x0, y0, x1, y1 = box
    flips = np.zeros((y1 - y0, x1 - x0 + 1), dtype=bool)
    for polygon in outline:
        for (xa, ya), (xb, yb) in zip(polygon, polygon[1:] + polygon[:1]):
            if xa == xb:
                flips[min(ya, yb) - y0 : max(ya, yb) - y0, xa - x0] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :-1]


COLUMNS = (
    *("path", "decision", "score", "p_value", "region", "x0", "y0", "x1", "y1", "area", "worst"),
    *("centre_x", "centre_y", "peak_x", "peak_y"),
)
"""What ``regions_csv`` writes; outlines are left to JSON."""


def regions_csv(verdicts: Iterable[Mapping[str, Any]]) -> str:
    """A table with one row for each region, numbered from 1, and one with empty fields for an image without any.

    Args:
        verdicts: for each image ``path``, ``decision``, ``score``, ``p_value`` (None leaves a field empty) and
            ``regions`` as ``Region.as_dict`` gives them: what ``Verdict.as_dict`` holds.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for verdict in verdicts:
        start = [verdict[name] for name in COLUMNS[:4]]
        for index, region in enumerate(verdict["regions"], start=1):
            numbers = [*region["box"], region["area"], region["worst"], *region["centre"], *region["peak"]]
            table.writerow([*start, index, *numbers])
        if not verdict["regions"]:
            table.writerow([*start, *[None] * (len(COLUMNS) - len(start))])
    return text.getvalue()
