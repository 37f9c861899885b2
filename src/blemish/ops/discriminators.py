"""CKAAD's networks that tell the teacher's features of normal images from others, patch by patch or image by image.

None has biases, and an output of zero is what normal features are drawn to: energies are distances from it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.contract import Level
from blemish.ops.residual import Norm, Step, convolutions, initialise_uniform, join_levels, untrained

SLOPE = 0.1  # of the leaky ReLUs below zero
SMALLEST_GRID = 3  # cells a side of the deepest level: an image discriminator halves them at least once, to two


class PatchDiscriminator(nn.Module):
    """Three 1x1 convolutions a level, ``b c y x`` to ``b y x``, on features of length one, as in the released code."""

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.networks = nn.ModuleList()
        for width in (level.channels for level in levels):
            network = nn.Sequential()
            for _ in range(2):
                network.extend([nn.Conv2d(width, width, 1, bias=False), nn.LeakyReLU(SLOPE, inplace=True)])
            self.networks.append(network.append(nn.Conv2d(width, 1, 1, bias=False)))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        with torch.autocast(features[0].device.type, enabled=False):
            units = [F.normalize(map_.float(), dim=1) for map_ in features]
        return [network(unit).squeeze(1).float() for network, unit in zip(self.networks, units, strict=True)]


class ImageDiscriminator(nn.Module):
    """All levels joined into one number an image: one tensor ``b``, in a list like a patch discriminator's.

    Every level goes through 3x3 convolutions of stride 2 down to the deepest ``grid``; all are joined; further ones
    follow until two cells are left along the shorter side. Other grids than squares are then averaged to 2 x 2.
    """

    def __init__(self, levels: Sequence[Level], grid: tuple[int, int], norm: Norm = "instance") -> None:
        super().__init__()
        widths = [level.channels for level in levels]
        deepest = widths[-1]
        steps: list[Step] = ["same" if below.stride == above.stride else "down" for above, below in pairwise(levels)]
        activation = nn.LeakyReLU(SLOPE, inplace=True)
        starts = range(len(levels))
        self.paths = nn.ModuleList(convolutions(widths[i:], steps[i:], norm, activation) for i in starts)
        count = max(1, math.ceil(math.log2(min(grid) / 2)))
        widths = [deepest * len(levels), *[deepest] * count]
        self.joined = convolutions(widths, ["down"] * count, norm, activation)
        self.whole = nn.Conv2d(deepest, deepest, 2, bias=False)
        self.inner = nn.Linear(deepest, deepest // 4, bias=False)
        self.last = nn.Linear(deepest // 4, 1, bias=False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        joined = self.joined(join_levels(self.paths, features))
        code = self.inner(self.whole(F.adaptive_avg_pool2d(joined, 2)).flatten(1))
        # The released InstanceNorm1d is given "images numbers", so it standardises the numbers of each image.
        code = F.leaky_relu(F.layer_norm(code.float(), code.shape[-1:]), SLOPE)
        return [self.last(code).squeeze(1).float()]


def energies(outputs: Sequence[Tensor]) -> list[Tensor]:
    """How far from normal, at least 0: the outputs' absolute values."""
    return [output.abs() for output in outputs]


def mean_energy(energies: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """Energies, a tensor a level, as one number: mean over images (by ``weights``) and places, sum over levels."""
    if weights is None:
        return torch.stack([energy.mean() for energy in energies]).sum()
    return torch.stack([energy.reshape(len(energy), -1).mean(1) @ weights for energy in energies]).sum()


def discriminator_loss(
    normal: Sequence[Tensor],
    anomalous: Sequence[Tensor],
    generated: Sequence[Tensor],
    margin: float = 5.0,
    gamma: float = 0.5,
    weights: Tensor | None = None,
) -> Tensor:
    """Low energies for normal features, ``margin`` or more (hinges) for others: means, summed over levels.

    Anomalous images' weigh 1 - ``gamma``, those of what was given back of both kinds, by ``weights``, ``gamma``.
    """
    known, made = ([F.relu(margin - energy) for energy in energies] for energies in (anomalous, generated))
    return mean_energy(normal) + ((1 - gamma) * mean_energy(known) + gamma * mean_energy(made, weights))


def gan_loss(normal: Sequence[Tensor], generated: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of logits, normal 1 and generated 0: means, summed over levels."""
    real = mean_energy([F.softplus(-logits) for logits in normal])
    return real + mean_energy(list(map(F.softplus, generated)))


def build_discriminator(
    kind: Literal["patch", "image"],
    levels: Sequence[Level],
    grid: tuple[int, int],
    generator: torch.Generator,
    norm: Norm = "instance",
) -> PatchDiscriminator | ImageDiscriminator:
    """A discriminator of the teacher's ``levels`` (shallowest first, no gap) with values by torch's default rule."""
    network = untrained(
        lambda: PatchDiscriminator(levels) if kind == "patch" else ImageDiscriminator(levels, grid, norm)
    )
    initialise_uniform(network, generator)
    return network
