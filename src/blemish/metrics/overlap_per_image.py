"""AU-PRO as the reverse-distillation family reports it: image by image, on equally spaced thresholds.

Kept for comparing with those papers' tables; `blemish.metrics.aupro` is the default everywhere else. It differs in
four ways: each anomalous image has its own curve and the curves' areas are averaged, good images play no part,
thresholds are 200 equal steps between the image's own extremes, and the curve is cut by dropping points, not by
interpolation.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from blemish.errors import DataError
from blemish.metrics.components import find_defects
from blemish.metrics.overlap import Maps, Masks
from blemish.metrics.ranking import Flags, Scores, check_scores


def aupro_per_image(maps: Maps, masks: Masks, limit: float = 0.3, steps: int = 200) -> float:
    """The mean over anomalous images of the area under each one's own overlap curve, in [0, 1].

    For each image: ``steps`` equally spaced thresholds from its minimum up to, not including, its maximum; a pixel is
    flagged when it scores strictly higher; points with a false-positive rate of ``limit`` or more are dropped; the
    rates are divided by the largest one kept; trapezoids between the kept points.

    Where the papers' procedure breaks down: an image with no point below the limit (a constant map among them) counts
    0; one whose kept points all have rate 0 counts the highest overlap among them (1 for a perfect two-valued map); a
    single kept point with a rate above 0 spans no width and counts 0. Images without a normal pixel are left out.

    Args:
        maps: ``n h w`` finite floats, or a list of ``h w`` arrays.
        masks: the same shapes, bool.
        limit: false-positive rate in (0, 1].
        steps: number of thresholds.

    Returns:
        NaN where no image has both defect and normal pixels.

    Raises:
        DataError: shapes differ, a map has NaN or infinite values, masks are not bool, limit or steps out of range.
    """
    if len(maps) != len(masks):
        raise DataError(f"{len(maps)} maps and {len(masks)} masks given; each map needs its mask, empty where good")
    if not 0 < limit <= 1 or steps < 1:
        raise DataError(f"limit={limit}, steps={steps} given; needed: a limit in (0, 1], usually 0.3, and steps >= 1")
    areas = []
    for one_map, one_mask in zip(maps, masks):
        scores, flags = check_scores(one_map, one_mask, "maps", "masks")
        if scores.ndim != 2:
            raise DataError(f"a map of shape {scores.shape} given; `h w` is needed for each image")
        if flags.any() and not flags.all():
            areas.append(_area(*_curve(scores, flags, steps), limit))
    return float(np.mean(areas)) if areas else math.nan


def _curve(scores: Scores, mask: Flags, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False-positive rate and mean overlap at each threshold, from the lowest threshold up; none for a constant map."""
    low, high = float(scores.min()), float(scores.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("an infinite value in a map; equal steps between its extremes need finite ones: clip it first")
    if low == high:
        return np.empty(0), np.empty(0)
    thresholds = low + (high - low) * (np.arange(steps) / steps)
    defects = find_defects(mask[None])
    normal = np.sort(scores[~mask])
    found = scores.reshape(-1)[defects.index]
    order = np.argsort(found)
    missed = np.concatenate([[0.0], np.cumsum(defects.weights()[order])])
    rates = (normal.size - np.searchsorted(normal, thresholds, side="right")) / normal.size
    overlaps = missed[-1] - missed[np.searchsorted(found[order], thresholds, side="right")]
    return rates, overlaps


def _area(rates: NDArray[np.float64], overlaps: NDArray[np.float64], limit: float) -> float:
    is_kept = rates < limit
    rates, overlaps = rates[is_kept], overlaps[is_kept]
    if rates.size == 0:
        return 0.0
    largest = rates[0]  # rates fall as thresholds rise
    if largest == 0:
        return float(overlaps[0])
    return float(np.trapezoid(overlaps[::-1], rates[::-1] / largest))
