"""Where a student differs from its teacher: losses to train it by, and the map that shows it.

All is computed in float32, whatever the networks ran in, and in one pass over each map: dot products and norms are
read from the maps as they lie in memory, and one formula gives the gradient (autograd through norms and quotients would
write five maps more).

``layer_loss`` and ``vector_loss`` are related: with locations p, the flattened cosine is the mean of the locations'
cosines weighted by their norms, sum_p |t_p| |s_p| cos_p / (|t| |s|), so that the student must match where the teacher's
features are large, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blemish.ops.smoothing import upscale

Loss = Literal["layer", "vector"]

EPSILON = 1e-6
"""Norms below this count as zero: such a vector has cosine 0 with everything, and no gradient."""


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """``n``, float32: the cosine of each row of ``one`` with that of ``other``, both ``n d`` and of any float type."""
    if torch.is_grad_enabled() and (one.requires_grad or other.requires_grad):
        cosine: Tensor = _Cosines.apply(one, other)
        return cosine
    return _measured(one, other)[0]  # what an exported graph can hold


def image_cosines(one: Tensor, other: Tensor) -> Tensor:
    """``b``, float32: the cosine of whole maps ``b c y x``, each one vector of y * x * c numbers."""
    return cosines(one.permute(0, 2, 3, 1).flatten(1), other.permute(0, 2, 3, 1).flatten(1))


def location_cosines(one: Tensor, other: Tensor) -> Tensor:
    """``b y x``, float32: the cosine over channels at every location of two maps ``b c y x``."""
    b, _, y, x = one.shape
    rows = [map_.permute(0, 2, 3, 1).flatten(0, 2) for map_ in (one, other)]
    return cosines(*rows).view(b, y, x)


def layer_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """1 - cosine of whole maps: mean over images, sum over levels. The released code of reverse distillation.

    Args:
        teacher: maps ``b c y x``, a level each.
        student: the same shapes.
    """
    return torch.stack([1 - image_cosines(t, s).mean() for t, s in zip(teacher, student, strict=True)]).sum()


def vector_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """1 - cosine over channels at every location: mean over locations and images, sum over levels.

    What the paper on reverse distillation writes. Arguments as for ``layer_loss``.
    """
    return torch.stack([1 - location_cosines(t, s).mean() for t, s in zip(teacher, student, strict=True)]).sum()


LOSSES: dict[Loss, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "layer": layer_loss,
    "vector": vector_loss,
}


def anomaly_map(
    teacher: Sequence[Tensor], student: Sequence[Tensor], size: Sequence[int], sigma: float = 4.0
) -> Tensor:
    """``b h w``, float32: the distances of all levels, brought to ``size``, summed and smoothed.

    Interpolation is bilinear with ``align_corners=True``. Smoothing is linear, so it is done for each level on the way.

    Args:
        teacher: maps ``b c y x``, a level each.
        student: the same shapes.
        size: height and width wanted.
        sigma: of the Gaussian, in pixels of ``size``.
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        distances = [1 - location_cosines(t, s) for t, s in zip(teacher, student, strict=True)]
        return torch.stack([upscale(level, size, sigma, align_corners=True) for level in distances]).sum(dim=0)


class _Cosines(torch.autograd.Function):
    """d cos / d other = (one / |one| - cos * other / |other|) / |other|, and the same the other way round."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor) -> Tensor:
        cosine, inverse_a, inverse_b = _measured(one, other)
        ctx.save_for_backward(one, other, inverse_a, inverse_b, cosine)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        one, other, inverse_a, inverse_b, cosine = ctx.saved_tensors
        (gradient,) = gradients
        across = gradient * inverse_a * inverse_b
        to_one = to_other = None
        if ctx.needs_input_grad[0]:
            to_one = _combined(other, across, one, gradient * cosine * inverse_a.square())
        if ctx.needs_input_grad[1]:
            to_other = _combined(one, across, other, gradient * cosine * inverse_b.square())
        return to_one, to_other


def _combined(towards: Tensor, plus: Tensor, own: Tensor, minus: Tensor) -> Tensor:
    gradient = towards.float() * plus[:, None]
    return gradient.addcmul_(own.float(), minus[:, None], value=-1).to(own.dtype)


def _measured(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and inverse norms, row by row."""
    with torch.autocast(one.device.type, enabled=False):
        a, b = one.float(), other.float()
        inverse_a, inverse_b = _inverse_norms(a), _inverse_norms(b)
        return torch.linalg.vecdot(a, b) * inverse_a * inverse_b, inverse_a, inverse_b


def _inverse_norms(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1)
    return torch.where(norms > EPSILON, 1 / norms.clamp_min(EPSILON), 0.0)
