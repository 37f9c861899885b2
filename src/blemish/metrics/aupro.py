"""Pixel metrics of a whole test set: exact AU-PRO at any limits, and pixel AUROC, AP and FPR95 from the same ranking.

The per-region-overlap curve gives, for every threshold, the share of each defect region that is found, averaged over
regions, against the share of normal pixels flagged. AU-PRO is its area up to a limit of the latter, divided by that
limit (Bergmann et al., MVTec AD, IJCV 2021, section 5). It is an ROC curve in which a defect pixel weighs
1 / (regions x its region's area), so its area is a sum over defect pixels: each adds its weight times the width of
the curve to the right of it, which needs only the number of normal pixels that score higher. Exact: thresholds are all
distinct scores, straight lines between them, cut at the limit by interpolation. Normal pixels beyond it are not sorted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from blemish.errors import DataError
from blemish.metrics.ranking import Flags, Ranking, Scores, Whole, check_scores, rank_positives

Maps = NDArray[np.floating[Any]] | Sequence[NDArray[np.floating[Any]]]
Masks = Flags | Sequence[Flags]

# One pixel in 97 is looked at to guess where the limit's threshold lies: prime, so that no usual width is a multiple.
_SAMPLE_STEP, _SAMPLE_MARGIN, _SMALL = 97, 0.01, 200_000


@dataclass(frozen=True)
class DefectPixels:
    """The ``p`` defect pixels of a stack of masks: positions in the flattened stack, ascending, and the region of each.

    Regions, numbered ``0 .. regions - 1``, are 8-connected, and none spans two images.
    """

    index: Whole
    region: Whole
    regions: int

    def weights(self) -> NDArray[np.float64]:
        """``p``, 1 / (regions x area of the pixel's region): every region weighs the same, all together 1."""
        areas = np.bincount(self.region, minlength=self.regions)
        of_region: NDArray[np.float64] = 1.0 / (self.regions * areas)
        return of_region[self.region]


@overload
def aupro(maps: Maps, masks: Masks, limits: float = 0.3) -> float: ...
@overload
def aupro(maps: Maps, masks: Masks, limits: Iterable[float]) -> tuple[float, ...]: ...
def aupro(maps: Maps, masks: Masks, limits: float | Iterable[float] = 0.3) -> float | tuple[float, ...]:
    """The area under the per-region-overlap curve of the whole set, in [0, 1]; NaN without defect or normal pixels.

    Maps are ``n h w`` floats, higher is more anomalous, or a list of ``h w`` arrays of different sizes; masks have the
    same shapes, bool, True on defects. A limit is the largest false-positive rate in (0, 1]; several of them give as
    many areas for little more than the cost of one.

    Raises:
        DataError: shapes differ, NaN in a map, masks that are not bool, a limit outside (0, 1].
    """
    several = tuple(limits) if isinstance(limits, Iterable) else (float(limits),)
    if not several or not all(0 < limit <= 1 for limit in several):
        raise DataError(f"AU-PRO limits {several} given; needed: one or more rates in (0, 1], usually 0.3")
    scores, defects = _flatten(maps, masks)
    # Defect pixels whose false-positive rate is beyond the limit add no area: they are left out of the ranking. A score
    # somewhat below the threshold at which so many normal pixels are flagged comes from a sample.
    floor, share = None, max(several) + _SAMPLE_MARGIN
    if scores.size >= _SMALL and share < 1:
        is_normal = np.ones(scores[::_SAMPLE_STEP].size, dtype=bool)
        is_normal[defects.index[defects.index % _SAMPLE_STEP == 0] // _SAMPLE_STEP] = False
        sample = scores[::_SAMPLE_STEP][is_normal]
        rank = int((1 - share) * sample.size)
        floor = float(np.partition(sample, rank)[rank]) if sample.size else None
    ranking = rank_positives(scores, defects.index, floor)
    is_cut = ranking.scores.size < defects.index.size
    if is_cut and ranking.sorted_negatives < max(several) * ranking.negatives:
        # The sample misled: too few normal pixels lie above the guess. Exactness comes first.
        ranking = rank_positives(scores, defects.index)
    areas = _areas(ranking, defects, several)
    return areas if isinstance(limits, Iterable) else areas[0]


def pixel_metrics(maps: Maps, masks: Masks, inside: Flags | None = None) -> dict[str, float]:
    """``pixel_auroc pixel_ap pixel_fpr95 aupro aupro_05`` of one test set: the normal pixels are sorted once.

    Arguments and errors are those of `aupro`; every value is NaN where there is no defect or no normal pixel. Pixels
    outside ``inside``, ``h w`` for all images alike, are left out; a defect across the border counts as one.
    """
    scores, defects = _flatten(maps, masks)
    if inside is not None:
        judged = np.tile(inside.reshape(-1), scores.size // inside.size)
        kept, place = judged[defects.index], np.cumsum(judged) - 1
        of_region, region = np.unique(defects.region[kept], return_inverse=True)
        scores, defects = scores[judged], DefectPixels(place[defects.index[kept]], region, len(of_region))
    ranking = rank_positives(scores, defects.index)
    wide, narrow = _areas(ranking, defects, (0.3, 0.05))
    return {
        "pixel_auroc": ranking.auroc(),
        "pixel_ap": ranking.average_precision(),
        "pixel_fpr95": ranking.fpr_at_tpr(0.95),
        "aupro": wide,
        "aupro_05": narrow,
    }


def aupro_per_image(
    maps: Maps, masks: Masks, limit: float = 0.3, steps: int = 200, inside: Flags | None = None
) -> float:
    """AU-PRO as the reverse-distillation family reports it, for comparing with those papers' tables, in [0, 1].

    The mean over anomalous images of the area under each one's own curve; normal images play no part. For each image:
    ``steps`` equally spaced thresholds from its minimum up to, not including, its maximum; a pixel is flagged when it
    scores strictly higher; points with a false-positive rate of ``limit`` or more are dropped, not interpolated; the
    rates are divided by the largest one kept; trapezoids between the kept points.

    Where the papers' procedure breaks down: an image with no point below the limit (a constant map among them) counts
    0; one whose kept points all have rate 0 counts the highest overlap among them (1 for a perfect two-valued map); a
    single kept point with a rate above 0 spans no width and counts 0. Images without a normal pixel are left out; NaN
    where none is left. Arguments and errors are those of `pixel_metrics`, but that maps must be finite.
    """
    if not 0 < limit <= 1 or steps < 1:
        raise DataError(f"limit={limit}, steps={steps} given; needed: a limit in (0, 1], usually 0.3, and steps >= 1")
    areas = []
    for map_, flags in _checked(maps, masks):
        judged = np.ones_like(flags) if inside is None else inside
        mask, normal = flags & judged, map_[judged & ~flags]
        if not (mask.any() and normal.size):
            continue
        scores = np.where(judged, map_, normal[0])
        low, high = float(scores.min()), float(scores.max())
        if not np.isfinite([low, high]).all():
            raise DataError("an infinite value in a map; equal steps between its extremes need finite ones: clip")
        thresholds = low + (high - low) * (np.arange(steps) / steps)
        defects = find_defects(mask[None])
        normal, defective = np.sort(normal), scores.reshape(-1)[defects.index]
        order = np.argsort(defective)
        missed = np.concatenate([[0.0], np.cumsum(defects.weights()[order])])
        rates = (normal.size - np.searchsorted(normal, thresholds, side="right")) / normal.size
        overlaps = missed[-1] - missed[np.searchsorted(defective[order], thresholds, side="right")]
        rates, overlaps = rates[rates < limit], overlaps[rates < limit]
        if low == high or rates.size == 0:
            areas.append(0.0)
        elif rates[0] == 0:  # the largest: rates fall as thresholds rise
            areas.append(float(overlaps[0]))
        else:
            areas.append(float(np.trapezoid(overlaps[::-1], rates[::-1] / rates[0])))
    return float(np.mean(areas)) if areas else math.nan


def find_defects(masks: Flags) -> DefectPixels:
    """The defect pixels of ``n h w`` masks, and regions joined from the runs of them in each row.

    Masks are mostly empty, so this takes a sixth of the time of ``scipy.ndimage.label``, which visits every pixel.
    """
    height, width = masks.shape[1:]
    index = np.flatnonzero(masks)
    if index.size == 0:
        return DefectPixels(index, index, 0)
    row, column = np.divmod(index, width)
    # Each row is followed by one empty pixel and each image by one empty row: nothing then touches by accident.
    pitch = width + 1
    position = (row + row // height) * pitch + column
    first = np.flatnonzero(np.diff(position, prepend=-2) != 1)
    lengths = np.diff(first, append=index.size)
    starts, ends = position[first], position[first] + lengths
    # Connect every run [start, end) with the runs of the next row that it touches, corners included.
    low = np.searchsorted(ends, starts + pitch, side="left")
    high = np.searchsorted(starts, ends + pitch, side="right")
    touched = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(starts.size), touched)
    lower = np.arange(upper.size) - np.repeat(np.cumsum(touched) - touched, touched) + np.repeat(low, touched)
    joints = coo_array((np.ones(upper.size, dtype=bool), (upper, lower)), shape=(starts.size, starts.size))
    regions, of_run = connected_components(joints, directed=False)
    return DefectPixels(index, np.repeat(of_run.astype(np.intp), lengths), int(regions))


def _checked(maps: Maps, masks: Masks) -> list[tuple[Scores, Flags]]:
    """Maps and masks ``h w``, image by image."""
    if len(maps) != len(masks):
        raise DataError(f"{len(maps)} maps and {len(masks)} masks given; each map needs its mask, empty where good")
    pairs = [check_scores(map_, mask, "maps", "masks") for map_, mask in zip(maps, masks)]
    for scores, _ in pairs:
        if scores.ndim != 2:
            raise DataError(f"a map of shape {scores.shape} given; `h w` is needed for each image: drop the other axes")
    return pairs


def _flatten(maps: Maps, masks: Masks) -> tuple[Scores, DefectPixels]:
    """The scores of all pixels in one row, and the defect pixels among them."""
    if isinstance(maps, np.ndarray) and isinstance(masks, np.ndarray):
        scores, flags = check_scores(maps, masks, "maps", "masks")
        if scores.ndim != 3:
            raise DataError(f"maps of shape {scores.shape} given; `n h w` is needed: add the missing axis")
        return scores.reshape(-1), find_defects(flags)
    pairs = _checked(maps, masks)
    if not pairs:
        raise DataError("no maps given; pixel metrics need at least one image")
    images = [find_defects(flags[None]) for _, flags in pairs]
    pixels = np.cumsum([0, *(scores.size for scores, _ in pairs)])
    regions = np.cumsum([0, *(image.regions for image in images)])
    index = np.concatenate([image.index + start for image, start in zip(images, pixels)])
    region = np.concatenate([image.region + start for image, start in zip(images, regions)])
    return np.concatenate([scores.reshape(-1) for scores, _ in pairs]), DefectPixels(index, region, int(regions[-1]))


def _areas(ranking: Ranking, defects: DefectPixels, limits: tuple[float, ...]) -> tuple[float, ...]:
    """AU-PRO at each limit. Defect pixels that share their score with normal ones raise the curve along a slope."""
    if not defects.regions or not ranking.negatives:
        return (math.nan,) * len(limits)
    weights = defects.weights()[ranking.order]
    slope = ranking.at_or_above - ranking.above
    areas = []
    for limit in limits:
        # How much of the curve, in normal pixels, lies to the right of each defect pixel, up to the limit.
        # Under a slope, as long as there are normal pixels of that score, lies half, or less where the limit cuts it.
        right: NDArray[np.float64] = np.maximum(limit * ranking.negatives - ranking.above, 0)
        on_slope = np.minimum(right, slope)
        right -= on_slope - on_slope * on_slope / (2 * np.maximum(slope, 1))
        areas.append(float(weights @ right) / (limit * ranking.negatives))
    return tuple(areas)
