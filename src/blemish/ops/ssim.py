"""Structural similarity: whether two images are alike in mean, contrast and structure, window by window."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Measure = Literal["ssim", "l2"]
WINDOW, SIGMA = 11, 1.5  # of the Gaussian window, in pixels
LUMINANCE, CONTRAST = 0.01**2, 0.03**2  # keep quotients finite, for images in [0, 1]


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """``b c h-10 w-10`` in [-1, 1], of images ``b c h w`` in [0, 1]: one value for every window that lies inside."""
    taps = torch.arange(WINDOW, device=first.device, dtype=torch.float32) - WINDOW // 2
    taps = (-(taps**2) / (2 * SIGMA**2)).exp()
    taps = taps / taps.sum()
    first, second, count = first.float() - 0.5, second.float() - 0.5, first.shape[1]  # or variances would cancel out

    def mean(images: Tensor) -> Tensor:
        rows = F.conv2d(images, taps.view(1, 1, -1, 1).expand(count, 1, -1, 1), groups=count)
        return F.conv2d(rows, taps.view(1, 1, 1, -1).expand(count, 1, 1, -1), groups=count)

    one, two = mean(first), mean(second)
    variances = mean(first * first) - one * one + mean(second * second) - two * two
    covariance = mean(first * second) - one * two
    one, two = one + 0.5, two + 0.5
    alike = (2 * one * two + LUMINANCE) * (2 * covariance + CONTRAST)
    return alike / ((one * one + two * two + LUMINANCE) * (variances + CONTRAST))


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """``b h w``: 1 - similarity, averaged over channels; pixels near the border have the nearest whole window's."""
    return F.pad(1 - similarity(first, second).mean(dim=1, keepdim=True), [WINDOW // 2] * 4, mode="replicate")[:, 0]


def residual_map(first: Tensor, second: Tensor, measure: Measure | Literal["l1"]) -> Tensor:
    """``b h w``, at least 0: how far two images ``b c h w`` in [0, 1] differ at each place, averaged over channels."""
    if measure == "ssim":
        return ssim_map(first, second)
    apart = first - second
    return (apart.abs() if measure == "l1" else apart.square()).mean(dim=1)
