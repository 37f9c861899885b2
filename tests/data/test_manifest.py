"""The CSV manifest: what it may say, and what it may not name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.errors import DataError, ManifestError


@pytest.fixture
def folder(tmp_path):
    """Images 1 to 4 and a mask inside ``set``, one image outside it."""
    inside = tmp_path / "set"
    inside.mkdir()
    for name in ("1.png", "2.png", "3.png", "4.png", "mask.png"):
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(inside / name)
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(tmp_path / "secret.png")
    return inside


def written(folder, text, encoding="utf-8"):
    path = folder / "parts.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_all_columns(folder):
    manifest = written(
        folder,
        "path,label,split,mask,category,kind,group\n"
        "4.png,anomalous,train,mask.png,nuts,crack,part 2\n"
        "2.png,normal,train,,nuts,,part 1\n"
        "1.png,Good,,,nuts,,\n"
        "3.png,anomalous,test,mask.png,nuts,dent,part 3\n",
        encoding="utf-8-sig",
    )
    training = read_training(manifest)
    assert [(s.path.name, s.label, s.kind, s.group) for s in training.samples] == [
        ("1.png", "normal", "good", "1.png"),
        ("2.png", "normal", "good", "part 1"),
        ("4.png", "anomalous", "crack", "part 2"),
    ]
    assert (training.name, training.regime, training.notes) == ("parts", "weak", ())
    assert all(sample.mask is None and sample.split == "train" for sample in training.samples)
    (tested,) = open_test_set(manifest).samples
    assert (tested.path.name, tested.anomalous, tested.kind, tested.group) == ("3.png", True, "dent", "part 3")
    assert tested.mask == (folder / "mask.png").resolve()


def test_two_columns_are_enough(folder):
    training = read_training(written(folder, "path,label\n2.png,unlabelled\n10.png,unlabelled\n".replace("10", "1")))
    assert [(s.path.name, s.kind) for s in training.samples] == [("1.png", "unlabelled"), ("2.png", "unlabelled")]
    assert training.regime == "contaminated"


def test_several_categories_are_noted(folder):
    training = read_training(written(folder, "path,label,category\n1.png,normal,nuts\n2.png,normal,bolts\n"))
    assert training.notes == ("2 categories (bolts, nuts) are learnt as one",)


@pytest.mark.parametrize("name", ["../secret.png", "../set/../secret.png", "/etc/hostname", "a/../../secret.png"])
@pytest.mark.parametrize("column", ["path", "mask"])
def test_no_path_leaves_the_folder(folder, name, column):
    path, mask = (name, "") if column == "path" else ("1.png", name)
    manifest = written(folder, f"path,label,split,mask\n{path},anomalous,test,{mask}\n")
    with pytest.raises(ManifestError, match=r"line 2: .* leaves the manifest's folder"):
        open_test_set(manifest)


def test_no_link_leaves_the_folder(folder):
    (folder / "link.png").symlink_to("../secret.png")
    with pytest.raises(ManifestError, match=r"'link\.png' leaves the manifest's folder"):
        read_training(written(folder, "path,label\nlink.png,normal\n"))
    (folder / "up").symlink_to("..")
    with pytest.raises(ManifestError, match=r"'up/secret\.png' leaves the manifest's folder"):
        read_training(written(folder, "path,label\nup/secret.png,normal\n"))
    (folder / "kept.png").symlink_to("1.png")
    assert len(read_training(written(folder, "path,label\nkept.png,normal\n")).samples) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,label\n1.png,normal\n", "no path"),
        ("path,split\n1.png,train\n", "no label"),
        ("path,label\n1.png,fine\n", "line 2: label 'fine' is unknown: normal"),
        ("path,label,split\n1.png,normal,validation\n", "split 'validation' is unknown"),
        ("path,label\nnowhere.png,normal\n", r"line 2: there is no file 'nowhere\.png'"),
        ("path,label\n,normal\n", "line 2: there is no file ''"),
        ("path,label\n1.png\0,normal\n", "line|CSV"),
        ("path,label,split\n1.png,normal,train\n1.png,normal,test\n", "line 3: .* listed already in line 2"),
        ("path,label\n", "lists no image"),
        ("", "lists no image"),
    ],
)
def test_manifests_that_are_refused(folder, text, reason):
    with pytest.raises(ManifestError, match=reason):
        read_training(written(folder, text))


def test_not_utf_8(folder):
    (folder / "parts.csv").write_bytes("path,label\nTür.png,normal\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="UTF-8"):
        read_training(folder / "parts.csv")


def test_rows_of_one_split_only(folder):
    tested = written(folder, "path,label,split\n1.png,normal,test\n")
    with pytest.raises(DataError, match="none that may be taken as normal"):
        read_training(tested)
    trained = written(folder, "path,label,split\n1.png,normal,train\n")
    with pytest.raises(DataError, match="no test image"):
        open_test_set(trained)
    unlabelled = written(folder, "path,label,split\n1.png,unlabelled,test\n")
    with pytest.raises(ManifestError, match="not unlabelled"):
        open_test_set(unlabelled)
