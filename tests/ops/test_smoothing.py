import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from blemish.ops.smoothing import shrink, upscale


def maps_of(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(64, 96), (37, 20), (5, 7), (3, 1), (1, 40)])
@pytest.mark.parametrize("sigma", [0, 0.1, 1.5, 4.0])
def test_upscaling_is_interpolation_followed_by_scipys_smoothing(size, sigma):
    maps = maps_of(3, 8, 7)
    for align_corners in (True, False):
        large = F.interpolate(maps[:, None].double(), size=size, mode="bilinear", align_corners=align_corners)[:, 0]
        expected = np.stack([gaussian_filter(m, sigma) if sigma else m for m in large.numpy()])
        found = upscale(maps, size, sigma, align_corners)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_matrices_first_used_in_inference_mode_serve_gradients_later():
    with torch.inference_mode():
        upscale(maps_of(1, 3, 3), (11, 11), sigma=1.25)
    maps = maps_of(1, 3, 3).requires_grad_()
    upscale(maps, (11, 11), sigma=1.25).sum().backward()
    assert maps.grad is not None and float(maps.grad.sum()) == pytest.approx(121, rel=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (5, 9), (8, 12), (16, 30)])
def test_shrinking_averages_over_areas(size):
    images = torch.rand((2, 3, 8, 12), generator=torch.Generator().manual_seed(0))
    fine = images.repeat_interleave(size[0], dim=2).repeat_interleave(size[1], dim=3)
    expected = fine.unfold(2, 8, 8).unfold(3, 12, 12).mean(dim=(4, 5))
    torch.testing.assert_close(shrink(images, size), expected)
