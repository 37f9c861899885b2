"""Pretended defects: patches of simplex noise (RD++), elastic copies of normal images (CKAAD).

The noise is OpenSimplex in three dimensions (Spencer, 2014), computed from its definition and for all points at once:
every point of a stretched cubic lattice has a gradient, and each that lies within sqrt(2) of a location adds
``(2 - distance^2)^4 * (gradient . offset)`` to it. The usual programs take 18 times as long.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blemish.errors import ConfigError

WAVELENGTH = 32.0  # pixels, of the first octave; each other has half of that of the one before, and .6 of its amplitude
PUBLISHED_SIZE = 256  # side, in pixels, of the images for which sides and wavelength are published

_STRETCH, _SQUISH, _NORM = -1 / 6, 1 / 3, 103.0
_SIGNS = np.array(list(product((1, -1), (1, -1), (-1, 1))))[:, None, ::-1]
_GRADIENTS = (_SIGNS * np.where(np.eye(3), 11.0, 4.0)).reshape(24, 3)
_REACHED = {(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1), (0, 0, 2), (0, 1, 2), (-1, 1, 1), (-1, 0, 1)}
# Lattice points, seen from a point's cell, that can lie within sqrt(2) of it: 26 of 64.
_NEIGHBOURS = np.array([step for step in product((-1, 0, 1, 2), repeat=3) if tuple(sorted(step)) in _REACHED])


@dataclass(frozen=True)
class Patches:
    """Patches of noise: smallest and largest side in pixels, and what noise is multiplied by.

    ``at_origin``: always cut at the field's first row and column, as the released code in effect does.
    """

    sides: tuple[int, int] = (10, 31)
    strength: float = 0.2
    at_origin: bool = False


def simplex_noise(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64], permutation: NDArray[np.int64]
) -> NDArray[np.float64]:
    """``len(z) len(y) len(x)``: noise within about [-1, 1], of a wavelength of about 1, on the grid that the axes span.

    ``permutation`` holds the numbers 0 to 255 in any order: what a seed stands for.
    """
    depth, row, column = np.meshgrid(z, y, x, indexing="ij")
    points = np.stack([column.ravel(), row.ravel(), depth.ravel()])
    cells = np.floor(points + _STRETCH * points.sum(axis=0)).astype(np.int64)
    within = points - (cells + _SQUISH * cells.sum(axis=0))
    steps = _NEIGHBOURS + _SQUISH * _NEIGHBOURS.sum(axis=1, keepdims=True)
    weights = 2 - (within**2).sum(axis=0) + 2 * steps @ within - (steps**2).sum(axis=1, keepdims=True)
    which, point = np.nonzero(weights > 0)  # about six lattice points for each point
    hashed = np.zeros(len(which), dtype=np.int64)
    for along, onward in zip(cells, _NEIGHBOURS.T):
        hashed = permutation[(hashed + along[point] + onward[which]) & 255]
    slopes = (_GRADIENTS[hashed % 24] * (within.T[point] - steps[which])).sum(axis=1)
    total = np.bincount(point, weights[which, point] ** 4 * slopes, minlength=points.shape[1])
    return (total / _NORM).reshape(depth.shape)


def noise_field(generator: torch.Generator, side: int, wavelength: float = WAVELENGTH) -> Tensor:
    """``3 side side``, float32, within about [-2.4, 2.4]: one field of six octaves; each channel is a slice of it.

    It is made once for a training, and patches are cut from it: noise anew for each image takes longer than a step.
    """
    permutation = torch.randperm(256, generator=generator).numpy()
    pixels = np.arange(side, dtype=np.float64)
    total = np.zeros((3, side, side))
    for octave in range(6):
        places = pixels * (2.0**octave / wavelength)
        total += 0.6**octave * simplex_noise(places, places, places[:3], permutation)
    return torch.from_numpy(total).float()


def check_patches(size: tuple[int, int], patches: Patches) -> None:
    """A ConfigError, where patches do not fit into images of ``size`` or their sides are not a range."""
    least, most = patches.sides
    if not 1 <= least <= most:
        raise ConfigError(f"noise patches with sides from {least} to {most}: give two numbers of pixels, smaller first")
    if min(size) < least + 2:
        raise ConfigError(
            f"noise patches of at least {least} pixels do not fit into images of {size[0]} x {size[1]}: "
            f"use images of at least {least + 2} pixels, or smaller patches"
        )


def with_noise(images: Tensor, field: Tensor, generator: torch.Generator, patches: Patches) -> Tensor:
    """Copies of ``b 3 h w`` images, each with one patch of noise added; values may leave [0, 1] (nothing is clipped).

    Height and width are drawn apart, each uniform over ``sides`` (up to the image's own less 2), then the corner, so
    that the patch stays one pixel inside. The field, ``3 s s``, is at least as large as the largest patch.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    noisy = images.clone()
    for image in noisy:
        shape = [draw(patches.sides[0], min(patches.sides[1], length - 2)) for length in image.shape[1:]]
        top, left = (draw(1, length - side - 1) for length, side in zip(image.shape[1:], shape))
        row, column = (0 if patches.at_origin else draw(0, field.shape[-1] - side) for side in shape)
        cut = field[:, row : row + shape[0], column : column + shape[1]]
        image[:, top : top + shape[0], left : left + shape[1]] += patches.strength * cut.to(image.device)
    return noisy


def elastic_twins(images: Tensor, strength: float = 200.0, sigma: float = 5.0) -> Tensor:
    """Images ``b 3 h w`` in [0, 1], each distorted by displacements of its own, drawn from torch's random state.

    These are up to ``strength`` pixels before a Gaussian of ``sigma`` pixels smooths them. Computed on ``uint8`` on the
    CPU, as the released code of CKAAD does. A ConfigError for images that the Gaussian does not fit into.
    """
    if int(8 * sigma + 1) // 2 >= (side := min(images.shape[-2:])):
        raise ConfigError(
            f"elastic_sigma {sigma:g} is too much for images of {side} pixels: give less than {side // 4}"
        )
    from torchvision.transforms.v2 import ElasticTransform  # takes a second to import, and few fits need it

    transform = ElasticTransform(alpha=strength, sigma=sigma)
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8)
    return torch.stack([transform(image) for image in pixels]).to(images.dtype) / 255
