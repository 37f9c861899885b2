"""From folders, patterns and manifests to a training set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blemish.data.samples import Sample, TrainingSet


def read_training(data: Path, unlabelled: bool = False) -> TrainingSet:
    """The training images of a layout folder, a plain folder or a CSV manifest."""
    raise NotImplementedError


def read_globs(good: Sequence[str], anomalous: Sequence[str] = (), unlabelled: Sequence[str] = ()) -> TrainingSet:
    """The training images that the patterns match."""
    raise NotImplementedError


def shared_files(training: TrainingSet, data: Path) -> list[tuple[Path, Path]]:
    """Pairs (training file, test file) of identical content."""
    raise NotImplementedError


def survey(samples: Sequence[Sample]) -> list[str]:
    """Warnings for images whose size, aspect or bit depth differ from the rest, one line each."""
    raise NotImplementedError
