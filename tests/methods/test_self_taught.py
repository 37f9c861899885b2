"""GANomaly, ITAE, DSEBM, GeoTrans and PatchSVDD against NumPy, SciPy, autograd and parameter counts made by hand."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import array
from scipy.ndimage import shift
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import gammaln
from torch import nn

from blemish.errors import ConfigError
from blemish.methods import dsebm, ganomaly, geotrans, itae, patchsvdd
from blemish.methods.dsebm import Energy
from blemish.ops.autoencoder import encoder
from blemish.run import Run


def count(network: nn.Module) -> int:
    return sum(values.numel() for values in network.parameters())


def averaged(images, side):
    """Each pixel the mean of a square of them, in [-1, 1]."""
    b, c, h, w = images.shape
    return 2 * images.view(b, c, side, h // side, side, w // side).mean(dim=(3, 5)) - 1


# GANomaly


def test_ganomaly_s_encoder_is_the_released_one_and_biases():
    layers = [(64 << i, 2) for i in range(4)]
    convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 100)
    norms = 2 * (128 + 256 + 512)
    assert count(encoder(layers, (64, 64), 100, norm=True)) == convolutions + norms + 64 + 100


def test_ganomaly_s_losses_and_score_are_the_formulas(learned, tiny_images):
    tiny = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12, "first_width": 4, "latent": 6, "side": 32}
    method, images = learned("ganomaly", tiny), averaged(tiny_images(8).images, 32)
    first, back, second = method.networks.train()
    with torch.no_grad():
        made = back(first(images))
        apart = (second(made) - first(images)).abs().numpy()
    logged = method.curve[0]
    assert logged["context"] == pytest.approx(np.abs(made.numpy() - images.numpy()).mean(), rel=1e-4)
    assert logged["latent"] == pytest.approx(np.where(apart < 1, apart**2 / 2, apart - 0.5).mean(), rel=1e-4)
    assert logged["loss"] > 50 * logged["context"] + logged["latent"]  # and the discriminator's features
    method.eval()
    with torch.no_grad():
        apart = (second(back(first(images))) - first(images)).numpy()
        found = method(tiny_images(8).images)
    np.testing.assert_allclose(found.score.numpy(), (apart**2).mean(axis=(1, 2, 3)), rtol=1e-4)


# DSEBM


def test_dsebm_s_step_follows_the_slope_that_autograd_finds():
    torch.manual_seed(0)
    energy, images = Energy(16, 4, 10), torch.randn(3, 3, 16, 16, requires_grad=True)
    nn.init.normal_(energy.centre)
    values, end = energy(images)
    (slope,) = torch.autograd.grad(values.sum(), images)
    torch.testing.assert_close(end, images - slope, rtol=1e-4, atol=1e-5)
    outputs = [images]
    for convolution in energy.convolutions:
        outputs.append(nn.functional.softplus(convolution(outputs[-1])))
    hidden = np.logaddexp(0, energy.units(outputs[-1].flatten(1)).detach().numpy()).sum(axis=1)
    apart = (images - energy.centre).detach().numpy()
    np.testing.assert_allclose(values.detach().numpy(), (apart**2).sum(axis=(1, 2, 3)) / 2 - hidden, rtol=1e-5)


def test_dsebm_learns_the_mean_where_it_has_nothing_else(learned, tiny_images):
    """Outputs whose weights are 0 leave of the step's end only the learned image, which then is best at the mean."""
    method = learned("dsebm", {"steps": 1, "first_width": 2, "units": 2})
    nn.init.zeros_(method.energy.units.weight)
    images = averaged(tiny_images(8).images, 32)
    optimiser = torch.optim.SGD([method.energy.centre], 1000.0)
    for _ in range(25):
        optimiser.zero_grad()
        (method.energy(images)[1] - images).square().mean().backward()
        optimiser.step()
    torch.testing.assert_close(method.energy.centre, images.mean(dim=0), atol=1e-3, rtol=0)


def test_dsebm_s_other_score_is_the_slope_s_length(learned, tiny_images):
    method = learned("dsebm", {"score": "slope", "first_width": 4, "sigma": 0.0}, size=(32, 32))
    images = tiny_images(2, (32, 32), seed=5).images
    found = method(images)
    torch.testing.assert_close(found.score, 3 * found.map.sum(dim=(1, 2)), rtol=1e-4, atol=1e-4)


# GeoTrans


def test_geotrans_knows_72_transformations_as_scipy_makes_them():
    moves, image = geotrans.transformations(8), np.random.default_rng(0).random((8, 8))
    assert len({tuple(move.tolist()) for move in moves}) == 72
    made = iter(image.ravel()[moves.numpy()].reshape(72, 8, 8))
    for flip, x, y, turns in product((False, True), (0, -2, 2), (0, -2, 2), range(4)):
        moved = shift(image[:, ::-1] if flip else image, (y, x), order=0, mode="reflect")
        np.testing.assert_array_equal(next(made), np.rot90(moved, turns))


def test_geotrans_finds_the_likeliest_dirichlets():
    rng, true = np.random.default_rng(1), np.array([[2.0, 0.5, 7.0], [30.0, 60.0, 20.0]])
    shares = np.stack([rng.dirichlet(alpha, 200) for alpha in true], axis=1).clip(1e-6)
    found = geotrans.dirichlets(torch.from_numpy(shares)).numpy()
    for own, alpha in zip(np.log(shares).mean(axis=0), found):

        def unlikely(logs, own=own):
            a = np.exp(logs)
            return gammaln(a).sum() - gammaln(a.sum()) - ((a - 1) * own).sum()

        best = minimize(unlikely, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
        np.testing.assert_allclose(alpha, np.exp(best.x), rtol=1e-4)
    alike = geotrans.dirichlets(torch.full((5, 2, 4), 0.25, dtype=torch.float64))
    assert alike.isfinite().all() and (alike == alike[0, 0]).all()


def test_geotrans_s_score_is_the_mean_of_log_likelihoods(learned, tiny_images):
    method, simple = (learned("geotrans", {"widen": 1, "score": score}) for score in ("dirichlet", "simple"))
    usual = method.usual.clone()
    method.usual.fill_(-4)
    method.alpha.copy_(torch.linspace(0.5, 9, 72 * 72).view(72, 72))  # fitted to so little, they magnify rounding
    images = averaged(tiny_images(2, seed=4).images, 32)
    moved = images.flatten(2)[:, :, geotrans.transformations(32)].permute(0, 2, 1, 3).reshape(-1, 3, 32, 32)
    with torch.no_grad():
        shares = method.network(moved).softmax(dim=1).clamp_min(1e-6).view(2, 72, 72).double().numpy()
        found, plain = (one(tiny_images(2, seed=4).images).score.numpy() for one in (method, simple))
        known = averaged(tiny_images(8).images, 32).flatten(2)[:, :, geotrans.transformations(32)]
        known = method.network(known.permute(0, 2, 1, 3).reshape(-1, 3, 32, 32)).log_softmax(dim=1).view(8, 72, 72)
    torch.testing.assert_close(usual, known.mean(dim=0), rtol=1e-4, atol=1e-4)
    likely = ((method.alpha.numpy() - 1) * (np.log(shares) - method.usual.numpy())).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(found, -likely, rtol=1e-4)
    np.testing.assert_allclose(plain, 1 - shares[:, range(72), range(72)].mean(axis=1), rtol=1e-4)


# ITAE


def test_itae_s_network_has_the_known_code_s_parameters():
    pairs = [(1, 64), (64, 128), (128, 256), (256, 512), (512, 512), (1024, 256), (512, 128), (256, 64), (128, 64)]
    assert count(itae.UNet(64)) == sum(9 * outs * (ins + outs) + 6 * outs for ins, outs in pairs) + 27 * 64


def test_itae_compares_each_turn_with_what_is_usual(learned, tiny_images):
    method, images = learned("itae", {"first_width": 2, "sigma": 0.0}), tiny_images(8).images

    def differences(images):
        grey, seen = 2 * images.mean(dim=1, keepdim=True) - 1, 2 * images.numpy() - 1
        with torch.no_grad():
            made = [method.network(torch.from_numpy(np.rot90(grey, turn, (2, 3)).copy())).numpy() for turn in range(4)]
        return np.stack([np.abs(one - seen).mean(axis=1) for one in made])

    usual = differences(images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(method.usual.numpy(), usual, rtol=1e-3)
    others = tiny_images(2, seed=3).images
    expected = (differences(others) / usual[:, None, None, None]).mean(axis=0)
    with torch.no_grad():
        found = method(others)
    np.testing.assert_allclose(found.map.numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(found.score.numpy(), expected.mean(axis=(1, 2)), rtol=1e-3)


def test_itae_halves_its_rate_at_each_tenth(learned, monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def stepped(optimiser, *given):
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", stepped)
    learned("itae", {"first_width": 1, "steps": None, "epochs": 20, "batch_size": 8}, size=(32, 32))
    assert rates == [0.1 * 0.5 ** (number // 2) for number in range(20)]


# PatchSVDD


def test_patchsvdd_s_whole_images_have_the_codes_of_their_patches():
    torch.manual_seed(0)
    encoder, image = patchsvdd.Encoder(2), torch.rand(1, 3, 96, 112)
    with torch.no_grad():
        for codes, (side, stride) in zip(encoder.dense(image), patchsvdd.SCALES):
            assert codes.shape[2:] == ((96 - side) // stride + 1, (112 - side) // stride + 1)
            for y, x in ((0, 0), (1, 2), (codes.shape[2] - 1, codes.shape[3] - 1)):
                patch = image[..., stride * y : stride * y + side, stride * x : stride * x + side]
                torch.testing.assert_close(codes[:, :, y, x], encoder(patch), rtol=1e-4, atol=1e-5)


def test_patchsvdd_s_map_is_the_product_of_mean_distances(learned, tiny_images):
    settings = {"first_width": 2, "memory": None, "repeats": 1}
    method, image = learned("patchsvdd", settings, count=2, size=(80, 72)), tiny_images(1, (80, 72), seed=9).images
    expected = np.ones((80, 72))
    with torch.no_grad():
        good_images = tiny_images(2, (80, 72)).images
        np.testing.assert_allclose(method.mean.numpy(), good_images.numpy().mean(axis=0), rtol=1e-5)
        seen, remembered = (method.encoder.dense(some - good_images.mean(dim=0)) for some in (image, good_images))
    for (side, stride), codes, good in zip(patchsvdd.SCALES, seen, remembered):
        known = good.movedim(1, -1).reshape(-1, 64).numpy()
        total, hits = np.zeros((80, 72)), np.zeros((80, 72))
        for y, x in np.ndindex(*codes.shape[2:]):
            rows, columns = slice(stride * y, stride * y + side), slice(stride * x, stride * x + side)
            total[rows, columns] += cdist(codes[:, :, y, x].numpy(), known).min()
            hits[rows, columns] += 1
        y, x = hits.any(axis=1).sum(), hits.any(axis=0).sum()
        expected *= np.pad(total[:y, :x] / hits[:y, :x], ((0, 80 - y), (0, 72 - x)), mode="edge")
    with torch.no_grad():
        found = method(image)
    np.testing.assert_allclose(found.map[0].numpy(), expected, rtol=1e-3)
    assert found.score[0] == found.map.max()


def test_patchsvdd_s_large_patches_are_encoded_from_the_codes_of_their_quarters():
    torch.manual_seed(0)
    encoder, patch = patchsvdd.Encoder(2), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        quarters = [encoder(patch[..., y : y + 32, x : x + 32])[0].numpy() for y in (0, 32) for x in (0, 32)]
        found = encoder(patch)[0].numpy()
        join, last = ([array(t) for t in (layer.weight, layer.bias)] for layer in (encoder.join, encoder.last))
    hidden = sum(join[0][:, :, i // 2, i % 2] @ code for i, code in enumerate(quarters)) + join[1]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    np.testing.assert_allclose(found, np.tanh(last[0][:, :, 0, 0] @ hidden + last[1]), rtol=1e-4, atol=1e-6)


def test_patchsvdd_s_classifiers_end_in_directions_that_are_never_learned(learned, monkeypatch):
    made, build = [], patchsvdd._classifier
    monkeypatch.setattr(patchsvdd, "_classifier", lambda: made.append(build()) or made[-1])
    learned("patchsvdd", {"first_width": 1, "steps": 2, "memory": 1, "learning_rate": 0.1})
    for classifier in made:
        weight = classifier[-1].weight
        assert not weight.requires_grad and classifier[-1].bias.requires_grad
        torch.testing.assert_close(torch.linalg.vector_norm(weight, dim=0), torch.ones(128))


def test_patchsvdd_s_pairs_lie_as_the_classifier_is_told(learned):
    method = learned("patchsvdd", {"first_width": 1, "repeats": 1, "steps": 1, "memory": 1, "batch_size": 200})
    rows, columns = torch.meshgrid(torch.arange(400.0), torch.arange(400.0), indexing="ij")
    image = torch.stack([rows, columns, rows])[None]
    for side in (32, 64):
        first, second, near, nearer, kinds = method._pairs(image, side, Run().generator("patches"))
        corners = [patches[:, :2, 0, 0] for patches in (first, second, near, nearer)]
        apart, close = corners[1] - corners[0], corners[3] - corners[2]
        inside = ((corners[1] > 0) & (corners[1] < 400 - side)).all(dim=1)  # those that the edge has not moved
        told = patchsvdd.DIRECTIONS[kinds[inside]]
        assert inside.sum() > 50 and len(told.unique(dim=0)) == 8
        assert (apart[inside].sign() == told).all()
        lengths = apart[inside].abs().amax(dim=1)
        assert lengths.min() >= 3 * side / 4 and lengths.max() < side
        assert 0 < close.abs().max() <= side / 32


def test_patchsvdd_says_which_images_are_too_small(learned):
    with pytest.raises(ConfigError, match="patches of 64 pixels and images are 48 x 96: give a larger --size"):
        learned("patchsvdd", size=(48, 96))


STILL = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12}


def test_ganomaly_s_game_is_on_features_and_the_discriminator_s_is_cross_entropy(learned, tiny_images, monkeypatch):
    built, build = [], ganomaly.untrained
    monkeypatch.setattr(ganomaly, "untrained", lambda make: built.append(build(make)) or built[-1])
    tiny = {"first_width": 4, "latent": 6, "side": 32}
    settings = {**STILL, **tiny, "context_weight": 7.0, "latent_weight": 2.0, "adversarial_weight": 3.0}
    method, discriminator = learned("ganomaly", settings), built[-1]
    images = averaged(tiny_images(8).images, 32)
    with torch.no_grad():
        made = method.networks.train()[1](method.networks[0](images))
        ours, theirs = (array(discriminator.train()[:-1](seen)) for seen in (made, images))
        told_made, told_real = (array(discriminator(seen)) for seen in (made, images))
    (logged,) = method.curve
    features = np.square(ours - theirs).mean()
    assert logged["loss"] == pytest.approx(7 * logged["context"] + 2 * logged["latent"] + 3 * features, rel=1e-4)
    told = (np.logaddexp(0, -told_real).mean() + np.logaddexp(0, told_made).mean()) / 2
    assert logged["told"] == pytest.approx(told, rel=1e-4)
    layers = [module for network in built for module in network if hasattr(module, "stride")]
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)


def test_ganomaly_s_discriminator_learns_from_its_own_loss_alone(learned, updates, monkeypatch):
    tiny = {**STILL, "first_width": 4, "latent": 6, "side": 32}
    learned("ganomaly", tiny)
    alone = [gradient.clone() for gradient in updates[1].gradients]
    updates.clear()
    learned("ganomaly", {**tiny, "adversarial_weight": 1000.0})
    for gradient, expected in zip(updates[1].gradients, alone, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_dsebm_s_first_loss_is_of_the_clean_image_and_its_score_the_energy(learned, tiny_images, monkeypatch):
    seen, forward = [], dsebm.Energy.forward
    monkeypatch.setattr(dsebm.Energy, "forward", lambda energy, x: seen.append(x) or forward(energy, x))
    method = learned("dsebm", {**STILL, "first_width": 4, "units": 10, "noise": 0.3})
    clean = averaged(tiny_images(8).images[Run().permutation(8, "epoch 1/order of images")], 32)
    noise = 0.3 * torch.randn(clean.shape, generator=Run().generator("epoch 1/noise"))

    def energies(x):
        inner = x
        for convolution in method.energy.convolutions:
            inner = F.softplus(F.conv2d(inner, convolution.weight, convolution.bias, stride=2, padding=1))
        apart = (x - method.energy.centre).square().flatten(1).sum(dim=1) / 2
        return apart - F.softplus(method.energy.units(inner.flatten(1))).sum(dim=1)

    torch.testing.assert_close(seen[0], clean + noise)
    noisy = (clean + noise).requires_grad_()
    (slope,) = torch.autograd.grad(energies(noisy).sum(), noisy)
    expected = np.square(array(noisy - slope) - array(clean)).mean()
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)
    images = tiny_images(2, seed=4).images
    with torch.no_grad():
        torch.testing.assert_close(method(images).score, energies(averaged(images, 32)), rtol=1e-4, atol=1e-3)


def test_geotrans_tells_each_transformed_image_its_own_transformation(learned, tiny_images, monkeypatch):
    shown, told, entropy, logits = [], [], F.cross_entropy, geotrans.GeoTrans._logits
    monkeypatch.setattr(geotrans.F, "cross_entropy", lambda x, kinds: told.append(kinds) or entropy(x, kinds))
    monkeypatch.setattr(geotrans.GeoTrans, "_logits", lambda s, x: shown.append(x.clone()) or logits(s, x))
    learned("geotrans", {"widen": 1, "side": 16, "steps": None, "epochs": 1, "score": "simple"}, count=3)
    pixels, kinds = torch.cat(shown[: len(told)]).flatten(1), torch.cat(told)
    known = averaged(tiny_images(3).images, 16).flatten(2)
    moved = known[:, :, geotrans.transformations(16)].permute(2, 0, 1, 3).flatten(2)  # kind, image; scipy's, see above
    assert len(pixels) == len(kinds) == 72 * 3
    found = set()
    for one, kind in zip(pixels, kinds.tolist()):
        image = int((moved[kind] - one).abs().amax(dim=1).argmin())
        torch.testing.assert_close(moved[kind, image], one)
        found.add((kind, image))
    assert len(found) == 72 * 3


def test_geotrans_s_network_by_hand():
    torch.manual_seed(0)
    network = geotrans.wide_network(2, 2).eval()
    widths = [(16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    count = 27 * 16 + 2 * 128 + 129 * 72
    count += sum(
        9 * outs * (ins + outs) + 2 * (ins + outs) + (ins * outs if ins != outs else 0) for ins, outs in widths
    )
    assert sum(values.numel() for values in network.parameters()) == count
    x = F.conv2d(images := torch.randn(2, 3, 16, 16), network[0].weight, padding=1)
    one = (1 + 1e-5) ** -0.5
    for block, (ins, outs), stride in zip(network[1:7], widths, (1, 1, 2, 1, 2, 1)):
        active = F.relu(x * one)
        branch = F.relu(F.conv2d(active, block.first.weight, stride=stride, padding=1) * one)
        branch = F.conv2d(branch, block.second.weight, padding=1)
        x = branch + (x if ins == outs else F.conv2d(active, block.shortcut.weight, stride=stride))
    assert x.shape == (2, 128, 4, 4)
    expected = F.relu(x * one).mean(dim=(2, 3)) @ network[-1].weight.T + network[-1].bias
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def test_itae_s_first_loss_is_the_squared_difference_from_the_upright_image(learned, tiny_images):
    method = learned("itae", {**STILL, "first_width": 2}, size=(32, 32))
    original = 2 * tiny_images(8, (32, 32)).images[Run().permutation(8, "epoch 1/order of images")] - 1
    turns = torch.randint(4, (8,), generator=Run().generator("epoch 1/turns")).tolist()
    assert len(set(turns)) > 2
    grey = original.numpy().mean(axis=1, keepdims=True)
    turned = np.stack([np.rot90(one, turn, (1, 2)) for one, turn in zip(grey, turns)])
    with torch.no_grad():
        restored = array(method.network.train()(torch.from_numpy(turned.copy())))
    expected = np.square(restored - array(original)).mean()
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_itae_brings_a_wide_image_to_a_square_of_its_longer_side(learned, tiny_images):
    method, seen = learned("itae", {"first_width": 1}, size=(32, 48)), []
    method.network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    with torch.no_grad():
        assert method(tiny_images(1, (32, 48)).images).map.shape == (1, 32, 48)
    assert set(seen) == {(1, 1, 48, 48)}


def test_itae_s_u_net_by_hand():
    torch.manual_seed(0)
    network, images = itae.UNet(2).eval(), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        for values in network.parameters():
            values.mul_(3 if values.ndim == 4 else 1)  # or little of the image would reach the end

    def twice(x, block):
        for place in (0, 3):
            x = F.conv2d(x, block[place].weight, block[place].bias, padding=1)
            x = F.relu(x * (1 + 1e-5) ** -0.5)
        return x

    x, skips = images, []
    for level, block in enumerate(network.down):
        x = twice(F.max_pool2d(x, 2) if level else x, block)
        skips.append(x)
    for block, skip in zip(network.up, skips[-2::-1]):
        large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = twice(torch.cat([skip, large], dim=1), block)
    torch.testing.assert_close(
        network(images), F.conv2d(x, network.last.weight, padding=1).tanh(), rtol=1e-4, atol=1e-5
    )


def test_patchsvdd_s_first_loss_by_hand(learned, tiny_images, monkeypatch):
    built, given, build, pairs = [], [], patchsvdd._classifier, patchsvdd.PatchSVDD._pairs
    monkeypatch.setattr(patchsvdd, "_classifier", lambda: built.append(build()) or built[-1])

    def watched(method, *asked):
        given.append(list(pairs(method, *asked)))
        yield from given[-1]

    monkeypatch.setattr(patchsvdd.PatchSVDD, "_pairs", watched)
    settings = {**STILL, "first_width": 2, "repeats": 1, "svdd_weight": 0.4}
    method, expected = learned("patchsvdd", settings, size=(96, 96)), 0.0
    assert [parts[0].shape[-1] for parts in given] == [32, 64]
    for (first, second, near, nearer, kinds), classifier in zip(given, built):
        with torch.no_grad():
            one, other, close, closer = (array(method.encoder(some)) for some in (first, second, near, nearer))
            logits = array(classifier(torch.from_numpy(one - other).float()))
        expected += (np.log(np.exp(logits).sum(axis=1)) - logits[range(8), kinds.numpy()]).mean()
        expected += 0.4 * np.linalg.norm(close - closer, axis=1).mean()
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_patchsvdd_remembers_patches_from_everywhere(learned, tiny_images):
    method = learned("patchsvdd", {"first_width": 2, "repeats": 1, "memory": 16}, count=2, size=(96, 96))
    with torch.no_grad():
        small, _ = method.encoder.dense(tiny_images(2, (96, 96)).images)
    known = method.memories[0].points + method.memories[0].centre
    assert len(known) == 16
    places = torch.cdist(known, small.movedim(1, -1).reshape(-1, 64)).argmin(dim=1) % (17 * 17)
    assert places.max() > 100  # not only an image's first rows


def test_geotrans_s_shares_have_a_floor_of_a_millionth(learned, tiny_images):
    method = learned("geotrans", {"widen": 1})
    with torch.no_grad():
        method.network[-1].weight.mul_(1e4)
        logs = method._log_shares(method._small(tiny_images(2).images))
    assert float(logs.min()) == pytest.approx(np.log(1e-6))
