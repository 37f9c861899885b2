"""The teacher gives the backbone's features, without gradient, for batches and bare tensors alike."""

import torch

from blemish.backbones.extractor import build_backbone
from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Batch


def test_batch_and_tensor_give_the_backbones_features():
    backbone = build_backbone("resnet18", (1, 2), "random")
    teacher = FrozenTeacher(backbone)
    images = torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        expected = backbone(images)
    for maps in (teacher(Batch(images, ("a", "b"))), teacher(images)):
        assert not any(map_.requires_grad for map_ in maps)
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_features_take_part_in_a_students_gradient():
    teacher = FrozenTeacher(build_backbone("resnet18", (1,), "random"))
    student = torch.nn.Conv2d(64, 64, 1)
    (feature,) = teacher(torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
    (student(feature) - feature).square().mean().backward()
    assert student.weight.grad is not None
    assert bool(student.weight.grad.any())
