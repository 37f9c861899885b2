"""Br35H (brain MRI with and without a tumour): the first 80 % of each folder train, as in the paper on CKAAD.

python scripts/datasets/br35h.py DIR

DIR is the unpacked set: ``no`` (normal) and ``yes`` (tumour). The files of each are sorted by their plain names. Bad
training images are known-bad: to label a few of them only, use ``blemish reveal``. Which slices are of one patient
is not known, so each image is a group of its own. Writes ``DIR/br35h.csv``.
Kaggle, Br35H :: Brain Tumor Detection 2020; no licence stated for the images.
"""

from __future__ import annotations

import sys
from pathlib import Path

from blemish.data.manifest import write_manifest
from blemish.data.readers import images_in
from blemish.data.samples import Sample

TRAINING_SHARE = 0.8


def samples(folder: Path) -> list[Sample]:
    """Every image of one folder."""
    paths = sorted(images_in(folder), key=lambda path: path.name)
    first_test = int(TRAINING_SHARE * len(paths))
    label, kind = ("normal", "good") if folder.name == "no" else ("anomalous", "tumour")
    return [Sample(path, label, "train" if i < first_test else "test", kind) for i, path in enumerate(paths)]


def main(argv: list[str]) -> None:
    root = Path(argv[0])
    print(write_manifest(root / "br35h.csv", samples(root / "no") + samples(root / "yes")))


if __name__ == "__main__":
    main(sys.argv[1:])
