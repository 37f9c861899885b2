"""RD++: each term of its loss against NumPy, its two optimisers, what sees noise and what does not, and its judging.

The twins, the noise in them and the pairs that SSOT compares: ``test_rdpp_pairs.py``.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blemish.contract import Level
from blemish.errors import ConfigError
from blemish.methods.rdpp import RDPP, RDPPConfig, contrast
from blemish.ops.cosine import layer_loss, vector_loss
from blemish.ops.residual import initialise_uniform
from blemish.ops.reverse import ReverseStudent, build_projections
from blemish.ops.sinkhorn import paired_transport
from blemish.run import Precision, Run

FP32 = Precision(torch.float32, channels_last=True, reason="test")
STILL = {"learning_rate": 1e-12, "projection_rate": 1e-12}


@pytest.fixture
def fitted(learned):
    """``fitted(settings, count, run, teacher, ...)``: RD++ that has learned some tiny images."""
    return lambda *given, **named: learned("rdpp", *given, **named)


def stub(*channels):
    levels = tuple(Level(stage, width, 2 ** (stage + 1), False) for stage, width in enumerate(channels, start=1))
    return SimpleNamespace(levels=levels)


def flat_cosine(one, other):
    one, other = (map_.detach().double().numpy().reshape(len(map_), -1) for map_ in (one, other))
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def local_cosine(one, other):
    one, other = (map_.detach().double().numpy() for map_ in (one, other))
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize(("channels", "count"), [((256, 512, 1024), 15_486_912), ((64, 128, 256), 968_688)])
def test_projections_have_the_published_number_of_parameters(channels, count):
    projections = build_projections(stub(*channels), (256, 256))
    assert sum(parameter.numel() for parameter in projections.parameters()) == count


def test_a_projection_by_hand_and_its_widths_on_narrow_levels():
    projections = build_projections(stub(24, 40), (64, 64))
    initialise_uniform(projections, torch.Generator().manual_seed(0))
    shapes = [tuple(w.shape[:2]) for w in projections.parameters() if w.ndim == 4]
    assert shapes == [(16, 24), (16, 16), (16, 16), (24, 16), (20, 40), (16, 20), (20, 16), (40, 20)]
    x = torch.randn(2, 24, 5, 6, generator=torch.Generator().manual_seed(1))
    found, expected = projections[0](x), x.double()
    for weight, bias in zip(*[iter(projections[0].parameters())] * 2):
        assert 0 < float(bias.detach().abs().max()) <= 1 / np.sqrt(9 * weight.shape[1])
        expected = F.conv2d(expected, weight.double(), bias.double(), padding=1)
        expected = expected - expected.mean(dim=(2, 3), keepdim=True)
        expected = expected / (expected.square().mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
        expected = torch.where(expected > 0, expected, 0.01 * expected)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_con_is_a_hinge_on_whole_maps():
    generator = torch.Generator().manual_seed(3)
    noisy = [torch.randn(4, 3, 5, 6, generator=generator), torch.randn(4, 6, 2, 3, generator=generator)]
    ours = [0.9 * map_ + 0.8 * torch.randn(map_.shape, generator=generator) for map_ in noisy]
    ours[1][2] *= -1
    values = [flat_cosine(a, b) for a, b in zip(noisy, ours)]
    assert min(value.min() for value in values) < 0.5 < max(value.max() for value in values)
    expected = sum(np.maximum(0, value - 0.5).mean() for value in values)
    assert float(contrast(noisy, ours)) == pytest.approx(expected, rel=1e-5)
    assert float(contrast(noisy, ours, -0.5)) == pytest.approx(
        sum(np.maximum(0, value + 0.5).mean() for value in values), rel=1e-5
    )


def test_cons_gradient_reaches_the_projected_maps_above_the_margin_only():
    noisy = torch.ones(2, 2, 3, 3)
    ours = torch.ones(2, 2, 3, 3)
    ours[0, 0] = 0.2  # cosine .83
    ours[1, 0] = -0.9  # cosine .05
    ours.requires_grad_()
    contrast([noisy], [ours]).backward()
    assert ours.grad[0].abs().max() > 0 and ours.grad[1].abs().max() == 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"ssot": "code"}, {"ssot": "none"}, {"loss": "vector", "margin": -1.0, "projection_weight": 0.5}],
)
def test_every_term_is_logged_as_numpy_works_it_out(fitted, listener, settings):
    run = Run(precision=FP32)
    method = fitted({"steps": 1, **settings, **STILL}, 4, run=run, teacher=listener)
    clean, noisy = method.backbone(listener.clean[0].images), method.backbone(listener.noisy[0])
    with torch.no_grad():
        projected = [p(map_) for p, map_ in zip(method.projections, clean)]
        twins = [p(map_) for p, map_ in zip(method.projections, noisy)]
        student = method.student.train()(projected)
    (logged,) = run.curves["rdpp"]
    agreement = local_cosine if settings.get("loss") == "vector" else flat_cosine
    kd = sum((1 - agreement(a, b)).mean() for a, b in zip(clean, student))
    recon = sum((1 - local_cosine(a, b)).mean() for a, b in zip(twins, projected))
    margin = settings.get("margin", 0.5)
    con = sum(np.maximum(0, flat_cosine(a, b) - margin).mean() for a, b in zip(noisy, projected))
    assert logged["kd"] == pytest.approx(kd, rel=1e-4)
    assert logged["recon"] == pytest.approx(recon, rel=1e-3)
    assert logged["con"] == pytest.approx(con, rel=1e-4, abs=1e-6)
    total = kd + settings.get("projection_weight", 0.2) * (logged["ssot"] + 0.01 * recon + 0.1 * con) / 1.11
    assert logged["loss"] == pytest.approx(total, rel=1e-4)
    ssot = settings.get("ssot", "paired")
    if ssot == "paired":
        assert logged["ssot"] > 1e-3
    else:
        assert abs(logged["ssot"]) < 1e-6
        assert logged["ssot"] == 0 or ssot == "code"


def test_the_student_sees_good_images_only(fitted, listener, monkeypatch):
    seen, forward = [], ReverseStudent.forward

    def watched(student, features):
        seen.append([map_.detach() for map_ in features])
        return forward(student, features)

    monkeypatch.setattr(ReverseStudent, "forward", watched)
    method = fitted({"steps": 2, **STILL}, teacher=listener)
    given = len(seen)
    assert given == 2
    for maps, batch in zip(seen, listener.clean):
        for ours, projection, theirs in zip(maps, method.projections, method.backbone(batch.images)):
            torch.testing.assert_close(ours, projection(theirs).detach(), rtol=1e-4, atol=1e-4)
    counts = {int(value) for key, value in method.student.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {2}


def test_two_rates_and_gradients_summed_over_two_batches(fitted, updates):
    fitted({"steps": 2, "accumulate": 1, **STILL})
    each = list(updates)
    updates.clear()
    fitted({"steps": 2, "learning_rate": 1e-12, "projection_rate": 1e-13})
    assert [update.rate for update in updates] == [1e-12, 1e-13]
    for place, update in enumerate(updates):
        for summed, first, second in zip(update.gradients, each[place].gradients, each[place + 2].gradients):
            torch.testing.assert_close(summed, first + second, rtol=1e-3, atol=1e-5)
            assert not torch.allclose(summed, 2 * first, rtol=1e-2, atol=1e-7) or float(summed.abs().max()) < 1e-4
    updates.clear()
    fitted({"steps": 2})
    assert [update.rate for update in updates] == [0.005, 0.001]


def test_an_odd_last_batch_is_learned_from_in_its_own_epoch(fitted, updates):
    fitted({"steps": None, "epochs": 2, **STILL}, 12)
    assert len(updates) == 2 * 2 * 2  # epochs, updates in an epoch of three batches, optimisers
    lone = updates[2].gradients  # the third batch's, of the student
    updates.clear()
    fitted({"steps": 3, "accumulate": 1, **STILL}, 12)
    third = updates[4].gradients
    for ours, expected in zip(lone, third):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_gradients_flow_from_every_term_into_the_projections(fitted, tiny_backbone):
    method = fitted({"steps": 1, **STILL}, 4)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    clean, noisy = method.backbone(images), method.backbone((images * 1.3).clamp(0, 1))
    projected, twins = method._projected(clean), method._projected(noisy)
    terms = {
        "kd": layer_loss(clean, method.student(projected)),
        "recon, through the image": vector_loss([map_.detach() for map_ in twins], projected),
        "recon, through the twin": vector_loss(twins, [map_.detach() for map_ in projected]),
        "con": contrast(noisy, projected, -1.0),
        "ssot": paired_transport(projected, torch.tensor([1, 2, 3, 0]), torch.Generator()),
    }
    for name, term in terms.items():
        found = torch.autograd.grad(term, method.projections[0].layers[0].weight, retain_graph=True)[0]
        assert float(found.abs().max()) > 1e-8, name


def test_a_single_image_does(fitted, tiny_images):
    run = Run(precision=FP32)
    lone = fitted({"steps": None, "epochs": 2}, 1, run=run)
    assert all(abs(epoch["ssot"]) < 1e-6 for epoch in run.curves["rdpp"])
    with torch.no_grad():
        assert lone(tiny_images(2, seed=4).images).map.isfinite().all()


def test_what_it_cannot_work_with_is_said(tiny_backbone):
    backbone = tiny_backbone()
    with pytest.raises(ConfigError, match="noise patches"):
        RDPP(backbone, (64, 64), RDPPConfig(patch=(20, 10)))
    with pytest.raises(ConfigError, match="single cell"):
        RDPP(backbone, (16, 16), RDPPConfig())


def test_the_released_defaults():
    config = RDPPConfig()
    assert (config.learning_rate, config.projection_rate, config.betas) == (0.005, 0.001, (0.5, 0.999))
    assert (config.batch_size, config.accumulate, config.epochs) == (16, 2, 200)
    assert (config.patch, config.noise, config.projection_weight, config.margin) == ((10, 31), 0.2, 0.2, 0.5)
    assert (config.ssot, config.locations, config.loss, config.sigma) == ("paired", 64, "layer", 4.0)
