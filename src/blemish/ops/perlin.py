"""Perlin noise, and the irregular masks that made-up defects are cut out with (DRAEM and all that follow it).

A coarse lattice of random slopes spans the image; between its points the heights that they imply are blended (Perlin,
2002). All is computed on the CPU in double precision, so that a generator means the same mask for every device.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

EXPONENTS = (0, 5)
"""A lattice has 2**e cells along an axis, with e drawn between these."""


def perlin_noise(size: tuple[int, int], cells: Sequence[int], generator: torch.Generator, turn: float = 0.0) -> Tensor:
    """``h w``, float64, within [-1, 1]: noise on a lattice of ``cells`` (rows, columns), 0 on the lattice's points.

    ``turn`` rotates it about the middle, in radians; where that leaves the lattice the noise is 0.
    """
    angles = 2 * math.pi * torch.rand([count + 1 for count in cells], generator=generator, dtype=torch.float64)
    slopes = torch.stack([angles.cos(), angles.sin()])
    middle = [(length - 1) / 2 for length in size]
    down, right = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) - m for n, m in zip(size, middle)), indexing="ij"
    )
    turned = (math.cos(turn) * down - math.sin(turn) * right, math.sin(turn) * down + math.cos(turn) * right)
    places = torch.stack([(t + m) * n / length for t, m, n, length in zip(turned, middle, cells, size)])
    most = torch.tensor(cells)[:, None, None]
    is_on = ((places >= 0) & (places <= most)).all(dim=0)
    corner = places.floor().long().clamp_min(0).minimum(most - 1)
    total = torch.zeros(size, dtype=torch.float64)
    for row, column in product((0, 1), (0, 1)):
        away = places - corner - torch.tensor([row, column])[:, None, None]
        near = 1 - away.abs()
        weight = (near**3 * (near * (near * 6 - 15) + 10)).prod(dim=0)
        total += weight * (slopes[:, corner[0] + row, corner[1] + column] * away).sum(dim=0)
    return torch.where(is_on, math.sqrt(2) * total, 0.0)


def perlin_mask(size: tuple[int, int], generator: torch.Generator, threshold: float = 0.5) -> Tensor:
    """``h w``, bool, on the CPU: where Perlin noise, turned by up to a quarter either way, is above ``threshold``.

    Each axis draws its own number of cells, 2**e with e uniform over ``EXPONENTS``, both ends included, as long as a
    cell keeps two pixels. The mask may be empty, and often is where there are few cells.
    """
    cells = []
    for length in size:
        most = max(EXPONENTS[0], min(EXPONENTS[1], int(math.log2(length)) - 1))
        cells.append(2 ** int(torch.randint(EXPONENTS[0], most + 1, (), generator=generator)))
    turn = math.pi * (float(torch.rand((), generator=generator, dtype=torch.float64)) - 0.5)
    return perlin_noise(size, cells, generator, turn) > threshold
