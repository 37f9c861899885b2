"""CKAAD's discriminators and their losses, against parameter counts, plain formulas and NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blemish.contract import Level
from blemish.ops.discriminators import (
    ImageDiscriminator,
    PatchDiscriminator,
    build_discriminator,
    discriminator_loss,
    gan_loss,
    mean_energy,
)


def levels_of(*widths, first=1, signed=False):
    return [Level(stage=i, channels=c, stride=2 ** (i + 1), signed=signed) for i, c in enumerate(widths, first)]


def maps_of(levels, count=2, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, v.channels, side // v.stride, side // v.stride, generator=generator) for v in levels]


def built(kind, levels, grid=(4, 4), seed=0):
    return build_discriminator(kind, levels, grid, torch.Generator().manual_seed(seed))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("widths", "parameters"), [((128, 256), 164_224), ((256, 512, 1024), 2_754_304)], ids=["ResNet18", "WRN50"]
)
def test_the_patch_discriminators_have_the_published_size(widths, parameters):
    with torch.device("meta"):
        assert count(PatchDiscriminator(levels_of(*widths))) == parameters


def test_the_image_discriminator_has_the_convolutions_it_describes():
    """ResNet18, stages 2 and 3, at 256 px: 16 x 16 cells, so 1 step to join, 3 to halve to 2 x 2; norms have 2 c."""
    path = 9 * 128 * 256 + 2 * 256
    halve = 9 * 512 * 256 + 2 * 256 + 2 * (9 * 256 * 256 + 2 * 256)
    whole = 4 * 256 * 256 + 256 * 64 + 64
    with torch.device("meta"):
        assert count(ImageDiscriminator(levels_of(128, 256, first=2), (16, 16))) == path + halve + whole


def test_patches_are_judged_one_by_one_whatever_their_length():
    levels = levels_of(8, 16)
    network, maps = built("patch", levels), maps_of(levels)
    outputs = network(maps)
    assert [tuple(output.shape) for output in outputs] == [(2, 16, 16), (2, 8, 8)]
    for output, scaled in zip(outputs, network([7 * map_ for map_ in maps])):
        torch.testing.assert_close(scaled, output)
    vector = (maps[1][1, :, 3, 5] / maps[1][1, :, 3, 5].norm()).double().numpy()
    for place in (0, 2):
        vector = network.networks[1][place].weight[:, :, 0, 0].detach().double().numpy() @ vector
        vector = np.where(vector > 0, vector, 0.1 * vector)
    expected = network.networks[1][4].weight[:, :, 0, 0].detach().double().numpy() @ vector
    assert float(outputs[1][1, 3, 5].detach()) == pytest.approx(float(expected[0]), rel=1e-4)


def test_one_number_an_image_which_its_company_does_not_change():
    levels = levels_of(8, 16)
    network, maps = built("image", levels, (8, 8)), maps_of(levels)
    (together,) = network(maps)
    assert together.shape == (2,)
    assert float((together[0] - together[1]).abs().detach()) > 1e-3
    (alone,) = network([map_[1:] for map_ in maps])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 3), (3, 10), (5, 7), (8, 8), (9, 4)])
def test_grids_that_are_not_square_or_no_power_of_two(grid):
    levels = levels_of(4, 6)
    maps = [torch.rand(2, 4, 2 * grid[0] - 1, 2 * grid[1]), torch.rand(2, 6, *grid)]
    (output,) = built("image", levels, grid)(maps)
    assert output.shape == (2,)
    assert output.isfinite().all()


def energies_by_hand(seed, count):
    rng = np.random.default_rng(seed)
    return [np.abs(rng.normal(0, 5, (count, side, side))) for side in (8, 4)]


def as_tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
def test_the_discriminator_s_loss_is_numpy_s(gamma):
    normal, bad, generated = (energies_by_hand(seed, n) for seed, n in ((0, 3), (1, 2), (2, 5)))
    expected = sum(
        n.mean() + (1 - gamma) * np.maximum(0, 4 - b).mean() + gamma * np.maximum(0, 4 - g).mean()
        for n, b, g in zip(normal, bad, generated)
    )
    found = discriminator_loss(as_tensors(normal), as_tensors(bad), as_tensors(generated), margin=4, gamma=gamma)
    assert float(found) == pytest.approx(expected)
    assert float(mean_energy(as_tensors(bad))) == pytest.approx(sum(b.mean() for b in bad))


def test_the_released_image_discriminator_s_norms_have_no_scale_and_shift():
    def scales(norm):
        network = build_discriminator("image", levels_of(8, 16), (8, 8), torch.Generator(), norm)
        return sum(module.weight is not None for module in network.modules() if isinstance(module, nn.InstanceNorm2d))

    assert (scales("instance"), scales("plain")) == (3, 0)


def test_the_gan_s_loss_is_cross_entropy():
    normal, generated = maps_of(levels_of(1, 1)), maps_of(levels_of(1, 1), seed=1)
    expected = sum(
        F.binary_cross_entropy_with_logits(n, torch.ones_like(n))
        + F.binary_cross_entropy_with_logits(g, torch.zeros_like(g))
        for n, g in zip(normal, generated)
    )
    torch.testing.assert_close(gan_loss(normal, generated), expected)


def test_the_image_discriminator_by_hand():
    levels = [Level(stage=i, channels=c, stride=2 ** (i + 1), signed=False) for i, c in ((1, 8), (2, 16))]
    network = build_discriminator("image", levels, (4, 4), torch.Generator().manual_seed(0))
    shallow, deep = torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    def halved(x, layer):
        return leaky(F.instance_norm(F.conv2d(x, layer.weight, stride=2, padding=1)))

    x = halved(torch.cat([halved(shallow, network.paths[0][0]), deep], dim=1), network.joined[0])
    code = F.conv2d(x, network.whole.weight).flatten(1) @ network.inner.weight.T
    code = (code - code.mean(dim=1, keepdim=True)) / (code.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = (leaky(code) @ network.last.weight.T)[:, 0]
    torch.testing.assert_close(network([shallow, deep])[0], expected, rtol=1e-3, atol=1e-4)
