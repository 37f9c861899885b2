"""RD++: each term of its loss against NumPy, its two optimisers, what sees noise and what does not, and its judging.

The twins, the noise in them and the pairs that SSOT compares: ``test_rdpp_pairs.py``.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from blemish.backbones.backbone import build_backbone
from blemish.contract import Level, TrainingImages
from blemish.errors import Cancelled, ConfigError, RegimeError
from blemish.methods.rdpp import RDPP, RDPPConfig, contrast
from blemish.ops.cosine import layer_loss, vector_loss
from blemish.ops.residual import initialise_uniform
from blemish.ops.reverse import ReverseStudent, build_projections
from blemish.ops.sinkhorn import paired_transport
from blemish.registry import make_config, method_class
from blemish.run import Precision, Run

FP32 = Precision(torch.float32, channels_last=True, reason="test")
BF16 = Precision(torch.bfloat16, channels_last=True, reason="test")
STILL = {"learning_rate": 1e-12, "projection_rate": 1e-12}


@pytest.fixture
def fitted(learned):
    """``fitted(settings, count, size, run, backbone, layers, teacher)``: RD++ that has learned some tiny images."""
    return lambda settings=None, *given, **named: learned("rdpp", settings or {}, *given, **named).eval()


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


def test_resnet18s_projections_as_built_by_the_method():
    method = RDPP(build_backbone("resnet18", (1, 2, 3), "random", seed=0), (64, 64), RDPPConfig())
    assert sum(parameter.numel() for parameter in method.projections.parameters()) == 968_688


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


@pytest.mark.parametrize("sigma", [4.0, 1.5])
def test_map_and_score_are_as_defined(fitted, tiny_images, sigma):
    method = fitted({"sigma": sigma})
    images = tiny_images(2, seed=9).images
    with torch.no_grad():
        teacher = method.backbone(images)
        student = method.student([p(map_) for p, map_ in zip(method.projections, teacher)])
        prediction = method(images)
    total = np.zeros((2, 64, 64))
    for t, s in zip(teacher, student):
        away = torch.from_numpy(1 - local_cosine(t, s))[:, None]
        total += F.interpolate(away, size=(64, 64), mode="bilinear", align_corners=True)[:, 0].numpy()
    expected = np.stack([gaussian_filter(map_, sigma) for map_ in total])
    np.testing.assert_allclose(prediction.map.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prediction.score.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"ssot": "none", "fixed_field": True, "accumulate": 1}, {"loss": "vector"}])
def test_a_planted_defect_scores_higher_and_lights_up_where_it_is(fitted, tiny_images, planted, settings):
    method = fitted({**settings, "steps": 40})
    good = tiny_images(3, seed=7).images
    with torch.no_grad():
        clean, bad = method(good), method(planted(good))
    assert bad.score.min() > 1.2 * clean.score.max()
    for heat in bad.map:
        row, column = divmod(int(heat.argmax()), 64)
        assert 14 <= row <= 38 and 22 <= column <= 46


def test_same_seed_same_bits_another_seed_another_method(fitted):
    first, again, other = (fitted(run=Run(seed=s, precision=FP32)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    learned = [key for key in first if not key.startswith("backbone.") and first[key].ndim == 4]
    assert not any(torch.equal(first[key], other[key]) for key in learned)


def test_restored_it_judges_the_same_and_images_do_not_affect_each_other(fitted, tiny_backbone, tiny_images):
    method = fitted()
    images = tiny_images(3, seed=5).images
    with torch.inference_mode():
        together = method(images)
        alone = torch.cat([method(image[None]).map for image in images])
    torch.testing.assert_close(alone, together.map, rtol=1e-4, atol=1e-5)
    fresh = RDPP(tiny_backbone((2, 3), seed=1), (64, 64), method.config)
    fresh.load_fitted({key: value.contiguous() for key, value in method.state_dict().items()})
    fresh.precision = FP32
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(images).map, together.map)


def test_stopped_and_resumed_it_ends_at_the_same_bits(fitted, tmp_path):
    settings = {"steps": None, "epochs": 3}
    whole = fitted(settings, 12).state_dict()
    with pytest.raises(Cancelled):
        fitted(settings, 12, run=Run(precision=FP32, checkpoint=tmp_path, time_limit=0.0))
    resumed = fitted(settings, 12, run=Run(precision=FP32, checkpoint=tmp_path, resume=True)).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("size", [(48, 96), (50, 70)])
def test_sizes_that_are_not_square_or_not_a_multiple_of_the_stride(fitted, tiny_images, size):
    method = fitted(count=3, size=size)
    with torch.no_grad():
        prediction = method(tiny_images(2, size, seed=1).images)
    assert prediction.map.shape == (2, *size) and prediction.map.isfinite().all()


def test_a_single_image_and_bf16_do(fitted, tiny_images, planted):
    exact, short = fitted({"steps": 16}), fitted({"steps": 16}, run=Run(precision=BF16))
    images = planted(tiny_images(2, seed=4).images)
    with torch.no_grad():
        torch.testing.assert_close(exact(images).score, short(images).score, rtol=0.1, atol=0.01)
    run = Run(precision=FP32)
    lone = fitted({"steps": None, "epochs": 2}, 1, run=run)
    assert all(abs(epoch["ssot"]) < 1e-6 for epoch in run.curves["rdpp"])
    with torch.no_grad():
        assert lone(images).map.isfinite().all()


def test_on_the_embedded_architecture(fitted):
    backbone = build_backbone("efficientnet_lite0", (1, 2, 3), "random", seed=3)
    run = Run(precision=FP32)
    method = fitted({"steps": 1}, 2, run=run, backbone=backbone, layers=(1, 2, 3))
    with torch.no_grad():
        assert method(torch.rand(1, 3, 64, 64)).map.isfinite().all()
    assert all(np.isfinite(value) for value in run.curves["rdpp"][0].values())


def test_what_it_cannot_work_with_is_said(tiny_backbone, tiny_images, tiny_teacher):
    backbone = tiny_backbone()
    method = RDPP(backbone, (64, 64), RDPPConfig(layers=(2, 3)))
    with pytest.raises(ConfigError, match="call fit or load_fitted"):
        method(tiny_images(1).images)
    with pytest.raises(RegimeError, match="normal images"):
        method.fit(TrainingImages(tiny_images(0), tiny_images(3), "weak"), tiny_teacher(backbone), Run())
    with pytest.raises(ConfigError, match="noise patches"):
        RDPP(backbone, (64, 64), RDPPConfig(patch=(20, 10)))
    with pytest.raises(ConfigError, match="single cell"):
        RDPP(backbone, (16, 16), RDPPConfig())


@pytest.mark.parametrize("wrong", [{"ssot": "both"}, {"accumulate": 0}, {"patch": [3]}, {"noise": 0}, {"margin": 2}])
def test_settings_out_of_bounds_are_refused(wrong):
    with pytest.raises(ConfigError):
        make_config(RDPP, wrong)


def test_the_released_defaults_survive_json_and_the_table_names_the_class():
    config = RDPPConfig()
    assert (config.learning_rate, config.projection_rate, config.betas) == (0.005, 0.001, (0.5, 0.999))
    assert (config.batch_size, config.accumulate, config.epochs) == (16, 2, 200)
    assert (config.patch, config.noise, config.projection_weight, config.margin) == ((10, 31), 0.2, 0.2, 0.5)
    assert (config.ssot, config.locations, config.loss, config.sigma) == ("paired", 64, "layer", 4.0)
    assert make_config(RDPP, json.loads(json.dumps(config.__dict__))) == config
    assert method_class("rdpp") is RDPP
