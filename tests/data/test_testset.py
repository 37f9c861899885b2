"""Test sets and masks on files made on the spot."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from blemish.data.samples import Sample
from blemish.data.testset import load_mask, open_test_set
from blemish.errors import DataError, ImageError


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


BLANK = np.zeros((12, 16), np.uint8)


@pytest.fixture
def layout(tmp_path):
    for name in ("good/2.png", "good/10.png", "crack/1.png", "crack/2.jpg", "bent/1.png"):
        write(tmp_path / "test" / name, BLANK)
    write(tmp_path / "ground_truth/crack/1_mask.png", BLANK)
    write(tmp_path / "ground_truth/crack/2_mask.png", BLANK)
    write(tmp_path / "ground_truth/bent/1.png", BLANK)
    return tmp_path


def test_layout(layout):
    found = open_test_set(layout)
    assert [(s.kind, s.path.name, s.anomalous) for s in found.samples] == [
        ("good", "2.png", False),
        ("good", "10.png", False),
        ("bent", "1.png", True),
        ("crack", "1.png", True),
        ("crack", "2.jpg", True),
    ]
    below = [s.mask and s.mask.relative_to(layout / "ground_truth").as_posix() for s in found.samples]
    assert below == [None, None, "bent/1.png", "crack/1_mask.png", "crack/2_mask.png"]
    assert found.notes == ()


def test_groups_of_a_layout(layout):
    (layout / "manifest.csv").write_text("file,group\ntest/good/2.png,a\ntest/crack/1.png,a\n")
    groups = [s.group for s in open_test_set(layout).samples]
    assert groups == ["a", "test/good/10.png", "test/bent/1.png", "a", "test/crack/2.jpg"]


def test_missing_masks_and_sides_are_noted(layout, tmp_path):
    (layout / "ground_truth/bent/1.png").unlink()
    found = open_test_set(layout)
    assert found.notes == ("1 of 3 bad test images have no mask",)
    with pytest.raises(DataError, match="has no mask"):
        load_mask(found.samples[2], (12, 16))
    write(tmp_path / "good alone/test/good/1.png", BLANK)
    assert open_test_set(tmp_path / "good alone").notes == ("there is no bad test image: ranking metrics need both",)


def test_no_test_set(tmp_path):
    (tmp_path / "empty" / "test").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("x")
    for name, said in {
        "nowhere": "does not exist",
        ".": "no folder test",
        "empty": "no test image",
        "a.txt": r"not a \.csv",
    }.items():
        with pytest.raises(DataError, match=said):
            open_test_set(tmp_path / name)


def test_reading_sets_imports_no_torch():
    """The command line prints what it found within half a second."""
    code = "import sys, blemish.data.testset; sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def sample(mask):
    return Sample(mask, "anomalous", "test", "crack", "g", mask)


def test_every_value_above_zero_counts(tmp_path):
    values = np.array([0, 1, 127, 128, 254, 255, 0, 0] * 8, np.uint8).reshape(8, 8)
    colour = np.stack([np.zeros_like(values), values, np.zeros_like(values)], axis=2)
    deep = values.astype(np.uint16) * 3
    for name, array in (("l.png", values), ("rgb.png", colour), ("16.png", deep), ("1.png", values > 0)):
        found = load_mask(sample(write(tmp_path / name, array)), (8, 8))
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, values > 0)


def test_good_images_have_an_empty_mask(tmp_path):
    found = load_mask(Sample(tmp_path / "x.png", "normal", "test"), (5, 7))
    assert found.shape == (5, 7) and not found.any()


def test_masks_that_do_not_fit(tmp_path):
    mask = write(tmp_path / "m.png", BLANK)
    with pytest.raises(DataError, match=r"m\.png has 16 x 12 pixels, its image .* 12 x 16"):
        load_mask(sample(mask), (16, 12))
    mask.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"m\.png"):
        load_mask(sample(mask), (16, 12))
