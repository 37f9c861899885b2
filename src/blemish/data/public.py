"""Public sets: where to get them, what may be done with them, whether a copy is whole, and the papers' split.

Blemish downloads none of them. A copy that has been unpacked is checked and its split written as a manifest, which
every command reads. Sets with a protocol of their own are prepared by the scripts in ``scripts/datasets``. This reads
labels and masks of test images: only evaluation, the bench and the command line may import it.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.data.manifest import write_manifest
from blemish.data.photographs import demo_datasets
from blemish.data.readers import folders_in, images_in
from blemish.data.samples import Sample, Split
from blemish.errors import ConfigError, DataError

if TYPE_CHECKING:
    from blemish.contract import Label

MVTEC_IMAGES: dict[str, tuple[int, int]] = {
    "bottle": (209, 83), "cable": (224, 150), "capsule": (219, 132), "carpet": (280, 117), "grid": (264, 78),
    "hazelnut": (391, 110), "leather": (245, 124), "metal_nut": (220, 115), "pill": (267, 167), "screw": (320, 160),
    "tile": (230, 117), "toothbrush": (60, 42), "transistor": (213, 100), "wood": (247, 79), "zipper": (240, 151),
}  # fmt: skip
"""Training and test images of each category of MVTec AD."""

VISA_IMAGES: dict[str, tuple[int, int]] = {
    "candle": (1000, 100), "capsules": (602, 100), "cashew": (500, 100), "chewinggum": (503, 100), "fryum": (500, 100),
    "macaroni1": (1000, 100), "macaroni2": (1000, 100), "pcb1": (1004, 100), "pcb2": (1001, 100), "pcb3": (1006, 100),
    "pcb4": (1005, 100), "pipe_fryum": (500, 100),
}  # fmt: skip
"""Normal and anomalous images of each object of VisA."""

ISIC_IMAGES: dict[str, tuple[int, int]] = {"Training": (10015, 6705), "Validation": (193, 123)}
"""Images, and naevi among them, of each part of ISIC 2018 task 3."""

NAEVUS = "NV"


@dataclass(frozen=True)
class PublicSet:
    """One line of ``blemish datasets``.

    Attributes:
        shows: what is in the images.
        source: where to get it.
        licence: what may be done with it.
        layout: what an unpacked copy looks like.
        split: of the papers.
        categories: sets of their own in it; empty where it is one.
        script: what prepares it, for a set without a reader here.
    """

    shows: str
    source: str
    licence: str
    layout: str
    split: str
    categories: tuple[str, ...] = ()
    script: str = ""


PUBLIC_SETS: dict[str, PublicSet] = {
    "mvtec_ad": PublicSet(
        shows="15 industrial objects and textures, 5,354 images, masks",
        source="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        licence="CC BY-NC-SA 4.0",
        layout="CATEGORY/train/good, CATEGORY/test/KIND, CATEGORY/ground_truth/KIND",
        split="official; the folders are read as they are",
        categories=tuple(MVTEC_IMAGES),
    ),
    "visa": PublicSet(
        shows="12 industrial objects, 10,821 images, masks",
        source="https://github.com/amazon-science/spot-diff",
        licence="CC BY 4.0",
        layout="split_csv/1cls.csv, OBJECT/Data/Images, OBJECT/Data/Masks",
        split="split_csv/1cls.csv",
        categories=tuple(VISA_IMAGES),
    ),
    "isic2018": PublicSet(
        shows="skin lesions, 10,208 images, no masks; naevi (NV) are normal",
        source="https://challenge.isic-archive.com/data/#2018 (task 3)",
        licence="CC BY-NC 4.0",
        layout="ISIC2018_Task3_PART_Input and ISIC2018_Task3_PART_GroundTruth, of Training and Validation",
        split="official training and validation; bad training images are known-bad: label a few with reveal",
    ),
    "btad": PublicSet(
        shows="3 industrial products, masks",
        source="the paper on VT-ADL, Mishra et al. 2021",
        licence="CC BY-NC-SA 4.0",
        layout="PRODUCT/train/ok, PRODUCT/test/ok and ko, PRODUCT/ground_truth/ko",
        split="official",
        categories=("01", "02", "03"),
        script="btad.py",
    ),
    "zju_leaper": PublicSet(
        shows="19 patterns of fabric, masks",
        source="http://www.qaas.zju.edu.cn/zju-leaper",
        licence="research, on request; see its page",
        layout="Images, Annotations/masks, ImageSets/Patterns/patternN.json",
        split="official, good training images alone",
        categories=tuple(f"pattern{number}" for number in range(1, 20)),
        script="zju_leaper.py",
    ),
    "chest_xray": PublicSet(
        shows="children's chest X-rays, pneumonia, no masks",
        source="Kermany et al. 2018, https://data.mendeley.com/datasets/rscbjbr9sj",
        licence="CC BY 4.0",
        layout="train and test, each with NORMAL and PNEUMONIA",
        split="official; bad training images are known-bad: label a few with reveal",
        script="chest_xray.py",
    ),
    "oct": PublicSet(
        shows="optical coherence tomography of retinas, 4 classes, no masks",
        source="Kermany et al. 2018, https://data.mendeley.com/datasets/rscbjbr9sj",
        licence="CC BY 4.0",
        layout="train and test, each with NORMAL, CNV, DME and DRUSEN",
        split="official; bad training images are known-bad: label a few with reveal",
        script="oct.py",
    ),
    "br35h": PublicSet(
        shows="brain MRI with and without a tumour, 3,000 images, no masks",
        source="Kaggle, Br35H :: Brain Tumor Detection 2020",
        licence="none stated for the images",
        layout="no and yes",
        split="the first 80 % of each folder's sorted files train; bad ones among them are known-bad",
        script="br35h.py",
    ),
    "cifar10": PublicSet(
        shows="10 classes at 32 px, one of them normal",
        source="https://www.cs.toronto.edu/~kriz/cifar.html (binary version)",
        licence="none stated",
        layout="cifar-10-batches-bin/data_batch_N.bin and test_batch.bin",
        split="official; one class is normal, others in the training part are known-bad",
        categories=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        script="cifar10.py",
    ),
}


def datasets() -> tuple[tuple[str, str, str], ...]:
    """Name, content, and licence with origin of every set that Blemish knows, the demo's first."""
    public = ((name, one.shows, f"{one.licence}: {_prepared_by(name, one)}") for name, one in PUBLIC_SETS.items())
    return (*demo_datasets(), *public)


def write_public(name: str, root: Path, manifest: Path, category: str = "") -> tuple[Path, tuple[str, ...]]:
    """Write the papers' split of a copy of a public set; the manifest's path, and what the copy lacks, a line each.

    Args:
        name: ``mvtec_ad``, ``visa`` or ``isic2018``.
        root: of the unpacked copy.
        manifest: to write, in ``root`` or above.
        category: of a set that has some.

    Raises:
        ConfigError: no such set or category, or one that a script prepares.
        DataError: the copy is not laid out as it should be; the message says how and where to get it.
        ManifestError: the manifest does not lie above the images.
        OutputError: it cannot be written.
    """
    entries = read_public(name, root, category)
    return write_manifest(manifest, entries), missing(name, entries, category)


def read_public(name: str, root: Path, category: str = "") -> tuple[Sample, ...]:
    """Every image of a copy with its label and split. Arguments and errors as for ``write_public``."""
    if name not in _READERS:
        known = PUBLIC_SETS.get(name)
        way = f"scripts/datasets/{known.script} prepares it" if known else f"choose one of {', '.join(PUBLIC_SETS)}"
        raise ConfigError(f"there is no reader for {name!r}: {way}")
    categories = PUBLIC_SETS[name].categories
    if bool(category) != bool(categories) or (categories and category not in categories):
        choice = f"one of {', '.join(categories)}" if categories else "no category"
        raise ConfigError(f"{name}: category {category!r} was given, and {choice} is needed")
    entries = tuple(_READERS[name](Path(root), category))
    absent = [entry.path for entry in entries if not entry.path.is_file()]
    if absent:
        raise _unlike(name, root, f"{len(absent)} listed images are not there, such as {absent[0].name}")
    return entries


def missing(name: str, entries: Sequence[Sample], category: str = "") -> tuple[str, ...]:
    """What a copy lacks (or has too much of) beside the published numbers, a line each; empty for a whole copy."""
    found = _counted(name, entries)
    wanted = _published(name, category)
    lines = [f"{found[what]} of {number} {what} images" for what, number in wanted.items() if found[what] != number]
    unmasked = sum(entry.label == "anomalous" and entry.split == "test" and not entry.mask for entry in entries)
    if unmasked and name != "isic2018":
        lines.append(f"{unmasked} bad test images have no mask")
    return tuple(lines)


def _prepared_by(name: str, one: PublicSet) -> str:
    return f"{one.source}; scripts/datasets/{one.script or f'prepare.py {name}'}"


def _counted(name: str, entries: Sequence[Sample]) -> Mapping[str, int]:
    if name == "visa":
        return Counter(entry.label for entry in entries)
    counts = Counter(entry.split for entry in entries)
    return counts + Counter(f"{entry.split} {NAEVUS}" for entry in entries if entry.label == "normal")


def _published(name: str, category: str) -> dict[str, int]:
    if name == "visa":
        return dict(zip(("normal", "anomalous"), VISA_IMAGES[category]))
    if name == "mvtec_ad":
        return dict(zip(("train", "test"), MVTEC_IMAGES[category]))
    parts = zip(("train", "test"), ISIC_IMAGES.values())
    return {what: n for split, (all_, naevi) in parts for what, n in ((split, all_), (f"{split} {NAEVUS}", naevi))}


def _unlike(name: str, root: Path, what: str) -> DataError:
    one = PUBLIC_SETS[name]
    return DataError(f"{root} is no copy of {name}: {what}. {one.layout} are needed; get it from {one.source}.")


def _mvtec(root: Path, category: str) -> list[Sample]:
    place = root / category
    if not (place / "train" / "good").is_dir() or not (place / "test").is_dir():
        raise _unlike("mvtec_ad", root, f"{category} has no train/good and test")
    entries = [_entry(path, root, "normal", "train", "good") for path in images_in(place / "train" / "good")]
    for folder in folders_in(place / "test"):
        label: Label = "normal" if folder.name == "good" else "anomalous"
        for path in images_in(folder):
            mask = place / "ground_truth" / folder.name / f"{path.stem}_mask.png"
            entries.append(_entry(path, root, label, "test", folder.name, mask if mask.is_file() else None))
    return entries


def _visa(root: Path, category: str) -> list[Sample]:
    rows = [row for row in _rows("visa", root, root / "split_csv" / "1cls.csv") if row["object"] == category]
    if not rows:
        raise _unlike("visa", root, f"split_csv/1cls.csv lists nothing of {category}")
    entries = []
    for row in rows:
        label: Label = "normal" if row["label"] == "normal" else "anomalous"
        kind = "good" if label == "normal" else row["label"]
        split: Split = "train" if row["split"] == "train" else "test"
        entries.append(_entry(root / row["image"], root, label, split, kind, _existing(root, row["mask"])))
    return entries


def _isic(root: Path, category: str) -> list[Sample]:
    """Naevi are normal; photographs of one lesion form a group where the list of lesions is there."""
    entries = []
    parts: tuple[tuple[str, Split], ...] = (("Training", "train"), ("Validation", "test"))
    for part, split in parts:
        prefix = f"ISIC2018_Task3_{part}"
        truth = root / f"{prefix}_GroundTruth"
        lesions = truth / f"{prefix}_LesionGroupings.csv"
        listed = _rows("isic2018", root, lesions) if lesions.is_file() else []
        groups = {row["image"]: row["lesion_id"] for row in listed}
        for row in _rows("isic2018", root, truth / f"{prefix}_GroundTruth.csv"):
            name = row.pop("image")
            diagnosis = max(row, key=lambda column: float(row[column] or 0))
            label: Label = "normal" if diagnosis == NAEVUS else "anomalous"
            kind = "good" if diagnosis == NAEVUS else diagnosis
            found = _entry(root / f"{prefix}_Input" / f"{name}.jpg", root, label, split, kind)
            entries.append(replace(found, group=groups.get(name, found.group)))
    return entries


def _rows(name: str, root: Path, file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(opened)]
    except OSError as error:
        raise _unlike(name, root, f"{file.name} cannot be read ({error.strerror})") from error


def _entry(path: Path, root: Path, label: Label, split: Split, kind: str, mask: Path | None = None) -> Sample:
    return Sample(path, label, split, kind, path.relative_to(root).as_posix(), mask)


def _existing(root: Path, written: str) -> Path | None:
    return root / written if written and (root / written).is_file() else None


_READERS: dict[str, Callable[[Path, str], list[Sample]]] = {"mvtec_ad": _mvtec, "visa": _visa, "isic2018": _isic}
