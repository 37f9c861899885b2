"""Perlin noise against its definition, point by point."""

import math

import pytest
import torch

from blemish.ops.perlin import perlin_mask, perlin_noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_definition(size, cells, angles, row, column):
    """Heights that the four slopes around a place imply, blended by 6t^5 - 15t^4 + 10t^3."""
    y, x = row * cells[0] / size[0], column * cells[1] / size[1]
    top, left = int(y), int(x)

    def height(i, j):
        angle = angles[top + i][left + j]
        return math.cos(angle) * (y - top - i) + math.sin(angle) * (x - left - j)

    def blend(a, b, t):
        return a + (6 * t**5 - 15 * t**4 + 10 * t**3) * (b - a)

    upper, lower = (blend(height(i, 0), height(i, 1), x - left) for i in (0, 1))
    return math.sqrt(2) * blend(upper, lower, y - top)


@pytest.mark.parametrize(("size", "cells"), [((16, 24), (4, 2)), ((15, 10), (1, 4))])
def test_noise_is_what_its_definition_says(size, cells):
    angles = (2 * math.pi * torch.rand([n + 1 for n in cells], generator=generator(), dtype=torch.float64)).tolist()
    found = perlin_noise(size, cells, generator())
    for row in range(size[0]):
        for column in range(size[1]):
            assert float(found[row, column]) == pytest.approx(by_definition(size, cells, angles, row, column), abs=1e-9)
    assert found.abs().max() <= 1


def test_a_quarter_turn_turns_the_noise():
    plain, turned = (perlin_noise((33, 33), (4, 4), generator(), turn) for turn in (0.0, math.pi / 2))
    inner = slice(1, -1)  # places on the lattice's border may fall off it by rounding
    torch.testing.assert_close(torch.rot90(plain, -1)[inner, inner], turned[inner, inner], atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (60, 72), (2, 3)])
def test_masks_are_irregular_repeatable_and_of_the_asked_size(size):
    draws = generator(1)
    masks = torch.stack([perlin_mask(size, draws) for _ in range(40)])
    again = generator(1)
    assert torch.equal(masks, torch.stack([perlin_mask(size, again) for _ in range(40)]))
    assert masks.shape == (40, *size) and masks.dtype == torch.bool
    if min(size) >= 8:
        covered = masks.float().mean(dim=(1, 2))
        assert 0 < covered.mean() < 0.3 and covered.max() < 0.7
        assert (perlin_mask(size, generator(3), threshold=0.2) >= perlin_mask(size, generator(3))).all()
