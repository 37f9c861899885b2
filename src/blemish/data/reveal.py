"""A few labels for a test of coarse knowledge: some bad images of few kinds become known-bad training images.

The protocol of the paper on CKAAD. This opens test sets: only the bench and the command line may import it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.data.manifest import write_manifest
from blemish.data.readers import refuse_to_replace
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import shuffled_names
from blemish.data.testset import TestSet
from blemish.errors import ConfigError, DataError

DRAWS = 5
"""Draws to average over where several kinds are revealed; a single kind is every kind in turn."""

FEWEST_TO_VALIDATE = 20
"""Labels from which on a part of them is held out: 5 % of fewer is less than one image."""

VALIDATION = "-validation"
"""What the name of the validation part's manifest ends in."""


@dataclass(frozen=True)
class Revealed:
    """A weak training set, and what it is judged on.

    Attributes:
        training: the good images and the labelled bad ones.
        test: the test set without the groups that labels were given to.
        validation: good and labelled bad images held out of the training set, or None; for methods that choose by it.
        kinds: what the labelled images show.
        labels: how many bad images were labelled, those held out included.
    """

    training: TrainingSet
    test: TestSet
    validation: TestSet | None
    kinds: tuple[str, ...]
    labels: int


def label_count(normal: int, ratio: float) -> int:
    """A: how many bad images beside ``normal`` good ones make ``ratio`` of the training set bad, to the nearest.

    Raises:
        ConfigError: the ratio is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ConfigError(f"ratio {ratio}: the bad share of the training set, from 0 to below 1, is needed: try 0.05")
    return round(normal / (1 - ratio) - normal)


def kinds_to_reveal(training: TrainingSet, test: TestSet, count: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The kinds of each draw that a figure is averaged over: every kind in turn, or five draws of several.

    Args:
        training: whose own known-bad images are drawn from, if it has any.
        test: drawn from otherwise.
        count: k, how many kinds are revealed at once.
        seed: fixes the draws.

    Raises:
        ConfigError: there are not as many kinds.
    """
    known = sorted({sample.kind for sample in _pool(training, test)})
    if not 1 <= count <= len(known):
        raise ConfigError(f"{count} kinds are to be revealed, and {test.name} has {len(known)}: {', '.join(known)}")
    if count == 1:
        return tuple((kind,) for kind in known)
    chosen = (shuffled_names(known, seed, f"kinds of draw {draw}")[:count] for draw in range(DRAWS))
    return tuple(tuple(sorted(kinds)) for kinds in chosen)


def reveal(
    training: TrainingSet,
    test: TestSet,
    ratio: float,
    kinds: Sequence[str],
    seed: int,
    draw: int = 0,
    validate: bool = True,
) -> Revealed:
    """Label ``label_count`` bad images of ``kinds``, as evenly among them as can be.

    They are drawn by group: groups come in an order fixed by seed and draw, and the last one gives as many images as
    are still missing; all of its images leave the test set all the same. A training set that has known-bad images of
    its own gives them, and the test set stays whole; otherwise the test set gives them. Where there are 20 labels or
    more, whole groups with at least ``int(5 %) + 1`` of the fewer of good and labelled images, and as many of the
    other, are held out for validation; they count among the labels.

    Args:
        training: with good images.
        test: of the same set.
        ratio: r_l, the labelled bad images' share of the training set; 0 labels none.
        kinds: those of one draw of ``kinds_to_reveal``.
        seed: fixes which groups are drawn, whatever the order of the files.
        draw: its number, where several are averaged.
        validate: hold out a validation part.

    Raises:
        ConfigError: a kind is unknown, or the ratio is out of range.
        DataError: there are fewer labels than kinds or fewer bad images than labels, or none would be left to test on.
    """
    pool = _pool(training, test)
    number = label_count(len(training.normal), ratio)
    by_kind = _by_kind(pool, kinds, test.name)
    _check_number(len(training.normal), ratio, number, by_kind)
    labelled = _draw(by_kind, number, f"{seed}/{draw}", seed) if number else ()
    groups = {sample.group for sample in labelled}
    left = tuple(sample for sample in test.samples if sample.group not in groups)
    if not any(sample.anomalous for sample in left):
        raise DataError(f"{_sum(len(training.normal), ratio, number)}, and then no bad part is left to test on")
    note = f"{number} bad images of {len(groups)} groups are labelled ({', '.join(kinds)}; ratio {ratio}, seed {seed})"
    samples = (*training.normal, *labelled)
    validation = None
    if validate and number >= FEWEST_TO_VALIDATE:
        samples, validation = _held_out(training.normal, labelled, test, seed)
    gone = f"{len(test.samples) - len(left)} images of labelled groups are left out"
    return Revealed(
        training=replace(training, samples=samples, notes=(*training.notes, *[note] * bool(number))),
        test=replace(test, samples=left, notes=(*test.notes, *[gone] * (len(left) < len(test.samples)))),
        validation=validation,
        kinds=tuple(kinds) if number else (),
        labels=number,
    )


def write_revealed(found: Revealed, manifest: Path) -> tuple[Path, ...]:
    """The manifest of training and test set and, where there is a validation part, beside it that part's.

    Args:
        found: what was drawn.
        manifest: the first one's path, in a folder that holds the images; the second's name ends in ``-validation``.

    Raises:
        ManifestError: images lie outside the manifest's folder, or it would replace what the images were read by.
        OutputError: it cannot be written.
    """
    paths = [manifest, manifest.with_stem(manifest.stem + VALIDATION)]
    parts = [[*found.training.samples, *found.test.samples]]
    if found.validation is not None:
        parts.append([*found.validation.samples])
    for path in paths[: len(parts)]:
        refuse_to_replace(path, found.training)
    return tuple(write_manifest(path, entries) for path, entries in zip(paths, parts))


def _pool(training: TrainingSet, test: TestSet) -> tuple[Sample, ...]:
    """Bad images that labels can be given to: the training set's own, or the test set's."""
    if training.anomalous:
        return training.anomalous
    return tuple(replace(s, split="train", mask=None) for s in test.samples if s.anomalous)


def _by_kind(pool: Sequence[Sample], kinds: Sequence[str], name: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {kind: [] for kind in kinds}
    for sample in sorted(pool, key=lambda sample: sample.path.as_posix()):
        if sample.kind in found:
            found[sample.kind].append(sample)
    missing = [kind for kind, samples in found.items() if not samples]
    if missing or not found:
        known = ", ".join(sorted({sample.kind for sample in pool})) or "none"
        raise ConfigError(f"{name} has no bad image of kind {', '.join(missing) or '(none given)'}: it has {known}")
    return found


def _sum(normal: int, ratio: float, number: int) -> str:
    return f"ratio {ratio} beside {normal} good images is {normal} / (1 - {ratio}) - {normal} = {number} labels"


def _check_number(normal: int, ratio: float, number: int, by_kind: Mapping[str, Sequence[Sample]]) -> None:
    there, asked = sum(map(len, by_kind.values())), _sum(normal, ratio, number)
    if ratio > 0 and number < len(by_kind):
        least = len(by_kind) / (normal + len(by_kind))
        raise DataError(f"{asked}, fewer than the {len(by_kind)} kinds: give a ratio of {least:.4f} or fewer kinds")
    if there < number:
        most = there / (normal + there)
        raise DataError(f"{asked}, and {', '.join(by_kind)} have {there} images: give a ratio of at most {most:.4f}")


def _draw(by_kind: Mapping[str, Sequence[Sample]], number: int, purpose: str, seed: int) -> tuple[Sample, ...]:
    """``number`` images, one of each kind in turn as long as there are any, the groups of a kind one after another."""
    queues = []
    for kind in sorted(by_kind):
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in by_kind[kind]:
            groups[sample.group].append(sample)
        order = shuffled_names(groups, seed, f"reveal {purpose} {kind}")
        queues.append([sample for group in order for sample in groups[group]])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    drawn = list(itertools.islice((sample for sample in turns if sample is not None), number))
    return tuple(sorted(drawn, key=lambda sample: sample.path.as_posix()))


def _held_out(
    normal: Sequence[Sample], labelled: Sequence[Sample], test: TestSet, seed: int
) -> tuple[tuple[Sample, ...], TestSet | None]:
    """The training samples that stay, and the validation part; None where a side has one group only."""
    number = int(0.05 * min(len(normal), len(labelled))) + 1
    held: set[str] = set()
    for side, samples in (("good", normal), ("bad", labelled)):
        order = shuffled_names([sample.group for sample in samples], seed, f"validation {side}")
        # One group of each side stays for learning, whatever is missing.
        for group in order[:-1]:
            if sum(sample.group in held for sample in samples) >= number:
                break
            held.add(group)
        if not held & set(order):
            return (*normal, *labelled), None
    everything = (*normal, *labelled)
    part = [replace(s, split="test") for s in everything if s.group in held]
    kept = tuple(sample for sample in everything if sample.group not in held)
    return kept, TestSet(f"{test.name} (validation)", test.root, tuple(part))
