"""Deep SAD and DevNet: losses against NumPy, what they learn from a few known-bad images, what they refuse."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d, gaussian_filter
from sklearn.metrics import roc_auc_score

from blemish.methods import devnet
from blemish.methods.deepsad import Head, deep_sad_loss
from blemish.methods.devnet import halved
from blemish.ops.deviation import deviation_loss, top_mean_of_maps
from blemish.run import Run

QUICK = {
    "deepsad": {"batch_size": 8, "steps": 12, "width": 16, "dimensions": 8},
    "devnet": {"batch_size": 48, "steps": 12},
}


@pytest.fixture
def fitted(learned, tiny_images, planted):
    """``fitted(name, good=12, bad=3, **config)``: a method after a few steps."""

    def fit(name, good=12, bad=3, **config):
        bad_images = tiny_images(bad, seed=7)
        bad_images.images = planted(bad_images.images)
        return learned(name, {**QUICK[name], **config}, good, run=Run(seed=1), bad=bad_images)

    return fit


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_deep_sad_s_loss_is_numpy_s():
    distances = np.array([0.5, 4.0, 1e-9, 2.0])
    is_bad = np.array([False, True, True, False])
    expected = np.where(is_bad, 3.0 / (distances + 1e-6), distances).mean()
    found = deep_sad_loss(torch.from_numpy(distances), torch.from_numpy(is_bad), eta=3.0)
    assert float(found) == pytest.approx(expected)


def test_the_deviation_loss_is_numpy_s_and_ends_at_the_margin():
    rng = np.random.default_rng(0)
    references, normal, bad = rng.normal(0, 1, 5000), rng.uniform(0, 2, 4), np.array([1.0, 30.0])

    def by_numpy(bad):
        mean, deviation = references.mean(), references.std(ddof=1)
        lacking = np.maximum(0, 5 - (bad - mean) / deviation).mean()
        return (np.abs((normal - mean) / deviation).mean() + lacking) / 2

    for given in (bad, bad + 100):
        found = deviation_loss(*map(torch.from_numpy, (normal, given, references)))
        assert float(found) == pytest.approx(by_numpy(given))
    assert by_numpy(bad + 100) == by_numpy(bad + 200) < by_numpy(bad)


def test_the_top_tenth_is_numpy_s_and_never_empty():
    maps = [torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(0)), torch.rand(2, 2, 2)]
    large = np.sort(maps[0].numpy().reshape(2, -1))[:, -6:].mean(axis=1)
    small = maps[1].numpy().reshape(2, -1).max(axis=1)
    np.testing.assert_allclose(top_mean_of_maps(maps, 0.1).numpy(), (large + small) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["deepsad", "devnet"])
def test_a_few_known_bad_images_are_told_from_good_ones_never_seen(name, fitted, tiny_images, planted):
    method = fitted(name, steps=40, learning_rate={"deepsad": 1e-3, "devnet": 2e-2}[name])
    good = tiny_images(8, seed=30).images
    with torch.no_grad():
        scores = torch.cat([method(good).score, method(planted(tiny_images(8, seed=31).images)).score])
    assert roc_auc_score([0] * 8 + [1] * 8, scores.numpy()) == 1
    assert method.curve[-1]["loss"] < 0.7 * method.curve[0]["loss"]


def test_devnet_s_map_lights_up_where_known_bad_images_are_bad(fitted, tiny_images, planted):
    method = fitted("devnet", steps=40, learning_rate=2e-2)
    with torch.no_grad():
        found = method(planted(tiny_images(4, seed=31).images))
    assert found.map.shape == (4, 64, 64)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[20:32, 28:40] = True
    assert found.map[:, inside].mean() > 1.5 * found.map[:, ~inside].mean()


def test_deep_sad_has_no_map_and_scores_the_squared_distance(fitted, tiny_images):
    method = fitted("deepsad")
    images = tiny_images(3, seed=5).images
    with torch.no_grad():
        found = method(images)
        vectors = method.head(method.backbone(images)).numpy().astype(np.float64)
    assert found.map is None
    np.testing.assert_allclose(found.score.numpy(), ((vectors - method.centre.numpy()) ** 2).sum(axis=1), rtol=1e-5)


def test_deep_sad_s_centre_stands_off_from_zero_and_stays(fitted):
    short, longer = (fitted("deepsad", steps=steps, learning_rate=0.01) for steps in (1, 6))
    assert (short.centre.abs() >= 0.1 - 1e-7).all()
    assert torch.equal(short.centre, longer.centre)
    assert not same(short.head.state_dict(), longer.head.state_dict())


def test_nothing_in_deep_sad_s_head_can_learn_a_constant():
    head = Head([8, 16], width=4, dimensions=3)
    assert all(parameter.ndim == 4 for parameter in head.parameters())
    for parameter in head.parameters():
        parameter.data.zero_()
    assert head.eval()([torch.rand(2, 8, 8, 8), torch.rand(2, 16, 4, 4)]).abs().max() == 0


def test_learning_rates_fall_as_released(fitted, monkeypatch, updates):
    fitted("deepsad", steps=None, epochs=6, batch_size=15)
    assert [update.rate for update in updates] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-5, 1e-5])
    updates.clear()
    monkeypatch.setattr(devnet, "EPOCH_STEPS", 1)
    fitted("devnet", good=2, bad=1, steps=None, epochs=21)
    assert [update.rate for update in updates] == pytest.approx([2e-3] * 10 + [2e-4] * 10 + [2e-5])


def test_devnet_looks_at_a_second_size_where_asked(fitted, tiny_images):
    two = fitted("devnet", scales=2)
    assert not same(fitted("devnet").state_dict(), two.state_dict())
    with torch.no_grad():
        assert two(tiny_images(2).images).map.shape == (2, 64, 64)


def test_deep_sad_s_head_by_hand():
    head, generator = Head([3, 4], width=5, dimensions=2).eval(), torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 8, 8, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)]
    head.scale.learn([[2 * map_ + 1 for map_ in maps]])
    scaled = [(m - (2 * m + 1).mean(dim=(0, 2, 3), keepdim=True)) for m in maps]
    scaled = [s / (2 * m).std(dim=(0, 2, 3), keepdim=True, correction=0) for s, m in zip(scaled, maps)]

    def leaky(x):
        return torch.where(x > 0, x, 0.01 * x)

    one = (1 + 1e-5) ** -0.5  # a fresh norm, judging
    x = torch.cat([F.avg_pool2d(scaled[0], 2), scaled[1]], dim=1)
    x = leaky(F.conv2d(x, head.reduce.weight) * one)
    branch = leaky(F.conv2d(x, head.first.weight, padding=1) * one)
    x = leaky(x + F.conv2d(branch, head.second.weight, padding=1) * one)
    expected = torch.einsum("bcyx,dc->bd", x, head.embed.weight[:, :, 0, 0]) / 16
    torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-5)


def test_deep_sad_s_centre_is_the_good_images_mean_moved_away_from_zero(learned, tiny_images):
    still = {"steps": 1, "learning_rate": 1e-12, "batch_size": 8, "width": 16, "dimensions": 24}
    method, good = learned("deepsad", still, bad=tiny_images(2, seed=7)), tiny_images(8).images
    with torch.no_grad():
        features = method.backbone(good)
        scaled = method.head.scale(features)
        mean = method.head.train()(features).mean(dim=0)
    for map_ in scaled:  # standardised on the good images
        torch.testing.assert_close(map_.mean(dim=(0, 2, 3)), torch.zeros(map_.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(map_.std(dim=(0, 2, 3)), torch.ones(map_.shape[1]), atol=1e-2, rtol=0)
    assert (mean.abs() < 0.1).any() and (mean.abs() > 0.1).any()
    expected = torch.where(mean.abs() < 0.1, 0.1 * mean.sign(), mean)
    torch.testing.assert_close(method.centre, expected, rtol=1e-3, atol=1e-4)


def test_devnet_s_map_and_score_by_hand(learned, tiny_images, planted):
    method = learned("devnet", {"steps": 2, "batch_size": 4}, bad=tiny_images(2, seed=7))
    good, images = tiny_images(8).images, planted(tiny_images(2, seed=5).images)
    maps, scores = [], np.zeros(2)
    for known, seen, scorer in zip(method.backbone(good), method.backbone(images), method.scorers):
        mean, deviation = known.mean(dim=(0, 2, 3)), known.std(dim=(0, 2, 3), correction=0)
        scaled = (seen - mean[:, None, None]) / deviation[:, None, None]
        weight, bias = scorer.weight.detach()[0, :, 0, 0], float(scorer.bias.detach())
        places = np.abs(np.einsum("bcyx,c->byx", scaled.numpy(), weight.numpy()) + bias)
        flat = np.sort(places.reshape(2, -1))
        scores += flat[:, -max(1, flat.shape[1] // 10) :].mean(axis=1) / 2
        large = F.interpolate(torch.from_numpy(places)[:, None], size=(64, 64), mode="bilinear", align_corners=False)
        maps.append([gaussian_filter(one, 4.0) for one in large[:, 0].numpy()])
    with torch.no_grad():
        found = method(images)
    np.testing.assert_allclose(found.score, scores, rtol=1e-3)
    np.testing.assert_allclose(found.map, np.mean(maps, axis=0), rtol=1e-3, atol=1e-4)


def test_devnet_s_second_size_is_half_of_the_first(learned, tiny_images, listener):
    images = tiny_images(2, seed=5).images
    expected = images.numpy()
    for axis in (2, 3):  # a triangle twice as wide as a new pixel
        expected = (
            correlate1d(expected, [0, 1, 3, 3, 1], axis=axis)[
                tuple(slice(None) if a != axis else slice(0, None, 2) for a in range(4))
            ]
            / 8
        )
    np.testing.assert_allclose(halved(images)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5)
    learned("devnet", {"steps": 1, "batch_size": 4, "scales": 2}, bad=tiny_images(2, seed=7), teacher=listener)
    assert [tuple(given.shape[-2:]) for given in listener.noisy] == [(32, 32)] * 2
