"""Exact nearest neighbours: a quick product proposes candidates, direct differences decide.

``|q - y|^2 = |q|^2 + |y|^2 - 2 q.y`` turns the search into one matrix product, but loses digits where vectors lie
close together and far from zero. So vectors are centred first, the product only proposes, the few candidates of each
query are measured by direct differences, and a bound on the product's rounding tells whether anything that was not
proposed could be nearer. Queries for which it could are measured directly against every point.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blemish.run import has_bf16_units

CANDIDATES = {torch.float32: 4, torch.bfloat16: 16}
"""Points proposed for each query at first: the product's rounding makes the first alone unsure."""

MORE_CANDIDATES = 256
"""Points proposed where that was not enough, before everything is measured directly."""

PRODUCT_BYTES = 2**25
"""Queries are taken in portions, so that the product with all points stays about this small."""

STRIDES = 16
"""The smallest of many numbers are looked for among the smallest of this many interleaved parts."""


class Neighbours(nn.Module):
    """A fixed set of points, asked for the nearest ones.

    Buffers: ``centre`` (``d``), ``points`` (``n d``, less the centre) and ``norms`` (``n``, their squares).
    """

    centre: Tensor
    points: Tensor
    norms: Tensor

    def __init__(self, points: Tensor) -> None:
        """Prepare for searching among ``points``: ``n d``."""
        super().__init__()
        points = points.detach().float()
        centre = points.double().mean(dim=0).float() if len(points) else points.new_zeros(points.shape[1])
        centred = points - centre
        self.register_buffer("centre", centre)
        self.register_buffer("points", centred)
        self.register_buffer("norms", centred.square().sum(dim=1))

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.points)

    def forward(self, queries: Tensor, k: int = 1, product: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest points, nearest first: squared distances ``q k`` and indices ``q k``.

        The distances are float32 sums of squared differences, and the points are the nearest up to the rounding of
        those sums. While a graph is being exported the check is left out, since its work depends on the data.

        Args:
            queries: ``q d``.
            k: how many; all points where there are fewer.
            product: what proposes: float32, or bfloat16 where the processor has units for it (the default there).
        """
        if product is None:
            product = torch.bfloat16 if has_bf16_units(self.points.device) else torch.float32
        centred = queries.float() - self.centre
        if torch.compiler.is_compiling():
            return self._propose(centred, min(k, len(self)), product, CANDIDATES[product])[:2]
        portion = max(1, PRODUCT_BYTES // (4 * max(1, len(self))))
        found = [self._checked(part, min(k, len(self)), product) for part in torch.split(centred, portion)]
        return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])

    def _checked(self, queries: Tensor, k: int, product: torch.dtype) -> tuple[Tensor, Tensor]:
        distances, indices, sure = self._propose(queries, k, product, CANDIDATES[product])
        for attempt in (self._propose_more, self._direct):
            unsure = (~sure).nonzero().squeeze(1)
            if len(unsure) == 0:
                break
            distances[unsure], indices[unsure], sure[unsure] = attempt(queries[unsure], k)
        return distances, indices

    def _propose_more(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._propose(queries, k, torch.float32, MORE_CANDIDATES)

    def _propose(self, queries: Tensor, k: int, product: torch.dtype, more: int) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest among the product's candidates; sure where all others are too far even with its rounding."""
        partial = self._partial(queries, product)
        width = min(len(self), k - 1 + more)
        proposed, candidates = smallest(partial, width)
        distances, order = self._differences(queries, candidates).sort(dim=1)
        distances, indices = distances[:, :k], candidates.gather(1, order[:, :k])
        farthest = distances[:, -1:]
        limit = farthest + self._rounding(queries, farthest, product) - queries.square().sum(1, keepdim=True)
        sure = (proposed[:, -1:] > limit).squeeze(1)
        return distances, indices, sure | (width == len(self))

    def _partial(self, queries: Tensor, product: torch.dtype) -> Tensor:
        """``q n``: squared distances less the query's own square, which is the same for all points."""
        if product == torch.float32:
            return torch.addmm(self.norms, queries, self.points.T, alpha=-2)
        return (queries.to(product) @ self.points.to(product).T).float().mul_(-2).add_(self.norms)

    def _differences(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """``q k``: squared distances to the given points, by direct differences."""
        return (queries[:, None] - self.points[candidates]).square().sum(dim=2)

    def _direct(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest of all points by direct differences: slow, and always right."""
        distances = torch.cdist(queries, self.points, compute_mode="donot_use_mm_for_euclid_dist")
        indices = distances.topk(k, dim=1, largest=False).indices
        distances, order = self._differences(queries, indices).sort(dim=1)
        return distances, indices.gather(1, order), torch.ones(len(queries), dtype=torch.bool, device=queries.device)

    def _rounding(self, queries: Tensor, distances: Tensor, product: torch.dtype) -> Tensor:
        """``q 1``: how far a proposed squared distance may be off, for points no farther than ``distances``.

        Such a point's norm is at most ``reach = |q| + distance``. A float32 sum of ``d`` products is off by at most
        ``d`` half-units of the product of the norms, and a bf16 product rounds both factors and the result to 8 bits.
        """
        norm = queries.square().sum(dim=1, keepdim=True).sqrt()
        reach = norm + distances.sqrt()
        float32 = (queries.shape[1] + 8) * 2.0**-24
        unit = float32 if product == torch.float32 else float32 + 3.1 * 2.0**-8
        return 2 * unit * norm * reach + 3 * float32 * reach**2


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` smallest numbers of each row, ascending, and where they are: ``topk``, several times as fast.

    A row's ``count`` smallest numbers lie in the ``count`` columns of interleaved parts whose minima are smallest:
    one quick pass for the minima leaves few numbers to look at. Ties are broken in any way.

    Args:
        values: ``q n``.
        count: at most ``n``.
    """
    length = values.shape[1] // STRIDES
    if length < 8 * count or length < 2 * STRIDES:
        return values.topk(count, dim=1, largest=False)
    covered = STRIDES * length
    minima = values[:, :covered].view(-1, STRIDES, length).amin(dim=1)
    columns = minima.topk(count, dim=1, largest=False).indices
    rows = torch.arange(0, covered, length, device=values.device)
    places = (columns[:, None] + rows[:, None]).flatten(1)
    rest = torch.arange(covered, values.shape[1], device=values.device).expand(len(values), -1)
    places = torch.cat([places, rest], dim=1)
    found, order = values.gather(1, places).topk(count, dim=1, largest=False)
    return found, places.gather(1, order)
