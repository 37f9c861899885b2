"""Gaussian noise on feature maps, at the scale of a backbone's levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blemish.contract import Backbone, Images, Teacher

REFERENCE_DEVIATION = 0.25
"""Of the values of a WideResNet50's levels, about: the scale for which noise was published. An assumption, not
measured, because its weights were not to be had; with them, ``level_deviations`` measures it."""


def perturbed(features: Sequence[Tensor], deviations: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Maps ``b c y x`` with independent Gaussian noise on every value; those given stay as they are.

    Args:
        features: a level each.
        deviations: of the noise, a level each; 0 for none.
        generator: on the CPU, so that a seed means the same on every device.
    """
    found = []
    for map_, deviation in zip(features, deviations, strict=True):
        if deviation == 0:
            found.append(map_)
            continue
        b, c, y, x = map_.shape
        noise = torch.randn((b, y, x, c), generator=generator).permute(0, 3, 1, 2)
        found.append(torch.add(map_, noise.to(map_.device), alpha=deviation))
    return found


def noise_deviations(
    backbone: Backbone, noise: float, images: Images, teacher: Teacher, batch_size: int
) -> list[float]:
    """The standard deviation of each level's noise: ``noise`` itself for ResNets, else in proportion to the level's.

    Args:
        backbone: whose levels they are.
        noise: as published, for ResNets.
        images: that the levels' own deviations are measured on, once; not needed for ResNets.
        teacher: gives their features.
        batch_size: images seen at once.
    """
    if noise == 0 or str(getattr(backbone, "name", "")).startswith(("resnet", "wide_resnet")):
        return [noise] * len(backbone.levels)
    return [noise * own / REFERENCE_DEVIATION for own in level_deviations(images, teacher, batch_size)]


def level_deviations(images: Images, teacher: Teacher, batch_size: int) -> list[float]:
    """The standard deviation of all values of each level, over all images."""
    sums: Tensor | float = 0.0
    for start in range(0, len(images), batch_size):
        maps = teacher(images.batch(range(start, min(start + batch_size, len(images)))))
        # Three numbers a level: how many values, their sum, the sum of their squares.
        sums = sums + torch.tensor(
            [[m.numel(), m.sum(dtype=torch.float64), m.square().sum(dtype=torch.float64)] for m in maps],
            dtype=torch.float64,
        )
    count, total, squares = torch.as_tensor(sums).unbind(dim=1)
    found: list[float] = (squares / count - (total / count).square()).clamp(min=0).sqrt().tolist()
    return found
