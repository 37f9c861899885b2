"""The trainable twin of a teacher."""

import pytest
import torch

from blemish.backbones.backbone import build_backbone
from blemish.backbones.student import build_student


def images(b=2, size=64):
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "swin_tiny_patch4_window7_224"])
def test_a_student_gives_its_teachers_shapes_and_all_of_it_can_learn(name):
    teacher = build_backbone(name, (1, 2), "random", seed=1)
    student = build_student(teacher, (64, 64))
    student.reset(2)
    batch = images(1, 224) if "swin" in name else images()
    maps = student.train()(batch)
    assert [map_.shape for map_ in maps] == [map_.shape for map_ in teacher(batch)]
    sum(map_.square().mean() for map_ in maps).backward()
    still = [name for name, p in student.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert len(still) <= 2  # a bias right before a norm has no gradient


def test_with_its_teachers_values_a_student_gives_its_teachers_features():
    teacher = build_backbone("resnet18", (1, 2, 3), "random", seed=5)
    student = build_student(teacher, (64, 64))
    student.reset(5)
    norms = [module for module in student.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) > 8
    assert all(bool((norm.weight == 1).all()) and bool((norm.bias == 0).all()) for norm in norms)  # as torch's
    for stage in "123":  # a random teacher's residual blocks end at a half
        for block in student.network.get_submodule(f"layer{stage}"):
            torch.nn.init.constant_(block.bn2.weight, 0.5)
    with torch.no_grad():
        for ours, theirs in zip(student.eval()(images()), teacher(images())):
            torch.testing.assert_close(ours, theirs, rtol=0.01, atol=1e-4)


def test_resetting_is_fixed_by_the_seed_and_leaves_torchs_own_state_alone():
    student = build_student(build_backbone("resnet18", (1,), "random"), (64, 64))
    before = torch.get_rng_state()
    student.reset(3)
    first = {key: value.clone() for key, value in student.state_dict().items()}
    student.reset(3)
    assert all(torch.equal(first[key], value) for key, value in student.state_dict().items())
    student.reset(4)
    assert not torch.equal(first["network.conv1.weight"], student.network.conv1.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_backbones_are_copied_and_the_teacher_is_left_alone(tiny_backbone):
    teacher = tiny_backbone((2, 3))
    before = [p.clone() for p in teacher.parameters()]
    student = build_student(teacher, (64, 64))
    student.reset(1)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, teacher.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(before, student.parameters()))
    student(images())[1].sum().backward()
    assert all(p.requires_grad for p in student.parameters())
