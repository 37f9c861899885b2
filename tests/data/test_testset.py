"""Test sets and masks on files made on the spot."""

import numpy as np
import pytest
from PIL import Image

from blemish.data.samples import Sample
from blemish.data.testset import load_mask, open_test_set
from blemish.errors import DataError, ImageError

BLANK = np.zeros((12, 16), np.uint8)


def write(path, array=BLANK):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def layout(tmp_path):
    for name in ("good/2.png", "good/10.png", "crack/1.png", "crack/2.jpg", "bent/1.png"):
        write(tmp_path / "test" / name)
    for name in ("crack/1_mask.png", "crack/2_mask.png", "bent/1.png"):
        write(tmp_path / "ground_truth" / name)
    return tmp_path


def test_layout_with_masks_and_groups(layout):
    (layout / "manifest.csv").write_text("file,group\ntest/good/2.png,a\ntest/crack/1.png,a\n")
    tested = open_test_set(layout)
    below = [s.mask and s.mask.relative_to(layout / "ground_truth").as_posix() for s in tested.samples]
    assert [(s.kind, s.path.name, s.anomalous, s.group, mask) for s, mask in zip(tested.samples, below)] == [
        ("good", "2.png", False, "a", None),
        ("good", "10.png", False, "test/good/10.png", None),
        ("bent", "1.png", True, "test/bent/1.png", "bent/1.png"),
        ("crack", "1.png", True, "a", "crack/1_mask.png"),
        ("crack", "2.jpg", True, "test/crack/2.jpg", "crack/2_mask.png"),
    ]


def test_missing_masks_and_sides_are_noted(layout, tmp_path):
    assert open_test_set(layout).notes == ()
    (layout / "ground_truth/bent/1.png").unlink()
    tested = open_test_set(layout)
    assert tested.notes == ("1 of 3 bad test images have no mask",)
    with pytest.raises(DataError, match="has no mask"):
        load_mask(tested.samples[2], (12, 16))
    write(tmp_path / "good alone/test/good/1.png")
    assert open_test_set(tmp_path / "good alone").notes == ("there is no bad test image: ranking metrics need both",)


def test_no_test_set(tmp_path):
    (tmp_path / "empty" / "test").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("x")
    cases = {"nowhere": "not exist", ".": "no folder test", "empty": "no test image", "a.txt": r"not a \.csv"}
    for name, said in cases.items():
        with pytest.raises(DataError, match=said):
            open_test_set(tmp_path / name)


def test_masks(tmp_path):
    values = np.array([0, 1, 127, 128, 254, 255, 0, 0] * 8, np.uint8).reshape(8, 8)
    colour = np.stack([np.zeros_like(values), values, np.zeros_like(values)], axis=2)
    for name, array in (("l", values), ("rgb", colour), ("16", values.astype(np.uint16) * 3), ("1", values > 0)):
        path = write(tmp_path / f"{name}.png", array)
        mask = load_mask(Sample(path, "anomalous", "test", mask=path), (8, 8))
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, values > 0)  # every value above 0 counts
    good = load_mask(Sample(tmp_path / "x.png", "normal", "test"), (5, 7))
    assert good.shape == (5, 7) and not good.any()

    path = write(tmp_path / "m.png")
    sample = Sample(path, "anomalous", "test", mask=path)
    with pytest.raises(DataError, match=r"m\.png has 16 x 12 pixels, its image .* 12 x 16"):
        load_mask(sample, (16, 12))
    path.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"m\.png"):
        load_mask(sample, (16, 12))
