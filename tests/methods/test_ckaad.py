"""CKAAD's game: who moves when, what stands still meanwhile, and what is left of it without a bad image."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from blemish.errors import ConfigError
from blemish.methods import ckaad
from blemish.methods.ckaad import CKAAD, Adversary, CKAADConfig
from blemish.ops.cosine import anomaly_map, layer_loss
from blemish.ops.residual import initialise
from blemish.ops.simplex import elastic_twins
from blemish.run import Lines, Run


@pytest.fixture
def fitted(learned, tiny_images):
    """``fitted(bad=0, **config)``: a CKAAD after a few steps."""

    def fit(bad=0, **config):
        run = Run(seed=3, progress=Lines())
        return learned("ckaad", {"steps": 3, **config}, run=run, bad=tiny_images(bad, seed=9))

    return fit


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("strategy", ["reconsub", "gan", "ckaimg", "ckapatch"])
def test_without_a_bad_image_every_strategy_is_recon_step_for_step_and_says_so(strategy, fitted, capsys):
    plain = fitted(strategy="recon", bad=3)  # of which it takes no notice
    assert "(recon)" not in capsys.readouterr().err
    method = fitted(strategy=strategy)
    assert same(plain.state_dict(), method.state_dict()) and plain.curve == method.curve
    assert "(recon)" in capsys.readouterr().err


def test_recon_with_batch_norm_is_reverse_distillation(fitted, learned):
    method = fitted(strategy="recon", norm="batch", steps=4)
    rd = learned("rd", {"steps": 4}, run=Run(seed=3))
    assert same(rd.state_dict(), method.state_dict())
    assert [epoch["loss"] for epoch in rd.curve] == [epoch["recon"] for epoch in method.curve]


def game(tiny_backbone, strategy="ckapatch", **changes):
    """Networks, features of 3 normal and 2 bad images, and what was made of them."""
    config = CKAADConfig(strategy=strategy, layers=(2, 3), **changes)
    backbone, run = tiny_backbone(), Run(seed=5)
    method = CKAAD(backbone, (64, 64), config)
    initialise(method.student, run.generator("student"))
    generator = torch.Generator().manual_seed(1)
    given = backbone(torch.rand(5, 3, 64, 64, generator=generator))
    return method.student, Adversary(backbone, (4, 4), config, run), given, method.student(given)


@pytest.mark.parametrize("strategy", ["gan", "ckaimg", "ckapatch"])
def test_each_step_leaves_the_other_network_untouched(strategy, tiny_backbone):
    student, adversary, given, made = game(tiny_backbone, strategy)
    ours, theirs = copy.deepcopy(student.state_dict()), copy.deepcopy(adversary.network.state_dict())

    adversary.learn(given, made, 3)
    assert same(student.state_dict(), ours)
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not same(adversary.network.state_dict(), theirs)

    theirs = copy.deepcopy(adversary.network.state_dict())
    adversary.optimiser.zero_grad(set_to_none=True)
    adversary.energy(made, 3).backward()
    assert same(adversary.network.state_dict(), theirs)
    assert all(parameter.grad is None for parameter in adversary.network.parameters())
    assert all(parameter.requires_grad for parameter in adversary.network.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in student.parameters())


def test_the_gradient_of_the_discriminator_is_clipped(tiny_backbone):
    _, adversary, given, made = game(tiny_backbone, clip=1e-3)
    adversary.learn(given, made, 3)
    norm = torch.stack([parameter.grad.norm() for parameter in adversary.network.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_energies_named_by_whose_they_are(tiny_backbone):
    _, adversary, given, made = game(tiny_backbone)
    with torch.no_grad():
        by_hand = [np.abs(output.numpy()) for output in adversary.network(given)]
        of_made = [np.abs(output.numpy()) for output in adversary.network(made)]
    told = {name: float(value) for name, value in adversary.learn(given, made, 3).items()}
    assert told["energy_normal"] == pytest.approx(sum(e[:3].mean() for e in by_hand), rel=1e-5)
    assert told["energy_anomalous"] == pytest.approx(sum(e[3:].mean() for e in by_hand), rel=1e-5)
    assert told["energy_generated"] == pytest.approx(sum(e.mean() for e in of_made), rel=1e-5)
    loss = sum(
        e[:3].mean() + 0.5 * np.maximum(0, 5 - e[3:]).mean() + 0.5 * np.maximum(0, 5 - m).mean()
        for e, m in zip(by_hand, of_made)
    )
    assert told["discriminator"] == pytest.approx(loss, rel=1e-5)


def test_the_auto_encoder_s_loss_is_recon_of_the_good_plus_lambda_energies(tiny_backbone):
    student, adversary, given, made = game(tiny_backbone)
    method = CKAAD(tiny_backbone(), (64, 64), CKAADConfig(layers=(2, 3)))
    method.student = student
    logged = {}
    page = SimpleNamespace(log=lambda **values: logged.update(values))
    loss = method._loss([m[:3] for m in given], [m[3:] for m in given], adversary, Run(seed=5), page)
    with torch.no_grad():  # the discriminator has moved already: the loss is against where it is now
        recon = layer_loss([m[:3] for m in given], [m[:3] for m in made])
        energy = sum(output.abs().mean() for output in adversary.network(made))
    assert float(loss.detach()) == pytest.approx(float(recon + 0.02 * energy), rel=1e-5)
    assert float(logged["recon"]) == pytest.approx(float(recon), rel=1e-6)


def test_reconsub_pushes_the_bad_apart_up_to_a_limit(fitted, monkeypatch):
    for epoch in fitted(bad=2, strategy="reconsub").curve:
        pushed = min(epoch["recon_anomalous"], 2.0)
        assert epoch["loss"] == pytest.approx(epoch["recon"] - 0.1 * pushed, rel=1e-3)
    monkeypatch.setitem(ckaad.LOSSES, "layer", lambda one, other: 30.0 * layer_loss(one, other))
    for limit in ("sum", "level"):
        (epoch,) = fitted(bad=2, strategy="reconsub", steps=1, sub_limit=limit).curve
        assert epoch["recon_anomalous"] > 2
        assert epoch["loss"] == pytest.approx(epoch["recon"] - 0.2, rel=1e-4)


def test_a_limit_a_level_does_not_let_one_level_make_up_for_another(tiny_backbone):
    bad = [torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)]
    made = [torch.tensor([[[[1.0, 1.0]]], [[[-1.0, -1.0]]]]), torch.ones(2, 1, 1, 2)]  # the first level points away
    for limit, pushed in (("sum", 2.0), ("level", 1.0)):
        method = CKAAD(tiny_backbone(), (64, 64), CKAADConfig(layers=(2, 3), strategy="reconsub", sub_limit=limit))
        del method.student
        method.student = lambda given: made
        loss = method._loss(bad, bad, None, Run(), SimpleNamespace(log=lambda **_: None))
        assert float(loss) == pytest.approx(-0.1 * pushed, abs=1e-6)


def test_alpha_weighs_what_is_made_of_the_good(tiny_backbone):
    _, adversary, given, made = game(tiny_backbone, alpha=0.8)
    with torch.no_grad():
        seen, of_made = ([np.abs(o.numpy()) for o in adversary.network(maps)] for maps in (given, made))
    weighed = [0.8 * np.maximum(0, 5 - m[:3]).mean() + 0.2 * np.maximum(0, 5 - m[3:]).mean() for m in of_made]
    loss = sum(e[:3].mean() + 0.5 * np.maximum(0, 5 - e[3:]).mean() + 0.5 * both for e, both in zip(seen, weighed))
    assert float(adversary.energy(made, 3).detach()) == pytest.approx(
        sum(0.8 * m[:3].mean() + 0.2 * m[3:].mean() for m in of_made), rel=1e-5
    )
    assert float(adversary.learn(given, made, 3)["discriminator"]) == pytest.approx(loss, rel=1e-5)


def test_good_and_bad_pass_a_batch_norm_apart_as_released(tiny_backbone):
    """What the good become does not depend on the bad; with an instance norm it never does."""
    backbone, pages = tiny_backbone(), SimpleNamespace(log=lambda **_: None)
    features, others = (backbone(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i))) for i in (1, 2))
    method = CKAAD(backbone, (64, 64), CKAADConfig(layers=(2, 3), strategy="reconsub", norm="batch", sub_weight=0.0))
    initialise(method.student, torch.Generator().manual_seed(0))
    method.student.train()
    losses = [method._loss(features, bad, None, Run(), pages).item() for bad in (others, [9 * map_ for map_ in others])]
    assert losses[0] == losses[1]


def test_distorted_copies_are_of_the_strength_asked_for_and_left_out_where_bad_images_are_known(fitted, capsys):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        assert float((elastic_twins(images, 1e-6) - images).abs().max()) < 1 / 255
        assert float((elastic_twins(images, 200.0) - images).abs().mean()) > 0.01
        # A Gaussian of 1 pixel leaves 1 / sqrt(4 pi) of a move on average, one of 5 a fifth of that.
        torch.manual_seed(0)
        slope, middle = torch.linspace(0, 1, 64).expand(16, 3, 64, 64), slice(20, 44)
        twins = [elastic_twins(slope, 30.0, sigma) for sigma in (1.0, 5.0)]
        moved = [float((twin - slope)[..., middle, middle].std()) for twin in twins]
        assert 4 < moved[0] / moved[1] < 6
        with pytest.raises(ConfigError, match="elastic_sigma 8 is too much for images of 32 pixels"):
            elastic_twins(images, 200.0, 8.0)
    fitted(bad=2, elastic=True, steps=1)
    assert "makes no distorted copies" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["gan", "ckaimg", "ckapatch"])
def test_energies_are_kept_epoch_by_epoch(strategy, fitted):
    curve = fitted(bad=3, strategy=strategy, steps=None, epochs=2).curve
    assert len(curve) == 2
    for epoch in curve:
        assert {"loss", "recon", "discriminator", "energy_normal", "energy_anomalous", "energy_generated"} == {*epoch}
        assert all(np.isfinite(value) and value >= 0 for value in epoch.values())


def test_distorted_copies_stand_in_only_where_no_bad_image_is_known(fitted, capsys):
    twin = fitted(elastic=True)
    assert "energy_anomalous" in twin.curve[0] and "distorted" in capsys.readouterr().err
    assert not same(fitted().state_dict(), twin.state_dict())
    assert same(twin.state_dict(), fitted(elastic=True).state_dict())
    assert same(fitted(bad=2).state_dict(), fitted(bad=2, elastic=True).state_dict())


def test_the_score_is_the_mean_of_the_hundred_highest_or_of_all(fitted):
    method = fitted(bad=2)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        found = method(images)
        method.config = dataclasses.replace(method.config, score="mean")
        whole = method(images)
        features = method.backbone(images)
        map_ = anomaly_map(features, method.student(features), (64, 64))
    torch.testing.assert_close(found.map, map_, rtol=1e-4, atol=1e-5)
    highest = np.sort(found.map.numpy().reshape(2, -1))[:, -100:].mean(axis=1)
    np.testing.assert_allclose(found.score.numpy(), highest, rtol=1e-5)
    np.testing.assert_allclose(whole.score.numpy(), found.map.numpy().mean(axis=(1, 2)), rtol=1e-5)


def test_a_batch_is_never_larger_than_the_good_images_and_the_rest_of_a_pass_is_dropped(fitted):
    epochs = [len(fitted(batch_size=size, steps=2).curve) for size in (5, 3, 20)]
    assert epochs == [2, 1, 2]


def test_images_too_small_are_refused_in_words(tiny_backbone):
    with pytest.raises(ConfigError, match="more than 32 pixels"):
        CKAAD(tiny_backbone(), (32, 16), CKAADConfig(layers=(2, 3)))
    with pytest.raises(ConfigError, match="ckaimg needs 3"):
        CKAAD(tiny_backbone(), (64, 32), CKAADConfig(layers=(2, 3), strategy="ckaimg"))


@pytest.mark.parametrize("elastic", [False, True])
def test_a_step_s_bad_images_are_those_known_to_be_bad(elastic, learned, listener, tiny_images):
    bad = tiny_images(3, seed=9)
    learned("ckaad", {"steps": 3, "elastic": elastic}, bad=bad, teacher=listener, backbone=listener.backbone)
    given = [batch.keys for batch in listener.clean]
    assert len(given) == 6 and not listener.noisy
    for good, others in zip(given[::2], given[1::2]):
        assert len(good) == 4 and all(key.startswith("0/") for key in good)
        assert sorted(others) == ["9/0", "9/1", "9/2"]


def test_a_gan_s_maker_wants_to_be_taken_for_normal(tiny_backbone):
    """The usual loss of a generator: -log of the probability that what it makes is normal, summed over the levels."""
    _, adversary, _, made = game(tiny_backbone, "gan")
    with torch.no_grad():
        logits = [output.double().numpy() for output in adversary.network(made)]
    expected = sum(np.log1p(np.exp(-values)).mean() for values in logits)
    assert float(adversary.energy(made, 3).detach()) == pytest.approx(expected, rel=1e-5)
