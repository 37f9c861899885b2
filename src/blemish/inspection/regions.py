"""Where the defects are: the connected parts (8-connectivity) of a map that lie strictly above a threshold.

Coordinates are those of the original image, ``x`` to the right and ``y`` down; the pixel in column ``x`` and row ``y``
covers the square from ``(x, y)`` to ``(x + 1, y + 1)``. Boxes, centres and outlines are points of that plane.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError, DataError

Polygon = tuple[tuple[int, int], ...]  # corners, clockwise as seen; the last one joins the first, which is not repeated


@dataclass(frozen=True)
class Region:
    """One connected part of a map above the threshold."""

    box: tuple[int, int, int, int]  # (x0, y0, x1, y1), half-open: image[y0:y1, x0:x1] cuts it out
    area: int  # pixels above the threshold; holes do not count
    worst: float  # the highest map value inside
    centre: tuple[float, float]  # the centroid (x, y) of its pixels
    peak: tuple[int, int]  # column and row of the highest map value; the first one in reading order
    outline: tuple[Polygon, ...]  # the outer boundary along pixel edges, one for each part connected along edges


def checked_map(heatmap: ArrayLike) -> NDArray[np.float32]:
    """``heatmap`` as float32 ``h w``; a DataError where it is not one image's map of finite numbers."""
    values = np.asarray(heatmap, dtype=np.float32)
    if values.ndim != 2 or values.size == 0:
        raise DataError(f"a map of shape {values.shape} was given; one image's map, height x width, is needed")
    # A NaN makes both extremes NaN, so two cheap passes find every kind of unusable value.
    if not (math.isfinite(values.max()) and math.isfinite(values.min())):
        wrong = int(values.size - np.isfinite(values).sum())
        raise DataError(
            f"{wrong} of the map's {values.size} values are not finite numbers: check the image, and fit the model "
            "anew if it happens on every image"
        )
    return values


def label(mask: NDArray[np.bool_], corners: bool = True) -> tuple[NDArray[np.int32], list[tuple[slice, slice]]]:
    """Numbers of the connected parts of ``mask``, from 1 in reading order, 0 outside; and the box of each.

    Pixels that meet at ``corners`` alone belong together or not. It joins the runs of pixels in rows: NumPy is all
    that a station needs for it.
    """
    height, width = mask.shape
    pitch = width + 1  # with a column between rows, so that no run goes on into the next
    flat = np.pad(mask, ((0, 0), (0, 1))).ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    # The runs of the row above that each touches lie side by side.
    first = np.searchsorted(ends, starts - pitch - corners, side="right")
    touched = np.maximum(np.searchsorted(starts, ends - pitch + corners) - first, 0)
    lower = np.repeat(np.arange(starts.size), touched)
    upper = np.arange(lower.size) + np.repeat(first - np.cumsum(touched) + touched, touched)
    roots = np.arange(starts.size)  # of each run, the first run that it is known to be connected with
    while (apart := roots[lower] != roots[upper]).any():
        pair = roots[lower[apart]], roots[upper[apart]]
        for run in pair:
            np.minimum.at(roots, run, np.minimum(*pair))
        while (roots != roots[roots]).any():
            roots = roots[roots]
    numbers = np.cumsum(roots == np.arange(starts.size))[roots]
    labels = np.zeros(flat.size, np.int32)
    labels[flat] = np.repeat(numbers, ends - starts)
    order = np.argsort(numbers, kind="stable")
    begins = np.flatnonzero(np.diff(numbers[order], prepend=0))
    rows = starts[order] // pitch
    left, right = starts[order] - rows * pitch, ends[order] - rows * pitch
    lowest = (np.minimum.reduceat(side, begins).tolist() for side in (rows, left))
    highest = (np.maximum.reduceat(side, begins).tolist() for side in (rows + 1, right))
    boxes = [(slice(y, bottom), slice(x, end)) for y, x, bottom, end in zip(*lowest, *highest)]
    return labels.reshape(height, pitch)[:, :-1], boxes


def find_regions(heatmap: ArrayLike, threshold: float, smallest_area: float = 1) -> tuple[Region, ...]:
    """The regions of ``heatmap``, ``h w`` at the image's size, worst first; those of fewer pixels are left out."""
    if math.isnan(threshold):
        raise ConfigError("the threshold is NaN; a number in the map's units is needed: calibrate the model again")
    if not smallest_area >= 0:
        raise ConfigError(f"smallest area {smallest_area!r}: a number of pixels, 0 or more, is needed")
    values = checked_map(heatmap)
    above = values > np.float32(threshold)
    labels, boxes = label(above)
    enclosed = label(~np.pad(above, 1), corners=False)[0][1:-1, 1:-1] > 1  # the first is what is around all
    regions = []
    for index, (rows, columns) in enumerate(boxes, start=1):
        mask = labels[rows, columns] == index
        if (area := int(mask.sum())) < smallest_area:
            continue
        inside_y, inside_x = np.nonzero(mask)
        inside = values[rows, columns][mask]
        peak = int(np.argmax(inside))
        left, top = columns.start, rows.start
        region = Region(
            box=(left, top, columns.stop, rows.stop),
            area=area,
            worst=float(inside[peak]),
            centre=(left + float(inside_x.mean()) + 0.5, top + float(inside_y.mean()) + 0.5),
            peak=(left + int(inside_x[peak]), top + int(inside_y[peak])),
            outline=trace(fill_holes(mask) if enclosed[rows, columns].any() else mask, (left, top)),
        )
        regions.append(region)
    return tuple(sorted(regions, key=lambda region: (-region.worst, -region.area, region.peak[1], region.peak[0])))


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``mask`` with all that it encloses."""
    outside, _ = label(~np.pad(mask, 1), corners=False)
    filled: NDArray[np.bool_] = outside[1:-1, 1:-1] != outside[0, 0]
    return filled


def trace(mask: NDArray[np.bool_], corner: tuple[int, int] = (0, 0)) -> tuple[Polygon, ...]:
    """The boundaries of ``mask`` along pixel edges, clockwise around pixels and anticlockwise around holes.

    Where two pixels meet only at a corner, the boundary stays with its own pixel, so polygons touch there and never
    cross. ``corner`` is the place of the mask's top left corner.
    """
    if mask.size and mask.all():  # a rectangle, as most small regions are
        (left, top), (height, width) = corner, mask.shape
        return (((left, top), (left + width, top), (left + width, top + height), (left, top + height)),)
    padded, pitch = np.pad(mask, 1), mask.shape[1] + 1
    inside = padded[1:-1, 1:-1]
    # Every edge of a pixel with nothing beyond it, the inside on its right: four times the number of the corner that it
    # starts at, plus its way: right, down, left or up.
    found = []
    for way, (beyond, (right, down)) in enumerate(
        (
            (padded[:-2, 1:-1], (0, 0)),
            (padded[1:-1, 2:], (1, 0)),
            (padded[2:, 1:-1], (1, 1)),
            (padded[1:-1, :-2], (0, 1)),
        )
    ):
        rows, columns = np.nonzero(inside & ~beyond)
        found.append(4 * ((rows + down) * pitch + columns + right) + way)
    edges = np.sort(np.concatenate(found))
    if not edges.size:
        return ()
    ways = edges % 4
    ends = edges // 4 + np.array([1, pitch, -1, -pitch])[ways]
    after = np.zeros_like(edges)
    for turn in (-1, 0, 1):  # the last one counts: a right turn stays with the same pixel where two meet at a corner
        wanted = 4 * ends + (ways + turn) % 4
        place = np.minimum(np.searchsorted(edges, wanted), edges.size - 1)
        after = np.where(edges[place] == wanted, place, after)
    turns = ways[after] != ways
    ahead = np.where(turns, np.arange(edges.size), after)  # the next edge that ends in a turn
    while not turns[ahead].all():
        ahead = ahead[ahead]
    corners, numbers = np.flatnonzero(turns), np.cumsum(turns) - 1
    following = numbers[ahead[after[corners]]].tolist()
    points = [*zip((corner[0] + ends[corners] % pitch).tolist(), (corner[1] + ends[corners] // pitch).tolist())]
    into = after[corners]
    # Every boundary has edges to the right: the first of them in reading order begins it.
    tops = np.flatnonzero(ways[into] == 0)
    polygons, seen = list[Polygon](), [False] * len(points)
    for start in tops[np.argsort(into[tops])].tolist():
        polygon, at = list[tuple[int, int]](), start
        while not seen[at]:
            seen[at] = True
            polygon.append(points[at])
            at = following[at]
        if polygon:
            polygons.append(tuple(polygon))
    return tuple(polygons)


COLUMNS = (
    *("path", "decision", "score", "p_value", "region", "x0", "y0", "x1", "y1", "area", "worst"),
    *("centre_x", "centre_y", "peak_x", "peak_y", "area_mm2"),
)


def regions_csv(verdicts: Iterable[Mapping[str, Any]]) -> str:
    """From ``Verdict.as_dict``, outlines left out: a numbered row for each region, an empty one where there is none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for verdict in verdicts:
        start = [verdict[name] for name in COLUMNS[:4]]
        rows = [
            [
                *(index, *region["box"], region["area"], region["worst"]),
                *(*region["centre"], *region["peak"], region.get("area_mm2")),
            ]
            for index, region in enumerate(verdict["regions"], start=1)
        ]
        table.writerows([*start, *row] for row in rows or [[None] * (len(COLUMNS) - len(start))])
    return text.getvalue()


def regions_coco(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """As COCO's detection data sets: from ``Verdict.as_dict`` images, and an annotation for each region.

    Its score is the map's highest value there. Boxes are ``[x, y, width, height]``; areas are pixels above the
    threshold, so holes, which polygons fill, are left out of them.
    """
    images, annotations = [], list[dict[str, Any]]()
    for number, verdict in enumerate(verdicts, start=1):
        size = {"width": verdict["width"], "height": verdict["height"]}
        images.append({"id": number, "file_name": verdict["path"], **size})
        for region in verdict["regions"]:
            x0, y0, x1, y1 = region["box"]
            found = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": region["area"],
                "segmentation": [[axis for corner in polygon for axis in corner] for polygon in region["outline"]],
                "iscrowd": 0,
                "score": region["worst"],
            }
            annotations.append(found)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "defect"}]}
