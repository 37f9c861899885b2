"""From a coarse map of scores to a smooth one at the size of the image.

Bilinear interpolation and Gaussian smoothing are both linear, and both work on rows and columns apart. So the two
together are ``rows @ map @ columns.T`` with two small matrices that are built once for each size: on a CPU far
cheaper than interpolating and then convolving, and equal to it up to rounding.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TRUNCATE = 4.0
"""Where the Gaussian is cut off, in standard deviations, as in SciPy."""


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """``maps`` after a Gaussian filter: what ``scipy.ndimage.gaussian_filter`` gives for each with its defaults.

    Args:
        maps: ``b h w``, of any size, also smaller than the filter.
        sigma: standard deviation in pixels; 0 changes nothing.
    """
    height, width = maps.shape[-2:]
    return upscale(maps, (height, width), sigma)


def upscale(maps: Tensor, size: tuple[int, int], sigma: float = 4.0, align_corners: bool = False) -> Tensor:
    """``maps`` interpolated bilinearly to ``size`` and then smoothed.

    Args:
        maps: ``b y x``.
        size: height and width wanted, in pixels.
        sigma: standard deviation of the smoothing, in pixels of the result; 0 for none.
        align_corners: as in ``torch.nn.functional.interpolate``: True for reverse distillation and its family,
            False for PatchCore and its family.

    Returns:
        ``b h w``, float32.
    """
    rows = _matrix(int(maps.shape[-2]), size[0], sigma, align_corners).to(maps.device)
    columns = _matrix(int(maps.shape[-1]), size[1], sigma, align_corners).to(maps.device)
    return rows @ maps.float() @ columns.T


@lru_cache(maxsize=64)
def _matrix(cells: int, pixels: int, sigma: float, align_corners: bool) -> Tensor:
    """``pixels cells``: interpolation along one axis, followed by smoothing."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(cells, dtype=torch.float64)[None]
        spread = F.interpolate(unit, size=pixels, mode="linear", align_corners=align_corners)[0].T
        return (_gaussian(pixels, sigma) @ spread).to(torch.float32)


def _gaussian(pixels: int, sigma: float) -> Tensor:
    """``pixels pixels``: smoothing along one axis, the border mirrored about the edge of the last pixel.

    SciPy calls that mode "reflect"; torch's padding of that name mirrors about the last pixel's centre instead.
    """
    radius = int(TRUNCATE * sigma + 0.5)
    if radius == 0:
        return torch.eye(pixels, dtype=torch.float64)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    positions = (torch.arange(pixels)[:, None] + offsets) % (2 * pixels)
    folded = torch.where(positions < pixels, positions, 2 * pixels - 1 - positions)
    matrix = torch.zeros(pixels, pixels, dtype=torch.float64)
    return matrix.scatter_add_(1, folded, weights.expand(pixels, -1))
