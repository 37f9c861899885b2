"""The CSV manifest: what it may say, and what it may not name."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from blemish.data.manifest import read_manifest, write_manifest
from blemish.data.readers import read_training
from blemish.data.samples import Sample
from blemish.data.testset import open_test_set
from blemish.errors import DataError, ManifestError

NAMES = {
    " lead.png": "=cmd()",
    "cr\rx.png": "-1",
    "=HYPERLINK(x).png": "@x",
    os.fsdecode(b"x\xff.png"): "a/b",
    "'q.png": "'q",
}


@pytest.fixture
def written(tmp_path):
    """``written(text)``: a manifest beside images 1 to 4, a mask, and links out of and within the folder."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in (*(folder / f"{name}.png" for name in ("1", "2", "3", "4", "mask")), tmp_path / "secret.png"):
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(path)
    for link, target in (("link.png", "../secret.png"), ("up", ".."), ("kept.png", "1.png")):
        (folder / link).symlink_to(target)

    def write(text):
        (folder / "parts.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder / "parts.csv"

    return write


def test_all_columns_few_columns_links_within_and_several_categories(written):
    manifest = written(
        "\ufeffpath,label,split,mask,category,kind,group\n"
        "4.png,anomalous,train,mask.png,nuts,crack,part 2\n"
        "2.png,normal,train,,nuts,,part 1\n"
        "1.png,Good,,,nuts,,\n"
        "3.png,anomalous,test,mask.png,nuts,dent,part 3\n"
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
    assert tested.mask == (manifest.parent / "mask.png").resolve()

    training = read_training(written("path,label\n2.png,unlabelled\nkept.png,unlabelled\n"))
    assert [(s.path.name, s.kind) for s in training.samples] == [("1.png", "unlabelled"), ("2.png", "unlabelled")]
    training = read_training(written("path,label,category\n1.png,normal,nuts\n2.png,normal,bolts\n"))
    assert training.notes == ("2 categories (bolts, nuts) are learnt as one",)


def test_a_group_in_train_and_test_is_named(written):
    rows = "1.png,normal,train,one\n2.png,normal,test,one\n3.png,normal,train,\n"
    notes = read_training(written(f"path,label,split,group\n{rows}")).notes
    assert notes == ("1 groups are in train and in test, such as one",)


def test_no_link_in_a_folder_of_masks_leaves_the_folder(written):
    manifest = written("path,label,split,mask\n1.png,anomalous,test,outlines\n")
    (manifest.parent / "outlines").mkdir()
    (manifest.parent / "outlines/0.png").symlink_to(manifest.parent / "../secret.png")
    with pytest.raises(ManifestError, match="leaves the manifest's folder"):
        open_test_set(manifest)


@pytest.mark.parametrize("column", ["path", "mask"])
def test_no_path_and_no_link_leaves_the_folder(written, column):
    out = ("../secret.png", "../set/../secret.png", "/etc/hostname", "a/../../secret.png", "link.png", "up/1.png")
    for name in out:
        path, mask = (name, "") if column == "path" else ("1.png", name)
        with pytest.raises(ManifestError, match=r"line 2: .* leaves the manifest's folder"):
            open_test_set(written(f"path,label,split,mask\n{path},anomalous,test,{mask}\n"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"path,label\nT\xfcr.png,normal\n", "there is no file 'T.*r.png'"),
        ("path,label\nlink.png,normal\n", "'link.png' leaves the manifest's folder by a link: copy the file"),
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
        ("path,label,split\n1.png,normal,test\n", "none that may be taken as normal"),
    ],
)
def test_manifests_that_are_refused(written, text, reason):
    with pytest.raises(DataError, match=reason):
        read_training(written(text))


def test_refused_as_a_test_set(written):
    with pytest.raises(DataError, match="no test image"):
        open_test_set(written("path,label,split\n1.png,normal,train\n"))
    with pytest.raises(ManifestError, match="not unlabelled"):
        open_test_set(written("path,label,split\n1.png,unlabelled,test\n"))


@pytest.mark.parametrize(
    "text",
    [
        "path;label\r\nsub/Tür 1.png;good\r\n",
        "Path\tLabel\nsub/Tür 1.png\tOK\n",
        "path,label\nsub\\Tür 1.png,Normal\n\n,\n",
        "path,label\nsub/Tür 1.png,good\n".encode("utf-16"),
        "path,label,category\nsub/Tür 1.png,good,Tür\n".encode("cp1252"),
    ],
)
def test_tables_as_spreadsheets_save_them(written, text):
    manifest = written(text)
    (manifest.parent / "sub").mkdir()
    shutil.copy(manifest.parent / "1.png", manifest.parent / "sub" / "Tür 1.png")
    (sample,) = read_training(manifest).samples
    assert (sample.path.name, sample.label, sample.category) in {("Tür 1.png", "normal", c) for c in ("", "Tür")}


def test_what_is_written_is_read_back_and_computes_nothing(written):
    folder = written("").parent
    for name in (*NAMES, "Tür.png"):
        shutil.copyfile(folder / "1.png", folder / name)
    samples = [Sample(folder / name, "anomalous", "test", kind, f"g{kind}") for name, kind in NAMES.items()]
    read = read_manifest(write_manifest(folder / "out.csv", [*samples, Sample(folder / "Tür.png", "normal", "test")]))
    assert [(s.path.name, s.kind, s.group) for s in read[:-1]] == [(n, k, f"g{k}") for n, k in NAMES.items()]
    assert read[-1].path.name == "Tür.png"
    with (folder / "out.csv").open(errors="surrogateescape", newline="") as table:
        assert not [cell for row in csv.reader(table) for cell in row if cell[:1] in tuple("=@+")]
