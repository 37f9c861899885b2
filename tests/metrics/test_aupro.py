"""AU-PRO, also the RD family's, and the other pixel metrics against scikit-learn, brute force and scipy's labelling."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, roc_auc_score, roc_curve

from blemish.errors import DataError
from blemish.metrics import aupro, aupro_per_image, pixel_metrics
from blemish.metrics.aupro import find_defects


@st.composite
def stacks(draw):
    """Small maps with many, few or no equal values, and masks with touching corners, borders and empty images."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))))
    levels = draw(st.sampled_from([1, 2, 6, 10_000]))
    maps = (rng.integers(0, levels, shape) * 0.1 - 1).astype(np.float32)
    masks = rng.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.6]))
    masks[rng.random(shape[0]) < 0.3] = False
    return maps, masks


def label_stack(masks):
    labels, total = np.zeros(masks.shape, dtype=int), 0
    for image, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        labels[image] = np.where(labelled > 0, labelled + total, 0)
        total += count
    return labels, total


def expected_aupro(maps, masks, limit):
    """By scikit-learn's ROC curve, in which every region weighs the same, however large; trapezoids up to the limit."""
    labels, _ = label_stack(masks)
    weights = np.where(labels > 0, 1 / np.bincount(labels.ravel())[labels], 1.0)
    curve = roc_curve(masks.ravel(), maps.ravel(), sample_weight=weights.ravel(), drop_intermediate=False)
    fprs, pros, _ = curve
    end = np.searchsorted(fprs, limit)
    at_limit = np.interp(limit, fprs[end - 1 : end + 1], pros[end - 1 : end + 1])
    return np.trapezoid([*pros[:end], at_limit], [*fprs[:end], limit]) / limit


@settings(deadline=None, max_examples=200)
@given(stacks(), st.sampled_from([0.01, 0.05, 0.3, 0.77, 1.0]))
def test_pixel_metrics_and_aupro_equal_scikit_learn(stack, limit):
    maps, masks = stack
    figures = pixel_metrics(maps, masks)
    assert list(figures) == ["pixel_auroc", "pixel_ap", "pixel_fpr95", "aupro", "aupro_05"]
    if not masks.any() or masks.all():
        assert all(math.isnan(value) for value in (*figures.values(), aupro(maps, masks, limit)))
        return
    scores, truth = maps.ravel(), masks.ravel()
    fprs, tprs, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert figures == pytest.approx(
        {
            "pixel_auroc": roc_auc_score(truth, scores),
            "pixel_ap": average_precision_score(truth, scores),
            "pixel_fpr95": fprs[np.argmax(tprs >= 0.95)],
            "aupro": expected_aupro(maps, masks, 0.3),
            "aupro_05": expected_aupro(maps, masks, 0.05),
        },
        abs=1e-9,
    )
    assert aupro(maps, masks, limit) == pytest.approx(expected_aupro(maps, masks, limit), abs=1e-9)


def test_a_curve_worked_out_by_hand():
    # A defect of one pixel and one of two; four normal pixels: (0, 1/2), (0, 3/4), (1/4, 3/4), (1/4, 1), (1, 1).
    maps = np.array([[[9.0, 0.0, 8.0, 6.0, 0.0, 7.0, 0.0]]])
    masks = np.array([[[True, False, True, True, False, False, False]]])
    for limit, area in ((0.25, 0.75), (0.5, 0.875), (1.0, 0.9375)):
        assert aupro(maps, masks, limit) == pytest.approx(area)


@settings(deadline=None)
@given(st.one_of(stacks(), st.integers(0, 3)))
def test_regions_are_those_of_scipy(case):
    if isinstance(case, int):  # crooked shapes
        noise = np.random.default_rng(case).normal(size=(6, 64, 97))
        masks = ndimage.gaussian_filter(noise, (0, 2, 2)) > 0.05
    else:
        masks = case[1]
    labels, total = label_stack(masks)
    defects = find_defects(masks)
    theirs = labels.ravel()[defects.index]
    assert defects.regions == total
    np.testing.assert_array_equal(defects.index, np.flatnonzero(masks))
    assert len(set(zip(theirs.tolist(), defects.region.tolist()))) == total
    if total:
        np.testing.assert_allclose(defects.weights(), 1 / (total * np.bincount(theirs)[theirs]))


def large_stack(seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((5, 256, 256), dtype=bool)
    masks[1, 40:80, 100:110] = masks[1, 200:203, 5:90] = masks[3, :, :7] = masks[4, 250:, 250:] = True
    maps = ndimage.gaussian_filter(rng.normal(size=masks.shape), (0, 3, 3)).astype(np.float32)
    return maps + 0.1 * ndimage.gaussian_filter(masks.astype(np.float32), (0, 2, 2)), masks


@pytest.mark.parametrize("digits", [None, 1])
def test_large_sets_sort_only_the_top_and_stay_exact(digits):
    maps, masks = large_stack()
    maps = maps if digits is None else maps.round(digits)
    before = maps.copy(), masks.copy()
    for limit, area in zip((0.3, 0.05, 0.9), aupro(maps, masks, (0.3, 0.05, 0.9))):
        assert area == pytest.approx(expected_aupro(maps, masks, limit), abs=1e-9)
        assert aupro(maps, masks, limit) == pytest.approx(area, abs=1e-12)
    assert pixel_metrics(maps, masks)["aupro"] == pytest.approx(aupro(maps, masks), abs=1e-12)
    assert np.array_equal(maps, before[0]) and np.array_equal(masks, before[1])  # the input is left as it was


@pytest.mark.parametrize("misled", [50.0, -50.0])
@pytest.mark.parametrize("step", [97, 256, 1])
def test_no_pattern_of_scores_misleads_the_search_for_the_limit(misled, step):
    maps, masks = large_stack(1)
    maps.reshape(-1)[::step] += misled  # the very pixels that a sample at equal steps would look at
    assert aupro(maps, masks) == pytest.approx(expected_aupro(maps, masks, 0.3), abs=1e-9)


def test_perfect_constant_and_worst_maps():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 1:3, 1:4] = masks[1, 6, 6] = True
    for limit in (0.05, 0.3, 1.0):
        assert aupro(masks.astype(np.float32), masks, limit) == pytest.approx(1.0, abs=1e-12)
        assert aupro(np.full(masks.shape, 7.0), masks, limit) == pytest.approx(limit / 2, abs=1e-12)
        assert aupro(-masks.astype(np.float32), masks, limit) == 0.0
    constant = pixel_metrics(np.zeros(masks.shape, dtype=np.float32), masks)
    assert (constant["pixel_auroc"], constant["pixel_fpr95"]) == (0.5, 1.0)


def test_images_of_different_sizes_are_taken_as_a_list():
    maps, masks = large_stack(4)
    maps, masks = maps[:, :60, :120], masks[:, :60, :120]
    pieces = [(0, 60, 120), (1, 60, 110), (3, 55, 120), (4, 9, 9)]
    listed = [maps[i, :h, :w] for i, h, w in pieces], [masks[i, :h, :w] for i, h, w in pieces]
    scores, truth = (np.concatenate([part.ravel() for part in parts]) for parts in listed)
    assert pixel_metrics(*listed)["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    # In one stack with -inf around them the same pixels have the same order; the padding adds only normal pixels.
    stacked = np.full(maps.shape, -np.inf, dtype=np.float32)
    stacked_masks = np.zeros(masks.shape, dtype=bool)
    for image, (part, mask) in enumerate(zip(*listed)):
        stacked[image, : part.shape[0], : part.shape[1]] = part
        stacked_masks[image, : part.shape[0], : part.shape[1]] = mask
    limit = 0.3 * np.sum(~truth) / np.sum(~stacked_masks)
    assert aupro(*listed, 0.3) == pytest.approx(aupro(stacked, stacked_masks, limit), abs=1e-12)
    assert aupro(list(maps), list(masks)) == pytest.approx(aupro(maps, masks), abs=1e-12)


@pytest.mark.parametrize("metric", [aupro, pixel_metrics])
@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2), dtype=bool), "NaN"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 3), dtype=bool), "must match"),
        (np.zeros((1, 2, 2)), np.full((1, 2, 2), 255, dtype=np.uint8), "masks > 0"),
        (np.zeros((2, 2)), np.ones((2, 2), dtype=bool), "n h w"),
        (np.zeros((0, 2, 2)), np.ones((0, 2, 2), dtype=bool), "no maps"),
        ([np.zeros((2, 2))], [], "1 maps and 0 masks"),
        ([], [], "no maps"),
        ([np.zeros((1, 2, 2))], [np.zeros((1, 2, 2), dtype=bool)], "h w"),
    ],
)
def test_misuse_is_refused(metric, maps, masks, message):
    with pytest.raises(DataError, match=message):
        metric(maps, masks)


@pytest.mark.parametrize("limits", [0.0, -0.1, 1.1, math.nan, (), (0.3, 2.0)])
def test_an_impossible_limit_is_refused(limits):
    with pytest.raises(DataError, match="limit"):
        aupro(np.zeros((1, 2, 2)), np.ones((1, 2, 2), dtype=bool), limits)


def brute_one(map_, mask, limit=0.3, steps=200):
    """One image as the papers' procedure has it; None where that procedure has no answer."""
    map_ = map_.astype(np.float64)
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    low, high = map_.min(), map_.max()
    points = []
    for step in range(steps):
        flagged = map_ > low + (high - low) * (step / steps)
        overlaps = [flagged[regions == region].mean() for region in range(1, count + 1)]
        points.append((flagged[~mask].mean(), np.mean(overlaps)))
    kept = [(fpr, pro) for fpr, pro in points if fpr < limit]
    if len(kept) < 2 or kept[0][0] == 0:
        return None
    fprs, pros = np.array(kept).T
    return auc(fprs / fprs.max(), pros)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(5, 9), st.integers(1, 3), st.sampled_from([0.05, 0.2, 0.4]))
def test_the_variant_is_the_mean_of_the_images_own_curves(seed, size, count, share):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, size, size)) < share
    maps = (rng.random(masks.shape) + 0.4 * masks).astype([np.float32, np.float64][seed % 2])
    expected = [brute_one(map_, mask) for map_, mask in zip(maps, masks) if mask.any() and not mask.all()]
    assume(None not in expected)
    mean = np.mean(expected) if expected else math.nan
    assert aupro_per_image(maps, masks) == pytest.approx(mean, abs=1e-9, nan_ok=True)
    assert aupro_per_image(list(maps), list(masks)) == pytest.approx(mean, abs=1e-9, nan_ok=True)


def test_several_limits_and_pixels_at_the_threshold_of_the_variant():
    rng = np.random.default_rng(8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:12, 20:30] = mask[30:33, 2:5] = True
    smooth = ndimage.gaussian_filter(rng.normal(size=(40, 40)) + mask, 1.5).astype(np.float32)
    coarse = np.minimum(rng.integers(0, 17, (40, 40)) + 3 * mask, 16) * 1.0
    coarse[0, 0], coarse[6, 20] = 0.0, 16.0  # 16 steps between 0 and 16: every value is a threshold, and not flagged
    for map_, steps in ((smooth, 50), (coarse, 16)):
        for limit in (0.05, 0.3, 1.0) if map_ is smooth else (0.3,):
            expected = brute_one(map_, mask, limit, steps)
            assert aupro_per_image(map_[None], mask[None], limit, steps) == pytest.approx(expected, abs=1e-9)


def test_flat_curves_constant_maps_and_good_images_of_the_variant():
    mask = np.zeros((10, 10), dtype=bool)
    mask[0, 0] = mask[5:7, 5:7] = True
    half = np.zeros((10, 10))
    half[5:7, 5:7] = 1.0  # one of the two regions, without a false alarm at any threshold
    for map_, area in ((mask.astype(np.float32), 1.0), (half, 0.5), (np.full((10, 10), 4.0), 0.0)):
        assert aupro_per_image(map_[None], mask[None]) == pytest.approx(area)
    maps = (np.random.default_rng(0).random((10, 10)) + mask)[None]
    alone = aupro_per_image(maps, mask[None])
    with_good = aupro_per_image(np.concatenate([maps, 99 + maps]), np.stack([mask, np.zeros_like(mask)]))
    with_all_bad = aupro_per_image(np.concatenate([maps, maps]), np.stack([mask, np.ones_like(mask)]))
    assert with_good == with_all_bad == alone
    assert aupro_per_image(np.concatenate([maps, 0 * maps]), np.stack([mask, mask])) == pytest.approx(alone / 2)


def test_misuse_of_the_variant_is_refused():
    maps, masks = np.array([[[0.0, np.inf], [1.0, 2.0]]]), np.eye(2, dtype=bool)[None]
    for options, message in (({}, "infinite"), ({"limit": 0.0}, "limit"), ({"steps": 0}, "steps")):
        with pytest.raises(DataError, match=message):
            aupro_per_image(maps, masks, **options)
    with pytest.raises(DataError, match="h w"):
        aupro_per_image(maps[0], masks[0])


def test_what_lies_outside_moves_no_threshold_of_the_variant():
    rng = np.random.default_rng(3)
    maps, masks = 5 + rng.random((2, 30, 40)), np.zeros((2, 30, 40), dtype=bool)
    masks[0, 8:14, 9:20] = masks[1, 12:20, 25:30] = True
    maps += 0.3 * masks
    inside = np.zeros((30, 40), dtype=bool)
    inside[5:25, 6:36] = True
    cropped = aupro_per_image(maps[:, 5:25, 6:36], masks[:, 5:25, 6:36], steps=20)
    maps[:, ~inside] = rng.choice([-90, 90], maps[:, ~inside].shape)
    assert 0.1 < cropped < 0.9
    assert aupro_per_image(maps, masks, steps=20, inside=inside) == pytest.approx(cropped, abs=1e-12)
