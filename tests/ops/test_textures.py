"""Made-up defects: where they are, what of the image stays, what they are cut from; and the loss that finds them."""

import math

import numpy as np
import pytest
import torch

from blemish.ops import perlin, textures
from blemish.ops.focal import focal_loss
from blemish.ops.textures import DRAWN, KEPT, Textures, with_textures
from blemish.run import Run

IMAGES = torch.rand(8, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def drawn(monkeypatch):
    """Textures as they are where scikit-image is not installed."""
    monkeypatch.setattr(textures, "_photographs", tuple)
    return Textures(Run())


def test_a_defect_is_inside_its_mask_and_keeps_some_of_the_image(drawn):
    spoiled, masks = with_textures(IMAGES, drawn, generator())
    assert masks.dtype == torch.bool and masks.shape == (8, 40, 56) and masks.any()
    where = masks[:, None].expand_as(IMAGES)
    assert torch.equal(spoiled[~where], IMAGES[~where])
    # spoiled = kept * image + (1 - kept) * texture, and a texture lies in [0, 1]
    texture = (spoiled - KEPT * IMAGES)[where]
    assert texture.max() <= 1 + 1e-6 and (spoiled[where] >= 0).all() and (spoiled[where] != IMAGES[where]).any()
    again, same = with_textures(IMAGES, drawn, generator())
    assert torch.equal(again, spoiled) and torch.equal(same, masks)


def test_as_many_images_get_one_as_asked_for(drawn):
    untouched, masks = with_textures(IMAGES, drawn, generator(), chance=0.0)
    assert torch.equal(untouched, IMAGES) and not masks.any()
    counts = [int(with_textures(IMAGES, drawn, generator(i), 0.5)[1].flatten(1).any(dim=1).sum()) for i in range(10)]
    assert 15 < sum(counts) < 50  # of 80, and some masks are empty


def test_what_defects_are_cut_from_is_said(drawn):
    run = Run()
    assert len(Textures(run).pictures) == DRAWN
    assert run.log.facts["made-up defects"] == f"{DRAWN} drawn textures"
    flat = torch.stack([picture.float().std() for picture in drawn.pictures])
    assert (flat > 5).all()  # none is one colour all over


def test_photographs_are_used_where_they_are_installed():
    pytest.importorskip("skimage", reason="the photographs are scikit-image's")
    run = Run()
    found = Textures(run)
    assert "photographs of scikit-image" in run.log.facts["made-up defects"]
    assert all(max(picture.shape) <= textures.SIDE for picture in found.pictures)
    texture = found.draw((40, 56), generator())
    assert texture.shape == (3, 40, 56) and 0 <= texture.min() < texture.max() <= 1


@pytest.mark.parametrize("gamma", [0.0, 2.0, 4.0])
def test_the_focal_loss_is_numpy_s(gamma):
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(0, 3, (2, 5, 4)), rng.random((2, 5, 4)) < 0.3
    given = np.where(truth, 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits)))
    expected = (-np.log(given) * (1 - given) ** gamma).mean()
    assert float(focal_loss(torch.from_numpy(logits), torch.from_numpy(truth), gamma)) == pytest.approx(
        expected, rel=1e-5
    )


PLAIN = torch.full((400, 3, 8, 8), 0.25)


class White:
    def __init__(self):
        self.asked = []

    def draw(self, size, generator, alter=True):
        self.asked.append(alter)
        return torch.ones(3, *size)


def test_of_the_image_up_to_four_fifths_stay_uniformly(monkeypatch):
    monkeypatch.setattr(textures, "perlin_mask", lambda size, generator: torch.ones(size, dtype=torch.bool))
    spoiled, _ = with_textures(PLAIN, White(), torch.Generator().manual_seed(0))
    kept = (1 - spoiled[:, 0, 0, 0]) / 0.75  # kept * .25 + (1 - kept) * 1
    assert 0 <= kept.min() < 0.02 and 0.78 < kept.max() <= 0.8
    assert abs(float(kept.mean()) - 0.4) < 0.03


def test_three_of_ten_alterations_unless_told_otherwise(monkeypatch):
    from torchvision.transforms.v2 import functional as tv

    names = "adjust_gamma adjust_brightness adjust_sharpness adjust_hue solarize posterize invert autocontrast equalize"
    done = []
    for name in [*names.split(), "rotate"]:
        monkeypatch.setattr(tv, name, lambda seen, *_, name=name: done.append(name) or seen)
    some = object.__new__(textures.Textures)
    some.pictures = textures._drawn()
    for alter, count in ((True, 3), (False, 0)):
        done.clear()
        counts = []
        for seed in range(40):
            before = len(done)
            some.draw((8, 8), torch.Generator().manual_seed(seed), alter)
            counts.append(len(done) - before)
        assert set(counts) == {count}
    assert not done


def test_masks_are_of_noise_above_one_half_on_1_to_32_cells_turned_by_up_to_a_quarter(monkeypatch):
    asked = []

    def noise(size, cells, generator, turn):
        asked.append((*cells, turn))
        return torch.tensor([[0.49, 0.51]])

    monkeypatch.setattr(perlin, "perlin_noise", noise)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        assert perlin.perlin_mask((256, 256), generator).tolist() == [[False, True]]
    rows, columns, turns = zip(*asked)
    for cells in (rows, columns):
        assert {*cells} == {1, 2, 4, 8, 16, 32}
        assert all(70 < cells.count(2**e) < 130 for e in range(6))
    assert -math.pi / 2 <= min(turns) < -1.5 and 1.5 < max(turns) <= math.pi / 2


def test_chance_is_the_share_of_images_that_get_one(monkeypatch):
    monkeypatch.setattr(textures, "perlin_mask", lambda size, generator: torch.ones(size, dtype=torch.bool))
    for chance, low, high in ((0.5, 170, 230), (1.0, 400, 400)):
        _, masks = with_textures(PLAIN, White(), torch.Generator().manual_seed(0), chance)
        assert low <= int(masks.flatten(1).all(dim=1).sum()) <= high
