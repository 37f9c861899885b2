"""From a name in a recipe to training and test images: where protocols take effect."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from blemish.bench.ledger import held
from blemish.data.demo import write_demo
from blemish.data.protocols import alternative_split, contaminate, label_anomalies
from blemish.data.public import DEMO_CATEGORIES
from blemish.data.readers import read_training
from blemish.data.samples import TrainingSet
from blemish.data.testset import TestSet, open_test_set
from blemish.errors import ConfigError

DEMO = "demo"
VARIABLE = "BLEMISH_DATA"


@dataclass(frozen=True)
class Place:
    """Where a set lies on this machine, and how it is split.

    Attributes:
        folder: a folder in layout, or a manifest.
        alt_split: a file in it that moves training images to the test set, or empty.
        contaminate: bad test images for each training image that join the pile; None for none.
        overlap: whether they stay in the test set.
        seed: draws them, and those that ``reveal`` labels.
        reveal: known-bad share of the training set, drawn from the bad images at hand; None for none.
        kinds: of defect that it draws.
    """

    folder: Path
    alt_split: str = ""
    contaminate: float | None = None
    overlap: bool = False
    seed: int = 0
    reveal: float | None = None
    kinds: tuple[str, ...] = ()


def data_folder(given: Path | None) -> Path | None:
    """The folder that sets lie in: the one given, or the one that BLEMISH_DATA names.

    Raises:
        ConfigError: it is no folder.
    """
    named = os.environ.get(VARIABLE)
    folder = given or (Path(named) if named else None)
    if folder is not None and not folder.is_dir():
        source = "--data" if given else VARIABLE
        raise ConfigError(f"{source} {folder} is no folder: name the folder that the sets lie in")
    return folder


def locate(name: str, category: str, alt_split: str, root: Path | None) -> Place | str:
    """Where a set lies, or the reason why it cannot be used here.

    A category is looked for in the set's folder, then directly in ``root``.
    """
    if root is None:
        return f"no data folder: give --data DIR, or set {VARIABLE}"
    tried = [root / name / category] + ([root / category] if category else [])
    found = next((folder for folder in tried if folder.exists()), None)
    if found is None:
        shown = f"{name}/{category}" if category else name
        return f"the data folder holds no {shown}"
    if alt_split and not (found / alt_split).is_file():
        return f"{found.name} holds no file {alt_split}"
    return Place(found, alt_split)


def open_sets(place: Place) -> tuple[TrainingSet, TestSet]:
    """The images to learn from and those to judge, as the protocol splits them.

    Raises:
        DataError: they are not what they should be.
        ConfigError: a kind to reveal is unknown.
    """
    training, test = _as_split(place)
    if place.contaminate is not None:
        drawn = contaminate(training, test, place.contaminate, place.seed)
        training, test = drawn.training, drawn.test(place.overlap)
    if place.reveal is not None:
        labelled = label_anomalies(training, test, place.reveal, place.kinds, place.seed)
        training, test = labelled.training, labelled.test
    return training, test


def planted(place: Place) -> frozenset[Path]:
    """The training images that are bad, though no method is told: those that ``contaminate`` drew."""
    if place.contaminate is None:
        return frozenset()
    return frozenset(one.path for one in contaminate(*_as_split(place), place.contaminate, place.seed).drawn)


def _as_split(place: Place) -> tuple[TrainingSet, TestSet]:
    training, test = read_training(place.folder), open_test_set(place.folder)
    return alternative_split(training, test, place.folder / place.alt_split) if place.alt_split else (training, test)


def data_digest(training: TrainingSet, test: TestSet) -> str:
    """64 hexadecimal digits of every image and mask, what is said of each, and on which side it stands."""
    lines = [f"train {_content(s.path)} {s.label} {s.group} {s.kind}" for s in training.samples]
    for one in test.samples:
        mask = _content(one.mask) if one.mask else "-"
        lines.append(f"test {_content(one.path)} {one.anomalous} {one.group} {one.kind} {mask}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _content(path: Path) -> str:
    about = path.stat()
    return _hashed(path, about.st_mtime_ns, about.st_size)


@cache  # the same images stand in the draws of all seeds
def _hashed(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def demo_folder(runs: Path) -> Path:
    """The demo set, written below ``runs`` the first time.

    Raises:
        DataError: scikit-image, whose photographs it is made of, is not installed.
    """
    folder = runs / DEMO
    with held(runs / "demo.lock"):
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(dir=runs, prefix=".demo."))
            try:
                write_demo(unfinished / DEMO)
                (unfinished / DEMO).replace(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def demo_categories() -> tuple[str, ...]:
    """The folders of the demo set."""
    return tuple(DEMO_CATEGORIES)
