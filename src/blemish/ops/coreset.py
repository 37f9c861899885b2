"""A coreset: few points such that every other point has one of them close by (greedy k-centre).

The greedy rule takes the point that is farthest from all points taken so far, again and again. Done literally, each
pick reads all points once. Two things make it quick, and neither changes the picks, up to rounding:

- Blocks. Among the points that are farthest now, the choice is replayed for as long as the best of them beats whatever
  lies outside the block: distances only ever shrink. Then one product measures points against all picks of the block.
- Waiting. A point's old distance is a bound on its new one. While the bound lies below the distances at which picks
  are being made, the point need not be measured; what it missed is made up for once picks have come down to it.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from blemish.errors import ConfigError

Start = Literal["approximate", "exact"]

BLOCK = 1024  # farthest points among which the greedy choice is replayed
ROWS = 2048  # points that are measured against a block of picks at once: their product then stays in the cache
STEP = 0.95  # how far the threshold comes down at first, in squared distance, when too few points lie beyond it
SAME = 2.0**-20  # squared distances below this part of a point's squared norm are rounding: the points are the same


def size_of_coreset(points: int, fraction: float | None, number: int) -> int:
    """How many of ``points`` to pick: ``fraction`` of them, rounded down, but at least 1; else at most ``number``."""
    return min(points, number if fraction is None else max(1, int(points * fraction + 1e-9)))


def random_projection(points_width: int, width: int, generator: torch.Generator) -> Tensor | None:
    """A matrix ``points_width width``, drawn on the CPU like a fresh linear layer's weights, that shortens vectors.

    None for vectors of up to twice ``width``: it would save little, and distances change by a part in sqrt(width / 2).
    """
    if points_width <= 2 * width:
        return None
    bound = points_width**-0.5
    return torch.empty(points_width, width).uniform_(-bound, bound, generator=generator)


def first_distances(points: Tensor, start: Start, starting_points: int, generator: torch.Generator) -> Tensor:
    """The squared distances ``n`` that the greedy choice among ``n m`` points begins with.

    ``approximate`` takes the mean distance to a few random points, which are not picked by that; ``exact`` the root of
    the summed squares of the distances to all points, which has a closed form.
    """
    n = len(points)
    if start == "exact":
        norms = (points - points.mean(dim=0)).square().sum(dim=1).double()
        return (n * norms + norms.sum()).to(points.dtype)
    drawn = torch.randperm(n, generator=generator)[:starting_points].to(points.device)
    rooted = torch.cdist(points, points[drawn], compute_mode="donot_use_mm_for_euclid_dist")
    return rooted.mean(dim=1).square()


def farthest_first(
    points: Tensor, count: int, distances: Tensor, weights: Tensor | None = None, block: int = BLOCK
) -> Iterator[int]:
    """At most ``count`` picks of the greedy k-centre rule among ``n m`` points, one by one.

    It begins with squared ``distances`` ``n``, from ``first_distances``. Every distance to a pick is multiplied by its
    point's weight (``n``; None for ones): points of weight 0 are never picked, but perhaps as the first. Among equal
    distances the lowest index is picked. The picks end early when every point left is the same as one that was picked,
    to within rounding (a thousandth of its norm, from the mean). A ConfigError, where sizes do not fit together.
    """
    if len(distances) != len(points) or (weights is not None and len(weights) != len(points)):
        raise ConfigError(f"{len(points)} points need as many first distances and weights: give one for each point")
    left = min(count, len(points))
    greedy = _Greedy(points, left, distances, weights)
    while left > 0 and (picks := greedy.block(min(block, len(points)), left)):
        yield from picks
        left -= len(picks)
    if count > 0 and greedy.picked == 0:  # all points are one and the same
        yield int(distances.argmax())


class _Greedy:
    """Points, and for each its squared distance to the picks it has met so far: never less than to all picks.

    A point whose bound lies below ``threshold`` meets new picks when that has come down to it: most never do.
    """

    def __init__(self, points: Tensor, count: int, distances: Tensor, weights: Tensor | None) -> None:
        centred = points - points.mean(dim=0)
        norms = centred.square().sum(dim=1, keepdim=True)
        # One product gives squared distances: [x, |x|^2, 1] . [-2p, 1, |p|^2] = |x|^2 - 2 x.p + |p|^2.
        self.points = torch.cat([centred, norms, torch.ones_like(norms)], dim=1)
        self.picks = self.points.new_empty(count, self.points.shape[1])
        self.picked = 0
        self.met = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        self.bounds = distances.clone()
        self.threshold = float(distances.max())
        self.same = norms.squeeze(1) * SAME
        self.factors = None if weights is None else weights.to(points).square()
        self.product = points.new_empty(ROWS * BLOCK)
        self.gathered = points.new_empty(ROWS, self.points.shape[1])

    def block(self, size: int, left: int) -> list[int]:
        """The next picks, at most ``left``: indices in the order of picking. Points meet them when they have to."""
        above = self._beyond_threshold(size)
        if len(above) == 0:
            return []
        candidates, limit = above, self.threshold
        if len(above) > size:
            farthest, chosen = torch.topk(self.bounds[above], size, sorted=False)
            candidates, limit = above[chosen.sort().values], float(farthest.min())
        # [j, i]: the squared distance that candidate i has once j is picked.
        between = self._rounded(self._mirrored(candidates) @ self.points[candidates].T, candidates).cpu().numpy()
        nearest = self.bounds[candidates].cpu().numpy()
        positions: list[int] = []
        # Candidates ascend, so the first maximum has the lowest index. Up to ``limit`` others may be as far.
        while len(positions) < left and nearest[best := int(nearest.argmax())] > limit:
            positions.append(best)
            np.minimum(nearest, between[best], out=nearest)
            nearest[best] = 0
        self.threshold = max(self.threshold, limit * STEP)
        # Where every candidate is as far as something outside the block, the lowest index of all decides.
        picks = candidates[positions] if positions else above[self.bounds[above].argmax()][None]
        self.picks[self.picked : self.picked + len(picks)] = self._mirrored(picks)
        self.picked += len(picks)
        self.bounds[picks] = 0
        return picks.tolist()

    def _beyond_threshold(self, size: int) -> Tensor:
        """Indices, ascending, of all points beyond the threshold, which is lowered until they are at least ``size``."""
        step = STEP
        while True:
            above = (self.bounds > self.threshold).nonzero().squeeze(1)
            behind = above[self.met[above] < self.picked]
            if len(behind):
                self._meet(behind)
                above = above[self.bounds[above] > self.threshold]
            if len(above) >= size or self.threshold == 0:
                return above
            self.threshold = self.threshold * step if step > 0.1 else 0.0
            step *= step

    def _meet(self, indices: Tensor) -> None:
        """Bring the bounds of some points up to date with all picks."""
        for met in torch.unique(self.met[indices]).tolist():
            for rows in torch.split(indices[self.met[indices] == met], ROWS):
                points = torch.index_select(self.points, 0, rows, out=self.gathered[: len(rows)])
                bounds = self.bounds[rows]
                for first in range(met, self.picked, BLOCK):
                    mirrored = self.picks[first : min(first + BLOCK, self.picked)]
                    product = self.product[: len(points) * len(mirrored)].view(len(points), len(mirrored))
                    nearest = torch.mm(points, mirrored.T, out=product).amin(dim=1)
                    torch.minimum(bounds, self._rounded(nearest, rows), out=bounds)
                self.bounds[rows] = bounds
        self.met[indices] = self.picked

    def _mirrored(self, indices: Tensor) -> Tensor:
        chosen = self.points[indices]
        return torch.cat([-2 * chosen[:, :-2], chosen[:, -1:], chosen[:, -2:-1]], dim=1)

    def _rounded(self, distances: Tensor, indices: Tensor) -> Tensor:
        """Squared distances ``... i`` of some points, in place: 0 where rounding is all they are, then weighted."""
        distances.masked_fill_(distances <= self.same[indices], 0)
        if self.factors is not None:
            distances *= self.factors[indices]
        return distances
