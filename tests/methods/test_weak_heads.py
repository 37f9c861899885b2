"""DRA and PReNet: scores and losses against NumPy, what they are shown, what they tell apart."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from blemish.methods import dra
from blemish.methods.dra import with_pieces
from blemish.methods.prenet import pooled
from blemish.run import Run

QUICK = {"dra": {"batch_size": 16}, "prenet": {"batch_size": 32}}


@pytest.fixture
def fitted(learned, tiny_images, planted):
    """``fitted(name, **config)``: a method after a few steps, twelve good images and three known-bad ones."""

    def fit(name, **config):
        bad = tiny_images(3, seed=7)
        bad.images = planted(bad.images)
        return learned(name, {**QUICK[name], "steps": 12, **config}, 12, run=Run(seed=1), bad=bad)

    return fit


@pytest.mark.parametrize(("name", "config"), [("dra", {"learning_rate": 1e-2}), ("prenet", {"steps": 100})])
def test_a_few_known_bad_images_are_told_from_good_ones_never_seen(name, config, fitted, tiny_images, planted):
    method = fitted(name, **{"steps": 40, **config})
    with torch.no_grad():
        good, bad = method(tiny_images(8, seed=30).images), method(planted(tiny_images(8, seed=31).images))
    assert roc_auc_score([0] * 8 + [1] * 8, torch.cat([good.score, bad.score]).numpy()) == 1
    assert method.curve[-1]["loss"] < 0.8 * method.curve[0]["loss"]


def test_dra_s_score_is_three_heads_less_the_fourth(fitted, tiny_images):
    method = fitted("dra", references=2)
    images, good = tiny_images(3, seed=5).images, tiny_images(12).images
    chosen = torch.randperm(12, generator=Run(seed=1).generator("references"))[:2]
    with torch.no_grad():
        found = method(images)
        features, known = method.scale(method.backbone(images)), method.scale(method.backbone(good[chosen]))
        expected, map_ = np.zeros(3), np.zeros((3, 64, 64))
        for heads, seen, references in zip(method.heads, features, known):
            places = [heads.known(seen), heads.pasted(seen), heads.unlike(references.mean(dim=0) - seen)]
            for scores in places:
                flat = np.sort(scores.abs().numpy().reshape(3, -1))
                expected += flat[:, -max(1, flat.shape[1] // 10) :].mean(axis=1) / 2
                large = F.interpolate(scores.abs().view(3, 1, *scores.shape[-2:]), (64, 64), mode="bilinear")
                map_ += np.array([gaussian_filter(one, 4.0) for one in large[:, 0].numpy()]) / 2
            expected -= heads.whole(seen.mean(dim=(2, 3))).abs().numpy()[:, 0] / 2
    np.testing.assert_allclose(found.score.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.map.numpy(), map_, rtol=1e-3, atol=1e-4)


def test_a_pasted_piece_is_a_rectangle_of_another_image():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 48).contiguous()
    pasted = with_pieces(images, torch.Generator().manual_seed(0))
    for i in range(4):
        changed = pasted[i, 0] != images[i, 0]
        assert (pasted[i, :, changed] == (i + 1) % 4).all()
        rows, columns = changed.any(dim=1), changed.any(dim=0)
        assert changed.sum() == rows.sum() * columns.sum()
        assert 4 <= rows.sum() <= 16 and 6 <= columns.sum() <= 24


def test_prenet_s_score_is_the_mean_over_all_pairs(fitted, tiny_images):
    method = fitted("prenet", references=2)
    images = tiny_images(3, seed=5).images
    with torch.no_grad():
        found = method(images)
        vectors = pooled(method.backbone(images)).double().numpy()
    assert found.map is None and method.good.shape == method.bad.shape == (2, 48)
    known = pooled(method.backbone(tiny_images(12).images)).double().numpy()
    vectors = (vectors - known.mean(axis=0)) / known.std(axis=0)
    first, bias, read, constant = (
        value.detach().double().numpy() for layer in (method.embed, method.read) for value in (layer.weight, layer.bias)
    )

    def pair(one, other):
        both = np.concatenate([np.maximum(0, first @ one + bias), np.maximum(0, first @ other + bias)])
        return float(read[0] @ both + constant[0])

    bad, good = method.bad.double().numpy(), method.good.double().numpy()
    expected = [np.mean([*(pair(b, x) for b in bad), *(pair(x, g) for g in good)]) for x in vectors]
    np.testing.assert_allclose(found.score.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_what_prenet_compares_with_moves_all_scores_alike(fitted, tiny_images):
    method = fitted("prenet")
    images = tiny_images(6, seed=5).images
    with torch.no_grad():
        before = method(images).score
        method.bad = method.bad[:1]
        after = method(images).score
    moved = (after - before).numpy()
    np.testing.assert_allclose(moved, moved.mean(), atol=1e-5)


def test_dra_s_map_is_the_sum_of_three_heads(fitted, tiny_images):
    method, images = fitted("dra", references=2), tiny_images(3, seed=5).images
    expected = np.zeros((3, 64, 64))
    with torch.no_grad():
        found = method(images).map
        for number, (heads, seen) in enumerate(zip(method.heads, method.scale(method.backbone(images)))):
            reference = getattr(method, f"reference_{number}").T.reshape(1, *seen.shape[1:])
            for places in (heads.known(seen), heads.pasted(seen), heads.unlike(reference - seen)):
                large = F.interpolate(places.abs(), size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
                expected += np.stack([gaussian_filter(one, 4.0) for one in large.numpy()]) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_dra_s_loss_is_four_deviations_each_of_its_own_images(fitted, monkeypatch):
    method, rng, logged = fitted("dra"), np.random.default_rng(0), {}
    scores, draws = rng.normal(1, 3, (4, 9)), rng.normal(size=5000)
    monkeypatch.setattr(method, "_seen", lambda features: (list(torch.from_numpy(scores)), []))
    found = method._loss(
        [], [4, 2, 3], torch.from_numpy(draws), SimpleNamespace(log=lambda **told: logged.update(told))
    )
    mean, deviation = draws.mean(), draws.std(ddof=1)

    def standing(low, high):
        lacking = np.maximum(0, 5 - (high - mean) / deviation)
        return (np.abs((low - mean) / deviation).mean() + lacking.mean()) / 2

    good, bad, pasted = scores[:, :4], scores[:, 4:6], scores[:, 6:]
    expected = {
        "known": standing(good[0], bad[0]),
        "pasted": standing(good[1], pasted[1]),
        "unlike": standing(good[2], scores[2, 4:]),
        "whole": standing(scores[3, 4:], good[3]),  # the other way round
    }
    for name, value in expected.items():
        assert float(logged[name]) == pytest.approx(value), name
    assert float(found) == pytest.approx(sum(expected.values()))


def test_dra_s_rate_falls_every_ten_epochs_as_released(fitted, monkeypatch, updates):
    monkeypatch.setattr(dra, "EPOCH_STEPS", 1)
    fitted("dra", steps=None, epochs=21, batch_size=4)
    assert [update.rate for update in updates] == pytest.approx([2e-3] * 10 + [2e-4] * 10 + [2e-5])


def test_prenet_learns_to_read_how_many_of_two_are_bad(fitted):
    method = fitted("prenet", steps=400, batch_size=64)
    with torch.no_grad():
        good, bad = (method._embedded(known) for known in (method.good, method.bad))

        def reads(one, other):
            return float(method._read(one.mean(0, keepdim=True), other.mean(0, keepdim=True)))

        assert reads(good, good) == pytest.approx(0, abs=1)
        assert reads(bad, good) == pytest.approx(4, abs=1)
        assert reads(bad, bad) == pytest.approx(8, abs=1)


def test_prenet_s_first_loss_is_the_absolute_error_over_half_a_quarter_and_a_quarter(fitted, tiny_images, planted):
    method = fitted("prenet", steps=1, learning_rate=1e-12, batch_size=16)
    known = tiny_images(3, seed=7)
    with torch.no_grad():
        good, bad = (
            method._scaled(pooled(method.backbone(i))) for i in (tiny_images(12).images, planted(known.images))
        )
        draws = Run(seed=1).generator("epoch 1/pairs")
        parts = [
            some[torch.randint(len(some), (count,), generator=draws)]
            for some, count in ((good, 8), (bad, 8), (good, 12), (bad, 4))
        ]
        embedded = [F.relu(method.embed(torch.cat(pair))) for pair in (parts[:2], parts[2:])]
        reads = method.read(torch.cat(embedded, dim=1))[:, 0].double().numpy()
    expected = np.abs(reads - np.repeat([0.0, 4.0, 8.0], [8, 4, 4])).mean()
    assert method.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)
