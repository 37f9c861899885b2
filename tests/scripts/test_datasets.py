"""The scripts that prepare public sets, on tiny made-up copies of their layouts."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.public import PUBLIC_SETS
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.errors import DataError

SCRIPTS = Path(__file__).parents[2] / "scripts" / "datasets"


def images(root, *names):
    for path in (root / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 255, np.uint8)).save(path)


def script(name):
    spec = importlib.util.spec_from_file_location(f"dataset_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = script("prepare")


def opened(manifest):
    """What the product makes of a manifest: training images by kind, test images by kind, masks; and both sets."""
    training, test = read_training(manifest), open_test_set(manifest)
    assert all((s.label == "normal") == (s.kind == "good") for s in (*training.samples, *test.samples))
    assert all(s.mask is None for s in test.samples if not s.anomalous)
    learned, judged = (Counter(s.kind for s in part.samples) for part in (training, test))
    return (learned, judged, sum(s.mask is not None for s in test.samples)), training, test


@pytest.fixture
def visa(tmp_path):
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        pictures = [f"{name}/Data/Images/Normal/{i:04}.JPG" for i in range(5)]
        lines += [f"{name},{'train' if i < 3 else 'test'},normal,{picture}," for i, picture in enumerate(pictures)]
        picture, mask = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        images(tmp_path, *pictures, picture, mask)
        lines.append(f"{name},test,anomaly,{picture},{mask}")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(lines))
    return tmp_path


def test_mvtec_ad_is_read_as_its_folders_are(tmp_path, capsys, monkeypatch):
    for folder, count in {"train/good": 4, "test/good": 2, "test/broken_large": 3}.items():
        images(tmp_path / "bottle" / folder, *(f"{i:03}.png" for i in range(count)))
    masks = tmp_path / "bottle" / "ground_truth" / "broken_large"
    images(masks, *(f"{i:03}_mask.png" for i in range(3)))
    prepare.main(["mvtec_ad", str(tmp_path), "--category", "bottle"])
    counts, _, test = opened(tmp_path / "bottle.csv")
    assert counts == ({"good": 4}, {"good": 2, "broken_large": 3}, 3)
    assert capsys.readouterr().out.endswith("NOT WHOLE: 4 of 209 train images; 5 of 83 test images\n")
    as_folder = open_test_set(tmp_path / "bottle")
    assert {s.path.resolve() for s in as_folder.samples} == {s.path.resolve() for s in test.samples}
    # A whole copy lacks nothing, and a missing mask is noticed.
    monkeypatch.setitem(PUBLIC_SETS["mvtec_ad"].images, "bottle", {"train": 4, "test": 5})
    assert prepare.missing("mvtec_ad", prepare.read("mvtec_ad", tmp_path, "bottle"), "bottle") == []
    (masks / "001_mask.png").unlink()
    lacking = prepare.missing("mvtec_ad", prepare.read("mvtec_ad", tmp_path, "bottle"), "bottle")
    assert lacking == ["1 bad test images have no mask"]


def test_visa_is_split_by_its_one_class_list(visa, capsys):
    prepare.main(["visa", str(visa), "--category", "candle", "--category", "pcb1"])
    assert opened(visa / "candle.csv")[0] == ({"good": 3}, {"good": 2, "anomaly": 1}, 1)
    assert capsys.readouterr().out.splitlines() == [
        f"{visa / 'candle.csv'} NOT WHOLE: 5 of 1000 normal images; 1 of 100 anomalous images",
        f"{visa / 'pcb1.csv'} NOT WHOLE: 5 of 1004 normal images; 1 of 100 anomalous images",
    ]


def test_isic_has_naevi_for_normal_and_lesions_for_groups(tmp_path, capsys):
    for part, kinds in (("Training", ["NV", "NV", "MEL", "DF"]), ("Validation", ["NV", "BCC"])):
        prefix, lines = f"ISIC2018_Task3_{part}", ["image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"]
        truth = tmp_path / f"{prefix}_GroundTruth"
        truth.mkdir()
        for i, kind in enumerate(kinds):
            images(tmp_path, f"{prefix}_Input/ISIC_{part}{i}.jpg")
            lines.append(",".join([f"ISIC_{part}{i}", *(str(float(kind == c)) for c in lines[0].split(",")[1:])]))
        (truth / f"{prefix}_GroundTruth.csv").write_text("\n".join(lines))
    lesions = "image,lesion_id\n" + "".join(f"ISIC_Training{i},HAM_{1 + i // 2}\n" for i in range(3))
    folder = tmp_path / "ISIC2018_Task3_Training_GroundTruth"
    (folder / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(lesions)
    prepare.main(["isic2018", str(tmp_path)])
    counts, training, test = opened(tmp_path / "isic2018.csv")
    assert counts == ({"good": 2, "MEL": 1, "DF": 1}, {"good": 1, "BCC": 1}, 0)
    groups = {s.path.stem: s.group for s in training.samples}
    assert groups["ISIC_Training0"] == groups["ISIC_Training1"] == "HAM_1"
    assert groups["ISIC_Training3"].endswith("ISIC_Training3.jpg")
    assert len({s.group for s in test.samples}) == 2
    lacking = "4 of 10015 train images; 2 of 6705 train NV images; 2 of 193 test images; 1 of 123 test NV images"
    assert capsys.readouterr().out.endswith(f"NOT WHOLE: {lacking}\n")


def test_what_is_no_copy_is_refused_with_where_to_get_one(visa, capsys):
    (visa / "pcb1" / "Data" / "Images" / "Normal" / "0001.JPG").unlink()
    for name, root, category, said in (
        ("mvtec_ad", visa.parent, "cable", "is no copy of .* get it from http"),
        ("visa", visa.parent, "candle", "is no copy of .* get it from http"),
        ("isic2018", visa.parent, "", "is no copy of .* get it from http"),
        ("visa", visa, "cashew", "lists nothing of cashew"),
        ("visa", visa, "pcb1", r"1 listed images are not there, such as 0001\.JPG"),
    ):
        with pytest.raises(DataError, match=said):
            prepare.read(name, root, category)
    for arguments, said in (
        (["mvtek", str(visa)], "invalid choice"),
        (["mvtec_ad", str(visa), "--category", "botle"], "no category botle: bottle, cable"),
        (["isic2018", str(visa), "--category", "bottle"], "it is one set"),
    ):
        with pytest.raises(SystemExit):
            prepare.main(arguments)
        assert said in capsys.readouterr().err


def named(folders, *names):
    return [f"{folder}/{name}" for folder in folders.split() for name in names]


PRODUCTS = named("01 02 03", "train/ok/a.bmp", "train/ok/b.bmp", "test/ok/c.bmp", "test/ko/d.bmp", "test/ko/e.bmp")
PRODUCTS += named("01 02 03", "ground_truth/ko/d.png")
LUNGS = named("train/NORMAL test/NORMAL", "IM-0115-0001.jpeg", "IM-0115-0002.jpeg", "NORMAL2-IM-0115-0001.jpeg")
LUNGS += named("train/PNEUMONIA test/PNEUMONIA", *(f"person1_{name}.jpeg" for name in ("bacteria_1", "bacteria_2")))
LUNGS += named("train/PNEUMONIA test/PNEUMONIA", "person1_virus_3.jpeg")
PATIENTS, GERMS = {"good": 3, "pneumonia": 3}, {"good": 3, "bacteria": 2, "virus": 1}
CLASSES = ("NORMAL", "CNV", "DME", "DRUSEN")
EYES = [f"{side}/{kind}/{kind}-{side}-{i}.jpeg" for side in ("train", "test") for kind in CLASSES for i in (1, 2)]
TWO_EACH = {"good": 2, "CNV": 2, "DME": 2, "DRUSEN": 2}
HEADS = named("no yes", *(f"{i}.jpg" for i in range(10)))


@pytest.mark.parametrize(
    ("name", "manifest", "files", "learned", "judged", "masks", "groups"),
    [
        ("btad", "02", PRODUCTS, {"good": 2}, {"good": 1, "ko": 2}, 1, 2),
        ("chest_xray", "chest_xray", LUNGS, PATIENTS, PATIENTS, 0, 3),
        ("chest_xray --germs", "chest_xray", LUNGS, GERMS, GERMS, 0, 3),
        ("oct", "oct", EYES, TWO_EACH, TWO_EACH, 0, 4),
        ("br35h", "br35h", HEADS, {"good": 8, "tumour": 8}, {"good": 2, "tumour": 2}, 0, 16),
    ],
)
def test_sets_that_are_folders_of_images(name, manifest, files, learned, judged, masks, groups, tmp_path):
    images(tmp_path, *files)
    name, *options = name.split()
    script(name).main([str(tmp_path), *options])
    counts, training, test = opened(tmp_path / f"{manifest}.csv")
    assert (*counts, len(training.groups)) == (learned, judged, masks, groups)
    assert not set(training.groups) & {s.group for s in test.samples}


def test_zju_leaper(tmp_path):
    images(tmp_path, *(f"Images/{number:06}.jpg" for number in range(1, 7)), "Annotations/masks/000006.png")
    normal = {"train": ["000001", "000002"], "test": ["000003"]}
    lists = {"normal": normal, "defect": {"train": ["000004"], "test": ["000006"]}}
    (tmp_path / "ImageSets" / "Patterns").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Patterns" / "pattern3.json").write_text(json.dumps(lists))
    script("zju_leaper").main([str(tmp_path)])
    assert opened(tmp_path / "pattern3.csv")[0] == ({"good": 2}, {"good": 1, "defect": 1}, 1)


def test_cifar10(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    batches = {"data_batch_1": [0, 3, 3], "data_batch_2": [3], "test_batch": [0, 3]}
    pixels = {name: rng.integers(0, 255, (len(labels), 3, 32, 32), dtype=np.uint8) for name, labels in batches.items()}
    for name, labels in batches.items():
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels[name].reshape(len(labels), -1)], axis=1)
        records.tofile(tmp_path / "cifar-10-batches-bin" / f"{name}.bin")
    script("cifar10").main([str(tmp_path), "cat"])
    assert opened(tmp_path / "cat.csv")[0] == ({"good": 3, "airplane": 1}, {"good": 1, "airplane": 1}, 0)
    written = np.asarray(Image.open(tmp_path / "images" / "train" / "cat" / "data_batch_1_00002.png"))
    np.testing.assert_array_equal(written, pixels["data_batch_1"][2].transpose(1, 2, 0))
