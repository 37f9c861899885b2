"""NKD's student judges with statistics of BatchNorm that belong to its weights, at the end and at every look."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blemish.backbones.backbone import build_backbone
from blemish.contract import TrainingImages
from blemish.registry import make_config, method_class
from blemish.run import Precision, Run

FP32 = Precision(torch.float32, channels_last=True, reason="test")
METHODS = [("nkd", {}), ("fmam", {"base": "nkd"})]


@pytest.fixture(scope="module")
def resnet18():
    return build_backbone("resnet18", (1, 2), weights="random")


@pytest.fixture
def taught(resnet18, tiny_images, tiny_teacher):
    """``taught(name, settings, on_epoch)``: a method after three epochs, and the images."""

    def learn(name, settings, on_epoch=None):
        cls = method_class(name)
        options = {"layers": (1, 2), "epochs": 3, "batch_size": 4, **settings}
        method = cls(resnet18, (32, 32), make_config(cls, options))
        images = tiny_images(10, (32, 32))
        run = Run(precision=FP32, on_epoch=None if on_epoch is None else lambda number, _: on_epoch(method, number))
        method.fit(TrainingImages(images, tiny_images(0, (32, 32)), "clean"), tiny_teacher(resnet18), run)
        return method, images

    return learn


def stem_statistics(method, images):
    """Mean over batches of the stem's outputs, by hand: ten images in fours, in the order drawn for this purpose."""
    student, weight = method.student, method.student.network.conv1.weight.detach()
    order = Run().permutation(10, "order of settling")
    means = []
    for batch in (order[:4], order[4:8], order[8:]):
        normalised = student.normalise(images.batch(batch).images)
        means.append(F.conv2d(normalised, weight, stride=2, padding=3).mean(dim=(0, 2, 3)).numpy())
    return np.mean(means, axis=0)


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_statistics_are_of_the_last_weights(taught, name, settings):
    method, images = taught(name, settings)
    found = method.student.network.bn1.running_mean.numpy()
    assert found == pytest.approx(stem_statistics(method, images), abs=1e-4)
    assert not method.training
    assert not any(module.training for module in method.modules())


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_a_look_sees_settled_statistics_and_changes_nothing_that_is_learned(taught, name, settings):
    seen = []

    def look(method, number):
        before = method.student.network.bn1.running_mean.clone()
        method.finalize()
        seen.append((number, before, method.student.network.bn1.running_mean.clone()))

    followed, _ = taught(name, settings, look)
    alone, _ = taught(name, settings)
    assert [number for number, *_ in seen] == [1, 2, 3]
    assert not any(torch.allclose(before, after, atol=1e-4) for _, before, after in seen)
    for key, value in alone.state_dict().items():
        assert torch.equal(value, followed.state_dict()[key]), key
    settled = {key: value.clone() for key, value in alone.state_dict().items()}
    alone.finalize()
    assert all(torch.equal(settled[key], value) for key, value in alone.state_dict().items()), "fit let the images go"
