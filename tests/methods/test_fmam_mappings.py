"""FMAM's mappings, each written out in NumPy, and where they sit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import array
from scipy.special import expit
from torch import nn

from blemish.contract import Level
from blemish.methods.fmam import FMAM, ConvolutionMapping, FMAMConfig
from blemish.run import Run


@pytest.fixture
def mapping_of(tiny_backbone):
    """``mapping_of(signed, **settings)``: the first level's mapping, 8 channels, with norms and biases of their own."""

    def build(signed, **settings):
        method = FMAM(tiny_backbone(signed=signed), (64, 64), FMAMConfig(layers=(2, 3), **settings))
        method._initialise(Run(seed=0))
        mapping, generator = method.mappings[0], torch.Generator().manual_seed(4)
        for module in mapping.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.bias, module.running_mean, module.running_var):
                    values.data.uniform_(0.2, 1.0, generator=generator)
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.data.normal_(generator=generator)
        return mapping.eval()

    return build


def features():
    return torch.randn(2, 8, 5, 4, generator=torch.Generator().manual_seed(1))


def convolved(x, layer):
    bias = None if layer.bias is None else layer.bias.double()
    return array(F.conv2d(torch.from_numpy(x), layer.weight.double(), bias, padding=layer.weight.shape[-1] // 2))


def normalised(x, norm):
    own = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    weight, bias, mean, var = (array(values)[:, None, None] for values in own)
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def attended(x, attention):
    """Weighted by channel, from the map's mean and its peak through one small network, and then by place."""
    first, _, second = attention.by_channel
    weights = sum(
        convolved(np.maximum(convolved(pooled, first), 0), second)
        for pooled in (x.mean(axis=(2, 3), keepdims=True), x.max(axis=(2, 3), keepdims=True))
    )
    x = x * expit(weights)
    seen = np.stack([x.mean(axis=1), x.max(axis=1)], axis=1)
    return x * expit(convolved(seen, attention.by_place))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("internal", ["conv", "attention"])
def test_the_convolutions_and_their_attention_by_hand(mapping_of, internal, signed):
    mapping, x = mapping_of(signed, internal=internal), features()
    c1, n1, _, c2, n2, _, c3, n3 = mapping.branch
    assert [tuple(c.weight.shape) for c in (c1, c2, c3)] == [(16, 8, 1, 1), (16, 16, 3, 3), (8, 16, 1, 1)]
    branch = np.maximum(normalised(convolved(array(x), c1), n1), 0)
    branch = np.maximum(normalised(convolved(branch, c2), n2), 0)
    branch = normalised(convolved(branch, c3), n3)
    expected = array(x) + (attended(branch, mapping.attention) if internal == "attention" else branch)
    assert (expected < 0).any()
    expected = expected if signed else np.maximum(expected, 0)
    np.testing.assert_allclose(array(mapping(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_the_memory_by_hand(mapping_of, signed):
    mapping, x = mapping_of(signed, internal="memory", prototypes=5, temperature=0.2), features()
    vectors, table = array(x.permute(0, 2, 3, 1)), array(mapping.prototypes)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    weights = np.exp(unit @ (table / np.linalg.norm(table, axis=1, keepdims=True)).T / 0.2)
    answer = weights / weights.sum(axis=-1, keepdims=True) @ table
    joined = np.concatenate([vectors, answer], axis=-1).transpose(0, 3, 1, 2)
    expected = normalised(convolved(joined, mapping.fuse[0]), mapping.fuse[1])
    assert (expected < 0).any()
    expected = expected if signed else np.maximum(expected, 0)
    np.testing.assert_allclose(array(mapping(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("internal", ["conv", "attention", "memory", "bottleneck"])
def test_mappings_sit_behind_the_student_or_before_its_bottleneck(learned, tiny_images, internal):
    method = learned("fmam", {"internal": internal, "steps": 1}, 2).eval()
    images, given, gave = tiny_images(2, seed=3).images, [], []
    method.student.register_forward_pre_hook(lambda _, inputs: given.extend(map_.clone() for map_ in inputs[0]))
    method.student.register_forward_hook(lambda _, inputs, maps: gave.extend(map_.clone() for map_ in maps))
    with torch.no_grad():
        teacher = method.backbone(images)
        mapped = method._network()(teacher)
        before = internal == "bottleneck"
        mapping_takes, mapping_gives = (teacher, given) if before else (gave, mapped)
        for takes, gives, mapping in zip(mapping_takes, mapping_gives, method.mappings):
            torch.testing.assert_close(gives, mapping(takes.clone()), rtol=1e-5, atol=1e-5)
            assert not torch.allclose(gives, takes, atol=1e-2)
    for one, other in zip(mapped if before else teacher, gave if before else given):
        assert torch.equal(one, other)


def test_a_mapping_has_a_quarter_of_its_level_s_channels_inside():
    mapping = ConvolutionMapping(Level(stage=1, channels=128, stride=4, signed=False))
    assert [tuple(layer.weight.shape[:2]) for layer in mapping.branch[::3]] == [(32, 128), (32, 32), (128, 32)]
