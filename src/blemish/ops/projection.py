"""RD++'s projections: a small network on each of a teacher's levels, of the level's own shape.

For ResNets as released: four 3x3 convolutions with bias, C to C/2, C/4, C/2 and C channels, each followed by an
instance norm without scale and shift and a leaky ReLU. Other backbones have narrow levels, a quarter of which would be
a handful of channels: inside, at least ``MIN_INNER`` are kept (our reading).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from blemish.contract import Backbone, check_cells
from blemish.ops.residual import untrained

MIN_INNER = 16
"""Channels inside a projection, at least: ResNet18's narrowest, where EfficientNet-Lite0 would have 6."""


class Projection(nn.Module):
    """One level's projection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle, inner = (max(channels // part, MIN_INNER) for part in (2, 4))
        self.layers = nn.Sequential()
        for ins, outs in pairwise((channels, middle, inner, middle, channels)):
            self.layers.extend([nn.Conv2d(ins, outs, 3, padding=1), nn.InstanceNorm2d(outs), nn.LeakyReLU(0.01)])

    def forward(self, features: Tensor) -> Tensor:
        """Projected maps ``b c y x`` of maps of that shape, of more than one cell."""
        found: Tensor = self.layers(features)
        return found


def build_projections(backbone: Backbone, size: tuple[int, int]) -> nn.ModuleList:
    """A projection for each level, without values: call ``reset_projections`` or load some.

    Args:
        backbone: whose levels.
        size: height and width of the images.

    Raises:
        ConfigError: a level has a single cell, of which an instance norm would leave nothing.
    """
    check_cells(size, backbone.levels[-1].stride, "the deepest projection")
    with torch.device("meta"):
        projections = nn.ModuleList(Projection(level.channels) for level in backbone.levels)
    untrained(projections)
    return projections


@torch.no_grad()
def reset_projections(projections: nn.ModuleList, generator: torch.Generator) -> None:
    """Fresh values as torch's default draws them, which the released code keeps: uniform, bounded by the fan-in."""
    for layer in projections.modules():
        if isinstance(layer, nn.Conv2d):
            bound = 1 / math.sqrt(layer.in_channels * 9)
            for values in layer.parameters():
                values.copy_(torch.empty(values.shape).uniform_(-bound, bound, generator=generator))
