"""DMAD: displacements, memory, losses, map and score worked out again by NumPy and SciPy, and the sizes released."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import array, whole_loss
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import convolve2d
from scipy.spatial.distance import cdist

from blemish.backbones.backbone import build_backbone
from blemish.backbones.networks import RESNETS, choose_levels
from blemish.errors import ConfigError
from blemish.methods import dmad
from blemish.ops.cosine import layer_loss
from blemish.ops.reverse import decoder_spec
from blemish.registry import method_class

MEAN, STD = np.reshape([0.485, 0.456, 0.406], (3, 1, 1)), np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
STILL = {"steps": 1, "learning_rate": 1e-12, "batch_size": 8}


def test_the_released_settings():
    config = dataclasses.asdict(method_class("dmad").Config())
    released = {"layers": (1, 2, 3), "epochs": 400, "batch_size": 8, "learning_rate": 5e-3, "betas": (0.5, 0.999)}
    released |= {"memory": 200, "gamma": 1.0, "displaced": 0.05, "sigma": 4.0, "score": "max"}
    assert config | released == config


def test_its_networks_have_as_many_numbers_as_released():
    """But for biases before a BatchNorm, which takes them away, and a convolution that is never used."""

    def convolved(ins, outs, side=3):
        return ins * outs * side**2 + 2 * outs  # with the norm's scale and shift

    wide = SimpleNamespace(levels=choose_levels("wide_resnet50_2", (1, 2, 3)), residual=RESNETS["wide_resnet50_2"])
    with torch.device("meta"):
        fields, student = dmad.Displacements(), dmad.RecallingStudent(decoder_spec(wide), 200)
    trunk = convolved(7, 64) + convolved(68, 64) + convolved(64, 64) + (64 * 64 + 64) + 2 * 64
    fine = convolved(128, 64) + 64 * 2 * 9 + 2
    assert sum(values.numel() for values in fields.parameters()) == trunk + 4 * fine + 2 * 2 * convolved(64, 64)
    narrow = sum(convolved(ins, 64) for ins in (256, 512, 1024, 64, 64, 64))
    inner = convolved(1024, 1024) + convolved(1024, 2048, 1)
    stage = 3 * inner + convolved(1216, 1024, 1) + convolved(1216, 2048, 1) + 2 * convolved(2048, 1024, 1)
    own = [values for name, values in student.named_parameters() if not name.startswith("decoder")]
    assert sum(values.numel() for values in own) == 200 * 1024 + narrow + stage


def test_a_pixel_is_told_its_cell_and_its_place_in_it():
    found = dmad.coordinates((256, 8)).numpy()
    rows = np.repeat(np.linspace(0, 1, 64), 4)
    columns = np.repeat([0.0, 1.0], 4)
    expected = [np.linspace(0, 1, 256) - rows, rows, np.linspace(0, 1, 8) - columns, columns]
    for number, line in enumerate(2 * values - 1 for values in expected):
        wanted = np.broadcast_to(line[:, None] if number < 2 else line[None], (256, 8))
        np.testing.assert_allclose(found[number], wanted, atol=1e-6)


def looked_up(maps, field):
    """``b c h w`` at the places that the field says, by SciPy."""
    _, _, rows, columns = maps.shape
    down, right = np.mgrid[:rows, :columns]
    result = np.empty_like(maps)
    for image, (x, y) in enumerate(field):
        places = [
            np.clip(down + y * (rows - 1) / 2, 0, rows - 1),
            np.clip(right + x * (columns - 1) / 2, 0, columns - 1),
        ]
        for channel, map_ in enumerate(maps[image]):
            result[image, channel] = map_coordinates(map_, places, order=1)
    return result


def test_images_are_displaced_one_field_after_the_other_and_not_beyond_the_border():
    rng = np.random.default_rng(0)
    maps, fields = rng.random((2, 3, 6, 9)), rng.normal(0, 0.3, (2, 2, 2, 6, 9))
    found = dmad.displaced(torch.from_numpy(maps).float(), [torch.from_numpy(field).float() for field in fields])
    np.testing.assert_allclose(found, looked_up(looked_up(maps, fields[0]), fields[1]), atol=1e-5)
    shift = torch.zeros(2, 2, 6, 9)
    shift[:, 0] = 2 / 8  # a column, where nine are two long
    np.testing.assert_allclose(
        dmad.displaced(torch.from_numpy(maps).float(), [shift])[..., :-1], maps[..., 1:], atol=1e-5
    )


def test_fields_have_their_reach_and_are_enlarged_from_their_grids():
    network = dmad.Displacements()
    with torch.no_grad():
        for head in network.heads:
            head[-1].weight.zero_()
            head[-1].bias.copy_(torch.tensor([50.0, -50.0]))
        fields = network(torch.rand(2, 3, 32, 48))
    for field, pixels in zip(fields, (8, 3, 8, 3), strict=True):
        assert field.shape == (2, 2, 32, 48)
        torch.testing.assert_close(field[:, 0], torch.full((2, 32, 48), pixels / 128))
        torch.testing.assert_close(field[:, 1], torch.full((2, 32, 48), -pixels / 128))
    found = [head(torch.rand(1, 128, 32, 48)).shape[-2:] for head in network.heads]
    assert found == [(4, 6), (16, 24), (4, 6), (16, 24)]


def rough_by_numpy(field):
    kernel = np.full((3, 3), -1 / 8)
    kernel[1, 1] = 1
    return np.mean([np.abs(convolve2d(both, kernel, mode="same")) for both in field.sum(axis=1)])


def test_roughness_by_a_filter():
    field = torch.randn(2, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    assert float(dmad.roughness(field)) == pytest.approx(rough_by_numpy(array(field)), rel=1e-5)


def recalled_by_numpy(features, memory):
    cells = features.transpose(0, 2, 3, 1)
    chosen = memory[cdist(cells.reshape(-1, cells.shape[3]), memory).argmin(axis=1)].reshape(cells.shape)
    return chosen.transpose(0, 3, 1, 2), 1.25 * np.square(chosen - cells).mean()


def test_a_feature_becomes_the_nearest_vector_and_keeps_its_own_gradient():
    generator = torch.Generator().manual_seed(0)
    features, memory = torch.randn(2, 6, 4, 3, generator=generator), torch.randn(9, 6, generator=generator)
    given, vectors = features.clone().requires_grad_(), memory.clone().requires_grad_()
    found, loss = dmad.recall(given, vectors)
    chosen, expected = recalled_by_numpy(array(features), array(memory))
    np.testing.assert_allclose(found.detach(), chosen, rtol=1e-5, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    (found.sum() + loss).backward()
    away = array(features) - chosen
    np.testing.assert_allclose(given.grad, 1 + 0.25 * 2 * away / away.size, rtol=1e-4)
    assert vectors.grad.abs().sum() > 0 and len(vectors.grad.abs().sum(dim=1).nonzero()) < 9


def seen_by_scipy(method, images):
    """The fields, the image displaced, its features and what the student makes of them."""
    with torch.no_grad():
        fields = [array(field) for field in method.fields(torch.from_numpy((array(images) - MEAN) / STD).float())]
        straight = looked_up(looked_up(array(images), fields[0]), fields[1])
        features = method.backbone(torch.from_numpy(straight).float())
        return fields, straight, features, method.student(features)[0]


def worked_out(method, images):
    """The three parts of the loss, by the networks as they are, in training."""
    method.fields.train(), method.student.train()
    fields, straight, features, student = seen_by_scipy(method, images)
    back = looked_up(looked_up(straight, fields[3]), fields[2])
    moved = np.square((back - array(images)) / STD).mean() * method.config.gamma
    moved += sum(np.linalg.norm(field, axis=1).mean() for field in fields[:2]) + sum(map(rough_by_numpy, fields))
    recalled = recalled_by_numpy(array(features[-1]), array(method.student.memory))[1] if method.config.memory else 0
    return whole_loss(features, student), moved, recalled


@pytest.mark.parametrize("settings", [{"memory": 5, "gamma": 3.0}, {"memory": 0}])
def test_the_first_loss_by_hand(settings, learned, tiny_images):
    method = learned("dmad", STILL | settings)
    rebuilt, moved, recalled = worked_out(method, tiny_images(8).images)
    found = method.curve[0]
    assert found["rebuilt"] == pytest.approx(rebuilt, rel=1e-3)
    assert found["moved"] == pytest.approx(moved, rel=1e-3)
    assert found["recalled"] == pytest.approx(recalled, rel=1e-3)
    assert found["loss"] == pytest.approx(rebuilt + moved + recalled, rel=1e-3)


def test_the_fields_learn_of_features_through_the_backbone_which_stays(learned, tiny_images):
    method, images = learned("dmad", STILL), tiny_images(4).images
    *there, _, _ = method.fields(images)
    features = method.backbone(dmad.displaced(images, there))
    layer_loss(features, [map_.detach() for map_ in method.student(features)[0]]).backward()
    coarse, fine, *back = (head[-1].weight.grad for head in method.fields.heads)
    assert coarse.abs().sum() > 0 and fine.abs().sum() > 0 and back == [None, None]
    assert all(values.grad is None for values in method.backbone.parameters())


def maps_by_scipy(method, images):
    """Cosines displaced back, and lengths of what leads back, both smoothed."""
    fields, _, features, student = seen_by_scipy(method, images)
    apart = np.zeros((len(images), 1, 64, 64))
    for target, given in zip(features, student):
        away = 1 - F.cosine_similarity(target, given)[:, None]
        apart += F.interpolate(away, size=(64, 64), mode="bilinear", align_corners=True).numpy()
    coarse, fine = (np.linalg.norm(field, axis=1, keepdims=True) for field in fields[2:])
    apart = looked_up(looked_up(apart, fields[3]), fields[2])
    moved = looked_up(fine, fields[2]) + coarse
    return [np.stack([gaussian_filter(map_, 4.0) for map_ in maps[:, 0]]) for maps in (apart, moved)]


@pytest.mark.parametrize("normalise", ["training", "test"])
def test_map_and_score_by_scipy(normalise, learned, tiny_images, planted):
    method = learned("dmad", {"steps": 4, "memory": 6, "displaced": 0.5, "normalise": normalise})
    scaling = tiny_images(8)
    if normalise == "test":
        assert float(method.ratios.abs().sum()) == 0
        scaling = tiny_images(5, seed=3)
        method.see_test(scaling)
    apart, moved = maps_by_scipy(method, scaling.images)
    of_map = np.ptp(apart) / np.ptp(moved)
    of_score = np.ptp(apart.max(axis=(1, 2))) / np.ptp(moved.max(axis=(1, 2))) if normalise == "test" else of_map
    np.testing.assert_allclose(method.ratios, [of_map, of_score], rtol=1e-2)
    images = planted(tiny_images(2, seed=9).images)
    apart, moved = maps_by_scipy(method, images)
    with torch.no_grad():
        found = method(images)
    np.testing.assert_allclose(found.map, apart + 0.5 * of_map * moved, rtol=1e-2, atol=1e-4)
    expected = apart.max(axis=(1, 2)) + 0.5 * of_score * moved.max(axis=(1, 2))
    np.testing.assert_allclose(found.score, expected, rtol=1e-2)


def test_the_rate_falls_by_half_a_cosine(learned, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def watched(optimiser, *given, **named):
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    learned("dmad", {"steps": None, "epochs": 5, "batch_size": 4, "memory": 5}, count=8, size=(32, 32), layers=(1, 2))
    expected = [0.005 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert rates == pytest.approx(np.repeat(expected, 2).tolist())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_it_learns_from_networks_of_the_catalogue(name, learned, tiny_images):
    weights = "pretrained" if name == "efficientnet_lite0" else "random"  # the embedded ones
    backbone = build_backbone(name, (1, 2), weights)
    method = learned("dmad", {"steps": 1}, 4, (64, 48), backbone=backbone, layers=(1, 2))
    with torch.no_grad():
        found = method(tiny_images(2, (64, 48)).images)
    assert found.map.shape == (2, 64, 48) and found.score.isfinite().all()


def test_one_level_alone_one_image_and_images_too_small(learned, tiny_images):
    method = learned("dmad", {"score": "mean"}, count=1, layers=(2,))
    with torch.no_grad():
        assert method(tiny_images(2).images).score.isfinite().all()
    with pytest.raises(ConfigError, match="of more than 16 pixels"):
        learned("dmad", layers=(2,), size=(16, 16))
