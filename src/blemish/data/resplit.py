"""Another split of a set by a file: some training images become the good test images, in place of the set's own.

Where a set's good test images differ from its bad ones in something that is no defect (a darker lamp), this shows what
a method finds without it. For the bench alone: it opens test sets.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import TestSet
from blemish.errors import ManifestError

COLUMNS = ("file", "alt_split")


def resplit(training: TrainingSet, test: TestSet, split: Path) -> tuple[TrainingSet, TestSet]:
    """Both sets after the exchange: the test set keeps its bad images and takes the moved ones as its good ones.

    Args:
        training: read from a folder.
        test: of the same folder.
        split: CSV with ``file,alt_split``, one line a training image: ``train``, or a word that begins with ``test``.

    Raises:
        ManifestError: the file is missing or lacks a column, a training image is not listed, a listed one does not
            exist, or all images end up on one side.
    """
    places = _read(split)
    root = split.parent.resolve()
    moved, kept = _divided(training, places, root, split)
    groups = {sample.group for sample in kept} & {sample.group for sample in moved}
    notes = [f"{split.name} puts {len(groups)} parts on both sides"] * bool(groups)
    good = tuple(Sample(sample.path, "normal", "test", "good", sample.group) for sample in moved)
    bad = tuple(sample for sample in test.samples if sample.anomalous)
    name = f"{test.name} ({split.stem})"
    note = f"{split.name}: {len(moved)} training images are the good test images, in place of the set's own"
    return (
        replace(training, name=name, samples=tuple(kept), notes=(*training.notes, *notes)),
        replace(test, name=name, samples=good + bad, notes=(*test.notes, note, *notes)),
    )


def _divided(
    training: TrainingSet, places: dict[str, str], root: Path, split: Path
) -> tuple[list[Sample], list[Sample]]:
    left = dict(places)
    moved: list[Sample] = []
    kept: list[Sample] = []
    for sample in training.samples:
        written = sample.path.resolve().relative_to(root).as_posix()
        place = left.pop(written, None)
        if place is None:
            raise ManifestError(f"{split} does not list the training image {written}: one line each is needed.")
        (kept if place == "train" else moved).append(sample)
    if left:
        raise ManifestError(f"{split} lists {len(left)} files that are no training image, such as {next(iter(left))}.")
    if not moved or not any(sample.label != "anomalous" for sample in kept):
        raise ManifestError(f"{split} leaves one side empty: some lines with train and some with test are needed.")
    if any(sample.label == "anomalous" for sample in moved):
        raise ManifestError(f"{split} moves a known-bad training image to the good test images: list it as train.")
    return moved, kept


def _read(split: Path) -> dict[str, str]:
    """From file to ``train`` or ``test...``."""
    try:
        with split.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{split} cannot be read as CSV in UTF-8: {error}.") from error
    if not rows or any(column not in rows[0] for column in COLUMNS):
        raise ManifestError(f"{split} lacks a column: {', '.join(COLUMNS)} are needed.")
    for line, row in enumerate(rows, 2):
        if row["alt_split"] != "train" and not str(row["alt_split"]).startswith("test"):
            raise ManifestError(f"{split}, line {line}: {row['alt_split']!r} is neither train nor test....")
    twice = [file for file, number in Counter(row["file"] for row in rows).items() if number > 1]
    if twice:
        raise ManifestError(f"{split} lists {twice[0]} twice: keep one line.")
    return {row["file"]: row["alt_split"] for row in rows}
