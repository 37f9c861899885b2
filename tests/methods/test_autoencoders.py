"""AE-SSIM, gamma-VAE, visually explaining VAE, CAVGA and AA-BiGAN: their rules worked out in NumPy and SciPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import array, similarity
from scipy.optimize import minimize_scalar
from torch.distributions import Bernoulli, Normal, kl_divergence

import blemish
from blemish.backbones.backbone import NoBackbone
from blemish.contract import Backbone, TrainingImages
from blemish.deploy.graph import in_float32
from blemish.errors import ConfigError
from blemish.methods import aabigan, cavga
from blemish.methods.expvae import negative_bounds
from blemish.methods.gammavae import gamma_loss
from blemish.ops import autoencoder
from blemish.ops.gradcam import gradcam
from blemish.ops.residual import untrained
from blemish.registry import METHODS, method_class
from blemish.run import Run

ON_PIXELS = [name for name in METHODS if method_class(name).on_pixels]


def numbers(network):
    return sum(values.numel() for values in network.parameters())


# What sees pixels alone


@pytest.mark.parametrize("name", ON_PIXELS)
def test_a_backbone_for_what_sees_pixels_is_refused(name, tmp_path):
    from PIL import Image

    folders = ("good", "anomalous") if METHODS[name].regime == "weak" else ("good",)
    for folder in folders:
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.effect_noise((64, 64), 40 + i).save(tmp_path / folder / f"{i}.png")
    with pytest.raises(
        ConfigError, match=f"{name} sees pixels alone and has no use for resnet18: leave --backbone out"
    ):
        blemish.fit(tmp_path, method=name, backbone="resnet18", weights="random", size=64, calibration="none")


def test_a_model_that_sees_pixels_holds_no_backbone(learned, tmp_path):
    from safetensors import safe_open

    from blemish.data.preprocessing import Preprocessing
    from blemish.inspection.inspector import Inspector, load

    method = learned("ae", backbone=NoBackbone())
    inspector = Inspector(method=method, name="ae", preparation=Preprocessing(size=(64, 64)))
    path = inspector.save(tmp_path / "m.blemish")
    with safe_open(path, framework="pt") as file:
        assert not [key for key in file.keys() if "backbone" in key]  # noqa: SIM118  # it is no mapping
    assert load(path).method.backbone.spec() == {"name": "none", "stages": []}


# AE-SSIM and AE-L2


@pytest.mark.parametrize("measure", ["ssim", "l2"])
def test_an_auto_encoder_learns_by_what_it_judges_by(measure, learned, tiny_images):
    settings = {"measure": measure, "steps": 6, "batch_size": 8, "learning_rate": 1e-3}
    method = learned("ae", settings)
    losses = [epoch["loss"] for epoch in method.curve]
    assert losses[-1] < losses[0]
    images = tiny_images(8).images
    with torch.no_grad():
        found = method(images)
    assert torch.equal(found.score, found.map.amax(dim=(1, 2)))
    made = array(method.network(images).sigmoid())
    if measure == "l2":
        expected = ((array(images) - made) ** 2).mean(axis=1)
        np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-6)


# gamma-VAE


def test_gamma_is_the_one_that_makes_the_bound_least():
    rng = np.random.default_rng(0)
    images, made, divergences = rng.random((4, 3, 5, 6)), rng.random((4, 3, 5, 6)), rng.random(4) * 9
    values, squares = images[0].size, ((images - made) ** 2).sum(axis=(1, 2, 3))

    def negative_bound(log_gamma):
        return (values / 2 * log_gamma + squares / (2 * np.exp(log_gamma)) + divergences).mean()

    best = minimize_scalar(negative_bound, bounds=(-10, 3), method="bounded", options={"xatol": 1e-8})
    found = gamma_loss(*(torch.from_numpy(value) for value in (images, made, divergences)))
    assert float(found["gamma"]) == pytest.approx(np.exp(best.x), rel=1e-5)
    assert values * float(found["loss"]) + values / 2 == pytest.approx(best.fun)


def test_a_step_of_the_walk_is_the_codes(learned, tiny_images):
    method = learned("gammavae", {"rate": 0.3, "weight": 0.2})
    start, images = tiny_images(2).images, tiny_images(2, seed=3).images
    x, begun, made = array(images), array(start), array(method.network(images)[0].sigmoid())
    expected = x - 0.3 * (2 * (x - made) + 0.2 * np.sign(x - begun)) * (x - made) ** 2
    np.testing.assert_allclose(method._step(images, start).detach(), expected.clip(0, 1), atol=1e-6)


def test_the_walk_lowers_the_error_and_may_follow_the_gradient_through_the_network(learned, tiny_images, planted):
    images = planted(tiny_images(3, seed=5).images)
    walks = {}
    for through in (False, True):
        method = learned("gammavae", {"through": through, "iterations": 10, "measure": "l2"})
        with torch.inference_mode():
            found = method(images)
            moved = images
            for _ in range(10):
                moved = method._step(moved, images)
            before, after = (((x - method._given_back(x)) ** 2).sum() for x in (images, moved))
        assert after < before
        torch.testing.assert_close(found.map, ((images - moved) ** 2).mean(dim=1))
        walks[through] = moved
    assert not torch.equal(walks[False], walks[True])


def test_the_gradient_through_the_network_is_the_difference_quotient(learned, tiny_images):
    method = learned("gammavae", {"through": True, "rate": 0.01})
    images = tiny_images(2, seed=5).images.clamp(0.1, 0.9)
    with torch.no_grad():
        step = array(images - method._step(images, images))
        method.network.double()

        def given_back(pixels):
            return method.network.decoder(method.network.encoder(pixels)[:, :100]).sigmoid()

        x, shift = (
            images.double(),
            1e-5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double(),
        )
        made, errors = given_back(x), [float((y - given_back(y)).square().sum()) for y in (x + shift, x - shift)]
    slopes = step / (0.01 * array(x - made) ** 2)
    assert (slopes * shift.numpy()).sum() == pytest.approx((errors[0] - errors[1]) / 2, rel=1e-2)


# Visually explaining VAE


def test_the_map_is_grad_cam_worked_out_layer_by_layer(learned, tiny_images):
    method = learned("expvae", {"hidden": 20, "latent": 6})
    images = tiny_images(2, seed=4).images
    layers = method.network.encoder
    features = array(layers[: method._last](images))
    hidden, code = layers[-3], layers[-1]
    weights, bias = array(hidden.weight), array(hidden.bias)
    before = np.einsum("hcyx,bcyx->bh", weights, features.clip(0)) + bias
    slopes = np.einsum("jh,bh,hcyx->bcyx", array(code.weight)[:6, :, 0, 0], before > 0, weights) * (features > 0)
    slopes /= np.sqrt((slopes**2).mean(axis=(1, 2, 3), keepdims=True))
    expected = torch.from_numpy(np.einsum("bc,bcyx->byx", slopes.mean(axis=(2, 3)), features))
    expected = torch.nn.functional.interpolate(expected[:, None], size=(64, 64), mode="bilinear")[:, 0].abs()
    with torch.inference_mode():
        found = method(images)
    np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.score, expected.mean(dim=(1, 2)), rtol=1e-3)
    assert features.shape[1:] == (128, 8, 8)


def test_the_bound_is_torch_s():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((3, 3, 4, 4), generator=generator).round()  # of 0 and 1, which Bernoulli takes
    logits, mean, log_variance = (torch.randn(shape, generator=generator) for shape in ((3, 3, 4, 4), (3, 2), (3, 2)))
    pixels = -Bernoulli(logits=logits).log_prob(images).sum(dim=(1, 2, 3))
    code = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(negative_bounds(images, logits, mean, log_variance), pixels + code)


# CAVGA


@pytest.mark.parametrize("labels", [True, False])
def test_attention_in_closed_form_is_grad_cam_s(labels, learned, tiny_images):
    method = learned("cavga", {"labels": labels, "latent": 6}, bad=tiny_images(4, seed=3))
    assert bool(method.guided) == labels
    features = method.encoder(tiny_images(2, seed=4).images)[-1].detach().requires_grad_()  # 16 channels: 4 is the root
    if labels:
        maps = [gradcam(features, method.classifier(method.mean(features))[:, which]) for which in (0, 1)]
        expected = (torch.stack(maps, dim=1) / 4).sigmoid()
    else:
        expected = (gradcam(features, method.mean(features)) / 4)[:, None].sigmoid().expand(-1, 2, -1, -1)
    torch.testing.assert_close(method._attention(features), expected, rtol=1e-4, atol=1e-5)


def test_only_images_judged_right_teach_the_attention(learned, tiny_images):
    method = learned("cavga", {"latent": 6}, bad=tiny_images(4, seed=3))
    features = method.encoder(tiny_images(4, seed=4).images)[-1].detach()
    with torch.no_grad():
        mean = method.mean(features)
        for bias, is_right in ((9.0, 1), (-9.0, 0)):
            method.classifier.bias.copy_(torch.tensor([bias, 0.0]))
            logits = array(method.classifier(mean)).reshape(4, 2)
            entropy = np.log(np.exp(logits).sum(axis=1)) - logits[range(4), [0, 0, 0, 1]]
            attention = array(method._attention(features[:3]))
            missed = (1 - attention[:, 0] + attention[:, 1]).mean()
            expected = 0.001 * (entropy[:3].mean() + entropy[3]) / 2 + 0.01 * missed * is_right
            assert float(method._guide(features, mean, 3)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["cavga", "draem", "students"])
def test_learning_anew_begins_anew(name, learned, tiny_images, tiny_backbone, tiny_teacher):
    settings = {"network_width": 2, "filters": 4, "spacing": 2, "fields": (17,)}
    cls = method_class(name)
    method = learned(name, {key: value for key, value in settings.items() if hasattr(cls.Config(), key)})
    first = {key: value.clone() for key, value in method.state_dict().items()}
    training = TrainingImages(tiny_images(8), tiny_images(0), METHODS[name].regime)
    method.fit(training, tiny_teacher(method.backbone), Run())
    for key, value in method.state_dict().items():
        torch.testing.assert_close(value, first[key], rtol=0, atol=0, msg=key)


def test_every_copy_of_a_backbone_is_exported_in_float32(learned, tiny_backbone):
    backbone = tiny_backbone()
    backbone.precision = replace(backbone.precision, dtype=torch.bfloat16)
    method = in_float32(learned("cavga", backbone=backbone))
    networks = [module for module in method.modules() if isinstance(module, Backbone)]
    assert [network.precision.dtype for network in networks] == [torch.float32] * 2


def test_images_too_small_for_two_cells_are_refused(learned):
    with pytest.raises(ConfigError, match="32 x 48 leave cavga's discriminator a single cell"):
        learned("cavga", size=(32, 48))


# AA-BiGAN


def test_aa_bigan_s_networks_and_scores_are_the_released_ones(learned, tiny_images):
    trunk = 25 * (3 * 32 + 32 * 64 + 64 * 128)
    method = learned("aabigan", {"steps": 1}, bad=tiny_images(4, seed=3))
    assert numbers(method.encoder) == trunk + 2048 * 128
    assert numbers(method.generator) == 25 * (8 * 128 + 128 * 64 + 64 * 32 + 32 * 3)
    code, image = untrained(lambda: aabigan.build_discriminators(128))
    assert numbers(code) == trunk + 129 * 512 + (2048 + 512 + 1) * 1024 + 1025
    assert numbers(image) == 2 * trunk + (2 * 2048 + 1) * 1024 + 1025
    images = tiny_images(2, seed=4).images
    small = images.view(2, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    for score in ("image", "code"):
        method.config = replace(method.config, score=score)
        with torch.no_grad():
            codes = method.encoder(small)
            values = array(codes if score == "code" else method.generator(codes) - small).reshape(2, -1)
            found = method(images)
        assert found.map is None
        np.testing.assert_allclose(found.score, (values**2).sum(axis=1), rtol=1e-4)


def test_verdicts_are_squared_distances_from_targets():
    rng = np.random.default_rng(0)
    said = [rng.normal(size=5) for _ in range(4)]
    pairs = [(torch.from_numpy(values), torch.zeros(5), target) for values, target in zip(said, (1.0, 0.0, 0.5, 0.75))]
    judges = [lambda one, two: one, lambda one, two: 2 * one]
    found = aabigan.verdicts(judges, pairs[:3], pairs[3:], weight=1 / 3)
    expected = sum(np.mean((values - target) ** 2) for values, target in zip(said, (1.0, 0.0, 0.5)))
    assert float(found) == pytest.approx(expected + np.mean((2 * said[3] - 0.75) ** 2) / 3)


STILL = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12}


def unlike_map(images, others):
    inner = [1 - similarity(*pair).mean(axis=0) for pair in zip(images, others)]
    return np.pad(inner, ((0, 0), (5, 5), (5, 5)), mode="edge")


@pytest.mark.parametrize(("measure", "residual"), [("ssim", "measure"), ("l2", "measure"), ("ssim", "l1")])
def test_an_auto_encoder_s_first_loss_and_map_by_its_measure(measure, residual, learned, tiny_images):
    method = learned("ae", {**STILL, "measure": measure, "residual": residual})
    good, images = tiny_images(8).images, tiny_images(2, seed=5).images
    back, made = (array(method.network(some).sigmoid()) for some in (good, images))
    if measure == "ssim":
        loss = 1 - np.mean([similarity(*pair) for pair in zip(array(good), back)])
        expected = unlike_map(array(images), made)
    else:
        loss, expected = np.square(array(good) - back).mean(), np.square(array(images) - made).mean(axis=1)
    if residual == "l1":
        expected = np.abs(array(images) - made).mean(axis=1)
    assert method.curve[0]["loss"] == pytest.approx(loss, rel=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(method(images).map, expected, atol=2e-4)


def drawn(mean, log_variance):
    """The codes of the first step's images, in their order, by the numbers drawn for it."""
    noise = torch.randn(mean.shape, generator=Run().generator("epoch 1/codes")).double().numpy()
    return array(mean) + noise * np.exp(array(log_variance) / 2)


def divergences(mean, log_variance):
    m, v = (array(values).reshape(len(values), -1) for values in (mean, log_variance))
    return (m**2 + np.exp(v) - v - 1).sum(axis=1) / 2


@pytest.mark.parametrize("name", ["gammavae", "expvae"])
def test_a_variational_auto_encoder_s_first_loss_is_of_drawn_codes(name, learned, tiny_images, monkeypatch):
    begin = autoencoder.initialise_uniform

    def livelier(network, generator):  # or little of a code would reach the image
        begin(network, generator)
        with torch.no_grad():
            for values in network.parameters():
                values.mul_(2.5)

    monkeypatch.setattr(autoencoder, "initialise_uniform", livelier)
    method = learned(name, STILL)
    good = tiny_images(8).images[Run().permutation(8, "epoch 1/order of images")]
    network, pixels = method.network, array(good)
    mean, log_variance = network.encoder(good).chunk(2, dim=1)
    with torch.no_grad():
        logits = array(network.decoder(torch.from_numpy(drawn(mean, log_variance)).float()))
    codes = divergences(mean, log_variance)
    if name == "gammavae":
        gamma = np.square(1 / (1 + np.exp(-logits)) - pixels).mean()
        expected = np.log(gamma) / 2 + codes.mean() / (3 * 64 * 64)
    else:
        entropies = np.logaddexp(0, logits) - pixels * logits
        expected = (entropies.sum(axis=(1, 2, 3)) + codes).mean()
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_expvae_s_other_score_is_the_negative_bound_a_pixel(learned, tiny_images):
    method, images = learned("expvae", {"score": "elbo"}), tiny_images(2, seed=4).images
    with torch.no_grad():
        mean, log_variance = method.network.encoder(images).chunk(2, dim=1)
        logits = array(method.network.decoder(mean))
    entropies = (np.logaddexp(0, logits) - array(images) * logits).sum(axis=(1, 2, 3))
    expected = (entropies + divergences(mean, log_variance)) / 64**2
    with torch.inference_mode():
        np.testing.assert_allclose(method(images).score, expected, rtol=1e-4)


def test_gammavae_s_walk_starts_and_is_judged_at_the_image(learned, tiny_images, planted):
    method = learned("gammavae", {"iterations": 4, "rate": 0.5, "weight": 3.0})
    images = planted(tiny_images(2, seed=5).images)
    x, start = array(images), array(images)
    for _ in range(4):
        with torch.no_grad():
            made = array(method.network(torch.from_numpy(x).float())[0].sigmoid())
        x = np.clip(x - 0.5 * (2 * (x - made) + 3.0 * np.sign(x - start)) * (x - made) ** 2, 0, 1)
    with torch.inference_mode():
        found = method(images).map
    np.testing.assert_allclose(found, unlike_map(start, x), atol=5e-3)
    assert found.max() > 0.1


def test_cavga_s_first_losses_by_hand(learned, tiny_images, monkeypatch):
    judges, codes, build, decode = [], [], cavga.untrained, cavga.CAVGA._decode
    monkeypatch.setattr(cavga, "untrained", lambda make: judges.append(build(make)) or judges[-1])
    monkeypatch.setattr(cavga.CAVGA, "_decode", lambda *given: codes.append(given[1]) or decode(*given))
    method = learned("cavga", {**STILL, "latent": 6, "labels": False, "adversarial": 0.3})
    good = tiny_images(8).images[Run().permutation(8, "epoch 1/order of images")]
    with torch.no_grad():
        features = F.layer_norm(method.encoder(good)[-1].movedim(1, -1), (16,)).movedim(-1, 1)  # cell by cell
        mean, log_variance = method.mean(features), method.log_variance(features)
        told_good, told_made = (array(judges[0](seen)) for seen in (good, torch.full_like(good, 0.5)))
    np.testing.assert_allclose(array(codes[0]), drawn(mean, log_variance), rtol=1e-3, atol=1e-4)
    bound = np.square(array(good) - 0.5).mean() + divergences(mean, log_variance).mean() / good[0].numel()
    kinds = [type(layer).__name__ for layer in judges[0]]
    assert kinds == [
        "Conv2d",
        "LeakyReLU",
        *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 4,
        "AdaptiveAvgPool2d",
        "Flatten",
        "Linear",
    ]
    assert {layer.negative_slope for layer in judges[0] if hasattr(layer, "negative_slope")} == {0.2}
    (logged,) = method.curve
    assert logged["bound"] == pytest.approx(bound, rel=1e-4)
    adversarial = np.logaddexp(0, -told_made).mean()
    assert logged["discriminator"] == pytest.approx(
        np.logaddexp(0, -told_good).mean() + np.logaddexp(0, told_made).mean(), rel=1e-3
    )
    assert logged["loss"] == pytest.approx(bound + 0.3 * adversarial + 0.01 * 0.5, rel=1e-3)  # attention is one half


def test_cavga_s_map_is_what_attention_leaves_out_and_its_score_what_comes_back(learned, tiny_images, planted):
    method, images = learned("cavga", {"latent": 6, "labels": False}), planted(tiny_images(2, seed=4).images)
    with torch.no_grad():
        for layer in (method.mean, method.decoder[-1]):
            for values in layer.parameters():
                values.normal_(generator=torch.Generator().manual_seed(1))
        features = F.layer_norm(method.encoder(images)[-1].movedim(1, -1), (16,)).movedim(-1, 1)
        made = array(method.decoder(method.mean(features)).sigmoid())
        found, guide = method(images), method._guide(features, method.mean(features), 2)
    leaf = features.clone().requires_grad_()
    attention = (gradcam(leaf, method.mean(leaf)) / 4).sigmoid().detach()
    assert float(guide) == pytest.approx(0.01 * float((1 - attention).mean()), rel=1e-4)
    large = F.interpolate(1 - attention[:, None], size=(64, 64), mode="bilinear", align_corners=True)[:, 0]
    np.testing.assert_allclose(found.map, large, atol=1e-4)
    np.testing.assert_allclose(found.score, np.abs(array(images) - made).mean(axis=(1, 2, 3)), rtol=1e-4)


def test_aa_bigan_s_pairs_targets_and_weights(learned, tiny_images, monkeypatch):
    calls, judge = [], aabigan.verdicts

    def watched(judges, with_code, with_image, weight=1.0):
        calls.append((with_code, with_image, weight))
        return judge(judges, with_code, with_image, weight)

    monkeypatch.setattr(aabigan, "verdicts", watched)
    bad = tiny_images(4, seed=3)
    method = learned("aabigan", {**STILL, "discriminator_rate": 1e-12}, bad=bad)
    order = Run().permutation(8, "epoch 1/order of images")
    good, known = (i.view(-1, 3, 32, 2, 32, 2).mean(dim=(3, 5)) for i in (tiny_images(8).images[order], bad.images))
    noise = torch.randn(8, 128, generator=Run().generator("epoch 1/codes"))
    judging, aiming = calls
    shown = judging[0][2][0]  # the bad images in the order in which they came
    torch.testing.assert_close(shown.sum(dim=(1, 2, 3)).sort().values, known.sum(dim=(1, 2, 3)).sort().values)
    with torch.no_grad():
        codes = method.encoder.train()(torch.cat([good, shown]))
        back, dreamt = method.generator.train()(torch.cat([codes[:8], noise])).split(8)
    with_code = [(good, codes[:8], 1.0), (dreamt, noise, 0.0), (shown, codes[8:], 0.5)]
    with_image = [(good, good, 1.0), (good, back, 0.0), (shown, shown, 0.5)]
    aims = [(*pair[:2], 0.75) for pair in with_code]
    for found, expected in ((judging, (with_code, with_image, 1.0)), (aiming, (aims, [(good, back, 0.75)], 1 / 3))):
        for pairs, wanted in zip(found[:2], expected[:2]):
            assert [pair[2] for pair in pairs] == [pair[2] for pair in wanted]
            for pair, other in zip(pairs, wanted):
                torch.testing.assert_close(list(pair[:2]), list(other[:2]), rtol=1e-3, atol=1e-4)
        assert found[2] == pytest.approx(expected[2])
    assert not any(values.requires_grad for pairs in judging[:2] for pair in pairs for values in pair[:2])
    assert [pair[1].requires_grad for pair in (*aiming[0], *aiming[1])] == [True, False, True, True]
    assert aiming[0][1][0].requires_grad  # what the generator dreamt


def test_aa_bigan_s_rates_fall_by_a_fiftieth_after_so_many_epochs(learned, tiny_images, updates, monkeypatch):
    monkeypatch.setattr(aabigan, "EVERY", 2)
    learned("aabigan", {"steps": None, "epochs": 5, "batch_size": 8}, bad=tiny_images(4, seed=3))
    falls = [0.98 ** (epoch // 2) for epoch in (1, 2, 3, 4, 5)]  # as it is: epoch 100 itself is slower already
    assert [update.rate for update in updates[1::2]] == [1e-4 * fall for fall in falls]
    assert [update.rate for update in updates[::2]] == [2.5e-5 * fall for fall in falls]
