"""What reverse distillation, NKD and FMAM share: learning, judging, keeping; and each one's own definition.

One step of each: ``test_students_step.py``; what is inside FMAM: ``test_fmam_mappings.py``.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from blemish.backbones.backbone import build_backbone
from blemish.contract import TrainingImages
from blemish.errors import Cancelled, ConfigError, RegimeError
from blemish.methods.fmam import FMAM, FMAMConfig
from blemish.methods.nkd import NKD, NKDConfig
from blemish.methods.rd import RDConfig
from blemish.registry import METHODS, make_config, method_class
from blemish.run import Precision, Run

BF16 = Precision(torch.bfloat16, channels_last=True, reason="test")
FP32 = Precision(torch.float32, channels_last=True, reason="test")

ALL = [
    ("rd", {}),
    ("rd", {"loss": "vector"}),
    ("nkd", {}),
    ("nkd", {"loss": "layer"}),
    ("fmam", {}),
    ("fmam", {"internal": "memory"}),
    ("fmam", {"internal": "attention"}),
    ("fmam", {"internal": "bottleneck"}),
    ("fmam", {"base": "nkd"}),
]
SLOW = [{"base": "rd", "internal": "memory"}, {"base": "nkd", "internal": "memory"}, {"base": "nkd"}]
"""They learn so slowly that rare corners of a texture outscore the defect for long."""
ONE_EACH = [("rd", {}), ("nkd", {}), ("fmam", {}), ("fmam", {"base": "nkd", "internal": "memory"})]


@pytest.fixture
def fitted(learned):
    """``fitted(name, settings, count, size, run, backbone)``: a method that has learned ``count`` tiny images."""
    return lambda *given, **named: learned(*given, **named).eval()


@pytest.mark.parametrize(("name", "settings"), [case for case in ALL if case[1] not in (*SLOW, {"internal": "memory"})])
def test_a_planted_defect_scores_higher_and_lights_up_where_it_is(fitted, tiny_images, planted, name, settings):
    method = fitted(name, {**settings, "steps": 24})
    good = tiny_images(3, seed=7).images
    with torch.no_grad():
        clean, bad = method(good), method(planted(good))
    assert bad.score.min() > 1.2 * clean.score.max()
    for heat in bad.map:
        row, column = divmod(int(heat.argmax()), 64)
        assert 14 <= row <= 38 and 22 <= column <= 46


@pytest.mark.parametrize("settings", SLOW)
def test_a_slow_learner_too_lights_up_at_the_defect(fitted, tiny_images, planted, settings):
    method = fitted("fmam", {**settings, "steps": 24})
    good = tiny_images(3, seed=7).images
    with torch.no_grad():
        clean, bad = method(good).map[:, 20:32, 28:40], method(planted(good)).map[:, 20:32, 28:40]
    assert bool((bad.mean(dim=(1, 2)) > 1.5 * clean.mean(dim=(1, 2))).all())


@pytest.mark.parametrize(("name", "settings"), ONE_EACH)
def test_same_seed_same_bits_another_seed_another_student(fitted, tiny_images, name, settings):
    first, again, other = (fitted(name, settings, run=Run(seed=s, precision=FP32)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    learned = [key for key in first if not key.startswith("backbone.") and first[key].ndim == 4]
    assert not any(torch.equal(first[key], other[key]) for key in learned)


@pytest.mark.parametrize("sigma", [4.0, 1.5])
@pytest.mark.parametrize(("name", "settings"), ONE_EACH)
def test_map_and_score_are_as_defined(fitted, tiny_images, name, settings, sigma):
    method = fitted(name, {**settings, "sigma": sigma})
    images = tiny_images(2, seed=9).images
    with torch.no_grad():
        teacher = method.backbone(images)
        if name == "fmam":
            student = method._network()(images if method.config.base == "nkd" else teacher)
        else:
            student = method.student(teacher if name == "rd" else images)
        prediction = method(images)
    total = np.zeros((2, 64, 64))
    for t, s in zip(teacher, student):
        away = 1 - F.cosine_similarity(t.double(), s.double(), dim=1)
        total += F.interpolate(away[:, None], size=(64, 64), mode="bilinear", align_corners=True)[:, 0].numpy()
    expected = np.stack([gaussian_filter(map_, sigma) for map_ in total])
    np.testing.assert_allclose(prediction.map.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prediction.score.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_restored_from_its_state_it_judges_the_same_and_images_do_not_affect_each_other(
    fitted, tiny_backbone, tiny_images, name, settings
):
    method = fitted(name, settings)
    images = tiny_images(3, seed=5).images
    kept = images.clone()
    with torch.inference_mode():
        together = method(images)
        alone = torch.cat([method(image[None]).map for image in images])
    torch.testing.assert_close(alone, together.map, rtol=1e-4, atol=1e-5)
    assert torch.equal(images, kept)
    fresh = type(method)(tiny_backbone((2, 3), seed=1), (64, 64), method.config)
    fresh.load_fitted({key: value.contiguous() for key, value in method.state_dict().items()})
    fresh.precision = FP32
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(images).map, together.map)


@pytest.mark.parametrize(("name", "settings"), ONE_EACH)
@pytest.mark.parametrize("size", [(48, 96), (50, 70)])
def test_sizes_that_are_not_square_or_not_a_multiple_of_the_stride(fitted, tiny_images, name, settings, size):
    method = fitted(name, settings, count=3, size=size)
    with torch.no_grad():
        prediction = method(tiny_images(2, size, seed=1).images)
    assert prediction.map.shape == (2, *size) and prediction.score.shape == (2,)
    assert prediction.map.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), ONE_EACH)
def test_bf16_learns_and_judges_about_the_same(fitted, tiny_images, planted, name, settings):
    settings = {**settings, "steps": 12}
    exact = fitted(name, settings)
    short = fitted(name, settings, run=Run(precision=BF16))
    assert short.precision is BF16
    images = planted(tiny_images(2, seed=4).images)
    with torch.no_grad():
        a, b = exact(images), short(images)
    assert b.map.dtype == torch.float32
    torch.testing.assert_close(a.score, b.score, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("name", ["rd", "nkd", "fmam"])
def test_the_loss_falls_and_is_kept_as_a_curve(fitted, name):
    run = Run(precision=FP32)
    fitted(name, {"steps": None, "epochs": 6}, run=run)
    curve = [epoch["loss"] for epoch in run.curves[name]]
    assert len(curve) == 6 and curve[-1] < 0.8 * curve[0]


@pytest.mark.parametrize(("name", "settings"), ONE_EACH)
def test_stopped_and_resumed_it_ends_at_the_same_bits(fitted, name, settings, tmp_path):
    settings = {**settings, "steps": None, "epochs": 3}
    whole = fitted(name, settings).state_dict()

    stopped = Run(precision=FP32, checkpoint=tmp_path, time_limit=0.0)
    with pytest.raises(Cancelled):
        fitted(name, settings, run=stopped)
    resumed = fitted(name, settings, run=Run(precision=FP32, checkpoint=tmp_path, resume=True)).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", ["rd", "nkd", "fmam"])
def test_nothing_to_learn_from_and_nothing_learned_are_said(tiny_backbone, tiny_images, tiny_teacher, name):
    backbone, cls = tiny_backbone(), method_class(name)
    method = cls(backbone, (64, 64), make_config(cls, {"layers": (2, 3)}))
    with pytest.raises(ConfigError, match="call fit or load_fitted"):
        method(tiny_images(1).images)
    with pytest.raises(RegimeError, match="normal images"):
        method.fit(TrainingImages(tiny_images(0), tiny_images(3), "weak"), tiny_teacher(backbone), Run())


@pytest.mark.parametrize("name", ["rd", "nkd", "fmam"])
@pytest.mark.parametrize("wrong", [{"layers": []}, {"epochs": 0}, {"loss": "both"}, {"sigma": -1}, {"batch_size": 0}])
def test_settings_out_of_bounds_are_refused(name, wrong):
    with pytest.raises(ConfigError):
        make_config(method_class(name), wrong)


def test_settings_survive_json():
    config = FMAMConfig(base="nkd", internal="memory", layers=(2, 3), betas=(0.9, 0.99))
    assert make_config(FMAM, json.loads(json.dumps(config.__dict__))) == config


def test_they_stand_in_the_table_under_clean():
    for name in ("rd", "nkd", "fmam"):
        assert METHODS[name].regime == "clean"
        assert method_class(name).regimes == frozenset({"clean"})


def test_the_papers_defaults():
    for config, loss in ((RDConfig(), "layer"), (NKDConfig(), "vector"), (FMAMConfig(), "vector")):
        assert (config.layers, config.epochs, config.batch_size) == ((1, 2, 3), 200, 16)
        assert (config.learning_rate, config.betas, config.sigma) == (0.005, (0.5, 0.999), 4.0)
        assert config.loss == loss


def test_nkds_student_has_the_teachers_architecture_and_other_values(fitted):
    backbone = build_backbone("resnet18", (1, 2, 3), "random", seed=0)
    method = NKD(backbone, (64, 64), NKDConfig())
    method.student.reset(0)  # the very seed of the teacher: norms aside, the same draw
    assert sum(p.numel() for p in method.student.parameters()) == 2_782_784
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        shapes = [map_.shape for map_ in backbone(images)]
        assert [map_.shape for map_ in method.student(images)] == shapes
    trained = fitted("nkd", {"steps": 1, "learning_rate": 1e-9}, 2, backbone=backbone, layers=(1, 2, 3))
    teacher = backbone.network.state_dict()["layer1.0.conv2.weight"]
    student = trained.student.network.state_dict()["layer1.0.conv2.weight"]
    assert float(F.cosine_similarity(teacher.flatten(), student.flatten(), dim=0).abs()) < 0.1


@pytest.mark.parametrize("name", ["rd", "nkd", "fmam"])
def test_on_the_embedded_architecture_students_give_negative_features_too(fitted, name):
    backbone = build_backbone("efficientnet_lite0", (1, 2, 3), "random", seed=3)
    method = fitted(name, {"steps": 1}, 2, backbone=backbone, layers=(1, 2, 3))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given = images if name == "nkd" else backbone(images)
        maps = method._network()(given) if name == "fmam" else method.student(given)
        assert method(images).map.isfinite().all()
    assert all(0.2 < float((map_ < 0).float().mean()) < 0.8 for map_ in maps)


def test_fmams_student_starts_as_the_one_without_mappings(fitted):
    still = {"steps": 1, "learning_rate": 1e-12}
    for base, plain in (("rd", fitted("rd", still)), ("nkd", fitted("nkd", still))):
        mapped = fitted("fmam", {**still, "base": base}).student.state_dict()
        for key, value in plain.student.state_dict().items():
            if value.ndim == 4:
                torch.testing.assert_close(mapped[key], value, rtol=0, atol=1e-9)


def test_fmams_bottleneck_reading_needs_a_bottleneck(tiny_backbone):
    with pytest.raises(ConfigError, match="base=rd"):
        FMAM(tiny_backbone(), (64, 64), FMAMConfig(base="nkd", internal="bottleneck"))
