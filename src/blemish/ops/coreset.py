"""A coreset: few points such that every other point has one of them close by (greedy k-centre).

The greedy rule takes the point that is farthest from all points taken so far, again and again. Done literally, each
pick reads all ``n`` points once, and memory traffic is all the time there is. Here picks are made in blocks: among
the points that are farthest now, the greedy choice is replayed for as long as the best of them beats everything
outside the block (distances only ever shrink, so nothing outside can have overtaken it); then one matrix product
brings all distances up to date for the whole block of picks. The picks are those of the literal rule, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from blemish.errors import ConfigError

Start = Literal["approximate", "exact"]

BLOCK = 1024
"""Farthest points among which the greedy choice is replayed."""

ROWS = 2048
"""Points whose distances are brought up to date at once: the product of a block then stays in the cache."""

SAME = 2.0**-20
"""Squared distances below this part of a point's squared norm are rounding: the two points are the same."""


def size_of_coreset(points: int, fraction: float) -> int:
    """How many of ``points`` make up ``fraction`` of them, rounded down, but at least 1."""
    return min(points, max(1, int(points * fraction + 1e-9)))


def random_projection(points_width: int, width: int, generator: torch.Generator) -> Tensor | None:
    """A matrix ``d width`` that shortens vectors and roughly keeps their distances; None where none is needed.

    It is drawn like the weights of a fresh linear layer without bias: uniform in plus or minus ``1 / sqrt(d)``.

    Args:
        points_width: ``d``, the width of the vectors.
        width: the width wanted. Vectors that are no wider stay as they are: a projection would only distort them.
        generator: draws the matrix, on the CPU.
    """
    if points_width <= width:
        return None
    bound = points_width**-0.5
    return torch.empty(points_width, width).uniform_(-bound, bound, generator=generator)


def first_distances(points: Tensor, start: Start, starting_points: int, generator: torch.Generator) -> Tensor:
    """The squared distances ``n`` that the greedy choice begins with.

    Args:
        points: ``n m``.
        start: ``approximate`` takes the mean distance to a few random points, which are not picked by that;
            ``exact`` the root of the summed squares of the distances to all points. Both are distances that are
            squared at the end, and the second has a closed form, so that it needs no ``n n`` memory.
        starting_points: how many random points ``approximate`` draws.
        generator: draws them, on the CPU.
    """
    n = len(points)
    if start == "exact":
        centred = points - points.mean(dim=0)
        norms = centred.square().sum(dim=1).double()
        return (n * norms + norms.sum()).to(points.dtype)
    drawn = torch.randperm(n, generator=generator)[:starting_points].to(points.device)
    rooted = torch.cdist(points, points[drawn], compute_mode="donot_use_mm_for_euclid_dist")
    return rooted.mean(dim=1).square()


def farthest_first(
    points: Tensor, count: int, distances: Tensor, weights: Tensor | None = None, block: int = BLOCK
) -> Iterator[int]:
    """The picks of the greedy k-centre rule, one after another; stop reading to stop the work.

    Among equal distances the lowest index is picked. The picks end early when every point left is the same as one
    that was picked, to within rounding (closer than about a thousandth of its norm, measured from the mean).

    Args:
        points: ``n m``, float32.
        count: how many to pick at most.
        distances: ``n``, the squared distances to begin with, from ``first_distances``.
        weights: ``n``, or None for ones. Every distance to a pick is multiplied by its point's weight, so that
            points of weight 0 are never picked, other than perhaps as the very first.
        block: how many of the farthest points a block looks at.

    Raises:
        ConfigError: the sizes do not fit together.
    """
    if len(distances) != len(points) or (weights is not None and len(weights) != len(points)):
        raise ConfigError(f"{len(points)} points need as many first distances and weights: give one for each point")
    greedy = _Greedy(points, distances, weights)
    left = min(count, len(points))
    while left > 0:
        picks = greedy.block(min(block, len(points)), left)
        if len(picks) == 0:
            return
        yield from picks.tolist()
        left -= len(picks)
        if left > 0:
            greedy.take(picks)


class _Greedy:
    """Points, and their squared distances to what was picked so far."""

    def __init__(self, points: Tensor, distances: Tensor, weights: Tensor | None) -> None:
        centred = points - points.mean(dim=0)
        norms = centred.square().sum(dim=1, keepdim=True)
        # One product gives squared distances: [x, |x|^2, 1] . [-2p, 1, |p|^2] = |x|^2 - 2 x.p + |p|^2.
        self.points = torch.cat([centred, norms, torch.ones_like(norms)], dim=1)
        self.distances = distances.clone()
        self.same = norms.squeeze(1) * SAME
        self.factors = None if weights is None else weights.to(points).square()
        self.product = torch.empty(0, device=points.device)

    def block(self, size: int, left: int) -> Tensor:
        """The next picks, at most ``left``: indices in the order of picking."""
        farthest, candidates = torch.topk(self.distances, size, sorted=False)
        limit = float(farthest.min()) if size < len(self.points) else 0.0
        candidates = candidates.sort().values
        between = self._squared(self.points[candidates], self._mirrored(candidates), candidates)
        positions = _replay(self.distances[candidates].cpu().numpy(), between.cpu().numpy(), limit, left)
        if positions:
            return candidates[positions]
        # Every candidate is as far as something outside the block: the lowest index of all decides.
        best = self.distances.argmax()
        return best[None] if self.distances[best] > 0 else candidates[:0]

    def take(self, picks: Tensor) -> None:
        """Bring all distances up to date with new picks."""
        mirrored = self._mirrored(picks)
        if self.product.numel() < min(ROWS, len(self.points)) * len(picks):
            self.product = self.points.new_empty(min(ROWS, len(self.points)) * len(picks))
        for first in range(0, len(self.points), ROWS):
            rows = slice(first, first + ROWS)
            points = self.points[rows]
            product = self.product[: len(points) * len(picks)].view(len(points), len(picks))
            nearest = torch.mm(points, mirrored, out=product).amin(dim=1)
            nearest.masked_fill_(nearest <= self.same[rows], 0)
            if self.factors is not None:
                nearest *= self.factors[rows]
            torch.minimum(self.distances[rows], nearest, out=self.distances[rows])
        self.distances[picks] = 0

    def _mirrored(self, indices: Tensor) -> Tensor:
        chosen = self.points[indices]
        return torch.cat([-2 * chosen[:, :-2], chosen[:, -1:], chosen[:, -2:-1]], dim=1).T.contiguous()

    def _squared(self, rows: Tensor, mirrored: Tensor, indices: Tensor) -> Tensor:
        squared = rows @ mirrored
        squared.masked_fill_(squared <= self.same[indices, None], 0)
        return squared if self.factors is None else squared * self.factors[indices, None]


def _replay(distances: np.ndarray, between: np.ndarray, limit: float, left: int) -> list[int]:
    """Positions of the picks that beat ``limit``, the largest distance that may exist outside the candidates.

    Args:
        distances: of the candidates, in the order of their indices, so that the first maximum has the lowest index.
        between: ``[i, j]`` is the squared distance that candidate ``i`` has once ``j`` is picked.
        limit: only what is strictly larger is sure to be the farthest of all.
        left: how many picks at most.
    """
    columns = np.ascontiguousarray(between.T)
    distances = distances.copy()
    positions: list[int] = []
    while len(positions) < left:
        best = int(distances.argmax())
        if distances[best] <= limit:
            break
        positions.append(best)
        np.minimum(distances, columns[best], out=distances)
        distances[best] = 0
    return positions
