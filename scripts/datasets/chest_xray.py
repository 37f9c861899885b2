"""Chest X-rays of children: normal against pneumonia, by the official split.

python scripts/datasets/chest_xray.py DIR [--germs]

DIR is the unpacked set: ``train`` and ``test``, each with ``NORMAL`` and ``PNEUMONIA``. Pneumonia is one kind, as in
papers that label some of it (CKAAD); with ``--germs`` it is two, bacteria and virus, by the files' names. A patient
(``person12``, ``IM-0115``) is a group. Bad training images are known-bad: to label a few of them only, use ``blemish
reveal``. Writes ``DIR/chest_xray.csv``.
Kermany et al., Cell 2018; CC BY 4.0.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from blemish.data.manifest import write_manifest
from blemish.data.readers import images_in
from blemish.data.samples import Sample


def sample(path: Path, split: str, germs: bool) -> Sample:
    """One image; its name says patient and germ, as in ``person1_bacteria_2`` and ``NORMAL2-IM-0115-0001``."""
    patient = re.match(r"person\d+|(?:NORMAL2-)?IM-\d+", path.stem)
    # The same number may stand in train and test, in normal and pneumonia, without being the same patient.
    group = f"{split}/{path.parent.name}/{patient.group() if patient else path.stem}"
    if path.parent.name == "NORMAL":
        return Sample(path, "normal", split, group=group)
    kind = next((kind for kind in ("bacteria", "virus") if germs and kind in path.stem), "pneumonia")
    return Sample(path, "anomalous", split, kind, group)


def main(argv: list[str]) -> None:
    root, germs = Path(argv[0]), "--germs" in argv
    folders = [(split, root / split / name) for split in ("train", "test") for name in ("NORMAL", "PNEUMONIA")]
    listed = [sample(path, split, germs) for split, folder in folders for path in images_in(folder)]
    print(write_manifest(root / "chest_xray.csv", listed))


if __name__ == "__main__":
    main(sys.argv[1:])
