"""Couplings against autograd's Jacobian and NumPy; FastFlow, CS-Flow, DifferNet, AE-FLOW against a few lines each."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import similarity
from scipy.ndimage import gaussian_filter, rotate
from scipy.stats import norm

from blemish.backbones.backbone import build_backbone
from blemish.errors import ConfigError
from blemish.methods import differnet
from blemish.methods.csflow import CrossScale
from blemish.methods.differnet import turned
from blemish.ops.coupling import Coupling, Flow, convolutional, dense, negative_log_likelihood

FLOWS = {
    "cells and neighbours": (partial(convolutional, (3, 3)), False, [(2, 5, 3, 4)]),
    "single cells": (partial(convolutional, (1, 1)), False, [(2, 4, 3, 3)]),
    "vectors": (partial(dense, 7), True, [(2, 5)]),
    "three scales": (partial(CrossScale, 6, 3), True, [(2, 5, 4, 4), (2, 5, 2, 2), (2, 5, 1, 1)]),
    "three odd scales": (partial(CrossScale, 6, 5), True, [(2, 4, 5, 3), (2, 4, 3, 2), (2, 4, 2, 1)]),
}
SMALL = {"csflow": {"hidden": 16}, "differnet": {"hidden": 16, "test_turns": 3}, "aeflow": {"width": 8}, "fastflow": {}}


@pytest.fixture
def judged():
    """``judged(method, images)``, as an inspector does."""
    return torch.inference_mode()(lambda method, images: method(images))


def unsettled(module, seed=0):
    """With values that are far from where learning begins."""
    generator = torch.Generator().manual_seed(seed)
    module.reset(generator)
    with torch.no_grad():
        for values in module.parameters():
            values.add_(0.3 * torch.randn(values.shape, generator=generator))
    return module.requires_grad_(False)


@pytest.mark.parametrize(("subnet", "two_sided", "shapes"), FLOWS.values(), ids=FLOWS)
def test_volume_is_autograd_s_log_determinant_and_the_inverse_gives_the_input_back(subnet, two_sided, shapes):
    flow = unsettled(Flow(shapes[0][1], [subnet] * 3, 2.0, two_sided))
    maps = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    flowed, volume = flow(*maps)
    assert [map_.shape for map_ in flowed] == [map_.shape for map_ in maps]
    assert volume.abs().min() > 0.1
    back = flowed
    for step in reversed(flow.steps):
        back = step.inverse(back)
    for map_, given in zip(back, maps):
        torch.testing.assert_close(map_, given, rtol=1e-3, atol=1e-3)
    sizes = [map_[0].numel() for map_ in maps]

    def of_numbers(numbers):
        parts = [part.view(1, *shape[1:]) for part, shape in zip(numbers.split(sizes), shapes)]
        return torch.cat([map_.flatten() for map_ in flow(*parts)[0]])

    for image in range(2):
        jacobian = torch.autograd.functional.jacobian(of_numbers, torch.cat([map_[image].flatten() for map_ in maps]))
        found = np.linalg.slogdet(jacobian.double().numpy())[1]
        assert float(volume[image]) == pytest.approx(found, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_coupling_by_hand(two_sided):
    step = unsettled(Coupling(5, partial(dense, 4), 2.0, two_sided))
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    order = step.order.tolist()
    assert sorted(order) == list(range(5))
    first, second = np.split(vectors.numpy()[:, order], [3], axis=1)

    def read(side, half):
        return np.split(step.subnets[side](torch.from_numpy(half)).numpy(), 2, axis=1)

    if two_sided:
        log, shift = read(1, second)
        first = first * np.exp(2 * 2 / np.pi * np.arctan(log / 2)) + shift
        log, shift = read(0, first)
        expected = np.hstack([first, second * np.exp(2 * 2 / np.pi * np.arctan(log / 2)) + shift])
    else:
        log, shift = read(0, first)
        expected = np.hstack([first, second * np.exp(2 * np.tanh(log / 10)) + shift / 10])
        expected = expected * 0.2 * np.log1p(np.exp(step.scale.numpy() / 2)) + step.shift.numpy()
    np.testing.assert_allclose(step([vectors])[0][0], expected, rtol=1e-5, atol=1e-5)


def test_a_fresh_coupling_scales_by_one_and_another_generator_draws_another_order():
    steps = [Coupling(64, partial(dense, 4), 2.0) for _ in range(2)]
    for seed, step in enumerate(steps):
        step.reset(torch.Generator().manual_seed(seed))
        scale, shift = step._affine(torch.zeros(1, 64))
        torch.testing.assert_close(scale, torch.ones(64))
        assert not shift.any()
    assert steps[0].order.tolist() != steps[1].order.tolist()


def test_surprise_is_scipy_s_likelihood_but_for_a_constant():
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
    volume = torch.tensor([0.5, -2.0])
    expected = [-sum(norm.logpdf(map_[i]).sum() for map_ in maps) - float(volume[i]) for i in range(2)]
    np.testing.assert_allclose(
        negative_log_likelihood(maps, volume) + 60 * math.log(2 * math.pi) / 2, expected, rtol=1e-5
    )


@pytest.mark.slow
def test_a_flow_learns_a_distribution_down_to_its_entropy():
    """Correlated normal numbers, bent: y = x2 + x1²/2, which keeps volumes, so that the entropy is the normal one's."""
    generator = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    entropy = math.log((2 * math.pi * math.e) ** 2 * float(torch.det(covariance))) / 2
    flow = Flow(2, [partial(dense, 32)] * 4, 2.0, two_sided=True)
    flow.reset(generator)
    adam = torch.optim.Adam(flow.parameters(), 5e-3)

    def drawn(count):
        numbers = torch.randn(count, 2, generator=generator) @ torch.linalg.cholesky(covariance).T
        return torch.stack([numbers[:, 0], numbers[:, 1] + numbers[:, 0].square() / 2], dim=1)

    for _ in range(400):
        adam.zero_grad()
        negative_log_likelihood(*flow(drawn(256))).mean().backward()
        adam.step()
    with torch.no_grad():
        reached = float(negative_log_likelihood(*flow(drawn(20_000))).mean()) + math.log(2 * math.pi)
    assert entropy - 0.03 < reached < entropy + 0.1


# Sizes, counted by hand from the published widths


def test_parameters_are_those_that_the_published_widths_make(learned, tiny_backbone):
    method = learned("fastflow", {"steps": 1}, backbone=tiny_backbone((1, 2, 3), width=64), size=(64, 64), count=1)
    flows, norms = (sum(p.numel() for p in part.parameters()) for part in (method.flows, method.norms))
    assert flows == 8 * (27_872 + 111_040 + 443_264)  # of ResNet18's 64, 128 and 256 channels
    assert norms == 2 * (64 * 16**2 + 128 * 8**2 + 256 * 4**2)
    with torch.device("meta"):
        differnet = Flow(768, [partial(dense, 2048)] * 8, 3.0, two_sided=True)
        csflow = Flow(304, [partial(CrossScale, 1024, kernel) for kernel in (3, 3, 3, 5)], 3.0, two_sided=True)
    assert sum(p.numel() for p in differnet.parameters()) == 16 * 10_754_816
    assert sum(p.numel() for p in csflow.parameters()) == 2 * (3 * 23_819_347 + 66_155_603)


# FastFlow


def likelihoods(flowed, volume):
    """``b``: minus the log-likelihood of maps, by SciPy, less that of as many zeros."""
    normal = sum(-norm.logpdf(map_.double().numpy()).reshape(len(map_), -1).sum(axis=1) for map_ in flowed)
    return normal - sum(map_[0].numel() for map_ in flowed) * math.log(2 * math.pi) / 2 - volume.numpy()


@pytest.mark.parametrize("settings", [{}, {"alternate": True, "sigma": 4.0}], ids=str)
def test_fastflow_s_first_loss_and_map(settings, learned, tiny_images, planted, judged):
    fresh = learned("fastflow", {"steps": 1, "batch_size": 8, "learning_rate": 1e-12, **settings}, count=8)
    kernels = [step.subnets[0][0].kernel_size[0] for step in fresh.flows[0].steps]
    assert kernels == ([3, 1] * 4 if settings else [3] * 8)
    expected, maps = 0.0, []
    images = planted(tiny_images(2, seed=5).images)
    with torch.no_grad():
        known, seen = fresh.backbone(tiny_images(8).images), fresh.backbone(images)
        for flow, good, given in zip(fresh.flows, known, seen):
            expected += likelihoods(*flow(F.layer_norm(good, good.shape[1:]))).mean()
            (z,), _ = flow(F.layer_norm(given, given.shape[1:]))
            likely = -(-z.square().mean(dim=1, keepdim=True) / 2).exp()
            maps.append(F.interpolate(likely, size=(64, 64), mode="bilinear", align_corners=False)[:, 0].numpy())
    assert fresh.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)
    map_ = np.mean(maps, axis=0)
    map_ = np.stack([gaussian_filter(one, 4.0) for one in map_]) if settings else map_
    found = judged(fresh, images)
    np.testing.assert_allclose(found.map, map_, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.score, found.map.amax(dim=(1, 2)))


# CS-Flow


def smaller(images):
    return [images, images[..., ::2, ::2], images[..., ::4, ::4]]


def standardised(known, seen):
    mean, deviation = known.mean(dim=(0, 2, 3), keepdim=True), known.std(dim=(0, 2, 3), keepdim=True, correction=0)
    return (seen - mean) / (deviation + 0.1 * deviation.mean())


@pytest.mark.parametrize("standardise", [False, True])
def test_csflow_s_first_loss_score_and_map(standardise, learned, tiny_images, planted, judged):
    settings = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12, "hidden": 16, "standardise": standardise}
    fresh = learned("csflow", settings, count=8, layers=(2,))
    images, good = planted(tiny_images(2, seed=5).images), tiny_images(8).images
    known, seen = ([fresh.backbone(i)[0] for i in smaller(given)] for given in (good, images))
    z = [standardised(*pair) for pair in zip(known, seen)] if standardise else seen
    taken = [standardised(m, m) for m in known] if standardise else known
    # A fresh flow permutes and no more: its networks' gains are 0.
    fresh_loss = torch.cat([map_.flatten(1) for map_ in taken], dim=1).square().mean() / 2
    assert fresh.curve[0]["loss"] == pytest.approx(float(fresh_loss), rel=1e-4)
    found = judged(fresh, images)
    numbers = torch.cat([map_.flatten(1) for map_ in z], dim=1)
    torch.testing.assert_close(found.score, numbers.square().mean(dim=1) / 2, rtol=1e-4, atol=1e-4)
    squares = z[0].square().mean(dim=1, keepdim=True)
    large = F.interpolate(squares, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found.map, large, rtol=1e-3, atol=1e-4)


def test_csflow_clips_its_gradient_and_its_scales_exchange_what_they_see(learned, updates, tiny_images):
    learned("csflow", {"steps": 2, "hidden": 8, "clip": 1e-3})
    for update in updates:
        assert update.betas == (0.9, 0.999)
        total = math.sqrt(sum(float(gradient.square().sum()) for gradient in update.gradients))
        assert total == pytest.approx(1e-3, rel=1e-2)
    subnet = CrossScale(6, 3, 2, 4)
    with torch.no_grad():
        subnet.gain.fill_(1)
    maps = [torch.randn(1, 2, side, side, requires_grad=True) for side in (4, 2, 1)]
    subnet(*maps)[1].sum().backward()
    assert all(bool(map_.grad.any()) for map_ in maps)


# DifferNet


@pytest.mark.parametrize("name", ["differnet", "csflow"])
def test_a_transformer_sees_every_fourth_pixel_in_whole_cells_or_is_refused(name, learned, tiny_backbone):
    backbone = tiny_backbone()
    backbone.tokens = True
    with pytest.raises(ConfigError, match="use a --size of multiples of 32"):
        learned(name, size=(64, 80), backbone=backbone)
    assert learned(name, {"hidden": 8, "flow_steps": 1}, size=(64, 64), backbone=backbone) is not None


def test_grids_are_those_of_the_maps_wherever_the_backbone_is(tiny_backbone):
    backbone = build_backbone("test_convnext", (1, 2), "random", 0)
    assert backbone.grids((125, 150)) == [map_.shape[2:] for map_ in backbone(torch.rand(1, 3, 125, 150))]
    elsewhere = tiny_backbone((1, 2))
    maps = [map_.shape[2:] for map_ in elsewhere(torch.rand(1, 3, 50, 70))]
    assert elsewhere.to("meta").grids((50, 70)) == maps  # as where a card has it


@pytest.mark.parametrize(("name", "options"), [
    ("fastflow", {"flow_steps": 1}), ("csflow", {"hidden": 4}), ("cavga", {"latent": 4}),
])  # fmt: skip
def test_a_backbone_may_round_its_grid_down(name, options, learned):
    backbone = build_backbone("test_convnext", (1, 2), "random", 0)
    for size in ((125, 125), (136, 150)):
        learned(name, {**options, "steps": 1, "batch_size": 2}, count=2, size=size, backbone=backbone)


def test_turned_is_scipy_s_rotation():
    images = torch.rand(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    found = turned(images, torch.tensor([0.0, 90.0, 30.0]))
    torch.testing.assert_close(found[0], images[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], images[1].rot90(1, (-2, -1)), rtol=0, atol=1e-4)
    expected = rotate(images[2].numpy(), 30, axes=(2, 1), reshape=False, order=1, mode="constant")
    np.testing.assert_allclose(found[2][:, 10:22, 10:22], expected[:, 10:22, 10:22], atol=1e-4)
    assert not found[2][:, 0, 0].any()
    wide = turned(torch.ones(1, 1, 16, 48), torch.tensor([90.0]))[0, 0]
    assert wide[:, 17:31].min() > 0.99 and not wide[:, :15].any()  # pixels stay square


@pytest.mark.slow
def test_differnet_s_score_is_the_mean_over_directions(learned, tiny_images, planted, judged):
    method = learned("differnet", {"hidden": 16, "test_turns": 3}, count=6)
    images = planted(tiny_images(2, seed=5).images)
    total = torch.zeros(2)
    for angle in (0.0, 120.0, 240.0):
        posed = turned(images, torch.full((2,), angle))
        means = [method.backbone(i) for i in smaller(posed)]
        vectors = [torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1)[..., None, None] for maps in means]
        with torch.no_grad():
            (z,), _ = method.flow(torch.cat(method.scale(vectors), dim=1).flatten(1))
        total += z.square().mean(dim=1)
    found = judged(method, images)
    assert found.map is None
    torch.testing.assert_close(found.score, total / 3, rtol=1e-3, atol=1e-4)


def test_differnet_sees_each_image_in_as_many_directions_as_it_is_told(learned, listener, updates):
    learned("differnet", {"hidden": 8, "turns": 3, "steps": 1, "standardise": True}, count=4, teacher=listener)
    assert {len(images) for images in listener.noisy} == {12}
    assert len(listener.noisy) == 2 * 3 and not listener.clean  # once for the scale, once for the step; three sizes
    assert updates[0].betas == (0.8, 0.8)
    learned("differnet", {"hidden": 8, "turns": 0, "steps": 1}, count=4, teacher=listener)
    assert len(listener.clean) == 1


# AE-FLOW


@pytest.mark.parametrize("standardise", [False, True])
def test_aeflow_s_first_loss_score_and_map(standardise, learned, tiny_images, planted, judged):
    settings = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12, "width": 8, "alpha": 0.25, "beta": 0.7}
    settings["standardise"] = standardise
    fresh = learned("aeflow", settings, count=8, layers=(2,))
    images, good = planted(tiny_images(2, seed=5).images), tiny_images(8).images
    with torch.no_grad():
        known, seen = fresh.backbone(good)[0], fresh.backbone(images)[0]
        (z,), volume = fresh.flow(standardised(known, known) if standardise else known)
        bits = (likelihoods([z], volume) / z[0].numel() + math.log(2 * math.pi) / 2) / math.log(2)
        squares = (fresh.decoder(z) - (2 * good - 1)).square().mean()
        assert fresh.curve[0]["loss"] == pytest.approx(0.75 * float(squares) + 0.25 * bits.mean(), rel=1e-4)
        (z,), _ = fresh.flow(standardised(known, seen) if standardise else seen)
        given_back = (fresh.decoder(z).double().numpy() + 1) / 2
    likely = np.exp(norm.logpdf(z.numpy()).mean(axis=(1, 2, 3)))
    similar = [similarity(*pair).mean() for pair in zip(images.double().numpy(), given_back)]
    found = judged(fresh, images)
    np.testing.assert_allclose(found.score, -0.7 * likely - 0.3 * np.array(similar), rtol=1e-3, atol=1e-4)
    # On a fresh model the map of the good part of an image lies about as low as its score.
    assert found.map.shape == (2, 64, 64)
    assert float(found.map[0, 20:32, 28:40].mean()) > float(found.map[0, 44:, :16].mean())


def test_aeflow_gives_an_image_back_whatever_the_stride(learned, tiny_images, judged):
    for layers, size in (((1,), (64, 64)), ((4,), (72, 60))):
        method = learned("aeflow", {"width": 4}, layers=layers, size=size)
        assert judged(method, tiny_images(2, size).images).map.shape == (2, *size)
    with pytest.raises(ConfigError, match="windows of 11 pixels, and these are 8 x 64: choose a --size of 11 or more"):
        learned("aeflow", size=(8, 64))


# All


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_learning_makes_good_images_likelier(name, learned, tiny_images):
    method = learned(name, {**SMALL[name], "steps": None, "epochs": 8, "batch_size": 4, "learning_rate": 2e-3})
    assert method.curve[-1]["loss"] < method.curve[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_one_image_equal_images_and_a_grid_of_one_cell(name, learned, tiny_images, judged):
    equal = tiny_images(3)
    equal.images = torch.full_like(equal.images, 0.5)
    cases = [{"count": 1}, {"images": equal}, {"layers": (2,), "size": (16, 16)}]
    cases += [{"layers": (3,), "size": (16, 16)}]
    for case in cases:
        method = learned(name, SMALL[name], **case)
        found = judged(method, tiny_images(2, case.get("size", (64, 64)), seed=7).images)
        assert found.score.isfinite().all()
        assert found.map is None or found.map.isfinite().all()


def test_a_subnet_of_three_scales_by_hand(learned):
    subnet, generator = CrossScale(6, 3, 2, 4), torch.Generator().manual_seed(0)
    with torch.no_grad():
        subnet.gain.copy_(torch.tensor([1.0, -2.0, 0.5]))
    maps = [torch.randn(1, 2, side, side, generator=generator) for side in (8, 4, 2)]

    def through(layer, map_, stride=1):
        return F.conv2d(map_, layer.weight, layer.bias, stride, padding=1)

    inner = [through(layer, map_) for layer, map_ in zip(subnet.enter, maps)]
    inner = [torch.where(map_ > 0, map_, 0.1 * map_) for map_ in inner]
    expected = [through(layer, map_) for layer, map_ in zip(subnet.leave, inner)]
    for fine in (0, 1):
        large = F.interpolate(inner[fine + 1], scale_factor=2, mode="bilinear", align_corners=False)
        expected[fine] = expected[fine] + through(subnet.up[fine], large)
        expected[fine + 1] = expected[fine + 1] + through(subnet.down[fine], inner[fine], 2)
    for found, map_, gain in zip(subnet(*maps), expected, (1.0, -2.0, 0.5)):
        torch.testing.assert_close(found, gain * map_, rtol=1e-4, atol=1e-5)
    method = learned("csflow", {"hidden": 4}, layers=(2,))
    assert [step.subnets[0].enter[0].kernel_size[0] for step in method.flow.steps] == [3, 3, 3, 5]


@pytest.mark.parametrize("standardise", [False, True])
def test_differnet_s_first_loss_is_the_likelihood_by_the_number(standardise, learned, tiny_images):
    settings = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12, "hidden": 8, "turns": 0, "test_turns": 1}
    settings["standardise"] = standardise
    method, good = learned("differnet", settings), tiny_images(8).images
    vectors = []
    for seen in smaller(good):
        means = torch.cat([map_.mean(dim=(2, 3), keepdim=True) for map_ in method.backbone(seen)[-1:]], dim=1)
        if len(method.backbone.levels) == 2:  # joined on the deepest grid
            shallow, deep = method.backbone(seen)
            means = torch.cat([F.adaptive_avg_pool2d(shallow, deep.shape[2:]), deep], dim=1)
            means = means.mean(dim=(2, 3), keepdim=True)
        vectors.append(standardised(means, means) if standardise else means)
    with torch.no_grad():
        (z,), volume = method.flow(torch.cat(vectors, dim=1).flatten(1))
    expected = -norm.logpdf(z.numpy()).sum(axis=1) - z.shape[1] * math.log(2 * math.pi) / 2 - volume.numpy()
    assert abs(volume).max() > 0.01
    assert method.curve[0]["loss"] == pytest.approx(expected.mean() / z.shape[1], rel=1e-4)


def test_differnet_learns_from_all_directions_and_judges_in_even_ones(learned, tiny_images, monkeypatch):
    seen, turned = [], differnet.turned
    monkeypatch.setattr(differnet, "turned", lambda images, degrees: seen.append(degrees) or turned(images, degrees))
    method = learned("differnet", {"hidden": 4, "turns": 8, "test_turns": 4, "steps": 2})
    degrees = torch.cat(seen)
    assert 0 <= degrees.min() < 60 and 300 < degrees.max() < 360
    seen.clear()
    with torch.inference_mode():
        method(tiny_images(1).images)
    assert seen[0].tolist() == [0, 90, 180, 270]


def test_aeflow_s_map_is_the_score_place_by_place(learned, tiny_images, planted):
    fresh = learned("aeflow", {"steps": 1, "learning_rate": 1e-12, "width": 8, "beta": 0.7}, count=4, layers=(2,))
    assert len({tuple(step.order.tolist()) for step in fresh.flow.steps}) == 8  # an order drawn for each
    images = planted(tiny_images(2, seed=5).images)
    with torch.no_grad():
        seen = fresh.backbone(images)[0]
        (z,), _ = fresh.flow(seen)
        given_back = (fresh.decoder(z).double().numpy() + 1) / 2
        found = fresh(images).map

    def mean(values):
        return np.stack([gaussian_filter(v, 1.5, truncate=3.4)[5:-5, 5:-5] for v in values])

    likely = np.exp(norm.logpdf(z.double().numpy()).mean(axis=1))[:, None]
    large = F.interpolate(torch.from_numpy(likely), size=(64, 64), mode="bilinear", align_corners=False)[:, 0].numpy()
    for image, one, other, map_ in zip(range(2), images.double().numpy(), given_back, large):
        a, b = mean(one), mean(other)
        covariance, spread = mean(one * other) - a * b, mean(one**2) - a**2 + mean(other**2) - b**2
        similar = (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a**2 + b**2 + 1e-4) * (spread + 9e-4))
        similar = np.pad(similar.mean(axis=0), 5, mode="edge")
        np.testing.assert_allclose(found[image], -0.7 * map_ - 0.3 * similar, atol=1e-3)


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_coupling_s_numbers_are_cut_off_at_a_million(two_sided):
    step = Coupling(4, partial(dense, 4), 2.0, two_sided)
    step.reset(torch.Generator().manual_seed(0))
    (made,), _ = step([torch.full((1, 4), 1e9)])
    assert float(made.detach().abs().max()) <= 1e6 * (1 + 1e-5)
