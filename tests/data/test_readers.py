"""Folders, patterns and surveys, on files made on the spot."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from blemish.data.readers import MADE_BY, find_images, is_ours, read_globs, read_training, shared_files, survey
from blemish.errors import DataError


@pytest.fixture
def make(tmp_path):
    """``make("1.png", "train/good/2.png", value=3, size=(8, 9))`` writes images below the test's folder."""

    def write(*names, value=0, size=(12, 16), dtype=np.uint8):
        for path in (tmp_path / name for name in names):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(size, value, dtype)).save(path)

    return write


def names(samples):
    return [sample.path.name for sample in samples]


@pytest.mark.parametrize("below", ["train/", ""])
def test_layout_folder(make, tmp_path, below):
    make(*(f"{below}good/{number}.png" for number in (10, 9, 1)))
    make(*(f"{below}{name}.png" for name in ("unlabelled/u", "anomalous/loose", "anomalous/crack/c")))
    make("test/good/t.png", "test/crack/t.png", "ground_truth/crack/t_mask.png")
    training = read_training(tmp_path)
    assert [(s.path.name, s.label, s.kind) for s in training.samples] == [
        *((f"{number}.png", "normal", "good") for number in (1, 9, 10)),
        ("u.png", "unlabelled", "unlabelled"),
        ("loose.png", "anomalous", "anomalous"),
        ("c.png", "anomalous", "crack"),
    ]
    assert (names(training.normal)[3:], names(training.anomalous)) == (["u.png"], ["loose.png", "c.png"])
    assert (len(set(training.groups)), training.regime) == (6, "weak")
    assert training.summary() == "3 good, 1 unlabelled, 2 known-bad images in 6 groups (anomalous 1, crack 1)"
    assert (training.name, training.root, training.notes) == (tmp_path.name, tmp_path, ())


def test_regime_is_read_from_the_labels(make, tmp_path):
    regimes = {"good": "clean", "unlabelled": "contaminated", "good unlabelled": "contaminated"}
    for folders, regime in (regimes | dict.fromkeys(("good anomalous", "unlabelled anomalous"), "weak")).items():
        make(*(f"{folders}/train/{folder}/1.png" for folder in folders.split()))
        assert read_training(tmp_path / folders).regime == regime


def test_plain_folder_counts_as_good_or_unlabelled_and_says_so(make, tmp_path):
    make("2.png", "10.PNG", "deeper/3.png")
    for unlabelled, label, kind in ((False, "normal", "good"), (True, "unlabelled", "unlabelled")):
        training = read_training(tmp_path, unlabelled=unlabelled)
        found = [(s.path.name, s.label, s.kind) for s in training.samples]
        assert found == [("2.png", label, kind), ("10.PNG", label, kind)]
        assert f"2 images count as {kind}" in training.notes[0]
        assert "folders ignored" in training.notes[1] and "deeper" in training.notes[1]
    make("train/good/1.png", "train/anomalous/1.png")
    assert [s.label for s in read_training(tmp_path, unlabelled=True).samples] == ["unlabelled", "anomalous"]


def test_order_is_natural_and_the_same_in_any_creation_order(make, tmp_path):
    ordered = ["a2.png", "A10.png", "b1_2.png", "b1_10.png", "b01_11.png", "part 3.png", "part 20.png", "ü检查.png"]
    make(*(f"Größe 7/good/{name}" for name in random.Random(1).sample(ordered, len(ordered))))
    assert names(read_training(tmp_path / "Größe 7").samples) == ordered


def test_what_is_ignored_is_named_where_it_is_much(make, tmp_path):
    make("train/good/1.png", "train/good/old/1.png", "train/broken/1.png", "train/loose.png")
    good = tmp_path / "train/good"
    for name in ("Thumbs.db", ".DS_Store", "._1.png", "notes.txt", "1.json"):
        (good / name).write_text("x")
    (good / "folder.png").mkdir()
    training = read_training(tmp_path)
    assert names(training.samples) == ["1.png"]
    assert training.notes[0] == "folders ignored in train: broken, good/folder.png, good/old"
    assert "1 images directly in train were ignored" in training.notes[1] and len(training.notes) == 2
    (good / "1.PSD").write_text("x")  # one picture of a kind that is not read is enough
    assert any("3 files in good are not images" in n and ".psd 1" in n for n in read_training(tmp_path).notes)
    for number in range(12):
        (good / f"{number}.xyz").write_text("x")
    assert any("15 files in good are not images" in n and ".xyz 12" in n for n in read_training(tmp_path).notes)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("OK/1.png NG/2.png", [("1.png", "good"), ("2.png", "anomalous")]),
        ("train/Normal/1.png train/defect/dent/a/2.png", [("1.png", "good"), ("2.png", "dent")]),
        ("good/1.png bad/dent/2.png bad/Masks/2.png ground_truth/2.png", [("1.png", "good"), ("2.png", "dent")]),
        ("good/day2/1.png good/day10/2.png", [("1.png", "good"), ("2.png", "good")]),
        ("day1/1.png day2/2.png .cache/3.png", r"folders of them \(day1 1, day2 1\): if all are of good parts, --good"),
    ],
)
def test_folders_as_people_name_them(make, tmp_path, images, expected):
    make(*images.split())
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_training(tmp_path)
    else:
        assert [(s.path.name, s.kind) for s in read_training(tmp_path).samples] == expected


def test_what_is_an_image_of_a_folder_to_be_judged(make, tmp_path):
    make(
        "b/2.png",
        "a.png",
        "ground_truth/1.png",
        "b/GT/2.png",
        ".cache/1.png",
        "@eaDir/a.png/SYNOPHOTO.png",
        ".hidden.png",
    )
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", MADE_BY)
    Image.new("L", (16, 12)).save(tmp_path / "overlay.png", pnginfo=mark)
    assert not is_ours(tmp_path)  # what cannot be read is left to whoever judges it
    assert find_images([tmp_path, "named.png"]) == [tmp_path / "a.png", tmp_path / "b/2.png", Path("named.png")]


def test_groups_come_from_a_manifest_inside(make, tmp_path):
    make(*(f"train/good/{i}.png" for i in (1, 2, 3)))
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("name,size\nx,1\n")  # without groups it changes nothing
    assert [s.group for s in read_training(tmp_path).samples] == [f"train/good/{i}.png" for i in (1, 2, 3)]
    rows = "train/good/1.png,,test,crack,part a,,\ntrain\\good\\2.png,,,,part a,,\n"
    manifest.write_text("file,mask,split,label,group,source,note\n" + rows)
    training = read_training(tmp_path)
    assert [s.group for s in training.samples] == ["part a", "part a", "train/good/3.png"]
    assert training.regime == "clean"  # only its groups are used
    assert any("no group for 1 images, such as 3.png" in note for note in training.notes)


@pytest.mark.parametrize(
    ("place", "images", "said"),
    [
        (".", [], "0 images and 1 files"),
        ("nowhere", [], "does not exist"),
        ("notes.txt", [], r"not a \.csv manifest"),
        (".", ["test/good/1.png"], r"1 folders \(test\)"),  # test images are not learnt from
        (".", ["bottle/train/good/1.png"], "holds several sets .*bottle"),
        (".", ["train/anomalous/1.png"], "1 known-bad images and none that may be taken as normal"),
    ],
)
def test_errors_say_what_was_found(make, tmp_path, place, images, said):
    (tmp_path / "notes.txt").write_text("x")
    make(*images)
    with pytest.raises(DataError, match=said):
        read_training(tmp_path / place)


def test_patterns(make, tmp_path):
    make("OK/2.png", "OK/10.png", "OK/deep/1.png", "NG/1.png", "pile [1]/1.png")
    # A file that two patterns of one label match is taken once.
    good = [f"{tmp_path}/OK/**/*.png", f"{tmp_path}/OK/2.png"]
    training = read_globs(good, [f"{tmp_path}/NG/*"], [f"{tmp_path}/pile [1]"])
    labels = [(s.path.relative_to(tmp_path).as_posix(), s.label) for s in training.samples]
    normal = [(f"OK/{name}.png", "normal") for name in ("2", "10", "deep/1")]
    assert labels == [*normal, ("pile [1]/1.png", "unlabelled"), ("NG/1.png", "anomalous")]
    assert (training.regime, training.root, training.name) == ("weak", None, tmp_path.name)
    for patterns, said in (
        ([[f"{tmp_path}/OK/*.jpg"]], "matches no image"),
        ([[f"{tmp_path}/OK/*"], [f"{tmp_path}/OK/2.png"]], "as normal and as anomalous"),
        ([[], [f"{tmp_path}/OK/*"]], "--good or --unlabelled"),
    ):
        with pytest.raises(DataError, match=said):
            read_globs(*patterns)


def test_identical_files_in_train_and_test(make, tmp_path):
    make("train/good/1.png", "test/crack/copy.png", "test/good/another.png", value=7)
    make("train/good/2.png", value=8)
    make("test/good/3.png", value=9)  # as large as the others, of other content
    training = read_training(tmp_path)
    pairs = {(one.name, other.name) for one, other in shared_files(training, tmp_path)}
    assert pairs == {("1.png", "copy.png"), ("1.png", "another.png")}
    assert shared_files(training, tmp_path / "train") == []
    manifest = tmp_path / "set.csv"
    manifest.write_text("path,label,split\ntrain/good/1.png,normal,train\ntest/good/another.png,normal,test\n")
    pairs = shared_files(read_training(manifest), manifest)
    assert [(one.name, other.name) for one, other in pairs] == [("1.png", "another.png")]


def test_survey_names_images_that_differ_from_the_rest(make, tmp_path):
    assert survey(()) == []
    for number in range(9):
        make(f"one size/{number}.png")
        make(f"many sizes/{number}.png", size=(12, 12 + 8 * number))
    assert survey(read_training(tmp_path / "one size").samples) == []
    assert survey(read_training(tmp_path / "many sizes").samples)[0].startswith("the 9 images have 9 different aspects")
    for number, scale in enumerate((2, 3, 4, 2)):
        make(f"one size/large{number}.png", size=(12 * scale, 16 * scale))
    (line,) = survey(read_training(tmp_path / "one size").samples)
    assert line == "4 of 13 images are not 16 x 12 pixels as the rest: large0.png, large1.png, large2.png ..."
    make("one size/strip.png", size=(480, 12))
    (line,) = survey(read_training(tmp_path / "one size").samples)
    assert line == "1 of 14 images is 40.0 times as high as wide, the rest 1.3 times as wide as high: strip.png"
    (tmp_path / "one size" / "strip.png").unlink()
    make("nearly square/tall.png", size=(100, 98))
    make("nearly square/wide.png", size=(98, 100))
    assert survey(read_training(tmp_path / "nearly square").samples)[0].startswith(
        "the 2 images have 2 different sizes"
    )
    make("one size/wide.png", size=(12, 48))
    make("one size/deep.png", dtype=np.uint16)
    (tmp_path / "one size" / "broken.png").write_bytes(b"no image")
    assert survey(read_training(tmp_path / "one size").samples) == [
        "1 of 15 images is 16-bit, the rest 8-bit: deep.png",
        "1 of 15 images is 4.0 times as wide as high, the rest 1.3 times as wide as high: wide.png",
    ]
