"""Features of mean 0 and deviation 1, channel by channel, over normal images: then one learning rate fits all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

SMALLEST = 1e-6
"""Deviations below this count as 1: such a channel is constant on normal images."""


class Standardisation(nn.Module):
    """Subtracts each channel's mean over normal images and divides by its deviation; nothing before ``learn``."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.count = len(channels)
        for place, width in enumerate(channels):
            self.register_buffer(f"mean_{place}", torch.zeros(1, width, 1, 1))
            self.register_buffer(f"deviation_{place}", torch.ones(1, width, 1, 1))

    @torch.no_grad()
    def learn(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Take means and deviations from batches of feature maps ``b c y x``, a level each; at least one batch."""
        cells = [0] * self.count
        sums: list[Tensor | float] = [0.0] * self.count
        squares: list[Tensor | float] = [0.0] * self.count
        for features in batches:
            for place, map_ in enumerate(features):
                values = map_.double()
                cells[place] += map_.numel() // map_.shape[1]
                sums[place] = sums[place] + values.sum(dim=(0, 2, 3))
                squares[place] = squares[place] + values.square().sum(dim=(0, 2, 3))
        for place in range(self.count):
            mean = torch.as_tensor(sums[place] / cells[place])
            deviation = (torch.as_tensor(squares[place] / cells[place]) - mean.square()).clamp_min(0).sqrt()
            deviation = torch.where(deviation < SMALLEST, 1.0, deviation)
            getattr(self, f"mean_{place}").copy_(mean.view(1, -1, 1, 1))
            getattr(self, f"deviation_{place}").copy_(deviation.view(1, -1, 1, 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the same shapes, standardised."""
        return [
            (map_ - getattr(self, f"mean_{place}")) / getattr(self, f"deviation_{place}")
            for place, map_ in enumerate(features)
        ]
