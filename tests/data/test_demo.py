"""The demo set: the same bytes every time, honest regions, exact masks, and nothing fetched."""

import csv
import hashlib
import itertools
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from blemish.data.demo import KINDS, MARGIN, draw_category, read_photograph, write_demo
from blemish.data.public import DEMO_CATEGORIES
from blemish.errors import ConfigError, DataError, OutputError

pytest.importorskip("skimage", reason="the demo set is cut from scikit-image's photographs")

CATEGORIES = tuple(DEMO_CATEGORIES)
LOADERS = {"brick": "brick", "grass": "grass", "gravel": "gravel", "tissue": "immunohistochemistry"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo(folder) == [folder / name for name in CATEGORIES]
    return folder


def manifest(folder):
    with (folder / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["box"] = tuple(map(int, row["note"].removeprefix("box=").split()))
    return rows


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def gap(first, second):
    """Pixels between two boxes along the axis that separates them most; negative where they overlap."""
    across = max(first[0], second[0]) - min(first[2], second[2])
    down = max(first[1], second[1]) - min(first[3], second[3])
    return max(across, down)


def doubled(category, box):
    """The crop without any defect: what a bad picture was before it was painted."""
    left, top, right, bottom = box
    crop = read_photograph(category)[top:bottom, left:right]
    planes = [Image.fromarray(crop[..., i].astype(np.float32)) for i in range(3)]
    twice = np.stack([np.asarray(plane.resize((192, 192), Image.Resampling.BICUBIC)) for plane in planes], axis=-1)
    levels = np.rint(twice.astype(np.float64) * 255).clip(0, 255).astype(int)
    return levels if category == "tissue" else levels[..., 0]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(root, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    assert write_demo(again, seed=0, categories=["grass"]) == [again / "grass"]
    write_demo(other, seed=1, categories=["grass"])
    assert digests(again / "grass") == digests(root / "grass")
    changed = digests(other / "grass")
    assert changed.keys() == digests(root / "grass").keys()
    assert changed != digests(root / "grass")


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_layout_the_counts_and_the_manifest_agree(root, category):
    rows = manifest(root / category)
    listed = {row["file"] for row in rows} | {row["mask"] for row in rows if row["mask"]} | {"manifest.csv"}
    assert listed == set(digests(root / category))
    count = dict.fromkeys({(row["split"], row["label"]) for row in rows}, 0)
    for row in rows:
        assert row["file"].startswith(f"{row['split']}/{row['label']}/")
        assert (row["mask"] == "") == (row["label"] == "good")
        if row["mask"]:
            assert row["mask"] == row["file"].replace("test/", "ground_truth/").replace(".png", "_mask.png")
        count[row["split"], row["label"]] += 1
    assert count == {("train", "good"): 48, ("test", "good"): 16} | {("test", kind): 4 for kind in KINDS}
    assert len({row["group"] for row in rows if row["split"] == "train"}) == 12
    assert len({row["group"] for row in rows if row["split"] == "test"}) == 8


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_pixel_of_the_photograph_is_shared_by_train_and_test_or_by_two_groups(root, category):
    rows = manifest(root / category)
    for row in rows:
        left, top, right, bottom = row["box"]
        assert min(left, top) >= 0
        assert max(right, bottom) <= 512
    for first, second in itertools.combinations(rows, 2):
        if first["split"] != second["split"]:
            assert gap(first["box"], second["box"]) >= MARGIN
        elif first["group"] != second["group"]:
            assert gap(first["box"], second["box"]) >= 0
    assert any(gap(a["box"], b["box"]) < 0 for a, b in itertools.combinations(rows, 2)), "crops of a group overlap"


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_paint_is_where_the_mask_says_and_nowhere_else(root, category):
    folder = root / category
    for row in manifest(folder):
        image = np.asarray(Image.open(folder / row["file"]), dtype=int)
        twin = doubled(category, row["box"])
        assert image.shape == twin.shape == ((192, 192, 3) if category == "tissue" else (192, 192))
        if not row["mask"]:
            assert np.array_equal(image, twin)
            continue
        mask = np.asarray(Image.open(folder / row["mask"]))
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) == {0, 255}
        changed = np.abs(image - twin).reshape(192, 192, -1).max(axis=2)
        assert not changed[mask == 0].any()
        assert (changed[mask > 0] >= 2).mean() > 0.6, row["file"]
        assert 0.001 < (mask > 0).mean() < 0.4, row["file"]


@pytest.mark.parametrize("category", CATEGORIES)
def test_brightness_alone_does_not_find_the_defects(root, category):
    rows = [row for row in manifest(root / category) if row["split"] == "test"]
    brightness = [np.asarray(Image.open(root / category / row["file"])).mean() for row in rows]
    good = [value for value, row in zip(brightness, rows) if row["label"] == "good"]
    bad = [value for value, row in zip(brightness, rows) if row["label"] != "good"]
    area = np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])
    assert 0.35 < area < 0.65


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_photograph_is_the_one_scikit_image_shows(category):
    data = pytest.importorskip("skimage.data")
    shown = getattr(data, LOADERS[category])().astype(float) / 255
    if shown.ndim == 2:
        shown = np.repeat(shown[..., None], 3, axis=2)
    assert np.array_equal(read_photograph(category), shown)


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the demo set opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for category in CATEGORIES:
        assert next(draw_category(category)).image.size == (192, 192)


def test_without_scikit_image_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(DataError, match=r"pip install 'blemish\[demo\]'"):
        write_demo(tmp_path)


def test_an_unknown_category_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"'steel'.*brick, grass, gravel, tissue"):
        write_demo(tmp_path, categories=["brick", "steel"])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="name a folder you may write to"):
        write_demo(tmp_path / "file", categories=["brick"])
