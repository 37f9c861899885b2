"""RD++'s two kinds of pairs: an image and its twin with noise, and the images that SSOT compares with each other."""

from math import factorial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blemish.methods import rdpp
from blemish.methods.rdpp import RDPP, RDPPConfig
from blemish.ops.simplex import noise_field
from blemish.ops.sinkhorn import paired_transport
from blemish.run import Precision, Run

FP32 = Precision(torch.float32, channels_last=True, reason="test")
STILL = {"steps": 1, "learning_rate": 1e-12, "projection_rate": 1e-12}


@pytest.fixture
def fields(monkeypatch):
    """``fields(field_of_side)``: the field of noise is what this gives; back come the wavelengths asked for."""
    asked = []

    def replace(field_of_side):
        def field(generator, side, wavelength):
            asked.append(wavelength)
            return field_of_side(side)

        monkeypatch.setattr(rdpp, "noise_field", field)
        return asked

    return replace


def boxes(twins, images):
    """Rows and columns, as slices, of what differs in each image."""
    for changed in (twins != images).any(dim=1):
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        yield slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def clouds(map_):
    """Every feature vector of each image, scaled to length 1: ``b n c``."""
    vectors = map_.detach().double().permute(0, 2, 3, 1).flatten(1, 2).numpy()
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_the_twins_are_the_images_with_one_patch_of_noise_and_are_never_asked_for_by_key(learned, listener):
    learned("rdpp", {"steps": None, "epochs": 2}, 6, teacher=listener)
    assert len(listener.clean) == len(listener.noisy) == 4
    cut = []
    for batch, twins in zip(listener.clean, listener.noisy):
        sides = [(box[0].stop - box[0].start, box[1].stop - box[1].start) for box in boxes(twins, batch.images)]
        assert all(10 <= side <= 31 for pair in sides for side in pair)
        cut += sides
    assert len(set(cut)) > 6


def test_patches_grow_with_the_image_where_that_is_wanted(learned, listener):
    learned("rdpp", {"steps": 8, "scale_patches": True, "patch": (40, 60)}, teacher=listener)
    for batch, twins in zip(listener.clean, listener.noisy):
        assert all(10 <= side.stop - side.start <= 15 for box in boxes(twins, batch.images) for side in box)


@pytest.mark.parametrize("strength", [0.2, 0.35])
def test_noise_is_added_at_the_strength_asked_for_and_nowhere_else(learned, listener, fields, strength):
    fields(lambda side: torch.ones(3, side, side))
    settings = {} if strength == RDPPConfig().noise else {"noise": strength}
    learned("rdpp", {**STILL, **settings}, teacher=listener)
    batch, twins = listener.clean[0].images, listener.noisy[0]
    expected = torch.zeros_like(batch)
    for image, box in zip(expected, boxes(twins, batch)):
        image[:, *box] = strength
    torch.testing.assert_close(twins - batch, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_field_is_cut_at_its_first_corner_and_a_free_one_anywhere(learned, listener, fields, fixed):
    fields(lambda side: 1 + torch.arange(side * side).reshape(1, side, side).expand(3, side, side))
    learned("rdpp", {**STILL, "batch_size": 8, "noise": 1.0, "fixed_field": fixed}, teacher=listener)
    batch, twins = listener.clean[0].images, listener.noisy[0]
    added = [(twins - batch)[i, 0][box][0, 0].round() for i, box in enumerate(boxes(twins, batch))]
    firsts = {int(value) for value in added}
    assert firsts == {1} if fixed else len(firsts) > 4


def test_the_wavelength_is_32_pixels_or_grows_with_the_image(learned, fields):
    asked = fields(lambda side: torch.ones(3, side, side))
    for settings in ({}, {"scale_patches": True}):
        learned("rdpp", {**STILL, **settings}, size=(64, 64))
    assert asked == [32, 32 * 64 / 256]


def test_the_field_that_patches_are_cut_from_is_the_one_of_its_seed(learned, listener):
    learned("rdpp", {**STILL, "noise": 1.0, "fixed_field": True}, teacher=listener, run=Run(seed=6, precision=FP32))
    field = noise_field(Run(seed=6).generator("noise field"), 128)
    batch, twins = listener.clean[0].images, listener.noisy[0]
    for image, twin, (rows, columns) in zip(batch, twins, boxes(twins, batch)):
        cut = field[:, : rows.stop - rows.start, : columns.stop - columns.start]
        torch.testing.assert_close((twin - image)[:, rows, columns], cut, rtol=0, atol=1e-6)


def test_ssot_is_the_divergence_between_the_projected_images(learned, listener, divergence_by_numpy):
    # Of two images each is the other's partner, and their 64 and 16 cells are all taken: nothing is left to a draw.
    run = Run(precision=FP32)
    method = learned("rdpp", STILL, 2, teacher=listener, run=run)
    (batch,) = listener.clean
    projected = method._projected(method.backbone(batch.images))
    assert [map_[0, 0].numel() for map_ in projected] == [64, 16]
    expected = np.mean([divergence_by_numpy(*clouds(map_), 0.05) for map_ in projected])
    assert run.curves["rdpp"][0]["ssot"] == pytest.approx(expected, rel=0.02)


def test_the_projections_learn_from_ssot_by_its_weight(learned, listener, updates):
    method = learned("rdpp", STILL, 2, teacher=listener)
    learned("rdpp", {**STILL, "ssot": "none"}, 2)
    _, paired, _, none = (update.gradients for update in updates)  # the student's come first, the projections' next
    (batch,) = listener.clean
    divergence = paired_transport(
        method._projected(method.backbone(batch.images)), torch.tensor([1, 0]), torch.Generator()
    )
    of_divergence = torch.autograd.grad(divergence, list(method.projections.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in of_divergence)
    assert largest > 1e-3
    for with_it, without, gradient in zip(paired, none, of_divergence):
        torch.testing.assert_close(with_it - without, gradient * 0.2 / 1.11, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("images", [2, 3, 4])
def test_no_image_is_its_own_partner(tiny_backbone, monkeypatch, images):
    method = RDPP(tiny_backbone(), (64, 64), RDPPConfig(layers=(2, 3)))
    monkeypatch.setattr(rdpp, "paired_transport", lambda maps, partners, *_: partners.tolist())
    maps = [torch.zeros(images, 1, 2, 2)]
    drawn = [method._transport(maps, torch.Generator().manual_seed(seed)) for seed in range(40)]
    for partners in drawn:
        assert sorted(partners) == list(range(images))
        assert all(partner != image for image, partner in enumerate(partners))
    assert len({tuple(partners) for partners in drawn}) == factorial(images - 1)  # every round trip through the batch


@pytest.mark.parametrize(("settings", "cells"), [({"locations": 5}, [5, 5]), ({}, [64, 16])])
def test_ssot_compares_as_many_places_as_were_asked_for(tiny_backbone, settings, cells):
    method = RDPP(tiny_backbone(), (64, 64), RDPPConfig(layers=(2, 3), **settings))
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, 8, 8, 8), (2, 16, 4, 4)]
    maps = [F.relu(torch.randn(shape, generator=generator)).add(0.1).requires_grad_() for shape in shapes]
    gradients = torch.autograd.grad(method._transport(maps, generator), maps)
    for gradient, expected in zip(gradients, cells):
        assert [int(touched.sum()) for touched in gradient.abs().sum(dim=1) > 0] == [expected] * 2
