"""Scores of an image's places, and how far known-bad images' stand off from good ones' (DevNet and DRA)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blemish.ops.patches import top_mean

REFERENCES = 5000  # draws from a standard normal distribution that a step's deviations are measured by


def top_mean_of_maps(maps: Sequence[Tensor], share: float) -> Tensor:
    """``b``: the mean of the highest ``share`` of each map ``b y x``, one value at least, averaged over the maps."""
    return torch.stack([top_mean(map_.flatten(1), share) for map_ in maps]).mean(dim=0)


def deviation_loss(normal: Tensor, anomalous: Tensor, references: Tensor, margin: float = 5.0) -> Tensor:
    """Half the mean |deviation| of the good images' scores, half the mean of what the bad ones' lack to ``margin``.

    Mean and deviation of ``references``, draws from a standard normal distribution, are the measure.
    """
    mean, deviation = references.mean(), references.std()
    lacking = F.relu(margin - (anomalous - mean) / deviation)
    return (((normal - mean) / deviation).abs().mean() + lacking.mean()) / 2
