"""Optical coherence tomography of retinas: normal against CNV, DME and drusen, by the official split.

python scripts/datasets/oct.py DIR

DIR is the unpacked set: ``train`` and ``test``, each with ``NORMAL``, ``CNV``, ``DME`` and ``DRUSEN``; a patient, the
number in ``CNV-1016042-3.jpeg``, is a group. Bad training images are known-bad: to label a few of them only, use
``blemish reveal``. Writes ``DIR/oct.csv``.
Kermany et al., Cell 2018; CC BY 4.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from blemish.data.manifest import write_manifest
from blemish.data.readers import folders_in, images_in
from blemish.data.samples import Sample


def sample(path: Path, split: str) -> Sample:
    """One image."""
    kind = path.parent.name
    patient = path.stem.rpartition("-")[0] or path.stem
    if kind == "NORMAL":
        return Sample(path, "normal", split, group=patient)
    return Sample(path, "anomalous", split, kind, patient)


def main(argv: list[str]) -> None:
    root = Path(argv[0])
    folders = [(split, folder) for split in ("train", "test") for folder in folders_in(root / split)]
    listed = [sample(path, split) for split, folder in folders for path in images_in(folder)]
    print(write_manifest(root / "oct.csv", listed))


if __name__ == "__main__":
    main(sys.argv[1:])
