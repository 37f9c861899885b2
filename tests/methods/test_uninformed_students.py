"""Uninformed students: the dense networks, the losses and the score, against plain PyTorch and NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blemish.errors import ConfigError
from blemish.methods import students
from blemish.methods.students import NETWORKS, PatchNetwork, draw_crops, teacher_loss
from blemish.run import Run

SMALL = {"filters": 4, "steps": 4, "spacing": 2, "fields": (17, 65), "holdout": 0.25}


@pytest.mark.parametrize("field", NETWORKS)
def test_dense_descriptors_are_the_patch_network_s_of_the_patch_around(field):
    torch.manual_seed(0)
    network, images = PatchNetwork(field, 4), torch.rand(2, 3, 70, 81)
    around = F.pad(images, (field // 2,) * 4, mode="reflect")

    def of_patch(y, x):
        maps, left = around[..., y : y + field, x : x + field] * 4 - 2, list(network.convolutions)
        for kernel, factor in NETWORKS[field]:
            maps = left.pop(0)(maps) if factor else F.max_pool2d(maps, kernel)
            maps = F.leaky_relu(maps, 5e-3) if factor and left else maps
        assert maps.shape == (2, 4, 1, 1)
        return maps[..., 0, 0]

    with torch.no_grad():
        dense, coarse = network(images, 1), network(images, 4)
        assert dense.shape == (2, 4, 70, 81)
        assert coarse.shape == (2, 4, 18, 21)
        for y, x in ((0, 0), (13, 40), (69, 80)):
            torch.testing.assert_close(dense[..., y, x], of_patch(y, x))
        torch.testing.assert_close(coarse[..., :17, :20], dense[..., 1:68:4, 1:80:4])


def test_the_teacher_s_loss_is_numpy_s():
    rng = np.random.default_rng(0)
    own, near, decoded, features = (rng.normal(size=(16, width)) for width in (5, 5, 7, 7))
    target = features - features.mean(axis=0)
    copied = np.square(decoded - target / target.std(ddof=1)).sum(axis=1).mean()
    others = own[[*range(8, 16), *range(8)]]  # of the other image
    between, apart, also = (np.linalg.norm(a - b, axis=1) for a, b in ((own, near), (own, others), (near, others)))
    triplet = np.maximum(0, 1 + between - np.minimum(apart, also)).mean()
    correlations = np.corrcoef(own.T)
    expected = copied + triplet + np.square(correlations[~np.eye(5, dtype=bool)]).sum()
    given = (torch.from_numpy(array) for array in (own, near, decoded, features))
    assert float(teacher_loss(*given)) == pytest.approx(expected, rel=1e-4)


def test_crops_come_image_by_image_with_shifted_noisy_neighbours():
    images = torch.zeros(8, 3, 60, 50) + torch.arange(8).view(8, 1, 1, 1) * 10
    images[:, 1] += torch.arange(60)[:, None] * 0.01
    crops = draw_crops(images, 17, torch.Generator().manual_seed(0))
    assert crops.shape == (128, 3, 17, 17)
    assert crops[:64, 0, 0, 0].tolist() == [10 * (i // 8) for i in range(64)]
    shift = (crops[64:, 1].mean(dim=(1, 2)) - crops[:64, 1].mean(dim=(1, 2))) / 0.01
    assert 1 < shift.abs().max() < 8  # four pixels, and noise
    assert (crops[64:, 0] - crops[:64, 0]).std() == pytest.approx(0.1, rel=0.05)


def test_error_and_variance_in_deviations_of_good_images_held_out(learned, tiny_images, planted):
    run = Run(seed=3)
    method, held = learned("students", SMALL, run=run), run.permutation(8, "images held out")[:2]
    images, usual = planted(tiny_images(2, seed=5).images), tiny_images(8).images[held]
    scores = []
    for number, teacher in enumerate(method.teachers):

        def disagreements(given, teacher=teacher, number=number):
            with torch.no_grad():
                target = teacher(given, 2).double().numpy()
                own = method.students[3 * number : 3 * number + 3]
                described = np.stack([student(given, 2).double().numpy() for student in own])
            mean = described.mean(axis=0)
            variance = np.square(described).sum(axis=2).mean(axis=0) - np.square(mean).sum(axis=1)
            return np.square(mean - target).sum(axis=1), variance

        pairs = zip(disagreements(images), disagreements(usual))
        scores.append(sum((seen - good.mean()) / good.std(ddof=1) for seen, good in pairs))
    coarse = torch.from_numpy(np.mean(scores, axis=0))[:, None]
    map_ = F.interpolate(coarse, size=(64, 64), mode="bilinear")[:, 0].numpy()
    with torch.no_grad():
        found = method(images)
    np.testing.assert_allclose(found.map, map_, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.score, map_.max(axis=(1, 2)), rtol=1e-3)


def test_teachers_learn_first_and_students_then(learned, tiny_images):
    seen = []

    def watch(method, number):
        seen.append([float(next(nets.parameters()).detach().sum()) for nets in (method.teachers, method.students)])

    settings = {"filters": 4, "spacing": 4, "steps": 4, "batch_size": 8, "taught": 0.5, "holdout": 0.0, "fields": (17,)}
    method = learned("students", settings, watch=watch)
    teachers, students = zip(*seen)
    assert teachers[0] != teachers[1] == teachers[2] == teachers[3]
    assert students[0] == students[1] != students[2] != students[3]
    with torch.no_grad():
        maps = method.teachers[0](tiny_images(8).images, 4)
    torch.testing.assert_close(maps.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(maps.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_crops_of_one_step_are_of_different_images(learned, tiny_images):
    images, asked = tiny_images(8), []
    whole = images.batch
    images.batch = lambda indices: asked.append(list(indices)) or whole(indices)
    settings = {
        "filters": 4,
        "spacing": 4,
        "steps": 20,
        "batch_size": 8,
        "taught": 0.95,
        "fields": (17,),
        "holdout": 0.0,
    }
    learned("students", settings, images=images)
    assert sum(len(indices) > 6 for indices in asked) >= 19 and all(len({*i}) == len(i) for i in asked)
    with pytest.raises(ConfigError, match="taught"):
        learned("students", settings | {"taught": 1.0})


@pytest.mark.parametrize(("tokens", "side"), [(True, 70), (False, 64)])
def test_a_transformer_sees_crops_in_whole_cells(tokens, side, learned, tiny_backbone, tiny_teacher):
    backbone = tiny_backbone()
    backbone.tokens, seen = tokens, []
    backbone.levels = tuple(replace(level, stride=14) for level in backbone.levels)
    teacher = tiny_teacher(backbone)

    def watched(images):
        seen.append(images.shape[-1])
        return teacher(images)

    learned("students", SMALL | {"taught": 0.5}, backbone=backbone, teacher=watched)
    assert {*seen} == {side}


def test_images_smaller_than_half_a_patch_are_refused(learned):
    with pytest.raises(ConfigError, match=r"24 x 24 are smaller than half of a patch of 65 pixels: .*--set fields"):
        learned("students", SMALL, size=(24, 24))
    learned("students", {**SMALL, "fields": (17, 33)}, size=(24, 24))


TWO_FIELDS = {"filters": 4, "spacing": 2, "fields": (17, 33), "holdout": 0.0}


def test_each_student_follows_its_own_teacher_by_squared_distance(learned, tiny_images):
    settings = {**TWO_FIELDS, "students": 2, "steps": 1, "batch_size": 8, "taught": 0.0, "learning_rate": 1e-12}
    method, images, expected = learned("students", settings), tiny_images(8).images, 0.0
    with torch.no_grad():
        for number, teacher in enumerate(method.teachers):
            target = teacher(images, 2).double().numpy()
            for student in method.students[2 * number : 2 * number + 2]:
                expected += np.square(student(images, 2).double().numpy() - target).sum(axis=1).mean()
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_the_backbone_is_shown_the_very_crops_that_are_described(learned, monkeypatch, tiny_backbone):
    cut, seen, draw = [], [], students.draw_crops
    monkeypatch.setattr(students, "draw_crops", lambda *given: cut.append(draw(*given)) or cut[-1])
    backbone = tiny_backbone()

    def teacher(images):
        seen.append(images)
        return backbone(images)

    learned("students", {**TWO_FIELDS, "steps": 2, "taught": 0.5}, teacher=teacher, backbone=backbone)
    assert len(cut) == len(seen) == 2
    for crops, shown in zip(cut, seen):
        own = crops[: len(crops) // 2]
        expected = torch.nn.functional.interpolate(own, size=(64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(shown, expected)
