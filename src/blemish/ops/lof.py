"""How far a point stands off from its neighbourhood: local outlier factors, for many small sets of points at once.

A point's density is one over the mean distance to its ``k`` nearest others, where none counts as less than the other's
own distance to its ``k``-th. Its factor is the mean density of those others over its own: about 1 inside a cluster of
whatever scale (Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

PORTION_BYTES = 2**26  # sets are taken in portions, so that what is held for one stays about this small
TINY = 1e-10  # added to every mean distance, as scikit-learn does, so that densities stay finite
LEAST = 1e-3

Watch = Callable[[Sequence[Tensor]], Iterable[Tensor]]
"""Passes on what it is given, one after another, and may tell somebody how far that went."""


def local_outlier_factors(points: Tensor, k: int = 5, least: float = LEAST, watch: Watch = iter) -> Tensor:
    """``p n``: the factor of each point of ``p n d`` within its own set; ones for sets of fewer than two points.

    ``k`` neighbours are looked at, all others where there are fewer. More than ``k`` equal points have an endless
    density, and whatever lies near them a factor of billions: so mean distances of less than ``least`` of the median
    over all sets are taken for that much. With 0 the factors are those of scikit-learn. ``watch`` gets the portions.
    """
    p, n, _ = points.shape
    if n < 2:
        return points.new_ones(p, n)
    distances, indices = nearest_others(points, k, watch)
    sets = torch.arange(p, device=points.device)[:, None, None]
    reach = torch.maximum(distances, distances[..., -1][sets, indices]).mean(dim=2) + TINY
    apart = reach[reach > 2 * TINY]
    if len(apart):
        reach = reach.clamp(min=least * float(apart.median()))
    density = 1 / reach
    return density[sets, indices].mean(dim=2) / density


def nearest_others(points: Tensor, k: int, watch: Watch = iter) -> tuple[Tensor, Tensor]:
    """Distances and indices ``p n k`` of the nearest other points, nearest first, in each set of ``p n d``, n >= 2."""
    _, n, d = points.shape
    k = min(k, n - 1)
    nearest = []
    for portion in watch(torch.split(points, max(1, PORTION_BYTES // (8 * n * n + 4 * n * k * d)))):
        # In float32 the product of a set with both tight and distant points would lose the order of the tight ones.
        exact = portion.double()
        exact -= exact.mean(dim=1, keepdim=True)
        norms = exact.square().sum(dim=2)
        squared = torch.baddbmm(norms[:, None, :], exact, exact.transpose(1, 2), alpha=-2)
        squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        indices = squared.topk(k, dim=2, largest=False).indices
        sets = torch.arange(len(portion), device=portion.device)[:, None, None]
        distances = (portion[:, :, None] - portion[sets, indices]).square().sum(dim=3).sqrt()
        distances, order = distances.sort(dim=2, stable=True)
        nearest.append((distances, indices.gather(2, order)))
    distances, indices = map(torch.cat, zip(*nearest))
    return distances, indices
