"""Networks that tell the teacher's features of normal images from other features, patch by patch or image by image.

CKAAD's. Neither has biases, and an output of zero is what normal features are drawn to; ``energies`` gives how far from
zero an output is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.contract import Level
from blemish.ops.residual import Step, convolution, initialise_uniform, untrained

SLOPE = 0.1
"""Of the leaky ReLUs below zero."""

SMALLEST_GRID = 3
"""Cells a side of the deepest level that an image discriminator needs: one halving leaves the two it ends with."""


class PatchDiscriminator(nn.Module):
    """One small network a level, shared by all positions: ``b c y x`` to ``b y x`` for each level.

    Three 1x1 convolutions on features of length one (the released code's scaling; the paper does not mention it).
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        """Build the networks of the teacher's ``levels``."""
        super().__init__()
        self.networks = nn.ModuleList()
        for width in (level.channels for level in levels):
            layers: list[nn.Module] = []
            for _ in range(2):
                layers += [nn.Conv2d(width, width, 1, bias=False), nn.LeakyReLU(SLOPE, inplace=True)]
            self.networks.append(nn.Sequential(*layers, nn.Conv2d(width, 1, 1, bias=False)))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of either sign; convolutions run under the caller's autocast."""
        with torch.autocast(features[0].device.type, enabled=False):
            units = [F.normalize(map_.float(), dim=1) for map_ in features]
        return [network(unit).squeeze(1).float() for network, unit in zip(self.networks, units, strict=True)]


class ImageDiscriminator(nn.Module):
    """All levels joined into one number an image.

    Every level goes through 3x3 convolutions of stride 2 down to the deepest grid; all are joined; further ones follow
    until two cells are left along the shorter side. Where the grid is not square then, it is averaged to 2 x 2 (our
    reading: the released code knows squares of a power of two only).
    """

    def __init__(self, levels: Sequence[Level], grid: tuple[int, int]) -> None:
        """Build the network.

        Args:
            levels: the teacher's, shallowest first, without a gap.
            grid: rows and columns of the deepest level, ``SMALLEST_GRID`` at least.
        """
        super().__init__()
        deepest = levels[-1].channels
        widths = [level.channels for level in levels]
        steps: list[Step] = ["same" if below.stride == above.stride else "down" for above, below in pairwise(levels)]
        self.paths = nn.ModuleList(_convolutions(widths[start:], steps[start:]) for start in range(len(levels)))
        count = max(1, math.ceil(math.log2(min(grid) / 2)))
        self.joined = _convolutions([deepest * len(levels), *[deepest] * count], ["down"] * count)
        self.whole = nn.Conv2d(deepest, deepest, 2, bias=False)
        self.inner = nn.Linear(deepest, deepest // 4, bias=False)
        self.last = nn.Linear(deepest // 4, 1, bias=False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One tensor ``b`` of outputs of either sign, in a list like a patch discriminator's."""
        rows, columns = features[-1].shape[-2:]
        maps = [path(map_)[..., :rows, :columns] for path, map_ in zip(self.paths, features, strict=True)]
        joined = self.joined(torch.cat(maps, dim=1))
        code = self.inner(self.whole(F.adaptive_avg_pool2d(joined, 2)).flatten(1))
        # The released InstanceNorm1d is given "images numbers", so it standardises the numbers of each image.
        code = F.leaky_relu(F.layer_norm(code.float(), code.shape[-1:]), SLOPE)
        return [self.last(code).squeeze(1).float()]


def energies(outputs: Sequence[Tensor]) -> list[Tensor]:
    """How far from normal, at least 0: the outputs' absolute values."""
    return [output.abs() for output in outputs]


def mean_energy(energies: Sequence[Tensor]) -> Tensor:
    """Energies, a tensor a level, as one number: mean over images and places, sum over levels."""
    return torch.stack([energy.mean() for energy in energies]).sum()


def discriminator_loss(
    normal: Sequence[Tensor],
    anomalous: Sequence[Tensor],
    generated: Sequence[Tensor],
    margin: float = 5.0,
    gamma: float = 0.5,
) -> Tensor:
    """Low energies for the normal, ``margin`` or more for the others (hinges): means, summed over levels.

    Args:
        normal: energies, a tensor a level.
        anomalous: the same of the bad images, weighed by 1 - ``gamma``.
        generated: the same of what was given back of both, weighed by ``gamma``.
        margin: from which on an energy costs nothing.
        gamma: in [0, 1].
    """
    driven_off = (1 - gamma) * mean_energy([F.relu(margin - energy) for energy in anomalous])
    driven_off = driven_off + gamma * mean_energy([F.relu(margin - energy) for energy in generated])
    return mean_energy(normal) + driven_off


def gan_loss(normal: Sequence[Tensor], generated: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of logits, normal 1 and generated 0: means, summed over levels."""
    real = mean_energy([F.softplus(-logits) for logits in normal])
    return real + mean_energy([F.softplus(logits) for logits in generated])


def build_discriminator(
    kind: Literal["patch", "image"], levels: Sequence[Level], grid: tuple[int, int], generator: torch.Generator
) -> PatchDiscriminator | ImageDiscriminator:
    """A discriminator with fresh values by torch's default rule.

    Args:
        kind: what gets an energy.
        levels: the teacher's, shallowest first, without a gap.
        grid: rows and columns of the deepest level.
        generator: draws the values.
    """
    network: PatchDiscriminator | ImageDiscriminator
    if kind == "patch":
        network = untrained(lambda: PatchDiscriminator(levels))
    else:
        network = untrained(lambda: ImageDiscriminator(levels, grid))
    initialise_uniform(network, generator)
    return network


def _convolutions(widths: Sequence[int], steps: Sequence[Step]) -> nn.Sequential:
    """3x3 convolutions from each width to the next, each with its norm."""
    path = nn.Sequential()
    for (ins, outs), step in zip(pairwise(widths), steps):
        norm = nn.InstanceNorm2d(outs, affine=True)
        path.extend([convolution(ins, outs, 3, step), norm, nn.LeakyReLU(SLOPE, inplace=True)])
    return path
