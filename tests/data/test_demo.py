"""The demo set: the same bytes every time, honest regions, exact masks, and nothing fetched."""

import csv
import itertools
import socket
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from blemish.data.demo import KINDS, MARGIN, draw_category, read_photograph, write_demo
from blemish.data.public import DEMO_CATEGORIES
from blemish.errors import ConfigError, DataError, OutputError

data = pytest.importorskip("skimage.data", reason="the demo set is cut from scikit-image's photographs")

CATEGORIES = tuple(DEMO_CATEGORIES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo(folder) == [folder / name for name in CATEGORIES]
    return folder


def manifest(folder):
    rows = list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))
    for row in rows:
        row["box"] = tuple(map(int, row["note"].removeprefix("box=").split()))
    return rows


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def gap(first, second):
    """Pixels between two boxes along the axis that separates them most; negative where they overlap."""
    return max(max(first[i], second[i]) - min(first[i + 2], second[i + 2]) for i in (0, 1))


def doubled(category, box):
    """The crop without any defect: what a bad picture was before it was painted."""
    left, top, right, bottom = box
    crop = read_photograph(category)[top:bottom, left:right]
    planes = [Image.fromarray(crop[..., i].astype(np.float32)) for i in range(3)]
    twice = np.stack([np.asarray(plane.resize((192, 192), Image.Resampling.BICUBIC)) for plane in planes], axis=-1)
    levels = np.rint(twice.astype(np.float64) * 255).clip(0, 255).astype(int)
    return levels if category == "tissue" else levels[..., 0]


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(root, tmp_path):
    (again,) = write_demo(tmp_path / "again", seed=0, categories=["grass"])
    (other,) = write_demo(tmp_path / "other", seed=1, categories=["grass"])
    assert contents(again) == contents(root / "grass") != contents(other)
    assert contents(again).keys() == contents(other).keys()


@pytest.mark.parametrize("category", CATEGORIES)
def test_layout_regions_and_paint_of_a_category(root, category):
    folder, rows = root / category, manifest(root / category)
    listed = {row["file"] for row in rows} | {row["mask"] for row in rows if row["mask"]} | {"manifest.csv"}
    assert listed == set(contents(folder))
    count = Counter((row["split"], row["label"]) for row in rows)
    assert count == {("train", "good"): 48, ("test", "good"): 16} | {("test", kind): 4 for kind in KINDS}
    for split, groups in (("train", 12), ("test", 8)):
        assert len({row["group"] for row in rows if row["split"] == split}) == groups
    # No pixel of the photograph is shared by train and test or by two groups.
    assert all(min(row["box"]) >= 0 and max(row["box"]) <= 512 for row in rows)
    for first, second in itertools.combinations(rows, 2):
        if first["split"] != second["split"]:
            assert gap(first["box"], second["box"]) >= MARGIN
        elif first["group"] != second["group"]:
            assert gap(first["box"], second["box"]) >= 0
    # The paint is where the mask says and nowhere else, and brightness alone does not find it.
    bright = {True: [], False: []}
    for row in rows:
        assert row["file"].startswith(f"{row['split']}/{row['label']}/")
        image, twin = np.asarray(Image.open(folder / row["file"]), dtype=int), doubled(category, row["box"])
        assert image.shape == twin.shape == ((192, 192, 3) if category == "tissue" else (192, 192))
        assert (row["mask"] == "") == (row["label"] == "good")
        if row["split"] == "test":
            bright[row["label"] == "good"].append(image.mean())
        if not row["mask"]:
            assert np.array_equal(image, twin)
            continue
        assert row["mask"] == row["file"].replace("test/", "ground_truth/").replace(".png", "_mask.png")
        mask = np.asarray(Image.open(folder / row["mask"]))
        assert mask.shape == image.shape[:2] and set(np.unique(mask)) == {0, 255}
        changed = np.abs(image - twin).reshape(192, 192, -1).max(axis=2)
        assert not changed[mask == 0].any()
        assert (changed[mask > 0] >= 2).mean() > 0.6, row["file"]
        assert 0.001 < (mask > 0).mean() < 0.4, row["file"]
    assert 0.35 < np.mean([(bad > good) + 0.5 * (bad == good) for bad in bright[False] for good in bright[True]]) < 0.65


def test_nothing_is_fetched_and_the_photographs_are_those_of_scikit_image(monkeypatch):
    shown = {"brick": data.brick, "grass": data.grass, "gravel": data.gravel, "tissue": data.immunohistochemistry}
    shown = {category: load() / 255 for category, load in shown.items()}
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    for category, pixels in shown.items():
        assert next(draw_category(category)).image.size == (192, 192)
        colours = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
        assert np.array_equal(read_photograph(category), colours)


def test_what_cannot_be_written_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"'steel'.*brick, grass, gravel, tissue"):
        write_demo(tmp_path, categories=["brick", "steel"])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="name a folder you may write to"):
        write_demo(tmp_path / "file", categories=["brick"])
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(DataError, match=r"pip install 'blemish\[demo\]'"):
        write_demo(tmp_path)
