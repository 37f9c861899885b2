"""Pixel metrics of a whole test set: exact AU-PRO at any limits, and pixel AUROC, AP and FPR95 from the same ranking.

The per-region-overlap curve gives, for every threshold, the share of each defect region that is found, averaged over
regions, against the share of normal pixels flagged. AU-PRO is its area up to a limit of the latter, divided by that
limit (Bergmann et al., MVTec AD, IJCV 2021, section 5). It is an ROC curve in which a defect pixel weighs
1 / (regions x its region's area), so its area is a sum over defect pixels: each adds its weight times the width of
the curve to the right of it, which needs only the number of normal pixels that score higher. Normal pixels beyond
the limit are never sorted.

Exact: thresholds are all distinct scores, straight lines between them, cut at the limit by interpolation. A perfect
map has 1, a constant map limit / 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from blemish.errors import DataError
from blemish.metrics.components import DefectPixels, find_defects, join_images
from blemish.metrics.ranking import Flags, Ranking, Scores, check_scores, rank_positives

Maps = NDArray[np.floating[Any]] | Sequence[NDArray[np.floating[Any]]]
Masks = Flags | Sequence[Flags]

# One pixel in 97 is looked at to guess where the limit's threshold lies: prime, so that no usual width is a multiple.
_SAMPLE_STEP = 97
_SAMPLE_MARGIN = 0.01
_SMALL = 200_000


@dataclass(frozen=True)
class _Pixels:
    """One test set, flattened."""

    scores: Scores
    defects: DefectPixels

    @property
    def normals(self) -> int:
        return int(self.scores.size - self.defects.index.size)


def _flatten(maps: Maps, masks: Masks) -> _Pixels:
    """The scores of all pixels in one row, and the defect pixels among them."""
    if isinstance(maps, np.ndarray) and isinstance(masks, np.ndarray):
        scores, flags = check_scores(maps, masks, "maps", "masks")
        if scores.ndim != 3:
            raise DataError(f"maps of shape {scores.shape} given; `n h w` is needed: add the missing axis")
        return _Pixels(scores.reshape(-1), find_defects(flags))
    if len(maps) != len(masks):
        raise DataError(f"{len(maps)} maps and {len(masks)} masks given; each map needs its mask, empty where good")
    if len(maps) == 0:
        raise DataError("no maps given; pixel metrics need at least one image")
    scored, parts = [], []
    for one_map, one_mask in zip(maps, masks):
        scores, flags = check_scores(one_map, one_mask, "maps", "masks")
        if scores.ndim != 2:
            raise DataError(f"a map of shape {scores.shape} in a list; `h w` is needed: drop the other axes")
        scored.append(scores.reshape(-1))
        parts.append(find_defects(flags[None]))
    return _Pixels(np.concatenate(scored), join_images(parts, [scores.size for scores in scored]))


@overload
def aupro(maps: Maps, masks: Masks, limits: float = 0.3) -> float: ...
@overload
def aupro(maps: Maps, masks: Masks, limits: Iterable[float]) -> tuple[float, ...]: ...
def aupro(maps: Maps, masks: Masks, limits: float | Iterable[float] = 0.3) -> float | tuple[float, ...]:
    """The area under the per-region-overlap curve of the whole set, in [0, 1].

    Args:
        maps: ``n h w`` floats, higher is more anomalous; or a list of ``h w`` arrays of different sizes.
        masks: the same shapes, bool, True on defects; all False for good images.
        limits: the largest false-positive rate in (0, 1], or several of them, for little more than the cost of one.

    Returns:
        One number for one limit, a tuple for several; NaN where there is no defect or no normal pixel.

    Raises:
        DataError: shapes differ, NaN in a map, masks that are not bool, a limit outside (0, 1].
    """
    several = tuple(limits) if isinstance(limits, Iterable) else (float(limits),)
    _check_limits(several)
    pixels = _flatten(maps, masks)
    areas = _areas(_rank_up_to(pixels, max(several)), pixels.defects, several)
    return areas if isinstance(limits, Iterable) else areas[0]


def pixel_metrics(maps: Maps, masks: Masks) -> dict[str, float]:
    """``pixel_auroc pixel_ap pixel_fpr95 aupro aupro_05`` of one test set: the normal pixels are sorted once.

    Arguments and errors as for `aupro`; every value is NaN where there is no defect or no normal pixel.
    """
    pixels = _flatten(maps, masks)
    ranking = rank_positives(pixels.scores, pixels.defects.index)
    wide, narrow = _areas(ranking, pixels.defects, (0.3, 0.05))
    return {
        "pixel_auroc": ranking.auroc(),
        "pixel_ap": ranking.average_precision(),
        "pixel_fpr95": ranking.fpr_at_tpr(0.95),
        "aupro": wide,
        "aupro_05": narrow,
    }


def _check_limits(limits: tuple[float, ...]) -> None:
    if not limits:
        raise DataError("no limit given; AU-PRO needs at least one: 0.3 is usual")
    for limit in limits:
        if not 0 < limit <= 1:
            raise DataError(f"AU-PRO limit {limit} given; a false-positive rate lies in (0, 1]: 0.3 is usual")


def _rank_up_to(pixels: _Pixels, limit: float) -> Ranking:
    """The ranking of the defect pixels whose false-positive rate is below ``limit``; the others add no area."""
    floor = _guess_floor(pixels, limit)
    ranking = rank_positives(pixels.scores, pixels.defects.index, floor)
    is_cut = ranking.scores.size < pixels.defects.index.size
    if is_cut and ranking.sorted_negatives < limit * pixels.normals:
        # The sample misled: too few normal pixels lie above the guess. Exactness comes first.
        return rank_positives(pixels.scores, pixels.defects.index)
    return ranking


def _guess_floor(pixels: _Pixels, limit: float) -> float | None:
    """A score somewhat below the threshold at which ``limit`` of the normal pixels are flagged, from a sample."""
    share = limit + _SAMPLE_MARGIN
    if pixels.scores.size < _SMALL or share >= 1:
        return None
    sample, index = pixels.scores[::_SAMPLE_STEP], pixels.defects.index
    is_normal = np.ones(sample.size, dtype=bool)
    is_normal[index[index % _SAMPLE_STEP == 0] // _SAMPLE_STEP] = False
    sample = sample[is_normal]
    if sample.size == 0:
        return None
    rank = int((1 - share) * sample.size)
    return float(np.partition(sample, rank)[rank])


def _areas(ranking: Ranking, defects: DefectPixels, limits: tuple[float, ...]) -> tuple[float, ...]:
    """AU-PRO at each limit."""
    if not defects.regions or not ranking.negatives:
        return (math.nan,) * len(limits)
    weights = defects.weights()[ranking.order]
    return tuple(float(weights @ _widths(ranking, limit)) / (limit * ranking.negatives) for limit in limits)


def _widths(ranking: Ranking, limit: float) -> NDArray[np.float64]:
    """How much of the curve, in normal pixels, lies to the right of each defect pixel, up to the limit.

    A defect pixel that shares its score with normal pixels raises the curve along a slope as long as there are such
    pixels; under a slope lies half of it, or less where the limit cuts the slope.
    """
    right: NDArray[np.float64] = np.maximum(limit * ranking.negatives - ranking.above, 0)
    slope = ranking.at_or_above - ranking.above
    on_slope = np.minimum(right, slope)
    right -= on_slope - on_slope * on_slope / (2 * np.maximum(slope, 1))
    return right
