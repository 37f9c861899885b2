"""Regions of interest: files, the rule, what a model file keeps, and pixel metrics inside."""

import json

import numpy as np
import pytest
from PIL import Image

from blemish.data.images import read_image
from blemish.data.preprocessing import Preprocessing
from blemish.data.roi import Roi, read_area, read_roi
from blemish.data.tiles import Tiling
from blemish.errors import ConfigError, DataError, ImageError
from blemish.metrics import aupro_per_image, pixel_metrics

MASK = np.zeros((20, 30), bool)
MASK[4:12, 10:25] = True
SQUARE = [[10, 4], [24, 4], [24, 11], [10, 11]]  # Pillow draws a polygon's border, too


@pytest.mark.parametrize(
    "content",
    [[SQUARE], {"polygons": [SQUARE]}, {"shapes": [{"label": "x", "points": SQUARE}]}, [SQUARE[:3], SQUARE], None],
)
def test_masks_and_polygons_cover_the_same(tmp_path, content):
    path = tmp_path / ("a.png" if content is None else "a.JSON")
    if content is None:
        Image.fromarray(MASK.astype(np.uint8)).save(path)  # 1 is not black
    else:
        path.write_text(json.dumps(content))
    np.testing.assert_array_equal(read_area(path, (20, 30)), MASK)
    assert read_roi(None, path, (20, 30)).mask.sum() == (~MASK).sum()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "does not hold polygons"),
        ('{"other": []}', "as 'polygons' of an object"),
        ("[[[1, 2], [3, 4]]]", "three or more pairs"),
        ("[[[1, 2], [3, 4], [5]]]", "three or more pairs"),
        ("[[1, 2], [3, 4]]", "does not hold polygons"),
        ('[[[1, 2], [3, 4], [5, "x"]]]', "does not hold polygons"),
        ("[[[1, 2], [3, 4], [5, NaN]]]", "three or more pairs"),
        ("[" * 9000, "does not hold polygons"),
        ("[]", "leaves nothing of the images"),
        ("[[[100, 100], [200, 100], [200, 200]]]", "leaves nothing of the images"),
    ],
)
def test_files_that_hold_no_region_are_refused_in_words(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_roi(tmp_path / "a.json", None, (20, 30))


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="30 x 20 pixels, the images 40 x 20"):
        read_area(tmp_path / "a.png", (20, 40))
    with pytest.raises(ImageError, match="40 x 20 pixels, the region of interest 30 x 20"):
        Preprocessing(size=32, roi=Roi.of(MASK)).prepare(read_image(np.zeros((20, 40), np.uint8)))


@pytest.mark.parametrize(
    ("pixels", "white_level", "outside"),
    [
        (np.full((20, 30), 200, np.uint8), 255, 51),
        (np.full((20, 30, 3), 200, np.uint8), 255, 51),
        (np.full((20, 30), 900, np.uint16), 1023, 205),  # 51 / 255 of it, rounded
        (np.full((20, 30), 0.123, np.float32), 255, np.float32(0.2)),
    ],
)
def test_outside_is_one_level_on_the_image_s_own_scale(pixels, white_level, outside):
    image = read_image(pixels)
    covered = Roi.of(MASK, 51).cover(image, white_level)
    assert (covered.bits, covered.grey, covered.pixels.dtype) == (image.bits, image.grey, image.pixels.dtype)
    assert set(np.unique(covered.pixels[~MASK])) == {outside}
    np.testing.assert_array_equal(covered.pixels[MASK], image.pixels[MASK])


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "opencv"])
def test_maps_take_their_smallest_value_inside_outside(resize):
    preparation = Preprocessing(resize, 32, roi=Roi.of(MASK))
    plain = Preprocessing(resize, 32)
    map_ = np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32)
    bare, cleared = plain.to_original(map_, (20, 30)), preparation.to_original(map_, (20, 30))
    np.testing.assert_array_equal(cleared[MASK], bare[MASK])
    assert set(cleared[~MASK]) == {bare[MASK].min()}
    assert preparation.highest(map_) == bare[MASK].max() < plain.highest(map_) == map_.max()


def test_preparations_keep_tiles_and_regions_and_plain_ones_their_digest():
    assert Preprocessing().to_dict() == {"family": "stretch", "size": 256, "crop": None, "full_scale": 255}
    whole = Preprocessing(size=64, tiling=Tiling(64, 8), roi=Roi.of(MASK, 7))
    stored = json.loads(json.dumps(whole.to_dict()))
    assert Preprocessing.from_dict(stored) == whole
    assert len({whole.digest, Preprocessing(size=64).digest, Preprocessing(size=64, roi=Roi.of(MASK, 8)).digest}) == 3
    for wrong in ({"mask": "AAAA"}, {"size": [20, 31000000]}, {"size": [20, 60]}, {"level": 300}, {"size": [0, 30]}):
        with pytest.raises(ValueError):
            Roi.from_dict(stored["roi"] | wrong)
    with pytest.raises(ConfigError, match="gaps between tiles"):
        Preprocessing("crop", 64, tiling=Tiling(64, 8))


def test_tiles_outside_the_region_are_left_out():
    preparation = Preprocessing(size=64, tiling=Tiling(32, 0), roi=Roi.of(np.arange(128) < np.full((64, 1), 40), 9))
    windows = preparation.windows((64, 128))
    assert [(rows.start, columns.start) for rows, columns in windows] == [(0, 0), (0, 32), (32, 0), (32, 32)]
    tiles = preparation.cut(read_image(np.full((64, 128), 200, np.uint8)))
    assert [int((tile.pixels[..., 0] == 9).sum()) for tile in tiles] == [0, 24 * 32, 0, 24 * 32]
    assert preparation.inside(1).mean() == 0.25  # 8 of its 32 columns


def test_pixel_metrics_inside_a_rectangle_are_those_of_the_images_cut_to_it():
    rng = np.random.default_rng(3)
    maps, masks = rng.normal(size=(4, 20, 30)).astype(np.float32).round(1), rng.random((4, 20, 30)) < 0.02
    masks[0] = False
    masks[1, 4:6, 8:14] = True  # across the border, in one piece either way
    masks[2, 0:3, 0:3] = True  # outside
    cut = np.s_[:, 4:12, 10:25]
    assert pixel_metrics(maps, masks, MASK) == pytest.approx(pixel_metrics(maps[cut], masks[cut]), rel=1e-12)
    per_image = aupro_per_image(maps, masks, inside=MASK)
    assert per_image == pytest.approx(aupro_per_image(maps[cut], masks[cut]), rel=1e-12)
