"""What several tests here work out in NumPy, independently of the code under test."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor


def array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().numpy()


def whole_loss(targets, students) -> float:
    """One minus the cosine of whole maps, a mean over images, summed over the levels."""
    total = 0.0
    for target, student in zip(targets, students):
        a, b = (array(map_).reshape(len(map_), -1) for map_ in (target, student))
        total += (1 - (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
    return total


def similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """``c h-10 w-10`` of two ``c h w`` in [0, 1]: structural similarity of every whole window of 11 pixels."""

    def mean(values):
        return np.stack([gaussian_filter(v, 1.5, truncate=3.4)[5:-5, 5:-5] for v in values])

    a, b = mean(one), mean(other)
    covariance, spread = mean(one * other) - a * b, mean(one**2) - a**2 + mean(other**2) - b**2
    return (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a**2 + b**2 + 1e-4) * (spread + 9e-4))
