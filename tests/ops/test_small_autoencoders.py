"""The small auto-encoders' shapes and sizes, structural similarity against SciPy and scikit-image, Grad-CAM by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch.distributions import Normal, kl_divergence

from blemish.errors import ConfigError
from blemish.ops.autoencoder import SSIM_LAYERS, Variational, decoder, divergence, encoder, fitted
from blemish.ops.gradcam import gradcam
from blemish.ops.ssim import residual_map, similarity, ssim_map


def numbers(network):
    return sum(values.numel() for values in network.parameters())


# Of AE-SSIM's network by hand, layer by layer: inputs x outputs x kernel, and biases.
ENCODER = 1568 + 16416 + 9248 + 32832 + 36928 + 131200 + 73792 + 18464 + 204900
DECODER = 204832 + 18496 + 73856 + 131136 + 36928 + 32800 + 9248 + 16416 + 1539
HALVING = 16416  # 4 x 4 from 32 to 32


@pytest.mark.parametrize(("size", "more"), [((128, 128), 0), ((256, 256), 1)])
def test_ae_ssim_s_network_has_the_paper_s_layers(size, more):
    layers = fitted(SSIM_LAYERS, size)
    assert numbers(encoder(layers, size, 100)) == ENCODER + more * HALVING
    assert numbers(decoder(layers, size, 100)) == DECODER + more * HALVING


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (80, 48), (560, 560)])
def test_encoder_and_decoder_mirror_each_other(size, norm):
    layers = fitted([(4, 2), (6, 1), (8, 2)], size)
    images = torch.rand(2, 1, *size)
    code = encoder(layers, size, 5, channels=1, norm=norm)(images)
    assert code.shape == (2, 5, 1, 1)
    assert decoder(layers, size, 5, channels=1, norm=norm)(code).shape == images.shape


def test_sizes_that_cannot_be_halved_are_refused_in_words():
    with pytest.raises(ConfigError, match=r"72 x 60 cannot be halved evenly 4 times: .* multiples of 16"):
        encoder(SSIM_LAYERS, (72, 60), 8)


def test_a_code_is_drawn_by_its_mean_and_variance_and_its_divergence_is_torch_s():
    torch.manual_seed(0)
    network = Variational(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), torch.nn.Conv2d(2, 3, 1))
    images = torch.rand(2, 3, 1, 1)
    made, mean, log_variance = network(images, torch.Generator().manual_seed(1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    deviation = log_variance.exp().sqrt()
    torch.testing.assert_close(made, network.decoder(mean + noise * deviation))
    torch.testing.assert_close(network(images)[0], network.decoder(mean))
    expected = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def pair():
    one = np.random.default_rng(0).random((3, 40, 50))
    return one, (0.7 * one + 0.3 * gaussian_filter(one, 1)).clip(0, 1)


def smooth(image):
    return gaussian_filter(image, (0, 1.5, 1.5), truncate=3.5)  # 5 pixels to each side


def test_similarity_is_the_formula_and_scikit_image_s():
    one, two = pair()
    a, b = smooth(one), smooth(two)
    covariance = smooth(one * two) - a * b
    variances = smooth(one**2) - a**2 + smooth(two**2) - b**2
    expected = (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a**2 + b**2 + 1e-4) * (variances + 9e-4))
    found = similarity(*(torch.from_numpy(image)[None] for image in (one, two)))
    assert found.shape == (1, 3, 30, 40)
    np.testing.assert_allclose(found[0], expected[:, 5:-5, 5:-5], atol=1e-4)
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    mean, map_ = metrics.structural_similarity(one, two, channel_axis=0, full=True, **settings)
    np.testing.assert_allclose(found[0], map_[:, 5:-5, 5:-5], atol=1e-4)
    assert float(found.mean()) == pytest.approx(mean, abs=1e-4)


def test_maps_have_the_image_s_size_and_are_zero_for_equal_images():
    one, two = (torch.from_numpy(image)[None].float() for image in pair())
    map_ = ssim_map(one, two)
    assert map_.shape == (1, 40, 50)
    assert torch.equal(map_[0, :6, :6], map_[0, 5, 5].expand(6, 6))
    assert float(ssim_map(one, one).abs().max()) < 1e-5
    torch.testing.assert_close(residual_map(one, two, "l2"), (one - two).pow(2).sum(dim=1) / 3)


def test_gradcam_weighs_channels_by_their_mean_gradient():
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    slopes = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    f, g = features.detach().numpy(), slopes.numpy()
    target = (features * slopes).sum(dim=(1, 2, 3))
    expected = np.einsum("bc,bcyx->byx", g.mean(axis=(2, 3)), f)
    np.testing.assert_allclose(gradcam(features, target).detach(), expected, rtol=1e-4, atol=1e-6)
    size = np.sqrt((g**2).mean(axis=(1, 2, 3)))[:, None, None]
    target = (features * slopes).sum(dim=(1, 2, 3))
    np.testing.assert_allclose(gradcam(features, target, scaled=True).detach(), expected / size, rtol=1e-4, atol=1e-6)
    assert features.grad is None


def test_an_encoder_and_its_decoder_by_hand():
    torch.manual_seed(0)
    layers = [(4, 2), (6, 1)]
    into, back = encoder(layers, (8, 12), 5), decoder(layers, (8, 12), 5)
    first, second, last = (layer for layer in into if hasattr(layer, "weight"))
    images = torch.rand(2, 3, 8, 12)

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    x = leaky(F.conv2d(images, first.weight, first.bias, stride=2, padding=1))
    x = leaky(F.conv2d(x, second.weight, second.bias, padding=1))
    code = F.conv2d(x, last.weight, last.bias)
    assert code.shape == (2, 5, 1, 1)
    torch.testing.assert_close(into(images), code)
    first, second, last = (layer for layer in back if hasattr(layer, "weight"))
    x = leaky(F.conv_transpose2d(code, first.weight, first.bias))
    x = leaky(F.conv2d(x, second.weight, second.bias, padding=1))
    x = F.conv_transpose2d(x, last.weight, last.bias, stride=2, padding=1)
    torch.testing.assert_close(back(code), x)
