"""ZJU-Leaper (fabric): a manifest for each pattern, by the official split.

python scripts/datasets/zju_leaper.py DIR

DIR is the unpacked set: ``Images/ID.jpg`` (or png), ``Annotations/masks/ID.png`` of the defective ones, and
``ImageSets/Patterns/patternN.json`` with the numbers under normal and defect, each with train and test. Defective
training images are left out: what the set calls its first setting. Writes ``DIR/patternN.csv``.
Zhang et al., ZJU-Leaper, IEEE Transactions on Artificial Intelligence 2020; given for research on request.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from blemish.data.manifest import write_manifest
from blemish.data.readers import images_in, natural_key
from blemish.data.samples import Sample


def samples(root: Path, listed: dict[str, dict[str, list[str]]]) -> list[Sample]:
    """Every image of one pattern."""
    images = {path.stem: path for path in images_in(root / "Images")}
    masks = root / "Annotations" / "masks"
    picked = []
    for split in ("train", "test"):
        picked += [Sample(images[id_], "normal", split, group=id_) for id_ in listed["normal"][split]]
    for id_ in listed["defect"]["test"]:
        mask = masks / f"{id_}.png"
        picked.append(Sample(images[id_], "anomalous", "test", "defect", id_, mask if mask.is_file() else None))
    return picked


def main(argv: list[str]) -> None:
    root = Path(argv[0])
    for pattern in sorted((root / "ImageSets" / "Patterns").glob("pattern*.json"), key=natural_key):
        listed = json.loads(pattern.read_text(encoding="utf-8"))
        print(write_manifest(root / f"{pattern.stem}.csv", samples(root, listed)))


if __name__ == "__main__":
    main(sys.argv[1:])
