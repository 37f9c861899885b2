"""From a coarse map of scores to a smooth one at the size of the image, and from an image to a small one.

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


def shrink(images: Tensor, size: Sequence[int]) -> Tensor:
    """``b c h w``, float32: images brought to ``size`` (h, w), each new pixel the mean over the area that it covers.

    Two matrix products, so that every engine that runs an exported graph computes alike.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images.float()
    rows, columns = (_areas(int(given), int(wanted)) for given, wanted in zip(images.shape[-2:], size, strict=True))
    return rows.to(images.device) @ images.float() @ columns.to(images.device).T


@lru_cache(maxsize=64)
def _areas(given: int, wanted: int) -> Tensor:
    """``wanted given``: how much of each old pixel lies in a new one."""
    with torch.inference_mode(False), torch.no_grad():
        edges = torch.arange(wanted + 1, dtype=torch.float64)[:, None] * given / wanted
        pixels = torch.arange(given, dtype=torch.float64)
        overlap = torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)
        return (overlap.clamp_min(0) * wanted / given).float()
