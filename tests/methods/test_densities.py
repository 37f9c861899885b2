"""PaDiM, MahalanobisAD, SubspaceAD, SPADE and OCSVM against NumPy, SciPy and scikit-learn; STFPM's rules by hand."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.svm import OneClassSVM

from blemish.backbones.backbone import build_backbone
from blemish.errors import ConfigError, DataError
from blemish.methods import stfpm
from blemish.methods.ocsvm import one_class_svm
from blemish.ops.gaussian import Moments, ledoit_wolf
from blemish.run import Run, Silent

IMAGE_LEVEL = ("mahalanobis", "ocsvm")
DENSITIES = ("padim", *IMAGE_LEVEL)
UNTRAINED = (*DENSITIES, "spade", "subspacead")


def joined(backbone, images, mode):
    """All levels on the first one's grid: ``b c y x`` in float64."""
    first, *others = (level.double() for level in backbone(images))
    corners = {} if mode == "nearest" else {"align_corners": False}
    return torch.cat([first, *(F.interpolate(m, size=first.shape[2:], mode=mode, **corners) for m in others)], dim=1)


def pooled(backbone, images):
    return [level.double().mean(dim=(2, 3)).numpy() for level in backbone(images)]


# PaDiM


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_padim_s_map_is_the_distance_from_each_place_s_gaussian(
    covariance, learned, tiny_backbone, tiny_images, enlarged
):
    run = Run(seed=4)
    method = learned("padim", {"channels": 5, "covariance": covariance}, count=12, run=run)
    drawn = torch.randperm(24, generator=run.generator("channels"))[:5].sort().values
    assert method.drawn.tolist() == drawn.tolist()
    train, images = tiny_images(12).images, tiny_images(2, seed=9).images
    known, seen = (joined(tiny_backbone(), i, "nearest")[:, drawn].flatten(2).numpy() for i in (train, images))
    scores = np.empty((2, 64))
    for place in range(64):
        spread = np.cov(known[:, :, place].T) + 0.01 * np.eye(5)
        spread = np.diag(np.diag(spread)) if covariance == "diagonal" else spread
        inverse, mean = np.linalg.inv(spread), known[:, :, place].mean(axis=0)
        scores[:, place] = [mahalanobis(one[:, place], mean, inverse) for one in seen]
    found = method(images)
    np.testing.assert_allclose(found.map.numpy(), enlarged(scores), rtol=1e-4)
    torch.testing.assert_close(found.score, found.map.amax(dim=(1, 2)))


def test_padim_keeps_what_the_paper_counts(learned):
    full, diagonal = (learned("padim", {"channels": 100, "covariance": c}) for c in ("full", "diagonal"))
    assert (
        full.gaussians.whitening.numel() == 64 * 24 * 24
    )  # of the tiny backbone's 24 channels: all, as they are fewer
    assert diagonal.gaussians.whitening.numel() == 64 * 24


def test_padim_says_what_memory_it_lacks(learned, monkeypatch):
    monkeypatch.setattr("blemish.methods.padim.available_memory", lambda: 100_000)
    with pytest.raises(
        ConfigError, match=r"24 channels at each of 64 places, which takes 0\.0 GB .*covariance=diagonal"
    ):
        learned("padim")
    learned("padim", {"covariance": "diagonal"})


def test_moments_in_portions_are_numpy_s_far_from_zero_too():
    points = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(1)) * 0.01 + 1000
    moments = Moments()
    for portion in points.split(7, dim=1):
        moments.add(portion)
    means, covariances = (torch.cat(parts) for parts in zip(*moments.portions()))
    np.testing.assert_allclose(means, points.double().mean(dim=1), rtol=1e-12)
    np.testing.assert_allclose(covariances, [np.cov(p.T) for p in points.double().numpy()], rtol=1e-8, atol=1e-14)


# MahalanobisAD


@pytest.mark.parametrize("shape", [(12, 30), (60, 5)])
def test_shrinkage_is_scikit_learn_s(shape):
    points = np.random.default_rng(0).normal(size=shape) @ np.diag(np.linspace(0.1, 3, shape[1]))
    covariance, share = ledoit_wolf(torch.from_numpy(points))
    theirs = LedoitWolf().fit(points)
    assert share == pytest.approx(theirs.shrinkage_)
    np.testing.assert_allclose(covariance, theirs.covariance_, atol=1e-12)


def test_mahalanobis_sums_the_levels_distances(learned, tiny_backbone, tiny_images, planted):
    images = planted(tiny_images(3, seed=5).images)
    expected = np.zeros(3)
    for known, seen in zip(*(pooled(tiny_backbone(), i) for i in (tiny_images(20).images, images))):
        expected += np.sqrt(LedoitWolf().fit(known).mahalanobis(seen))
    found = learned("mahalanobis", count=20)(images)
    assert found.map is None
    np.testing.assert_allclose(found.score, expected, rtol=1e-4)


# SubspaceAD


def test_subspacead_is_what_scikit_learn_s_components_leave(learned, tiny_backbone, tiny_images, planted, enlarged):
    method = learned("subspacead", {"variance": 0.9}, count=6)
    images = planted(tiny_images(2, seed=5).images)
    known, seen = (
        joined(tiny_backbone(), i, "bilinear").permute(0, 2, 3, 1).flatten(1, 2).numpy()
        for i in (tiny_images(6).images, images)
    )
    pca = PCA(0.9, svd_solver="full").fit(known.reshape(-1, 24))
    assert len(method.components) == pca.n_components_ < 24
    left = [one - pca.inverse_transform(pca.transform(one)) for one in seen]
    map_ = enlarged(np.square(left).sum(axis=2))
    found = method(images)
    np.testing.assert_allclose(found.map, map_, rtol=1e-3, atol=1e-5)
    highest = np.sort(map_.reshape(2, -1), axis=1)[:, -40:]
    np.testing.assert_allclose(found.score, highest.mean(axis=1), rtol=1e-3)


def test_subspacead_averages_levels_of_one_shape_and_always_leaves_a_direction_out(learned, tiny_backbone, tiny_images):
    class Blocks(tiny_backbone):
        """Two levels of one shape, as transformers have."""

        def __init__(self):
            super().__init__((2, 3), width=6)
            self.levels = (self.levels[0], self.levels[0])

        def forward(self, images):
            shallow, _ = super().forward(images)
            return [shallow, 3 * shallow]

    method = learned("subspacead", {"variance": 0.999999}, backbone=Blocks(), count=3)
    assert method.components.shape == (5, 6)
    vectors = tiny_backbone((2, 3), width=6)(tiny_images(3).images)[0].double()
    np.testing.assert_allclose(method.mean[0], 2 * vectors.mean(dim=(0, 2, 3)), rtol=1e-5)


# SPADE


def test_spade_by_hand(learned, tiny_backbone, tiny_images, planted):
    backbone = tiny_backbone((1, 2, 3))
    method = learned("spade", {"neighbours": 2}, count=6, layers=(1, 2, 3))
    images = planted(tiny_images(2, seed=5).images)
    known, seen = ([m.double() for m in backbone(i)] for i in (tiny_images(6).images, images))
    between = cdist(*(m[-1].mean(dim=(2, 3)).numpy() for m in (seen, known)))
    found = method(images)
    np.testing.assert_allclose(found.score, np.sort(between, axis=1)[:, :2].mean(axis=1), rtol=1e-4)
    for image, nearest in enumerate(between.argsort(axis=1)[:, :2]):
        maps = []
        for ours, theirs in zip(seen[:2], known[:2]):
            places = theirs[nearest].permute(0, 2, 3, 1).flatten(0, 2).numpy()
            least = cdist(ours[image].flatten(1).T.numpy(), places).min(axis=1).reshape(1, 1, *ours.shape[2:])
            large = F.interpolate(torch.from_numpy(least), size=(64, 64), mode="bilinear")[0, 0]
            maps.append(gaussian_filter(large.numpy(), 4.0))
        np.testing.assert_allclose(found.map[image], np.mean(maps, axis=0), rtol=1e-3, atol=1e-4)


def test_spade_looks_at_all_images_where_they_are_fewer_and_in_any_portions(learned, tiny_images, monkeypatch):
    images = tiny_images(3, seed=5).images
    whole = learned("spade", count=3)(images)
    torch.testing.assert_close(whole.score, learned("spade", {"neighbours": 3}, count=3)(images).score)
    monkeypatch.setattr("blemish.methods.spade.PRODUCT", 500)
    torch.testing.assert_close(learned("spade", count=3)(images).map, whole.map)
    monkeypatch.setattr("blemish.methods.spade.available_memory", lambda: 100)
    with pytest.raises(ConfigError, match="remembers every place of 3 images"):
        learned("spade", count=3)


# OCSVM


@pytest.mark.parametrize(("nu", "count"), [(0.1, 60), (0.5, 40), (0.05, 8)])
def test_the_support_vector_machine_is_scikit_learn_s(nu, count):
    points = np.random.default_rng(3).normal(size=(count, 4))
    kernel = np.exp(-0.25 * cdist(points, points, "sqeuclidean"))
    weights, rho = one_class_svm(kernel, nu)
    theirs = OneClassSVM(kernel="precomputed", nu=nu, tol=1e-8).fit(kernel)
    dense = np.zeros(count)
    dense[theirs.support_] = theirs.dual_coef_[0]
    np.testing.assert_allclose(weights, dense, atol=1e-3)
    assert weights.sum() == pytest.approx(nu * count)
    assert rho == pytest.approx(-theirs.intercept_[0], abs=1e-4)


def test_ocsvm_scores_as_scikit_learn_decides(learned, tiny_backbone, tiny_images, planted):
    images = planted(tiny_images(3, seed=5).images)
    known, seen = (np.concatenate(pooled(tiny_backbone(), i), axis=1) for i in (tiny_images(20).images, images))
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    theirs = OneClassSVM(gamma="scale", nu=0.3, tol=1e-8).fit((known - mean) / deviation)
    found = learned("ocsvm", {"nu": 0.3}, count=20)(images)
    np.testing.assert_allclose(found.score, -theirs.decision_function((seen - mean) / deviation), atol=2e-4)


def test_ocsvm_draws_from_more_images_than_it_can_compare_and_says_so(learned, tiny_images):
    said = []

    class Listening(Silent):
        def note(self, text):
            said.append(text)

    method = learned("ocsvm", {"most": 5, "nu": 1.0}, count=9, run=Run(progress=Listening()))
    assert len(method.support) == 5
    assert "9 are too many for: it learns from 5 drawn at random (--set most=N)" in said[0]


# STFPM


def test_stfpm_s_map_is_the_product_of_the_levels(learned, tiny_images, planted):
    method = learned("stfpm", {"sigma": 0.0})
    images = planted(tiny_images(2, seed=5).images)
    with torch.no_grad():
        pairs = list(zip(method.backbone(images), method.student(images)))
    product = torch.ones(2, 1, 16, 16)
    for teacher, student in pairs:
        apart = (F.normalize(teacher, dim=1) - F.normalize(student, dim=1)).square().sum(dim=1, keepdim=True)
        product *= F.interpolate(apart, size=(16, 16), mode="bilinear", align_corners=False)
    map_ = F.interpolate(product, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    found = method(images)
    torch.testing.assert_close(found.map, map_, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.score, map_.amax(dim=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("holdout", "kept"), [(0.25, 1), (0.0, 2)])
def test_stfpm_keeps_the_epoch_that_is_best_on_images_held_out(learned, holdout, kept, monkeypatch):
    """Here the second of three, by losses made up for two images of eight; without images held out, the last."""
    made_up, learners, sizes = iter([3.0, 1.0, 2.0]), [], []
    loss_of, step = stfpm.vector_loss, torch.optim.SGD.step

    def loss(teacher, student):
        sizes.append((student[0].requires_grad, len(teacher[0])))
        return loss_of(teacher, student) if student[0].requires_grad else torch.tensor(next(made_up))

    def stepped(optimiser, *given):
        step(optimiser, *given)
        group = optimiser.param_groups[0]
        learners.append([p.clone() for p in group["params"]])
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.4, 0.9, 1e-4)

    monkeypatch.setattr(stfpm, "vector_loss", loss)
    monkeypatch.setattr(torch.optim.SGD, "step", stepped)
    method = learned("stfpm", {"epochs": 3, "steps": None, "batch_size": 8, "holdout": holdout})
    assert sizes == ([(True, 6), (False, 2)] * 3 if holdout else [(True, 8)] * 3)
    assert all(torch.equal(*pair) for pair in zip(method.student.parameters(), learners[kept]))


def test_stfpm_s_first_loss_is_the_squared_distance_of_unit_vectors(learned, tiny_images):
    fresh = learned("stfpm", {"steps": 1, "learning_rate": 1e-12, "batch_size": 8, "holdout": 0.0}, count=8)
    images, expected = tiny_images(8).images, 0.0
    with torch.no_grad():
        for teacher, student in zip(fresh.backbone(images), fresh.student.train()(images)):
            apart = F.normalize(teacher.double(), dim=1) - F.normalize(student.double(), dim=1)
            expected += float(apart.square().sum(dim=1).mean())
    assert fresh.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)


# What cannot be learned from


@pytest.mark.parametrize("name", DENSITIES)
def test_three_images_are_too_few_and_four_are_not(name, learned, tiny_images):
    with pytest.raises(
        DataError, match=f"{name} estimates .* was given 3 images, where it needs at least 4 .* patchcore"
    ):
        learned(name, count=3)
    assert learned(name, count=4)(tiny_images(2).images).score.isfinite().all()


@pytest.mark.parametrize("name", UNTRAINED)
def test_images_that_are_all_equal_are_refused_or_remembered(name, learned, tiny_images):
    images = tiny_images(5)
    images.images = torch.full_like(images.images, 0.5)
    if name == "spade":  # which compares, and estimates nothing
        assert learned(name, images=images)(images.images).score.tolist() == pytest.approx([0] * 5, abs=1e-3)
        return
    with pytest.raises(
        DataError, match=f"{name} learns how good images differ, and .* the 5 given do not: copies of one"
    ):
        learned(name, images=images)


@pytest.mark.parametrize("name", [*UNTRAINED, "stfpm"])
def test_one_level_alone_and_a_grid_of_one_cell(name, learned, tiny_images):
    method = learned(name, layers=(2,))
    assert method(tiny_images(2).images).score.isfinite().all()
    if name == "stfpm":
        with pytest.raises(ConfigError, match="of more than 8 pixels"):
            learned(name, layers=(2,), size=(8, 8))
        return
    method = learned(name, layers=(2,), size=(8, 8))
    found = method(tiny_images(2, (8, 8), seed=7).images)
    assert found.score.isfinite().all()
    assert (found.map is None) == (name in IMAGE_LEVEL)


def test_stfpm_judges_its_epochs_in_eval_mode_and_by_every_image_held_out(learned, tiny_images, monkeypatch):
    seen, duplicate, loss_of = [], copy.deepcopy, stfpm.vector_loss

    def watched(student):
        made = duplicate(student)
        made.register_forward_hook(lambda network, *_: seen.append((network.training, torch.is_grad_enabled())))
        return made

    reached = []

    def loss(teacher, student):
        found = loss_of(teacher, student)
        if not student[0].requires_grad:
            reached.append((len(teacher[0]), 2 * float(found)))
        return found

    monkeypatch.setattr(stfpm, "vector_loss", loss)
    monkeypatch.setattr(stfpm, "copy", SimpleNamespace(deepcopy=watched))  # of this module alone: timm copies, too
    lowest = []
    register = torch.nn.Module.register_buffer

    def registered(module, name, value, *rest, **named):
        if name == "lowest":
            lowest.append(value)
        return register(module, name, value, *rest, **named)

    monkeypatch.setattr(torch.nn.Module, "register_buffer", registered)
    backbone = build_backbone("test_resnet", (1, 2), "random", 0)
    settings = {"epochs": 1, "steps": None, "batch_size": 4, "holdout": 0.5}
    learned("stfpm", settings, 10, backbone=backbone, layers=(1, 2))
    assert seen == [(True, True)] * 2 + [(False, False)] * 2  # five learned from and five held out, by fours
    assert [count for count, _ in reached] == [4, 1]
    assert float(lowest[0]) == pytest.approx(sum(count * value for count, value in reached), rel=1e-5)
