"""The four ways to resize against independent computations, and the way back to the picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from blemish.data.images import read_image
from blemish.data.preprocessing import Preprocessing, stacked
from blemish.errors import ConfigError, DataError, ImageError

RNG = np.random.default_rng(5)
RESIZES = ("stretch", "crop", "opencv", "letterbox")
SIZES = [(100, 100), (150, 90), (61, 143), (40, 50), (300, 64)]


def triangle_weights(given: int, wanted: int) -> np.ndarray:
    """Rows of weights of an antialiased bilinear resize: a triangle as wide as the shrinking."""
    scale = max(given / wanted, 1.0)
    centres = (np.arange(wanted)[:, None] + 0.5) * given / wanted
    weights = np.maximum(0, 1 - np.abs(np.arange(given) + 0.5 - centres) / scale)
    return weights / weights.sum(axis=1, keepdims=True)


def opencv_weights(given: int, wanted: int) -> np.ndarray:
    """Rows of weights of a bilinear resize that reads the two nearest pixel centres only."""
    weights = np.zeros((wanted, given))
    for row in range(wanted):
        place = (row + 0.5) * given / wanted - 0.5
        low = int(np.floor(place))
        part = place - low
        weights[row, min(max(low, 0), given - 1)] += 1 - part
        weights[row, min(max(low + 1, 0), given - 1)] += part
    return weights


def resized(picture: np.ndarray, size: tuple[int, int], weights) -> np.ndarray:
    """``h w c`` resized by two weight matrices, in float64."""
    rows, columns = weights(picture.shape[0], size[0]), weights(picture.shape[1], size[1])
    return np.einsum("yh,hwc,xw->yxc", rows, picture.astype(np.float64), columns, optimize=True)


@pytest.mark.parametrize("size", SIZES)
def test_stretch_is_an_antialiased_resize(size):
    picture = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = Preprocessing("stretch", (64, 48)).prepare(read_image(picture))
    assert found.shape == (3, 64, 48) and found.dtype == torch.float32 and found.is_contiguous()
    expected = resized(picture, (64, 48), triangle_weights).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(found.numpy(), expected, atol=1.1 / 255)  # uint8 is rounded after each axis
    pillow = np.asarray(Image.fromarray(picture).resize((48, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(found.numpy(), pillow.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("size", SIZES)
def test_float_and_16_bit_stretch_are_not_rounded(size):
    picture = RNG.integers(0, 4096, size, dtype=np.uint16)
    found = Preprocessing("stretch", 64, white_level=4095).prepare(read_image(picture))
    expected = resized(picture[..., None] / 4095, (64, 64), triangle_weights)[..., 0]
    for channel in found.numpy():
        np.testing.assert_allclose(channel, expected, atol=1e-5)
    floating = Preprocessing("stretch", 64).prepare(read_image(picture / 4095))
    np.testing.assert_allclose(floating.numpy(), found.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_crop_equals_torchvision(size):
    picture = Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = tv.to_tensor(tv.center_crop(tv.resize(picture, 64), [51, 51]))
    found = Preprocessing("crop", 64, crop=51).prepare(read_image(picture))
    assert torch.equal(found, expected)


def test_input_sizes():
    assert Preprocessing("crop").input_size == (224, 224)  # seven eighths
    assert Preprocessing("crop", 64).input_size == (56, 56)
    assert Preprocessing("letterbox", (64, 256)).input_size == (64, 256)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [8, 16])
def test_opencv_reads_two_centres_without_antialiasing(size, depth):
    scale = 2**depth - 1
    picture = RNG.integers(0, scale + 1, (*size, 3)).astype(np.uint8 if depth == 8 else np.uint16)
    found = Preprocessing("opencv", (64, 48), white_level=scale).prepare(read_image(picture))
    expected = resized(picture / scale, (64, 48), opencv_weights)
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=2e-7)


def test_opencv_and_stretch_differ_on_a_fine_texture():
    stripes = np.tile(np.array([0, 255], np.uint8), (128, 64))
    sharp = Preprocessing("opencv", 50).prepare(read_image(stripes))
    soft = Preprocessing("stretch", 50).prepare(read_image(stripes))
    assert sharp.std() > 5 * soft.std()


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_keeps_the_aspect_and_repeats_the_border(size):
    picture = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = Preprocessing("letterbox", (64, 80)).prepare(read_image(picture)).numpy()
    scale = min(64 / size[0], 80 / size[1])
    rows, columns = round(size[0] * scale), round(size[1] * scale)
    assert rows == 64 or columns == 80
    top, left = (64 - rows) // 2, (80 - columns) // 2
    content = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR)) / 255
    y = np.clip(np.arange(64) - top, 0, rows - 1)
    x = np.clip(np.arange(80) - left, 0, columns - 1)
    np.testing.assert_allclose(found, content[y][:, x].transpose(2, 0, 1), atol=1e-7)


@pytest.mark.parametrize("resize", RESIZES)
def test_grey_equals_its_colour_copy(resize):
    grey = RNG.integers(0, 256, (90, 70), dtype=np.uint8)
    preparation = Preprocessing(resize, 48)
    from_grey = preparation.prepare(read_image(grey))
    assert torch.equal(from_grey, preparation.prepare(read_image(np.repeat(grey[..., None], 3, axis=2))))


def test_16_bit_values_above_white_are_clipped_and_refused_after_8_bit_training():
    deep, shallow = np.full((16, 16), 2000, np.uint16), np.full((16, 16), 255, np.uint8)
    assert Preprocessing(size=16, white_level=1023).prepare(read_image(deep)).unique().tolist() == [1.0]
    assert Preprocessing(size=16, white_level=4095).prepare(read_image(shallow)).min() == 1.0
    with pytest.raises(ImageError, match=r"values up to 2000 .* no training image"):
        Preprocessing(size=16).prepare(read_image(deep))
    assert Preprocessing(size=16).prepare(read_image(deep // 39)).mean() == pytest.approx(0.2)


def test_stacking_mixed_depths_equals_one_by_one():
    preparation = Preprocessing(size=16, white_level=4095)
    pictures = [np.full((20, 20), 80, np.uint8), RNG.integers(0, 4096, (30, 20), dtype=np.uint16)]
    pictures.append(RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    rasters = [read_image(picture) for picture in pictures]
    together = stacked([preparation.resized(raster) for raster in rasters])
    assert torch.equal(together, torch.stack([preparation.prepare(raster) for raster in rasters]))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", SIZES)
def test_a_planted_square_comes_back_where_it_was(resize, size):
    """Image and mask agree on where it is, and the map brings it back within a pixel of the coarser grid."""
    preparation = Preprocessing(resize, 64)
    picture = np.zeros((*size, 3), np.uint8)
    centre = (size[0] // 2 - 6, size[1] // 2 + 5)
    picture[centre[0] - 5 : centre[0] + 6, centre[1] - 5 : centre[1] + 6] = 255
    prepared = preparation.prepare(read_image(picture))[0].numpy()
    mask = preparation.prepare_mask(picture[..., 0] > 0)
    assert mask.shape == preparation.input_size and mask.dtype == np.bool_
    for axis in (0, 1):
        by_image = np.average(np.arange(prepared.shape[axis]), weights=prepared.sum(axis=1 - axis))
        by_mask = np.average(np.arange(mask.shape[axis]), weights=mask.sum(axis=1 - axis))
        assert by_image == pytest.approx(by_mask, abs=0.6)
    back = preparation.to_original(prepared, size)
    assert back.shape == size and back.dtype == np.float32
    cell = max(1.0, max(size) / 64)
    for axis in (0, 1):
        found = np.average(np.arange(size[axis]), weights=back.sum(axis=1 - axis))
        assert found == pytest.approx(centre[axis], abs=cell / 2)


@pytest.mark.parametrize("size", SIZES)
def test_mask_takes_the_pixel_under_each_centre(size):
    mask = RNG.random(size) > 0.7
    y = ((np.arange(64) + 0.5) * size[0] / 64).astype(int)
    x = ((np.arange(48) + 0.5) * size[1] / 48).astype(int)
    np.testing.assert_array_equal(Preprocessing("stretch", (64, 48)).prepare_mask(mask), mask[y][:, x])
    pillow = Image.fromarray(mask).convert("L")
    cropped = np.asarray(tv.center_crop(tv.resize(pillow, 64, tv.InterpolationMode.NEAREST), [56, 56])) > 0
    np.testing.assert_array_equal(Preprocessing("crop", 64).prepare_mask(mask), cropped)


def test_letterbox_mask_is_empty_in_the_padding():
    mask = Preprocessing("letterbox", 64).prepare_mask(np.ones((20, 80), np.bool_))
    np.testing.assert_array_equal(np.flatnonzero(mask.all(axis=1)), np.arange(24, 40))
    assert not mask[:24].any() and not mask[40:].any()


@pytest.mark.parametrize("resize", ["stretch", "opencv"])
@pytest.mark.parametrize("size", SIZES)
def test_map_of_a_stretched_image_is_a_bilinear_resize(resize, size):
    given = RNG.random((64, 48)).astype(np.float32)
    expected = resized(given[..., None], size, opencv_weights)[..., 0]
    np.testing.assert_allclose(Preprocessing(resize, (64, 48)).to_original(given, size), expected, atol=1e-5)
    np.testing.assert_allclose(
        Preprocessing(resize, (64, 48)).to_original(torch.from_numpy(given).requires_grad_(), size), expected, atol=1e-5
    )


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", SIZES)
def test_a_ramp_comes_back_as_a_ramp(resize, size):
    """Coordinates survive the way there and back: a map that holds its own row number, in original pixels."""
    preparation = Preprocessing(resize, 64)
    height = preparation.input_size[0]
    vertical = (64, 0)
    if resize == "crop":
        length = 64 if size[0] == min(size) else int(64 * size[0] / min(size))
        vertical = (length, -round((length - 56) / 2))
    elif resize == "letterbox":
        length = max(1, round(size[0] * min(64 / size[0], 64 / size[1])))
        vertical = (length, (64 - length) // 2)
    length, offset = vertical
    rows = (np.arange(height) - offset + 0.5) * size[0] / length - 0.5
    back = preparation.to_original(np.repeat(rows[:, None], preparation.input_size[1], axis=1), size)
    middle = back[:, size[1] // 2]
    inner = np.arange(size[0])[int(0.1 * size[0]) + 4 : int(0.9 * size[0]) - 4]
    inner = inner[(inner > rows[0]) & (inner < rows[-1])]
    np.testing.assert_allclose(middle[inner], inner, atol=1e-2)


def test_outside_a_crop_nothing_is_known():
    given = np.full((56, 56), 5.0, np.float32)
    given[28, 28] = 2.0
    back = Preprocessing("crop", 64).to_original(given, (128, 256))
    # The crop covers rows 8 to 119 of 128, columns 72 to 183 of 256.
    for outside in (back[:8], back[120:], back[:, :72], back[:, 184:]):
        assert np.all(outside == 2)
    assert np.all(back[8:20, 72:184] == 5)


@pytest.mark.parametrize("size", [(20, 80), (90, 33)])
def test_nothing_leaks_in_from_the_padding(size):
    preparation = Preprocessing("letterbox", 64)
    content = preparation.prepare_mask(np.ones(size, np.bool_))
    back = preparation.to_original(np.where(content, 1.0, 9.0), size)
    np.testing.assert_array_equal(back, np.ones(size))


def test_map_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"\(10, 10\) was given, \(64, 64\) is needed"):
        Preprocessing(size=64).to_original(np.zeros((10, 10)), (20, 20))


def test_settings_survive_json_under_the_names_of_model_files():
    stored = {"family": "letterbox", "size": [64, 256], "crop": None, "full_scale": 4095}
    assert Preprocessing("letterbox", (64, 256), white_level=4095).to_dict() == stored
    for preparation in (Preprocessing(), Preprocessing("crop", 64, 32), Preprocessing.from_dict(stored)):
        assert Preprocessing.from_dict(json.loads(json.dumps(preparation.to_dict()))) == preparation


def test_digest_changes_with_every_setting():
    variants = [
        Preprocessing(),
        Preprocessing("opencv"),
        Preprocessing(size=128),
        Preprocessing(size=(128, 64)),
        Preprocessing("crop"),
        Preprocessing("crop", crop=200),
        Preprocessing(white_level=511),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert Preprocessing().digest == Preprocessing().digest


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"family": "squash"}, "choose stretch"),
        ({"size": 0}, "at least 1"),
        ({"size": (5, 5, 5)}, "one side or"),
        ({"crop": 224}, "goes with the preparation 'crop'"),
        ({"family": "crop", "size": (9, 9)}, "needs one number"),
        ({"family": "crop", "size": 64, "crop": 65}, "between 1 and the size"),
        ({"full_scale": 1000}, "1023"),
        ({"full_scale": 127}, "255"),
        ({"colour": "red"}, "no setting colour"),
    ],
)
def test_settings_that_do_not_fit(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        Preprocessing.from_dict(settings)
