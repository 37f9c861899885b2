"""The reverse-distillation family's AU-PRO against the procedure written out threshold by threshold."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import auc

from blemish.errors import DataError
from blemish.metrics import aupro_per_image


def brute_one(one_map, mask, limit=0.3, steps=200):
    """One image as the papers' procedure has it; None where that procedure has no answer."""
    one_map = one_map.astype(np.float64)
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    low, high = one_map.min(), one_map.max()
    points = []
    for step in range(steps):
        flagged = one_map > low + (high - low) * (step / steps)
        overlaps = [flagged[regions == region].mean() for region in range(1, count + 1)]
        points.append((flagged[~mask].mean(), np.mean(overlaps)))
    kept = [(fpr, pro) for fpr, pro in points if fpr < limit]
    if len(kept) < 2 or kept[0][0] == 0:
        return None
    fprs, pros = np.array(kept).T
    return auc(fprs / fprs.max(), pros)


@st.composite
def stacks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(5, 9))
    shape = (draw(st.integers(1, 3)), size, size)
    masks = rng.random(shape) < draw(st.sampled_from([0.05, 0.2, 0.4]))
    maps = rng.random(shape) + 0.4 * masks
    return maps.astype(draw(st.sampled_from([np.float32, np.float64]))), masks


@settings(deadline=None, max_examples=60)
@given(stacks())
def test_it_is_the_mean_of_the_images_own_curves(stack):
    maps, masks = stack
    anomalous = [i for i in range(len(maps)) if masks[i].any() and not masks[i].all()]
    expected = [brute_one(maps[i], masks[i]) for i in anomalous]
    assume(None not in expected)
    if not expected:
        assert math.isnan(aupro_per_image(maps, masks))
        return
    assert aupro_per_image(maps, masks) == pytest.approx(np.mean(expected), abs=1e-9)
    assert aupro_per_image(list(maps), list(masks)) == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_a_smooth_map_at_several_limits(limit):
    rng = np.random.default_rng(8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:12, 20:30] = mask[30:33, 2:5] = True
    one_map = ndimage.gaussian_filter(rng.normal(size=(40, 40)) + mask, 1.5).astype(np.float32)
    expected = brute_one(one_map, mask, limit, 50)
    assert aupro_per_image(one_map[None], mask[None], limit, 50) == pytest.approx(expected, abs=1e-9)


def test_a_pixel_at_the_threshold_is_not_flagged():
    rng = np.random.default_rng(2)
    mask = np.zeros((12, 12), dtype=bool)
    mask[2:5, 3:7] = mask[9, 9:11] = True
    one_map = np.minimum(rng.integers(0, 17, (12, 12)) + 3 * mask, 16) * 1.0
    one_map[0, 0], one_map[2, 3] = 0.0, 16.0  # 16 steps between 0 and 16: every value is a threshold
    assert aupro_per_image(one_map[None], mask[None], steps=16) == pytest.approx(brute_one(one_map, mask, steps=16))


def two_defects():
    mask = np.zeros((10, 10), dtype=bool)
    mask[0, 0] = mask[5:7, 5:7] = True
    return mask


def test_a_perfect_two_valued_map_has_one():
    mask = two_defects()
    assert aupro_per_image(mask[None].astype(np.float32), mask[None]) == 1.0


def test_kept_points_that_are_all_at_rate_zero_count_their_highest_overlap():
    mask = two_defects()
    one_map = np.zeros((10, 10))
    one_map[5:7, 5:7] = 1.0  # one of the two regions, without a false alarm at any threshold
    assert aupro_per_image(one_map[None], mask[None]) == pytest.approx(0.5)


def test_no_point_below_the_limit_counts_nothing():
    mask = two_defects()
    one_map = np.where(np.arange(100).reshape(10, 10) % 2 == 0, 1.0, 0.0)  # half of the pixels at the maximum
    one_map[mask] = 0.5
    assert aupro_per_image(one_map[None], mask[None]) == 0.0


def test_a_single_point_with_false_alarms_spans_no_width():
    mask = two_defects()
    one_map = np.zeros((10, 10))
    one_map[mask] = 1.0
    one_map[9, :] = 1.0  # every threshold flags the same ten normal pixels
    assert aupro_per_image(one_map[None], mask[None], steps=1) == 0.0


def test_a_constant_map_counts_nothing_and_good_images_do_not_count():
    mask = two_defects()
    assert aupro_per_image(np.full((1, 10, 10), 4.0), mask[None]) == 0.0
    rng = np.random.default_rng(0)
    maps = (rng.random((10, 10)) + mask)[None]
    alone = aupro_per_image(maps, mask[None])
    with_good = aupro_per_image(np.concatenate([maps, 99 + maps]), np.stack([mask, np.zeros_like(mask)]))
    with_all_bad = aupro_per_image(np.concatenate([maps, maps]), np.stack([mask, np.ones_like(mask)]))
    assert with_good == with_all_bad == alone
    assert aupro_per_image(np.concatenate([maps, 0 * maps]), np.stack([mask, mask])) == pytest.approx(alone / 2)


def test_no_anomalous_image_gives_nan():
    assert math.isnan(aupro_per_image(np.random.default_rng(0).random((2, 4, 4)), np.zeros((2, 4, 4), dtype=bool)))


def test_gain_and_offset_of_an_image_do_not_matter():
    rng = np.random.default_rng(1)
    masks = rng.random((2, 12, 12)) < 0.1
    maps = rng.integers(0, 2**10, (2, 12, 12)) / 2**10  # so that scaling by powers of two is exact
    scaled = maps * np.array([4.0, 0.5])[:, None, None]
    assert aupro_per_image(scaled, masks) == pytest.approx(aupro_per_image(maps, masks), abs=1e-12)


@pytest.mark.parametrize(
    ("maps", "masks", "options", "message"),
    [
        (np.full((1, 2, 2), np.nan), np.eye(2, dtype=bool)[None], {}, "NaN"),
        (np.array([[[0.0, np.inf], [1.0, 2.0]]]), np.eye(2, dtype=bool)[None], {}, "infinite"),
        (np.zeros((2, 2, 2)), np.eye(2, dtype=bool)[None], {}, "2 maps and 1 masks"),
        (np.zeros((1, 2, 2)), np.eye(2)[None], {}, "masks > 0"),
        (np.zeros((2, 2)), np.eye(2, dtype=bool), {}, "h w"),
        (np.zeros((1, 2, 2)), np.eye(2, dtype=bool)[None], {"limit": 0.0}, "limit"),
        (np.zeros((1, 2, 2)), np.eye(2, dtype=bool)[None], {"steps": 0}, "steps"),
    ],
)
def test_misuse_is_refused(maps, masks, options, message):
    with pytest.raises(DataError, match=message):
        aupro_per_image(maps, masks, **options)
