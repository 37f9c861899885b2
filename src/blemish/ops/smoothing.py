"""From a coarse map of scores to a smooth one at the size of the image.

Bilinear interpolation and Gaussian smoothing are both linear, and both work on rows and columns apart: together they
are ``rows @ map @ columns.T`` with small matrices, built once for each size.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy  # its parts are loaded when first used
import torch
import torch.nn.functional as F
from torch import Tensor


def upscale(maps: Tensor, size: Sequence[int], sigma: float = 4.0, align_corners: bool = False) -> Tensor:
    """``b h w``, float32: maps ``b y x`` interpolated bilinearly to ``size`` (h, w) and then smoothed.

    ``sigma``, the deviation of the smoothing, is in pixels of the result; 0 for none. ``align_corners`` is as in
    ``torch.nn.functional.interpolate``: True for reverse distillation and its family, False for PatchCore and its.
    """
    rows = _matrix(int(maps.shape[-2]), int(size[0]), sigma, align_corners).to(maps.device)
    columns = _matrix(int(maps.shape[-1]), int(size[1]), sigma, align_corners).to(maps.device)
    return rows @ maps.float() @ columns.T


@lru_cache(maxsize=64)
def _matrix(cells: int, pixels: int, sigma: float, align_corners: bool) -> Tensor:
    """``pixels cells``: interpolation along one axis, followed by smoothing."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(cells, dtype=torch.float64)[None]
        spread = F.interpolate(unit, size=pixels, mode="linear", align_corners=align_corners)[0].T
        filtered = scipy.ndimage.gaussian_filter1d
        smoothing = torch.from_numpy(filtered(np.eye(pixels), sigma, axis=0)) if sigma else torch.eye(pixels)
        return (smoothing.double() @ spread).float()
