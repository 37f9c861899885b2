"""Regions against flood fill, point-in-polygon and plain loops written here."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blemish.errors import ConfigError, DataError
from blemish.inspection.regions import COLUMNS, Region, find_regions, regions_csv, trace

small_masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=11))
small_maps = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.integers(-3, 3).map(float),
)


def flood(mask, start, corners):
    """The pixels of ``mask`` reachable from ``start``; ``corners``: across corners too."""
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if corners or abs(dy) + abs(dx) == 1]
    reached, todo = {start}, [start]
    while todo:
        y, x = todo.pop()
        for dy, dx in steps:
            place = (y + dy, x + dx)
            if 0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1] and mask[place] and place not in reached:
                reached.add(place)
                todo.append(place)
    return reached


def components(mask):
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    while left:
        part = flood(mask, min(left), corners=True)
        parts.append(part)
        left -= part
    return parts


def filled(part, shape):
    """All pixels of ``shape`` from which one cannot leave sideways without crossing ``part``."""
    free = np.ones((shape[0] + 2, shape[1] + 2), dtype=bool)
    for y, x in part:
        free[y + 1, x + 1] = False
    outside = flood(free, (0, 0), corners=False)
    return {(y, x) for y in range(shape[0]) for x in range(shape[1]) if (y + 1, x + 1) not in outside}


def covered(polygons, shape):
    """Pixels whose centre has an odd number of polygon edges to its right."""
    inside = set()
    for y in range(shape[0]):
        for x in range(shape[1]):
            crossings = 0
            for polygon in polygons:
                for i in range(len(polygon)):
                    (xa, ya), (xb, yb) = polygon[i - 1], polygon[i]
                    if xa == xb and xa > x + 0.5 and min(ya, yb) < y + 0.5 < max(ya, yb):
                        crossings += 1
            if crossings % 2:
                inside.add((y, x))
    return inside


def signed_area(polygon):
    return sum(xa * yb - xb * ya for (xa, ya), (xb, yb) in zip(polygon, polygon[1:] + polygon[:1])) / 2


@settings(max_examples=150, deadline=None)
@given(small_maps, st.sampled_from([-1.0, 0.0, 1.0, 2.5]))
def test_regions_equal_those_found_by_flood_fill(heatmap, threshold):
    expected = []
    for part in components(heatmap > threshold):
        ys, xs = [y for y, _ in part], [x for _, x in part]
        worst = max(heatmap[place] for place in part)
        peak = min(place for place in part if heatmap[place] == worst)
        box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        centre = (sum(xs) / len(xs) + 0.5, sum(ys) / len(ys) + 0.5)
        expected.append((float(worst), len(part), box, centre, (peak[1], peak[0])))
    found = find_regions(heatmap, threshold)
    described = [(r.worst, r.area, r.box, tuple(np.round(r.centre, 9)), r.peak) for r in found]
    assert sorted(described) == sorted((w, a, b, tuple(np.round(c, 9)), p) for w, a, b, c, p in expected)
    assert [r.worst for r in found] == sorted((r.worst for r in found), reverse=True)


@settings(max_examples=150, deadline=None)
@given(small_masks)
def test_outlines_enclose_exactly_the_filled_component(mask):
    regions = find_regions(mask.astype(np.float32), 0.5)
    for region in regions:
        part = next(p for p in components(mask) if (region.peak[1], region.peak[0]) in p)
        assert covered(region.outline, mask.shape) == filled(part, mask.shape)


@settings(max_examples=100, deadline=None)
@given(small_masks)
def test_outlines_are_simple_clockwise_polygons_without_needless_corners(mask):
    for region in find_regions(mask.astype(np.float32), 0.5):
        for polygon in region.outline:
            assert len(set(polygon)) == len(polygon) >= 4
            assert signed_area(polygon) > 0
            steps = [(xb - xa, yb - ya) for (xa, ya), (xb, yb) in zip(polygon, polygon[1:] + polygon[:1])]
            assert all((dx == 0) != (dy == 0) for dx, dy in steps)
            assert all((a[0] == 0) != (b[0] == 0) for a, b in zip(steps, steps[1:] + steps[:1]))


@settings(max_examples=150, deadline=None)
@given(small_masks)
def test_tracing_keeps_holes_and_is_undone(mask):
    polygons = trace(mask)
    assert covered(polygons, mask.shape) == {(int(y), int(x)) for y, x in np.argwhere(mask)}
    assert sum(signed_area(polygon) for polygon in polygons) == mask.sum()


def test_a_pixel_a_diagonal_and_a_ring_with_an_island():
    heatmap = np.zeros((4, 6), np.float32)
    heatmap[1, 4] = 2
    (region,) = find_regions(heatmap, 1)
    square = ((4, 1), (5, 1), (5, 2), (4, 2))
    assert region == Region((4, 1, 5, 2), 1, 2.0, (4.5, 1.5), (4, 1), (square,))
    (diagonal,) = find_regions(np.eye(3), 0.5)
    assert len(diagonal.outline) == 3
    ring = np.ones((5, 5), np.float32)
    ring[1:4, 1:4], ring[2, 2] = 0, 3
    island, frame = find_regions(ring, 0.5)
    assert (island.area, frame.area) == (1, 16)
    assert frame.outline == (((0, 0), (5, 0), (5, 5), (0, 5)),)


def test_a_value_equal_to_the_threshold_is_still_good():
    heatmap = np.full((3, 3), 0.1, np.float32)
    # 0.1 is a little more in float32 than in float64: compared as float32, both are the same number.
    assert find_regions(heatmap, 0.1) == ()
    assert find_regions(heatmap, float(heatmap[0, 0])) == ()
    assert len(find_regions(heatmap, float(np.nextafter(heatmap[0, 0], np.float32(0))))) == 1


def test_small_regions_are_left_out():
    heatmap = np.zeros((6, 9), np.float32)
    heatmap[0, 0], heatmap[3:5, 2:5] = 9, 4
    for smallest, areas in ((1, [1, 6]), (1.5, [6]), (6, [6]), (7, [])):
        assert [region.area for region in find_regions(heatmap, 1, smallest_area=smallest)] == areas


def test_equal_values_come_larger_first_then_in_reading_order():
    heatmap = np.zeros((5, 9), np.float32)
    heatmap[0, 8] = heatmap[2, 0] = heatmap[4, 4:6] = 1
    assert [r.peak for r in find_regions(heatmap, 0.5)] == [(4, 4), (8, 0), (0, 2)]


def test_maps_and_settings_that_make_no_sense_are_refused():
    flat = np.zeros((3, 4), np.float32)
    for wrong in (np.nan, np.inf, -np.inf):
        heatmap = flat.copy()
        heatmap[1, 1] = wrong
        with pytest.raises(DataError, match="1 of the map's 12 values"):
            find_regions(heatmap, 0.5)
    for shape in ((3,), (1, 3, 3), (0, 4)):
        with pytest.raises(DataError, match="height x width"):
            find_regions(np.zeros(shape, np.float32), 0.5)
    for threshold, area, message in ((np.nan, 1, "threshold is NaN"), (0.5, -1, "smallest"), (0.5, np.nan, "smallest")):
        with pytest.raises(ConfigError, match=message):
            find_regions(flat, threshold, smallest_area=area)


def some_regions():
    rng = np.random.default_rng(3)
    return find_regions(rng.random((12, 17)).astype(np.float32), 0.7)


def test_json_holds_every_number():
    for region in some_regions():
        described = json.loads(json.dumps(vars(region)))
        assert list(described) == ["box", "area", "worst", "centre", "peak", "outline"]
        assert described["outline"] == [[list(corner) for corner in polygon] for polygon in region.outline]
        assert (described["box"], described["area"], described["worst"]) == ([*region.box], region.area, region.worst)


def test_csv_holds_every_number_and_every_image():
    regions = some_regions()
    verdicts = [
        {
            "path": 'a,"b".png',
            "decision": "reject",
            "score": 1 / 3,
            "p_value": 0.01,
            "regions": [vars(region) for region in regions],
        },
        {"path": "good.png", "decision": "ok", "score": 0.1, "p_value": None, "regions": []},
    ]
    rows = list(csv.DictReader(io.StringIO(regions_csv(verdicts))))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(regions) + 1
    for number, (row, region) in enumerate(zip(rows, regions), start=1):
        assert (row["path"], float(row["score"]), int(row["region"])) == ('a,"b".png', 1 / 3, number)
        assert tuple(int(row[name]) for name in ("x0", "y0", "x1", "y1")) == region.box
        assert (int(row["area"]), float(row["worst"])) == (region.area, region.worst)
        assert (float(row["centre_x"]), float(row["centre_y"])) == region.centre
        assert (int(row["peak_x"]), int(row["peak_y"])) == region.peak
    assert rows[-1]["path"] == "good.png" and rows[-1]["p_value"] == rows[-1]["region"] == rows[-1]["x0"] == ""


def test_neither_verdicts_nor_regions_nor_pictures_need_torch():
    code = "import sys, blemish.inspection.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
