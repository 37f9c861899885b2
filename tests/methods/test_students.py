"""What RD, NKD, FMAM and RD++ share: one step's loss, learning and judging; and each one's own definition.

What is inside FMAM: ``test_fmam_mappings.py``.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import nn

from blemish.backbones.backbone import build_backbone, build_student
from blemish.errors import ConfigError
from blemish.methods.fmam import FMAM, FMAMConfig
from blemish.methods.nkd import NKD, NKDConfig
from blemish.methods.rd import RDConfig
from blemish.run import Precision, Run, derive_seed

FP32 = Precision(torch.float32, channels_last=True, reason="test")
STUDENTS = ["rd", "nkd", "fmam", "rdpp"]
ONE_EACH = [("rd", {}), ("rdpp", {}), ("nkd", {}), ("fmam", {}), ("fmam", {"base": "nkd", "internal": "memory"})]
OTHERS = [
    ("rd", {"loss": "vector"}),
    ("nkd", {"loss": "layer"}),
    ("rdpp", {"ssot": "none", "fixed_field": True, "accumulate": 1}),
    ("rdpp", {"loss": "vector"}),
    ("fmam", {"internal": "memory"}),
    ("fmam", {"internal": "attention"}),
    ("fmam", {"internal": "bottleneck"}),
    ("fmam", {"base": "nkd"}),
    ("fmam", {"base": "nkd", "internal": "memory"}),
]
"""What the common tests of all methods, which take the defaults, do not see."""


def numpy_loss(loss, teacher, student):
    """1 - cosine of whole maps, or at every location: means, summed over levels."""
    total = 0.0
    for t, s in zip(teacher, student):
        a, b = (map_.detach().double().numpy() for map_ in (t, s))
        if loss == "layer":
            a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        total += (1 - (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
    return total


@pytest.fixture(scope="module")
def resnet():
    """A teacher whose students have BatchNorm, on two levels."""
    backbone = build_backbone("resnet18", (1, 2), "random", seed=1)
    backbone.precision = FP32
    return backbone


@pytest.mark.parametrize(("name", "settings"), OTHERS)
def test_other_settings_too_light_up_at_a_planted_defect(learned, tiny_images, planted, name, settings):
    method = learned(name, {**settings, "steps": 24})
    good = tiny_images(3, seed=7).images
    with torch.no_grad():
        clean, bad = (method(images).map[:, 20:32, 28:40].mean(dim=(1, 2)) for images in (good, planted(good)))
    assert bool((bad > 1.5 * clean).all())


@pytest.mark.parametrize("sigma", [4.0, 1.5])
@pytest.mark.parametrize(("name", "settings"), ONE_EACH)
def test_map_and_score_are_as_defined(learned, tiny_images, name, settings, sigma):
    method = learned(name, {**settings, "sigma": sigma})
    images = tiny_images(2, seed=9).images
    with torch.no_grad():
        teacher = method.backbone(images)
        if name == "fmam":
            student = method._network()(images if method.config.base == "nkd" else teacher)
        else:
            inputs = {"rd": lambda: teacher, "rdpp": lambda: method._projected(teacher), "nkd": lambda: images}
            student = method.student(inputs[name]())
        prediction = method(images)
    total = np.zeros((2, 64, 64))
    for t, s in zip(teacher, student):
        away = 1 - F.cosine_similarity(t.double(), s.double(), dim=1)
        total += F.interpolate(away[:, None], size=(64, 64), mode="bilinear", align_corners=True)[:, 0].numpy()
    expected = np.stack([gaussian_filter(map_, sigma) for map_ in total])
    np.testing.assert_allclose(prediction.map.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prediction.score.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("name", ["rd", "nkd", "fmam"])
def test_the_loss_falls_and_is_kept_as_a_curve(learned, name):
    run = Run(precision=FP32)
    learned(name, {"steps": None, "epochs": 6}, run=run)
    curve = [epoch["loss"] for epoch in run.curves[name]]
    assert len(curve) == 6 and curve[-1] < 0.8 * curve[0]


def test_the_papers_defaults():
    for config, loss in ((RDConfig(), "layer"), (NKDConfig(), "vector"), (FMAMConfig(), "vector")):
        assert (config.layers, config.epochs, config.batch_size) == ((1, 2, 3), 200, 16)
        assert (config.learning_rate, config.betas, config.sigma) == (0.005, (0.5, 0.999), 4.0)
        assert config.loss == loss


def test_nkds_student_has_the_teachers_architecture_and_other_values(learned):
    backbone = build_backbone("resnet18", (1, 2, 3), "random", seed=0)
    method = NKD(backbone, (64, 64), NKDConfig())
    method.student.reset(0)  # the very seed of the teacher: norms aside, the same draw
    assert sum(p.numel() for p in method.student.parameters()) == 2_782_784
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        shapes = [map_.shape for map_ in backbone(images)]
        assert [map_.shape for map_ in method.student(images)] == shapes
    trained = learned("nkd", {"steps": 1, "learning_rate": 1e-9}, 2, backbone=backbone, layers=(1, 2, 3))
    teacher = backbone.network.state_dict()["layer1.0.conv2.weight"]
    student = trained.student.network.state_dict()["layer1.0.conv2.weight"]
    assert float(F.cosine_similarity(teacher.flatten(), student.flatten(), dim=0).abs()) < 0.1


@pytest.mark.parametrize("name", ["rd", "nkd", "fmam"])
def test_on_the_embedded_architecture_students_give_negative_features_too(learned, name):
    backbone = build_backbone("efficientnet_lite0", (1, 2, 3), "random", seed=3)
    method = learned(name, {"steps": 1}, 2, backbone=backbone, layers=(1, 2, 3))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given = images if name == "nkd" else backbone(images)
        maps = method._network()(given) if name == "fmam" else method.student(given)
        assert method(images).map.isfinite().all()
    assert all(0.2 < float((map_ < 0).float().mean()) < 0.8 for map_ in maps)


def test_fmams_student_starts_as_the_one_without_mappings(learned):
    still = {"steps": 1, "learning_rate": 1e-12}
    for base, plain in (("rd", learned("rd", still)), ("nkd", learned("nkd", still))):
        mapped = learned("fmam", {**still, "base": base}).student.state_dict()
        for key, value in plain.student.state_dict().items():
            if value.ndim == 4:
                torch.testing.assert_close(mapped[key], value, rtol=0, atol=1e-9)


def test_fmams_bottleneck_reading_needs_a_bottleneck(tiny_backbone):
    with pytest.raises(ConfigError, match="base=rd"):
        FMAM(tiny_backbone(), (64, 64), FMAMConfig(base="nkd", internal="bottleneck"))


@pytest.mark.parametrize("loss", ["vector", "layer"])
@pytest.mark.parametrize(("name", "settings"), [("nkd", {}), ("fmam", {"base": "nkd"}), ("fmam", {})])
def test_the_first_loss_is_the_fresh_students_in_train_mode(learned, tiny_images, resnet, name, settings, loss):
    run = Run(seed=7, precision=FP32)
    settings = {"steps": 1, "learning_rate": 1e-12, "loss": loss, **settings}
    method = learned(name, settings, 2, run=run, backbone=resnet, layers=(1, 2))
    images = tiny_images(2).images
    teacher = resnet(images)
    with torch.no_grad():
        if name == "nkd":
            fresh = build_student(resnet, (64, 64))
            fresh.reset(derive_seed(7, "student"))
            student = fresh.train()(images)
        else:
            fresh = FMAM(resnet, (64, 64), method.config)
            fresh._initialise(Run(seed=7, precision=FP32))
            nn.ModuleList([fresh.student, fresh.mappings]).train()
            student = fresh._network()(images if settings.get("base") == "nkd" else teacher)
    expected = {kind: numpy_loss(kind, teacher, student) for kind in ("vector", "layer")}
    assert abs(expected["vector"] / expected["layer"] - 1) > 5e-3  # with other weights the two may hardly differ
    assert run.curves[name][0]["loss"] == pytest.approx(expected[loss], rel=1e-4)
    norms = [module for module in method.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:  # and what judging will normalise by was seen in training
        assert float(norm.running_mean.abs().max()) > 0 and float((norm.running_var - 1).abs().max()) > 0


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("betas", [None, (0.7, 0.9)])
def test_adam_has_the_betas_that_were_set(learned, updates, name, betas):
    learned(name, {"steps": 1} if betas is None else {"steps": 1, "betas": betas}, 2)
    assert updates and {update.betas for update in updates} == {betas or (0.5, 0.999)}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_first_epochs_of_a_long_training_are_a_short_one(learned, name):
    """What ``--epochs auto`` rests on: a look on the way sees the model that a training of this length ends with."""
    on_the_way = {}

    def look(method, epoch):
        if epoch == 2:
            on_the_way.update({key: value.clone() for key, value in method.named_parameters()})

    longer = learned(name, {"steps": None, "epochs": 4}, watch=look)
    short = dict(learned(name, {"steps": None, "epochs": 2}).named_parameters())
    assert on_the_way.keys() == short.keys()
    assert all(torch.equal(value, on_the_way[key]) for key, value in short.items())
    trained = [key for key in short if not key.startswith("backbone.")]
    assert not all(torch.equal(dict(longer.named_parameters())[key], short[key]) for key in trained)
