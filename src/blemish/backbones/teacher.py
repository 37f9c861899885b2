"""The backbone as methods see it while learning: frozen, without gradient, the same numbers every time."""

from __future__ import annotations

import torch
from torch import Tensor

from blemish.contract import Backbone, Batch


class FrozenTeacher:
    """Gives the features of training images; implements ``blemish.contract.Teacher``.

    A ``Batch`` names its images by key and a bare tensor (noisy twins, elastic copies) does not, so only a batch's
    features can ever be kept. Features are computed on the backbone's device and stay there.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __call__(self, given: Batch | Tensor) -> list[Tensor]:
        """Feature maps ``b c y x``, shallowest level first, float32 numbers that bf16 can hold."""
        if isinstance(given, Batch):
            return self._of_batch(given)
        return self._compute(given)

    def _of_batch(self, batch: Batch) -> list[Tensor]:
        # The one place where features may be served by ``batch.keys`` instead of computed.
        return self._compute(batch.images)

    def _compute(self, images: Tensor) -> list[Tensor]:
        device = next(self.backbone.parameters()).device
        with torch.no_grad():
            maps: list[Tensor] = self.backbone(images.to(device))
        return maps
