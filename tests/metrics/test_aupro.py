"""AU-PRO, also the RD family's, and the other pixel metrics against brute force, scikit-learn and scipy's labelling."""

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

EIGHT = np.ones((3, 3))


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


def with_both(maps, masks):
    return masks.any() and not masks.all()


def label_stack(masks):
    labels, total = np.zeros(masks.shape, dtype=int), 0
    for image, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, EIGHT)
        labels[image] = np.where(labelled > 0, labelled + total, 0)
        total += count
    return labels, total


def brute_aupro(maps, masks, limit):
    """The definition: every distinct score is a threshold, every region is compared, trapezoids up to the limit."""
    maps = maps.astype(np.float64)
    labels, total = label_stack(masks)
    fprs, pros = [0.0], [0.0]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        flagged = maps >= threshold
        fprs.append(flagged[~masks].mean())
        pros.append(np.mean([flagged[labels == region].mean() for region in range(1, total + 1)]))
    area = 0.0
    for left, right, low, high in zip(fprs, fprs[1:], pros, pros[1:]):
        if left >= limit:
            break
        end = min(right, limit)
        at_end = low + (high - low) * (end - left) / (right - left) if right > left else high
        area += (end - left) * (low + at_end) / 2
    return area / limit


def sorted_aupro(maps, masks, limit):
    """The same curve for larger sets: one full float64 argsort, weighted cumulative sums, interpolation."""
    labels, total = label_stack(masks)
    areas = np.bincount(labels.ravel())
    order = np.argsort(-maps.ravel().astype(np.float64), kind="stable")
    scores, labels = maps.ravel()[order], labels.ravel()[order]
    pro = np.cumsum(np.where(labels > 0, 1 / (areas[labels] * total), 0))
    fpr = np.cumsum(labels == 0) / areas[0]
    last = np.append(scores[1:] != scores[:-1], True)
    fpr, pro = np.append(0, fpr[last]), np.append(0, pro[last])
    inside = fpr < limit
    return np.trapezoid(np.append(pro[inside], np.interp(limit, fpr, pro)), np.append(fpr[inside], limit)) / limit


@settings(deadline=None)
@given(stacks(), st.sampled_from([0.01, 0.05, 0.3, 0.77, 1.0]))
def test_aupro_equals_the_definition(stack, limit):
    maps, masks = stack
    if with_both(maps, masks):
        assert aupro(maps, masks, limit) == pytest.approx(brute_aupro(maps, masks, limit), abs=1e-9)
    else:
        assert math.isnan(aupro(maps, masks, limit))


@settings(deadline=None)
@given(stacks())
def test_pixel_metrics_equal_scikit_learn_and_the_definition(stack):
    maps, masks = stack
    figures = pixel_metrics(maps, masks)
    assert list(figures) == ["pixel_auroc", "pixel_ap", "pixel_fpr95", "aupro", "aupro_05"]
    if not with_both(maps, masks):
        assert all(math.isnan(value) for value in figures.values())
        return
    scores, truth = maps.ravel(), masks.ravel()
    fprs, tprs, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert figures["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert figures["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    assert figures["pixel_fpr95"] == pytest.approx(fprs[np.argmax(tprs >= 0.95)], abs=1e-9)
    assert figures["aupro"] == pytest.approx(brute_aupro(maps, masks, 0.3), abs=1e-9)
    assert figures["aupro_05"] == pytest.approx(brute_aupro(maps, masks, 0.05), abs=1e-9)


@settings(deadline=None)
@given(stacks())
def test_regions_are_those_of_scipy(stack):
    _, masks = stack
    labels, total = label_stack(masks)
    defects = find_defects(masks)
    theirs = labels.ravel()[defects.index]
    assert defects.regions == total
    np.testing.assert_array_equal(defects.index, np.flatnonzero(masks))
    assert len(set(zip(theirs.tolist(), defects.region.tolist()))) == total
    if total:
        np.testing.assert_allclose(defects.weights(), 1 / (total * np.bincount(theirs)[theirs]))


def test_regions_of_crooked_shapes_are_those_of_scipy():
    rng = np.random.default_rng(0)
    masks = ndimage.gaussian_filter(rng.normal(size=(6, 64, 97)), (0, 2, 2)) > 0.05
    labels, total = label_stack(masks)
    defects = find_defects(masks)
    assert defects.regions == total > 20
    assert len(set(zip(labels.ravel()[defects.index].tolist(), defects.region.tolist()))) == total


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
    for limit, area in zip((0.3, 0.05, 0.9), aupro(maps, masks, (0.3, 0.05, 0.9))):
        assert area == pytest.approx(sorted_aupro(maps, masks, limit), abs=1e-9)
        assert aupro(maps, masks, limit) == pytest.approx(area, abs=1e-12)
    before = maps.copy(), masks.copy()
    assert pixel_metrics(maps, masks)["aupro"] == pytest.approx(aupro(maps, masks), abs=1e-12)
    np.testing.assert_array_equal(maps, before[0])  # the input is left as it was
    np.testing.assert_array_equal(masks, before[1])


@pytest.mark.parametrize("misled", [50.0, -50.0])
@pytest.mark.parametrize("step", [97, 256, 1])
def test_no_pattern_of_scores_misleads_the_search_for_the_limit(misled, step):
    maps, masks = large_stack(1)
    flat = maps.reshape(-1)
    flat[::step] += misled  # the very pixels that a sample at equal steps would look at
    assert aupro(maps, masks) == pytest.approx(sorted_aupro(maps, masks, 0.3), abs=1e-9)


def test_perfect_constant_and_worst_maps():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 1:3, 1:4] = masks[1, 6, 6] = True
    for limit in (0.05, 0.3, 1.0):
        assert aupro(masks.astype(np.float32), masks, limit) == pytest.approx(1.0, abs=1e-12)
        assert aupro(np.full(masks.shape, 7.0), masks, limit) == pytest.approx(limit / 2, abs=1e-12)
        assert aupro(-masks.astype(np.float32), masks, limit) == 0.0
    constant = pixel_metrics(np.zeros(masks.shape, dtype=np.float32), masks)
    assert constant["pixel_auroc"] == 0.5
    assert constant["pixel_fpr95"] == 1.0


def test_images_of_different_sizes_are_taken_as_a_list():
    maps, masks = large_stack(4)
    maps, masks = maps[:, :60, :120], masks[:, :60, :120]
    pieces = [(0, 60, 120), (1, 60, 110), (3, 55, 120), (4, 9, 9)]
    listed = [maps[i, :h, :w] for i, h, w in pieces], [masks[i, :h, :w] for i, h, w in pieces]
    scores = np.concatenate([part.ravel() for part in listed[0]])
    truth = np.concatenate([part.ravel() for part in listed[1]])
    assert pixel_metrics(*listed)["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    # In one stack with -inf around them the same pixels have the same order; the padding adds only normal pixels.
    stacked = np.full(maps.shape, -np.inf, dtype=np.float32)
    stacked_masks = np.zeros(masks.shape, dtype=bool)
    for image, (part, mask) in enumerate(zip(*listed)):
        stacked[image, : part.shape[0], : part.shape[1]] = part
        stacked_masks[image, : part.shape[0], : part.shape[1]] = mask
    limit = 0.3 * np.sum(~truth) / np.sum(~stacked_masks)
    assert aupro(*listed, 0.3) == pytest.approx(aupro(stacked, stacked_masks, limit), abs=1e-12)
    same = list(maps), list(masks)
    assert aupro(*same) == pytest.approx(aupro(maps, masks), abs=1e-12)


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


@st.composite
def squares(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(5, 9))
    shape = (draw(st.integers(1, 3)), size, size)
    masks = rng.random(shape) < draw(st.sampled_from([0.05, 0.2, 0.4]))
    maps = rng.random(shape) + 0.4 * masks
    return maps.astype(draw(st.sampled_from([np.float32, np.float64]))), masks


@settings(deadline=None, max_examples=60)
@given(squares())
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


def test_a_smooth_map_at_several_limits():
    rng = np.random.default_rng(8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:12, 20:30] = mask[30:33, 2:5] = True
    map_ = ndimage.gaussian_filter(rng.normal(size=(40, 40)) + mask, 1.5).astype(np.float32)
    for limit in (0.05, 0.3, 1.0):
        expected = brute_one(map_, mask, limit, 50)
        assert aupro_per_image(map_[None], mask[None], limit, 50) == pytest.approx(expected, abs=1e-9)


def test_a_pixel_at_the_threshold_is_not_flagged():
    rng = np.random.default_rng(2)
    mask = np.zeros((12, 12), dtype=bool)
    mask[2:5, 3:7] = mask[9, 9:11] = True
    map_ = np.minimum(rng.integers(0, 17, (12, 12)) + 3 * mask, 16) * 1.0
    map_[0, 0], map_[2, 3] = 0.0, 16.0  # 16 steps between 0 and 16: every value is a threshold
    assert aupro_per_image(map_[None], mask[None], steps=16) == pytest.approx(brute_one(map_, mask, steps=16))


def two_defects():
    mask = np.zeros((10, 10), dtype=bool)
    mask[0, 0] = mask[5:7, 5:7] = True
    return mask


def test_kept_points_that_are_all_at_rate_zero_count_their_highest_overlap():
    mask = two_defects()
    assert aupro_per_image(mask[None].astype(np.float32), mask[None]) == 1.0
    map_ = np.zeros((10, 10))
    map_[5:7, 5:7] = 1.0  # one of the two regions, without a false alarm at any threshold
    assert aupro_per_image(map_[None], mask[None]) == pytest.approx(0.5)


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


def test_misuse_of_the_variant_is_refused():
    maps, masks = np.array([[[0.0, np.inf], [1.0, 2.0]]]), np.eye(2, dtype=bool)[None]
    for options, message in (({}, "infinite"), ({"limit": 0.0}, "limit"), ({"steps": 0}, "steps")):
        with pytest.raises(DataError, match=message):
            aupro_per_image(maps, masks, **options)
    with pytest.raises(DataError, match="h w"):
        aupro_per_image(maps[0], masks[0])
