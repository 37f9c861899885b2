"""Sinkhorn divergences against an independent solver; what each form of SSOT is, and is worth."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blemish.ops.sinkhorn import (
    paired_transport,
    random_places,
    released_transport,
    sinkhorn_divergence,
    transport_of_all,
)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("blur", [0.2, 0.5])
def test_the_divergence_is_that_of_an_independent_solver(blur, divergence_by_numpy):
    x, y = F.normalize(random(0, 2, 7, 3), dim=-1), F.normalize(random(1, 2, 5, 3) + 0.5, dim=-1)
    found = sinkhorn_divergence(x, y, blur, scaling=0.99)
    for value, a, b in zip(found, x.double().numpy(), y.double().numpy()):
        assert float(value) == pytest.approx(divergence_by_numpy(a, b, blur), rel=2e-3)


@pytest.mark.parametrize("images", [2, 7, 16])
def test_the_released_form_vanishes_with_its_gradient_and_the_paired_one_does_not(images):
    order = torch.randperm(images, generator=torch.Generator().manual_seed(4)).roll(1)
    maps = [random(level, images, 8 * 2**level, 16 // 2**level, 16 // 2**level).requires_grad_() for level in range(3)]
    released = released_transport(maps, order)
    gradients = torch.autograd.grad(released, maps)
    assert abs(float(released.detach())) < 1e-6
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6

    partners = torch.arange(images).roll(1)
    paired = paired_transport(maps, partners, random_places(maps, torch.Generator().manual_seed(0), 64))
    gradients = torch.autograd.grad(paired, maps)
    assert float(paired.detach()) > 0.01
    assert min(float(gradient.abs().max()) for gradient in gradients) > 1e-5


def test_paired_is_the_mean_divergence_of_unit_vectors_over_pairs_and_levels():
    maps = [random(7, 3, 5, 4, 6), random(8, 3, 9, 2, 3)]
    partners = torch.tensor([2, 0, 1])
    expected = []
    for map_ in maps:
        clouds = F.normalize(map_.permute(0, 2, 3, 1).flatten(1, 2), dim=-1)
        expected.append([float(sinkhorn_divergence(clouds[[i]], clouds[[j]])) for i, j in enumerate(partners.tolist())])
    found = paired_transport(maps, partners, random_places(maps, torch.Generator().manual_seed(0), 24))
    assert float(found) == pytest.approx(np.mean([np.mean(level) for level in expected]), rel=1e-4)


def test_the_paper_s_form_sums_over_all_pairs_both_ways(divergence_by_numpy):
    maps = [3 * random(7, 3, 5, 2, 3), 3 * random(8, 3, 4, 2, 2)]
    expected = []
    for map_ in maps:
        vectors = map_.double().permute(0, 2, 3, 1).flatten(1, 2).numpy()
        clouds = np.exp(vectors) / np.exp(vectors).sum(axis=-1, keepdims=True)
        expected.append(sum(divergence_by_numpy(a, b, 0.05) for a in clouds for b in clouds) / 3)
    found = transport_of_all(maps, random_places(maps, torch.Generator().manual_seed(0), 24))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-2)
    assert float(transport_of_all([maps[0][:1]], random_places([maps[0][:1]], torch.Generator(), 64))) == 0


def unit_clouds(map_):
    vectors = map_.detach().double().permute(0, 2, 3, 1).flatten(1, 2).numpy()
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def nearby_images():
    """Two images of like features, between which a coarser blur would see less."""
    return torch.ones(2, 4, 2, 3) + 0.3 * random(0, 2, 4, 2, 3)


def test_paired_sees_as_sharply_as_a_blur_of_a_twentieth(divergence_by_numpy):
    map_ = nearby_images()
    exact = [divergence_by_numpy(*unit_clouds(map_), blur) for blur in (0.05, 0.1, 0.5)]
    assert exact == pytest.approx([0.02754, 0.02511, 0.00879], rel=1e-3)
    found = paired_transport([map_], torch.tensor([1, 0]), random_places([map_], torch.Generator().manual_seed(0), 64))
    assert float(found) == pytest.approx(exact[0], rel=5e-3)


@pytest.mark.parametrize("entry", [(0, 0, 0, 0), (0, 2, 1, 1), (1, 1, 0, 2), (1, 3, 1, 0)])
def test_paireds_gradient_reaches_both_images_as_finite_differences_have_it(entry, divergence_by_numpy):
    map_ = nearby_images().requires_grad_()
    paired_transport(
        [map_], torch.tensor([1, 0]), random_places([map_], torch.Generator().manual_seed(0), 64)
    ).backward()
    values = []
    for step in (1e-3, -1e-3):
        moved = map_.detach().double().clone()
        moved[entry] += step
        values.append(divergence_by_numpy(*unit_clouds(moved), 0.05))
    expected = (values[0] - values[1]) / 2e-3
    assert abs(expected) > 1e-3
    assert float(map_.grad[entry]) == pytest.approx(expected, rel=0.05)


def test_paired_needs_no_more_than_so_many_places_the_same_for_all_images():
    map_ = random(9, 4, 6, 8, 8).requires_grad_()
    value = paired_transport(
        [map_], torch.tensor([1, 2, 3, 0]), random_places([map_], torch.Generator().manual_seed(3), 10)
    )
    touched = torch.autograd.grad(value, map_)[0].abs().sum(dim=1) > 0
    assert int(touched[0].sum()) == 10 and all(torch.equal(one, touched[0]) for one in touched)


def test_bf16_maps_are_compared_in_float32():
    map_ = random(10, 4, 16, 4, 4)
    partners = torch.tensor([1, 0, 3, 2])
    exact = paired_transport(
        [map_.bfloat16().float()],
        partners,
        random_places([map_.bfloat16().float()], torch.Generator().manual_seed(0), 64),
    )
    with torch.autocast("cpu", torch.bfloat16):
        short = paired_transport(
            [map_.bfloat16()], partners, random_places([map_.bfloat16()], torch.Generator().manual_seed(0), 64)
        )
    assert short.dtype == torch.float32 and float(short) == pytest.approx(float(exact), rel=1e-6)
