"""Check a copy of MVTec AD, VisA or ISIC 2018 (task 3) and write the papers' split of it as manifests.

python scripts/datasets/prepare.py mvtec_ad DIR [--category bottle]
python scripts/datasets/prepare.py visa DIR
python scripts/datasets/prepare.py isic2018 DIR

One manifest a category is written into DIR: NAME.csv or CATEGORY.csv. Where to get the sets: blemish datasets.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from blemish.data.manifest import write_manifest
from blemish.data.public import PUBLIC_SETS
from blemish.data.readers import folders_in, images_in
from blemish.data.samples import Sample
from blemish.errors import DataError

NAEVUS = "NV"


def read(name: str, root: Path, category: str = "") -> list[Sample]:
    """Every image of a copy with its label and split; ``category`` of a set that has some.

    Raises:
        DataError: the copy is not laid out as it should be; the message says how and where to get it.
    """
    samples = READERS[name](root, category)
    absent = [sample.path for sample in samples if not sample.path.is_file()]
    if absent:
        raise no_copy(name, root, f"{len(absent)} listed images are not there, such as {absent[0].name}")
    return samples


def missing(name: str, samples: Sequence[Sample], category: str = "") -> list[str]:
    """What a copy lacks (or has too much of) beside the published numbers, a line each; empty for a whole copy."""
    numbers = Counter(sample.split for sample in samples) + Counter(sample.label for sample in samples)
    numbers += Counter(f"{sample.split} {NAEVUS}" for sample in samples if sample.label == "normal")
    published = PUBLIC_SETS[name].images[category]
    lines = [f"{numbers[what]} of {total} {what} images" for what, total in published.items() if numbers[what] != total]
    unmasked = sum(sample.anomalous and sample.split == "test" and sample.mask is None for sample in samples)
    if unmasked and name != "isic2018":
        lines.append(f"{unmasked} bad test images have no mask")
    return lines


def read_mvtec(root: Path, category: str) -> list[Sample]:
    """``CATEGORY/train/good``, ``CATEGORY/test/KIND`` and ``CATEGORY/ground_truth/KIND``, as they are."""
    place = root / category
    if not (place / "train" / "good").is_dir() or not (place / "test").is_dir():
        raise no_copy("mvtec_ad", root, f"{category} has no train/good and test")
    samples = [Sample(path, "normal") for path in images_in(place / "train" / "good")]
    for folder in folders_in(place / "test"):
        for path in images_in(folder):
            mask = place / "ground_truth" / folder.name / f"{path.stem}_mask.png"
            label = "normal" if folder.name == "good" else "anomalous"
            samples.append(Sample(path, label, "test", folder.name, mask=mask if mask.is_file() else None))
    return samples


def read_visa(root: Path, category: str) -> list[Sample]:
    """The one-class split that comes with the set."""
    samples = []
    for row in read_table("visa", root, root / "split_csv" / "1cls.csv"):
        if row["object"] == category:
            mask = root / row["mask"] if row["mask"] and (root / row["mask"]).is_file() else None
            label, kind = ("normal", "good") if row["label"] == "normal" else ("anomalous", row["label"])
            samples.append(Sample(root / row["image"], label, row["split"], kind, mask=mask))
    if not samples:
        raise no_copy("visa", root, f"split_csv/1cls.csv lists nothing of {category}")
    return samples


def read_isic(root: Path, category: str) -> list[Sample]:
    """Naevi are normal; photographs of one lesion form a group where the list of lesions is there."""
    samples = []
    for part, split in (("Training", "train"), ("Validation", "test")):
        prefix = f"ISIC2018_Task3_{part}"
        truth = root / f"{prefix}_GroundTruth"
        lesions = truth / f"{prefix}_LesionGroupings.csv"
        listed = read_table("isic2018", root, lesions) if lesions.is_file() else []
        groups = {row["image"]: row["lesion_id"] for row in listed}
        for row in read_table("isic2018", root, truth / f"{prefix}_GroundTruth.csv"):
            name = row.pop("image")
            diagnosis = max(row, key=lambda column: float(row[column] or 0))
            label, kind = ("normal", "good") if diagnosis == NAEVUS else ("anomalous", diagnosis)
            path = root / f"{prefix}_Input" / f"{name}.jpg"
            samples.append(Sample(path, label, split, kind, groups.get(name, "")))
    return samples


READERS: dict[str, Callable[[Path, str], list[Sample]]] = {
    "mvtec_ad": read_mvtec,
    "visa": read_visa,
    "isic2018": read_isic,
}


def read_table(name: str, root: Path, file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(opened)]
    except OSError as error:
        raise no_copy(name, root, f"{file.name} cannot be read ({error.strerror})") from error


def no_copy(name: str, root: Path, what: str) -> DataError:
    row = PUBLIC_SETS[name]
    return DataError(f"{root} is no copy of {name}: {what}. {row.layout} are needed; get it from {row.source}.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=READERS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--category", action="append", help="only this one; repeatable")
    arguments = parser.parse_args(argv)
    known = PUBLIC_SETS[arguments.name].categories
    unknown = [category for category in arguments.category or () if category not in known]
    if unknown:
        parser.error(f"{arguments.name} has no category {unknown[0]}: {', '.join(known) or 'it is one set'}")
    for category in arguments.category or known or ("",):
        samples = read(arguments.name, arguments.root, category)
        path = write_manifest(arguments.root / f"{category or arguments.name}.csv", samples)
        lacking = missing(arguments.name, samples, category)
        print(path, "whole" if not lacking else f"NOT WHOLE: {'; '.join(lacking)}")


if __name__ == "__main__":
    main()
