"""What a graph makes of pixels and of maps, against what the model itself does: grey levels are the same."""

import numpy as np
import pytest
import torch

from blemish.data.images import DecodedImage
from blemish.data.preprocessing import Preprocessing
from blemish.deploy.preparation import Prepare, ToOriginal

RNG = np.random.default_rng(3)
FAMILIES = [
    Preprocessing("stretch", 96),
    Preprocessing("stretch", (100, 60)),
    Preprocessing("crop", 96),
    Preprocessing("crop", 64, crop=51),
    Preprocessing("opencv", 96),
    Preprocessing("letterbox", (96, 128)),
]
# Whole ratios, odd ones, larger and smaller, long both ways; Pillow resizes some of them vertically first.
SIZES = [(192, 192), (61, 143), (300, 70), (97, 101), (96, 96), (20, 500), (701, 900), (1000, 97), (8, 9)]


@pytest.mark.parametrize("preparation", FAMILIES, ids=lambda p: f"{p.resize}-{p.size}")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_pillow_s_and_maps_come_back_alike(preparation, size):
    picture = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    deep = RNG.integers(0, 5000, (*size, 3)).astype(np.uint16)
    model = Preprocessing(preparation.resize, preparation.size, preparation.crop, white_level=4095)
    other = np.ascontiguousarray(picture[::-1, :, ::-1])
    given, white = torch.from_numpy(np.stack([picture, other])), torch.tensor(255.0)
    with torch.no_grad():
        found = Prepare(preparation)(given, white)
        found_8_of_16 = Prepare(model)(given.int(), white)
        found_16 = Prepare(model)(torch.from_numpy(deep.astype(np.int32))[None], torch.tensor(4095.0))[0]
    expected = torch.stack([preparation.prepare(DecodedImage(one, 8, grey=False)) for one in (picture, other)])
    tolerance = 3e-7 if preparation.resize == "opencv" else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(found_8_of_16, expected, rtol=0, atol=tolerance)
    grey = Prepare(preparation)(given[..., 1:2], white)
    torch.testing.assert_close(grey, expected[:, 1:2], rtol=0, atol=tolerance)
    torch.testing.assert_close(found_16, model.prepare(DecodedImage(deep, 16, grey=False)), rtol=0, atol=3e-6)

    maps = torch.from_numpy(RNG.normal(size=(2, *preparation.input_size)).astype(np.float32))
    back = ToOriginal(preparation)(maps, given)
    expected_maps = np.stack([preparation.to_original(map_, size) for map_ in maps])
    np.testing.assert_allclose(back, expected_maps, rtol=0, atol=2e-6)
