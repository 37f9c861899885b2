"""The four ways to resize against independent computations, and the way back to the picture."""

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


def triangle_weights(given, wanted):
    """Rows of weights of an antialiased bilinear resize: a triangle as wide as the shrinking."""
    centres = (np.arange(wanted)[:, None] + 0.5) * given / wanted
    weights = np.maximum(0, 1 - np.abs(np.arange(given) + 0.5 - centres) / max(given / wanted, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def opencv_weights(given, wanted):
    """Rows of weights of a bilinear resize that reads the two nearest pixel centres only."""
    places = (np.arange(wanted) + 0.5) * given / wanted - 0.5
    return np.stack([np.interp(places, np.arange(given), unit) for unit in np.eye(given)], axis=1)


def resized(picture, size, weights):
    """``h w c`` resized by two weight matrices, in float64, as ``c h w``."""
    rows, columns = weights(picture.shape[0], size[0]), weights(picture.shape[1], size[1])
    return np.einsum("yh,hwc,xw->cyx", rows, picture.astype(np.float64), columns, optimize=True)


def prepared(picture, *settings, **named):
    return Preprocessing(*settings, **named).prepare(read_image(picture)).numpy()


@pytest.mark.parametrize("size", SIZES)
def test_pictures_masks_and_maps_equal_independent_ones(size):
    picture = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    deep = RNG.integers(0, 4096, (*size, 3), dtype=np.uint16)
    mask = RNG.random(size) > 0.7
    pillow = Image.fromarray(picture)

    found = prepared(picture, "stretch", (64, 48))
    # uint8 is rounded after each axis, floats and 16 bits are not.
    np.testing.assert_allclose(found, resized(picture, (64, 48), triangle_weights) / 255, atol=1.1 / 255)
    np.testing.assert_array_equal(found, tv.to_tensor(pillow.resize((48, 64), Image.Resampling.BILINEAR)).numpy())
    for values in (deep, deep / 4095):
        found = prepared(values, "stretch", (64, 48), white_level=4095)
        np.testing.assert_allclose(found, resized(deep / 4095, (64, 48), triangle_weights), atol=1e-5)
    y = ((np.arange(64) + 0.5) * size[0] / 64).astype(int)
    x = ((np.arange(48) + 0.5) * size[1] / 48).astype(int)
    np.testing.assert_array_equal(Preprocessing("stretch", (64, 48)).prepare_mask(mask), mask[y][:, x])

    cropped = tv.to_tensor(tv.center_crop(tv.resize(pillow, 64), [51, 51])).numpy()
    np.testing.assert_array_equal(prepared(picture, "crop", 64, crop=51), cropped)
    nearest = tv.resize(Image.fromarray(mask).convert("L"), 64, tv.InterpolationMode.NEAREST)
    cropped_mask = np.asarray(tv.center_crop(nearest, [56, 56])) > 0
    np.testing.assert_array_equal(Preprocessing("crop", 64).prepare_mask(mask), cropped_mask)

    for values, white in ((picture, 255), (deep, 4095)):
        found = prepared(values, "opencv", (64, 48), white_level=white)
        np.testing.assert_allclose(found, resized(values / white, (64, 48), opencv_weights), atol=2e-7)

    scale = min(64 / size[0], 80 / size[1])
    rows, columns = round(size[0] * scale), round(size[1] * scale)
    content = np.asarray(pillow.resize((columns, rows), Image.Resampling.BILINEAR)) / 255
    top, left = (64 - rows) // 2, (80 - columns) // 2
    boxed = np.pad(content, ((top, 64 - rows - top), (left, 80 - columns - left), (0, 0)), mode="edge")
    np.testing.assert_allclose(prepared(picture, "letterbox", (64, 80)), boxed.transpose(2, 0, 1), atol=1e-7)

    given = torch.rand((64, 48)).requires_grad_()
    expected = resized(given.detach().numpy()[..., None], size, opencv_weights)[0]
    for resize in ("stretch", "opencv"):
        np.testing.assert_allclose(Preprocessing(resize, (64, 48)).to_original(given, size), expected, atol=1e-5)


def test_16_bit_values_above_white_are_clipped_and_refused_after_8_bit_training():
    deep, shallow = np.full((16, 16), 2000, np.uint16), np.full((16, 16), 255, np.uint8)
    assert np.all(prepared(deep, size=16, white_level=1023) == 1)
    assert np.all(prepared(shallow, size=16, white_level=4095) == 1)
    with pytest.raises(ImageError, match="values up to 2000, but no training image"):
        prepared(deep, size=16)
    assert prepared(deep // 39, size=16).mean() == pytest.approx(0.2)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_that_hold_8_are_prepared_as_8_bits_are(order):
    pixels = RNG.integers(0, 256, (41, 53, 3), dtype=np.uint8)
    assert np.array_equal(prepared(pixels.astype(order), size=16), prepared(pixels, size=16))


@pytest.mark.parametrize("resize", RESIZES)
def test_grey_equals_its_colour_copy_and_a_stack_its_images(resize):
    preparation = Preprocessing(resize, 48, white_level=4095)
    grey = RNG.integers(0, 256, (90, 70), dtype=np.uint8)
    deep, colour = RNG.integers(0, 4096, (30, 20), dtype=np.uint16), np.repeat(grey[..., None], 3, axis=2)
    images = [read_image(picture) for picture in (grey, colour, deep)]
    one_by_one = [preparation.prepare(image) for image in images]
    assert one_by_one[0].dtype == torch.float32 and one_by_one[0].is_contiguous()
    assert torch.equal(one_by_one[0], one_by_one[1])
    assert torch.equal(stacked([preparation.resized(image) for image in images]), torch.stack(one_by_one))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", SIZES)
def test_a_square_and_a_ramp_come_back_where_they_were(resize, size):
    """Image and mask agree on where it is, and the map brings it back within a pixel of the coarser grid."""
    preparation = Preprocessing(resize, 64)
    picture = np.zeros((*size, 3), np.uint8)
    centre = (size[0] // 2 - 6, size[1] // 2 + 5)
    picture[centre[0] - 5 : centre[0] + 6, centre[1] - 5 : centre[1] + 6] = 255
    found = preparation.prepare(read_image(picture))[0].numpy()
    mask = preparation.prepare_mask(picture[..., 0] > 0)
    assert mask.shape == preparation.input_size and mask.dtype == np.bool_
    back = preparation.to_original(found, size)
    assert back.shape == size and back.dtype == np.float32
    for axis in (0, 1):
        means = [np.average(np.arange(a.shape[axis]), weights=a.sum(axis=1 - axis)) for a in (found, mask, back)]
        assert means[0] == pytest.approx(means[1], abs=0.6)
        assert means[2] == pytest.approx(centre[axis], abs=max(1.0, max(size) / 64) / 2)
    # A map that holds its own row number, in original pixels.
    length, offset = 64, 0
    if resize == "crop":
        length = 64 if size[0] == min(size) else int(64 * size[0] / min(size))
        offset = -round((length - 56) / 2)
    elif resize == "letterbox":
        length = max(1, round(size[0] * min(64 / size[0], 64 / size[1])))
        offset = (64 - length) // 2
    rows = (np.arange(preparation.input_size[0]) - offset + 0.5) * size[0] / length - 0.5
    back = preparation.to_original(np.repeat(rows[:, None], preparation.input_size[1], axis=1), size)
    inner = np.arange(size[0])[int(0.1 * size[0]) + 4 : int(0.9 * size[0]) - 4]
    inner = inner[(inner > rows[0]) & (inner < rows[-1])]
    np.testing.assert_allclose(back[inner, size[1] // 2], inner, atol=1e-2)


def test_outside_a_crop_and_in_the_padding_nothing_is_known():
    given = np.full((56, 56), 5.0, np.float32)
    given[28, 28] = 2.0
    back = Preprocessing("crop", 64).to_original(given, (128, 256))
    # The crop covers rows 8 to 119 of 128, columns 72 to 183 of 256.
    for outside in (back[:8], back[120:], back[:, :72], back[:, 184:]):
        assert np.all(outside == 2)
    assert np.all(back[8:20, 72:184] == 5)
    letterbox = Preprocessing("letterbox", 64)
    content = letterbox.prepare_mask(np.ones((20, 80), np.bool_))
    np.testing.assert_array_equal(content, np.repeat([[0], [1], [0]], (24, 16, 24), axis=0) * np.ones((1, 64)))
    for size in ((20, 80), (90, 33)):
        content = letterbox.prepare_mask(np.ones(size, np.bool_))
        assert np.all(letterbox.to_original(np.where(content, 1.0, 9.0), size) == 1)
    with pytest.raises(DataError, match=r"\(10, 10\) was given, \(64, 64\) is needed"):
        letterbox.to_original(np.zeros((10, 10)), (20, 20))


def test_settings_survive_json_under_the_names_of_model_files_and_have_sizes_and_digests():
    stored = {"family": "letterbox", "size": [64, 256], "crop": None, "full_scale": 4095}
    assert Preprocessing("letterbox", (64, 256), white_level=4095).to_dict() == stored
    sizes = [Preprocessing(*given).input_size for given in (("crop",), ("crop", 64), ("letterbox", (64, 256)))]
    assert sizes == [(224, 224), (56, 56), (64, 256)]  # a crop is seven eighths
    variants = [Preprocessing(), Preprocessing("opencv"), Preprocessing(size=128), Preprocessing(size=(128, 64))]
    variants += [Preprocessing("crop"), Preprocessing("crop", crop=200), Preprocessing(white_level=511)]
    variants.append(Preprocessing.from_dict(stored))
    assert len({variant.digest for variant in variants}) == len(variants)
    assert [Preprocessing.from_dict(json.loads(json.dumps(variant.to_dict()))) for variant in variants] == variants


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"family": "squash"}, "choose stretch"),
        ({"size": 0}, "of 1 to 4096 pixels"),
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


def test_a_long_thin_image_is_not_enlarged_whole_to_be_cropped():
    thin = read_image(np.zeros((8, 100_000), np.uint8))
    with pytest.raises(ImageError, match="too long to be cropped: 3200000 x 256"):
        Preprocessing("crop", 256).prepare(thin)
    assert Preprocessing("stretch", 64).prepare(thin).shape == (3, 64, 64)
