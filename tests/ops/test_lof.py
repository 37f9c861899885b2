import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor

from blemish.ops import lof
from blemish.ops.lof import local_outlier_factors, nearest_others


def reference(points, k):
    """scikit-learn's factors, set by set."""
    models = [LocalOutlierFactor(n_neighbors=min(k, points.shape[1] - 1)).fit(one) for one in points.double().numpy()]
    return -np.stack([model.negative_outlier_factor_ for model in models])


def drawn(*shape, seed=0, offset=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.mark.parametrize("k", [1, 5, 60])  # of 39 others
def test_factors_are_those_of_scikit_learn(k):
    points = drawn(7, 40, 16)
    points[:, 3] += 4  # one far off in every set
    expected = reference(points, k)
    np.testing.assert_allclose(local_outlier_factors(points, k).numpy(), expected, rtol=1e-5)
    assert k > 39 or expected[:, 3].min() > 1.5
    points = 0.01 * points + 100.0  # close together and far from zero
    np.testing.assert_allclose(local_outlier_factors(points, k).numpy(), reference(points, k), rtol=1e-4)


def test_clusters_of_different_scale():
    tight, wide = 0.01 * drawn(1, 30, 8, seed=1), 5 * drawn(1, 30, 8, seed=2) + 50
    points = torch.cat([tight, wide, torch.full((1, 1, 8), 0.3)], dim=1)
    factors = local_outlier_factors(points, 5, least=0)
    np.testing.assert_allclose(factors.numpy(), reference(points, 5), rtol=1e-4)
    assert factors[0, -1] > 10 > 2 > factors[0, :60].max()


def test_portions_change_nothing(monkeypatch):
    points = drawn(9, 20, 6, seed=5)
    whole = local_outlier_factors(points)
    monkeypatch.setattr(lof, "PORTION_BYTES", 1)
    seen = []

    def watch(parts):
        seen.append(len(parts))
        return parts

    assert torch.equal(local_outlier_factors(points, watch=watch), whole)
    assert seen == [9]


def test_neighbours_are_the_nearest_of_all_others():
    points = drawn(3, 30, 5, seed=6)
    distances, indices = nearest_others(points, 4)
    between = torch.cdist(points.double(), points.double())
    between.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    expected = between.sort(dim=2)
    assert torch.equal(indices, expected.indices[..., :4])
    torch.testing.assert_close(distances.double(), expected.values[..., :4])


def test_a_set_without_others_and_sets_of_equal_points_are_no_outliers():
    assert torch.equal(local_outlier_factors(drawn(3, 1, 4)), torch.ones(3, 1))
    torch.testing.assert_close(local_outlier_factors(torch.ones(2, 8, 4)), torch.ones(2, 8))


def test_many_equal_points_do_not_make_their_neighbours_factors_endless():
    points = drawn(1, 40, 8, seed=7)
    points[0, :10] = points[0, 0]
    plain, bounded = local_outlier_factors(points, 5, least=0), local_outlier_factors(points, 5)
    assert plain.max() > 1e6
    assert bounded.max() <= 2 / lof.LEAST
    far = plain < 1e3
    torch.testing.assert_close(bounded[far], plain[far], rtol=0.05, atol=0)
    assert far.sum() >= 30
