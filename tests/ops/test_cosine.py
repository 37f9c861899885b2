"""Losses and maps against NumPy, SciPy and torch's own interpolation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from blemish.ops.cosine import LOSSES, anomaly_map, cosines, layer_loss, map_score, vector_loss

SHAPES = [(2, 5, 6, 4), (2, 7, 3, 2)]


def pair(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    teacher = [torch.randn(shape, generator=generator) for shape in SHAPES]
    student = [t + torch.randn(t.shape, generator=generator) for t in teacher]
    return [t.to(dtype) for t in teacher], [s.to(dtype) for s in student]


def test_loss_values_worked_out_by_hand():
    # One image, two channels, two locations: t = (3, 4), (0, 0.5); s = (4, 3), (0, 2).
    t = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.5]]]])
    s = torch.tensor([[[[4.0, 0.0]], [[3.0, 2.0]]]])
    # Locations: 24 / 25 and 1. The whole: (24 + 1) / (sqrt(25.25) * sqrt(29)).
    assert float(vector_loss([t], [s])) == pytest.approx(1 - (0.96 + 1) / 2, abs=1e-6)
    assert float(layer_loss([t], [s])) == pytest.approx(1 - 25 / (25.25 * 29) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["layer", "vector"])
def test_losses_and_gradients_are_those_of_torchs_cosine_similarity(name, memory_format):
    teacher, student = pair()
    theirs = [s.double().requires_grad_() for s in student]
    ours = [s.contiguous(memory_format=memory_format).requires_grad_() for s in student]
    loss = LOSSES[name](teacher, ours)
    loss.backward()
    expected = torch.zeros((), dtype=torch.float64)
    for t, s in zip(teacher, theirs):
        a, b = (t.double().flatten(1), s.flatten(1)) if name == "layer" else (t.double(), s)
        expected = expected + (1 - F.cosine_similarity(a, b, dim=1)).mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-7)


def test_both_sides_can_learn():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(5, 6, generator=generator, dtype=torch.float64).float().requires_grad_() for _ in range(2))
    weights = torch.arange(5.0)
    cosines(a, b).mul(weights).sum().backward()
    c, d = (x.detach().double().requires_grad_() for x in (a, b))
    F.cosine_similarity(c, d, dim=1).mul(weights).sum().backward()
    torch.testing.assert_close(a.grad.double(), c.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b.grad.double(), d.grad, rtol=1e-5, atol=1e-6)


def test_vectors_of_zeros_are_unlike_everything_and_move_nothing():
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    found = cosines(a, b)
    assert found.tolist() == [0.0, 0.0, 0.0]
    found.sum().backward()
    assert b.grad.tolist() == [[0.0, 0.0]] * 3
    small = torch.tensor([[3e-5, 4e-5], [1e-4, 0.0]])  # vectors that have directions, too
    assert cosines(small, small).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert cosines(small, small.flip(0)).tolist() == pytest.approx([0.6, 0.6], abs=1e-5)


def test_losses_leave_autocast_and_bf16_behind():
    teacher, student = pair(dtype=torch.bfloat16)
    student = [s.requires_grad_() for s in student]
    expected = float(layer_loss([t.float() for t in teacher], [s.detach().float() for s in student]))
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer_loss(teacher, student)
        heat = anomaly_map(teacher, [s.detach() for s in student], (24, 16))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    exact = anomaly_map([t.float() for t in teacher], [s.detach().float() for s in student], (24, 16))
    torch.testing.assert_close(heat, exact, rtol=1e-6, atol=1e-6)
    loss.backward()
    assert student[0].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("sigma", [0, 4])
@pytest.mark.parametrize("size", [(48, 32), (45, 37)])
def test_the_map_is_scipys_smoothing_of_torchs_interpolation_summed(size, sigma):
    teacher, student = pair()
    total = np.zeros((2, *size))
    for t, s in zip(teacher, student):
        away = 1 - F.cosine_similarity(t.double(), s.double(), dim=1)
        large = F.interpolate(away[:, None], size=size, mode="bilinear", align_corners=True)
        total += large[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, sigma) if sigma else m for m in total])
    found = anomaly_map(teacher, student, size, sigma)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_an_image_s_score_is_its_map_s_highest_value_sum_or_mean():
    map_ = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 6.0]]])
    for score, expected in (("max", [9, 6]), ("sum", [24, 6]), ("mean", [4, 1])):
        assert map_score(map_, score).tolist() == pytest.approx(expected)
