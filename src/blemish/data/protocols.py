"""Protocols that move images from the test set into the training set, to show what a method makes of them.

This opens test sets: only the bench and the command line may import it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from blemish.data.manifest import write_manifest
from blemish.data.readers import refuse_to_replace
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import shuffled_names
from blemish.data.testset import TestSet
from blemish.errors import ConfigError, DataError

OVERLAP = "-overlap"
"""What the name of the second manifest ends in."""


@dataclass(frozen=True)
class Contaminated:
    """An unlabelled pile with bad images in it, and the two test sets that one model learned from it is judged on.

    Attributes:
        training: all images unlabelled: those that were good, then the drawn ones.
        no_overlap: the test set without the drawn groups.
        overlap: the test set as it was, so that some of its bad images have been learned from.
        drawn: the bad images among the unlabelled ones. For measuring alone: no method is told.
    """

    training: TrainingSet
    no_overlap: TestSet
    overlap: TestSet
    drawn: tuple[Sample, ...]

    def test(self, overlap: bool) -> TestSet:
        """One of the two test sets."""
        return self.overlap if overlap else self.no_overlap


def contaminate(training: TrainingSet, test: TestSet, ratio: float, seed: int) -> Contaminated:
    """Add ``int(ratio * N)`` bad test images to the ``N`` training images, and forget the labels of all.

    The unit is the part: groups are drawn, in an order fixed by the seed, until the number is reached. Of the last
    group only as many images join as are still missing, so that the number is always exact; without overlap the whole
    group leaves the test set all the same. With one seed, a smaller ratio draws a part of what a larger one does.

    Args:
        training: good or unlabelled images; known-bad ones are left out.
        test: of the same set.
        ratio: bad images for each training image, in [0, 1]; .1 makes 9.1 % of the pile bad, as in the papers.
        seed: fixes the draw, whatever the order of the files.

    Raises:
        ConfigError: the ratio is outside [0, 1].
        DataError: there are not as many bad test images, or none would be left to test on.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"ratio {ratio}: a share of the training images, from 0 to 1, is needed, such as 0.1")
    number = int(ratio * len(training.normal))
    drawn = _drawn(test, number, seed)
    groups = {sample.group for sample in drawn}
    left = tuple(sample for sample in test.samples if sample.group not in groups)
    _check(training, test, ratio, number, len(drawn), left)
    pile = [replace(sample, label="unlabelled", kind="unlabelled") for sample in training.normal]
    pile += [Sample(sample.path, "unlabelled", group=sample.group) for sample in drawn]
    note = f"among the unlabelled: {number} bad test images of {len(groups)} groups (ratio {ratio}, seed {seed})"
    dropped = len(training.anomalous)
    notes = [note, *[f"{dropped} known-bad training images are left out: this protocol has no labels"] * bool(dropped)]
    gone = f"{len(test.samples) - len(left)} images of the {len(groups)} drawn groups are left out"
    return Contaminated(
        training=replace(training, samples=tuple(pile), notes=(*training.notes, *notes)),
        no_overlap=replace(test, samples=left, notes=(*test.notes, gone)),
        overlap=replace(test, notes=(*test.notes, f"{number} bad images were learned from")),
        drawn=drawn,
    )


def write_contaminated(found: Contaminated, manifest: Path) -> tuple[Path, Path]:
    """Two manifests: the pile with the test set without overlap, and beside it the test set with overlap alone.

    Args:
        found: what was drawn.
        manifest: the first one's path, in a folder that holds the images; the second's name ends in ``-overlap``.

    Raises:
        ManifestError: images lie outside the manifest's folder, or it would replace what the images were read by.
        OutputError: it cannot be written.
    """
    second = manifest.with_stem(manifest.stem + OVERLAP)
    for path in (manifest, second):
        refuse_to_replace(path, found.training)
    # The larger one first: where it fails, nothing is written.
    write_manifest(manifest, [*found.training.samples, *found.no_overlap.samples])
    return manifest, write_manifest(second, found.overlap.samples)


def _drawn(test: TestSet, number: int, seed: int) -> tuple[Sample, ...]:
    """Up to ``number`` bad images, group by group."""
    by_group: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(test.samples, key=lambda sample: sample.path.as_posix()):
        if sample.anomalous:
            by_group[sample.group].append(sample)
    drawn: list[Sample] = []
    for group in shuffled_names(by_group, seed, "contaminate"):
        drawn += _some(by_group[group], number - len(drawn), seed, group)
        if len(drawn) == number:
            break
    return tuple(drawn)


def _some(images: Sequence[Sample], number: int, seed: int, group: str) -> list[Sample]:
    """All images of a group, or as many as are still missing, drawn by the seed."""
    names = [str(place) for place in range(len(images))]
    order = np.array([int(name) for name in shuffled_names(names, seed, f"contaminate {group}")], dtype=int)
    return [images[place] for place in sorted(order[: max(0, number)].tolist())]


def _check(training: TrainingSet, test: TestSet, ratio: float, number: int, drawn: int, left: Sequence[Sample]) -> None:
    bad = sum(sample.anomalous for sample in test.samples)
    most = f"the largest ratio that {test.name} allows is below {bad / max(1, len(training.normal)):.3f}"
    asked = f"ratio {ratio} of {len(training.normal)} training images is {number} bad ones"
    if drawn < number:
        raise DataError(f"{asked}, and the test set has {bad}: {most}.")
    if ratio > 0 and number == 0:
        raise DataError(f"{asked}: give a ratio of at least {1 / max(1, len(training.normal)):.3f}, or 0 for none.")
    if not any(sample.anomalous for sample in left):
        raise DataError(f"{asked}, and then no bad part is left to test on: {most}.")
