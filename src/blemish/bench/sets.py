"""From a name in a recipe to training and test images: where protocols take effect."""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from blemish.bench.recipe import DEMO
from blemish.data.demo import write_demo
from blemish.data.protocols import alternative_split, contaminate, label_anomalies
from blemish.data.readers import read_training
from blemish.data.samples import TrainingSet
from blemish.data.testset import TestSet, open_test_set
from blemish.errors import ConfigError, DataError

VARIABLE = "BLEMISH_DATA"

Configuration = dict[str, Any]
"""All that a figure depends on but code and images, as the ledger holds it: JSON values."""


def data_folder(folder: Path | None) -> Path | None:
    """The folder that sets lie in: the one given, or the one that BLEMISH_DATA names."""
    source, named = "--data" if folder else VARIABLE, os.environ.get(VARIABLE)
    folder = folder or (Path(named) if named else None)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"{source} {folder} is no folder: name the folder that the sets lie in")
    return folder


def locate(name: str, category: str, alt_split: str, data: Path | None, runs: Path) -> Path:
    """The folder of a set: in the data folder, a category's also directly in it; the demo set's in ``runs``."""
    if name == DEMO:
        data = _demo_folder(runs).parent
    if data is None:
        raise DataError(f"no data folder: give --data DIR, or set {VARIABLE}")
    tried = [data / name / category, *([data / category] if category else [])]
    folder = next((folder for folder in tried if folder.exists()), None)
    if folder is None:
        raise DataError(f"the data folder holds no {f'{name}/{category}' if category else name}")
    if alt_split and not (folder / alt_split).is_file():
        raise DataError(f"{folder.name} holds no file {alt_split}")
    return folder


def open_sets(folder: Path, configuration: Configuration) -> tuple[TrainingSet, TestSet]:
    """The images to learn from and those to judge, as the configuration's protocol splits them."""
    training, test = _before_draws(folder, configuration)
    ratio, share, seed = configuration.get("contaminate"), configuration.get("reveal"), configuration["seed"]
    if ratio is not None:
        drawn = contaminate(training, test, ratio, seed)
        return drawn.training, drawn.overlap if configuration["overlap"] and drawn.overlap else drawn.test
    if share is not None:
        labelled = label_anomalies(training, test, share, configuration["kinds"], seed)
        return labelled.training, labelled.test
    return training, test


def planted(folder: Path, configuration: Configuration) -> frozenset[Path]:
    """The training images that are bad, though no method is told: those that ``contaminate`` drew."""
    ratio = configuration.get("contaminate")
    if ratio is None:
        return frozenset()
    drawn = contaminate(*_before_draws(folder, configuration), ratio, configuration["seed"]).drawn
    return frozenset(sample.path for sample in drawn)


def _before_draws(folder: Path, configuration: Configuration) -> tuple[TrainingSet, TestSet]:
    training, test, alt_split = read_training(folder), open_test_set(folder), configuration["alt_split"]
    return alternative_split(training, test, folder / alt_split) if alt_split else (training, test)


def data_digest(training: TrainingSet, test: TestSet) -> str:
    """64 hexadecimal digits of every image and mask, what is said of each, and on which side it stands."""

    def content(path: Path) -> str:
        about = path.stat()
        return _file_digest(path, about.st_mtime_ns, about.st_size)

    lines = [f"train {content(s.path)} {s.label} {s.group} {s.kind}" for s in training.samples]
    lines += [
        f"test {content(s.path)} {s.anomalous} {s.group} {s.kind} {content(s.mask) if s.mask else '-'}"
        for s in test.samples
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@cache  # the same images stand in the draws of all seeds
def _file_digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _demo_folder(runs: Path) -> Path:
    """The demo set, written below ``runs`` the first time."""
    folder = runs / DEMO
    with FileLock(runs / "demo.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=runs, prefix=".demo.") as unfinished:
                write_demo(Path(unfinished) / DEMO)
                (Path(unfinished) / DEMO).replace(folder)
    return folder
