"""Gaussians of features: moments gathered in portions, covariances that few images give, distances from all of them.

Sums and Cholesky factors are float64: a covariance of a hundred channels from as many images is close to singular. What
is kept is the inverse of the factor, so that a distance is one product.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

NUMBERS = 2**22  # of the covariances that are factorised at once


class Moments:
    """Means and covariances of ``p`` sets of vectors, which come in portions ``p n d``; at least one portion."""

    def __init__(self) -> None:
        self.count = 0
        self.origin = self.sums = self.squares = torch.empty(0)

    def add(self, points: Tensor) -> None:
        """Count a portion in. Sums are of differences from the first vectors, so that equal ones have no variance."""
        points = points.double()
        p, n, d = points.shape
        if self.count == 0:
            self.origin, self.sums = points[:, 0].clone(), points.new_zeros(p, d)
            self.squares = points.new_zeros(p, d, d)
        points = points - self.origin[:, None]
        self.count += n
        self.sums += points.sum(dim=1)
        if d == 1:  # a product of each set by itself would take a hundred times as long
            self.squares += points.square().sum(dim=1, keepdim=True)
        else:
            self.squares.baddbmm_(points.mT, points)

    def portions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Means ``q d`` and covariances ``q d d`` (over n - 1; zeros of one vector), a few of the sets at a time."""
        size = max(1, NUMBERS // self.squares[0].numel())
        for origin, sums, squares in zip(*(torch.split(t, size) for t in (self.origin, self.sums, self.squares))):
            mean = sums / self.count
            centred = squares - self.count * mean[:, :, None] * mean[:, None]
            yield origin + mean, centred / max(self.count - 1, 1)


class Gaussians(nn.Module):
    """As many Gaussians as were learned, of ``d`` numbers; none before."""

    mean: Tensor
    whitening: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0, d))
        self.register_buffer("whitening", torch.empty(0, d, d))

    def learn(self, sets: Iterable[tuple[Tensor, Tensor]], ridge: float) -> float:
        """Take means ``q d`` and positive covariances ``q d d``, to whose diagonal ``ridge`` is added.

        Returns the largest variance of all, without ridge: 0 where everything learned was equal.
        """
        means, whitenings, largest = [], [], 0.0
        for mean, covariance in sets:
            diagonal = torch.eye(mean.shape[1], dtype=covariance.dtype, device=covariance.device)
            factor = torch.linalg.cholesky(covariance + ridge * diagonal)
            inverse = torch.linalg.solve_triangular(factor, diagonal.expand_as(factor), upper=False)
            largest = max(largest, float(covariance.diagonal(dim1=1, dim2=2).max()))
            means.append(mean.float())
            whitenings.append(inverse.float())
        self.mean, self.whitening = torch.cat(means), torch.cat(whitenings)
        return largest

    def forward(self, points: Tensor) -> Tensor:
        """``p n``: the squared Mahalanobis distances of ``p n d``, the points of each set from its own Gaussian."""
        centred = points - self.mean[:, None]
        whitened = centred * self.whitening if centred.shape[2] == 1 else centred @ self.whitening.mT
        return whitened.square().sum(dim=2)


def principal_components(covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Variances ``k`` and directions ``d k``, largest first, that explain ``share`` of a covariance ``d d``."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    count = int((values.cumsum(0) / values.sum() < share).sum()) + 1
    return values[:count], vectors[:, :count]


def whitening(covariance: Tensor, share: float, shrinkage: float) -> Tensor:
    """``d d``, to multiply vectors by: their distances are then Mahalanobis distances, by a covariance ``d d``.

    Principal components that explain ``share`` of the variance take part, their variances drawn by ``shrinkage`` to the
    mean of all.
    """
    values, vectors = principal_components(covariance, share)
    drawn = (1 - shrinkage) * values + shrinkage * values.mean()
    return vectors / drawn.sqrt() @ vectors.T


def ledoit_wolf(points: Tensor) -> tuple[Tensor, float]:
    """The covariance ``d d`` of ``n d`` (over n), drawn towards a multiple of the identity, and how far, in [0, 1].

    The draw is Ledoit and Wolf's (2004), of least expected squared error.
    """
    n, d = points.shape
    centred = points - points.mean(dim=0)
    covariance = centred.T @ centred / n
    target = covariance.diagonal().mean() * torch.eye(d, dtype=points.dtype, device=points.device)
    off = (covariance - target).square().sum()
    noise = (centred.square().sum(dim=1).square().mean() - covariance.square().sum()) / n
    share = 0.0 if off <= 0 else float((noise / off).clamp(0, 1))
    return (1 - share) * covariance + share * target, share
