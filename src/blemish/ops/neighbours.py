"""Exact nearest neighbours: a quick product proposes candidates, direct differences decide.

``|q - y|^2 = |q|^2 + |y|^2 - 2 q.y`` turns the search into one matrix product, but loses digits where vectors lie
close together and far from zero. So vectors are centred first, the product only proposes, and the few candidates of
each query are measured by direct differences. A bound on the product's rounding tells whether anything that was not
proposed could be nearer; for queries for which it could, everything within the bound is measured.

The product stays float32: a bf16 one leaves tens of candidates a query, whose measuring takes longer than it saves.
"""

import torch
from torch import Tensor, nn

SPARE_UNCHECKED = 3  # points proposed beyond those asked for in an exported graph, which has no check
PRODUCT_BYTES = 2**23  # queries are taken in portions, so that the product with all points stays about this small
STRIDES = 16  # the smallest of many numbers are looked for among the smallest of this many interleaved parts


class Neighbours(nn.Module):
    """A fixed set of points ``n d``, asked for the nearest ones; its buffer ``points`` holds them less the centre."""

    centre: Tensor
    points: Tensor
    norms: Tensor

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        points = points.detach().float()
        centre = points.double().mean(dim=0).float() if len(points) else points.new_zeros(points.shape[1])
        centred = points - centre
        for name, value in (("centre", centre), ("points", centred), ("norms", centred.square().sum(dim=1))):
            self.register_buffer(name, value)

    def __len__(self) -> int:
        return len(self.points)

    def forward(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The ``k`` points nearest to queries ``q d``, nearest first: squared distances ``q k`` and indices ``q k``.

        The distances are float32 sums of squared differences, and the points are the nearest up to the rounding of
        those sums; all points where there are fewer than ``k``. While a graph is being exported the check is left out,
        since its work depends on the data.
        """
        centred, k = queries.float() - self.centre, min(k, len(self))
        if torch.compiler.is_compiling():
            _, candidates = smallest(self._product(centred), min(len(self), k + SPARE_UNCHECKED))
            return self._measured(centred, candidates, k)
        held = PRODUCT_BYTES << (5 * centred.is_cuda)  # a card waits for Python after each
        portions = torch.split(centred, max(1, held // (4 * max(1, len(self)))))
        nearest = [self._search(portion, k) for portion in portions]
        return torch.cat([distances for distances, _ in nearest]), torch.cat([indices for _, indices in nearest])

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        product = self._product(queries)
        values, candidates = smallest(product, min(len(self), k + 1))
        distances, indices = self._measured(queries, candidates[:, :k], k)
        if k == len(self):
            return distances, indices
        # Points no farther than the k-th candidate have a norm of at most ``reach``. A float32 sum of d products is off
        # by at most d half-units of the product of the norms.
        unit = (queries.shape[1] + 8) * 2.0**-24
        square, farthest = queries.square().sum(dim=1), distances[:, -1]
        norm = square.sqrt()
        reach = norm + farthest.sqrt()
        limit = farthest - square + unit * (2 * norm * reach + 3 * reach.square())
        for row in (values[:, k] <= limit).nonzero().flatten().tolist():
            within = (product[row] <= limit[row]).nonzero().T
            nearest, order = self._measured(queries[row : row + 1], within, k)
            distances[row], indices[row] = nearest[0], order[0]
        return distances, indices

    def _product(self, queries: Tensor) -> Tensor:
        """``q n``: squared distances less the query's own square, which is the same for all points."""
        return torch.addmm(self.norms, queries, self.points.T, alpha=-2)

    def _measured(self, queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest of ``q m`` candidates, by direct differences."""
        distances = (queries[:, None] - self.points[candidates]).square_().sum(dim=2)
        distances, order = distances.sort(dim=1)
        return distances[:, :k], candidates.gather(1, order[:, :k])


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` smallest numbers of each row of ``q n``, ascending, and where they are: a quicker ``topk``.

    A row's ``count`` smallest numbers lie in the ``count`` columns of interleaved parts whose minima are smallest:
    one quick pass for the minima leaves few numbers to look at. Ties are broken in any way.
    """
    length = values.shape[1] // STRIDES
    if length < 8 * count or length < 2 * STRIDES:
        return values.topk(count, dim=1, largest=False)
    covered = STRIDES * length
    minima = values[:, :covered].view(-1, STRIDES, length).amin(dim=1)
    columns = minima.topk(count, dim=1, largest=False).indices
    rows = torch.arange(0, covered, length, device=values.device)
    positions = (columns[:, None] + rows[:, None]).flatten(1)
    rest = torch.arange(covered, values.shape[1], device=values.device).expand(values.shape[0], -1)
    positions = torch.cat([positions, rest], dim=1)
    chosen, order = values.gather(1, positions).topk(count, dim=1, largest=False)
    return chosen, positions.gather(1, order)
