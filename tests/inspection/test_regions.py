"""Regions against scikit-image's labels and matplotlib's test of points in polygons."""

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
from matplotlib.path import Path as Polygon
from scipy import ndimage
from skimage import measure

from blemish.errors import ConfigError, DataError
from blemish.inspection.regions import COLUMNS, Region, find_regions, label, regions_csv, trace

small_masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=11))
small_maps = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.integers(-3, 3).map(float),
)


def filled(part):
    """All pixels from which one cannot leave sideways without crossing ``part``."""
    background = measure.label(~np.pad(part, 1), connectivity=1)
    return (background != background[0, 0])[1:-1, 1:-1]


def covered(polygons, shape):
    """Pixels whose centre lies within an odd number of polygons."""
    y, x = np.indices(shape).reshape(2, -1) + 0.5
    inside = np.zeros(x.size, bool)
    for polygon in polygons:
        inside ^= Polygon(polygon).contains_points(np.stack([x, y], axis=1))
    return inside.reshape(shape)


def signed_area(polygon):
    return sum(xa * yb - xb * ya for (xa, ya), (xb, yb) in zip(polygon, polygon[1:] + polygon[:1])) / 2


@settings(max_examples=150, deadline=None)
@given(small_maps, st.sampled_from([-1.0, 0.0, 1.0, 2.5]))
def test_regions_and_outlines_equal_those_of_scikit_image_and_matplotlib(heatmap, threshold):
    found = find_regions(heatmap, threshold)
    labels = measure.label(heatmap > threshold, connectivity=2)
    assert [r.worst for r in found] == sorted((r.worst for r in found), reverse=True)
    assert len({labels[r.peak[::-1]] for r in found}) == len(found) == labels.max()
    for region in found:
        part = labels == labels[region.peak[::-1]]
        (expected,) = measure.regionprops(part.astype(int), heatmap)
        top, left, bottom, right = expected.bbox
        first = np.argwhere(part & (heatmap == expected.intensity_max))[0]
        assert (region.box, region.area) == ((left, top, right, bottom), expected.area)
        assert (region.worst, region.peak) == (expected.intensity_max, tuple(first[::-1]))
        assert region.centre == pytest.approx(np.add(expected.centroid[::-1], 0.5))
        assert (covered(region.outline, part.shape) == filled(part)).all()


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
    assert (covered(polygons, mask.shape) == mask).all()
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


def test_small_regions_are_left_out_and_equal_values_come_larger_first_then_in_reading_order():
    heatmap = np.zeros((6, 9), np.float32)
    heatmap[0, 0], heatmap[3:5, 2:5] = 9, 4
    for smallest, areas in ((1, [1, 6]), (1.5, [6]), (6, [6]), (7, [])):
        assert [region.area for region in find_regions(heatmap, 1, smallest_area=smallest)] == areas
    level = np.zeros((5, 9), np.float32)
    level[0, 8] = level[2, 0] = level[4, 4:6] = 1
    assert [r.peak for r in find_regions(level, 0.5)] == [(4, 4), (8, 0), (0, 2)]


FLAT = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("heatmap", "threshold", "area", "message"),
    [
        *((np.where(np.eye(3, 4, 3), wrong, FLAT), 0.5, 1, "1 of the map's 12 values") for wrong in (np.nan, -np.inf)),
        *((np.zeros(shape), 0.5, 1, "height x width") for shape in ((3,), (1, 3, 3), (0, 4))),
        (FLAT, np.nan, 1, "threshold is NaN"),
        (FLAT, 0.5, -1, "smallest"),
        (FLAT, 0.5, np.nan, "smallest"),
    ],
)
def test_maps_and_settings_that_make_no_sense_are_refused(heatmap, threshold, area, message):
    with pytest.raises((ConfigError, DataError), match=message):
        find_regions(heatmap, threshold, smallest_area=area)


def test_json_and_csv_hold_every_number_and_every_image():
    regions = find_regions(np.random.default_rng(3).random((12, 17)).astype(np.float32), 0.7)
    described = [json.loads(json.dumps(vars(region))) for region in regions]
    assert [list(row) for row in described] == [["box", "area", "worst", "centre", "peak", "outline"]] * len(regions)
    assert [row["outline"] for row in described] == [
        [[list(corner) for corner in polygon] for polygon in region.outline] for region in regions
    ]
    bad = {"path": 'a,"b".png', "decision": "reject", "score": 1 / 3, "p_value": 0.01, "regions": described}
    good = {"path": "good.png", "decision": "ok", "score": 0.1, "p_value": None, "regions": []}
    *rows, last = csv.DictReader(io.StringIO(regions_csv([bad, good])))
    assert tuple(last) == COLUMNS
    for number, (row, region) in enumerate(zip(rows, regions, strict=True), start=1):
        assert (row["path"], float(row["score"]), int(row["region"])) == ('a,"b".png', 1 / 3, number)
        assert tuple(int(row[name]) for name in ("x0", "y0", "x1", "y1")) == region.box
        assert (int(row["area"]), float(row["worst"])) == (region.area, region.worst)
        assert (float(row["centre_x"]), float(row["centre_y"])) == region.centre
        assert (int(row["peak_x"]), int(row["peak_y"])) == region.peak
    assert last["path"] == "good.png" and last["p_value"] == last["region"] == last["x0"] == ""


def test_neither_verdicts_nor_regions_nor_pictures_need_torch():
    code = "import sys, blemish.inspection.output, blemish.inspection.overlay; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=25)), st.booleans())
def test_labels_and_boxes_are_scipy_s(mask, corners):
    labels, boxes = label(mask, corners)
    expected, count = ndimage.label(mask, np.ones((3, 3)) if corners else None)
    np.testing.assert_array_equal(labels, expected)
    assert boxes == ndimage.find_objects(expected, count)


def test_labels_of_noise_and_of_one_long_snake():
    noise = np.random.default_rng(0).random((300, 400)) < 0.45
    np.testing.assert_array_equal(label(noise)[0], ndimage.label(noise, np.ones((3, 3)))[0])
    snake = np.zeros((61, 80), bool)
    snake[::2] = snake[1::4, -1] = snake[3::4, 0] = True
    assert label(snake, corners=False)[1] == [(slice(0, 61), slice(0, 80))]
