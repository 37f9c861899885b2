"""RD++: its loss against NumPy, its two optimisers, who sees noise; the twins and the pairs that SSOT compares."""

from itertools import pairwise
from math import factorial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blemish.errors import ConfigError
from blemish.methods import rdpp
from blemish.methods.rdpp import RDPP, RDPPConfig, contrast
from blemish.ops.cosine import layer_loss, vector_loss
from blemish.ops.reverse import Projection, ReverseStudent
from blemish.ops.simplex import noise_field
from blemish.ops.sinkhorn import paired_transport, random_places
from blemish.run import Run

STILL = {"learning_rate": 1e-12, "projection_rate": 1e-12}
ONE_STEP = {"steps": 1, **STILL}


def flat_cosine(one, other):
    one, other = (map_.detach().double().numpy().reshape(len(map_), -1) for map_ in (one, other))
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def local_cosine(one, other):
    one, other = (map_.detach().double().numpy() for map_ in (one, other))
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_con_is_a_hinge_on_whole_maps():
    generator = torch.Generator().manual_seed(3)
    noisy = [torch.randn(4, 3, 5, 6, generator=generator), torch.randn(4, 6, 2, 3, generator=generator)]
    ours = [0.9 * map_ + 0.8 * torch.randn(map_.shape, generator=generator) for map_ in noisy]
    ours[1][2] *= -1
    values = [flat_cosine(a, b) for a, b in zip(noisy, ours)]
    assert min(value.min() for value in values) < 0.5 < max(value.max() for value in values)
    expected = sum(np.maximum(0, value - 0.5).mean() for value in values)
    assert float(contrast(noisy, ours)) == pytest.approx(expected, rel=1e-5)
    expected = sum(np.maximum(0, value + 0.5).mean() for value in values)
    assert float(contrast(noisy, ours, -0.5)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"ssot": "code"}, {"ssot": "none"}, {"loss": "vector", "margin": -1.0, "projection_weight": 0.5}),
        {"ssot": "paper", "recon_weight": 0.5, "con_weight": 0.0},
    ],
)
def test_every_term_is_logged_as_numpy_works_it_out(learned, listener, settings):
    method = learned("rdpp", {"steps": 1, **settings, **STILL}, 4, teacher=listener)
    clean, noisy = method.backbone(listener.clean[0].images), method.backbone(listener.noisy[0])
    with torch.no_grad():
        projected = [p(map_) for p, map_ in zip(method.projections, clean)]
        twins = [p(map_) for p, map_ in zip(method.projections, noisy)]
        student = method.student.train()(projected)
    (logged,) = method.curve
    agreement = local_cosine if settings.get("loss") == "vector" else flat_cosine
    kd = sum((1 - agreement(a, b)).mean() for a, b in zip(clean, student))
    recon = sum((1 - local_cosine(a, b)).mean() for a, b in zip(twins, projected))
    margin = settings.get("margin", 0.5)
    con = sum(np.maximum(0, flat_cosine(a, b) - margin).mean() for a, b in zip(noisy, projected))
    assert logged["kd"] == pytest.approx(kd, rel=1e-4)
    assert logged["recon"] == pytest.approx(recon, rel=1e-3)
    assert logged["con"] == pytest.approx(con, rel=1e-4, abs=1e-6)
    total = (
        kd
        + settings.get("projection_weight", 0.2)
        * (logged["ssot"] + settings.get("recon_weight", 0.01) * recon + settings.get("con_weight", 0.1) * con)
        / 1.11
    )
    assert logged["loss"] == pytest.approx(total, rel=1e-4)
    ssot = settings.get("ssot", "paired")
    if ssot in ("paired", "paper"):
        assert logged["ssot"] > 1e-3
    else:
        assert abs(logged["ssot"]) < 1e-6
        assert logged["ssot"] == 0 or ssot == "code"


def test_the_student_sees_good_images_only(learned, listener, monkeypatch):
    seen, forward = [], ReverseStudent.forward

    def watched(student, features):
        seen.append([map_.detach() for map_ in features])
        return forward(student, features)

    monkeypatch.setattr(ReverseStudent, "forward", watched)
    method = learned("rdpp", {"steps": 2, **STILL}, teacher=listener)
    assert len(seen) == 2
    for maps, batch in zip(seen, listener.clean):
        for ours, projection, theirs in zip(maps, method.projections, method.backbone(batch.images)):
            torch.testing.assert_close(ours, projection(theirs).detach(), rtol=1e-4, atol=1e-4)
    counts = {int(value) for key, value in method.student.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {2}


def test_two_rates_and_gradients_summed_over_two_batches(learned, updates):
    learned("rdpp", {"steps": 2, "accumulate": 1, **STILL})
    each = list(updates)
    updates.clear()
    learned("rdpp", {"steps": 2, "learning_rate": 1e-12, "projection_rate": 1e-13})
    assert [update.rate for update in updates] == [1e-12, 1e-13]
    for place, update in enumerate(updates):
        for summed, first, second in zip(update.gradients, each[place].gradients, each[place + 2].gradients):
            torch.testing.assert_close(summed, first + second, rtol=1e-3, atol=1e-5)
            assert not torch.allclose(summed, 2 * first, rtol=1e-2, atol=1e-7) or float(summed.abs().max()) < 1e-4
    updates.clear()
    learned("rdpp", {"steps": 2})
    assert [update.rate for update in updates] == [0.005, 0.001]


def test_an_odd_last_batch_is_learned_from_in_its_own_epoch(learned, updates):
    learned("rdpp", {"steps": None, "epochs": 2, **STILL}, 12)
    assert len(updates) == 2 * 2 * 2  # epochs, updates in an epoch of three batches, optimisers
    lone = updates[2].gradients  # the third batch's, of the student
    updates.clear()
    learned("rdpp", {"steps": 3, "accumulate": 1, **STILL}, 12)
    third = updates[4].gradients
    for ours, expected in zip(lone, third):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_gradients_flow_from_every_term_into_the_projections(learned, tiny_backbone):
    method = learned("rdpp", {"steps": 1, **STILL}, 4)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    clean, noisy = method.backbone(images), method.backbone((images * 1.3).clamp(0, 1))
    projected, twins = method._projected(clean), method._projected(noisy)
    terms = {
        "kd": layer_loss(clean, method.student(projected)),
        "recon, through the image": vector_loss([map_.detach() for map_ in twins], projected),
        "recon, through the twin": vector_loss(twins, [map_.detach() for map_ in projected]),
        "con": contrast(noisy, projected, -1.0),
        "ssot": paired_transport(
            projected, torch.tensor([1, 2, 3, 0]), random_places(projected, torch.Generator(), 64)
        ),
    }
    for name, term in terms.items():
        found = torch.autograd.grad(term, method.projections[0].layers[0].weight, retain_graph=True)[0]
        assert float(found.abs().max()) > 1e-8, name


def test_a_single_image_does(learned, tiny_images):
    lone = learned("rdpp", {"steps": None, "epochs": 2}, 1)
    assert all(abs(epoch["ssot"]) < 1e-6 for epoch in lone.curve)
    with torch.no_grad():
        assert lone(tiny_images(2, seed=4).images).map.isfinite().all()


def test_what_it_cannot_work_with_is_said(tiny_backbone):
    backbone = tiny_backbone()
    with pytest.raises(ConfigError, match="noise patches"):
        RDPP(backbone, (64, 64), RDPPConfig(patch=(20, 10)))
    with pytest.raises(ConfigError, match="single cell"):
        RDPP(backbone, (16, 16), RDPPConfig())


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


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_field_is_cut_at_its_first_corner_and_a_free_one_anywhere(learned, listener, monkeypatch, fixed):
    def ramp(generator, side, wavelength):
        return 1 + torch.arange(side * side).view(1, side, side).expand(3, side, side)

    monkeypatch.setattr(rdpp, "noise_field", ramp)
    learned("rdpp", {**ONE_STEP, "batch_size": 8, "noise": 1.0, "fixed_field": fixed}, teacher=listener)
    batch, twins = listener.clean[0].images, listener.noisy[0]
    added = [(twins - batch)[i, 0][box][0, 0].round() for i, box in enumerate(boxes(twins, batch))]
    firsts = {int(value) for value in added}
    assert firsts == {1} if fixed else len(firsts) > 4


def test_the_wavelength_is_32_pixels_or_grows_with_the_image(tiny_backbone):
    methods = (RDPP(tiny_backbone(), (64, 64), RDPPConfig(scale_patches=grows)) for grows in (False, True))
    assert [method._wavelength for method in methods] == [32, 32 * 64 / 256]


def test_the_field_of_its_seed_is_added_at_the_strength_asked_for_and_nowhere_else(learned, listener):
    learned("rdpp", {**ONE_STEP, "noise": 0.35, "fixed_field": True}, teacher=listener, run=Run(seed=6))
    field = noise_field(Run(seed=6).generator("noise field"), 128)
    batch, twins = listener.clean[0].images, listener.noisy[0]
    for image, twin, (rows, columns) in zip(batch, twins, boxes(twins, batch)):
        cut = field[:, : rows.stop - rows.start, : columns.stop - columns.start]
        image[:, rows, columns] += 0.35 * cut
        torch.testing.assert_close(twin, image, rtol=0, atol=1e-6)


def test_gaussian_noise_is_white_and_of_the_strength_asked_for(learned, listener):
    learned("rdpp", {**ONE_STEP, "batch_size": 8, "noise": 0.5, "pattern": "gaussian"}, teacher=listener)
    batch, twins = listener.clean[0].images, listener.noisy[0]
    for image, twin, (rows, columns) in zip(batch, twins, boxes(twins, batch)):
        added = (twin - image)[:, rows, columns]
        assert float(added.std()) == pytest.approx(0.5, rel=0.2)
        assert abs(float((added[:, 1:] * added[:, :-1]).mean())) < 0.05  # neighbours have nothing in common


@pytest.mark.parametrize(("depth", "widths"), [(1, (64, 64)), (2, (64, 32, 64)), (3, (64, 32, 32, 64))])
def test_a_projection_halves_and_doubles_its_width(depth, widths):
    expected = sum(9 * ins * outs + outs for ins, outs in pairwise(widths))
    assert sum(values.numel() for values in Projection(64, depth).parameters()) == expected


def test_ssot_is_the_divergence_between_the_projected_images(learned, listener, divergence_by_numpy):
    # Of two images each is the other's partner, and their 64 and 16 cells are all taken: nothing is left to a draw.
    method = learned("rdpp", ONE_STEP, 2, teacher=listener)
    (batch,) = listener.clean
    projected = method._projected(method.backbone(batch.images))
    assert [map_[0, 0].numel() for map_ in projected] == [64, 16]
    expected = np.mean([divergence_by_numpy(*clouds(map_), 0.05) for map_ in projected])
    assert method.curve[0]["ssot"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("images", [2, 3, 4])
def test_no_image_is_its_own_partner(tiny_backbone, images):
    method = RDPP(tiny_backbone(), (64, 64), RDPPConfig(layers=(2, 3)))
    maps = [torch.zeros(images, 1, 2, 2)]
    drawn = [method._drawn(maps, torch.Generator().manual_seed(seed))[0].tolist() for seed in range(40)]
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
    partners, *places = method._drawn(maps, generator)
    gradients = torch.autograd.grad(method._transport(maps, partners, places), maps)
    for gradient, expected in zip(gradients, cells):
        assert [int(touched.sum()) for touched in gradient.abs().sum(dim=1) > 0] == [expected] * 2


def test_the_projections_gradients_are_autograd_s_of_the_whole_loss(learned, listener, updates):
    settings = {**STILL, "steps": 1, "ssot": "none", "accumulate": 1, "margin": -1.0}
    settings |= {"projection_weight": 3.0, "recon_weight": 2.0, "con_weight": 0.7}
    method = learned("rdpp", settings, 4, teacher=listener, backbone=listener.backbone)
    clean, noisy = method.backbone(listener.clean[0].images), method.backbone(listener.noisy[0])
    method.student.train().requires_grad_(True), method.projections.requires_grad_(True)
    ours = [projection(map_) for projection, map_ in zip(method.projections, clean)]
    twins = [projection(map_) for projection, map_ in zip(method.projections, noisy)]
    loss = 0.0
    for t, s in zip(clean, method.student(ours)):
        loss = loss + (1 - F.cosine_similarity(t.flatten(1), s.flatten(1))).mean()
    for twin, own, raw in zip(twins, ours, noisy):  # both sides of Recon learn, and Con's projected one
        loss = loss + 3 * 2.0 / 1.11 * (1 - F.cosine_similarity(twin, own)).mean()
        loss = loss + 3 * 0.7 / 1.11 * (F.cosine_similarity(raw.flatten(1), own.flatten(1)) + 1).mean()
    expected = torch.autograd.grad(loss, list(method.projections.parameters()))
    for found, gradient in zip(updates[1].gradients, expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-2, atol=1e-4)


def test_a_field_has_places_enough_that_two_images_rarely_get_the_same_noise(learned, monkeypatch):
    sides, make = [], rdpp.noise_field
    monkeypatch.setattr(rdpp, "noise_field", lambda g, side, *rest: sides.append(side) or make(g, side, *rest))
    learned("rdpp", {"steps": 1, **STILL}, 2)
    assert sides == [128]  # docs/methods/rdpp.md: 3 x 128 x 128
