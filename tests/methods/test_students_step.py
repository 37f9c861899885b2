"""What one step of the students is made of: fresh weights in train mode, the loss asked for, Adam as it was set."""

import numpy as np
import pytest
import torch
from torch import nn

from blemish.backbones.backbone import build_backbone
from blemish.backbones.student import build_student
from blemish.methods.fmam import FMAM
from blemish.run import Precision, Run, derive_seed

FP32 = Precision(torch.float32, channels_last=True, reason="test")
STUDENTS = ["rd", "nkd", "fmam", "rdpp"]


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
def test_a_fit_leaves_the_student_ready_to_judge(learned, tiny_images, name):
    method = learned(name, {"steps": 1}, 2)
    assert not method.student.training
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        method(tiny_images(2, seed=1).images)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


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
