"""Optimal transport between feature clouds: RD++'s SSOT loss, as its paper reads and as its code computes it.

The debiased Sinkhorn divergence S(a, b) = OT(a, b) - OT(a, a)/2 - OT(b, b)/2, with entropic OT, cost |x - y|^2 / 2 and
uniform weights, from geomloss (Feydy et al., Interpolating between Optimal Transport and MMD using Sinkhorn
Divergences, AISTATS 2019). All is float32 outside autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from geomloss import SamplesLoss
from torch import Tensor


def sinkhorn_divergence(
    one: Tensor, other: Tensor, blur: float = 0.05, diameter: float = 2.0, scaling: float = 0.9
) -> Tensor:
    """``b``: how far each cloud of ``one`` is from its counterpart; 0 where both hold the same points.

    Args:
        one: ``b n d``, points of equal weight.
        other: ``b m d``.
        blur: square root of the last temperature of the annealing, a distance.
        diameter: square root of the first one: no two points should be further apart; unit vectors are at most 2.
        scaling: by which the square root of the temperature is multiplied at each update.
    """
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, diameter=diameter, scaling=scaling, backend="tensorized")
    with torch.autocast(one.device.type, enabled=False):
        divergence: Tensor = loss(one.float().contiguous(), other.float().contiguous())
    return divergence


def paired_transport(
    maps: Sequence[Tensor], partners: Tensor, generator: torch.Generator, locations: int = 64
) -> Tensor:
    """A scalar: the divergence between each image's feature vectors and its partner's, mean over images and levels.

    RD++'s Eq. 6 leaves the ground space open. Our reading: an image is the cloud of its vectors, scaled to length 1, at
    ``locations`` random places (the same for all images of a batch; all places where there are no more).

    Args:
        maps: ``b c y x``, a level each.
        partners: ``b``, a permutation: which image each one is compared with.
        generator: on the CPU, draws the places.
        locations: of one image and level; the cost grows with their square.
    """
    levels = []
    for map_ in maps:
        rows, columns = map_.shape[2:]
        chosen = torch.randperm(rows * columns, generator=generator)[:locations].to(map_.device)
        with torch.autocast(map_.device.type, enabled=False):
            cloud = F.normalize(map_[:, :, chosen // columns, chosen % columns].transpose(1, 2).float(), dim=-1)
        levels.append(sinkhorn_divergence(cloud, cloud[partners.to(map_.device)]).mean())
    return torch.stack(levels).mean()


def released_transport(maps: Sequence[Tensor], order: Tensor) -> Tensor:
    """A scalar, summed over levels, that is zero up to rounding, and so is its gradient: what RD++'s code computes.

    Every image is one point, the softmax over its whole map, and the batch is compared with itself in another order:
    the same points.

    Args:
        maps: ``b c y x``, a level each.
        order: ``b``, a permutation.
    """
    levels = []
    for map_ in maps:
        points = map_.float().flatten(1).softmax(dim=1)
        shuffled = points[order.to(map_.device)]
        levels.append(sinkhorn_divergence(points[None], shuffled[None], diameter=1e7, scaling=0.95).sum())
    return torch.stack(levels).sum()
