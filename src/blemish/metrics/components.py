"""Defect regions (8-connected) of whole stacks of masks, and the weight that each defect pixel has in AU-PRO.

Masks are mostly empty, so regions are joined from the runs of defect pixels in each row instead of visiting every
pixel: the work grows with the number of defect pixels, not with the number of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from blemish.metrics.ranking import Flags, Whole


@dataclass(frozen=True)
class DefectPixels:
    """The defect pixels of a stack of masks, in row order.

    Attributes:
        index: ``p``, their places in the flattened stack, ascending.
        region: ``p``, the region that each belongs to, ``0 .. regions - 1``; no region spans two images.
        regions: number of regions.
    """

    index: Whole
    region: Whole
    regions: int

    def weights(self) -> NDArray[np.float64]:
        """``p``, 1 / (regions x area of the pixel's region): every region weighs the same, all together 1."""
        areas = np.bincount(self.region, minlength=self.regions)
        of_region: NDArray[np.float64] = 1.0 / (self.regions * areas)
        return of_region[self.region]


def find_defects(masks: Flags) -> DefectPixels:
    """The defect pixels of ``n h w`` masks and their 8-connected regions."""
    height, width = masks.shape[1:]
    index = np.flatnonzero(masks)
    if index.size == 0:
        return DefectPixels(index, index, 0)
    row, column = np.divmod(index, width)
    # Each row is followed by one empty pixel and each image by one empty row: nothing then touches by accident.
    pitch = width + 1
    place = (row + row // height) * pitch + column
    first = np.flatnonzero(np.diff(place, prepend=-2) != 1)
    lengths = np.diff(first, append=index.size)
    regions, of_run = _join_runs(place[first], place[first] + lengths, pitch)
    return DefectPixels(index, np.repeat(of_run, lengths), regions)


def _join_runs(starts: Whole, ends: Whole, pitch: int) -> tuple[int, Whole]:
    """Connect every run ``[start, end)`` with the runs of the next row that it touches, corners included."""
    low = np.searchsorted(ends, starts + pitch, side="left")
    high = np.searchsorted(starts, ends + pitch, side="right")
    touched = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(starts.size), touched)
    lower = np.arange(upper.size) - np.repeat(np.cumsum(touched) - touched, touched) + np.repeat(low, touched)
    joints = coo_array((np.ones(upper.size, dtype=bool), (upper, lower)), shape=(starts.size, starts.size))
    regions, of_run = connected_components(joints, directed=False)
    return int(regions), of_run.astype(np.intp)


def join_images(parts: list[DefectPixels], sizes: list[int]) -> DefectPixels:
    """One list of defect pixels for images of different sizes that are flattened one after the other."""
    pixels = np.cumsum([0, *sizes])
    regions = np.cumsum([0, *(part.regions for part in parts)])
    return DefectPixels(
        index=np.concatenate([part.index + start for part, start in zip(parts, pixels)]),
        region=np.concatenate([part.region + start for part, start in zip(parts, regions)]),
        regions=int(regions[-1]),
    )
