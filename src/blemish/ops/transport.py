"""Optimal transport between feature clouds: RD++'s SSOT loss, as its paper reads and as its code computes it.

The debiased Sinkhorn divergence S(a, b) = OT(a, b) - OT(a, a)/2 - OT(b, b)/2, with entropic OT, cost |x - y|^2 / 2 and
uniform weights. Potentials are found in the log domain while the temperature falls from diameter^2 to blur^2, and the
gradient is taken at the last update with the potentials before it held fixed (Feydy et al., Interpolating between
Optimal Transport and MMD using Sinkhorn Divergences, AISTATS 2019). All is float32 outside autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Cooling:
    """From which temperature to which, and how fast.

    Attributes:
        blur: square root of the last temperature, a distance.
        diameter: square root of the first one: no two points should be further apart.
        scaling: by which the square root of the temperature is multiplied at each update.
    """

    blur: float = 0.05
    diameter: float = 2.0
    scaling: float = 0.9

    def temperatures(self) -> list[float]:
        """Falling, the first and the last in any case."""
        updates = math.ceil(math.log(self.blur / self.diameter) / math.log(self.scaling))
        between = [(self.diameter * self.scaling**update) ** 2 for update in range(updates)]
        return [self.diameter**2, *between, self.blur**2]


PAIRED = Cooling()
"""Between unit vectors, which are at most 2 apart."""
RELEASED = Cooling(diameter=1e7, scaling=0.95)
"""What the released code sets."""


def sinkhorn_divergence(one: Tensor, other: Tensor, cooling: Cooling = PAIRED) -> Tensor:
    """``b``: how far each cloud of ``one`` is from its counterpart; 0 where both hold the same points.

    Args:
        one: ``b n d``, points of equal weight.
        other: ``b m d``.
        cooling: of the annealing.
    """
    with torch.autocast(one.device.type, enabled=False):
        one, other = one.float(), other.float()
        return transport(one, other, cooling) - own_transport(one, cooling) - own_transport(other, cooling)


def transport(one: Tensor, other: Tensor, cooling: Cooling = PAIRED) -> Tensor:
    """``b``: the entropic cost of moving ``one`` (``b n d``) onto ``other`` (``b m d``), in its dual form."""
    there, back = _costs(one, other.detach()), _costs(other, one.detach())
    with torch.no_grad():
        f, g = there.new_zeros(there.shape[:2]), back.new_zeros(back.shape[:2])
        for step, temperature in enumerate(cooling.temperatures()):
            share = 0.5 if step else 1.0  # the first update has nothing to be averaged with
            f_new, g_new = _softmin(there, g, temperature), _softmin(back, f, temperature)
            f, g = torch.lerp(f, f_new, share), torch.lerp(g, g_new, share)
    last = cooling.blur**2
    return _softmin(there, g, last).mean(dim=1) + _softmin(back, f, last).mean(dim=1)


def own_transport(points: Tensor, cooling: Cooling = PAIRED) -> Tensor:
    """``b``: half the entropic cost of moving each cloud ``b n d`` onto itself, with half of its gradient."""
    costs = _costs(points, points.detach())
    with torch.no_grad():
        p = costs.new_zeros(costs.shape[:2])
        for step, temperature in enumerate(cooling.temperatures()):
            p = torch.lerp(p, _softmin(costs, p, temperature), 0.5 if step else 1.0)
    return _softmin(costs, p, cooling.blur**2).mean(dim=1)


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
    found = []
    for map_ in maps:
        rows, columns = map_.shape[2:]
        chosen = torch.randperm(rows * columns, generator=generator)[:locations].to(map_.device)
        with torch.autocast(map_.device.type, enabled=False):
            cloud = F.normalize(map_[:, :, chosen // columns, chosen % columns].transpose(1, 2).float(), dim=-1)
            own = own_transport(cloud)  # a permutation: each is needed once as itself and once as a partner
            found.append((transport(cloud, cloud[partners.to(map_.device)]) - 2 * own).mean())
    return torch.stack(found).mean()


def released_transport(maps: Sequence[Tensor], order: Tensor) -> Tensor:
    """A scalar, summed over levels, that is zero up to rounding, and so is its gradient: what RD++'s code computes.

    Every image is one point, the softmax over its whole map, and the batch is compared with itself in another order:
    the same points.

    Args:
        maps: ``b c y x``, a level each.
        order: ``b``, a permutation.
    """
    found = []
    for map_ in maps:
        points = map_.float().flatten(1).softmax(dim=1)
        found.append(sinkhorn_divergence(points[None], points[order.to(map_.device)][None], RELEASED).sum())
    return torch.stack(found).sum()


def _costs(one: Tensor, other: Tensor) -> Tensor:
    """``b n m``: half the squared distances."""
    squares = one.square().sum(dim=-1)[:, :, None] + other.square().sum(dim=-1)[:, None]
    return squares / 2 - one @ other.transpose(1, 2)


def _softmin(costs: Tensor, potential: Tensor, temperature: float) -> Tensor:
    """``b n``: the smoothed minimum over m of costs ``b n m`` less a potential ``b m``."""
    values = potential / temperature - math.log(costs.shape[2])
    return -temperature * torch.logsumexp(torch.sub(values[:, None, :], costs, alpha=1 / temperature), dim=2)
