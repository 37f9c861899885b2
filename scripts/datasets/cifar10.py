"""CIFAR-10, one class against the rest: PNG files and a manifest for each class that is taken as normal.

python scripts/datasets/cifar10.py DIR [CLASS ...]

DIR holds ``cifar-10-batches-bin`` of the binary version (the Python version would have to be unpickled). Images are
written to ``DIR/images`` once, 60,000 of them. In ``DIR/CLASS.csv`` the class is normal; the training images of all
other classes are known-bad: to label a few of them only, use ``blemish reveal``. Without CLASS: all ten.
Krizhevsky 2009; no licence stated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from blemish.data.manifest import write_manifest
from blemish.data.public import PUBLIC_SETS
from blemish.data.readers import images_in
from blemish.data.samples import Sample

CLASSES = PUBLIC_SETS["cifar10"].categories
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image: its class, then red, green and blue, row by row."""


def unpack(root: Path) -> None:
    """Every image as ``images/SPLIT/CLASS/BATCH_NUMBER.png``."""
    for batch in sorted((root / "cifar-10-batches-bin").glob("*_batch*.bin")):
        split = "test" if batch.stem.startswith("test") else "train"
        records = np.fromfile(batch, np.uint8).reshape(-1, RECORD)
        for number, record in enumerate(records):
            file = root / "images" / split / CLASSES[record[0]] / f"{batch.stem}_{number:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(file)


def samples(root: Path, normal: str) -> list[Sample]:
    """Every image, one class of which is normal."""
    listed = []
    for split in ("train", "test"):
        for name in CLASSES:
            folder = root / "images" / split / name
            for path in images_in(folder) if folder.is_dir() else []:
                label, kind = ("normal", "good") if name == normal else ("anomalous", name)
                listed.append(Sample(path, label, split, kind))
    return listed


def main(argv: list[str]) -> None:
    root = Path(argv[0])
    if not (root / "images").is_dir():
        unpack(root)
    for name in argv[1:] or CLASSES:
        print(write_manifest(root / f"{name}.csv", samples(root, name)))


if __name__ == "__main__":
    main(sys.argv[1:])
