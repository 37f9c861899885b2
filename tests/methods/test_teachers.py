"""CFA, ReContrast and URD: their losses, maps, schedules and sizes against NumPy, SciPy and what was published."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import array, whole_loss
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from torch import nn

from blemish.backbones.backbone import build_backbone, build_student
from blemish.backbones.networks import RESNETS, choose_levels
from blemish.errors import ConfigError
from blemish.methods import cfa, recontrast, urd
from blemish.methods.cfa import sphere_loss
from blemish.ops.residual import initialise
from blemish.ops.reverse import decoder_spec
from blemish.registry import method_class
from blemish.run import Run

RD_LIKE = {"layers": (1, 2, 3), "batch_size": 16, "sigma": 4.0}
DEFAULTS = {
    "cfa": {"layers": (1, 2, 3), "epochs": 30, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 5e-4}
    | {"neighbours": 3, "repelled": 3, "margin": 0.1, "sigma": 4.0},
    "recontrast": RD_LIKE
    | {"steps": 2000, "learning_rate": 2e-3, "encoder_rate": 1e-5, "betas": (0.9, 0.999), "weight_decay": 1e-5}
    | {"hardness": 1.0, "batchnorm": "train"},
    "urd": RD_LIKE | {"steps": 5000, "learning_rate": 5e-3, "teacher_rate": 1e-4, "betas": (0.5, 0.999)},
}
WIDE = SimpleNamespace(levels=choose_levels("wide_resnet50_2", (1, 2, 3)), residual=RESNETS["wide_resnet50_2"])
"""What a student needs to know of the papers' backbone."""
STILL = {"steps": 1, "learning_rate": 1e-12}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_released_settings(name):
    config = dataclasses.asdict(method_class(name).Config())
    assert config | DEFAULTS[name] == config


def maps_of(*shapes, seed=0, signed=True):
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    return found if signed else [map_.relu() for map_ in found]


def cosines_by_numpy(one, other):
    """Over channels: ``b y x``."""
    a, b = (map_.detach().double().numpy() for map_ in (one, other))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# CFA


def described_by_numpy(method, features):
    """``b n d``: pooled, joined, with the places' coordinates, through the layer."""
    pooled = [F.avg_pool2d(map_.double(), 3, 1, 1) for map_ in features]
    first = pooled[0]
    joined = [F.interpolate(m, size=first.shape[2:], mode="bilinear", align_corners=False) for m in pooled]
    down, right = np.meshgrid(np.linspace(-1, 1, first.shape[2]), np.linspace(-1, 1, first.shape[3]), indexing="ij")
    places = np.broadcast_to(np.stack([down, right]), (len(first), 2, *first.shape[2:]))
    rows = np.concatenate([*(m.numpy() for m in joined), places], axis=1).transpose(0, 2, 3, 1)
    layer = method.descriptor.layer
    weight, bias = layer.weight.detach().double()[:, :, 0, 0].numpy(), layer.bias.detach().double().numpy()
    return (rows @ weight.T + bias).reshape(len(first), -1, len(bias))


def test_cfa_s_centres_are_what_the_layer_gave_before_it_learned(learned, tiny_backbone, tiny_images):
    method = learned("cfa", STILL, count=21)
    expected = described_by_numpy(method, tiny_backbone()(tiny_images(21).images)).mean(axis=0)
    np.testing.assert_allclose(method.centres, expected, rtol=1e-4, atol=1e-5)


def test_cfa_s_map_is_the_nearest_distance_times_its_share(learned, tiny_backbone, tiny_images, planted, enlarged):
    method = learned("cfa", {"steps": 6, "learning_rate": 0.02})
    assert float(method.descriptor.radius.detach()) > 0.01, "the radius learns"
    images = planted(tiny_images(2, seed=5).images)
    points, centres = described_by_numpy(method, tiny_backbone()(images)), method.centres.double().numpy()
    nearest = np.sort([cdist(one, centres) for one in points], axis=2)[:, :, :3]
    shares = np.exp(-nearest[:, :, 0]) / np.exp(-nearest).sum(axis=2)
    with torch.no_grad():
        found = method(images)
    np.testing.assert_allclose(found.map, enlarged(nearest[:, :, 0] * shares), rtol=1e-3)
    torch.testing.assert_close(found.score, found.map.amax(dim=(1, 2)))


def test_cfa_s_loss_by_hand():
    distances, radius = torch.tensor([[0.2, 0.5, 0.6], [0.1, 1.0, 2.0]]), torch.tensor(0.9)  # squared: .81
    assert float(sphere_loss(distances, radius, 2, 0.1)) == pytest.approx(1000 * (0.19 / 4 + 0.11 / 2), rel=1e-5)
    assert float(sphere_loss(distances, radius, 3, 0.1)) == pytest.approx(1000 * (0.19 + 1.19) / 6, rel=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (16, 8)])
def test_cfa_learns_from_fewer_places_than_neighbours(learned, tiny_images, size):
    method = learned("cfa", layers=(2,), size=size)
    assert len(method.centres) == size[0] * size[1] // 64
    with torch.no_grad():
        assert method(tiny_images(2, size, seed=7).images).map.isfinite().all()


# What begins as its teacher


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "test_resnet"])
def test_a_student_may_begin_as_its_teacher(name):
    teacher = build_backbone(name, (1, 2), "random", seed=3)
    student = build_student(teacher, (64, 64))
    student.copy_values(teacher)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(student.eval()(images), teacher(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-4)  # a teacher's are rounded to bf16


def test_a_student_of_the_embedded_weights_begins_with_them():
    teacher = build_backbone("efficientnet_lite0", (1,))
    student = build_student(teacher, (64, 64))
    student.copy_values(teacher)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(images)[0], teacher(images)[0], rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("name", ["recontrast", "urd"])
@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_the_encoder_s_batchnorm_goes_by_the_batch_or_stays(learned, name, batchnorm):
    backbone = build_backbone("resnet18", (1, 2), "random", seed=1)
    method = learned(name, {**STILL, "batchnorm": batchnorm}, 4, backbone=backbone, layers=(1, 2))
    means = method.encoder.network.bn1.running_mean
    assert bool((means == 0).all()) == (batchnorm == "frozen")


@pytest.mark.parametrize("name", ["recontrast", "urd"])
def test_the_map_sums_all_levels(learned, tiny_images, planted, name):
    method = learned(name, {"steps": 2})
    images = planted(tiny_images(2, seed=9).images)
    with torch.no_grad():
        encoded = method.encoder(images)
        if name == "urd":
            pairs = list(zip(encoded, method.student(encoded)))
        else:
            frozen = method.backbone(images)
            first, second = method.student(encoded, frozen)
            pairs = [*zip(frozen, first), *zip(encoded, second)]
        found = method(images)
    total = np.zeros((2, 64, 64))
    for target, student in pairs:
        away = torch.from_numpy(1 - cosines_by_numpy(target, student))[:, None]
        total += F.interpolate(away, size=(64, 64), mode="bilinear", align_corners=True)[:, 0].numpy()
    expected = np.stack([gaussian_filter(map_, 4.0) for map_ in total])
    np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.score, expected.max(axis=(1, 2)), rtol=1e-3)


# ReContrast


def test_recontrast_s_decoder_has_as_many_numbers_as_published():
    with torch.device("meta"):
        student = recontrast.TwinStudent(decoder_spec(WIDE))
    parts = [*student.decoder.parameters(), *student.heads.parameters()]
    assert sum(values.numel() for values in parts) == 27_673_600


def test_easy_places_have_no_gradient_and_the_loss_is_of_whole_maps():
    targets, students = maps_of((2, 3, 4, 4), (2, 5, 2, 2)), maps_of((2, 3, 4, 4), (2, 5, 2, 2), seed=1)
    students = [map_.requires_grad_() for map_ in students]
    loss = recontrast.mined_loss(targets, students, 0.5)
    assert float(loss.detach()) == pytest.approx(whole_loss(targets, students), rel=1e-5)
    loss.backward()
    for target, student in zip(targets, students):
        away = 1 - cosines_by_numpy(target, student)
        hard = away >= away.mean() + 0.5 * away.std(ddof=1)
        assert 0 < hard.sum() < hard.size
        np.testing.assert_array_equal(student.grad.abs().sum(dim=1).numpy() > 0, hard)


@pytest.mark.slow
def test_alpha_rises_in_the_first_tenth(learned, monkeypatch):
    seen, loss_of = [], recontrast.mined_loss

    def watched(targets, students, alpha):
        assert not any(map_.requires_grad for map_ in targets)
        seen.append(alpha)
        return loss_of(targets, students, alpha)

    monkeypatch.setattr(recontrast, "mined_loss", watched)
    learned("recontrast", {"steps": 20, "hardness": 0.6}, count=6)
    expected = [-3, -1.2, *[0.6] * 18]
    assert seen == pytest.approx(np.repeat(expected, 2).tolist())


# URD


def test_guided_injection_has_as_many_numbers_as_published():
    for gated, count in ((True, 47_853_568), (False, 36_054_016)):
        with torch.device("meta"):
            injections = urd.GuidedStudent(decoder_spec(WIDE), gated).injections
        assert sum(values.numel() for values in injections.parameters()) == count


@pytest.mark.parametrize("gated", [True, False])
def test_detail_is_injected_as_far_as_the_two_agree(gated):
    injection = urd.Injection(4, 6, 8, gated).eval()
    initialise(injection, torch.Generator().manual_seed(0), xavier=True)
    shallow, level, code, found = maps_of((2, 4, 8, 8), (2, 6, 4, 4), (2, 8, 4, 4), (2, 6, 4, 4))
    with torch.no_grad():
        detail = injection.joined(level + injection.shallower(F.avg_pool2d(shallow, 2)))  # of 2 x 2: the same
        if gated:
            alike = torch.from_numpy(cosines_by_numpy(found, level)).float()[:, None]
            detail = injection.gate(alike * detail + (1 - alike) * found)
        expected = injection.back(torch.cat([code, detail], dim=1))
        torch.testing.assert_close(injection(shallow, level, code, found), expected)


def test_urd_s_students_are_xavier_normal():
    network = nn.Conv2d(64, 192, 3)
    initialise(network, torch.Generator().manual_seed(0), xavier=True)
    assert float(network.weight.detach().std()) == pytest.approx(np.sqrt(2 / (9 * (64 + 192))), rel=0.01)


def test_the_teacher_s_loss_by_numpy():
    shapes = (2, 3, 8, 8), (2, 5, 4, 4)
    taught, expert = ([maps_of(*shapes, seed=s + n) for n in (0, 1)] for s in (0, 10))
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, :16, :20] = 1
    total, known = whole_loss(taught[1], expert[1]), masks
    for level in range(2):
        known = F.interpolate(known, shapes[level][2:], mode="bilinear", align_corners=True).ge(0.5).float()
        assert 0 < known.mean() < 0.5
        total += (1 - cosines_by_numpy(taught[0][level], expert[0][level])).mean()
        total += np.abs(1 - cosines_by_numpy(taught[1][level], expert[0][level]) - known[:, 0].numpy()).mean()
    assert float(urd.teaching_loss(taught, expert, masks)) == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_made_up_defects_stay_on_the_foreground_which_is_found_once(learned, tiny_images, listener, monkeypatch):
    asked, masks, loss_of = [], [], urd.teaching_loss

    def top_half(image):
        asked.append(image)
        return torch.arange(64)[:, None].expand(64, 64) < 32

    def watched(taught, expert, given):
        masks.append(given)
        return loss_of(taught, expert, given)

    monkeypatch.setattr(urd, "find_foreground", top_half)
    monkeypatch.setattr(urd, "teaching_loss", watched)
    learned("urd", {"steps": 6, "foreground": "grabcut"}, count=4, teacher=listener)
    assert len(asked) == 4
    assert sum(float(given.sum()) for given in masks) > 0 and all(not given[:, :, 32:].any() for given in masks)
    for batch, spoiled, given in zip(listener.clean, listener.noisy, masks):
        changed = (batch.images != spoiled).any(dim=1, keepdim=True)
        assert not changed[given == 0].any()


def test_grabcut_finds_a_disc_the_same_way_twice():
    pytest.importorskip("cv2", reason="GrabCut is OpenCV's (the extra camera)")
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (rows - 32) ** 2 + (columns - 30) ** 2 < 15**2
    noise = 0.02 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = torch.where(disc, 0.8, 0.1) + noise
    found = urd.find_foreground(image)
    assert (found == disc).float().mean() > 0.97
    torch.testing.assert_close(urd.find_foreground(image), found)


def test_without_opencv_it_says_what_to_do(learned, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"needs OpenCV.*foreground=none"):
        learned("urd", {"foreground": "grabcut"})


@pytest.mark.parametrize("name", ["recontrast", "urd"])
def test_one_level_alone_and_images_too_small(learned, tiny_images, name):
    method = learned(name, layers=(2,))
    with torch.no_grad():
        assert method(tiny_images(2).images).score.isfinite().all()
    with pytest.raises(ConfigError, match="of more than 16 pixels"):
        learned(name, layers=(2,), size=(16, 16), run=Run())


@pytest.mark.parametrize("radius", [1e-5, 3.0])
def test_cfa_s_first_loss_by_hand(radius, learned, tiny_images, monkeypatch):
    assert cfa.FIRST_RADIUS == 1e-5
    monkeypatch.setattr(cfa, "FIRST_RADIUS", radius)
    method = learned("cfa", {**STILL, "batch_size": 8})
    assert float(method.descriptor.radius.detach()) == pytest.approx(radius)
    with torch.no_grad():
        points = array(method.descriptor(method.backbone(tiny_images(8).images))).reshape(8, -1, 64).swapaxes(1, 2)
    distances = np.sort(cdist(points.reshape(-1, points.shape[2]), array(method.centres), "sqeuclidean"), axis=1)
    attraction = np.maximum(0, distances[:, :3] - radius**2).mean()
    repulsion = np.maximum(0, radius**2 - distances[:, 3:6] - 0.1).mean()
    assert (repulsion > 0) == (radius > 1)
    assert method.curve[0]["loss"] == pytest.approx(1000 * (attraction + repulsion), rel=1e-3)


def test_recontrast_s_first_loss_is_half_of_each_way_across(learned, tiny_images):
    backbone = build_backbone("resnet18", (1, 2), "random", seed=1)  # whose norms tell the trained copy from the frozen
    settings = {**STILL, "encoder_rate": 1e-12, "batch_size": 8}
    method, images = learned("recontrast", settings, backbone=backbone, layers=(1, 2)), tiny_images(8).images
    with torch.no_grad():
        frozen, trained = method.backbone(images), method.encoder.train()(images)
        method.student.train()
        grids = [tuple(map_.shape[-2:]) for map_ in frozen]
        joined = [torch.cat(pair) for pair in zip(trained, frozen)]
        maps = method.student.decoder(method.student.bottleneck(joined), grids)
        # What is made of the trained features, the first half, is to be the frozen ones, and the other way round.
        to_frozen = [head(map_[:8]) for head, map_ in zip(method.student.heads[0], maps)]
        to_trained = [head(map_[8:]) for head, map_ in zip(method.student.heads[1], maps)]
    expected = (whole_loss(frozen, to_frozen) + whole_loss(trained, to_trained)) / 2
    crossed = (whole_loss(trained, to_frozen) + whole_loss(frozen, to_trained)) / 2
    assert abs(expected - crossed) > 1e-3
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_recontrast_s_targets_have_no_gradient(learned, monkeypatch):
    seen, loss_of = [], recontrast.mined_loss

    def watched(targets, students, alpha):
        seen.append((any(map_.requires_grad for map_ in targets), alpha))
        return loss_of(targets, students, alpha)

    monkeypatch.setattr(recontrast, "mined_loss", watched)
    learned("recontrast", {"steps": 20, "batch_size": 2}, count=4)
    assert not any(attached for attached, _ in seen)
    alphas = [alpha for _, alpha in seen[::2]]
    assert alphas == pytest.approx([-3, -1, *[1] * 18])  # in the first tenth from -3 to 1


def test_urd_s_student_learns_good_and_spoiled_images_from_teacher_and_expert_on_good_ones(
    learned, listener, monkeypatch
):
    asked = []

    def spoil(images, textures, generator, chance=1.0, alter=True):
        asked.append((chance, alter))
        mask = torch.zeros(len(images), 64, 64, dtype=torch.bool)
        mask[:, 20:40, 8:40] = True
        return torch.where(mask[:, None], 1 - images, images), mask

    monkeypatch.setattr(urd, "with_textures", spoil)
    listener.backbone = build_backbone(
        "resnet18", (1, 2), "random", seed=1
    )  # whose norms tell teacher and expert apart
    settings = {**STILL, "teacher_rate": 1e-12, "batch_size": 8}
    method = learned("urd", settings, teacher=listener, backbone=listener.backbone, layers=(1, 2))
    assert asked == [(1.0, False)]  # every image, no alteration of colours
    (batch,), (spoiled,) = listener.clean, listener.noisy
    expert = [method.backbone(seen) for seen in (batch.images, spoiled)]
    with torch.no_grad():
        taught = [method.encoder.eval()(seen) for seen in (batch.images, spoiled)]
        students = [method.student.train()(features) for features in taught]
        moving = [method.encoder.train()(seen) for seen in (batch.images, spoiled)]
    assert abs(whole_loss(taught[0], students[0]) - whole_loss(expert[0], students[0])) > 1e-3
    expected = sum(whole_loss(target, student) for student in students for target in (taught[0], expert[0]))
    others = sum(whole_loss(target, student) for student in students for target in (taught[1], expert[1]))
    assert abs(others - expected) > 1e-4 * expected
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=2e-5)
    mask, total = torch.zeros(8, 1, 64, 64), whole_loss(moving[1], expert[1])
    mask[:, :, 20:40, 8:40] = 1
    for good, bad, known in zip(moving[0], moving[1], expert[0]):
        mask = F.interpolate(mask, good.shape[2:], mode="bilinear", align_corners=True).ge(0.5).float()
        total += float(1 - F.cosine_similarity(good, known).mean())
        total += float((1 - F.cosine_similarity(bad, known) - mask[:, 0]).abs().mean())
    assert method.curve[0]["teacher"] == pytest.approx(total, rel=1e-3)


def test_the_gate_passes_no_gradient_through_agreement():
    injection = urd.Injection(4, 6, 8, True)
    shallow, level, code = (torch.randn(2, c, s, s) for c, s in ((4, 8), (6, 4), (8, 4)))
    found = torch.randn(2, 6, 4, 4, requires_grad=True)
    alike = F.cosine_similarity(found.detach(), level)[:, None]
    seen = []
    injection.gate.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    injection(shallow, level, code, found)
    (gradient,) = torch.autograd.grad(seen[0].sum(), found)
    torch.testing.assert_close(gradient, (1 - alike).expand_as(found), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["recontrast", "urd"])
def test_the_encoder_begins_as_the_backbone(name, learned, tiny_images):
    rates = {"encoder_rate": 1e-12} if name == "recontrast" else {"teacher_rate": 1e-12}
    method, images = learned(name, {**STILL, **rates, "batchnorm": "frozen"}), tiny_images(2).images
    with torch.no_grad():
        for ours, theirs in zip(method.encoder(images), method.backbone(images)):
            torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-2)


def test_detail_of_a_level_and_the_one_above_it_enters_before_that_level_s_neighbour(tiny_backbone):
    student, seen = urd.GuidedStudent(decoder_spec(tiny_backbone((1, 2, 3))), True).eval(), {}
    features = [torch.randn(1, c, s, s) for c, s in ((8, 16), (16, 8), (32, 4))]
    for number, injection in enumerate(student.injections):
        injection.register_forward_pre_hook(lambda _, given, number=number: seen.update({number: given}))
    with torch.no_grad():
        maps = student(features)
    assert sorted(seen) == [0, 1]
    for number, (shallow, level, _, found) in seen.items():
        assert torch.equal(shallow, features[number]) and torch.equal(level, features[number + 1])
        torch.testing.assert_close(found, maps[number + 1])  # what was read off it just before
