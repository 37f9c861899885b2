"""The loss of networks that learn to tell few defective pixels from many good ones."""

import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """The mean of cross-entropies, each times (1 - p)**gamma, where p is the probability given to the truth.

    ``logits`` and ``targets`` (bool, or 0 and 1) are of one shape. What is already told apart hardly counts (Lin et
    al., Focal Loss for Dense Object Detection, 2017).
    """
    entropies = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (entropies * (1 - (-entropies).exp()) ** gamma).mean()
