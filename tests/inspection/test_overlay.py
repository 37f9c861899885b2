"""Pictures: what must not change does not, one value has one colour, and every eye sees the same order."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from blemish.errors import ConfigError, DataError
from blemish.inspection.overlay import CASING, LINE, RAMP, TRUTH, Scale, data_uri, fixed_scale, overlay
from blemish.inspection.regions import find_regions

SCALE = Scale(1.0, 3.0)


def picture(shape=(40, 50), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def bump(shape=(40, 50), place=(20, 30), radius=8.0, height=2.5):
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(y - place[0], x - place[1])
    return (height * np.maximum(0, 1 - distance / (2 * radius))).astype(np.float32)


def test_a_good_part_is_left_as_it_is():
    image = picture()
    heatmap = np.full(image.shape[:2], 1.0, np.float32)  # everywhere at the threshold, nowhere above
    assert (np.asarray(overlay(image, heatmap, SCALE, find_regions(heatmap, 1.0))) == image).all()


def test_the_blend_is_the_stated_one_and_only_above_the_threshold():
    image, heatmap = picture(), bump()
    before = image.copy()
    layer = SCALE.layer(heatmap).astype(float)
    share = layer[..., 3:] / 255
    expected = share * layer[..., :3] + (1 - share) * image
    drawn = np.asarray(overlay(image, heatmap, SCALE))
    assert np.abs(drawn - expected).max() <= 0.5 + 1e-4
    changed = (drawn != image).any(axis=2)
    assert not changed[heatmap <= 1].any() and changed[heatmap > 1].mean() > 0.99
    assert (image == before).all()


def test_the_scale_runs_from_the_threshold_to_its_top_whatever_else_is_on_the_map():
    layer = SCALE.layer(np.array([[1.0, 1.0001, 2.0, 2.9999, 3.0, 99.0]], np.float32))[0]
    assert layer[0].tolist() == [0, 0, 0, 0]
    assert layer[1].tolist() == RAMP[0].tolist()
    assert layer[2].tolist() == RAMP[128].tolist()
    assert layer[3].tolist() == layer[4].tolist() == layer[5].tolist() == RAMP[255].tolist()


def test_a_scale_without_a_range_is_refused():
    for ends in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf")), (1e9, 1e9 + 1)):
        with pytest.raises(ConfigError, match="fixed_scale"):
            Scale(*ends)


def test_the_top_follows_from_the_usual_good_part():
    assert fixed_scale(5.0, [1.0, 4.0, 2.0]) == Scale(5.0, 11.0)  # the median is 2
    assert fixed_scale(-5.0, [-8.0]) == Scale(-5.0, 1.0)
    for threshold, maxima in ((4.0, []), (4.0, [4.0, 4.0]), (4.0, [9.0]), (0.0, []), (0.0, [0.0])):
        assert fixed_scale(threshold, maxima).top == threshold + (abs(threshold) / 2 or 1.0)
    with pytest.raises(ConfigError, match="calibrate"):
        fixed_scale(1.0, [0.5, float("nan")])


@pytest.mark.parametrize("zoom", [1, 3])
def test_lines_lie_outside_of_what_they_surround(zoom):
    image, heatmap = np.full((40, 50, 3), 128, np.uint8), bump()
    inside = (heatmap > 1).repeat(zoom, 0).repeat(zoom, 1)
    plain = np.asarray(overlay(image, heatmap, SCALE, zoom=zoom))
    lined = np.asarray(overlay(image, heatmap, SCALE, find_regions(heatmap, 1.0), zoom=zoom))
    assert lined.shape == (40 * zoom, 50 * zoom, 3)
    assert (lined[inside] == plain[inside]).all()
    # One pixel of white, then one of black, around the region, and nothing beyond.
    white, black = (ndimage.binary_dilation(inside, np.ones((3, 3)), iterations=width) for width in (1, 2))
    assert (lined[white & ~inside] == LINE).all()
    assert (lined[black & ~white] == CASING).all()
    assert (lined[~black] == 128).all()


def test_the_truth_is_dashed_along_its_boundary():
    image, heatmap = np.full((60, 60, 3), 128, np.uint8), np.zeros((60, 60), np.float32)
    truth = np.zeros((60, 60), bool)
    truth[10:60, 10:60] = True  # up to the image's edge
    drawn = np.asarray(overlay(image, heatmap, SCALE, truth=truth))
    blue, black = (drawn == TRUTH).all(axis=2), (drawn == CASING).all(axis=2)
    changed = (drawn != image).any(axis=2)
    assert (changed == (blue | black)).all()
    assert 0.4 < blue.sum() / changed.sum() < 0.6
    assert not changed[13:56, 13:56].any() and not changed[:8].any() and not changed[:, :8].any()
    assert changed[9:11, 12:56].any(axis=0).all() and changed[58:, 12:56].any(axis=0).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "value", "more", "message"),
    [
        ((4, 6, 3), np.uint8, 0, {}, r"\(4, 6, 3\)"),
        ((4, 5, 3), float, 0, {}, "float64"),
        ((4, 5, 3), np.uint8, 0, {"truth": np.ones((5, 4))}, "mask"),
        ((4, 5, 3), np.uint8, np.nan, {}, "not finite"),
        ((4, 5, 3), np.uint8, 0, {"zoom": 0}, "zoom"),
    ],
)
def test_wrong_sizes_are_refused(shape, dtype, value, more, message):
    with pytest.raises((ConfigError, DataError), match=message):
        overlay(np.zeros(shape, dtype), np.full((4, 5), value, np.float32), SCALE, **more)


# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009),
# severity 1.0; they act on linear RGB.
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def cielab(colours, eye):
    """CIELAB (D65) of sRGB 0..255 as that eye sees them."""
    srgb = np.asarray(colours, float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ EYES[eye].T, 0, 1)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = seen @ matrix.T / np.array([0.9505, 1.0, 1.089])
    bent = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack(
        [116 * bent[..., 1] - 16, 500 * (bent[..., 0] - bent[..., 1]), 200 * (bent[..., 1] - bent[..., 2])], axis=-1
    )


@pytest.mark.parametrize("eye", EYES)
def test_every_eye_sees_the_ramp_grow_lighter_in_steps_it_can_tell_apart(eye):
    steps = cielab(RAMP[np.linspace(0, 255, 9).round().astype(int), :3], eye)
    assert (np.diff(steps[:, 0]) > 0).all()
    assert steps[-1, 0] - steps[0, 0] > 50
    # Twice the just noticeable difference of 2.3 for neighbours, and six times it two steps on.
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).min() > 4.6
    assert np.linalg.norm(steps[2:] - steps[:-2], axis=1).min() > 13.8


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("part", [(60, 60, 60), (200, 200, 200), (130, 85, 50), (150, 50, 40)])
def test_every_colour_shows_on_grey_and_on_brown(eye, part):
    image = np.broadcast_to(np.array(part, np.uint8), (1, 256, 3)).copy()
    heatmap = np.linspace(1.001, 3, 256, dtype=np.float32)[None]
    drawn = np.asarray(overlay(image, heatmap, SCALE))
    difference = np.linalg.norm(cielab(drawn, eye) - cielab(image, eye), axis=-1)
    assert difference.min() > 7  # three just noticeable differences, for the worst colour on the worst part


def test_a_data_address_holds_the_picture():
    image = Image.fromarray(picture())
    head, body = data_uri(image).split(",")
    again = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == "data:image/png;base64" and again.format == "PNG" and again.tobytes() == image.tobytes()


def test_a_spot_is_ringed_and_nothing_else_changes():
    image = np.full((80, 120, 3), 90, np.uint8)
    quiet = np.zeros((80, 120), np.float32)
    ringed = np.asarray(overlay(image, quiet, Scale(1.0, 2.0), spot=(30, 40)))
    rows, columns = np.nonzero((ringed != image).any(axis=2))
    far = np.hypot(columns - 30, rows - 40)
    assert far.min() > 120 / 16 - 3 and far.max() < 120 / 16 + 3  # what is ringed stays to be seen


def test_an_island_in_the_hole_of_a_region_is_within_its_line():
    heatmap = np.zeros((30, 30), np.float32)
    heatmap[5:25, 5:25], heatmap[8:22, 8:22], heatmap[14, 14] = 2, 0, 3
    image = np.full((30, 30, 3), 128, np.uint8)
    for smallest in (1, 5):
        drawn = np.asarray(overlay(image, heatmap, SCALE, find_regions(heatmap, 1.0, smallest)))
        assert (drawn[8:14, 8:22] == 128).all() and (drawn[4, 5:25] == LINE).all()
