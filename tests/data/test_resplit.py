from __future__ import annotations

from pathlib import Path

import pytest

from blemish.data.readers import read_training
from blemish.data.resplit import resplit
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import TestSet, open_test_set
from blemish.errors import ManifestError


@pytest.fixture
def sets(tmp_path):
    """Six good training images, two good and two bad test images; nothing is decoded."""
    train = tuple(Sample(tmp_path / f"train/good/{i}.png", "normal", group=f"part{i}") for i in range(6))
    good = tuple(Sample(tmp_path / f"test/good/{i}.png", "normal", "test", group=f"old{i}") for i in range(2))
    bad = tuple(Sample(tmp_path / f"test/dent/{i}.png", "anomalous", "test", "dent", f"bad{i}") for i in range(2))
    return TrainingSet("screws", tmp_path, train), TestSet("screws", tmp_path, good + bad)


def split_file(folder: Path, places: dict[int, str]) -> Path:
    path = folder / "alt.csv"
    path.write_text("file,alt_split\n" + "".join(f"train/good/{i}.png,{place}\n" for i, place in places.items()))
    return path


def test_moved_images_replace_the_good_test_images(sets, tmp_path):
    split = split_file(tmp_path, {i: "test_good_alt" if i in (1, 4) else "train" for i in range(6)})
    training, test = resplit(*sets, split)
    assert [sample.group for sample in training.samples] == ["part0", "part2", "part3", "part5"]
    assert [(sample.group, sample.anomalous, sample.kind) for sample in test.samples] == [
        ("part1", False, "good"),
        ("part4", False, "good"),
        ("bad0", True, "dent"),
        ("bad1", True, "dent"),
    ]
    assert training.name == test.name == "screws (alt)"
    assert "2 training images are the good test images" in test.notes[-1]


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (dict.fromkeys(range(5), "train"), "does not list the training image train/good/5.png"),
        ({**dict.fromkeys(range(6), "train"), 0: "test", 9: "test"}, "lists 1 files that are no training image"),
        (dict.fromkeys(range(6), "train"), "leaves one side empty"),
        (dict.fromkeys(range(6), "test"), "leaves one side empty"),
        ({**dict.fromkeys(range(6), "train"), 2: "validation"}, "line 4: 'validation' is neither"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(sets, tmp_path, places, said):
    with pytest.raises(ManifestError, match=said):
        resplit(*sets, split_file(tmp_path, places))


def test_missing_files_columns_and_double_lines(sets, tmp_path):
    with pytest.raises(ManifestError, match="cannot be read"):
        resplit(*sets, tmp_path / "nowhere.csv")
    path = tmp_path / "alt.csv"
    path.write_text("file,split\ntrain/good/0.png,train\n")
    with pytest.raises(ManifestError, match="lacks a column: file, alt_split"):
        resplit(*sets, path)
    path.write_text("file,alt_split\ntrain/good/0.png,train\ntrain/good/0.png,test\n")
    with pytest.raises(ManifestError, match=r"lists train/good/0\.png twice"):
        resplit(*sets, path)


@pytest.mark.real
def test_the_screws_control_split():
    import os

    folder = Path(os.environ.get("BLEMISH_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mvtec_screw"
    if not folder.is_dir():
        pytest.skip("the real image sets are not here: set BLEMISH_DATA")
    training, test = resplit(read_training(folder), open_test_set(folder), folder / "resplit_alt.csv")
    assert len(training.samples) == 267
    assert sum(not sample.anomalous for sample in test.samples) == 53
    assert sum(sample.anomalous for sample in test.samples) == 119
