from itertools import islice

import numpy as np
import pytest
import torch

from blemish.errors import ConfigError
from blemish.ops.coreset import farthest_first, first_distances, random_projection, size_of_coreset


def points_of(n, m, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


def literal(points, count, first, weights=None):
    """The greedy rule in float64, one pick at a time; also the covering radius after each pick."""
    points = np.asarray(points, dtype=np.float64)
    distances = np.sqrt(np.asarray(first, dtype=np.float64))
    weights = np.ones(len(points)) if weights is None else np.asarray(weights, dtype=np.float64)
    picks = []
    for _ in range(count):
        best = int(distances.argmax())
        if distances[best] == 0:
            break
        picks.append(best)
        distances = np.minimum(distances, weights * np.linalg.norm(points - points[best], axis=1))
        distances[best] = 0
    return picks


def starts(points, start="approximate", seed=1):
    return first_distances(points, start, 10, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("start", ["approximate", "exact"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_picks_are_those_of_the_literal_rule_whatever_a_blocks_size(start, offset):
    points = points_of(500, 24) + offset
    first = starts(points, start)
    before = first.clone()
    expected = literal(points, 200, first)
    for block in (1, 2, 37, 500, 1024):
        assert list(farthest_first(points, 200, first, block=block)) == expected
    assert torch.equal(first, before)
    assert list(islice(farthest_first(points, 200, first), 5)) == expected[:5]
    with pytest.raises(ConfigError, match="500 points"):
        next(farthest_first(points, 2, first[1:]))


def test_the_lowest_index_is_taken_among_equals():
    corners = torch.eye(40) * 4  # every two are equally far apart
    assert list(farthest_first(corners, 12, torch.full((40,), 7.0), block=8)) == list(range(12))


def test_duplicates_end_the_picks_early():
    distinct = points_of(25, 10) * 3 + 1
    points = distinct.repeat(8, 1)
    picks = list(farthest_first(points, 100, starts(points)))
    assert sorted(p % 25 for p in picks) == list(range(25))
    assert list(farthest_first(torch.ones(50, 4), 5, torch.ones(50))) == [0]


def test_starts_are_mean_distances_to_random_points_and_norms_of_the_distances_to_all():
    points = points_of(60, 7) + 3
    between = np.linalg.norm(points[:, None].numpy() - points[None].numpy(), axis=2)
    drawn = torch.randperm(60, generator=torch.Generator().manual_seed(9))[:10].numpy()
    found = first_distances(points, "approximate", 10, torch.Generator().manual_seed(9))
    np.testing.assert_allclose(found.sqrt().numpy(), between[:, drawn].mean(axis=1), rtol=1e-5)
    found = first_distances(points, "exact", 10, torch.Generator())
    np.testing.assert_allclose(found.sqrt().numpy(), np.linalg.norm(between, axis=1), rtol=1e-5)


def test_weights_multiply_distances_and_zero_excludes_all_but_a_first_pick():
    points = points_of(300, 8)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(4))
    weights[::3] = 0
    first = starts(points)
    found = list(farthest_first(points, 80, first, weights))
    assert found == literal(points, 80, first, weights)
    assert all(p % 3 for p in found[1:])


def test_size_is_a_share_rounded_down_and_at_least_one_or_a_number():
    cases = [(1000, 0.1, 7), (999, 0.1, 7), (30, 0.01, 7), (5, 1, 7), (5, None, 7), (50, None, 7)]
    assert [size_of_coreset(*case) for case in cases] == [100, 99, 1, 5, 5, 7]


def test_projection_is_a_fresh_linear_layers_weights():
    matrix = random_projection(400, 128, torch.Generator().manual_seed(0))
    assert matrix.shape == (400, 128)
    assert float(matrix.abs().max()) <= 1 / 20
    assert float(matrix.var()) == pytest.approx(1 / 400 / 3, rel=0.02)  # uniform in +-1/sqrt(d)
    assert random_projection(256, 128, torch.Generator()) is None


def test_points_that_waited_make_up_for_all_picks_they_missed(monkeypatch):
    monkeypatch.setattr("blemish.ops.coreset.BLOCK", 16)  # so that what was missed spans several portions
    monkeypatch.setattr("blemish.ops.coreset.ROWS", 30)
    # one wide cloud and one narrow one: the narrow one's points wait until picks have become that fine
    points = torch.cat([points_of(200, 6) * 10, points_of(200, 6, seed=1) + 3])
    first = starts(points)
    found = list(farthest_first(points, 250, first, block=16))
    assert found == literal(points, 250, first)
    assert sum(p >= 200 for p in found[:100]) < 10 < sum(p >= 200 for p in found)


@pytest.mark.parametrize("seed", range(8))
def test_lattices_full_of_ties_follow_the_lowest_index(seed):
    # whole coordinates around a mean of zero: all distances are exact, and many are equal
    half = torch.randint(-3, 4, (80, 3), generator=torch.Generator().manual_seed(seed)).float()
    points = torch.cat([half, -half])
    found = list(farthest_first(points, 160, torch.full((160,), 99.0), block=13))
    assert found == literal(points, 160, torch.full((160,), 99.0))
