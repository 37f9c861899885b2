"""Simplex noise against the library of that name and the definition; patches against what is published of them."""

from itertools import product

import numpy as np
import pytest
import torch
from opensimplex import OpenSimplex

from blemish.errors import ConfigError
from blemish.ops.simplex import Patches, check_patches, elastic_twins, noise_field, simplex_noise, with_noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", [3, 12345])
def test_simplex_noise_is_the_librarys_but_for_the_far_points_that_it_leaves_out(seed):
    library = OpenSimplex(seed)
    random = np.random.default_rng(seed)
    x, y, z = (np.sort(random.uniform(-40, 40, count)) for count in (14, 9, 5))
    ours = simplex_noise(x, y, z, np.asarray(library._perm))
    theirs = library.noise3array(x, y, z)
    assert ours.shape == theirs.shape == (5, 9, 14)
    assert theirs.std() > 0.15
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.median(np.abs(ours - theirs)) < 1e-12


def test_simplex_noise_is_the_sum_over_every_lattice_point_in_reach():
    permutation = np.random.default_rng(1).permutation(256)
    gradients = [
        [sign * (11 if axis == longest else 4) for axis, sign in enumerate((sx, sy, sz))]
        for sz, sy, sx, longest in product((1, -1), (1, -1), (-1, 1), range(3))
    ]
    random = np.random.default_rng(2)
    for place in random.uniform(-5, 5, (60, 3)):
        total = 0.0
        near = np.floor(place - place.sum() / 6).astype(int)
        for step in product(range(-3, 5), repeat=3):
            point = near + step
            offset = place - (point + point.sum() / 3)
            weight = 2 - offset @ offset
            if weight > 0:
                hashed = permutation[permutation[(permutation[point[0] % 256] + point[1]) % 256] + point[2] & 255]
                total += weight**4 * (np.array(gradients[hashed % 24]) @ offset)
        found = simplex_noise(place[:1], place[1:2], place[2:], permutation)
        assert found.item() == pytest.approx(total / 103, abs=1e-12)


@pytest.mark.parametrize("wavelength", [32, 8])
def test_six_octaves_of_falling_amplitude_from_the_wavelength_on(wavelength, monkeypatch):
    library = OpenSimplex(8)
    permutation = np.asarray(library._perm)
    expected = np.zeros((3, 20, 20))
    for octave, amplitude in enumerate((1, 0.6, 0.36, 0.216, 0.1296, 0.07776)):
        places = np.arange(20) * 2**octave / wavelength
        expected += amplitude * library.noise3array(places, places, places[:3])
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.from_numpy(permutation))
    given = () if wavelength == 32 else (wavelength,)
    field = noise_field(generator(), 20, *given)
    assert field.dtype == torch.float32
    np.testing.assert_allclose(field.numpy(), expected, atol=3e-4)


def rectangles(noisy, images):
    """Top, bottom, left and right of what changed in each image."""
    for changed in (noisy != images).any(dim=1):
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        yield int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def test_sides_are_uniform_from_10_to_31_and_patches_stay_one_pixel_inside():
    images, field = torch.zeros(1, 3, 64, 48).expand(3000, -1, -1, -1), torch.ones(3, 40, 40)
    found = list(rectangles(with_noise(images, field, generator(), Patches()), images))
    for sides, last in (
        ([(bottom - top + 1, top, bottom) for top, bottom, _, _ in found], 63),
        ([(right - left + 1, left, right) for _, _, left, right in found], 47),
    ):
        counts = np.bincount([side for side, _, _ in sides], minlength=32)
        assert counts[:10].sum() == 0 and len(counts) == 32
        expected = 3000 / 22
        assert (((counts[10:] - expected) ** 2) / expected).sum() < 46.8  # chi-square, 21 degrees, one in a thousand
        assert min(start for _, start, _ in sides) == 1
        assert max(end for _, _, end in sides) == last - 1


def test_a_fifth_of_the_field_is_added_unclipped_and_the_images_are_left_alone():
    images = torch.full((4, 3, 40, 40), 0.99)
    kept = images.clone()
    noisy = with_noise(images, torch.full((3, 40, 40), 2.0), generator(), Patches())
    assert torch.equal(images, kept)
    assert sorted({round(float(value), 5) for value in noisy.unique()}) == [0.99, 1.39]
    half = with_noise(images, torch.full((3, 40, 40), 2.0), generator(), Patches(strength=0.1))
    assert float(half.max()) == pytest.approx(1.19)


@pytest.mark.parametrize("at_origin", [True, False])
def test_patches_are_cut_at_random_places_or_always_at_the_first_corner(at_origin):
    field = torch.arange(3 * 50 * 50, dtype=torch.float32).reshape(3, 50, 50)
    images = torch.zeros(20, 3, 64, 64)
    noisy = with_noise(images, field, generator(5), Patches(strength=1.0, at_origin=at_origin))
    corners = set()
    for image, (top, bottom, left, right) in zip(noisy, rectangles(noisy[:, 1:], images[:, 1:])):
        cut = image[:, top : bottom + 1, left : right + 1]
        row, column = divmod(int(cut[1, 0, 0]) - 2500, 50)
        assert torch.equal(cut, field[:, row : row + cut.shape[1], column : column + cut.shape[2]])
        corners.add((row, column))
    assert corners == {(0, 0)} if at_origin else len(corners) > 15


def test_small_images_get_patches_that_fit_and_too_small_ones_are_refused():
    images = torch.zeros(200, 3, 14, 20)
    check_patches((14, 20), Patches())
    noisy = with_noise(images, torch.ones(3, 40, 40), generator(), Patches())
    for top, bottom, left, right in rectangles(noisy, images):
        assert top >= 1 and bottom <= 12 and left >= 1 and right <= 18 and bottom - top + 1 >= 10
    with pytest.raises(ConfigError, match="at least 12 pixels"):
        check_patches((64, 11), Patches())
    with pytest.raises(ConfigError, match="smaller first"):
        check_patches((64, 64), Patches(sides=(20, 10)))


def test_elastic_twins_move_pixels_and_each_its_own():
    image = torch.linspace(0, 1, 64).expand(1, 3, 64, 64).clone()
    torch.manual_seed(0)
    twins = elastic_twins(image.expand(2, 3, 64, 64))
    assert twins.shape == (2, 3, 64, 64)
    assert float(twins.min()) >= 0 and float(twins.max()) <= 1
    assert 0.001 < float((twins[0] - image[0]).abs().mean()) < 0.3
    assert not torch.equal(twins[0], twins[1])
    torch.manual_seed(0)
    torch.testing.assert_close(elastic_twins(image.expand(2, 3, 64, 64)), twins, rtol=0, atol=0)
