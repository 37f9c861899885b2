"""Optimal transport between feature clouds: RD++'s SSOT loss, as its paper reads and as its code computes it.

The debiased divergence S(a, b) = OT(a, b) - OT(a, a)/2 - OT(b, b)/2, with entropic OT, cost |x - y|^2 / 2 and uniform
weights, is geomloss's (Feydy et al., Interpolating between Optimal Transport and MMD, AISTATS 2019), in float32.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from geomloss import SamplesLoss
from torch import Tensor


def sinkhorn_divergence(
    one: Tensor, other: Tensor, blur: float = 0.05, diameter: float = 2.0, scaling: float = 0.9
) -> Tensor:
    """``b``: how far each cloud ``n d`` of ``one`` is from its counterpart ``m d``; 0 where they hold the same points.

    The temperature's square root, a distance, falls from ``diameter`` (no two points should be further apart; unit
    vectors are at most 2) to ``blur``, by a factor of ``scaling`` at each update.
    """
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, diameter=diameter, scaling=scaling, backend="tensorized")
    with torch.autocast(one.device.type, enabled=False):
        weighted = []  # geomloss's own equal weights are made on the CPU, and copying them would wait for a card
        for cloud in (one, other):
            weighted += [cloud.new_full(cloud.shape[:2], 1 / cloud.shape[1], dtype=torch.float32), cloud.float()]
        divergence: Tensor = loss(*(each.contiguous() for each in weighted))
    return divergence


def paired_transport(maps: Sequence[Tensor], partners: Tensor, places: Sequence[Tensor]) -> Tensor:
    """A scalar: the divergence between each image's feature vectors and its partner's, mean over images and levels.

    RD++'s Eq. 6 leaves the ground space open. Our reading: an image is the cloud of its vectors, scaled to length 1, at
    the cells of maps ``b c y x`` whose numbers ``places`` gives, a tensor a level, the same for all images of a batch.
    ``partners``, a permutation ``b``, says which image each one is compared with.
    """
    levels = []
    for vectors in _vectors(maps, places):
        cloud = F.normalize(vectors, dim=-1)
        levels.append(sinkhorn_divergence(cloud, cloud[partners.to(cloud.device)]).mean())
    return torch.stack(levels).mean()


def transport_of_all(maps: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """RD++'s Eq. 6, a scalar: the divergences of all pairs of m images, both ways, over m; the mean over levels.

    A cloud is the softmax over the channels at each of the cells in ``places``: over what, the paper does not say.
    """
    levels = []
    for vectors in _vectors(maps, places):
        cloud, count = vectors.softmax(dim=-1), len(vectors)
        one, other = torch.triu_indices(count, count, offset=1, device=cloud.device)
        both_ways = 2 * sinkhorn_divergence(cloud[one], cloud[other]).sum() if len(one) else cloud.sum() * 0
        levels.append(both_ways / count)
    return torch.stack(levels).mean()


def random_places(maps: Sequence[Tensor], generator: torch.Generator, locations: int) -> list[Tensor]:
    """Of each map ``b c y x``, the numbers of ``locations`` random cells, row by row (or of all)."""
    return [torch.randperm(map_[0, 0].numel(), generator=generator)[:locations] for map_ in maps]


def _vectors(maps: Sequence[Tensor], places: Sequence[Tensor]) -> Iterator[Tensor]:
    """``b n c``, float32, of each map ``b c y x``: the features at some cells, the same for all images."""
    for map_, place in zip(maps, places, strict=True):
        chosen, columns = place.to(map_.device), map_.shape[3]
        yield map_[:, :, chosen // columns, chosen % columns].transpose(1, 2).float()


def released_transport(maps: Sequence[Tensor], order: Tensor) -> Tensor:
    """A scalar, summed over levels, that is zero up to rounding, and so is its gradient: what RD++'s code computes.

    Every image is one point, the softmax over its whole map ``b c y x``; the batch is compared with itself reordered.
    """
    levels = []
    for map_ in maps:
        points = map_.float().flatten(1).softmax(dim=1)[None]
        levels.append(sinkhorn_divergence(points, points[:, order.to(map_.device)], diameter=1e7, scaling=0.95).sum())
    return torch.stack(levels).sum()
