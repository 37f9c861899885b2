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

    Args:
        learner: of the whole set.
        folds: indices of normal images; what is in none of them takes no part.
        run: the folds have the same seeds, and checkpoints of their own.
        title: of the one bar for all folds; a fold that takes long, for its method is trained, shows its own epochs.
        anomalous_folds: as ``folds``, of the known-bad images; without it, every fold learns from all of them.
        scope: names the folds' checkpoints.
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
