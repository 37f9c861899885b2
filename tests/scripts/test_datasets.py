"""The scripts that prepare public sets, on tiny made-up copies of their layouts."""

from __future__ import annotations

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


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"dataset_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = script("prepare")


def opened(manifest: Path):
    """What the product makes of a manifest: label and kind of training images, kind and mask of test images."""
    training, test = read_training(manifest), open_test_set(manifest)
    learned = Counter((s.label, s.kind) for s in training.samples)
    judged = Counter((s.anomalous, s.kind, s.mask is not None) for s in test.samples)
    return learned, judged, training, test


@pytest.fixture
def mvtec(tmp_path):
    root = tmp_path / "mvtec"
    for i in range(4):
        image(root / "bottle" / "train" / "good" / f"{i:03}.png")
    for kind, count in (("good", 2), ("broken_large", 3)):
        for i in range(count):
            image(root / "bottle" / "test" / kind / f"{i:03}.png")
    for i in range(3):
        image(root / "bottle" / "ground_truth" / "broken_large" / f"{i:03}_mask.png", 255)
    return root


@pytest.fixture
def visa(tmp_path):
    root = tmp_path / "visa"
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for i in range(5):
            picture = f"{name}/Data/Images/Normal/{i:04}.JPG"
            image(root / picture)
            lines.append(f"{name},{'train' if i < 3 else 'test'},normal,{picture},")
        picture, mask = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        image(root / picture)
        image(root / mask, 1)
        lines.append(f"{name},test,anomaly,{picture},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def isic(tmp_path):
    root = tmp_path / "isic"
    for part, kinds in (("Training", ["NV", "NV", "MEL", "DF"]), ("Validation", ["NV", "BCC"])):
        prefix, lines = f"ISIC2018_Task3_{part}", ["image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"]
        for i, kind in enumerate(kinds):
            image(root / f"{prefix}_Input" / f"ISIC_{part}{i}.jpg")
            truth = [str(float(kind == column)) for column in lines[0].split(",")[1:]]
            lines.append(",".join([f"ISIC_{part}{i}", *truth]))
        folder = root / f"{prefix}_GroundTruth"
        folder.mkdir()
        (folder / f"{prefix}_GroundTruth.csv").write_text("\n".join(lines))
    lesions = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_LesionGroupings.csv"
    lesions.write_text(
        "image,lesion_id,diagnosis_confirm_type\nISIC_Training0,HAM_1,x\nISIC_Training1,HAM_1,x\nISIC_Training2,HAM_2,x\n"
    )
    return root


def test_mvtec_ad_is_read_as_its_folders_are(mvtec, capsys):
    prepare.main(["mvtec_ad", str(mvtec), "--category", "bottle"])
    learned, judged, _, test = opened(mvtec / "bottle.csv")
    assert learned == {("normal", "good"): 4}
    assert judged == {(False, "good", False): 2, (True, "broken_large", True): 3}
    assert capsys.readouterr().out.endswith("NOT WHOLE: 4 of 209 train images; 5 of 83 test images\n")
    as_folder = open_test_set(mvtec / "bottle")
    assert {s.path.resolve() for s in as_folder.samples} == {s.path.resolve() for s in test.samples}


def test_visa_is_split_by_its_one_class_list(visa, capsys):
    prepare.main(["visa", str(visa), "--category", "candle", "--category", "pcb1"])
    learned, judged, *_ = opened(visa / "candle.csv")
    assert learned == {("normal", "good"): 3}
    assert judged == {(False, "good", False): 2, (True, "anomaly", True): 1}
    assert capsys.readouterr().out.splitlines() == [
        f"{visa / 'candle.csv'} NOT WHOLE: 5 of 1000 normal images; 1 of 100 anomalous images",
        f"{visa / 'pcb1.csv'} NOT WHOLE: 5 of 1004 normal images; 1 of 100 anomalous images",
    ]
    assert {path.name for path in visa.glob("*.csv")} == {"candle.csv", "pcb1.csv"}


def test_isic_has_naevi_for_normal_and_lesions_for_groups(isic, capsys):
    prepare.main(["isic2018", str(isic)])
    learned, judged, training, test = opened(isic / "isic2018.csv")
    assert learned == {("normal", "good"): 2, ("anomalous", "MEL"): 1, ("anomalous", "DF"): 1}
    assert judged == {(False, "good", False): 1, (True, "BCC", False): 1}
    groups = {s.path.stem: s.group for s in training.samples}
    assert groups["ISIC_Training0"] == groups["ISIC_Training1"] == "HAM_1"
    assert groups["ISIC_Training3"].endswith("ISIC_Training3.jpg")
    assert len({s.group for s in test.samples}) == 2
    lacking = "4 of 10015 train images; 2 of 6705 train NV images; 2 of 193 test images; 1 of 123 test NV images"
    assert capsys.readouterr().out.endswith(f"NOT WHOLE: {lacking}\n")


def test_a_whole_copy_lacks_nothing_and_a_missing_mask_is_noticed(mvtec, monkeypatch):
    monkeypatch.setitem(PUBLIC_SETS["mvtec_ad"].images, "bottle", {"train": 4, "test": 5})
    assert prepare.missing("mvtec_ad", prepare.read("mvtec_ad", mvtec, "bottle"), "bottle") == []
    (mvtec / "bottle" / "ground_truth" / "broken_large" / "001_mask.png").unlink()
    lacking = prepare.missing("mvtec_ad", prepare.read("mvtec_ad", mvtec, "bottle"), "bottle")
    assert lacking == ["1 bad test images have no mask"]


def test_what_is_no_copy_is_refused_with_where_to_get_one(visa, tmp_path, capsys):
    for name, category in (("mvtec_ad", "cable"), ("visa", "candle"), ("isic2018", "")):
        with pytest.raises(DataError, match=r"is no copy of .* get it from http"):
            prepare.read(name, tmp_path, category)
    with pytest.raises(DataError, match="lists nothing of cashew"):
        prepare.read("visa", visa, "cashew")
    (visa / "candle" / "Data" / "Images" / "Normal" / "0001.JPG").unlink()
    with pytest.raises(DataError, match=r"1 listed images are not there, such as 0001\.JPG"):
        prepare.read("visa", visa, "candle")
    for arguments, said in (
        (["mvtek", str(tmp_path)], "invalid choice"),
        (["mvtec_ad", str(tmp_path), "--category", "botle"], "no category botle: bottle, cable"),
        (["isic2018", str(tmp_path), "--category", "bottle"], "it is one set"),
    ):
        with pytest.raises(SystemExit):
            prepare.main(arguments)
        assert said in capsys.readouterr().err


def test_btad(tmp_path):
    for product in ("01", "02", "03"):
        for place, names in (("train/ok", "ab"), ("test/ok", "c"), ("test/ko", "de")):
            for name in names:
                image(tmp_path / product / place / f"{name}.bmp")
        image(tmp_path / product / "ground_truth" / "ko" / "d.png", 255)
    script("btad").main([str(tmp_path)])
    learned, judged, *_ = opened(tmp_path / "02.csv")
    assert learned == {("normal", "good"): 2}
    assert judged == {(False, "good", False): 1, (True, "ko", True): 1, (True, "ko", False): 1}


def test_zju_leaper(tmp_path):
    for number in range(1, 7):
        image(tmp_path / "Images" / f"{number:06}.jpg")
    image(tmp_path / "Annotations" / "masks" / "000006.png", 255)
    normal = {"train": ["000001", "000002"], "test": ["000003"]}
    lists = {"normal": normal, "defect": {"train": ["000004"], "test": ["000006"]}}
    (tmp_path / "ImageSets" / "Patterns").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Patterns" / "pattern3.json").write_text(json.dumps(lists))
    script("zju_leaper").main([str(tmp_path)])
    learned, judged, *_ = opened(tmp_path / "pattern3.csv")
    assert learned == {("normal", "good"): 2}
    assert judged == {(False, "good", False): 1, (True, "defect", True): 1}


def test_chest_xray(tmp_path):
    for split in ("train", "test"):
        for name in ("IM-0115-0001", "IM-0115-0002", "NORMAL2-IM-0115-0001"):
            image(tmp_path / split / "NORMAL" / f"{name}.jpeg")
        for name in ("person1_bacteria_1", "person1_bacteria_2", "person1_virus_3"):
            image(tmp_path / split / "PNEUMONIA" / f"{name}.jpeg")
    script("chest_xray").main([str(tmp_path)])
    learned, judged, training, test = opened(tmp_path / "chest_xray.csv")
    assert learned == {("normal", "good"): 3, ("anomalous", "bacteria"): 2, ("anomalous", "virus"): 1}
    assert sum(judged.values()) == 6
    assert len(training.groups) == 3
    assert not set(training.groups) & {s.group for s in test.samples}


def test_oct(tmp_path):
    for split, patient in (("train", 1), ("test", 2)):
        for kind in ("NORMAL", "CNV", "DME", "DRUSEN"):
            for i in (1, 2):
                image(tmp_path / split / kind / f"{kind}-{patient}-{i}.jpeg")
    script("oct").main([str(tmp_path)])
    learned, judged, training, _ = opened(tmp_path / "oct.csv")
    assert learned == {("normal", "good"): 2} | {("anomalous", kind): 2 for kind in ("CNV", "DME", "DRUSEN")}
    assert judged[True, "DRUSEN", False] == 2
    assert len(training.groups) == 4


def test_br35h(tmp_path):
    for folder in ("no", "yes"):
        for i in range(10):
            image(tmp_path / folder / f"{folder[0]}{i}.jpg")
    script("br35h").main([str(tmp_path)])
    learned, judged, *_ = opened(tmp_path / "br35h.csv")
    assert learned == {("normal", "good"): 8, ("anomalous", "tumour"): 8}
    assert judged == {(False, "good", False): 2, (True, "tumour", False): 2}


def test_cifar10(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    batches = {"data_batch_1": [0, 3, 3], "data_batch_2": [3], "test_batch": [0, 3]}
    pixels = {name: rng.integers(0, 255, (len(labels), 3, 32, 32), dtype=np.uint8) for name, labels in batches.items()}
    for name, labels in batches.items():
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels[name].reshape(len(labels), -1)], axis=1)
        records.tofile(tmp_path / "cifar-10-batches-bin" / f"{name}.bin")
    script("cifar10").main([str(tmp_path), "cat"])
    learned, judged, *_ = opened(tmp_path / "cat.csv")
    assert learned == {("normal", "good"): 3, ("anomalous", "airplane"): 1}
    assert judged == {(False, "good", False): 1, (True, "airplane", False): 1}
    written = np.asarray(Image.open(tmp_path / "images" / "train" / "cat" / "data_batch_1_00002.png"))
    np.testing.assert_array_equal(written, pixels["data_batch_1"][2].transpose(1, 2, 0))
