import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from blemish.ops import neighbours
from blemish.ops.neighbours import Neighbours


def points_of(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def brute_force(queries, points, k):
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points.double().numpy())
    distances, indices = search.kneighbors(queries.double().numpy())
    return distances**2, indices


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_equals_brute_force_in_float64(k, offset):
    points, queries = points_of(700, 48) + offset, points_of(90, 48, seed=1) + offset
    distances, indices = Neighbours(points)(queries, k)
    expected, expected_indices = brute_force(queries, points, k)
    assert (indices.numpy() == expected_indices).all()
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-5 if offset == 0 else 2e-4)


def test_crowds_that_the_product_cannot_tell_apart_are_measured_directly():
    # 400 points within 1e-4 of each other, 100 away from the others: far below the rounding of the product
    crowd = 100 + 1e-4 * points_of(400, 16)
    points = torch.cat([crowd, points_of(300, 16, seed=1)])
    queries = crowd[::7] + 1e-5 * points_of(58, 16, seed=2)
    expected, _ = brute_force(queries, points, 2)
    distances, indices = Neighbours(points)(queries, 2)
    chosen = ((queries[:, None].double() - points[indices].double()) ** 2).sum(dim=2)
    # vectors near 100 have a spacing of 7.6e-6, so what centring rounds is about a tenth of these distances
    np.testing.assert_allclose(chosen.numpy(), expected, rtol=0.05, atol=1e-9)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=0.3, atol=2e-9)


def test_the_check_is_what_makes_the_product_right():
    pairs = 1000 + points_of(400, 12)
    points = torch.cat([pairs, pairs + 2e-4 * points_of(400, 12, seed=2), points_of(1, 12)])  # far from their centre
    queries = pairs + 1e-4 * points_of(400, 12, seed=1)
    memory = Neighbours(points)
    memory.centre.zero_()  # without centring the product has only a few digits
    memory.points.copy_(points)
    memory.norms.copy_(points.square().sum(dim=1))
    by_product = memory._product(queries).argmin(dim=1)
    expected = brute_force(queries, points, 1)[0][:, 0]
    chosen = ((queries.double() - points[by_product].double()) ** 2).sum(dim=1)
    assert (chosen.numpy() > 2 * expected + 1e-9).sum() > 100
    np.testing.assert_allclose(memory(queries, 1)[0][:, 0].numpy(), expected, rtol=1e-3, atol=1e-12)


def test_portions_and_queries_alone_give_the_same(monkeypatch):
    points, queries = points_of(200, 20), points_of(33, 20, seed=1)
    memory = Neighbours(points)
    together = memory(queries, 2)
    monkeypatch.setattr(neighbours, "PRODUCT_BYTES", 4 * 200 * 5)
    in_portions = memory(queries, 2)
    torch.testing.assert_close(together[0], in_portions[0])
    assert torch.equal(together[1], in_portions[1])
    assert torch.equal(memory(queries[7:8], 2)[1], together[1][7:8])


def test_all_points_where_there_are_fewer_than_asked_for():
    distances, indices = Neighbours(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))(torch.tensor([[3.0, 3.0]]), k=5)
    assert indices.tolist() == [[1, 0]]
    torch.testing.assert_close(distances, torch.tensor([[1.0, 18.0]]))


def test_smallest_finds_what_a_full_sort_finds():
    for n in (1, 40, 511, 2048, 4999):
        values = points_of(7, n)
        for count in (1, min(4, n), min(16, n)):
            chosen, columns = neighbours.smallest(values, count)
            np.testing.assert_array_equal(chosen.numpy(), np.sort(values.numpy(), axis=1)[:, :count])
            np.testing.assert_array_equal(values.gather(1, columns).numpy(), chosen.numpy())
