"""Grad-CAM: which places of a feature map a number hangs on."""

import torch
from torch import Tensor


def gradcam(features: Tensor, target: Tensor, scaled: bool = False) -> Tensor:
    """``b y x``, signed: the channels of ``features`` ``b c y x``, weighted by what they do to ``target``, summed.

    A channel's weight is the mean over all places of the target's gradient, divided by the root of its mean square over
    an image where ``scaled``. The target, one number an image or several to be summed, must come from the features,
    and an image's from its own alone.
    """
    (gradient,) = torch.autograd.grad(target.sum(), features)
    if scaled:
        gradient = gradient / (gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-8)
    return (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)
