"""Tiles of large images and their weights, lengths with units: by hand."""

import numpy as np
import pytest

from blemish.data.tiles import Tiling
from blemish.data.units import in_pixels, parse_pixel
from blemish.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "side", "overlap"), [((200, 300), 96, 32), ((97, 33), 32, 0), ((40, 500), 64, 13), ((50, 50), 64, 8)]
)
def test_every_pixel_lies_in_tiles_of_one_size_whose_weights_sum_to_one(size, side, overlap):
    tiling = Tiling(side, overlap)
    windows = tiling.windows(size)
    shape = min(side, size[0]), min(side, size[1])
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows} == {shape}
    ones = tiling.blend(size, ((window, np.ones(shape, np.float32)) for window in windows))
    np.testing.assert_allclose(ones, 1, atol=1e-6)
    for axis in (0, 1):
        starts = sorted({window[axis].start for window in windows})
        assert (np.diff(starts) <= side - overlap).all()  # no defect as wide as the overlap is cut by every tile
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    np.testing.assert_allclose(tiling.blend(size, ((w, values[w]) for w in windows)), values, atol=1e-5)


def test_weights_fall_towards_a_tile_s_own_border():
    weights = Tiling(60, 20).weights(100)  # tiles from 0 and from 40: pixel 50 is 9.5 and 10.5 from their borders
    assert weights.keys() == {0, 40}
    np.testing.assert_allclose([weights[0][50], weights[40][10]], [0.475, 0.525])
    np.testing.assert_allclose([weights[0][0], weights[0][39], weights[40][59]], 1)


def test_maps_that_a_method_does_not_give_are_not_blended():
    assert Tiling(64, 0).blend((64, 64), ()) is None


@pytest.mark.parametrize(("side", "overlap"), [(31, 0), (64, -1), (64, 33)])
def test_tiles_that_cannot_be_are_refused(side, overlap):
    with pytest.raises(ConfigError, match=f"{side} pixels"):
        Tiling(side, overlap)


@pytest.mark.parametrize(
    ("text", "pixel", "power", "expected"),
    [
        ("3", None, 1, 3),
        ("3px", 0.05, 2, 3),
        (" 2.5 px ", None, 2, 2.5),
        ("0.3mm", 0.05, 1, 6),
        ("0.3 mm", 0.1, 1, 3),
        ("300um", 0.05, 1, 6),
        ("300µm", 0.05, 1, 6),
        (".03cm", 0.05, 1, 6),
        ("0.2mm2", 0.05, 2, 80),
        ("0.2mm²", 0.1, 2, 20),
        ("0.01cm2", 0.5, 2, 4),
        ("250000um2", 0.5, 2, 1),
    ],
)
def test_lengths_and_areas_in_pixels(text, pixel, power, expected):
    assert in_pixels(text, pixel, power) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("text", "expected"), [("0.05mm", 0.05), ("50um", 0.05), ("0.005 cm", 0.05)])
def test_a_pixel_s_width_in_millimetres(text, expected):
    assert parse_pixel(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda: parse_pixel("0.05"), "with its unit"),
        (lambda: parse_pixel("0mm"), "above 0"),
        (lambda: parse_pixel("3px"), "with its unit"),
        (lambda: parse_pixel("0.05 inch"), "units are px, um, mm and cm"),
        (lambda: in_pixels("0.3mm", None), "--pixel 0.05mm"),
        (lambda: in_pixels("0.3mm2", 0.1), "'0.3mm2' is not a length such as"),
        (lambda: in_pixels("0.3mm", 0.1, 2), "is not an area such as 30px or 0.2mm2"),
        (lambda: in_pixels("-3", 0.1), "'-3' is not a length"),
        (lambda: in_pixels("many", 0.1), "'many' is not a length"),
        (lambda: in_pixels("9" * 400, 0.1), "is not a length"),
    ],
)
def test_bad_units_are_refused_in_words(read, said):
    with pytest.raises(ConfigError, match=said):
        read()
