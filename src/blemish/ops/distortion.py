"""Elastic distortion: copies of good images that stand in for bad ones where none is known (CKAAD)."""

from __future__ import annotations

import torch
from torch import Tensor

ALPHA = 200.0
"""Strength of the displacements; their smoothing (5 pixels), bilinear sampling and black filling are torchvision's."""


def elastic_twins(images: Tensor) -> Tensor:
    """``b 3 h w`` in [0, 1]: each image distorted by displacements of its own, drawn from torch's random state.

    Computed on ``uint8`` on the CPU, as the released code does.

    Args:
        images: ``b 3 h w`` in [0, 1].
    """
    from torchvision.transforms.v2 import ElasticTransform  # takes a second to import, and few fits need it

    transform = ElasticTransform(alpha=ALPHA)
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8)
    return torch.stack([transform(image) for image in pixels]).to(images.dtype) / 255
