"""MeDS, InReaCh, whitened memories and PatchCore's ensemble against NumPy, SciPy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from blemish.backbones.backbone import build_backbone
from blemish.errors import ConfigError, DataError
from blemish.methods.inreach import lies_alike, mutual_neighbours, recurring
from blemish.methods.patchcore import PatchCore, PatchCoreConfig
from blemish.ops.gaussian import whitening
from blemish.run import Run


@pytest.fixture
def pile(tiny_images, planted):
    """Fourteen good images and, as the last two, bad ones whose blots differ in place."""
    images = tiny_images(16)
    images.images[-2:-1] = planted(images.images[-2:-1])
    images.images[-1:] = planted(images.images[-1:].flip(2)).flip(2)
    return images


@pytest.fixture
def described(tiny_backbone):
    """``described(images)``: PatchCore's patch vectors, which have tests of their own, ``b p d`` in float64."""
    backbone = tiny_backbone()
    patches = PatchCore(backbone, (64, 64), PatchCoreConfig()).patches
    return lambda images: patches(backbone(images)).flatten(1, 2).double().numpy()


# MeDS


def test_meds_averages_distances_to_random_tenths(learned, pile, described, tiny_images, planted, enlarged):
    run = Run(seed=2)
    method, draws = learned("meds", images=pile, run=run), run.generator("banks")
    known, seen = described(pile.images).reshape(-1, 24), planted(tiny_images(2, seed=5).images)
    distances = np.zeros((10, 2, 64))
    for bank in distances:
        drawn = torch.randperm(1024, generator=draws)[:102].numpy()
        bank[:] = [cdist(one, known[drawn]).min(axis=1) for one in described(seen)]
    found, expected = method(seen), distances.mean(axis=0)
    np.testing.assert_allclose(found.score, expected.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.map, enlarged(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["meds", "inreach"])
def test_a_defect_that_lay_in_the_pile_is_found_again(name, learned, pile):
    scores = learned(name, images=pile)(pile.images).score
    assert scores[-2:].min() > scores[:-2].max()


# InReaCh


def reference_channels(points, order, seeds):
    """A patch and its channel, pair by pair, by brute force."""
    p, found = points.shape[1], set()
    for number, seed in enumerate(order[:seeds]):
        found |= {(seed * p + i, number * p + i) for i in range(p)}
    for at, image in enumerate(order):
        for patch in range(p):
            matches = []
            for number, seed in enumerate(order[: min(seeds, at)]):
                between = cdist(points[seed], points[image])
                head = between[:, patch].argmin()
                is_mutual = between[head].argmin() == patch
                matches.append((between[head, patch], number * p + head, is_mutual))
            if matches and min(matches)[2]:
                found.add((image * p + patch, min(matches)[1]))
    return found


def test_mutual_neighbours_are_those_of_brute_force():
    points = np.random.default_rng(0).normal(size=(7, 9, 3))
    order = [3, 0, 6, 1, 5, 2, 4]
    patches, channels = mutual_neighbours(torch.from_numpy(points), order, 3)
    found = list(zip(patches.tolist(), channels.tolist()))
    assert len(found) == len(set(found))
    assert set(found) == reference_channels(points, order, 3)


def test_small_channels_and_far_patches_are_dropped():
    points = np.random.default_rng(1).normal(scale=0.01, size=(40, 2))
    points[29] += 7  # of thirty in channel 0, one whose distance from the mean is beyond five deviations of theirs
    points[33] += 7  # of four in channel 5, one that does not
    channels = torch.tensor([0] * 30 + [5] * 4 + [6] * 3 + [9] * 3)
    patches = torch.arange(40).flip(0)
    own = torch.arange(40)  # each of a part of its own
    kept = recurring(torch.from_numpy(points).flip(0), patches, channels, own, members=4, spread=5.0)
    assert kept.tolist() == sorted(39 - i for i in range(34) if i != 29)
    assert len(recurring(torch.from_numpy(points), patches, channels, own, members=31, spread=5.0)) == 0
    circle = torch.view_as_real(torch.exp(2j * torch.pi * torch.arange(8) / 8))  # all equally far from their mean
    assert len(recurring(circle, patches[-8:], channels[:8], own, members=4, spread=5.0)) == 0
    assert len(recurring(circle, patches[-8:], channels[:8], own, members=4, spread=1e9)) == 8
    copies = own // 4  # four in turn are one part's, as copies turned are: of channel 5 there are two parts then
    kept = recurring(torch.from_numpy(points).flip(0), patches, channels, copies, members=4, spread=5.0)
    assert kept.tolist() == sorted(39 - i for i in range(30) if i != 29)


def test_parts_lie_alike_where_the_mean_image_is_unlike_its_transpose(tiny_images):
    images = tiny_images(3, (64, 96))
    images.images[:] = 0.5
    assert not lies_alike(images, Run())
    images.images[..., :48] += 0.13  # 255 * .13 = 33, on half of the places: 1,099 / 2
    assert not lies_alike(images, Run())
    images.images[..., :48] += 0.06
    assert lies_alike(images, Run())


@pytest.mark.parametrize("alike", [True, False])
def test_inreach_enlarges_without_interpolation_and_knows_places(alike, learned, tiny_images, pile, described):
    if alike:
        pile.images[:, :, :32] *= 0.2
    method = learned("inreach", {"members": 3} if alike else {"members": 3, "place": 0.0}, images=pile)
    assert method.reach == (5 if alike else 0)
    images = tiny_images(2, seed=5).images
    rows, columns = np.mgrid[:8, :8].reshape(2, -1) / 7 * float(method.reach)
    places = np.broadcast_to(np.stack([rows, columns], axis=1), (2, 64, 2))
    remembered = (method.memory.points + method.memory.centre).double().numpy()
    vectors = np.concatenate([described(images), places], axis=2)
    coarse = np.array([cdist(one, remembered, "sqeuclidean").min(axis=1) for one in vectors])
    maps = [gaussian_filter(np.kron(one.reshape(8, 8), np.ones((8, 8))), 13.0) for one in coarse]
    found = method(images)
    np.testing.assert_allclose(found.map, maps, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.score, np.max(maps, axis=(1, 2)), rtol=1e-3)
    assert 0 < len(remembered) < 16 * 64


def test_inreach_keeps_as_many_as_it_is_told_and_says_when_nothing_recurs(learned, pile):
    assert len(learned("inreach", {"memory": 50}, images=pile).memory) == 50
    with pytest.raises(DataError, match="was given 3 images, where it needs at least 4"):
        learned("inreach", count=3)
    with pytest.raises(DataError, match=r"recur in 16 images or more.* none does.*softpatch"):
        learned("inreach", {"members": 16, "spread": 1e-3}, images=pile)


@pytest.mark.parametrize("name", ["meds", "inreach"])
def test_a_pile_that_memory_cannot_hold_is_refused_with_the_way_out(name, learned, monkeypatch):
    monkeypatch.setattr(f"blemish.methods.{name}.available_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=f"{name} .* every patch of 8 images, which takes .*: give fewer images"):
        learned(name)


# Whitened memories


def test_whitening_is_by_the_shrunk_covariance():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    covariance = np.cov(points.T)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 6 * np.eye(6)
    whitened = points[:9] @ whitening(torch.from_numpy(covariance), 1 - 1e-12, 0.1).numpy()
    np.testing.assert_allclose(
        cdist(whitened, whitened), cdist(points[:9], points[:9], "mahalanobis", VI=np.linalg.inv(shrunk))
    )


def test_whitened_distances_are_scikit_learn_s(learned, tiny_images, planted, described):
    train, seen = tiny_images(5), planted(tiny_images(2, seed=5).images)
    method = learned("patchcore", {"fraction": 1.0, "whitened": 0.07}, images=train)
    known = described(train.images).reshape(-1, 24)
    pca = PCA(0.99, svd_solver="full").fit(known)
    deviations = np.sqrt(0.93 * pca.explained_variance_ + 0.07 * pca.explained_variance_.mean())
    nearest = [
        cdist(pca.transform(one) / deviations, pca.transform(known) / deviations, "sqeuclidean").min(axis=1)
        for one in described(seen)
    ]
    np.testing.assert_allclose(method(seen).score, np.max(nearest, axis=1), rtol=1e-3)


# The ensemble


@pytest.fixture
def joined(learned, tiny_images, tiny_backbone):
    """An ensemble of the tiny backbone and timm's miniature, and each member's PatchCore of the images not held out."""
    settings, train, run = {"fraction": 0.5}, tiny_images(10), Run(seed=1)
    order = run.permutation(10, "images held out")
    kept, held = tiny_images(8), train.images[order[:2]]
    kept.images[:] = train.images[order[2:]]
    backbones = (tiny_backbone(), build_backbone("test_resnet", (2, 3), "random", 1))
    alone = [learned("patchcore", settings, images=kept, run=run, backbone=backbone) for backbone in backbones]
    further = {"backbones": ("test_resnet",), "weights": "random"}
    return learned("ensemble", {**settings, **further}, images=train, run=run), alone, held


def test_an_ensemble_without_parts_to_hold_out_is_refused(learned):
    further = {"backbones": ("test_resnet",), "weights": "random"}
    with pytest.raises(DataError, match="of 4 none can be held out: give more good parts, or use patchcore"):
        learned("ensemble", further, count=4)


def test_an_ensemble_s_members_are_patchcores_scaled_by_good_images_held_out(joined, tiny_images, planted):
    ensemble, alone, held = joined
    images = planted(tiny_images(3, seed=7).images)
    found, score, map_ = ensemble(images), np.zeros(3), np.zeros((3, 64, 64))
    for member in alone:
        usual, own = member(held), member(images)
        scores, maps = usual.score.double().numpy(), usual.map.double().numpy()
        score += (own.score.numpy() - scores.mean()) / max(scores.std(), scores.mean() / 10) / 2
        map_ += (own.map.numpy() - maps.mean()) / max(maps.std(), maps.mean() / 10) / 2
    np.testing.assert_allclose(found.score, score, rtol=1e-3)
    np.testing.assert_allclose(found.map, map_, rtol=1e-3, atol=1e-3)


def test_an_ensemble_may_be_scaled_by_the_test_set_and_comes_back_from_a_file(joined, tiny_images, planted):
    ensemble, alone, _ = joined
    test = tiny_images(5, seed=8)
    test.images[:2] = planted(test.images[:2])
    ensemble.see_test(test)
    scores = [member(test.images).score.numpy() for member in alone]
    scaled = [(own - own.min()) / (own.max() - own.min()) for own in scores]
    found = ensemble(test.images)
    np.testing.assert_allclose(found.score, np.mean(scaled, axis=0), atol=1e-4)
    again = type(ensemble)(ensemble.backbone, ensemble.size, ensemble.config)
    again.load_fitted(ensemble.state_dict())
    assert torch.equal(again(test.images).map, found.map)


def test_a_further_backbone_that_is_unknown_is_named(learned):
    with pytest.raises(ConfigError, match=r"no backbone 'test_resnat'.*test_resnet"):
        learned("ensemble", {"backbones": ("test_resnat",), "weights": "random"})
