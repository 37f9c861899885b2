"""What RD, NKD, FMAM and RD++ share: one step's loss, learning and judging; and each one's own definition.

What is inside FMAM: ``test_fmam_mappings.py``.
"""

import dataclasses

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
from blemish.registry import method_class
from blemish.run import Run, derive_seed

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
    return build_backbone("resnet18", (1, 2), "random", seed=1)


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
    curve = learned(name, {"steps": None, "epochs": 6}).curve
    assert len(curve) == 6 and curve[-1]["loss"] < 0.8 * curve[0]["loss"]


OWN_DEFAULTS = {
    "rd": {"loss": "layer"},
    "nkd": {"loss": "vector"},
    "fmam": {"loss": "vector"},
    "ckaad": {"margin": 5.0, "gamma": 0.5, "weight": 0.02, "discriminator_rate": 1e-4, "top": 100},
    "cdd": {"loss": "layer", "domains": (2, 3, 3, 2), "r_normal": 0.5, "perturbation": 0.2, "selection": "consensual"},
    "rdpp": {"loss": "layer", "patch": (10, 31), "noise": 0.2, "projection_weight": 0.2, "margin": 0.5, "accumulate": 2}
    | {"projection_rate": 0.001, "ssot": "paired", "locations": 64},
}


@pytest.mark.parametrize("name", OWN_DEFAULTS)
def test_the_papers_defaults(name):
    config = dataclasses.asdict(method_class(name).Config())
    shared = {"layers": (1, 2, 3), "epochs": 200, "batch_size": 16, "learning_rate": 0.005, "sigma": 4.0}
    assert config | shared | {"betas": (0.5, 0.999)} | OWN_DEFAULTS[name] == config


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
    settings = {"steps": 1, "learning_rate": 1e-12, "loss": loss, **settings}
    method = learned(name, settings, 2, run=Run(seed=7), backbone=resnet, layers=(1, 2))
    images = tiny_images(2).images
    teacher = resnet(images)
    with torch.no_grad():
        if name == "nkd":
            fresh = build_student(resnet, (64, 64))
            fresh.reset(derive_seed(7, "student"))
            student = fresh.train()(images)
        else:
            fresh = FMAM(resnet, (64, 64), method.config)
            fresh._initialise(Run(seed=7))
            nn.ModuleList([fresh.student, fresh.mappings]).train()
            student = fresh._network()(images if settings.get("base") == "nkd" else teacher)
    expected = {kind: numpy_loss(kind, teacher, student) for kind in ("vector", "layer")}
    assert abs(expected["vector"] / expected["layer"] - 1) > 5e-3  # with other weights the two may hardly differ
    assert method.curve[0]["loss"] == pytest.approx(expected[loss], rel=1e-4)
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


@pytest.mark.parametrize(("name", "settings"), [("nkd", {}), ("fmam", {"base": "nkd"})])
def test_batchnorm_judges_with_statistics_of_its_weights_at_the_end_and_at_every_look(
    learned, tiny_images, resnet, name, settings
):
    images, seen, train = tiny_images(10, (32, 32)).images, [], {"steps": None, "epochs": 3, **settings}

    def look(method, number):
        before = method.student.network.bn1.running_mean.clone()
        method.finalize()
        seen.append(torch.allclose(before, method.student.network.bn1.running_mean, atol=1e-4))

    followed, alone = (
        learned(name, train, 10, (32, 32), backbone=resnet, layers=(1, 2), watch=watch) for watch in (look, None)
    )
    assert seen == [False] * 3 and not any(module.training for module in alone.modules())
    settled = {key: value.clone() for key, value in alone.state_dict().items()}
    assert all(torch.equal(value, settled[key]) for key, value in followed.state_dict().items())
    alone.finalize()
    assert all(torch.equal(value, settled[key]) for key, value in alone.state_dict().items()), "fit let the images go"
    # Mean over batches of the stem's outputs, by hand: ten images in fours, in the order drawn for this purpose.
    order, weight, means = Run().permutation(10, "order of settling"), alone.student.network.conv1.weight.detach(), []
    for batch in (order[:4], order[4:8], order[8:]):
        normalised = alone.student.normalise(images[batch])
        means.append(F.conv2d(normalised, weight, stride=2, padding=3).mean(dim=(0, 2, 3)).numpy())
    assert settled["student.network.bn1.running_mean"].numpy() == pytest.approx(np.mean(means, axis=0), abs=1e-4)
