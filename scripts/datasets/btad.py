"""BTAD (3 industrial products): a manifest for each product, by the official split.

python scripts/datasets/btad.py DIR

DIR is the unpacked set: ``01/train/ok``, ``01/test/ok``, ``01/test/ko``, ``01/ground_truth/ko`` and so on; masks have
their image's name, with whatever extension. Writes ``DIR/01.csv``, ``DIR/02.csv``, ``DIR/03.csv``.
Mishra et al., VT-ADL, 2021; CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from blemish.data.manifest import write_manifest
from blemish.data.readers import images_in
from blemish.data.samples import Sample


def samples(root: Path, product: str) -> list[Sample]:
    """Every image of one product."""
    place = root / product
    masks = {path.stem: path for path in images_in(place / "ground_truth" / "ko")}
    listed = []
    for split, folder in (("train", "ok"), ("test", "ok"), ("test", "ko")):
        for path in images_in(place / split / folder):
            if folder == "ok":
                listed.append(Sample(path, "normal", split))
            else:
                listed.append(Sample(path, "anomalous", split, "ko", mask=masks.get(path.stem)))
    return listed


def main(argv: list[str]) -> None:
    root = Path(argv[0])
    for product in ("01", "02", "03"):
        print(write_manifest(root / f"{product}.csv", samples(root, product)))


if __name__ == "__main__":
    main(sys.argv[1:])
