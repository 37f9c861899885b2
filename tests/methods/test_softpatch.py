import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.neighbors import LocalOutlierFactor

from blemish.methods.patchcore import PatchCore, PatchCoreConfig
from blemish.methods.softpatch import bank_distances, gaussian_distances, nearest_distances
from blemish.run import Run

GOOD, BAD = 14, 2


@pytest.fixture
def pile(tiny_images, planted):
    """Fourteen good images and, as the last two, bad ones whose blots differ in place."""
    images = tiny_images(GOOD + BAD)
    images.images[-2:-1] = planted(images.images[-2:-1])
    images.images[-1:] = planted(images.images[-1:].flip(2)).flip(2)
    return images


@pytest.fixture
def fitted(learned, pile):
    """``fitted(name="softpatch", seed=0, images=pile, **settings)``: a method that has seen the pile."""
    return lambda name="softpatch", seed=0, images=pile, **settings: learned(
        name, settings, images=images, run=Run(seed=seed)
    )


@pytest.fixture
def patches(tiny_backbone, pile):
    """Patch vectors of the pile, ``images cells d``, in float64 NumPy: PatchCore's, which has tests of its own."""
    backbone = tiny_backbone()
    vectors = PatchCore(backbone, (64, 64), PatchCoreConfig()).patches(backbone(pile.images))
    return vectors.flatten(1, 2).double().numpy()


def factors(patches, k=5):
    """``images cells``: scikit-learn's local outlier factors, place by place."""
    places = [-LocalOutlierFactor(n_neighbors=k).fit(one).negative_outlier_factor_ for one in patches.swapaxes(0, 1)]
    return np.stack(places, axis=1)


def remembered(method):
    return (method.memory.points + method.memory.centre).double().numpy()


def sources(method, patches):
    """The number, image by image, of the patch that each remembered vector is."""
    flat = patches.reshape(-1, patches.shape[2])
    gaps = ((remembered(method)[:, None] - flat[None]) ** 2).sum(axis=2)
    assert gaps.min(axis=1).max() < 1e-8
    return gaps.argmin(axis=1)


def test_left_out_patches_never_enter_the_memory_after_the_first_pick(fitted, patches):
    weights = factors(patches).ravel()
    left_out = weights > np.quantile(weights, 0.85)
    assert left_out.sum() == 154  # of 1,024, the quantile interpolated
    for seed in range(3):
        chosen = sources(fitted(fraction=0.5, seed=seed), patches)
        assert len(chosen) == len(weights) // 2 == len(set(chosen))
        assert not left_out[chosen[1:]].any()
    assert left_out[sources(fitted(fraction=0.5, threshold=0.0), patches)].sum() > 20


def test_the_first_pick_is_the_farthest_whatever_its_weight(fitted, patches):
    """As released: weights act on the distances to picks, and the first one is made before there are any."""
    flat = patches.reshape(-1, patches.shape[2])
    drawn = torch.randperm(len(flat), generator=Run(seed=0).generator("starting points"))[:10].numpy()
    distances = np.linalg.norm(flat[:, None] - flat[None, drawn], axis=2).mean(axis=1)
    first = sources(fitted(fraction=0.1), patches)[0]
    assert first == distances.argmax()
    weights = factors(patches).ravel()
    assert weights[first] > np.quantile(weights, 0.85)


def test_patchcore_remembers_the_planted_defects_and_softpatch_does_not(fitted, patches):
    blots = np.zeros((GOOD + BAD, 8, 8), bool)
    blots[-2, 2:5, 3:6] = blots[-1, 3:6, 3:6] = True  # whose neighbourhoods lie mostly within the blots
    # The first pick is not protected, as released; every other one is.
    assert not blots.ravel()[sources(fitted(fraction=0.1), patches)[1:]].any()
    assert blots.ravel()[sources(fitted("patchcore", fraction=0.1), patches)].sum() >= 3


def test_a_defect_that_lay_in_the_pile_is_found_again(fitted, pile):
    """Both of another image's blots score high for SoftPatch; PatchCore has fitted them."""
    soft, plain = fitted(fraction=0.2)(pile.images).score, fitted("patchcore", fraction=0.2)(pile.images).score
    assert soft[-BAD:].min() > soft[:GOOD].max()
    assert (soft[-BAD:].min() / soft[:GOOD].median()) > 3 * (plain[-BAD:].min() / plain[:GOOD].median())


def test_weights_are_scikit_learns_and_enter_score_and_map(fitted, tiny_images, planted, patches, enlarged):
    method, hard = fitted(fraction=0.3), fitted(fraction=0.3, soft=False)
    weights = factors(patches).ravel()[sources(method, patches)]
    np.testing.assert_allclose(method.weights.numpy(), weights, rtol=1e-4)
    images = planted(tiny_images(2, seed=9).images)
    vectors = method.patches(method.backbone(images)).flatten(1, 2).double().numpy()
    squared = ((vectors[:, :, None] - remembered(method)[None, None]) ** 2).sum(axis=3)
    for one, factor in ((method, weights[squared.argmin(axis=2)]), (hard, 1.0)):
        scores = squared.min(axis=2) * factor
        found = one(images)
        np.testing.assert_allclose(found.score.numpy(), scores.max(axis=1), rtol=1e-4)
        np.testing.assert_allclose(found.map.numpy(), enlarged(scores), rtol=1e-4, atol=1e-5)


def test_vectors_are_projected_once_for_weights_and_choice(fitted, patches):
    method = fitted(fraction=0.25, projection_dim=6)
    bound = 24**-0.5
    matrix = torch.empty(24, 6).uniform_(-bound, bound, generator=Run(seed=0).generator("projection"))
    short = patches @ matrix.double().numpy()
    weights = factors(short).ravel()
    chosen = sources(method, patches)
    np.testing.assert_allclose(method.weights.numpy(), weights[chosen], rtol=1e-3)
    assert not (weights > np.quantile(weights, 0.85))[chosen[1:]].any()


def test_other_weightings():
    points = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(0))
    between = torch.cdist(points, points)
    between.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    torch.testing.assert_close(nearest_distances(points), between.amin(dim=2))
    expected = np.empty((3, 12))
    for p, one in enumerate(points.double().numpy()):
        inverse = np.linalg.inv(np.cov(one, rowvar=False) + 0.01 * np.eye(4))
        expected[p] = [mahalanobis(row, one.mean(axis=0), inverse) for row in one]
    np.testing.assert_allclose(gaussian_distances(points).numpy(), expected, rtol=1e-5)
    assert not nearest_distances(points[:, :1]).any() and not gaussian_distances(points[:, :1]).any()


@pytest.mark.parametrize("weighting", ["nearest", "gaussian"])
def test_other_weightings_are_at_least_one_and_find_the_defect(fitted, tiny_images, planted, weighting):
    method = fitted(fraction=0.2, weighting=weighting)
    assert method.weights.min() >= 1
    good = tiny_images(4, seed=8).images
    assert method(planted(good)).score.min() > method(good).score.max()


def test_one_image_is_a_pile_too(fitted, tiny_images):
    method = fitted(images=tiny_images(1), fraction=0.5)
    assert torch.equal(method.weights, torch.ones(32))


def test_banks_are_tenths_of_all_patches_without_those_of_the_image_itself():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6 * 20, 5)).astype(np.float32)  # six images of twenty patches
    vectors[47] += 20  # of the third image
    generator, expected = torch.Generator().manual_seed(3), np.zeros(120)
    for _ in range(10):
        bank = torch.randperm(120, generator=generator)[:12].numpy()
        for i in range(120):
            others = vectors[bank[bank // 20 != i // 20]]
            expected[i] += np.linalg.norm(others - vectors[i], axis=1).min() / 10
    weights = bank_distances(torch.from_numpy(vectors), 6, torch.Generator().manual_seed(3)).numpy()
    np.testing.assert_allclose(weights, expected / np.sort(expected)[59], rtol=1e-4)
    assert weights.argmax() == 47
