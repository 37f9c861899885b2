"""The mirrored student: published parameter counts, shapes, signs, fresh values."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blemish.backbones.networks import RESNETS
from blemish.contract import Level
from blemish.errors import ConfigError
from blemish.ops.residual import BlockKind, Residual, initialise, initialise_uniform
from blemish.ops.reverse import Decoder, ReverseStudent, build_projections, build_reverse_student, decoder_spec


def resnet(name, stages=(1, 2, 3)):
    expansion = 1 if name in ("resnet18", "resnet34") else 4
    levels = tuple(Level(s, 64 * 2 ** (s - 1) * expansion, 2 ** (s + 1), False) for s in stages)
    return SimpleNamespace(residual=RESNETS[name], levels=levels)


def lite(stages=(1, 2, 3)):
    widths = {1: 24, 2: 40, 3: 112, 4: 320}
    levels = tuple(Level(s, widths[s], 2 ** (s + 1), True) for s in stages)
    return SimpleNamespace(residual=None, levels=levels)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def features(backbone, size, b=2, seed=0, rounding="up"):
    generator = torch.Generator().manual_seed(seed)
    cells = (lambda side, stride: -(-side // stride)) if rounding == "up" else (lambda side, stride: side // stride)
    grids = [(cells(size[0], x.stride), cells(size[1], x.stride)) for x in backbone.levels]
    return [torch.randn(b, x.channels, *g, generator=generator) for x, g in zip(backbone.levels, grids)]


# Counted by instantiating the released modules, without the convolution that they never use.
@pytest.mark.parametrize(
    ("name", "bottleneck", "decoder"),
    [
        ("resnet18", 11_680_000, 3_703_168),
        ("resnet34", 16_400_640, 5_770_624),
        ("resnet50", 30_829_568, 15_821_824),
        ("wide_resnet50_2", 58_885_120, 24_917_504),
    ],
)
def test_parameter_counts_of_the_released_networks(name, bottleneck, decoder):
    with torch.device("meta"):
        student = ReverseStudent(decoder_spec(resnet(name)))
    assert (count(student.bottleneck), count(student.decoder)) == (bottleneck, decoder)


def test_parameter_counts_of_ckaads_autoencoders():
    with torch.device("meta"):
        assert count(ReverseStudent(decoder_spec(resnet("wide_resnet50_2"), "instance"))) == 83_802_624
        assert count(ReverseStudent(decoder_spec(resnet("resnet18", (2, 3)), "instance"))) == 13_526_272


def test_ckaads_autoencoder_normalises_every_image_by_itself():
    backbone = resnet("resnet18")
    student = ReverseStudent(decoder_spec(backbone, "instance"))
    initialise(student, torch.Generator().manual_seed(0))
    kinds = {type(module) for module in student.modules()}
    assert nn.InstanceNorm2d in kinds and nn.BatchNorm2d not in kinds
    given = [map_.double() for map_ in features(backbone, (64, 64))]  # norms over four cells make much of rounding
    with torch.no_grad():
        together = student.double().train()(given)
        alone = [student([map_[i : i + 1] for map_ in given]) for i in range(2)]
    for level, map_ in enumerate(together):
        torch.testing.assert_close(torch.cat([one[level] for one in alone]), map_, rtol=1e-5, atol=1e-5)


def conv(ins, outs, side):
    return ins * outs * side**2 + 2 * outs  # without bias; the norm after it has a scale and a shift


def bottleneck_block(ins, outs, squeeze, inside, across):
    """1x1, ``inside``, 1x1, and a shortcut of side ``across`` (0: none)."""
    inner = outs // squeeze
    found = conv(ins, inner, 1) + conv(inner, inner, inside) + conv(inner, outs, 1)
    return found + (conv(ins, outs, across) if across else 0)


def basic_block(ins, outs, first, across):
    return conv(ins, outs, first) + conv(outs, outs, 3) + (conv(ins, outs, across) if across else 0)


# Where a grid is doubled a 2x2 convolution stands in for the 3x3 one and for the shortcut's 1x1 one.
@pytest.mark.parametrize(("name", "squeeze"), [("resnet50", 4), ("resnet101", 4), ("wide_resnet101_2", 2)])
def test_deep_resnets_are_mirrored_with_bottleneck_blocks(name, squeeze):
    paths = conv(256, 512, 3) + 2 * conv(512, 1024, 3)
    stage = bottleneck_block(3072, 2048, squeeze, 3, 1) + 2 * bottleneck_block(2048, 2048, squeeze, 3, 0)
    # The decoder counts its blocks from the deepest level: 3, 4 and then the encoder's third number.
    counts = (3, 4, 6) if name == "resnet50" else (3, 4, 23)
    decoder = sum(
        bottleneck_block(2 * width, width, squeeze, 2, 2) + (blocks - 1) * bottleneck_block(width, width, squeeze, 3, 0)
        for width, blocks in zip((1024, 512, 256), counts)
    )
    with torch.device("meta"):
        student = ReverseStudent(decoder_spec(resnet(name)))
    assert decoder_spec(resnet(name)).kind.bottleneck
    assert (count(student.bottleneck), count(student.decoder)) == (paths + stage, decoder)


def test_other_backbones_are_mirrored_with_two_basic_blocks_a_stage():
    paths = conv(24, 64, 3) + conv(64, 112, 3) + conv(40, 112, 3)  # on the way, too, 64 channels stand for 40
    stage = basic_block(3 * 112, 224, 3, 1) + basic_block(224, 224, 3, 0)
    decoder = sum(
        basic_block(ins, outs, 2, 2) + basic_block(outs, outs, 3, 0) for ins, outs in ((224, 112), (112, 64), (64, 64))
    )
    heads = sum(width * level + level for width, level in ((112, 112), (64, 40), (64, 24)))
    with torch.device("meta"):
        student = ReverseStudent(decoder_spec(lite()))
    assert (count(student.bottleneck), count(student.decoder)) == (paths + stage, decoder + heads)


@pytest.mark.parametrize("size", [(72, 64), (70, 50), (33, 96), (100, 100)])
@pytest.mark.parametrize("stages", [(2,), (1, 2, 3, 4)])
@pytest.mark.parametrize("rounding", ["up", "down"])
def test_maps_come_back_in_the_shapes_they_had(size, stages, rounding):
    backbone = lite(stages)
    student = build_reverse_student(backbone, size)
    initialise(student, torch.Generator().manual_seed(0))
    given = features(backbone, size, rounding=rounding)
    assert [map_.shape for map_ in student(given)] == [map_.shape for map_ in given]


def test_only_levels_that_cannot_be_negative_end_in_a_relu():
    signed = lite()
    unsigned = SimpleNamespace(
        residual=None, levels=tuple(Level(x.stage, x.channels, x.stride, False) for x in signed.levels)
    )
    for backbone, goes_below in ((signed, True), (unsigned, False), (resnet("resnet18"), False)):
        student = build_reverse_student(backbone, (64, 64))
        initialise(student, torch.Generator().manual_seed(0))
        with torch.no_grad():
            maps = student(features(backbone, (64, 64)))
        assert all(bool((map_ < 0).any()) == goes_below for map_ in maps)


def test_a_gap_between_levels_is_refused():
    with pytest.raises(ConfigError, match="without a gap"):
        build_reverse_student(lite((1, 3)), (64, 64))
    with pytest.raises(ConfigError, match="more than 32 pixels"):
        build_reverse_student(lite(), (32, 20))
    build_reverse_student(lite(), (33, 20))


def test_where_a_teacher_rounds_down_the_last_row_is_given_twice():
    decoder = Decoder(decoder_spec(lite((2,))))
    initialise(decoder, torch.Generator().manual_seed(0))
    decoder.eval()
    (whole,) = decoder(torch.ones(1, 128, 2, 2), [(4, 4)])
    (longer,) = decoder(torch.ones(1, 128, 2, 2), [(5, 3)])
    assert torch.equal(longer[..., :4, :], whole[..., :3])
    assert torch.equal(longer[..., 4, :], longer[..., 3, :])


def test_a_doubling_basic_block_by_hand():
    block = Residual(6, 4, BlockKind(False), "up")
    initialise(block, torch.Generator().manual_seed(1))
    block.eval()
    x = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(2))
    first, second = (convolution.weight for convolution in block.convolutions)
    scale = (1 + 1e-5) ** -0.5  # fresh BatchNorm in eval mode divides by the root of 1 + eps
    found = F.relu(F.conv_transpose2d(x, first, stride=2) * scale)
    found = F.conv2d(found, second, padding=1) * scale
    found = F.relu(found + F.conv_transpose2d(x, block.shortcut[0].weight, stride=2) * scale)
    torch.testing.assert_close(block(x), found, rtol=1e-5, atol=1e-5)


def test_a_halving_bottleneck_block_by_hand():
    block = Residual(6, 16, BlockKind(True), "down")
    initialise(block, torch.Generator().manual_seed(1))
    block.eval()
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(2))
    one, two, three = (convolution.weight for convolution in block.convolutions)
    assert [tuple(w.shape[:2]) for w in (one, two, three)] == [(4, 6), (4, 4), (16, 4)]
    scale = (1 + 1e-5) ** -0.5
    found = F.relu(F.conv2d(x, one) * scale)
    found = F.relu(F.conv2d(found, two, stride=2, padding=1) * scale)
    found = F.conv2d(found, three) * scale + F.conv2d(x, block.shortcut[0].weight, stride=2) * scale
    torch.testing.assert_close(block(x), F.relu(found), rtol=1e-5, atol=1e-5)


def test_fresh_values_follow_the_released_rule_and_the_seed():
    student = build_reverse_student(resnet("resnet18"), (64, 64))
    initialise(student, torch.Generator().manual_seed(5))
    state = {name: value.clone() for name, value in student.state_dict().items()}
    for module in student.modules():
        if isinstance(module, nn.ConvTranspose2d) and module.weight.numel() > 10_000:
            bound = (module.out_channels * 4) ** -0.5  # torch's default counts a weight's second axis as what comes in
            assert 0.98 * bound < float(module.weight.detach().abs().max()) <= bound
        elif isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
            assert bool((module.running_var == 1).all()) and bool((module.running_mean == 0).all())
    initialise(student, torch.Generator().manual_seed(5))
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())
    initialise(student, torch.Generator().manual_seed(6))
    assert not torch.equal(state["bottleneck.paths.0.0.weight"], student.bottleneck.paths[0][0].weight)


def levels(*channels):
    return SimpleNamespace(
        levels=tuple(Level(stage, width, 2 << stage, False) for stage, width in enumerate(channels, 1))
    )


def test_projections_have_the_published_number_of_parameters():
    assert count(build_projections(levels(256, 512, 1024), (256, 256))) == 15_486_912
    assert count(build_projections(levels(64, 128, 256), (256, 256))) == 968_688


def test_a_projection_by_hand_and_its_widths_on_narrow_levels():
    projections = build_projections(levels(24, 40), (64, 64))
    initialise_uniform(projections, torch.Generator().manual_seed(0))
    shapes = [tuple(w.shape[:2]) for w in projections.parameters() if w.ndim == 4]
    assert shapes == [(16, 24), (16, 16), (16, 16), (24, 16), (20, 40), (16, 20), (20, 16), (40, 20)]
    x = torch.randn(2, 24, 5, 6, generator=torch.Generator().manual_seed(1))
    expected = x.double()
    for weight, bias in zip(*[iter(projections[0].parameters())] * 2):
        assert 0 < float(bias.detach().abs().max()) <= (9 * weight.shape[1]) ** -0.5
        expected = F.conv2d(expected, weight.double(), bias.double(), padding=1)
        expected = expected - expected.mean(dim=(2, 3), keepdim=True)
        expected = expected / (expected.square().mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
        expected = torch.where(expected > 0, expected, 0.01 * expected)
    torch.testing.assert_close(projections[0](x).double(), expected, rtol=1e-4, atol=1e-4)


def test_xavier_s_rule_serves_linear_layers_too():
    layer = nn.Linear(300, 100)
    initialise(layer, torch.Generator().manual_seed(0), xavier=True)
    assert float(layer.weight.detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert not layer.bias.any()
