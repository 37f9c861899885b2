"""Judging every image by a model that never saw its group: one loop for calibration, audits and ablations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from blemish.inspection.inspector import Inspector
from blemish.run import Run, Silent
from blemish.training.learner import Learner


def crossfit(
    learner: Learner,
    folds: Sequence[Sequence[int]],
    run: Run,
    title: str,
    *,
    anomalous_folds: Sequence[Sequence[int]] | None = None,
    scope: str = "fold",
) -> Iterator[tuple[Sequence[int], Inspector]]:
    """Each fold, and an uncalibrated inspector that learned from the images of all other folds.

    ``folds`` and ``anomalous_folds`` are indices of normal and known-bad images; what is in none takes no part, and
    without the latter every fold learns from all known-bad ones. ``title`` is of the one bar for all folds; a method
    that is trained shows each fold's epochs instead. Checkpoints are kept by ``scope``.
    """
    numbers: Iterable[int] = range(len(folds))
    if not learner.is_trained:
        numbers, run = run.progress.track(numbers, title), dataclasses.replace(run, progress=Silent())
    for number in numbers:
        part = learner
        if anomalous_folds is not None and learner.anomalous is not None:
            part = dataclasses.replace(learner, anomalous=learner.anomalous.subset(_others(anomalous_folds, number)))
        yield folds[number], part.learn(_others(folds, number), run.scoped(f"{scope} {number + 1} of {len(folds)}"))


def _others(folds: Sequence[Sequence[int]], number: int) -> list[int]:
    return sorted(index for other, fold in enumerate(folds) if other != number for index in fold)
