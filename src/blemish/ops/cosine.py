"""Where a student differs from its teacher: losses to train it by, and the map that shows it.

All is computed in float32, whatever the networks ran in, and in one pass over each map: dot products and norms are
read from the maps as they lie in memory, and one formula gives the gradient (autograd through norms and quotients would
write five maps more).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blemish.ops.smoothing import upscale

Loss = Literal["layer", "vector"]
MapScore = Literal["max", "sum", "mean"]

EPSILON = 1e-6  # norms below this count as zero: such a vector has cosine 0 with everything, and no gradient


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """``n``, float32: the cosines of the rows of two ``n d`` of any float type."""
    if torch.is_grad_enabled() and (one.requires_grad or other.requires_grad):
        cosine: Tensor = _Cosines.apply(one, other)
        return cosine
    return _measured(one, other)[0]  # what an exported graph can hold


def image_cosines(one: Tensor, other: Tensor) -> Tensor:
    """``b``, float32: the cosine of whole maps ``b c y x``, each one vector of y * x * c numbers."""
    return cosines(one.permute(0, 2, 3, 1).flatten(1), other.permute(0, 2, 3, 1).flatten(1))


def location_cosines(one: Tensor, other: Tensor) -> Tensor:
    """``b y x``, float32: the cosine over channels at every location of two maps ``b c y x``."""
    rows = [map_.permute(0, 2, 3, 1).flatten(0, 2) for map_ in (one, other)]
    return cosines(*rows).view(one.shape[0], *one.shape[2:])


def layer_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """1 - cosine of whole maps ``b c y x``: mean over images, sum over levels. Reverse distillation's released code.

    It is the mean of the locations' cosines weighted by the norms there, sum_p |t_p| |s_p| cos_p / (|t| |s|), so that
    the student must match where the teacher's features are large, too.
    """
    return torch.stack([1 - image_cosines(t, s).mean() for t, s in zip(teacher, student, strict=True)]).sum()


def vector_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """1 - cosine at every location of maps ``b c y x``: mean over all, sum over levels. Reverse distillation's text."""
    return torch.stack([1 - location_cosines(t, s).mean() for t, s in zip(teacher, student, strict=True)]).sum()


LOSSES: dict[Loss, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]]
LOSSES = {"layer": layer_loss, "vector": vector_loss}


def anomaly_map(
    teacher: Sequence[Tensor], student: Sequence[Tensor], size: Sequence[int], sigma: float = 4.0
) -> Tensor:
    """``b h w``, float32: 1 - cosine at every location of maps ``b c y x``, brought to ``size``, summed and smoothed.

    ``sigma`` is in pixels of ``size``. Smoothing is linear, so it is done for each level on the way.
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        levels = [1 - location_cosines(t, s) for t, s in zip(teacher, student, strict=True)]
        return torch.stack([upscale(level, size, sigma, align_corners=True) for level in levels]).sum(dim=0)


def map_score(map_: Tensor, score: MapScore) -> Tensor:
    """``b``: the highest value of each map ``b h w``; the sum as released for sets such as CIFAR-10."""
    if score == "max":
        return map_.amax(dim=(1, 2))
    return map_.sum(dim=(1, 2)) if score == "sum" else map_.mean(dim=(1, 2))


class _Cosines(torch.autograd.Function):
    """d cos / d other = (one / |one| - cos * other / |other|) / |other|, and the same the other way round."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor) -> Tensor:
        cosine, inverse_one, inverse_other = _measured(one, other)
        ctx.save_for_backward(one, other, inverse_one, inverse_other, cosine)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        one, other, inverse_one, inverse_other, cosine = ctx.saved_tensors
        (gradient,) = gradients
        across = gradient * inverse_one * inverse_other
        results: list[Tensor | None] = []
        sides = ((one, other, inverse_one), (other, one, inverse_other))
        for is_needed, (own, towards, inverse) in zip(ctx.needs_input_grad, sides):
            along = (gradient * cosine * inverse.square())[:, None]
            moved = (towards.float() * across[:, None]).addcmul_(own.float(), along, value=-1) if is_needed else None
            results.append(None if moved is None else moved.to(own.dtype))
        return tuple(results)


def _measured(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and inverse norms, row by row."""
    with torch.autocast(one.device.type, enabled=False):
        a, b = one.float(), other.float()
        norms = [torch.linalg.vector_norm(rows, dim=1) for rows in (a, b)]
        inverse_a, inverse_b = [torch.where(n > EPSILON, 1 / n.clamp_min(EPSILON), 0.0) for n in norms]
        return torch.linalg.vecdot(a, b) * inverse_a * inverse_b, inverse_a, inverse_b
