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


MOVES = {  # how a set is laid out otherwise, and what is noted
    "ground_truth/crack/1_mask.png>ground_truth/crack/1/000.png ground_truth/bent/1.png>ground_truth/bent/1/a.png": (),
    "ground_truth/crack/1_mask.png>ground_truth/CRACK/1_gt.png ground_truth/crack>gone": ("1 of 3 bad",),
    "ground_truth>masks": (),
    "ground_truth>test/Masks": (),
    "ground_truth/bent/1.png>test/bent/1_label.png": (),
    "ground_truth/crack>test/crack/mask": (),
    "test/good>test/OK": (),
    "test/crack/1.png>test/crack/day1/1.png": (),
    "test/crack/1.png>test/crack/day1/1.png ground_truth/crack/1_mask.png>ground_truth/crack/day1/1_mask.png": (),
    "test/good/2.png>test/2.png": ("1 images directly in test were left out",),
    "ground_truth/bent/1.png>test/good/2_mask.png": (
        "1 of 3 bad test images",
        "1 images were taken for masks of those",
    ),
    "test/good/2.png>test/unlabelled/2.png": ("test/unlabelled were left out: nobody knows what they show",),
    "ground_truth/bent/1.png>ground_truth/bent/7.png": ("1 of 3 bad test images have no mask", "1 mask fits no"),
}


@pytest.mark.parametrize("moves", MOVES)
def test_layouts_as_people_have_them(layout, moves):
    for move in moves.split():
        before, after = (layout / name for name in move.split(">"))
        after.parent.mkdir(parents=True, exist_ok=True)
        before.rename(after)
    tested = open_test_set(layout)
    assert len(tested.notes) == len(MOVES[moves])
    assert all(said in note for said, note in zip(MOVES[moves], tested.notes))
    assert [s.kind for s in tested.samples] == ["good"] * (2 - (">test/2.png" in moves or "unlabelled" in moves)) + [
        "bent",
        "crack",
        "crack",
    ]
    if not MOVES[moves]:
        assert all((sample.mask is not None) == sample.anomalous for sample in tested.samples)


DRAWN = np.zeros((12, 16), np.uint8)
DRAWN[2:5, 3:9] = 1


def turned(path, array, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path, exif=exif, **options)
    return path


def test_masks_as_people_draw_them(tmp_path):
    def mask(file, size=(12, 16), image=tmp_path / "x.png"):
        return load_mask(Sample(image, "anomalous", "test", mask=file), size)

    layer = np.zeros((12, 16, 4), np.uint8)
    layer[..., 3] = DRAWN * 255  # black on nothing
    two = write(tmp_path / "two/000.png", DRAWN).parent
    write(two / "001.png", np.roll(DRAWN, 4, axis=0) * 7)
    assert (mask(write(tmp_path / "layer.png", layer)) == DRAWN).all()
    assert (mask(two) == DRAWN + np.roll(DRAWN, 4, axis=0)).all()
    blocks = np.kron(DRAWN, np.ones((8, 8), np.uint8))  # a JPEG's own blocks, so that its middle grey is the edge
    Image.fromarray(blocks * 255).save(tmp_path / "m.jpg", quality=60)
    assert (mask(tmp_path / "m.jpg", blocks.shape) == blocks).all()
    # An image that a camera noted as turned, its mask drawn as it is stored, or as it is seen.
    image = turned(tmp_path / "photo.jpg", DRAWN, 6)
    for drawn in (DRAWN, np.rot90(DRAWN, -1)):
        assert (mask(write(tmp_path / "m.png", drawn), (16, 12), image) == np.rot90(DRAWN, -1)).all()
    assert (mask(turned(tmp_path / "n.png", DRAWN, 6)) == DRAWN).all()  # here the image is not
    half = turned(tmp_path / "half.jpg", DRAWN, 3)
    for file, size, said in (
        (write(tmp_path / "0.png"), (12, 16), "is empty"),
        (tmp_path / "n.png", (9, 9), "be equal"),
    ):
        with pytest.raises(DataError, match=said):
            mask(file, size)
    with pytest.raises(DataError, match="turned by EXIF otherwise than its image"):
        mask(write(tmp_path / "m.png", DRAWN), (12, 16), half)


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
